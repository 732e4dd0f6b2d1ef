"""Damage to the encoding of texts: UTF-8 read as Latin-1 (`cafÃ©`), characters that were lost (U+FFFD), control characters. By ftfy (Speer 2019)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tauon.config import register
from tauon.data.quality.base import DataView, Finding, QualityCheck, around, counted, examples_of
from tauon.data.quality.columns import word_columns
from tauon.errors import MissingExtra

__all__ = ["TextEncoding"]

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_TAGS = "a|b|br|p|div|span|strong|em|i|u|li|ul|ol|table|tr|td|th|h[1-6]|html|head|body|img|font|script|style|title"
_MARKUP = re.compile(rf"</?(?:{_TAGS})\b[^<>\n]{{0,200}}>|&(?:[a-z]{{2,8}}|#\d{{1,6}});", re.IGNORECASE)
_MARKED = 0.001
"""Share of texts with markup below which it is not worth a word."""
_CUT = 100_000
"""Characters of a text that are looked at."""


@register("encoding")
class TextEncoding(QualityCheck):
    """Texts, and cells of a table, that were decoded wrongly, or have lost characters, control characters or remains of HTML."""

    kinds = ("texts", "table")
    title = "Encoding"
    extra = "clean"

    def find(self, view: DataView) -> Iterator[Finding]:
        try:
            import ftfy
        except ImportError as err:
            raise MissingExtra("the search for damaged encodings", "clean") from err
        found: dict[int, tuple[str, str]] = {}
        masked = not view.show_personal_data
        kinds: Counter[str] = Counter()
        marked: dict[int, str] = {}
        for row, text in cells_with_text(view):
            text = text[:_CUT]
            markup = _MARKUP.search(text)
            if markup:
                marked.setdefault(row, around(text, *markup.span(), masked=masked))
            if (text.isascii() and not _CONTROL.search(text)) or row in found:
                continue
            if "�" in text:
                at = text.index("�")
                found[row] = ("lost characters", around(text, at, at + 1, masked=masked))
            elif (fixed := ftfy.fix_encoding(text)) != text:
                at = next((i for i, (a, b) in enumerate(zip(text, fixed, strict=False)) if a != b), len(fixed))
                pieces = [around(t, at, at + 1, masked=masked) for t in (text, fixed)]
                found[row] = ("wrong decoding", " → ".join(pieces))
            elif control := _CONTROL.search(text):
                found[row] = (f"control character U+{ord(control.group()):04X}", around(_visible(text), *control.span(), masked=masked))
            if row in found:
                kinds[found[row][0]] += 1
        if found:
            rows = tuple((i,) for i in found)
            named = ", ".join(f"{kind}: {n:,}" for kind, n in kinds.most_common(6))
            message = (
                f"{counted(len(rows), 'record')} damaged by a wrong encoding ({named}). For training, the cleaning filter `repair` of a recipe "
                "undoes wrong decoding; lost characters are lost"
            )
            yield Finding("encoding", "warn", message, rows, examples_of(view, rows, lambda i: found[i][1], lambda k: found[rows[k][0]][0]))
        if len(marked) > _MARKED * len(view):
            rows = tuple((i,) for i in marked)
            who = "record has" if len(rows) == 1 else "records have"
            message = (
                f"{len(rows):,} {who} HTML in the text: remains of web pages, or source code. For training, the cleaning filter `repair` of a recipe decodes "
                "entities"
            )
            yield Finding("markup", "note", message, rows, examples_of(view, rows, marked.__getitem__))


def cells_with_text(view: DataView) -> Iterator[tuple[int, str]]:
    """Yield (record, text): of texts each, of a table each cell of a column of words, with the column's name before it."""
    for row, text in enumerate(view.texts):
        yield row, text
    for name, values in word_columns(view):
        for row, value in enumerate(values):
            if isinstance(value, str) and value:
                yield row, f"{name}: {value}"


def _visible(text: str) -> str:
    """Return the text with a picture for each control character: U+000C becomes ␌."""
    return _CONTROL.sub(lambda m: chr(0x2400 + ord(m.group())) if m.group() < " " else "�", text)
