"""Small private runs with a ledger: trained, killed after so many steps, and what they left. Shared by the tests of keys and ledgers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting")
pytest.importorskip("sklearn")

from tauon.artifacts import RunFolder, load_checkpoint
from tauon.pipeline import run
from tauon.privacy.ledger import Entry, find_ledgers
from tauon.recipe import Recipe, load_recipe
from tauon.tracking import read_events
from toy import table_recipe

PRIVACY = {
    "noise_multiplier": 3.0, "delta": 1e-3, "accountant": "rdp", "statistics": {"noise": 4.0}, "budget": {"epsilon": 3.9, "delta": 1e-3},
}  # fmt: skip
"""One run fits into the budget, two do not."""
DATA = {"normalize": "standard", "bounds": {"*": [0, 8]}, "split": {"validation": 0.1, "test": 0.2}}
TRAIN = {"steps": 4, "checkpoint_every": 2, "validate_every": 4, "validate_examples": 4, "precision": "fp32", "compile": False}


KNOWN: dict[str, Any] = {}


def remembered(whole: Callable[..., Any]) -> Callable[..., Any]:
    def asked(releases: Any, *args: Any, **more: Any) -> Any:
        name = f"{whole.__name__} {list(releases)} {args} {more}"
        if name not in KNOWN:
            KNOWN[name] = whole(releases, *args, **more)
        return KNOWN[name]

    return asked


def recipe(folder: Path, *assigned: str, privacy: Any = None, data: Any = None, **sections: Any) -> Recipe:
    made = table_recipe(folder / "recipes", data=DATA | (data or {}), train=TRAIN, privacy=PRIVACY | (privacy or {}), **sections)
    return load_recipe(made, list(assigned))


def train(made: Recipe, folder: Path, **more: Any) -> RunFolder:
    return run(made, root=folder / "runs", stages=("prepare", "train"), **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints/step-000004").tensors("model")


def entries(ledgers: Path) -> list[Entry]:
    (ledger,) = find_ledgers(ledgers, "")
    return ledger.entries()


def actions(ledgers: Path) -> list[str]:
    return [e.action for e in entries(ledgers)]


def keys_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*privacy.key"))


class Stop(Exception):
    pass


def stop_at(step: int) -> Callable[..., None]:
    def on_event(kind: str, **facts: Any) -> None:
        if kind == "step" and facts["step"] == step:
            raise Stop

    return on_event


def killed(made: Recipe, folder: Path, step: int) -> Path:
    """The folder of a run that was killed after so many steps, whose log and checkpoints are on disk; 0: before the first."""
    place = folder / "runs" / made.name
    until = time.monotonic() + 60

    def work() -> None:
        def on_event(kind: str, **facts: Any) -> None:
            if kind == "training" and not step:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "step" and facts["step"] == step:
                while not on_disk(place, step) and time.monotonic() < until:
                    time.sleep(0.002)
                os.kill(os.getpid(), signal.SIGKILL)

        train(made, folder, on_event=on_event)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL and (not step or on_disk(place, step))
    return place


def on_disk(folder: Path, step: int) -> bool:
    logged = [(e["kind"], e.get("step")) for e in read_events(folder / "events.jsonl")]
    return ("step", step) in logged and (step < 3 or ("saved", 2) in logged)


def die() -> None:
    os._exit(17)


def in_child(work: Callable[[], None]) -> int | None:
    """What a forked process ends with."""

    def quietly() -> None:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=quietly)
    child.start()
    child.join(120)
    return child.exitcode
