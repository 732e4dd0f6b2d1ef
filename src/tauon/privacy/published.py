"""What a private run's checkpoints may hold, for they may be given away: a list of every field, with where it comes from and why it is safe.

    public    the recipe, the shapes of the model, N, the number of steps: known to whoever knows the recipe and N
    noised    computed from noised gradients or noisy answers alone: covered by the guarantee (post-processing)
    fitted    learned from the data without noise, because whoever uses the model needs it (categories, the value that fills a gap): not covered
              by the guarantee, and named in `not_covered` of the run's privacy.json

What is on no list does not go into a checkpoint: `split` takes it out, and what a resume needs of it lies in `internal/` of the run's folder,
which is not to be given away. One exception: fields of `preprocess` that a plug-in's kind of data brings stay, as nobody could use the model
without them; they are named in `not_covered`, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tauon.artifacts import read_json, steps_in, write_json
from tauon.errors import CheckpointError, DataError

__all__ = ["INTERNAL", "Field", "fitted_without_noise", "leaves", "origin_of", "read_internal", "split", "write_internal"]

Origin = Literal["public", "noised", "fitted"]

INTERNAL = "internal"
"""Folder of a private run with what its checkpoints must not hold."""
FORMAT = "tauon-internal-1"
WARNING = "Exact figures of the data, without noise. A resume needs them. Not covered by the run's guarantee: do not give this file away."


@dataclass(frozen=True)
class Field:
    """One place of a checkpoint's `state.json`, or a group of tensors."""

    path: str
    """Keys joined by dots; `*` is any one key or index, `**` at the end everything below."""
    origin: Origin
    why: str


STATE: tuple[Field, ...] = (
    Field("step", "public", "steps done"),
    Field("total_steps", "public", "of the recipe and N"),
    Field("examples", "public", "steps times the expected batch, not what was drawn"),
    Field("tokens", "public", "expected examples times the length of a row"),
    Field("seed", "public", "of the recipe; noise and sampling come from a key that is in no checkpoint"),
    Field("optimizer_kind", "public", "of the recipe"),
    Field("optimizer.**", "noised", "counters and sums of learning rates"),
    Field("health.**", "noised", "norms of noised gradients, and how many were not finite"),
    Field(
        "notes.privacy.**",
        "noised",
        "noisy answers that the noise follows, and what was decided by them; each is counted by the accountant",
    ),
    Field("notes.sent.**", "public", "bytes sent in a step: shapes and the number of processes"),
    Field("model.**", "public", "the architecture; its widths follow from the columns, categories and classes, see preprocess"),
    Field("task.**", "public", "of the recipe"),
    Field("base.**", "public", "the model that training started from"),
    Field("precision", "public", "of the machine and the recipe"),
    Field("spec.vocab", "fitted", "number of tokens of the tokenizer"),
    Field("spec.seq_len", "fitted", "of the recipe, or the longest rows where it is left open"),
    Field("spec.input_shape.*", "public", "columns or pixels"),
    Field("spec.outputs", "public", "number of classes or targets"),
    Field("spec.labels.*", "fitted", "names of the classes"),
    Field("spec.categories.*", "fitted", "number of categories of each column"),
    Field("spec.horizon", "public", "of the recipe"),
    Field("preprocess.kind", "public", "kind of data"),
    Field("preprocess.labels.*", "fitted", "names of the classes"),
    Field("preprocess.features.*", "public", "names of the columns that the model is given"),
    Field("preprocess.input_shape.*", "public", "columns or pixels"),
    Field("preprocess.targets", "public", "of the recipe"),
    Field("preprocess.missing.*", "public", "spellings of a missing value, of the recipe"),
    Field("preprocess.normalize.**", "fitted", "of the recipe (bounds, unit, none), with noise (privacy.statistics), or fitted"),
    Field("preprocess.target_scale.**", "fitted", "of data.bounds, or fitted"),
    Field("preprocess.pixel_range.low", "fitted", "of the files' depth, or fitted"),
    Field("preprocess.pixel_range.high", "fitted", "of the files' depth, or fitted"),
    Field("preprocess.pixel_range.clip", "public", "of the recipe"),
    Field("preprocess.scattering.**", "public", "of the recipe"),
    Field("preprocess.picture_shape.*", "public", "pixels"),
    Field("preprocess.source.**", "public", "of the recipe"),
    Field("preprocess.tokenizer.**", "fitted", "of a published tokenizer, or fitted"),
    Field("preprocess.mask_token", "public", "of the tokenizer"),
    Field("preprocess.end", "public", "of the tokenizer and the recipe"),
    Field("preprocess.chat.**", "public", "of the recipe"),
    Field("preprocess.renders", "public", "version of the code"),
    Field("preprocess.seq_len", "fitted", "of the recipe, or the longest rows where it is left open"),
    Field("preprocess.sample_rate", "public", "of the recordings"),
    Field("preprocess.samples", "fitted", "of the recipe, or the longest recordings where it is left open"),
    Field("preprocess.spelled", "public", "of the recipe"),
    Field("preprocess.context", "public", "of the recipe"),
    Field("preprocess.horizon", "public", "of the recipe"),
    Field("preprocess.calendar.*", "public", "of the recipe"),
    Field("preprocess.step", "public", "time between two readings"),
    Field("preprocess.date", "public", "of the recipe"),
    Field("preprocess.date_format", "public", "of the recipe"),
    Field("preprocess.zoned", "public", "whether times have a zone"),
    *(
        Field(f"preprocess.columns.columns.*.{k}", "public", "of the table's header and the recipe")
        for k in ("name", "kind", "encoding", "parts.*")
    ),
    Field("preprocess.columns.columns.*.missing", "public", "always 0 here: how many were missing is left out"),
    Field("preprocess.columns.columns.*.why", "public", "always empty here: it may hold counts"),
    Field("preprocess.pixel_range.why", "public", "always empty here: it may hold counts"),
    Field("preprocess.columns.columns.*.fill", "fitted", "what a gap becomes"),
    Field("preprocess.columns.columns.*.indicator", "fitted", "whether the column had gaps"),
    Field("preprocess.columns.columns.*.categories.*", "fitted", "categories of the training rows"),
    Field("preprocess.columns.columns.*.most_frequent", "fitted", "what a missing category becomes"),
    Field("preprocess.columns.columns.*.means.**", "fitted", "mean target of each category"),
    Field("preprocess.columns.columns.*.form.**", "fitted", "how numbers are written"),
    Field("preprocess.columns.dropped.*", "fitted", "columns that say nothing"),
    Field("preprocess.columns.*", "public", "names of a series' columns"),
)
"""Every place of `state.json`. The first that matches counts."""

GROUPS: tuple[Field, ...] = (
    Field("model", "noised", "weights: moved by noised gradients alone, from a start that does not depend on the data"),
    Field("optim", "noised", "state of the optimizer: functions of noised gradients"),
    Field("ema", "noised", "averages of the weights"),
    Field("clipping", "noised", "bounds of the clipping, moved by noisy counts"),
    Field("canaries", "noised", "what an observer of the noised sums sees at the audit's coordinates"),
)
"""Every group of tensors."""


def origin_of(path: str, fields: tuple[Field, ...] = STATE) -> Field | None:
    """The entry of the list that a place belongs to.

    >>> origin_of("preprocess.columns.columns.3.fill").origin
    'fitted'
    >>> origin_of("notes.best.loss") is None
    True
    """
    keys = path.split(".")
    return next((f for f in fields if _matches(f.path.split("."), keys)), None)


def _matches(pattern: list[str], keys: list[str]) -> bool:
    if pattern[-1] == "**":
        pattern = pattern[:-1]
        keys = keys[: len(pattern)]
    return len(pattern) == len(keys) and all(p in ("*", k) for p, k in zip(pattern, keys, strict=True))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every number, string and empty collection below `value`; dots in keys become underscores."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = [(f"{path}.{str(k).replace('.', '_')}" if path else str(k).replace(".", "_"), v) for k, v in inner]
    if not found:
        yield path, value
    for at, v in found:
        yield from leaves(v, at)


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the checkpoint of a private run may hold, the rest). Counts that only a reader of the report wants are left out of both."""
    public, internal = {}, {}
    for key, value in state.items():
        if key == "notes":
            told = {k: v for k, v in value.items() if origin_of(f"notes.{k}.*") is not None}
            public["notes"], rest = told, {k: v for k, v in value.items() if k not in told}
            if rest:
                internal["notes"] = rest
        elif key == "preprocess":
            public[key] = _without_counts(value)
        elif all(not path or origin_of(path) is not None or v in ({}, [], ()) for path, v in leaves({key: value})):
            public[key] = value
        else:
            internal[key] = value
    return public, internal


def _without_counts(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """How many values were missing and why a column is what it is are for the report, and nobody needs them to use the model."""
    found = dict(preprocess)
    columns = found.get("columns")
    if isinstance(columns, Mapping):
        shown = [dict(c) | {"missing": 0, "why": ""} for c in columns["columns"]]
        found["columns"] = {"columns": shown, "dropped": dict.fromkeys(columns["dropped"], "")}
    if "pixel_range" in found:
        found["pixel_range"] = dict(found["pixel_range"]) | {"why": ""}
    return found


def fitted_without_noise(preprocess: Mapping[str, Any], *, noisy_scaling: bool = False) -> list[str]:
    """What a checkpoint holds that was learned from the data without noise, in words; empty: nothing but the names of columns.

    Args:
        preprocess: of the data (`DataSplits.preprocess`).
        noisy_scaling: means and deviations came with noise (`privacy.statistics`).
    """
    said: list[str] = []
    columns = preprocess.get("columns")
    if isinstance(columns, Mapping):
        for what, key in (("the categories", "categories"), ("the mean targets of categories", "means"), ("what a gap becomes", "fill")):
            names = [c["name"] for c in columns["columns"] if c.get(key) not in (None, (), [])]
            if names:
                said.append(f"{what} of {_some(names)}")
        names = [c["name"] for c in columns["columns"] if c.get("indicator")]
        said += [f"that {_some(names)} had gaps"] if names else []
        said += [f"that {_some([*columns['dropped']])} said nothing"] if columns["dropped"] else []
    scaled = preprocess.get("normalize", {}).get("kind", "none")
    if scaled not in ("none", "unit", "bounds") and not noisy_scaling:
        said.append(f"how numbers are scaled ({scaled})")
    if not preprocess.get("target_scale", {"public": True})["public"]:
        said.append("how the target is scaled")
    if "pixel_range" in preprocess:
        said.append("the range of the pixels")
    if preprocess.get("labels"):
        said.append(f"the names of the classes ({_some([str(v) for v in preprocess['labels']])})")
    if preprocess.get("tokenizer") is not None:
        said.append("the tokenizer, unless it was published elsewhere")
    if odd := _unlisted(preprocess):
        said.append(f"what this kind of data keeps as {_some(odd)}")
    return said


def _unlisted(preprocess: Mapping[str, Any]) -> list[str]:
    """Fields of `preprocess` that are on no list, by their first key."""
    odd = {path.split(".")[1] for path, v in leaves({"preprocess": preprocess}) if origin_of(path) is None and v not in ({}, [], ())}
    return sorted(odd)


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


# ------------------------------------------------------------------------------------------------ what is internal


def _file(folder: Path, step: int) -> Path:
    return folder / INTERNAL / f"step-{step:06d}.json"


def write_internal(folder: Path, step: int, values: Mapping[str, Any], *, checkpoints: Path) -> None:
    """Keep what the checkpoint of `step` leaves out, before it is written; those of checkpoints that are gone are removed.

    Args:
        folder: of the run.
        step: of the checkpoint.
        values: what `split` took out.
        checkpoints: folder of the run's checkpoints.
    """
    path = _file(folder, step)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    kept = {_file(folder, s) for s, _ in steps_in(checkpoints)} | {path}
    write_json(path, {"format": FORMAT, "warning": WARNING, "step": step, **values})
    for old in path.parent.glob("step-*.json"):
        if old not in kept and int(old.stem.removeprefix("step-")) < step:
            old.unlink(missing_ok=True)


def read_internal(folder: Path, step: int, *, needed: bool) -> dict[str, Any]:
    """The notes that the checkpoint of `step` left out.

    Raises:
        CheckpointError: the file is gone and `needed`: early stopping or the schedule go by it.
        DataError: it is not what was written.
    """
    path = _file(folder, step)
    if not path.exists():
        if needed:
            raise CheckpointError(
                f"{path} is gone: it holds what early stopping and the learning rate's schedule have seen of the validation loss, which the "
                "checkpoint of a private run does not. Restore it, or start over with --fresh."
            )
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("notes", {}), dict):
        raise DataError(f"{path}: expected the format {FORMAT}. Restore it, or start over with --fresh.")
    return dict(found.get("notes", {}))
