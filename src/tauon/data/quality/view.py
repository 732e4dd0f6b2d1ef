"""From a recipe's `data` section to a `DataView`: the records of every part as they were read, side by side.

Reads and splits as `prepare` does, so that what is looked at is what is trained on; fits nothing. Damaged files are left out and named instead of
ending the look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.config import DataConfig
from tauon.data.kinds.base import Parts, Request
from tauon.data.kinds.dialogue import DialogueKind
from tauon.data.kinds.rules import kind_for
from tauon.data.kinds.tables import TablesKind
from tauon.data.preparation import sources_of
from tauon.data.quality.base import DataView
from tauon.data.sources.base import Arrays, Document, LabelledTexts, Series, Signals, SourceConfig
from tauon.data.sources.numbered import numbered
from tauon.data.spelling import nfc
from tauon.data.split import Part
from tauon.data.split_text import TextStat, TextStats, split_text
from tauon.errors import DataError

__all__ = ["view_of"]

LONG, PASSAGE = 20_000, 2_000
"""Characters from which on a document is looked at in passages, and of such a passage."""


def view_of(config: DataConfig, *, input_kind: str, seed: int = 0) -> DataView:
    """Return the records of every part.

    Args:
        config: the recipe's `data` section.
        input_kind: what the task learns from (`Task.input_kind`).
        seed: of the run.

    Raises:
        DataError: data that cannot be read, with file and place; a kind of data that cannot be looked at.

    >>> from tauon.config import parse
    >>> view = view_of(parse(DataConfig, {"source": {"kind": "sklearn", "name": "iris"}}), input_kind="arrays")
    >>> len(view), view.kind, view.parts
    (150, 'table', ('train', 'validation'))
    """
    sources = {part: _lenient(source) for part, source in sources_of(config).items()}
    kind = kind_for(input_kind, sources["train"])()
    request = Request(config, sources, seed)
    if input_kind in ("tokens", "masked-tokens") or sources["train"].output_kind() == "text":
        return _documents(request)
    whole = {part: kind.read(source, part, request) for part, source in sources.items()}
    if isinstance(kind, TablesKind):
        return _table(kind, whole, request)
    parts, _ = kind.split(whole, request)
    data: Any = parts["train"].data
    for type_, make in _MAKERS:
        if isinstance(data, type_):
            return make(parts, seed)
    rows = _rows_with_texts(kind, parts)
    if rows is not None:
        return rows
    raise DataError(
        f"{kind.words}: there is no look at the quality of such data yet. It exists for texts, tables, images, recordings and series"
    )


def _lenient(source: SourceConfig) -> SourceConfig:
    """Return the source, which leaves damaged files out, and fills gaps of a series, instead of ending with the first."""
    fields, changes = type(source).model_fields, {}
    if "on_corrupt" in fields:
        changes["on_corrupt"] = "skip"
    if getattr(source, "fill", None) == "refuse":
        changes["fill"] = "forward"
    return source.model_copy(update=changes) if changes else source


def _joined(parts: Parts[Any]) -> tuple[NDArray[Any], list[tuple[Any, int]]]:
    """Return (part of each record, (data, row in it) of each record)."""
    names = [part for part, rows in parts.items() for _ in rows.index]
    return np.array(names), [(rows.data, i) for rows in parts.values() for i in rows.index.tolist()]


def _labels(parts: Parts[Any], get: Callable[[Any], Any]) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None, tuple[str, ...]]:
    """Return (classes, values, names of the classes); sources of their own have the numbering of the training source."""
    main = get(parts["train"].data)
    names: tuple[str, ...] = tuple(main.label_names)
    number = {name: i for i, name in enumerate(names)}
    found = []
    for rows in parts.values():
        mine = get(rows.data)
        targets = np.asarray(mine.targets)
        if mine is not main and np.issubdtype(targets.dtype, np.integer) and tuple(mine.label_names) != names:
            codes = np.array([number.get(n, -1) for n in mine.label_names], np.int64)
            targets = codes[targets]
        found.append(targets[rows.index])
    joined = np.concatenate(found)
    if np.issubdtype(joined.dtype, np.integer):
        if (joined < 0).any():
            names, joined = (*names, "(unknown)"), np.where(joined < 0, len(names), joined)
        return joined.astype(np.int64), None, names
    return None, joined.astype(np.float64) if joined.ndim == 1 else joined[:, 0].astype(np.float64), ()


def _table(kind: TablesKind, whole: Mapping[Part, Any], request: Request) -> DataView:
    """Split by label, group and time alone; the other columns stay as they are written, so that a broken value does not end the look."""
    table_config = request.config.table
    needed = {nfc(name) for name in (table_config.group, table_config.time) if name is not None}
    bare = {
        p: replace(r, table=replace(r.table, columns={k: v for k, v in r.table.columns.items() if k in needed})) for p, r in whole.items()
    }
    parts, _ = kind.split(bare, request)
    part_N, records = _joined(parts)
    labels, values, names = _labels(parts, lambda data: data.table)
    origin = {part: whole[part].table if part in whole else whole["train"].table for part in parts}
    main = whole["train"].table
    columns: dict[str, Any] = {}
    for name in main.columns:
        if name in needed or any(name not in origin[part].columns for part in parts):
            continue
        pieces = [(origin[part].columns[name], rows.index) for part, rows in parts.items()]
        if all(isinstance(v, np.ndarray) for v, _ in pieces):
            columns[name] = np.concatenate([np.asarray(v)[i] for v, i in pieces])
        else:
            columns[name] = [v[i] for v, index in pieces for i in index.tolist()]
    places = [
        origin[part].places[i] if len(origin[part].places) else f"row {i}" for part, rows in parts.items() for i in rows.index.tolist()
    ]
    group_N = parts["train"].data.group_N
    groups = [str(data.group_N[i]) for data, i in records] if group_N is not None else ()
    return DataView(
        "table", part_N, places.__getitem__, labels, names, values, main.label, columns=columns, missing=main.missing, left_out=main.left_out,
        groups_N=groups, seed=request.seed,
    )  # fmt: skip


def _texts(parts: Parts[LabelledTexts], seed: int) -> DataView:
    part_N, records = _joined(parts)
    labels, values, names = _labels(parts, lambda data: data)
    main = parts["train"].data
    return DataView(
        "texts", part_N, lambda row: str(records[row][0].places[records[row][1]]), labels, names, values, main.label,
        texts=[data.texts[i] for data, i in records], seed=seed,
    )  # fmt: skip


def _arrays(parts: Parts[Arrays], seed: int) -> DataView:
    part_N, records = _joined(parts)
    labels, values, names = _labels(parts, lambda data: data)
    main = parts["train"].data

    single = all(rows.data is main for rows in parts.values())

    def place(row: int) -> str:
        data, i = records[row]
        part = {"train": "training"}.get(part_N[row], part_N[row])
        if data is not main:
            return f"example {i} (from 0) of the {part} set"
        return f"example {i} (from 0) of the {'' if single else 'training '}set" + (
            f", {part} part" if single or part != "training" else ""
        )

    features = np.concatenate([rows.data.features[rows.index] for rows in parts.values()])
    common: dict[str, Any] = {"label": "", "left_out": main.left_out, "seed": seed}
    if features.ndim == 4:
        return DataView("images", part_N, place, labels, names, values, images=features, **common)
    flat = features.reshape(len(features), -1).astype(np.float64)
    columns = dict(zip(main.feature_names or [f"c{j}" for j in range(flat.shape[1])], flat.T, strict=True))
    return DataView("table", part_N, place, labels, names, values, columns=columns, **common)


def _signals(parts: Parts[Signals], seed: int) -> DataView:
    part_N, records = _joined(parts)
    main = parts["train"].data
    labels, _, names = _labels(parts, lambda data: data) if main.targets is not None else (None, None, ())
    return DataView(
        "recordings", part_N, lambda row: str(records[row][0].names[records[row][1]]), labels, names, waves=[data.waves[i] for data, i in records],
        rate=main.rate, left_out=main.left_out, seed=seed,
    )  # fmt: skip


def _series(parts: Parts[Series], seed: int) -> DataView:
    part_N, _ = _joined(parts)
    main = parts["train"].data
    values = np.concatenate([rows.data.values[rows.index] for rows in parts.values()])
    moments = np.concatenate([rows.data.times[rows.index] for rows in parts.values()])
    columns = {name: values[:, j] for j, name in enumerate(main.names)}
    gaps = (f"{main.filled:,} missing steps and values, filled with the value before each",) if main.filled else ()
    return DataView(
        "series",
        part_N,
        lambda row: _time(moments[row]),
        columns=columns,
        moments=moments,
        left_out=(*main.left_out, *gaps, *main.notes),
        seed=seed,
    )


def _time(moment: Any) -> str:
    text = str(moment).replace("T", " ")
    return text.removesuffix(":00") if text.count(":") == 2 else text


def _documents(request: Request) -> DataView:
    found = [(part, document) for part, source in request.sources.items() for document in numbered(source)]
    train = [document for part, document in found if part == "train"]
    stats = TextStats(TextStat(hashlib.sha256(d.text.encode("utf-8", "surrogatepass")).digest(), len(d.text), d.source) for d in train)
    pieces, _ = split_text(stats, request.config.split, request.to_split)
    dealt: list[tuple[Part, Document]] = []
    for number, document in enumerate(train):
        cuts = pieces[number]
        for part, a, b in cuts:
            piece = document if len(cuts) == 1 else replace(document, text=document.text[a:b], offset=document.offset + a)
            dealt.append((part, piece))
    dealt += [(part, document) for part, document in found if part != "train"]
    found_passages = [(part, document, a, b) for part, document in dealt for a, b in passages(document.text)]

    def place(row: int) -> str:
        _, document, a, b = found_passages[row]
        whole = a == 0 and b == len(document.text)
        return document.name if whole else f"{document.name}, characters {document.offset + a:,} to {document.offset + b:,}"

    texts = [document.text[a:b] for _, document, a, b in found_passages]
    return DataView("texts", np.array([part for part, *_ in found_passages]), place, texts=texts, seed=request.seed)


def passages(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the passages of a text that is longer than `LONG`: about `PASSAGE` characters, to the end of a line. A whole book is no
    record that can be looked at.
    """
    if len(text) <= LONG:
        yield 0, len(text)
        return
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + PASSAGE, start + 2 * PASSAGE)
        end = line_end + 1 if line_end >= 0 else min(len(text), start + 2 * PASSAGE)
        if len(text) - end < PASSAGE:  # no short rest
            end = len(text)
        yield start, end
        start = end


def _rows_with_texts(kind: Any, parts: Parts[Any]) -> DataView | None:
    """Return conversations and preferences as texts: their messages, one after the other."""
    if not isinstance(kind, DialogueKind):
        return None
    part_N, records = _joined(parts)
    rows = [data.rows[i] for data, i in records]
    return DataView("texts", part_N, lambda row: str(rows[row].place), texts=["\n".join(kind.texts(r)) for r in rows])


_MAKERS: tuple[tuple[type[Any], Callable[[Any, int], DataView]], ...] = (
    (LabelledTexts, _texts),
    (Arrays, _arrays),
    (Signals, _signals),
    (Series, _series),
)
