"""Reads the records of a run folder as plain data. Draws nothing.

Every file except `recipe.yaml` is optional. A damaged record is treated as missing and named in `problems`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tauon.config import read_yaml
from tauon.errors import DataError, RecipeError, RunError
from tauon.tracking import read_events, timeline

__all__ = ["Records", "number"]


@dataclass
class Records:
    """The records of a run. A missing record is an empty container."""

    folder: Path
    recipe_text: str
    recipe: dict[str, Any]
    derived: list[dict[str, Any]]
    """{"path", "value", "source"} of each derived setting."""
    manifest: dict[str, Any]
    data: dict[str, Any]
    events: list[dict[str, Any]]
    """The event log without the steps that were repeated after a kill."""
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]
    folds: dict[str, Any]
    stages: dict[str, Any]
    """Entry of each finished stage in stages.json, by name."""
    problems: list[str] = field(default_factory=list)
    """One sentence for each record that exists but cannot be used."""

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Read the records of a run. Raises RunError if `folder` has no readable recipe.yaml."""
        problems: list[str] = []
        try:
            text = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
        except OSError as err:
            raise RunError(
                f"{folder / 'recipe.yaml'}: {err.strerror or err}. A report needs a run's folder, the one with recipe.yaml. `tauon runs list` shows the runs."
            ) from err
        try:
            recipe = read_yaml(text)
        except RecipeError as err:
            recipe = None
            problems.append(f"recipe.yaml cannot be parsed and is shown as text: {err}")

        def load(name: str, kind: type) -> Any:
            value = _json(folder / name, problems)
            if value is not None and not isinstance(value, kind):
                problems.append(f"{name} contains a {type(value).__name__}, expected a {kind.__name__}; it is left out.")
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
            events=_log(folder / "events.jsonl", problems),
            evaluation=load("evaluation.json", dict),
            samples=rows("samples.json"),
            folds=load("folds.json", dict),
            stages={k: v for k, v in load("stages.json", dict).items() if isinstance(v, dict)},
            problems=problems,
        )

    def json(self, name: str, default: Any = None) -> Any:
        """Return any other JSON record of the folder, for sections of other packages; `default` if it is missing or damaged."""
        value = _json(self.folder / name, self.problems)
        return default if value is None else value

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.folder.resolve().name)

    @cached_property
    def _kinds(self) -> dict[Any, list[dict[str, Any]]]:
        by_kind: dict[Any, list[dict[str, Any]]] = {}
        for event in self.events:
            by_kind.setdefault(str(event.get("kind")), []).append(event)
        return by_kind

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the events of these kinds, oldest first."""
        if len(kinds) == 1:
            return self._kinds.get(kinds[0], [])
        return [e for e in self.events if e.get("kind") in kinds]

    @property
    def only_folds(self) -> bool:
        """Whether the folder is that of a cross-validation, whose folds have the other records."""
        return bool(self.folds.get("folds")) and not self.evaluation and not self.events

    @property
    def last_step(self) -> int | None:
        """Number of the last recorded step."""
        steps = (s for e in reversed(self.of_kind("step")) if (s := number(e.get("step"))) is not None)
        last = next(steps, None)
        return None if last is None else int(last)

    def series(self, key: str, kind: str = "step") -> tuple[list[float], list[float]]:
        """Return (steps, values) of one number in the log. Values may be NaN or infinite; events without the number are skipped."""
        xs, ys = [], []
        for x, event in self._steps(kind):
            value = event.get(key)
            y = value if type(value) is float else number(value, finite=False)
            if y is not None:
                xs.append(x)
                ys.append(y)
        return xs, ys

    def _steps(self, kind: str) -> list[tuple[float, dict[str, Any]]]:
        """Return (step, event) of each event with a step number, cached by kind."""
        if kind not in self._numbered:
            self._numbered[kind] = [(x, e) for e in self.of_kind(kind) if (x := number(e.get("step"))) is not None]
        return self._numbered[kind]

    @cached_property
    def _numbered(self) -> dict[str, list[tuple[float, dict[str, Any]]]]:
        return {}


_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number(value: Any, *, finite: bool = True) -> float | None:
    """Return a number of a record, also from the strings "NaN", "Infinity", "-Infinity"; None for anything else."""
    if type(value) is float:  # the common case
        return value if not finite or math.isfinite(value) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = _SPECIAL.get(value)
    if not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) or not finite else None


def _log(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return timeline(read_events(path, warn=problems.append))
    except DataError as err:
        problems.append(str(err))
        return []


def _json(path: Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as err:
        problems.append(f"{path.name} cannot be read and is left out: {err}")
        return None
