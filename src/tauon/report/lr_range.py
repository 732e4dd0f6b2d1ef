"""The page of a learning-rate range test: loss against the logarithm of the rate, and the two suggested rates."""

from __future__ import annotations

import math
from typing import Any

from tauon.report.page import Section, document
from tauon.report.plots import Line, Mark, chart
from tauon.report.text import escape

__all__ = ["range_page"]


def range_page(name: str, test: dict[str, Any]) -> str:
    """Return a complete HTML page. `test`: rates, losses (None: not finite), smoothed, steepest, tenth, diverged."""
    xs = [math.log10(r) for r in test["rates"]]
    raw = [(x, y) if y is not None else None for x, y in zip(xs, test["losses"], strict=True)]
    pieces: list[Line | Mark] = [
        Line("loss of each step", raw, "quiet"),
        Line("smoothed", list(zip(xs, test["smoothed"], strict=True))),
        Mark(f"steepest fall: {test['steepest']:.2g}", [math.log10(test["steepest"])], "b"),
        Mark(f"a tenth of the minimum: {test['tenth']:.2g}", [math.log10(test["tenth"])], "c"),
    ]
    end = (
        "The test ended when the loss diverged."
        if test["diverged"]
        else "The loss did not diverge. Test a wider range with --high to see where it does."
    )
    drawn = chart(
        "range", "Loss at a rising learning rate", pieces, x_label="log10 of the learning rate", y_label="training loss", note=end
    )
    header = f"<h1>Learning-rate range test of {escape(name, 120)}</h1>"
    return document(f"Range test of {name}", header, [Section("curve", "Curve", drawn)], "Smith 2017, arXiv:1506.01186.")
