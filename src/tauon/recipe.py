"""The recipe: one typed tree for a whole run, and how it is found, read, checked and written.

YAML, Python and `a.b=c` build the same tree. What can be checked before any work is checked here, all of it at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tauon.config import Config, Count, dump, json_schema, load_plugins, override, parse, read_yaml, registered, write_yaml
from tauon.data import DataConfig, problems_for
from tauon.distributed import AutoParallel, ParallelConfig
from tauon.errors import RecipeError
from tauon.evaluate import EvaluateConfig
from tauon.launch import Here, LaunchConfig, choose
from tauon.models import AdaptConfig, ModelConfig
from tauon.optim import AdamWConfig, OptimConfig
from tauon.privacy import PrivacyConfig, refuse_combinations, refuse_statistics
from tauon.tasks import Task
from tauon.tracking import TrackerConfig
from tauon.train import TrainConfig

__all__ = [
    "NAME",
    "STAGES",
    "Recipe",
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
StageName = Literal["prepare", "train", "evaluate", "report"]
STAGES: tuple[StageName, ...] = ("prepare", "train", "evaluate", "report")
SECTIONS: dict[str, tuple[str, ...]] = {
    "prepare": ("data",),
    "train": ("data", "task", "model", "adapt", "optim", "train", "privacy", "parallel", "track"),
    "evaluate": ("evaluate",),
    "report": (),
}
"""Which sections of the recipe each stage consumes."""
FREE = ("parallel", "launch", "track")
"""Sections that may change between two parts of one run: they say how, not what, is trained."""


class Recipe(Config):
    """One run, from raw data to report."""

    name: str = Field(pattern=NAME)
    """Name of the run, and of its folder: letters, digits, `.`, `_`, `-`."""
    seed: Count = Field(0, ge=0)
    """Every random draw is a function of it: data order, augmentation, dropout, initial weights."""
    stages: tuple[StageName, ...] = STAGES
    """What `tauon run` does, in this order."""
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
        """What cannot work together, as far as it can be told without opening the data."""
        task, model, train, stages = self.peek("task"), self.peek("model"), self.peek("train"), self.peek("stages")
        data: DataConfig = self.peek("data")
        for name, message in problems_for(data, task.needs):
            yield f"data.{name}", message
        reads_it = task.needs in (model.needs if isinstance(model.needs, tuple) else (model.needs,))
        if not reads_it and model.kind_ != "checkpoint":  # what a checkpoint reads is known when it is opened
            readers = {k: getattr(m, "needs", ()) for k, m in registered("model").items()}
            fit = ", ".join(k for k, n in readers.items() if task.needs in ((n,) if isinstance(n, str) else n))
            reads = model.needs if isinstance(model.needs, str) else " or ".join(model.needs)
            yield (
                "model.kind",
                f"{model.kind_} reads {reads}, and task {task.kind_} gives it {task.needs}. Take one of {fit}, or another task.",
            )
        if task.family not in ("classification", "ordinal"):
            for name in ("mix", "sampling", "class_weights", "label_order"):
                if task.needs == "arrays" and data.peek(name) != DataConfig.model_fields[name].default:
                    yield f"data.{name}", f"is for classes, and the task is {task.kind_}. Drop it."
        if model.peek("adapt") is not None:
            yield "model.adapt", "is a section of its own. Write adapt: beside model:, not inside it."
        if self.peek("adapt") is not None and model.peek("from_") is None:
            yield "adapt", "needs model.from, the trained model that it is put beside. Give one, or drop this section."
        if train.peek("tokens") is not None and task.needs not in ("tokens", "masked-tokens", "chat"):
            yield "train.tokens", f"task {task.kind_} has no tokens. Give steps, epochs or time."
        if len(set(stages)) != len(stages) or list(stages) != [s for s in STAGES if s in stages]:
            yield "stages", f"{list(stages)} is not an order that works. Take some of {list(STAGES)}, in this order, each once."
        if not stages:
            yield "stages", f"is empty, so there is nothing to do. Take some of {list(STAGES)}."
        optional = {n for n, info in type(self).model_fields.items() if not info.is_required()}  # others cannot be dropped
        for stage, sections in SECTIONS.items():
            for section in sorted(optional & self.model_fields_set & set(sections)):
                if stages and not any(section in SECTIONS[s] for s in stages):
                    yield section, f"nothing will read it: stage {stage} is not among stages {list(stages)}. Add it, or drop this section."
        optim = self.peek("optim")
        for name in ("batch", "batch_warmup") if optim.full_batch else ():
            if name in train.model_fields_set:
                yield f"train.{name}", f"{optim.kind_} takes the whole training set at every step. Drop it, or take optim.kind=sgd."
        if optim.for_noise and (self.peek("privacy") is None or not self.peek("privacy").promises):
            yield (
                "optim.kind",
                f"{optim.kind_} takes the noise of private training into account, and there is none. Take adamw, or add privacy.",
            )
        if task.needs == "pairs" and model.peek("from_") is None:
            yield (
                "model.from",
                f"is missing: {task.kind_} begins with a model that answers already. Give one that was tuned on instructions.",
            )
        if task.needs == "pairs" and self.peek("parallel").kind_ == "parameter-server":
            yield (
                "parallel.kind",
                f"parameter-server, whose workers have no reference model, and task {task.kind_} needs one. Take replicate.",
            )
        if task.needs not in ("tokens", "chat", "pairs"):
            for name in ("prompts", "samples"):
                if name in self.peek("evaluate").model_fields_set:
                    yield f"evaluate.{name}", f"is for language models, and the task is {task.kind_}. Drop it."
        if self.peek("privacy") is not None and self.peek("privacy").peek("views") > 1:
            if not self.peek("privacy").promises:
                yield "privacy.views", "is for private training, and neither epsilon nor noise is given. Drop it."
            elif not data.peek("augment"):
                yield "privacy.views", "shows an example several times in a step, each time the same: set data.augment, or drop it."
        if self.peek("privacy") is not None and self.peek("privacy").promises:
            yield from refuse_combinations(data, task, optim, self.peek("parallel"))
            if self.peek("privacy").peek("statistics") is not None:
                yield from refuse_statistics(data, task.needs)
        for name in ("early_stopping", "validate_every", "validate_examples"):
            if train.peek(name) is not None and self._holds_nothing_out():
                yield f"train.{name}", "needs validation data, and data.split.validation is 0. Hold some out, or drop it."

    def _holds_nothing_out(self) -> bool:
        data: DataConfig = self.peek("data")
        split: Any = data.peek("split")
        return data.peek("validation") is None and split.peek("folds") is None and split.peek("validation") == 0


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
    load_plugins()
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
    load_plugins()
    text, where = read_recipe(str(ref))
    data = read_yaml(text, where)
    if not isinstance(data, dict):
        raise RecipeError(f"expected keys and values, got {type(data).__name__}", where)
    folder = folder_of(ref)
    if folder is not None and re.fullmatch(NAME, folder.name):
        data = {**data, "name": folder.name}
    place = [] if on is None else choose(on, data.get("launch", "here"))
    return parse(Recipe, override(data, [*place, *assignments]), where)
