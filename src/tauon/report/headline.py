"""The top of the report: name, status, main metrics and facts. No plots."""

from __future__ import annotations

import math
from typing import Any

from tauon.report.baselines import verdict_line
from tauon.report.records import Records, number
from tauon.report.text import clock, count, escape, figure, label, spread, stamp

__all__ = ["headline", "status"]


def status(records: Records) -> tuple[str, str]:
    """Return (good | warn | bad | plain, one sentence): how the run ended, according to its last events."""
    last = records.last_step
    ends = ("step", "interrupted", "failed", "error", "finish", "finished", "stop", "resume")
    tail = next((e for e in reversed(records.events) if e.get("kind") in ends), None)
    if tail is None and records.only_folds:
        folds = records.folds["folds"]
        return "good", f"Cross-validated: {len(folds) if isinstance(folds, list) else 0} folds, each trained and evaluated separately."
    if tail is None:
        return ("good", "Evaluated; no training was recorded.") if records.evaluation else ("plain", "No training was recorded.")
    kind, step, planned = tail.get("kind"), number(tail.get("step")), _planned_steps(records)
    steps = count(step if step is not None else last or 0)
    reason = f": {tail.get('reason') or tail.get('message')}" if tail.get("reason") or tail.get("message") else ""
    if kind == "interrupted":
        return "warn", f"Interrupted at step {steps}{reason}. The same command resumes from the last checkpoint."
    if kind in ("failed", "error"):
        return "bad", f"Failed at step {steps}{reason}."
    spent = active_seconds(records.events)
    took = f" in {clock(spent)}" if spent > 0 else ""
    reached = planned is not None and last is not None and last >= planned
    if kind == "stop" or ("train" in records.stages and planned is not None and not reached):
        of = f" of {count(planned)} planned" if planned is not None else ""
        return "good", f"Stopped early after {steps} steps{of}{took}{reason}."
    if kind in ("finish", "finished") or reached or "train" in records.stages or (records.evaluation and planned is None):
        return "good", f"Finished: {steps} steps{took}."
    when = number(tail.get("time"))
    of = f" of {count(planned)}" if planned else ""
    return "plain", f"Not finished: {steps}{of} steps" + (f"; last event {stamp(when)}." if when else ".")


def _planned_steps(records: Records) -> float | None:
    """Return the planned number of steps: from the plan in the manifest, a derived setting, or the recipe."""
    training = records.manifest.get("training")
    plan = training.get("plan") if isinstance(training, dict) else None
    train = records.recipe.get("train")
    candidates = [number(plan.get("steps")) if isinstance(plan, dict) else None]
    candidates += [number(d.get("value")) for d in records.derived if d.get("path") == "train.steps"]
    candidates.append(number(train.get("steps")) if isinstance(train, dict) else None)
    return next((steps for steps in candidates if steps is not None), None)


def active_seconds(events: list[dict[str, Any]]) -> float:
    """Return the seconds from the first to the last event, without pauses between a stop and a resume."""
    total, before = 0.0, None
    for event in events:
        now = number(event.get("time"))
        if now is None:
            continue
        if before is not None and event.get("kind") != "resume":
            total += max(0.0, now - before)
        before = now
    return total


def headline(records: Records) -> str:
    """Return safe markup of the page's header."""
    task = records.recipe.get("task")
    task = task.get("kind") if isinstance(task, dict) else task
    kicker = "Tauon report" + (f" · {escape(str(task).replace('-', ' '), 80)}" if isinstance(task, str) else "")
    tone, sentence = status(records)
    html = f'<p class="kicker">{kicker}</p><h1>{escape(records.name, 200)}</h1>'
    found = verdict_line(records.evaluation)
    if found is not None:  # how good the model is comes first, and alone decides the colour; that the run ended as planned does not
        html += f'<p class="status {found[0]}">{escape(found[1], 600)}</p>'
        tone = "plain" if tone == "good" else tone
    html += f'<p class="status {tone}">{escape(sentence, 600)}</p>'
    filled = _filled(records.data)
    if filled:
        html += f'<p class="status warn">{escape(filled, 300)}</p>'
    html += (_hero(records.evaluation) or _hero_of_folds(records.folds)) + _facts(records)
    if records.problems:
        html += '<ul class="plain note">' + "".join(f"<li>{escape(p, 500)}</li>" for p in records.problems[:20]) + "</ul>"
    return html


def _filled(data: dict[str, Any]) -> str:
    """Return how many moments of a series were invented, if any."""
    filled, parts = number(data.get("filled")), data.get("parts")
    if not filled or not isinstance(parts, dict):
        return ""
    moments = sum(number(p.get("moments")) or 0 for p in parts.values() if isinstance(p, dict))
    share = f" ({filled / moments:.1%} of all)" if moments else ""
    return f"{count(filled)} moments of the series were missing and were filled in{share}: errors at these are flattering."


def _hero(evaluation: dict[str, Any]) -> str:
    metrics = evaluation.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return ""
    primary = evaluation.get("primary")
    names = [primary] if isinstance(primary, str) and primary in metrics else list(metrics)[:1]
    extra = {
        "bits_per_byte": "perplexity", "perplexity": "loss", "accuracy": "f1_macro", "roc_auc": "average_precision", "r2": "rmse", "map": "f1_macro",
        "rank_mae": "kappa_quadratic", "mse": "mae", "pinball": "mae",
    }.get(str(names[0]))  # fmt: skip
    names += [extra] if extra in metrics else []
    level, split = number(evaluation.get("confidence")) or 0.95, evaluation.get("split")
    where = f" on the {split} split" if split in ("test", "validation") else ""
    html = ""
    for i, name in enumerate(names):
        m = metrics[name] if isinstance(metrics[name], dict) else {}
        value, low, high = (number(m.get(k)) for k in ("value", "low", "high"))
        what = f"{label(str(name))}{where if i == 0 else ''}"
        if value is None:
            reason = escape(m.get("reason") or "undefined", 300)
            html += f'<div><p class="what">{escape(what)}</p><div class="value">–</div><p class="range">{reason}</p></div>'
            continue
        shown, bottom, top = spread(value, low, high)
        about = f"{level:.0%} interval {bottom} to {top}" if low is not None and high is not None else str(m.get("reason") or "no interval")
        html += f'<div><p class="what">{escape(what)}</p><div class="value">{shown}</div><p class="range">{escape(about, 300)}</p></div>'
    return f'<div class="hero">{html}</div>'


def _hero_of_folds(folds: dict[str, Any]) -> str:
    mean, std = folds.get("mean"), folds.get("std")
    if not isinstance(mean, dict) or not isinstance(std, dict):
        return ""
    html = ""
    names = [n for n in ("accuracy", "r2", "bits_per_byte", "mse", "pinball", "roc_auc", "f1_macro", "mae", "rmse") if n in mean] or list(
        mean
    )
    for name in names[:2]:
        value, between = number(mean.get(name)), number(std.get(name))
        if value is not None and between is not None:
            shown = spread(value, value - between, value + between)[0]
            html += f'<div><p class="what">{escape(label(str(name)), 100)}, mean of the folds</p><div class="value">{shown}</div>'
            html += f'<p class="range">standard deviation between folds {figure(between, 2)}</p></div>'
    return f'<div class="hero">{html}</div>' if html else ""


def _facts(records: Records) -> str:
    """Return the few numbers that most readers look for."""
    facts: list[tuple[str, ...]] = []
    last = records.last_step
    if last is not None:
        facts.append(("Steps", count(last)))
    for key in ("tokens", "examples"):
        values = records.series(key)[1]
        if values and math.isfinite(values[-1]) and values[-1] > 0:
            facts.append((f"{label(key)} seen", count(values[-1])))
    spent = active_seconds(records.events)
    if spent > 0:
        facts.append(("Training time", clock(spent)))
    steps, losses = records.series("loss", "validate")
    finite = [(y, x) for x, y in zip(steps, losses, strict=True) if math.isfinite(y)]
    if finite:
        best, at = min(finite)
        facts.append(("Best validation loss", figure(best), f"at step {count(at)}"))
    parameters = next((number(d.get("value")) for d in records.derived if str(d.get("path", "")).endswith("parameters")), None)
    parameters = parameters or number(records.manifest.get("parameters"))
    if parameters:
        facts.append(("Parameters", count(parameters)))
    rows = (
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}{''.join(f'<small>{escape(m)}</small>' for m in more)}</dd></div>"
        for k, v, *more in facts
    )
    return f'<dl class="facts">{"".join(rows)}</dl>' if facts else ""
