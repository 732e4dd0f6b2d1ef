"""Personal data are found by form and check digits: planted ones in prose, and numbers that only look like some."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clean_corpus import prose, sentence, wikitext
from tauon.config import parse
from tauon.data.clean import FilterConfig, Rejected, TextFilter
from tauon.errors import RecipeError

pytest.importorskip("phonenumbers")
pytest.importorskip("stdnum")


def pii(**values: Any) -> TextFilter:
    made = parse(FilterConfig, {"kind": "pii", **values})
    assert isinstance(made, TextFilter)
    return made


PLANTED = [
    ("EMAIL", "jane.doe+news@mail.example-site.co.uk"), ("EMAIL", "j@x.io"), ("PHONE", "+49 30 901820"), ("PHONE", "(650) 253-0000"),
    ("CARD", "4111 1111 1111 1111"), ("CARD", "5500-0055-5555-5559"), ("CARD", "378282246310005"), ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "GB82WEST12345698765432"), ("ID", "536-90-4399"), ("ID", "54362315K"), ("ID", "RCCMNL83S18D969H"), ("ID", "390.533.447-05"),
    ("IP", "8.8.8.8"), ("IP", "2001:4860:4860::8888"), ("KEY", "AKIAIOSFODNN7EXAMPLE"), ("KEY", "ghp_" + "aB3" * 12), ("KEY", "AIza" + "Sy0" * 11 + "aB"),
    ("KEY", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), PLANTED)
def test_planted_data_are_masked_by_their_kind(kind: str, value: str) -> None:
    before, after = "Please write to ", " today, or call later."
    assert pii().apply(before + value + after) == f"{before}<{kind}>{after}"
    assert pii().apply(value) == f"<{kind}>"


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112", "GB82WEST12345698765433", "390.533.447-06", "54362315L", "version 1.2.3.4.5", "192.168.0.1", "at 12:30:45", "@home", "a@b",
        "In 1914-1918 and 2024", "3.141592653589793", "1,000,000 people", "ISBN 978-3-16-148410-0", "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
    ],
)  # fmt: skip
def test_numbers_without_their_check_digit_stay(text: str) -> None:
    assert pii().apply(text) == text


def test_most_of_what_is_planted_is_found_and_little_else() -> None:
    draw = random.Random(5)
    masked = found = wrong = 0
    for _ in range(150):
        kind, value = draw.choice(PLANTED)
        text = f"{sentence(draw)} {sentence(draw)[:-1]} {value} {sentence(draw).lower()}"
        result = str(pii().apply(text))
        masked += value not in result and f"<{kind}>" in result
        found += 1
        wrong += result.count("<") > 1
    assert masked >= 0.95 * found
    assert wrong <= 0.05 * found


def test_prose_has_none() -> None:
    texts = [prose(random.Random(1)), *wikitext(80)]
    changed = [text for text in texts if pii().apply(text) != text]
    assert len(changed) <= 1, changed


def test_a_text_with_several_is_rejected_with_their_number() -> None:
    found = pii(action="drop").apply("a@b.com, c@d.org and 8.8.8.8")
    assert isinstance(found, Rejected)
    assert (found.rule, found.reason) == ("personal_data", "has personal data or keys: 2 email, 1 ip")
    assert pii(find=["ip"], public_only=False).apply("a@b.com 10.0.0.1") == "a@b.com <IP>"
    assert pii(find=["phone"], regions=["DE"]).apply("Ruf an: 030 901820") == "Ruf an: <PHONE>"
    assert pii(find=["phone"], regions=[]).apply("Ruf an: +49 30 901820") == "Ruf an: <PHONE>"


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match="regions: 'XX' is no country"):
        pii(regions=["XX"])
    with pytest.raises(RecipeError, match="ids: 'us.nothing' is not a number that python-stdnum knows"):
        pii(ids=["us.nothing"])
