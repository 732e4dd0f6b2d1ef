"""Personal data and keys in texts and in columns of words: e-mail addresses, telephone, card and account numbers, national numbers, keys of services.

The same forms and check digits as the filter `pii` (`data/clean/pii.py`). Names and street addresses have no form, and are not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tauon.config import register
from tauon.data.clean.pii import PiiConfig
from tauon.data.quality.base import DataView, Finding, QualityCheck, examples_of
from tauon.data.quality.columns import word_columns
from tauon.data.quality.encoding import around
from tauon.errors import MissingExtra

__all__ = ["PersonalData"]

_LIKELY = re.compile(r"@|\d(?:\D{0,3}\d){5}|-----BEGIN|[A-Za-z0-9_-]{20}|[0-9A-Fa-f]:[0-9A-Fa-f:]{2}")
"""What a text must have to be looked at closely: an @, six digits, a long word, an address."""
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
        filter_ = PiiConfig()
        if filter_.missing():
            raise MissingExtra("the search for personal data", "clean")
        known: dict[str, tuple[Counter[str], str]] = {}
        kinds: Counter[str] = Counter()
        columns: Counter[str] = Counter()
        shown: dict[int, str] = {}
        for row, column, text in _candidates(view):
            if text not in known:
                known[text] = look(filter_, text)
            found, masked = known[text]
            if found:
                kinds.update(found)
                shown[row] = "; ".join(filter(None, (shown.get(row, ""), f"{column}: {masked}" if column else masked)))
                columns[column] += 1
        if shown:
            rows = tuple((i,) for i in sorted(shown))
            named = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
            where = f" in {', '.join(c for c, _ in columns.most_common(6))}" if view.columns else ""
            step = texts_step(view)
            sample = f"; one text in {step} was looked at" if step > 1 else ""
            who = "record has" if len(rows) == 1 else "records have"
            message = (
                f"{len(rows):,} {who} personal data or keys{where} ({named}{sample}). data.clean: [{{kind: pii}}] masks them; they are masked here. Names and "
                "addresses are not looked for"
            )
            yield Finding(
                "personal data", "warn", message, rows, examples_of(view, rows, shown.__getitem__), tuple(c for c in columns if c)
            )


def look(filter_: PiiConfig, text: str) -> tuple[Counter[str], str]:
    """Return (what was found, the masked text around the first place)."""
    masked, found = text[:_CUT], Counter[str]()
    for kind in filter_.find:
        spans = list(filter_.spans(kind, masked))
        found[kind] += len(spans)
        for start, end in reversed(spans):
            masked = f"{masked[:start]}<{kind.upper()}>{masked[end:]}"
    found = +found
    at = min((p for kind in found if (p := masked.find(f"<{kind.upper()}>")) >= 0), default=0)
    return found, around(masked, at, at + 8) if found else ""


def texts_step(view: DataView) -> int:
    """Return that each text is looked at (1), or each of how many."""
    return 1 + sum(min(len(text), _CUT) for text in view.texts) // _MOST


def _candidates(view: DataView) -> Iterator[tuple[int, str, str]]:
    """Yield (record, column or "", text) of texts that may have personal data."""
    step = texts_step(view)
    for row in range(0, len(view.texts), step):
        text = view.texts[row]
        if _LIKELY.search(text, 0, _CUT) and sum(map(str.isdigit, text[:_CUT])) < _DIGITS * len(text[:_CUT]):
            yield row, "", text
    for name, values in word_columns(view):
        for row, value in enumerate(values):
            if isinstance(value, str) and _LIKELY.search(value):
                yield row, name, value
