"""The recipe: one typed tree for a whole run; functions to find, read, check and write it.

YAML, Python and `a.b=c` build the same tree. Everything that can be checked before any work is checked here, all problems at once.
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

import tauon.compress.training.rules
import tauon.data.rules
import tauon.federated.rules
import tauon.models.rules
import tauon.optim.rules
import tauon.privacy.rules
import tauon.tasks.rules
import tauon.train.rules  # noqa: F401  importing a rules module registers its rules
from tauon.compress.training import DistilConfig, QatConfig
from tauon.config import (
    Config,
    Count,
    dump,
    json_schema,
    load_plugins,
    override,
    parse,
    read_yaml,
    recipe_rules,
    registered,
    unread_keys,
    write_yaml,
)
from tauon.data import DataConfig
from tauon.data.read_keys import count_as_read
from tauon.distributed import AutoParallel, ParallelConfig
from tauon.errors import Problem, RecipeError
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
"""Pattern of valid run names."""
FREE = ("parallel", "launch", "track")
"""Sections that may change on resume: they set how, not what, is trained."""
FREE_KEYS = ("data.workers", "data.cache")
"""Keys of other sections that may change on resume: no example depends on them."""
LATER = ("distil", "qat", "federate")
"""Sections that older versions did not have: left out, they change nothing, fingerprints included."""


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
    distil: DistilConfig | None = None
    """Learn from a larger trained model as well: {teacher: runs/big, temperature: 2, weight: 0.5}. Left out: from the data alone."""
    qat: QatConfig | None = None
    """Quantisation-aware training, for int4 or int8 weights that cost less quality: {weights: int4, group: 32}. Left out: none."""
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
        """Yield every problem that can be found without opening the data; each package registers its own rules."""
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
            yield "stages", f"{list(stages)} is not a valid order. Use stages of {list(table)}, in this order, each once."
        if not stages:
            yield "stages", f"is empty, so there is nothing to do. Use stages of {list(table)}."
        wanted = self.wanted_stages()
        optional = {n for n, info in type(self).model_fields.items() if not info.is_required()}  # the others are required
        for stage in table.values():
            for section in sorted(optional & self.model_fields_set & set(stage.reads)):
                if stages and not any(section in table[s].reads for s in wanted):
                    yield (
                        section,
                        f"would not be used: stage {stage.name} is not in stages {list(stages)}. Add the stage, or remove this section.",
                    )

    def wanted_stages(self) -> tuple[str, ...]:
        """Return the stages that `tauon run` does: the recipe's `stages`; by default the core ones and those whose section it has."""
        stages: tuple[str, ...] = self.raw_value("stages")
        if "stages" in self.model_fields_set:
            return stages
        own = {s.name for s in stage_table().values() if s.config and self.__dict__.get(s.name) is not None}
        return tuple(name for name in stage_table() if name in stages or name in own)

    def with_section(self, name: str, section: Config) -> Recipe:
        """Return the same recipe with the section of a stage replaced."""
        return self.model_copy(update={name: section})


def child_tree(recipe: Recipe, name: str, stages: Sequence[str]) -> dict[str, Any]:
    """Return, as plain data, the recipe of a child run: some stages, in this process, without trackers and sections of other stages."""
    table = stage_table()
    other = {section for stage in table.values() for section in stage.reads} - {section for name in stages for section in table[name].reads}
    tree = {k: v for k, v in dump(recipe).items() if k not in other}
    return tree | {"name": name, "stages": list(stages), "track": [], "launch": "here"}


def join_sections(cls: type[Recipe], stages: Iterable[Stage]) -> None:
    """Add the sections of these stages to the recipe's type; a section that a recipe leaves out is None."""
    missing = [s for s in stages if s.config and s.name not in cls.model_fields]
    for stage in missing:
        kind = load(stage.config, extra=stage.extra) | None
        cls.__annotations__[stage.name] = kind
        cls.__pydantic_fields__[stage.name] = FieldInfo(annotation=kind, default=None, description=stage.help)
    if missing:
        cls.model_rebuild(force=True)


join_sections(Recipe, BUILT_IN)


def load_parts() -> None:
    """Load the plug-ins of installed packages: parts of all families, and stages with their sections."""
    load_plugins()
    for stage in list(stage_table().values()):
        try:
            join_sections(Recipe, [stage])
        except Exception as err:  # code of another package can raise anything
            leave_out(stage, err)


def fingerprint(recipe: Recipe, sections: Iterable[str], *upstream: str, spelled: Mapping[str, Any] | None = None) -> str:
    """Return the sha256 of what a stage's result depends on: its sections, the seed, and fingerprints of earlier stages.

    `spelled`: the recipe as plain data, if it must be written as in an older version.
    """
    tree = dump(recipe) if spelled is None else spelled
    read = {s: tree[s] for s in sections if s not in LATER or tree.get(s) is not None}
    text = json.dumps([read, tree["seed"], *upstream], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the dotted keys at which two plain trees differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in sorted({*a, *b}) for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else str(k))]
    return [] if a == b else [f"{path}: {a!r} -> {b!r}"]


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes, including all installed parts."""
    load_parts()
    return json_schema(Recipe)


def to_yaml(recipe: Recipe) -> str:
    """Return the complete recipe as YAML, with defaults: enough to run it again."""
    tree = dump(recipe)
    unused = {
        s.name for s in stage_table().values() if s.config and tree.get(s.name) is None
    }  # so that it opens where that stage is not installed
    unused |= {name for name in LATER if tree[name] is None}
    return write_yaml({k: v for k, v in tree.items() if k not in unused})


def recipe_folder() -> Path:
    """Return the folder of the shipped recipes: in the package, or next to it in a source checkout."""
    packaged = Path(__file__).parent / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return name -> path of each recipe that ships with Tauon."""
    return {p.stem: p for p in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(ref: str) -> Path:
    """Return the recipe file that `ref` names: a file or pipe, a run's folder, or a shipped recipe. Raises `RecipeError`."""
    path = Path(ref)
    try:
        if path.is_dir():
            inside = path / "recipe.yaml"
            if inside.is_file():
                return inside
            raise RecipeError(
                f"{ref} is not a run: it has no recipe.yaml. `tauon runs list` shows the runs. Nor is it a folder of images, recordings or texts, from "
                "which `tauon run` would write a recipe."
            )
        if path.exists():
            return path
    except (OSError, ValueError) as err:  # a name that is too long, a folder without permission
        raise RecipeError(f"{ref[:60]!r} cannot be opened: {getattr(err, 'strerror', None) or err}. Check the path.") from None
    shipped = shipped_recipes()
    if ref in shipped:
        return shipped[ref]
    raise RecipeError(f"no file, run or shipped recipe is called {ref!r}. Check the path. Shipped recipes: {', '.join(shipped) or 'none'}.")


def read_recipe(ref: str) -> tuple[str, str]:
    """Return (text, origin) of the recipe that `ref` names; `-` is standard input. A pipe can be read once. Raises `RecipeError`."""
    path = Path("/dev/stdin") if ref == "-" else find_recipe(ref)
    where = "standard input" if ref == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if ref == "-" else path.read_bytes()
        return raw.decode("utf-8-sig").replace("\r\n", "\n"), where
    except (OSError, UnicodeDecodeError) as err:
        raise RecipeError(f"cannot be read: {err}", where) from None


def folder_of(ref: str | Path) -> Path | None:
    """Return `ref` as an absolute path without links if it is the folder of a run, else None."""
    try:
        return Path(ref).resolve() if (Path(ref) / "recipe.yaml").is_file() else None
    except (OSError, ValueError, RuntimeError):  # `find_recipe` raises the error for it
        return None


def load_recipe(ref: str | Path, assignments: Iterable[str] = (), *, on: str | None = None) -> Recipe:
    """Read a recipe, apply assignments, and check it. Raises `RecipeError` with every problem.

    A run's folder may have been copied or renamed: the recipe gets the folder's name if that is a valid run name.

    Args:
        ref: a file, `-` for standard input, a run's folder, or the name of a shipped recipe.
        assignments: `a.b=c`, each replaces the recipe's value.
        on: where the processes are started, as in `--on`. If the recipe's `launch` section has the same kind, its other keys are kept.
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
    assignments = [*assignments]
    refuse_path_of_named_data(str(ref), data, assignments)
    tree = parse(Recipe, override(data, [*place, *assignments]), where)
    if str(ref) in shipped_recipes() and any(a.partition("=")[0].strip() in ("data", "data.source") for a in assignments):
        count_unread_as_read(tree, assignments)
    return tree


def refuse_path_of_named_data(ref: str, data: Mapping[str, Any], assignments: Sequence[str]) -> None:
    """Raise `RecipeError`, with the mapping to write, if `data.source.path` is set and the recipe's source is of a kind that has no such file."""
    given = {key.strip(): value for key, _, value in (a.partition("=") for a in assignments)}
    section = data.get("data")
    source = section.get("source") if isinstance(section, dict) else None
    kind = source.get("kind") if isinstance(source, dict) else source
    path = given.get("data.source.path")
    if path is None or not isinstance(kind, str) or {"data", "data.source", "data.source.kind"} & {*given}:
        return
    suffix = Path(path.lower().removesuffix(".gz").removesuffix(".zst")).suffix
    fitting = _KINDS_OF_FILES.get(suffix, ("text",) if suffix in (".txt", ".md") else ())
    has_path = kind in registered("source") and "path" in registered("source")[kind].model_fields
    if has_path and (not fitting or kind in fitting or suffix not in _KINDS_OF_FILES):
        return
    task = data.get("task")
    name = task.get("kind") if isinstance(task, dict) else task
    keys = {
        "language-modelling": "text: text", "text-classification": "text: TEXT, label: LABEL", "forecasting": "date: DATE",
        "instruction-tuning": "", "dpo": "", "audio-classification": 'pattern: "{label}/{name}"',
    }.get(str(name), "label: LABEL")  # fmt: skip
    own = {"forecasting": "series", "instruction-tuning": "chat", "dpo": "pairs", "audio-classification": "wav"}.get(str(name))
    other = own or (fitting[0] if fitting else "text" if name == "language-modelling" else "folder")
    keys = "" if other == "text" or (other == "folder" and name == "classification") else keys
    mapping = f"{{kind: {other}, path: {path}{f', {keys}' if keys else ''}}}"
    raise RecipeError([
        Problem(
            "data.source.path",
            f"the recipe reads data of kind {kind!r}, which {'reads other files' if has_path else 'has no path'}. For your own file write the whole "
            f"source: 'data.source={mapping}', with your columns; or: tauon run {ref} --data {path}{' --label LABEL' if 'LABEL' in keys else ''}",
        )
    ])  # fmt: skip


_KINDS_OF_FILES = {
    ".csv": ("csv", "series"), ".tsv": ("csv", "series"), ".jsonl": ("jsonl", "chat", "pairs"), ".json": ("jsonl", "chat", "pairs"),
    ".parquet": ("parquet",), ".npz": ("npz",),
}  # fmt: skip
"""Kinds of sources that read files of a suffix, the most general first."""


def count_unread_as_read(tree: Recipe, assignments: Sequence[str]) -> None:
    """For a shipped recipe on other data: count its keys of `data` as read, so that one without use there (categories of another table) is no
    error. Keys that were assigned are not counted.
    """
    given = {a.partition("=")[0].strip() for a in assignments}
    section = tree.raw_value("data")
    for _ in range(3):  # keys below a key show when it is read
        keys = [key for key in unread_keys(section) if not any(f"data.{key}".startswith(g) for g in given - {"data"})]
        count_as_read(section, [key.split(".") for key in keys])
