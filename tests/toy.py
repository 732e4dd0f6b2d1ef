"""Tiny recipes and the command line in this process: shared by the tests of bad input, training and the command line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tauon.artifacts import load_checkpoint
from tauon.cli import main

WORDS = ["the", "a", "heavy", "lepton", "decays", "quickly", "into", "lighter", "ones", "and", "neutrinos", "\n"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Tauon:
    """`tauon VERB ...` in this process; what it printed is caught."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *args: str | Path) -> Ended:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in args])
        out, err = self.capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, out, err)


def words(n: int, seed: int = 0) -> str:
    """Text of `n` words."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def text_recipe(folder: Path, *, n_words: int = 1500, **sections: Any) -> Path:
    """A language model that trains in under a second; `sections` are merged over it. Returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "text.txt").exists():
        (folder / "text.txt").write_text(words(n_words))
    base: dict[str, Any] = {
        "name": "toy",
        "data": {
            "source": {"kind": "text", "path": str(folder / "text.txt")}, "tokenizer": "bytes", "seq_len": 16, "cache": str(folder / "cache"),
        },
        "task": "language-modelling",
        "model": {"kind": "gpt", "layers": 1, "width": 16, "heads": 2},
        "optim": {"kind": "adamw", "lr": 1e-2},
        "train": {"steps": 12, "batch": 4, "checkpoint_every": 4, "validate_every": 6, "validate_examples": 4, "precision": "fp32", "compile": False},
        "evaluate": {"samples": 1, "prompts": ["the"], "resamples": 100},
    }  # fmt: skip
    return write(folder / "recipe.yaml", merged(base, sections))


def table_recipe(folder: Path, **sections: Any) -> Path:
    """A small classifier of iris; `sections` are merged over it. Returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    base: dict[str, Any] = {
        "name": "table",
        "data": {"source": {"kind": "sklearn", "name": "iris"}},
        "task": "classification",
        "model": {"kind": "mlp", "hidden": [8]},
        "optim": {"kind": "adam", "lr": 1e-2},
        "train": {"steps": 12, "batch": 16, "checkpoint_every": 4, "validate_every": 6},
        "evaluate": {"resamples": 100},
    }
    return write(folder / "recipe.yaml", merged(base, sections))


def merged(base: Any, changes: Any) -> Any:
    """`changes` over `base`, node by node; None takes a key out."""
    if not isinstance(base, dict) or not isinstance(changes, dict) or changes.get("kind", base.get("kind")) != base.get("kind"):
        return changes
    out = {k: merged(base.get(k), v) if k in base else v for k, v in changes.items()}
    return {k: v for k, v in {**base, **out}.items() if v is not None}


def write(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def nothing_half_written(folder: Path) -> None:
    """No temporary name below `folder`, and every checkpoint is whole."""
    if not folder.exists():
        return
    odd = [p for p in folder.rglob("*") if ".tmp" in p.name or p.name.startswith(".old")]
    assert not odd, odd
    for path in folder.rglob("step-*"):
        load_checkpoint(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` but the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def refused(ended: Ended, code: int, *says: str) -> None:
    """It ended so, and said so: once, in words, without a traceback."""
    assert ended.code == code, ended
    for part in says:
        assert part in ended.err, ended.err
    assert "Traceback" not in ended.out + ended.err
    assert ended.err.count("error: ") <= 1
    nothing_half_written(Path("runs"))


class Stopped(BaseException):
    """A kill, as far as Python code can tell."""


def stop_after(tauon: Tauon, recipe: Path, step: int) -> None:
    """Train until `step` is done and its checkpoint written, then die."""
    from tauon.cli.main import cli
    from tauon.stages import training_record as watch

    original = watch.TrainingRecord.save

    def save(self: Any, job: Any) -> None:
        original(self, job)
        if job.step == step:
            self.writer.wait()
            raise Stopped

    watch.TrainingRecord.save = save  # type: ignore[method-assign]
    try:
        with pytest.raises(Stopped):
            cli.main(["train", str(recipe)], standalone_mode=False)
    finally:
        watch.TrainingRecord.save = original  # type: ignore[method-assign]
