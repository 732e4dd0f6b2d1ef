"""A run folder's records as plain data: what was found, what is missing, what could not be read. Draws nothing.

Every file but `recipe.yaml` is optional. A record that is damaged is treated as missing and named in `problems`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tauon.config import read_yaml
from tauon.errors import RecipeError, RunError
from tauon.report.events import load_timeline

__all__ = ["Records", "number"]


@dataclass
class Records:
    """What a run left. Empty containers stand for records that are not there."""

    folder: Path
    recipe_text: str
    recipe: dict[str, Any]
    derived: list[dict[str, Any]]
    """{"path", "value", "source"} of each setting that was worked out."""
    manifest: dict[str, Any]
    data: dict[str, Any]
    events: list[dict[str, Any]]
    """The log as if the run had never been killed."""
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]
    folds: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    """One sentence for each record that is there and cannot be used."""

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Raises RunError when `folder` holds no readable recipe.yaml."""
        problems: list[str] = []
        try:
            text = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
        except OSError as err:
            raise RunError(
                f"{folder / 'recipe.yaml'}: {err.strerror or err}. A report needs a run folder: the one that holds recipe.yaml"
            ) from err
        try:
            recipe = read_yaml(text)
        except RecipeError as err:
            recipe = None
            problems.append(f"recipe.yaml is shown as it is: {err}")
        events, damaged = load_timeline(folder / "events.jsonl")
        problems += damaged

        def load(name: str, kind: type) -> Any:
            value = _json(folder / name, problems)
            if value is not None and not isinstance(value, kind):
                problems.append(f"{name} holds a {type(value).__name__}, expected a {kind.__name__}; it is left out.")
                value = None
            return kind() if value is None else value

        def rows(name: str) -> list[dict[str, Any]]:
            return [row for row in load(name, list) if isinstance(row, dict)]

        return cls(
            folder=folder,
            recipe_text=text,
            recipe=recipe if isinstance(recipe, dict) else {},
            derived=rows("derived.json"),
            manifest=load("manifest.json", dict),
            data=load("data.json", dict),
            events=events,
            evaluation=load("evaluation.json", dict),
            samples=rows("samples.json"),
            folds=load("folds.json", dict),
            problems=problems,
        )

    def json(self, name: str, default: Any = None) -> Any:
        """Any other JSON record of the folder, for sections of other rooms; `default` when it is missing or damaged."""
        value = _json(self.folder / name, self.problems)
        return default if value is None else value

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.folder.resolve().name)

    def of_kind(self, *kinds: str) -> Iterator[dict[str, Any]]:
        return (e for e in self.events if e.get("kind") in kinds)

    @property
    def last_step(self) -> int | None:
        steps = [s for e in self.of_kind("step") if (s := number(e.get("step"))) is not None]
        return int(steps[-1]) if steps else None

    def series(self, key: str, kind: str = "step") -> tuple[list[float], list[float]]:
        """(steps, values) of one number in the log; values may be NaN or infinite; events without it are passed over."""
        xs, ys = [], []
        for event in self.of_kind(kind):
            x, y = number(event.get("step")), number(event.get(key), finite=False)
            if x is not None and y is not None:
                xs.append(x)
                ys.append(y)
        return xs, ys


_SPELT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number(value: Any, *, finite: bool = True) -> float | None:
    """A number out of a record, where JSON's strings "NaN", "Infinity", "-Infinity" count; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = _SPELT.get(value)
    if not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) or not finite else None


def _json(path: Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as err:
        problems.append(f"{path.name} cannot be read and is left out: {err}")
        return None
