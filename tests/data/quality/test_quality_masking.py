"""Personal data is masked wherever a record is shown, whatever is cut, unless the user asks to see it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.data.clean.pii import PiiConfig
from tauon.data.quality import DataView, Quality, examine, masking
from tauon.data.quality.base import around
from tauon.data.quality.masking import mask
from tauon.report.quality import quality_html

ADDRESS, CALL, CARD = "anna.miller@example.org", "(415) 555-2671", "4111 1111 1111 1111"
PERSONAL = [ADDRESS, CALL, CARD]


def need_libraries() -> None:
    for module in ("phonenumbers", "stdnum"):
        pytest.importorskip(module)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PERSONAL), st.integers(0, 120), st.integers(0, 120))
def test_no_piece_of_a_masked_text_tells_a_part_of_what_is_personal(secret: str, start: int, length: int) -> None:
    need_libraries()
    before, after = "The ward is open all day, please write or ask for her at: ", " . Nothing else is to be said about all of this."
    text = before + secret + after
    shown, end = mask(text, start, start + length), min(start + length, len(text))
    a, b = len(before), len(before) + len(secret)
    kept = text[start : min(end, a)] if start < a else "", text[max(start, b) : end] if end > b else ""
    assert shown.startswith(kept[0]) and shown.endswith(kept[1])
    middle = shown[len(kept[0]) : len(shown) - len(kept[1])]
    assert middle in (("<EMAIL>", "<PHONE>", "<CARD>") if start < b and end > a else ("",))


@pytest.mark.parametrize(
    "text",
    ["0228 123456", "+49 228 1234567", "01 23 45 67 89", "555-555-1234", "0228/123456", "tel-4155552671", "4155552671 - ask for Ann"],
)
def test_telephone_numbers_of_other_forms_and_countries_are_masked(text: str) -> None:
    need_libraries()
    assert not any(c.isdigit() for c in mask(f"call {text}").replace("<PHONE>", ""))


@pytest.mark.parametrize(
    "text",
    ["2016-12-05 09:00:00", "05-06-2016", "ETT 5.827000141143799", "1326134.0000000000", "code 01111101", "12,345,678 people", "p = 6e-10"],
)
def test_dates_and_measurements_are_shown(text: str) -> None:
    assert mask(text) == text


def texts_with_everything() -> DataView:
    """Leaks, an outlier, damage and HTML, each beside personal data; an address at the place where examples are cut."""
    rng = np.random.default_rng(0)
    words = ["ward", "doctor", "visit", "today", "table", "letter", "open", "closed", "paper", "street", "evening", "morning"]
    plain = [" ".join(rng.choice(words, 12)) + f" {i}" for i in range(80)]
    said = f"Write to {ADDRESS} or call {CALL}, the card is {CARD}."
    late = "x " * 116 + ADDRESS
    texts = [*plain, said, said, said + " &nbsp; <br> ok", "caf\u00c3\u00a9 for " + said, late, late, (said + " ") * 9]
    return DataView("texts", np.array(["train", "test"] * 43 + ["train"])[: len(texts)], str, texts=texts)


def told(quality: Quality) -> str:
    return json.dumps(quality.to_json()) + quality_html(quality.to_json())


def test_examples_of_every_finding_are_masked_and_shown_on_request() -> None:
    need_libraries()
    pytest.importorskip("ftfy")
    view = texts_with_everything()
    masked = examine(view)
    assert {"leaks", "outliers", "encoding", "markup", "personal data"} <= {f.check for f in masked.findings}
    for secret in (*PERSONAL, "anna.mil", "555-26", "4111"):
        assert secret not in told(masked), secret
    assert "<EMAIL>" in masked.of("leaks").examples[0].text  # type: ignore[union-attr]
    shown = told(examine(view, show_personal_data=True))
    assert all(secret in shown for secret in PERSONAL) and "shown as it is" in shown and "shown as it is" not in told(masked)


def test_cells_and_classes_of_a_table_are_masked() -> None:
    need_libraries()
    mails = [f"person{i}@example.org" for i in range(30)]
    view = DataView(
        "table", np.array(["train"] * 60), str, np.arange(60) // 2, tuple(mails),
        columns={"mail": [mails[i // 2] for i in range(60)], "call": ["4155552671"] * 60, "n": [str(i // 2) for i in range(60)]},
    )  # fmt: skip
    page = told(examine(view, ["equal-records", "class-balance"]))
    assert "rare classes" in page and "duplicates" in page
    assert "@example.org" not in page and "4155552671" not in page


def test_without_the_libraries_every_long_number_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PiiConfig, "missing", lambda self: ["phonenumbers"])
    masking._finder.cache_clear()
    try:
        assert (
            mask(f"{ADDRESS}, {CARD}, {CALL}; in 2016 there were 512 of them")
            == "<EMAIL>, <NUMBER>, <PHONE>; in 2016 there were 512 of them"
        )
        quality = examine(replace(texts_with_everything()), ["equal-records", "personal-data"])
        assert "Personal data" in quality.skipped and not any(secret in told(quality) for secret in PERSONAL)
    finally:
        masking._finder.cache_clear()


def test_a_number_in_a_calculation_is_no_finding() -> None:
    need_libraries()
    texts = ["Ask for the result of the sum."] * 60 + ["148232 + 4155552671 = 4155700903", "Please call 4155552671 and ask for the nurse."]
    finding = examine(DataView("texts", np.array(["train"] * 62), str, texts=texts), ["personal-data"]).of("personal data")
    assert finding is not None and finding.rows == ((61,),)


def test_a_piece_of_a_text_in_full_is_what_it_was() -> None:
    assert around(f"ask {ADDRESS} now", 4, 8, 100, masked=False) == f"ask {ADDRESS} now"
