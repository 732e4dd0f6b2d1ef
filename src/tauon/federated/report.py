"""The report's section about federated training: what it gained each site, rounds, losses of the sites, bytes, what failed. Reads `federate.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tauon.report.page import Section, table
from tauon.report.plots import Band, Line, Mark, chart
from tauon.report.records import Records, number
from tauon.report.text import count, escape, figure, human_bytes, label

__all__ = ["federation", "verdict"]

CURVES = 12
"""Sites with a curve of their own; of more, the range is drawn."""


def federation(records: Records) -> Section | None:
    """Return the section; None if the run is not federated."""
    found = records.json("federate.json")
    if not isinstance(found, dict) or not isinstance(found.get("rounds"), list):
        return None
    rounds = [r for r in found["rounds"] if isinstance(r, dict) and number(r.get("round")) is not None]
    comparison = found.get("comparison") if isinstance(found.get("comparison"), dict) else None
    text, gained = verdict(comparison) if comparison else ("", False)
    html = f'<p class="status {"good" if gained else "bad"}">{escape(text, 1000)}</p>' if text else ""
    if isinstance(spent := found.get("privacy"), dict):
        html += f"<p><b>{escape(spent.get('sentence'), 600)}</b></p>" + _spent(spent) + _guarantee(spent.get("guarantee"))
    charts = [_losses(rounds), _participation(rounds)]
    html += f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""
    html += _comparison(comparison) if comparison else ""
    html += _sites(found.get("sites"), rounds) + _traffic([*rounds, *records.of_kind("round_repeated")], len(rounds)) + _incidents(records)
    return Section("federation", "Federated training", html)


def verdict(comparison: Mapping[str, Any]) -> tuple[str, bool]:
    """Return in words what training together gained over each site alone and lost against all data in one place, and whether every site gained."""
    values = {name: _primary(comparison.get(name)) for name in ("federated", "pooled")}
    alone = {name: v for name, each in comparison["alone"].items() if (v := _primary(each)) is not None}
    metric = comparison["federated"]["primary"]
    higher = comparison["federated"]["metrics"][metric].get("better") == "higher"
    if values["federated"] is None or not alone:
        return "", False
    best = (max if higher else min)(alone, key=lambda name: alone[name])
    beaten = sum((v < values["federated"]) if higher else (v > values["federated"]) for v in alone.values())
    text = (
        f"{label(metric)} of the federated model: {figure(values['federated'])}. Better than {beaten} of {len(alone)} sites alone (best: "
    )
    text += f"{best}, {figure(alone[best])})"
    text += f"; one model on all data in one place: {figure(values['pooled'])}." if values["pooled"] is not None else "."
    return text, beaten == len(alone)


def _spent(spent: Mapping[str, Any]) -> str:
    """Rounds that were released, target, budget, and the guarantee in words."""
    rounds, target, budget = number(spent.get("rounds")), number(spent.get("target_epsilon")), spent.get("budget")
    said = [f"Results of {count(rounds)} rounds were released."] if rounds is not None else []
    said += [f"The noise was calibrated to epsilon {figure(target)}."] if target is not None else []
    said.append(
        f"Budget of a site: {budget}." if budget else "There is no budget over several runs: other runs of the same sites are not counted."
    )
    return "".join(f'<p class="note">{escape(line, 1000)}</p>' for line in [*said, *(spent.get("words") or [])])


def _guarantee(found: Any) -> str:
    """The assumptions of the privacy of updates, and what it does not cover."""
    if not isinstance(found, dict):
        return ""
    html = ""
    for key, title in (("assumptions", "Assumed"), ("not_covered", "Not covered")):
        said = "".join(f"<li>{escape(line, 600)}</li>" for line in found.get(key) or [])
        html += f"<h3>{title}</h3><ul>{said}</ul>" if said else ""
    return html


def _primary(result: Any) -> float | None:
    metric = result["metrics"].get(result["primary"]) if isinstance(result, dict) else None
    return number(metric.get("value")) if isinstance(metric, dict) else None


def _comparison(comparison: Mapping[str, Any]) -> str:
    """One row for each model, all measured on the same examples."""
    metric = comparison["federated"]["primary"]
    examples = comparison.get("examples") or {}
    rows = []
    models = [("federated", comparison["federated"]), ("all data in one place", comparison["pooled"])]
    for name, result in [*models, *((f"{n} alone", r) for n, r in comparison["alone"].items())]:
        found = result["metrics"].get(metric, {})
        value = number(found.get("value"))
        low, high = number(found.get("low")), number(found.get("high"))
        between = f"{figure(low)} to {figure(high)}" if low is not None and high is not None else "–"
        rows.append([escape(name), count(examples.get(name.removesuffix(" alone")) or sum(examples.values())), figure(value), between])
    head = [("Model", ""), ("Training examples", "num"), (label(metric), "num"), ("95% interval", "num")]
    return "<h3>Against each site alone, and against all data in one place</h3>" + table(head, rows, "Comparison")


def _losses(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The training loss of each site by round, or the range over sites."""
    by_site: dict[str, list[tuple[float, float]]] = {}
    for r in rounds:
        for name, known in (r.get("sites") or {}).items():
            if isinstance(known, dict) and (loss := number(known.get("loss"))) is not None:
                by_site.setdefault(name, []).append((float(r["round"]), loss))
    if not by_site:
        return ""
    if len(by_site) <= CURVES:
        tones = ("a", "b", "c", "quiet")
        pieces: list[Line | Band | Mark] = [Line(name, points, tones[i % 4]) for i, (name, points) in enumerate(sorted(by_site.items()))]
    else:
        losses: dict[float, list[float]] = {}
        for points in by_site.values():
            for x, y in points:
                losses.setdefault(x, []).append(y)
        spots = sorted(losses.items())
        pieces = [
            Band("range over sites", [(x, min(ys), max(ys)) for x, ys in spots]),
            Line("median site", [(x, sorted(ys)[len(ys) // 2]) for x, ys in spots]),
        ]
    return chart("site-loss", "Training loss of the sites", pieces, x_label="round", y_label="loss")


def _participation(rounds: Sequence[Mapping[str, Any]]) -> str:
    good = [(float(r["round"]), float(number(r.get("good")) or 0)) for r in rounds]
    asked = [(float(r["round"]), float(number(r.get("asked")) or 0)) for r in rounds]
    if len(good) < 2:
        return ""
    lost = [float(r["round"]) for r in rounds if r.get("failed") or r.get("refused")]
    pieces: list[Line | Band | Mark] = [Line("asked", asked, "quiet"), Line("counted", good)]
    pieces += [Mark(f"rounds with missing sites ({len(lost)})", lost[:200])] if lost else []
    return chart("site-count", "Sites in each round", pieces, x_label="round", y_label="sites", zero=True)


def _sites(sites: Any, rounds: Sequence[Mapping[str, Any]]) -> str:
    """What each site measured of the final model, and how often it took part."""
    if not isinstance(sites, dict) or not sites:
        return ""
    names: list[str] = []
    for each in sites.values():
        names += [m for m in (each.get("metrics") or {}) if m not in names]
    took: dict[str, int] = {}
    for r in rounds:
        for name in r.get("sites") or {}:
            took[name] = took.get(name, 0) + 1
    rows = []
    for name, each in sorted(sites.items()):
        metrics = each.get("metrics") or {}
        cells = [figure(number(metrics.get(m))) for m in names]
        rows.append(
            [
                escape(name),
                count(took.get(name, 0)),
                count(number(each.get("examples")) or 0),
                *cells,
                escape(each.get("failed") or "", 200),
            ]
        )
    head = [("Site", ""), ("Rounds", "num"), ("Held-out examples", "num"), *((label(m), "num") for m in names), ("", "")]
    return "<h3>The final model at each site</h3>" + table(head, rows[:200], "Sites") + _fairness(sites, names)


def _fairness(sites: Mapping[str, Any], names: Sequence[str]) -> str:
    metric = "accuracy" if "accuracy" in names else names[0] if names else None
    values = [v for s in sites.values() if (v := number((s.get("metrics") or {}).get(metric))) is not None]
    if metric is None or len(values) < 2:
        return ""
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    text = f"{label(metric)} over sites: mean {figure(mean)}, standard deviation {figure(deviation)}, from {figure(min(values))} to {figure(max(values))}."
    return f'<p class="note">{escape(text)}</p>'


def _traffic(attempts: Sequence[Mapping[str, Any]], rounds: int) -> str:
    down, up = (sum(number(r.get(k)) or 0 for r in attempts) for k in ("sent_bytes", "received_bytes"))
    text = f"{count(rounds)} rounds; {human_bytes(down)} went to the sites and {human_bytes(up)} came back (weights and updates alone)."
    return f'<p class="note">{escape(text)}</p>'


def _incidents(records: Records) -> str:
    """Sites that were refused or vanished, and rounds that were repeated."""
    said = [
        f"round {e.get('round')}: {e.get('site', 'repeated')}: {e.get('reason')}"
        for kind in ("site_refused", "site_outweighs", "round_repeated") for e in records.of_kind(kind)
    ]  # fmt: skip
    for e in records.of_kind("federated_round"):
        said += [f"round {e.get('round')}: {name}: {why}" for k in ("failed", "refused") for name, why in (e.get(k) or {}).items()]
    if not said:
        return ""
    more = f"<li>and {count(len(said) - 20)} more, in events.jsonl</li>" if len(said) > 20 else ""
    return "<h3>Incidents</h3><ul>" + "".join(f"<li>{escape(line, 400)}</li>" for line in said[:20]) + more + "</ul>"
