"""Personal data in what is shown to a person: e-mail addresses, telephone, card, account and national numbers, keys. Found by the filter `pii`
(`data/clean/pii.py`); two more forms of telephone numbers are masked in examples, where masking a number too many is safe.

A text is masked before it is cut, as half an address is not recognised and still tells whose it is. Names and street addresses have no form, and stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from tauon.data.clean.pii import PiiConfig

__all__ = ["LIKELY", "mask", "personal_spans"]

LIKELY = re.compile(r"@|\d(?:\D{0,3}\d){5}|-----BEGIN|[A-Za-z0-9_-]{20}|[0-9A-Fa-f]:[0-9A-Fa-f:]{2}")
"""What a text must have to be looked at closely: an @, six digits, a long word, an address."""
_WRITTEN = re.compile(
    r"""(?<![\w.+/-])(?:\+?1[ .-])?\(?\d{3}\)?[ .-]\ ?\d{3}[ .-]\d{4}(?![\w.-]?\d)     # 555-555-1234, which is no valid number
    |(?<![\w.+/-])(?<!\d:)(?:\+\d{1,3}[ /-]?)?\(?0\d{1,4}\)?[ /-]?\d{3,}(?:[ -]\d{2,})*(?![\w.-]?\d)  # 0228 123456, numbers of other countries
    |(?<![\w.+/-])0\d(?:[ .]\d\d){4}(?![\w.-]?\d)                                       # 01 23 45 67 89
    """,
    re.VERBOSE,
)
_LONG_NUMBER = re.compile(r"(?<![\w.])\+?\(?\d(?:[\s()/-]{0,2}\d){6,}(?!\w)")
"""What is masked where the libraries that check numbers are missing."""
_AROUND = 200
"""Characters before and after a piece that are looked at, so that what begins before it is recognised."""


@lru_cache(1)
def _finder() -> tuple[PiiConfig, bool]:
    """Return (the filter, whether its libraries are missing)."""
    return PiiConfig(), bool(PiiConfig().missing())


def personal_spans(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, kind) of the personal data in a text, in order. What one kind has found is not looked at by the next.

    Without phonenumbers and python-stdnum (`tauon[clean]`) only what needs no check digits is found: addresses and keys.

    >>> personal_spans("write to anna@example.org")
    [(9, 25, 'email')]
    """
    (finder, bare), found, left = _finder(), list[tuple[int, int, str]](), text
    for kind in finder.find:
        for start, end in finder.spans(kind, left) if not bare or kind in ("key", "email", "ip") else ():
            found.append((start, end, kind))
            left = f"{left[:start]}{'*' * (end - start)}{left[end:]}"
    return sorted(found)


def mask(text: str, start: int = 0, end: int | None = None) -> str:
    """Return `text[start:end]`, with everything personal in it, whole or in part, replaced by its kind.

    >>> mask("Write to anna.miller@example.org, today.", 14)
    '<EMAIL>, today.'
    """
    end = len(text) if end is None else min(end, len(text))
    begin = max(0, start - _AROUND)
    window = text[begin : end + _AROUND]
    if not LIKELY.search(window):
        return text[start:end]
    pieces, at = [], start
    for a, b, kind in _spans_to_hide(window):
        a, b = a + begin, b + begin
        if b > at and a < end:
            pieces += [text[at : max(at, a)], f"<{kind.upper()}>"]
            at = b
    return "".join(pieces) + text[at:end]


def _spans_to_hide(text: str) -> Iterator[tuple[int, int, str]]:
    found = personal_spans(text)
    forms = [(m.start(), m.end(), "phone") for m in _WRITTEN.finditer(text) if len(set(m.group())) > 2]  # 01111101 is a number in base 2
    if _finder()[1]:
        forms += [(m.start(), m.end(), "number") for m in _LONG_NUMBER.finditer(text)]
    reached = 0
    for start, end, kind in sorted([*found, *forms], key=lambda s: (s[0], -s[1])):
        if start >= reached:
            yield start, end, kind
            reached = end
        elif end > reached:  # one begins within the other
            yield reached, end, kind
            reached = end
