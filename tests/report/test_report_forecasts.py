"""A few windows of a series in the report: drawn, escaped, left out where the record is broken."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from tauon.report.forecasts import drawn_forecasts
from tauon.report.text import label


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def window(**changes: Any) -> dict[str, Any]:
    target = {"label": "load", "context": [1.0, 2.0], "truth": [3.0, 4.0, 5.0], "forecast": [3.1, 4.1, 4.9]} | changes
    return {"origin": "2020-01-01T00:00:00", "targets": [target]}


def test_truth_forecast_and_interval_are_drawn() -> None:
    page = Page(drawn_forecasts([window(low=[2.0, 3.0, 4.0], high=[4.0, 5.0, 6.0], levels=[0.1, 0.9])]))
    assert page.tags.count("svg") == 1
    said = " ".join(page.words)
    for part in ("load from 2020-01-01 00:00", "truth", "forecast", "10% to 90% quantile", "step"):
        assert part in said
    assert Page(drawn_forecasts([window()] * 9)).tags.count("svg") == 3


def test_names_of_columns_are_no_markup() -> None:
    assert "script" not in Page(drawn_forecasts([window(label="<script>alert(1)</script>")])).tags


@pytest.mark.parametrize(
    "record",
    [None, {}, [], "text", [1], [{"targets": "x"}], [{"targets": []}], [window(truth=None)], [window(forecast=["x"])], [window(low=[1.0])]],
)
def test_broken_records_draw_nothing_or_what_is_there(record: Any) -> None:
    html = drawn_forecasts(record)
    assert html == "" or "<svg" in html


def test_metrics_have_names() -> None:
    assert (label("mase"), label("mse"), label("coverage_80"), label("pinball")) == (
        "MASE",
        "MSE",
        "Coverage of the 80% interval",
        "Pinball loss",
    )
