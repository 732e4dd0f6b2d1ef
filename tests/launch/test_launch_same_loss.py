"""The quickstart recipe, shortened, on one process, on two here, and on two under Ray: the same losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tauon.tracking import read_events

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SHORT = ("train.time=null", "train.steps=8", "train.validate_every=8", "train.validate_examples=16", "data.seq_len=64", "track=[]")


def losses(folder: Path, place: str) -> list[float]:
    name = place.replace(":", "-")
    command = [
        sys.executable,
        "-m",
        "tauon",
        "train",
        "quickstart",
        f"name={name}",
        "--root",
        str(folder),
        "--on",
        place,
        *SHORT,
        "--quiet",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "TAUON_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return [e["loss"] for e in read_events(folder / name / "events.jsonl") if e["kind"] in ("step", "validate")]


@pytest.mark.timeout(900)
def test_quickstart_gives_the_same_losses_wherever_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("pandas", reason="pandas, which ray.train needs, is not installed")
    alone, two, ray = (losses(tmp_path, place) for place in ("here", "local:2", "ray:2"))
    assert len(alone) == 9
    assert two == ray  # the same layout
    # Muon rounds matrices to bf16, which makes more of differences in the last bit than fp32 does
    assert two == pytest.approx(alone, abs=2e-3)
