"""Explanations of new examples by a trained run, read as predictions read them: as a page, and as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tauon.artifacts import atomic_write, write_json
from tauon.data import Rows, Tokenizer
from tauon.errors import DataError
from tauon.explain import Explanation, Subject
from tauon.explain.report import new_examples_page
from tauon.explain.rules import refuse_unused
from tauon.predict.engine import Predictor
from tauon.predict.readers import Reading, open_reader
from tauon.predict.series import Windows, read_series
from tauon.stages.context import EventCallback, null_callback
from tauon.stages.explain import explain_new_batch, subject_of
from tauon.stages.explain_runs import open_to_explain
from tauon.types import Batch

__all__ = ["explain_new", "explain_records"]

_USED = frozenset({"maps", "layer", "target", "checks", "background", "language", "memory", "influence", "counterfactuals"})
"""Settings that explanations of new examples read."""
_FIRST = 4
"""Rows that are explained if none is named."""


def explain_new(
    folder: Path, assignments: Sequence[str], *, data: str | None = None, rows: Sequence[int] = (), texts: Sequence[str] = (),
    on_event: EventCallback = null_callback,
) -> tuple[Path, list[str]]:  # fmt: skip
    """Explain new examples and write a page of their own.

    Args:
        folder: the run's folder.
        assignments: settings of the section `explain`: `explain.maps=[kernel_shap]`.
        data: a file or folder of examples.
        rows: which of them, from 0; empty: the first four.
        texts: texts in place of `data`.
        on_event: called with each event.

    Returns:
        The page, `explain/new-....html` in the run's folder, and a line about each example.

    Raises:
        DataError: a file or a value that the model cannot read, or a row that does not exist.
    """
    refuse_unused(assignments, _USED, "an explanation of new examples")
    ctx, config = open_to_explain(folder, assignments, on_event)
    subject = subject_of(ctx, config)
    if texts:
        batch, names = _of_texts(folder, subject, texts), [f"text {i + 1}" for i in range(len(texts))]
        title = "texts"
    else:
        assert data is not None
        if subject.input_kind == "tokens":
            raise DataError(
                "a language model has no rows of a file to explain: give it a prompt with --text, or name held-out rows: explain.rows=[0]"
            )
        batch, names = _of_file(folder, data, rows)
        title = re.sub(r"[^A-Za-z0-9]+", "-", Path(data).stem)[:40] + "".join(f"-{row}" for row in list(rows)[:8])
    explanation = explain_new_batch(ctx, subject, config, batch, names)
    page = folder / "explain" / f"new-{title}.html"
    page.parent.mkdir(exist_ok=True)
    write_json(page.with_suffix(".json"), as_plain(explanation))
    atomic_write(page, new_examples_page(ctx.recipe.name, explanation.record, explanation.arrays))
    return page, [line_of(case) for case in explanation.record["cases"]]


def explain_records(folder: Path, records: Sequence[Mapping[str, Any]], assignments: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Explain rows, given as dictionaries by column; return a dictionary per row: answer, maps, what they rest on. Writes nothing."""
    refuse_unused(assignments, _USED, "an explanation of new examples")
    ctx, config = open_to_explain(folder, assignments, null_callback)
    if not records:
        return []
    predictor = Predictor.open(folder)
    batch = predictor.batch(predictor.rows_of(records))
    explanation = explain_new_batch(ctx, subject_of(ctx, config), config, batch, [f"row {i}" for i in range(len(records))])
    cases: list[dict[str, Any]] = as_plain(explanation)["cases"]
    return cases


def as_plain(explanation: Explanation) -> dict[str, Any]:
    """Return the record with the arrays inside it, as lists."""
    cases = []
    for case in explanation.record["cases"]:
        maps = [{k: v for k, v in m.items() if k != "array"} | {"values": explanation.arrays[m["array"]].tolist()} for m in case["maps"]]
        cases.append(case | {"maps": maps})
    return explanation.record | {"cases": cases}


def line_of(case: Mapping[str, Any]) -> str:
    """Return one line about an example: its answer, and what counted most."""
    sure = f" ({case['probability']:.0%} sure)" if case.get("probability") is not None else ""
    answer = case["answer"] if isinstance(case["answer"], str) else f"{case['answer']:.6g}"
    rest = f" {case['path']}" if case.get("path") else ""
    warn = f" Outside of the training range: {'; '.join(case['shown']['outside'])}." if case["shown"].get("outside") else ""
    return f"{case.get('from', 'example')}: {answer!r}{sure}.{rest}{warn}"


def _of_texts(folder: Path, subject: Subject, texts: Sequence[str]) -> Batch:
    import torch

    if subject.input_kind == "labelled-text":
        predictor = Predictor.open(folder)
        return predictor.batch(Rows({"text": list(texts)}, hidden=frozenset({"text"})))
    if subject.input_kind != "tokens" or not isinstance(subject.tokenizer, Tokenizer):
        raise DataError(f"--text is for models of texts, and this run reads {subject.input_kind}. Use --data.")
    most = subject.spec.seq_len or 1
    ids = [subject.tokenizer.encode(text)[-most:].astype(np.int64) for text in texts]
    empty = next((i for i, tokens in enumerate(ids) if not len(tokens)), None)
    if empty is not None:
        raise DataError(f"text {empty + 1} is empty: there is nothing to explain")
    width = max(map(len, ids))
    inputs = torch.zeros(len(ids), width, dtype=torch.int64)
    for i, tokens in enumerate(ids):
        inputs[i, : len(tokens)] = torch.from_numpy(tokens)
    lengths = torch.tensor([len(tokens) for tokens in ids])
    return Batch(inputs, torch.zeros_like(inputs), torch.ones(len(ids), width), lengths=lengths)


def _of_file(folder: Path, data: str, rows: Sequence[int]) -> tuple[Batch, list[str]]:
    """Return the inputs of some rows of a file, and their names."""
    predictor = Predictor.open(folder)
    wanted = list(rows)
    if predictor.replay.reads == "series":
        windows = Windows(read_series(data, predictor.trained.preprocess, predictor.trained.source), predictor.trained.preprocess, every=1)
        n = len(windows.origins)
        chosen = wanted or [n - 1]
        _refuse_beyond(chosen, n, data)
        windows.origins = windows.origins[chosen]
        return predictor.batch(next(iter(windows))[1]), [f"{Path(data).name}, window {i}" for i in chosen]
    reader = open_reader(data, predictor.replay.reads, Reading(predictor.trained.source, 65536))
    last, found, seen = max(wanted, default=_FIRST - 1), None, 0
    for part in reader:
        found = part if found is None else found.then(part)
        seen = len(found)
        if seen > last:
            break
    if found is None or not seen:
        raise DataError(f"{data}: no rows")
    chosen = wanted or list(range(min(_FIRST, seen)))
    _refuse_beyond(chosen, seen, data)
    rows_ = found.part(chosen[0], chosen[0] + 1)
    for i in chosen[1:]:
        rows_ = rows_.then(found.part(i, i + 1))
    return predictor.batch(rows_), [f"{Path(data).name}, row {i}" for i in chosen]


def _refuse_beyond(rows: Sequence[int], n: int, data: str) -> None:
    beyond = next((row for row in rows if row >= n), None)
    if beyond is not None:
        raise DataError(f"{data}: row {beyond:,} does not exist, it has {n:,} rows, counted from 0")
