"""Frozen weights are mapped from their file, not copied: what may happen to the file then, and what may not happen to it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tauon.config import parse
from tauon.models import AdaptConfig, Model, ModelConfig, materialize, resolved, write_huggingface
from tauon.testing import tiny_batch
from tauon.types import DataSpec

SPEC = DataSpec(vocab=61, seq_len=16)
SIZES = {"kind": "llama", "layers": 2, "width": 32, "heads": 4, "mlp_width": 48, "vocab": 61, "seq_len": 16}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    config = parse(ModelConfig, SIZES)
    model = materialize(config, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    write_huggingface(folder, config, dict(model.state_dict()))
    return folder


def tuned(folder: Path, *, adapt: bool = True, **how: Any) -> Model:
    config = resolved(parse(ModelConfig, {"from": str(folder)}), SPEC)
    if adapt:
        config = config.model_copy(update={"adapt": parse(AdaptConfig, {"kind": "lora", "rank": 2})})
    return materialize(config, seed=0, **how)


def frozen(model: Model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def mapped_ranges(file: str) -> list[tuple[int, int]]:
    """Addresses at which this process has mapped a file."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.split(maxsplit=5)[-1].startswith(file)]
    return [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines]  # type: ignore[misc]


def is_mapped(p: torch.Tensor, file: Path) -> bool:
    return any(start <= p.data_ptr() < stop for start, stop in mapped_ranges(str(file.resolve())))


def step(model: Model) -> torch.Tensor:
    """A step of gradient descent on what trains."""
    batch = tiny_batch(SPEC, rows=2, seed=0)
    loss = torch.nn.functional.cross_entropy(model.logits(model(batch.inputs)).flatten(0, 1), batch.targets.flatten())
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(p.grad)
    return loss.detach()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_what_is_frozen_is_mapped_and_what_trains_is_not(base: Path) -> None:
    file = base / "model.safetensors"
    adapted, whole, half = tuned(base), tuned(base, adapt=False), tuned(base, half=True)
    assert all(is_mapped(p, file) != p.requires_grad for p in adapted.parameters())
    assert not any(is_mapped(p, file) for p in whole.parameters()), "a page that is written would be copied, one fault for each 4 KiB"
    assert {n for n, p in half.named_parameters() if is_mapped(p, file)} == {
        n for n, p in half.named_parameters() if not p.requires_grad and p.dtype == torch.float32
    }


def test_training_and_writing_to_a_frozen_weight_leave_the_file_as_it_was(base: Path) -> None:
    file = base / "model.safetensors"
    before = file.read_bytes()
    model = tuned(base)
    step(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert file.read_bytes() == before


@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_a_file_that_is_replaced_by_renaming_or_removed_changes_nothing_for_who_mapped_it(what: str, base: Path) -> None:
    file = base / "model.safetensors"
    here, other = tuned(base), tuned(base)
    want = step(other), frozen(other)
    if what == "replaced":  # as checkpoints are written, and as the hub's client downloads
        save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file.with_name("new"), metadata={"format": "pt"})
        os.replace(file.with_name("new"), file)
    else:  # as a run removes its old checkpoints
        shutil.rmtree(base)
    assert torch.equal(step(here), want[0])
    assert all(torch.equal(p, want[1][n]) for n, p in frozen(here).items())
    if what == "replaced":
        assert not any(p.any() for p in frozen(tuned(base)).values()), "who opens it now reads the new file"
