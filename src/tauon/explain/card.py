"""`card.md`: the model card, in the form that Hugging Face reads: YAML metadata, then what the model is for, what it learned from, how well it does,
on whom it fails, what it looks at, what protects its data, its limits, and what it cost.

Written from the records of a run; only purpose, licence and language are a person's words (`explain.card`). A figure that no record has is said
to be missing, never guessed.

Sources: Mitchell et al. 2019, arXiv:1810.03993; https://huggingface.co/docs/hub/model-cards (metadata: `model-index`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tauon
from tauon.config import write_yaml
from tauon.explain.config import CardConfig
from tauon.report import Records
from tauon.report.headline import active_seconds
from tauon.report.origins import Dropped, Origin, dropped, is_private, origins, size_of
from tauon.report.records import number
from tauon.report.text import clock, count, figure, human_bytes, label, spread

__all__ = ["model_card"]

_TASKS = {
    "language-modelling": "text-generation", "instruction-tuning": "text-generation", "preference": "text-generation",
    "masked-language-modelling": "fill-mask", "text-classification": "text-classification", "audio-classification": "audio-classification",
    "speech-recognition": "automatic-speech-recognition", "forecasting": "time-series-forecasting",
}  # fmt: skip
"""Task of a recipe to the hub's pipeline tag; tables and images differ by the data."""
_METRICS = {"f1_macro": "f1", "roc_auc": "roc_auc", "log_loss": "log_loss"}
_MOST = 12


def model_card(records: Records, card: CardConfig) -> str:
    """Return the card of a run as Markdown.

    Args:
        records: of a trained run; those that are missing are said to be.
        card: what only a person can say.
    """
    parts = [
        f"# {records.name}", _purpose(records, card), _data(records), _figures(records), _slices(records), _explanations(records),
        _privacy(records), _limits(records, card), _cost(records), _reproduce(records),
    ]  # fmt: skip
    return f"---\n{write_yaml(metadata(records, card)).strip()}\n---\n\n" + "\n\n".join(p for p in parts if p) + "\n"


def metadata(records: Records, card: CardConfig) -> dict[str, Any]:
    """Return the metadata block."""
    task = task_tag(records)
    tags = ["tauon", str(_kind(records.recipe.get("model")))]
    if records.json("privacy.json"):
        tags.append("differential-privacy")
    found: dict[str, Any] = {}
    if card.licence:
        found["license"] = card.licence
    if card.language:
        found["language"] = card.language
    found |= {"library_name": "tauon", "tags": tags, "pipeline_tag": task}
    metrics = list(_metrics(records))
    if metrics:
        found["metrics"] = sorted({_METRICS.get(name, name) for name, _ in metrics})
        found["model-index"] = [{"name": records.name, "results": [_result(records, task, metrics)]}]
    return found


def task_tag(records: Records) -> str:
    """Return the hub's name of the task."""
    task = str(_kind(records.recipe.get("task")))
    if task in _TASKS:
        return _TASKS[task]
    image = len(records.data.get("input_shape") or ()) == 3
    if image:
        return "image-classification" if "classification" in task else "image-feature-extraction"
    return "tabular-classification" if "classification" in task else "tabular-regression"


def _kind(section: Any) -> Any:
    return section.get("kind", "?") if isinstance(section, dict) else section


def _metrics(records: Records) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the metrics that have a value, the main one first."""
    metrics, first = records.evaluation.get("metrics") or {}, records.evaluation.get("primary")
    for name in sorted(metrics, key=lambda n: n != first):
        if isinstance(metrics[name], dict) and number(metrics[name].get("value")) is not None:
            yield name, metrics[name]


def _result(records: Records, task: str, metrics: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    source = (records.recipe.get("data") or {}).get("source") or {}
    name = str(source.get("name") or source.get("path") or source.get("kind") or "own data")
    rows = [{"type": _METRICS.get(k, k), "name": label(k), "value": number(m.get("value")), "verified": False} for k, m in metrics]
    return {
        "task": {"type": task}, "dataset": {"name": name, "type": name.lower().replace(" ", "-"), "split": str(records.evaluation.get("split"))},
        "metrics": rows,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- sections


def _purpose(records: Records, card: CardConfig) -> str:
    model, task = _kind(records.recipe.get("model")), _kind(records.recipe.get("task"))
    said = card.purpose or "Not stated. Say in `explain.card.purpose` what this model is for, and what it must not be used for."
    parameters = number((records.manifest.get("training") or {}).get("plan", {}).get("parameters"))
    size = f" of {count(parameters)} parameters" if parameters else ""
    return f"## Purpose\n\n{said}\n\nA `{model}` model{size}, trained for {task}."


def _data(records: Records) -> str:
    parts = records.data.get("parts") or {}
    private = is_private(records)
    where = [f"- source of {one.part}: {_described(one)}" for one in origins(records)]
    rows = [f"- {name}: {_size(facts, private)}" for name, facts in parts.items() if isinstance(facts, dict)]
    left = [f"- left out of {one.part} by {one.step}: {_plain(label(one.rule))}" + _times(one) for one in dropped(records)[:_MOST]]
    print_ = str((records.manifest.get("data") or {}).get("fingerprint") or "")
    lines = [*where, *rows, *left, *([f"- fingerprint of the prepared data: `{print_[:16]}`"] if print_ and not private else [])]
    return "## Data\n\n" + ("\n".join(lines) if lines else "No record of the data.")


def _described(one: Origin) -> str:
    digest = f", sha256 `{one.files[0][1][:16]}`" if len(one.files) == 1 and one.files[0][1] else ""
    origin = f", from {_plain(one.origin)}" if one.origin else ""
    return f"{_plain(one.name)}, {f'licence {_plain(one.licence)}' if one.licence else 'licence not stated'}{origin}{digest}"


def _times(one: Dropped) -> str:
    return "" if one.count is None else f", {count(one.count)} records"


def _size(facts: Mapping[str, Any], private: bool) -> str:
    size = size_of(facts)
    if size is None:
        return "recorded in data.json"
    classes = facts.get("classes")
    listed = list(classes.items())[:10] if isinstance(classes, dict) and not private else []
    shares = "; ".join(f"{_plain(k)} {count(number(v) or 0)}" for k, v in listed)
    return f"{count(size[0])} {size[1]}" + (f" ({shares})" if shares else "")


def _figures(records: Records) -> str:
    rows = []
    for name, m in _metrics(records):
        value, low, high = spread(number(m.get("value")) or 0.0, number(m.get("low")), number(m.get("high")))
        rows.append(f"| {label(name)} | {value} | {f'{low} to {high}' if number(m.get('low')) is not None else ''} |")
    if not rows:
        return "## Figures\n\nNot evaluated."
    level = number(records.evaluation.get("confidence")) or 0.95
    n, part = count(number(records.evaluation.get("n")) or 0), records.evaluation.get("split")
    head = f"On {n} examples of the {part} part; intervals at {level:.0%}.\n\n| metric | value | interval |\n|---|---|---|\n"
    return "## Figures\n\n" + head + "\n".join(rows)


def _slices(records: Records) -> str:
    rows = [r for r in records.evaluation.get("per_class") or [] if isinstance(r, dict)]
    lines = []
    for row in rows[:_MOST]:
        figures = [
            f"{label(k)} {figure(number(v.get('value')), 3)}"
            for k, v in row.items()
            if isinstance(v, dict) and number(v.get("value")) is not None
        ]
        lines.append(f"- {_plain(row.get('label'))}: {', '.join(figures[:4])}")
    found = (records.json("explain/explanation.json") or {}).get("slices") or {}
    groups = [g for g in found.get("slices") or [] if isinstance(g, dict)]
    for one in groups[:_MOST]:
        there, elsewhere = (figure(number(one.get(key)), 3) for key in ("error", "error_outside"))
        lines.append(
            f"- fails more where {_plain(one.get('text'))}: error {there} on {count(number(one.get('rows')) or 0)} examples, {elsewhere} elsewhere"
        )
    if found.get("problem"):
        lines.append(f"- Groups on which it fails were not searched: {_plain(found['problem'])}")
    elif found and not groups:
        lines.append("- No group was found on which the model fails significantly more than elsewhere.")
    return "## On whom it fails\n\n" + ("\n".join(lines) if lines else "Not examined.")


def _plain(text: Any) -> str:
    """Return text of the data as one line that Markdown and HTML leave alone."""
    one_line = "".join(c if c.isprintable() else " " for c in str(text))
    return " ".join(one_line.replace("&", "&amp;").replace("<", "&lt;").split())


def _explanations(records: Records) -> str:
    record = records.json("explain/explanation.json")
    if not isinstance(record, dict):
        return "## Explanations\n\nNone."
    lines = [_plain(s) for s in record.get("opening") or []]
    for m in record.get("methods") or []:
        faithful = m.get("faithful") or {}
        if faithful:
            ratio = number(faithful.get("deletion_ratio")) or 0.0
            lines.append(
                f"{m.get('title')}: {'failed its tests' if m.get('failed') else f'hiding what it marks leaves {ratio:.0%} of what random hiding leaves'}."
            )
    return "## Explanations\n\n" + "\n".join(f"- {line}" for line in lines) + "\n\nThe whole is in `report.html`."


def _privacy(records: Records) -> str:
    found = records.json("privacy.json")
    promise = found.get("guarantee") if isinstance(found, dict) else None
    if not isinstance(promise, dict):
        return "## Privacy\n\nNo guarantee: whoever has the model may learn about its training data."
    uncovered = "".join(f"\n- not covered: {line}" for line in promise.get("not_covered") or [])
    audit = records.json("audit.json")
    attacked = f"\n\n{audit['summary']}" if isinstance(audit, dict) and audit.get("summary") else ""
    return (
        f"## Privacy\n\n({figure(number(promise.get('epsilon')))}, {figure(number(promise.get('delta')))})-differential privacy for one "
        f"{promise.get('unit', 'example')}.{uncovered}{attacked}"
    )


def _limits(records: Records, card: CardConfig) -> str:
    lines = ["Figures hold for data like the held-out part; other hospitals, customers, machines or years may differ."]
    notes = [str(n) for n in records.evaluation.get("notes") or []]
    warnings = [str(e.get("message")) for e in records.of_kind("warning")][:5]
    private = records.recipe.get("privacy")
    if not records.evaluation:
        lines.append("The model was not evaluated.")
    if private is None and not records.json("privacy.json"):
        lines.append("The training data is not protected by differential privacy.")
    if not card.purpose:
        lines.append("Its purpose is not stated.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in [*lines, *notes, *dict.fromkeys(warnings)])


def _cost(records: Records) -> str:
    environment = records.manifest.get("environment") or {}
    seconds = active_seconds(records.events)
    devices = environment.get("accelerators") or []
    hardware = (
        ", ".join(map(str, devices)) if devices else f"{environment.get('cores', '?')} cores of {environment.get('cpu', 'an unknown CPU')}"
    )
    memory = number(environment.get("memory"))
    lines = [
        f"- hardware: {hardware}" + (f", {human_bytes(memory)} of memory" if memory else ""),
        f"- time of training: {clock(seconds) if seconds > 0 else 'not recorded'}",
        "- energy: not measured. Multiply the time by the hardware's power to estimate it (Lacoste et al. 2019, arXiv:1910.09700).",
    ]
    return "## Cost\n\n" + "\n".join(lines)


def _reproduce(records: Records) -> str:
    seed = records.manifest.get("seed")
    return (
        "## Reproduce\n\n"
        f"The run's folder holds `recipe.yaml` (complete, seed {seed}), `manifest.json` (code, data, environment) and `events.jsonl`. "
        f"With Tauon {records.manifest.get('tauon', tauon.__version__)}, `tauon run recipe.yaml` trains it again."
    )
