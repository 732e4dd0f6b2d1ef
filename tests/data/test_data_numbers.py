"""What a number is: one rule, the canonical form, and other forms found over a column as a whole; compared with Decimal and pandas' words."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauon.data.numbers import CANONICAL, NumberForm, all_floats, is_number, look_at, number_of, stands_for_missing

FORMS = [
    NumberForm(".", ""), NumberForm(",", ""), NumberForm(".", ","), NumberForm(",", "."), NumberForm(",", " "), NumberForm(".", "'"),
    NumberForm(",", ".", percent=True), NumberForm(".", ",", currency="$"), NumberForm(",", ".", currency="€"),
]  # fmt: skip


def written(value: Decimal, form: NumberForm) -> str:
    """The number in this form, as a program of that country writes it."""
    whole, _, rest = f"{abs(value):,f}".partition(".")
    text = whole.replace(",", form.thousands) + (form.decimal + rest if rest else "")
    sign = "-" if value < 0 else ""
    if form.currency:
        return f"{sign}{form.currency}{text}" if form.currency == "$" else f"{sign}{text} {form.currency}"
    return f"{sign}{text}%" if form.percent else sign + text


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.words() or "canonical")
@given(values=st.lists(st.decimals(-(10**9), 10**9, places=2), min_size=1, max_size=20))
def test_what_is_written_in_a_form_is_read_in_it_and_the_form_is_found(form: NumberForm, values: list[Decimal]) -> None:
    texts = [written(v, form) for v in values]
    expected = [float(v) / 100 if form.percent else float(v) for v in values]
    assert [form.value(t) for t in texts] == expected
    look = look_at(texts)  # two decimals: never a group of three, so there is one reading
    assert not look.ambiguous
    assert look.mostly
    assert [look.form.value(t) for t in texts] == expected


@given(st.text(alphabet="0123456789+-.eE_xXinfaNoby ,\u0663\u00bd\u2212", max_size=6))
def test_the_canonical_form_is_floats_without_what_python_adds(text: str) -> None:
    try:
        theirs: float | None = float(text)
    except ValueError:
        theirs = None
    odd = "_" in text or any(c.isdigit() and not c.isascii() for c in text) or not np.isfinite(theirs if theirs is not None else np.nan)
    ours = number_of(text)
    if "\u2212" in text:  # the minus sign of typesetters counts as one, and nothing else changes
        assert ours == number_of(text.replace("\u2212", "-"))
    else:
        assert ours == (None if odd else theirs)
    fast = all_floats([text])
    assert fast is None or (fast[0] == ours and "\u2212" not in text)
    assert (fast is not None) == (ours is not None) or not text.isascii()


@pytest.mark.parametrize("word", ["1_1", "0x10", "inf", "-Infinity", "nan", "1e999", "٣", "", "1,5", "1 000", "True"])
def test_words_that_python_would_take_for_numbers(word: str) -> None:
    assert not is_number(word)
    assert all_floats([word, "1"]) is None


def test_whole_numbers_in_groups_of_three_have_two_readings_and_mixed_currencies_none() -> None:
    assert look_at(["1,000", "2,500"]).ambiguous
    assert look_at(["$1,000", "$2,500"]).ambiguous
    assert "1,000" in look_at(["1,000", "2,500"]).two_ways()
    assert not look_at(["1,000", "2,500", "1,000,000"]).ambiguous
    assert not look_at(["1,000", "2,500.5"]).ambiguous
    assert not look_at(["0,125", "2,500"]).ambiguous  # no number in groups begins with 0
    assert look_at(["1,00,000", "12,34,567", "90,000"]).form == NumberForm(".", ",")  # as in India
    mixed = look_at(["$5", "€6", "$7"])
    assert (mixed.form.currency, mixed.numbers, mixed.others) == ("$", 2, 1)
    assert look_at(["a", "b", "7"]).mostly is False
    assert look_at(["NA", "?", "7"]).mostly is True


def test_words_for_missing_values_are_those_of_pandas_and_more() -> None:
    theirs = pytest.importorskip("pandas._libs.parsers").STR_NA_VALUES
    assert [w for w in theirs if not stands_for_missing(w)] == []
    assert all(map(stands_for_missing, ("?", "-", "n/a", "missing")))
    assert not stands_for_missing("none of these")
    assert CANONICAL.words() == ""
