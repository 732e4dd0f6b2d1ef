"""Contents of a private run's checkpoints, which may be published: a list of every field with its origin and why it is safe.

    public    the recipe, the shapes of the model, N, the number of steps: follow from the recipe and N
    noised    computed from noised gradients or noisy answers only: covered by the guarantee (post-processing)
    fitted    learned from the data without noise, because the model needs it (categories, imputed values): not covered by the guarantee, and
              named in `not_covered` of the run's privacy.json

A field on no list does not go into a checkpoint: `split` removes it. What a resume needs of it is saved in `internal/` of the run's folder,
which must not be published. One exception: fields of `preprocess` from a plug-in's kind of data stay, because the model cannot be used
without them; they are also named in `not_covered`.
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
"""Folder in a private run for values that its checkpoints must not have."""
FORMAT = "tauon-internal-1"
WARNING = "Exact figures of the data, without noise. A resume needs them. Not covered by the run's guarantee: do not publish this file."


@dataclass(frozen=True)
class Field:
    """One field of a checkpoint's `state.json`, or a group of tensors."""

    path: str
    """Keys joined by dots; `*` is any one key or index, `**` at the end everything below."""
    origin: Origin
    why: str


STATE: tuple[Field, ...] = (
    Field("step", "public", "steps done"),
    Field("total_steps", "public", "of the recipe and N"),
    Field("examples", "public", "steps times the expected batch size, not the drawn one"),
    Field("tokens", "public", "expected examples times the length of a row"),
    Field("seed", "public", "of the recipe; noise and sampling come from a key that is in no checkpoint"),
    Field("optimizer_kind", "public", "of the recipe"),
    Field("optimizer.**", "noised", "counters and sums of learning rates"),
    Field("health.**", "noised", "norms of noised gradients, and how many were not finite"),
    Field(
        "notes.privacy.**",
        "noised",
        "noisy answers for adaptive noise, and the decisions from them; each is counted by the accountant",
    ),
    Field("notes.sent.**", "public", "bytes sent in a step: shapes and the number of processes"),
    Field("model.**", "public", "the architecture; its widths follow from the columns, categories and classes, see preprocess"),
    Field("task.**", "public", "of the recipe"),
    Field("base.**", "public", "the model that training started from"),
    Field("precision", "public", "of the machine and the recipe"),
    Field("spec.vocab", "fitted", "number of tokens of the tokenizer"),
    Field("spec.seq_len", "fitted", "of the recipe, or from the longest rows"),
    Field("spec.input_shape.*", "public", "columns or pixels"),
    Field("spec.outputs", "public", "number of classes or targets"),
    Field("spec.labels.*", "fitted", "names of the classes"),
    Field("spec.categories.*", "fitted", "number of categories of each column"),
    Field("spec.horizon", "public", "of the recipe"),
    Field("preprocess.kind", "public", "kind of data"),
    Field("preprocess.labels.*", "fitted", "names of the classes"),
    Field("preprocess.features.*", "public", "names of the model's input columns"),
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
    Field("preprocess.seq_len", "fitted", "of the recipe, or from the longest rows"),
    Field("preprocess.sample_rate", "public", "of the recordings"),
    Field("preprocess.samples", "fitted", "of the recipe, or from the longest recordings"),
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
    Field("preprocess.columns.columns.*.missing", "public", "always 0 here: the count is removed"),
    Field("preprocess.columns.columns.*.why", "public", "always empty here: it may hold counts"),
    Field("preprocess.pixel_range.why", "public", "always empty here: it may hold counts"),
    Field("preprocess.columns.columns.*.fill", "fitted", "what a gap becomes"),
    Field("preprocess.columns.columns.*.indicator", "fitted", "whether the column had gaps"),
    Field("preprocess.columns.columns.*.categories.*", "fitted", "categories of the training rows"),
    Field("preprocess.columns.columns.*.most_frequent", "fitted", "imputed value of a missing category"),
    Field("preprocess.columns.columns.*.means.**", "fitted", "mean target of each category"),
    Field("preprocess.columns.columns.*.form.**", "fitted", "how numbers are written"),
    Field("preprocess.columns.dropped.*", "fitted", "columns without information"),
    Field("preprocess.columns.*", "public", "names of a series' columns"),
)
"""All fields of `state.json`. The first match counts."""

GROUPS: tuple[Field, ...] = (
    Field("model", "noised", "weights: changed by noised gradients only, from an initialization that does not depend on the data"),
    Field("optim", "noised", "optimizer state: functions of noised gradients"),
    Field("ema", "noised", "averages of the weights"),
    Field("clipping", "noised", "clipping norms, updated from noisy counts"),
    Field("canaries", "noised", "values of the noised sums at the audit's coordinates"),
)
"""All groups of tensors."""


def origin_of(path: str, fields: tuple[Field, ...] = STATE) -> Field | None:
    """The entry of the list for a field; None if there is none.

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
    """Split checkpoint values into (allowed in a private run's checkpoint, the rest). Counts for the report only are in neither."""
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
    """Remove counts of missing values and reasons for column types: they are for the report, the model does not need them."""
    found = dict(preprocess)
    columns = found.get("columns")
    if isinstance(columns, Mapping):
        shown = [dict(c) | {"missing": 0, "why": ""} for c in columns["columns"]]
        found["columns"] = {"columns": shown, "dropped": dict.fromkeys(columns["dropped"], "")}
    if "pixel_range" in found:
        found["pixel_range"] = dict(found["pixel_range"]) | {"why": ""}
    return found


def fitted_without_noise(preprocess: Mapping[str, Any], *, noisy_scaling: bool = False) -> list[str]:
    """Describe what a checkpoint contains that was learned from the data without noise; empty if only column names.

    Args:
        preprocess: of the data (`DataSplits.preprocess`).
        noisy_scaling: means and deviations have noise (`privacy.statistics`).
    """
    said: list[str] = []
    columns = preprocess.get("columns")
    if isinstance(columns, Mapping):
        for what, key in (("the categories", "categories"), ("the mean targets of categories", "means"), ("the imputed values", "fill")):
            names = [c["name"] for c in columns["columns"] if c.get(key) not in (None, (), [])]
            if names:
                said.append(f"{what} of {_some(names)}")
        names = [c["name"] for c in columns["columns"] if c.get("indicator")]
        said += [f"that {_some(names)} have missing values"] if names else []
        said += [f"that {_some([*columns['dropped']])} were dropped as uninformative"] if columns["dropped"] else []
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
        said.append(f"fields of this kind of data: {_some(odd)}")
    return said


def _unlisted(preprocess: Mapping[str, Any]) -> list[str]:
    """First keys of fields of `preprocess` that are on no list."""
    odd = {path.split(".")[1] for path, v in leaves({"preprocess": preprocess}) if origin_of(path) is None and v not in ({}, [], ())}
    return sorted(odd)


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


# ------------------------------------------------------------------------------------------------ what is internal


def _file(folder: Path, step: int) -> Path:
    return folder / INTERNAL / f"step-{step:06d}.json"


def write_internal(folder: Path, step: int, values: Mapping[str, Any], *, checkpoints: Path) -> None:
    """Save the values that the checkpoint of `step` must not have, before it is written; delete those of removed checkpoints.

    Args:
        folder: of the run.
        step: of the checkpoint.
        values: removed by `split`.
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
    """Read the notes that the checkpoint of `step` does not have.

    Raises:
        CheckpointError: the file is missing and `needed` by early stopping or the schedule.
        DataError: the file was edited.
    """
    path = _file(folder, step)
    if not path.exists():
        if needed:
            raise CheckpointError(
                f"{path} is missing: it has the validation losses for early stopping and the learning-rate schedule, which a private "
                "checkpoint does not contain. Restore it, or start over with --fresh."
            )
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("notes", {}), dict):
        raise DataError(f"{path}: expected the format {FORMAT}. Restore it, or start over with --fresh.")
    return dict(found.get("notes", {}))
