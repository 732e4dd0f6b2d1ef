"""How long a drafted recipe trains on this machine: a few steps on a few of its examples, measured; too long a training is made shorter."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tauon.config import parse
from tauon.errors import TauonError
from tauon.recipe import Recipe
from tauon.starter.draft import Draft

__all__ = ["add_time", "in_words", "seconds_of"]

LONGEST = 15 * 60.0
"""Seconds of training above which epochs are saved."""
_FEWEST_EPOCHS = 5
_LIMITS = {"folder": 300, "wav": 200, "csv": 3000, "jsonl": 3000, "parquet": 3000, "text-folder": 500, "chat": 100, "pairs": 100}
"""Examples that are read to measure a step, by kind of source."""
_CHARACTERS = 200_000
_MOST_RECORDINGS = 3000
"""Above it nothing is measured, because every recording would be read."""


def add_time(made: Draft, budget: float = 1.0) -> Draft:
    """Add the measured time of training to the reasons of `train`, and shorten a training of more than 15 minutes.

    `budget`: seconds of steps that are measured. If nothing can be measured (the model must first be downloaded, for example), the draft stays.
    """
    step = seconds_of(made, budget)
    if step is None:
        return made
    total = _total(made, step)
    if total > LONGEST and made.sections["data"]["source"].get("kind") == "folder":
        made, step = _smaller_pictures(made, step, budget)
        total = _total(made, step)
    train = made.sections["train"]
    if total > LONGEST:
        before = train["epochs"]
        train["epochs"] = max(min(_FEWEST_EPOCHS, before), int(before * LONGEST / total))
        total = _total(made, step)
        if train["epochs"] < before:
            made.why["train"] = [s.replace(f"{before} epochs", f"{train['epochs']} epochs") for s in made.why["train"]]
            made.why["train"].append(
                f"{before} epochs would take {in_words(_total(made, step) * before / train['epochs'])}; {train['epochs']} are set."
            )
    made.seconds = total
    made.why["train"].append(f"All epochs take {in_words(total)} on this machine ({step * 1e3:,.0f} ms a step, measured now).")
    return made


def in_words(seconds: float) -> str:
    """Return a duration as people say it.

    >>> [in_words(s) for s in (3, 80, 400, 6000)]
    ['about 10 seconds', 'about 1 minute', 'about 7 minutes', 'about 1.7 hours']
    """
    if seconds < 55:
        return f"about {max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 5400:
        minutes = max(1, round(seconds / 60))
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {seconds / 3600:.1f} hours"


def seconds_of(made: Draft, budget: float) -> float | None:
    """Return the seconds of one training step, measured on some of the data; None if it cannot be measured."""
    from tauon.stages.context import Context, null_callback
    from tauon.stages.train import job_config, resolve_settings
    from tauon.train import seconds_a_step

    with tempfile.TemporaryDirectory() as folder:
        tree = _small(made, Path(folder))
        if tree is None:
            return None
        try:
            recipe = parse(Recipe, tree, "the drafted recipe")
            if recipe.model.fits_whole:  # there are no steps
                return None
            ctx = Context(recipe, None, null_callback)
            training = resolve_settings(ctx, None)
            try:
                return seconds_a_step(job_config(ctx, training.model), training.loader, training.mesh, None, training.plan, budget)
            finally:
                training.loader.close()
        except (TauonError, OSError, RuntimeError):  # whatever is wrong (out of memory, too) is reported when the recipe is run
            return None


def _small(made: Draft, folder: Path) -> dict[str, Any] | None:
    """Return the recipe with few examples and a cache of its own; None if even reading them takes long."""
    tree: dict[str, Any] = yaml.safe_load(made.to_yaml())
    source = tree["data"]["source"]
    kind = source["kind"]
    if kind == "wav" and made.examples > _MOST_RECORDINGS:
        return None
    if kind == "text":
        text = "".join(itertools.islice(_pieces(source), 64))[:_CHARACTERS]
        (folder / "text.txt").write_text(text, encoding="utf-8")
        tree["data"]["source"] = {"kind": "text", "path": str(folder / "text.txt")}
    elif kind in _LIMITS:
        source["limit"] = _LIMITS[kind]
    tree["data"]["cache"] = str(folder / "cache")
    tree["train"] = {"steps": 1, "batch": tree["train"].get("batch", 1), "precision": "fp32", "compile": False}
    return tree


def _pieces(source: dict[str, Any]) -> Iterator[str]:
    from tauon.data import SourceConfig

    yield from (document.text for document in parse(SourceConfig, source).documents())


def _total(made: Draft, step: float) -> float:
    """Return the seconds of all epochs, with ten validations on a tenth of the data, which cost a third of a step each batch."""
    train = made.sections["train"]
    a_pass = made.examples * 0.75 / train["batch"]
    return float(step * (math.ceil(a_pass * train["epochs"]) + 10 * math.ceil(made.examples * 0.1 / train["batch"]) / 3))


def _smaller_pictures(made: Draft, step: float, budget: float) -> tuple[Draft, float]:
    """Return the draft with images of 64 pixels and a small network, if it had larger ones, and its measured step."""
    source = made.sections["data"]["source"]
    before = source["size"]
    if before <= 64:
        return made, step
    source["size"] = 64
    made.sections["model"] = "resnet20"
    made.why["model"] = [f"A small residual network at 64 pixels: ResNet-18 at {before} would take {in_words(_total(made, step))} here."]
    made.why["data"] = [s for s in made.why["data"] if "are brought to" not in s]
    made.why["data"].append(f"Images are brought to 64 x 64, because {before} x {before} would take long on this machine (size).")
    measured = seconds_of(made, budget)
    return made, step if measured is None else measured
