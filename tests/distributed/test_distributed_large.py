"""Large on paper: Llama-3 8B, 70B and 405B as ranks of 1,024, on the meta device, every parameter cut as planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from large import SIZES

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("size", [pytest.param(s, marks=pytest.mark.slow if s != "8B" else ()) for s in SIZES])
@pytest.mark.parametrize("rank", [0, pytest.param(1023, marks=pytest.mark.slow)])
def test_a_rank_of_1024_holds_its_share(size: str, rank: int) -> None:
    program = Path(__file__).with_name("large.py")
    done = subprocess.run([sys.executable, str(program), size, str(rank)], capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parameters"] / 1e9 == pytest.approx(SIZES[size][2], abs=0.01)
    assert found["wrong"] == []
    shares = 1024 // SIZES[size][1].get("replicate", 1)
    assert found["held"] < 1.6 * found["parameters"] / shares + 1e6  # embedding and head lie on the first and last stage
    assert found["seconds"] < 60
    assert found["gigabytes"] < 2
