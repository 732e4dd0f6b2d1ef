"""A run folder's records as plain data: what was found, what is missing, what could not be read. Draws nothing.

Every file but `recipe.yaml` is optional. A record that is damaged is treated as missing and named in `problems`.
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
    stages: dict[str, Any]
    """What each finished stage left in stages.json, by name."""
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
            events=_log(folder / "events.jsonl", problems),
            evaluation=load("evaluation.json", dict),
            samples=rows("samples.json"),
            folds=load("folds.json", dict),
            stages={k: v for k, v in load("stages.json", dict).items() if isinstance(v, dict)},
            problems=problems,
        )

    def json(self, name: str, default: Any = None) -> Any:
        """Any other JSON record of the folder, for sections of other rooms; `default` when it is missing or damaged."""
        value = _json(self.folder / name, self.problems)
        return default if value is None else value

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.folder.resolve().name)

    @cached_property
    def _kinds(self) -> dict[Any, list[dict[str, Any]]]:
        found: dict[Any, list[dict[str, Any]]] = {}
        for event in self.events:
            found.setdefault(str(event.get("kind")), []).append(event)
        return found

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Events of these kinds, oldest first."""
        if len(kinds) == 1:
            return self._kinds.get(kinds[0], [])
        return [e for e in self.events if e.get("kind") in kinds]

    @property
    def only_folds(self) -> bool:
        """Whether the folder only gathers the folds of a cross-validation, which keep the other records themselves."""
        return bool(self.folds.get("folds")) and not self.evaluation and not self.events

    @property
    def last_step(self) -> int | None:
        """Number of the last step on record."""
        steps = (s for e in reversed(self.of_kind("step")) if (s := number(e.get("step"))) is not None)
        last = next(steps, None)
        return None if last is None else int(last)

    def series(self, key: str, kind: str = "step") -> tuple[list[float], list[float]]:
        """(steps, values) of one number in the log; values may be NaN or infinite; events without it are passed over."""
        xs, ys = [], []
        for x, event in self._steps(kind):
            value = event.get(key)
            y = value if type(value) is float else number(value, finite=False)
            if y is not None:
                xs.append(x)
                ys.append(y)
        return xs, ys

    def _steps(self, kind: str) -> list[tuple[float, dict[str, Any]]]:
        """(step, event) of the events that name a step, worked out once a kind."""
        if kind not in self._numbered:
            self._numbered[kind] = [(x, e) for e in self.of_kind(kind) if (x := number(e.get("step"))) is not None]
        return self._numbered[kind]

    @cached_property
    def _numbered(self) -> dict[str, list[tuple[float, dict[str, Any]]]]:
        return {}


_SPELT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number(value: Any, *, finite: bool = True) -> float | None:
    """A number out of a record, where JSON's strings "NaN", "Infinity", "-Infinity" count; None for anything else."""
    if type(value) is float:  # most of them
        return value if not finite or math.isfinite(value) else None
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
