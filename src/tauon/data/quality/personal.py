"""Personal data and keys in texts and in columns of words: e-mail addresses, telephone, card and account numbers, national numbers, keys of services.

The same forms and check digits as the filter `pii` (`data/clean/pii.py`). Names and street addresses have no form, and are not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tauon.config import register
from tauon.data.clean.pii import PiiConfig
from tauon.data.quality.base import DataView, Finding, QualityCheck, around, examples_of
from tauon.data.quality.columns import word_columns
from tauon.data.quality.masking import LIKELY, personal_spans
from tauon.errors import MissingExtra

__all__ = ["PersonalData"]

WORDS = {
    "email": ("e-mail address", "e-mail addresses"), "phone": ("telephone number", "telephone numbers"), "card": ("card number", "card numbers"),
    "iban": ("account number", "account numbers"), "id": ("national number", "national numbers"), "key": ("key", "keys"),
    "ip": ("IP address", "IP addresses"),
}  # fmt: skip
_BEFORE, _AFTER = re.compile(r"[\d)] ?[+*/^×÷−=-] ?$"), re.compile(r" ?[+*/^×÷−=-] ?[\d(]")
"""What is before and after a number in a calculation."""
_DIGITS = 0.6
"""Share of digits from which on a text is a list of numbers, some of which are a person's number by chance."""
_MOST = 4_000_000
"""Characters that are looked at; of more, every second text, every third, ..."""
_CUT = 100_000
"""Characters of a text that are looked at."""


@register("personal-data")
class PersonalData(QualityCheck):
    """Personal data and keys, masked in the examples."""

    kinds = ("texts", "table")
    title = "Personal data"
    extra = "clean"

    def find(self, view: DataView) -> Iterator[Finding]:
        if PiiConfig().missing():
            raise MissingExtra("the search for personal data", "clean")
        known: dict[str, tuple[Counter[str], str]] = {}
        kinds: Counter[str] = Counter()
        columns: Counter[str] = Counter()
        shown: dict[int, str] = {}
        for row, column, text in _candidates(view):
            if text not in known:
                known[text] = look(text, masked=not view.show_personal_data)
            found, piece = known[text]
            if found:
                kinds.update(found)
                shown[row] = "; ".join(filter(None, (shown.get(row, ""), f"{column}: {piece}" if column else piece)))
                columns[column] += 1
        if shown:
            rows = tuple((i,) for i in sorted(shown))
            named = ", ".join(f"{n:,} {WORDS[kind][n > 1]}" for kind, n in kinds.most_common())
            where = f" in {', '.join(c for c, _ in columns.most_common(6))}" if view.columns else ""
            step = texts_step(view)
            sample = f"; one text in {step} was looked at" if step > 1 else ""
            who = "record has" if len(rows) == 1 else "records have"
            shown_as = "shown in full on this page" if view.show_personal_data else "masked on this page"
            message = (
                f"{len(rows):,} {who} personal data or keys{where} ({named}{sample}). They are {shown_as}; names and street addresses are not looked "
                "for. For training, the cleaning filter `pii` of a recipe masks them"
            )
            yield Finding(
                "personal data", "warn", message, rows, examples_of(view, rows, shown.__getitem__), tuple(c for c in columns if c)
            )


def look(text: str, *, masked: bool = True) -> tuple[Counter[str], str]:
    """Return (what was found, the text around the first place)."""
    spans = [s for s in personal_spans(text[:_CUT]) if not in_calculation(text, *s[:2])]
    piece = around(text, *spans[0][:2], masked=masked) if spans else ""
    return Counter(kind for _, _, kind in spans), piece


def in_calculation(text: str, start: int, end: int) -> bool:
    """Whether plain digits are part of a calculation, 148232 + 4446960000 = 4447108232, and so no person's number."""
    return text[start:end].isdigit() and (bool(_BEFORE.search(text[max(0, start - 8) : start])) or bool(_AFTER.match(text, end)))


def texts_step(view: DataView) -> int:
    """Return that each text is looked at (1), or each of how many."""
    return 1 + sum(min(len(text), _CUT) for text in view.texts) // _MOST


def _candidates(view: DataView) -> Iterator[tuple[int, str, str]]:
    """Yield (record, column or "", text) of texts that may have personal data."""
    step = texts_step(view)
    for row in range(0, len(view.texts), step):
        text = view.texts[row]
        if LIKELY.search(text, 0, _CUT) and sum(map(str.isdigit, text[:_CUT])) < _DIGITS * len(text[:_CUT]):
            yield row, "", text
    for name, values in word_columns(view):
        for row, value in enumerate(values):
            if isinstance(value, str) and LIKELY.search(value):
                yield row, name, value
