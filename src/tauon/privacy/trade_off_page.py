"""The trade-off curve of a private run: how often any test for one person's presence must miss, at each rate of false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tauon.report.page import Section, document, facts_table
from tauon.report.plots import Line, chart
from tauon.report.text import escape

__all__ = ["trade_off_chart", "trade_off_page"]


def trade_off_chart(curve: Sequence[tuple[float, float]], identity: str = "trade-off") -> str:
    """The figure. `curve`: (false-positive rate, least false-negative rate), by the first."""
    pieces = [Line("least misses that the guarantee allows", list(curve)), Line("guessing", [(0.0, 1.0), (1.0, 0.0)], "quiet")]
    note = "The nearer the curve to the straight line, the less can be told. Dong, Roth and Su 2019, arXiv:1905.02383."
    return chart(
        identity, "Was somebody in the data?", pieces, x_label="false alarms (share)", y_label="misses (share)", zero=True, log=False, note=note,
    )  # fmt: skip


def trade_off_page(title: str, curve: Sequence[tuple[float, float]], facts: Mapping[str, Any]) -> str:
    """A whole HTML page: the curve, and what it was computed from."""
    sections = [
        Section("curve", "Trade-off curve", trade_off_chart(curve)),
        Section("facts", "Computed from", facts_table(facts, "settings")),
    ]
    return document(title, f"<h1>{escape(title, 120)}</h1>", sections, "")
