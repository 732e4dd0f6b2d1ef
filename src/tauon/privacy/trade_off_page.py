"""Page with the trade-off curve of a private run: the smallest false-negative rate of any membership test at each false-positive rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tauon.report.page import Section, document, facts_table
from tauon.report.plots import Line, chart
from tauon.report.text import escape

__all__ = ["trade_off_chart", "trade_off_page"]


def trade_off_chart(curve: Sequence[tuple[float, float]], identity: str = "trade-off") -> str:
    """The figure. `curve`: (false-positive rate, smallest false-negative rate), sorted by the first."""
    pieces = [Line("smallest that the guarantee allows", list(curve)), Line("random guessing", [(0.0, 1.0), (1.0, 0.0)], "quiet")]
    note = "The closer the curve is to the straight line, the less an attacker can learn. Dong, Roth and Su 2019, arXiv:1905.02383."
    return chart(
        identity, "Was this person in the data?", pieces, x_label="false-positive rate", y_label="false-negative rate", zero=True, log=False, note=note,
    )  # fmt: skip


def trade_off_page(title: str, curve: Sequence[tuple[float, float]], facts: Mapping[str, Any]) -> str:
    """A complete HTML page: the curve, and its inputs."""
    sections = [
        Section("curve", "Trade-off curve", trade_off_chart(curve)),
        Section("facts", "Computed from", facts_table(facts, "settings")),
    ]
    return document(title, f"<h1>{escape(title, 120)}</h1>", sections, "")
