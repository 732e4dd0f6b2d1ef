"""Small checkpoints, and what a folder of them holds: shared by the tests of checkpoints and of their writer."""

from __future__ import annotations

from pathlib import Path

import torch

from tauon.artifacts import steps_in


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def steps(folder: Path) -> list[int]:
    return [step for step, _ in steps_in(folder)]


def groups(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((4, 3), value), "b": torch.arange(3)}, "optim": {"m": torch.full((4, 3), -value)}}
