"""The report's audit section: success of the attacks, proven bounds, and whether they contradict the guarantee. Reads `audit.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tauon.report.page import Section, missing, table
from tauon.report.plots import HEIGHT, WIDTH, Scale, frame, scale
from tauon.report.records import Records, number
from tauon.report.text import count, escape, figure, label, spread

__all__ = ["audit"]

_TONES = ("a", "b", "c", "bad", "quiet")
_SECRETS = 50


def audit(records: Records) -> Section | None:
    """The section; None if the run was not audited."""
    found = records.json("audit.json")
    if not isinstance(found, dict) or not isinstance(found.get("attacks"), list):
        return None
    attacks = [a for a in found["attacks"] if isinstance(a, dict)]
    canaries = found["canaries"] if isinstance(found.get("canaries"), dict) else {}
    if isinstance(canaries.get("attack"), dict):
        attacks.append(canaries["attack"])
    tone = "bad" if found.get("contradicts") else "good" if found.get("guarantee") else "plain"
    html = f'<p class="status {tone}">{escape(found.get("summary") or "", 1000)}</p>'
    html += _proofs(found, canaries) + _attacks(attacks, number(found.get("confidence")) or 0.95)
    html += f'<div class="charts">{_roc(attacks)}{_region(attacks, found.get("guarantee"))}</div>'
    html += _slices(attacks) + _secrets(canaries)
    held = found.get("held_out") or "held-out"
    origin = f"Members are from the training split, non-members from the {held} split"
    origin += ". The split was random, so pairs of a member and a non-member are fair coins, which give a proven bound." if found.get("random_split") else (
        ", which was not drawn at random per example: members and non-members may differ in other ways, so the rates prove no bound on epsilon."
    )  # fmt: skip
    notes = [origin, *dict.fromkeys(n for a in attacks for n in a.get("notes") or [])]
    html += '<ul class="plain note">' + "".join(f"<li>{escape(n, 500)}</li>" for n in notes[:20]) + "</ul>"
    return Section("audit", "Audit", html)


def _proofs(found: Mapping[str, Any], canaries: Mapping[str, Any]) -> str:
    """One row per test: the guesses, the bound on epsilon, and whether it contradicts the guarantee."""
    promise = found.get("guarantee") if isinstance(found.get("guarantee"), dict) else None
    what = {"mislabelled": "mislabelled examples", "gradient": "gradients, seen in every update", "secret": "secrets"}
    kinds = [(f"Canaries: {what.get(str(canaries.get('kind')), 'planted')}", canaries.get("verdict"))]
    kinds.append(("Pairs of a member and a non-member", found.get("pairs")))
    rows = []
    for name, verdict in kinds:
        if not isinstance(verdict, dict):
            continue
        bound, curve = verdict.get("bound") or {}, verdict.get("curve") or {}
        p = number(verdict.get("p_of_claim"))
        stands = (
            "–"
            if p is None
            else f'<b class="tone-bad">refuted (p = {p:.1e})</b>'
            if verdict.get("contradicts")
            else f"not refuted (p = {p:.2g})"
        )
        coins, guessed, right = (count(number(bound.get(k)) or 0) for k in ("coins", "guesses", "right"))
        rows.append(
            [
                escape(name),
                f"{right} of {guessed}<small>of {coins} coins, by {escape(label(str(verdict.get('statistic') or '')))}</small>",
                f"{figure(number(bound.get('epsilon')), 3)}<small>at delta {figure(number(found.get('delta')), 2)}</small>",
                f"{figure(number(curve.get('epsilon')), 3)}<small>mu {figure(number(curve.get('mu')), 3)}</small>",
                figure(number(promise.get("epsilon")), 3) if promise else "none",
                stands,
            ]
        )
    if not rows:
        return missing("No bound on epsilon: there were no canaries, and the split was not random. Set privacy.audit to plant canaries.")
    level = number(found.get("confidence")) or 0.95
    head = [
        ("Coins guessed", ""), ("Right", "num"), ("Epsilon is at least", "num"), ("if noise is Gaussian", "num"), ("Promised", "num"),
        (f"The guarantee, at {level:.0%}", ""),
    ]  # fmt: skip
    return "<h3>What was proven</h3>" + table(head, rows, "What was proven") + _noise(canaries.get("noise"))


def _noise(noise: Any) -> str:
    """Whether the noise in the updates is as large as stated."""
    if not isinstance(noise, dict) or number(noise.get("ratio")) is None:
        return ""
    most, level = figure(number(noise.get("at_most")), 3), number(noise.get("confidence")) or 0.99
    text = (
        f"<b>Noise.</b> At the coordinates of canaries that were not included, the updates have {figure(number(noise['ratio']), 4)} times the stated "
        f"standard deviation ({count(number(noise.get('draws')) or 0)} draws; includes the contribution of the examples). The noise is at most {most} of the "
        f"stated one, at {level:.0%} confidence: "
    )
    p = number(noise.get("p_of_claim"))
    end = f'<b class="tone-bad">refuted (p = {p or 0.0:.1e})</b>' if noise.get("contradicts") else f"not refuted (p = {p or 0.0:.2g})"
    return f"<p>{text}{end}.</p>"


def _attacks(attacks: Sequence[Mapping[str, Any]], level: float) -> str:
    rates = [r for r in (attacks[0].get("rates") or []) if isinstance(r, dict)] if attacks else []
    head = [("Attack", ""), ("Area under the ROC", "num"), ("Members and others", "num")]
    head += [(f"Members found at {number(r.get('fpr')) or 0:.1%} false positives", "num") for r in rates]
    rows = []
    for a in attacks:
        value, low, high = spread(number(a.get("auc")) or 0.0, number(a.get("auc_low")), number(a.get("auc_high")))
        cells = [
            f"{escape(label(str(a.get('name'))))}<small>{escape(a.get('about') or '', 200)}</small>", f"{value}<small>{low} to {high}</small>",
            f"{count(number(a.get('members')) or 0)}, {count(number(a.get('others')) or 0)}",
        ]  # fmt: skip
        for r in a.get("rates") or []:
            few = "" if r.get("reachable") else "*"
            cells.append(
                f"{number(r.get('value')) or 0:.2%}{few}<small>{number(r.get('low')) or 0:.2%} to {number(r.get('high')) or 0:.2%}</small>"
            )
        rows.append(cells)
    return f"<h3>Attacks</h3><p>Intervals at {level:.0%}, those of rates exact.</p>" + table(head, rows, "Attacks")


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale, css: str) -> str:
    placed = "L".join(f"{x(a) * WIDTH:.1f} {(1 - y(b)) * HEIGHT:.1f}" for a, b in points)
    return f'<path class="{css}" d="M{placed}"/>' if points else ""


def _points(attack: Mapping[str, Any]) -> list[tuple[float, float]]:
    given = attack.get("roc")
    if not isinstance(given, list):
        return []
    return [(float(p[0]), float(p[1])) for p in given if isinstance(p, (list, tuple)) and len(p) == 2]


def _legend(names: Sequence[tuple[str, str, str]]) -> str:
    return '<ul class="legend">' + "".join(f'<li><i class="key {s} tone-{t}"></i>{escape(n)}</li>' for n, t, s in names) + "</ul>"


def _roc(attacks: Sequence[Mapping[str, Any]]) -> str:
    """True-positive against false-positive rate, both logarithmic: the lower left corner shows members that are detected with certainty."""
    drawn = [(str(a.get("name")), p) for a in attacks if len(p := _points(a)) > 1][: len(_TONES) - 1]
    if not drawn:
        return ""
    least = min((p[0] for _, points in drawn for p in points if p[0] > 0), default=1e-3)
    least = 10.0 ** math.floor(math.log10(max(least, 1e-7)))
    axis = scale([least, 1.0], pad=0.0, log=True)
    drawing = _path([(least, least), (1.0, 1.0)], axis, axis, "diagonal")
    for (_, points), tone in zip(drawn, _TONES, strict=False):
        drawing += _path([(max(a, least), max(b, least)) for a, b in points], axis, axis, f"line tone-{tone}")
    words = "; ".join(f"{label(name)}: {len(points)} points" for name, points in drawn)
    names = [(label(name), tone, "line") for (name, _), tone in zip(drawn, _TONES, strict=False)]
    inner = frame(
        "audit-roc", "ROC of the attacks", words, drawing, axis, axis, x_label="false positives (log scale)", y_label="members found"
    )
    note = '<p class="note">The dashed line is random guessing. An attack that stays on it, down to the lower left, learns nothing about members.</p>'
    return f'<figure class="chart"><figcaption><b>ROC of the attacks</b>{_legend(names)}</figcaption>{inner}{note}</figure>'


def _region(attacks: Sequence[Mapping[str, Any]], promise: Any) -> str:
    """Region allowed by the guarantee, and the attacks: false-negative against false-positive rate."""
    if not isinstance(promise, dict):
        return ""
    line = [(float(a), float(b)) for a, b in promise.get("curve") or []]
    epsilon, delta = number(promise.get("epsilon")), number(promise.get("delta"))
    if len(line) < 2 and epsilon is not None and delta is not None:
        grid = [i / 200 for i in range(201)]
        line = [(a, max(0.0, 1 - delta - math.exp(min(epsilon, 700)) * a, math.exp(-epsilon) * (1 - delta - a))) for a in grid]
    if len(line) < 2:
        return ""
    axis = scale([0.0, 1.0], pad=0.0, log=False)
    line = sorted(line)
    area = [*line, (1.0, 1.0), (0.0, 1.0)]
    drawing = _path(area, axis, axis, "band tone-a").replace('"/>', 'Z"/>') + _path(line, axis, axis, "line tone-a")
    drawing += _path([(0.0, 1.0), (1.0, 0.0)], axis, axis, "diagonal")
    names = [("allowed by the guarantee", "a", "band")]
    drawn = [(str(a.get("name")), p) for a in attacks if (p := _points(a))][: len(_TONES) - 2]
    for (name, points), tone in zip(drawn, _TONES[1:], strict=False):
        drawing += _path([(a, 1 - b) for a, b in points], axis, axis, f"line thin tone-{tone}")
        names.append((label(name), tone, "line"))
    words = f"the guarantee's curve with {len(line)} points, and {len(drawn)} attacks"
    inner = frame("audit-region", "Guarantee and attacks", words, drawing, axis, axis, x_label="others accused", y_label="members missed")
    note = '<p class="note">An attack significantly below the shaded region would contradict the guarantee.</p>'
    return f'<figure class="chart"><figcaption><b>Guarantee and attacks</b>{_legend(names)}</figcaption>{inner}{note}</figure>'


def _slices(attacks: Sequence[Mapping[str, Any]]) -> str:
    """The strongest attack, group by group."""
    with_slices = [a for a in attacks if a.get("slices")]
    if not with_slices:
        return ""
    best = max(with_slices, key=lambda a: number(a.get("auc")) or 0.0)
    rows = []
    for s in best["slices"][:50]:
        value, low, high = spread(number(s.get("auc")) or 0.0, number(s.get("auc_low")), number(s.get("auc_high")))
        rate = (s.get("rates") or [{}])[-1]
        rows.append(
            [
                escape(s.get("name"), 100),
                count(number(s.get("members")) or 0),
                f"{value}<small>{low} to {high}</small>",
                f"{number(rate.get('value')) or 0:.2%}<small>{number(rate.get('low')) or 0:.2%} to {number(rate.get('high')) or 0:.2%}</small>",
            ]
        )
    fpr = number((best["slices"][0].get("rates") or [{}])[-1].get("fpr")) or 0.0
    head = [("Class", ""), ("Members", "num"), ("Area", "num"), (f"Found at {fpr:.0%} false positives", "num")]
    return f"<h3>By class, {escape(label(str(best.get('name'))))}</h3>" + table(head, rows, "By class")


def _secrets(canaries: Mapping[str, Any]) -> str:
    rows = [s for s in canaries.get("secrets") or [] if isinstance(s, dict)]
    if not rows:
        return ""
    rows.sort(key=lambda s: -(number(s.get("exposure")) or 0.0))
    cells = []
    for s in rows[:_SECRETS]:
        extracted = ", ".join(how for how in ("greedy", "beam") if s.get(how))
        repeats = f"{count(number(s.get('repeats')) or 0)}×" if s.get("included") else "not included"
        bits = f"{number(s.get('exposure')) or 0:.1f} of {number(s.get('most')) or 0:.1f}"
        cells.append(
            [
                escape(s.get("name"), 200),
                repeats,
                bits,
                f'<b class="tone-bad">{escape(extracted)}</b>' if extracted else "no",
                escape(s.get("how") or ""),
            ]
        )
    head = [("Secret behind", ""), ("In the data", "num"), ("Exposure, bits", "num"), ("Told", ""), ("Measured by", "")]
    more = missing(f"… and {len(rows) - _SECRETS:,} more in audit.json.") if len(rows) > _SECRETS else ""
    return "<h3>Secrets</h3>" + table(head, cells, "Secrets") + more
