"""The recipe: one typed tree for a whole run, and how it is found, read, checked and written.

YAML, Python and `a.b=c` build the same tree. What can be checked before any work is checked here, all of it at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

import tauon.data.rules
import tauon.models.rules
import tauon.optim.rules
import tauon.privacy.rules
import tauon.tasks.rules
import tauon.train.rules  # noqa: F401  rules that join by being imported
from tauon.config import Config, Count, dump, json_schema, load_plugins, override, parse, read_yaml, recipe_rules, write_yaml
from tauon.data import DataConfig
from tauon.distributed import AutoParallel, ParallelConfig
from tauon.errors import RecipeError
from tauon.evaluate import EvaluateConfig
from tauon.launch import Here, LaunchConfig, choose
from tauon.models import AdaptConfig, ModelConfig
from tauon.optim import AdamWConfig, OptimConfig
from tauon.privacy import PrivacyConfig
from tauon.stages.table import BUILT_IN, CORE, Stage, leave_out, load, stage_table, unknown_stage
from tauon.tasks import Task
from tauon.tracking import TrackerConfig
from tauon.train import TrainConfig

__all__ = [
    "NAME",
    "Recipe",
    "child_tree",
    "find_recipe",
    "folder_of",
    "load_recipe",
    "read_recipe",
    "recipe_schema",
    "shipped_recipes",
    "to_yaml",
]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names of runs."""
FREE = ("parallel", "launch", "track")
"""Sections that may change between two parts of one run: they say how, not what, is trained."""


class Recipe(Config):
    """One run, from raw data to report."""

    name: str = Field(pattern=NAME)
    """Name of the run, and of its folder: letters, digits, `.`, `_`, `-`."""
    seed: Count = Field(0, ge=0)
    """Every random draw is a function of it: data order, augmentation, dropout, initial weights."""
    stages: tuple[str, ...] = CORE
    """What `tauon run` does, in this order. Left out: prepare, train, evaluate, report, and each stage whose section the recipe has."""
    data: DataConfig
    """What to learn from."""
    task: Task
    """What to learn."""
    model: ModelConfig
    """What learns."""
    adapt: AdaptConfig | None = None
    """Train adapters beside the frozen weights of `model.from`: lora, dora. Left out: train the weights themselves."""
    optim: OptimConfig = AdamWConfig()
    """How weights are updated."""
    train: TrainConfig
    """How long, in what batches."""
    privacy: PrivacyConfig | None = None
    """Differential privacy of the training set: {target_epsilon: 3, delta: 1e-5}. Left out: none is promised."""
    parallel: ParallelConfig = AutoParallel()
    """How the work is divided among processes."""
    launch: LaunchConfig = Here()
    """Where the processes of `run` and `train` are started: here, local, ray, k8s, slurm. `--on` overrides it."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How the result is measured."""
    track: tuple[TrackerConfig, ...] = ()
    """Where else to log, beside `events.jsonl`: tensorboard, mlflow, wandb, csv."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What cannot work together, as far as it can be told without opening the data: every package says what it knows."""
        for rule in recipe_rules():
            yield from rule(self)
        yield from self._problems_of_stages()

    def _problems_of_stages(self) -> Iterator[tuple[str, str]]:
        table, stages = stage_table(), self.raw_value("stages")
        unknown = [(name, message) for name in stages if (message := unknown_stage(name))]
        yield from (("stages", message) for _, message in unknown)
        if unknown:
            return
        if len(set(stages)) != len(stages) or list(stages) != [s for s in table if s in stages]:
            yield "stages", f"{list(stages)} is not an order that works. Take some of {list(table)}, in this order, each once."
        if not stages:
            yield "stages", f"is empty, so there is nothing to do. Take some of {list(table)}."
        wanted = self.wanted_stages()
        optional = {n for n, info in type(self).model_fields.items() if not info.is_required()}  # others cannot be dropped
        for stage in table.values():
            for section in sorted(optional & self.model_fields_set & set(stage.reads)):
                if stages and not any(section in table[s].reads for s in wanted):
                    yield (
                        section,
                        f"nothing will read it: stage {stage.name} is not among stages {list(stages)}. Add it, or drop this section.",
                    )

    def wanted_stages(self) -> tuple[str, ...]:
        """What `tauon run` does: the recipe's `stages`; where it leaves them out, the usual ones and those whose section it has."""
        stages: tuple[str, ...] = self.raw_value("stages")
        if "stages" in self.model_fields_set:
            return stages
        own = {s.name for s in stage_table().values() if s.config and self.__dict__.get(s.name) is not None}
        return tuple(name for name in stage_table() if name in stages or name in own)

    def with_section(self, name: str, section: Config) -> Recipe:
        """The same recipe with the section of a stage replaced."""
        return self.model_copy(update={name: section})


def child_tree(recipe: Recipe, name: str, stages: Sequence[str]) -> dict[str, Any]:
    """Plain data of the recipe of a run inside another: some stages, in this process, with no tracker and no section of other stages."""
    other = {s.name for s in stage_table().values() if s.config and s.name not in stages}
    whole = {k: v for k, v in dump(recipe).items() if k not in other}
    return whole | {"name": name, "stages": list(stages), "track": [], "launch": "here"}


def join_sections(cls: type[Recipe], stages: Iterable[Stage]) -> None:
    """Give the tree the sections of these stages that have one: a section that is left out is None."""
    missing = [s for s in stages if s.config and s.name not in cls.model_fields]
    for stage in missing:
        kind = load(stage.config, extra=stage.extra) | None
        cls.__annotations__[stage.name] = kind
        cls.__pydantic_fields__[stage.name] = FieldInfo(annotation=kind, default=None, description=stage.help)
    if missing:
        cls.model_rebuild(force=True)


join_sections(Recipe, BUILT_IN)


def load_parts() -> None:
    """Everything that installed packages bring: parts of all families, and stages with their sections."""
    load_plugins()
    for stage in list(stage_table().values()):
        try:
            join_sections(Recipe, [stage])
        except Exception as err:  # another's code: anything may be wrong with it
            leave_out(stage, err)


def fingerprint(recipe: Recipe, sections: Iterable[str], *upstream: str, spelled: Mapping[str, Any] | None = None) -> str:
    """sha256 of what a stage's result depends on: its sections, the seed, and what came before. `spelled`: the recipe as plain data, where an
    earlier version wrote it.
    """
    whole = dump(recipe) if spelled is None else spelled
    text = json.dumps([{s: whole[s] for s in sections}, whole["seed"], *upstream], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted keys at which two plain trees differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in sorted({*a, *b}) for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else str(k))]
    return [] if a == b else [f"{path}: {a!r} -> {b!r}"]


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, every installed part included."""
    load_parts()
    return json_schema(Recipe)


def to_yaml(recipe: Recipe) -> str:
    """The complete recipe as YAML, defaults included: enough to run it again."""
    return write_yaml(dump(recipe))


def recipe_folder() -> Path:
    """Where the recipes that come with Tauon lie: in the package, or beside it in a source checkout."""
    packaged = Path(__file__).parent / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name to path of each recipe that comes with Tauon."""
    return {p.stem: p for p in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(ref: str) -> Path:
    """The file that a person means: a file or pipe, a run's folder, or the name of a shipped recipe. Raises `RecipeError`."""
    path = Path(ref)
    try:
        if path.is_dir():
            inside = path / "recipe.yaml"
            if inside.is_file():
                return inside
            raise RecipeError(f"{ref} is a folder without recipe.yaml, so it is no run. `tauon runs list` shows the runs.")
        if path.exists():
            return path
    except (OSError, ValueError) as err:  # a name too long, a folder that may not be entered
        raise RecipeError(f"{ref[:60]!r} cannot be looked up: {getattr(err, 'strerror', None) or err}. Check the path.") from None
    shipped = shipped_recipes()
    if ref in shipped:
        return shipped[ref]
    raise RecipeError(f"no file, run or shipped recipe is called {ref!r}. Shipped recipes: {', '.join(shipped) or 'none'}.")


def read_recipe(ref: str) -> tuple[str, str]:
    """(text, where it is from) of the recipe that a person means; `-` is standard input. A pipe can be read once. Raises `RecipeError`."""
    path = Path("/dev/stdin") if ref == "-" else find_recipe(ref)
    where = "standard input" if ref == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if ref == "-" else path.read_bytes()
        return raw.decode("utf-8-sig").replace("\r\n", "\n"), where
    except (OSError, UnicodeDecodeError) as err:
        raise RecipeError(f"cannot be read: {err}", where) from None


def folder_of(ref: str | Path) -> Path | None:
    """The run's folder that `ref` is, absolute, links resolved; None where it is no folder of a run."""
    try:
        return Path(ref).resolve() if (Path(ref) / "recipe.yaml").is_file() else None
    except (OSError, ValueError, RuntimeError):  # `find_recipe` says what is wrong with it
        return None


def load_recipe(ref: str | Path, assignments: Iterable[str] = (), *, on: str | None = None) -> Recipe:
    """Read, override, check. Raises `RecipeError` with every problem found.

    A run's folder may have been copied or renamed: its recipe is named as the folder is, where that can be a name.

    Args:
        ref: a file, `-` for standard input, a run's folder, or the name of a shipped recipe.
        assignments: `a.b=c`, each over what stands there.
        on: where the processes are started, as `--on` says it. A section `launch` of the same kind is kept, and changed by this.
    """
    load_parts()
    text, where = read_recipe(str(ref))
    data = read_yaml(text, where)
    if not isinstance(data, dict):
        raise RecipeError(f"expected keys and values, got {type(data).__name__}", where)
    folder = folder_of(ref)
    if folder is not None and re.fullmatch(NAME, folder.name):
        data = {**data, "name": folder.name}
    place = [] if on is None else choose(on, data.get("launch", "here"))
    return parse(Recipe, override(data, [*place, *assignments]), where)
