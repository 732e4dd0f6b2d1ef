"""Filters of texts that are no published set of rules: repair, language, script, length, web pages, words.

What counts as prose is in `quality.py` and `repetition.py`, what must not be known in `pii.py`, a user's own rule in `predicates.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from tauon.config import Count, Fraction, register
from tauon.data.clean.base import Rejected, Text, TextFilter
from tauon.data.files import read_bytes, sha256_file
from tauon.data.text_files import read_text
from tauon.errors import DataError

__all__ = ["HtmlConfig", "LanguageConfig", "LengthConfig", "RepairConfig", "ScriptConfig", "WordsConfig"]

_SUSPECT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f&]")
"""What ftfy can change in a text of ASCII: control characters, terminal escapes, carriage returns, HTML entities."""


@register("repair")
class RepairConfig(TextFilter):
    """Undo wrong decoding (`doesnâ€™t`), remove control characters, decode HTML entities, normalise Unicode: by ftfy (Speer 2019)."""

    form: Literal["NFC", "NFKC"] | None = "NFC"
    """Unicode normal form. None: leave it."""
    quotes: bool = False
    """Replace curly quotation marks by straight ones."""
    libraries: ClassVar[dict[str, str]] = {"ftfy": "ftfy"}

    def apply(self, text: str) -> str | Rejected:
        if text.isascii() and not _SUSPECT.search(text):
            return text
        import ftfy

        repaired = ftfy.fix_text(str(text), normalization=self.form, uncurl_quotes=self.quotes)
        return text if repaired == text else repaired


@register("language")
class LanguageConfig(TextFilter):
    """Keep texts in some languages, as py3langid (the model of langid.py, Lui & Baldwin 2012, 97 languages) identifies them."""

    languages: tuple[str, ...] = ("en",)
    """Codes of the languages to keep (ISO 639-1)."""
    min_score: Fraction = Field(default=0.65, ge=0, le=1)
    """Least probability of the language."""
    sample: Count = Field(default=10_000, ge=100)
    """Characters that are looked at, from the beginning."""
    libraries: ClassVar[dict[str, str]] = {"py3langid": "py3langid"}

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        odd = [code for code in self.raw_value("languages") if not re.fullmatch("[a-z]{2}", code)]
        if odd or not self.raw_value("languages"):
            yield "languages", f"got {', '.join(odd) or 'none'}, expected codes of two letters: en, de, zh"

    def apply(self, text: str) -> str | Rejected:
        found, score = _identifier().classify(str(text[: self.sample]))
        if found not in self.languages:
            return Rejected(f"language_{found}", f"language {found} ({score:.2f}), not {' or '.join(self.languages)}")
        if score < self.min_score:
            return Rejected("language_unsure", f"language {found} with probability {score:.2f}, less than {self.min_score:g}")
        return text


@lru_cache(1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@register("script")
class ScriptConfig(TextFilter):
    """Keep texts in some scripts: latin, cyrillic, greek, arabic, hebrew, devanagari, cjk, hiragana, katakana, hangul, thai, ..."""

    scripts: tuple[str, ...] = ("latin",)
    """The first word of the Unicode names of their letters: "LATIN SMALL LETTER A"."""
    min_share: Fraction = Field(default=0.7, ge=0, le=1)
    """Smallest share of the letters."""

    def apply(self, text: str) -> str | Rejected:
        letters: Counter[str] = Counter()
        for character, number in Counter(text).items():
            if character.isalpha():
                letters[_script(character)] += number
        total = letters.total()
        share = sum(letters[script] for script in self.scripts) / total if total else 0.0
        if share >= self.min_share:
            return text
        if not total:
            return Rejected("no_letters", "has no letters")
        most = letters.most_common(1)[0][0]
        return Rejected(
            f"script_{most}",
            f"{share:.0%} of the letters are {' or '.join(self.scripts)}, fewer than {self.min_share:.0%}; most are {most}",
        )


@lru_cache(1 << 16)
def _script(character: str) -> str:
    return unicodedata.name(character, "unknown").partition(" ")[0].lower()


@register("length")
class LengthConfig(TextFilter):
    """Keep texts of some length."""

    min: NonNegativeInt = 1
    """Least length."""
    max: Count | None = Field(default=None, ge=1)
    """Greatest length. None: any."""
    unit: Literal["characters", "words", "lines"] = "characters"
    """What is counted. words: what stands between blanks; characters: without blanks at the ends."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("max") is not None and self.raw_value("max") < self.raw_value("min"):
            yield "max", f"is {self.raw_value('max')}, less than min: {self.raw_value('min')}"

    def apply(self, text: str) -> str | Rejected:
        view = text if isinstance(text, Text) else Text(text)
        found = len(view.strip()) if self.unit == "characters" else len(view.pieces) if self.unit == "words" else len(view.lines)
        if found < self.min:
            return Rejected("too_short", f"{found:,} {self.unit}, fewer than {self.min:,}")
        if self.max is not None and found > self.max:
            return Rejected("too_long", f"{found:,} {self.unit}, more than {self.max:,}")
        return text


@register("html")
class HtmlConfig(TextFilter):
    """Web pages to their main text, by trafilatura (Barbaresi 2021). Texts that are not HTML stay as they are."""

    precision: bool = True
    """Prefer less boilerplate to more text, as FineWeb does."""
    tables: bool = True
    """Keep the text of tables."""
    libraries: ClassVar[dict[str, str]] = {"trafilatura": "trafilatura"}

    def apply(self, text: str) -> str | Rejected:
        if not _HTML.search(text[:100_000]):
            return text
        import trafilatura

        found = trafilatura.extract(str(text), favor_precision=self.precision, include_tables=self.tables, include_comments=False)
        return found or Rejected("no_main_text", f"no main text in {len(text):,} characters of HTML")


_HTML = re.compile(r"<(?:html|head|body|!doctype html|div|p|article|table)\b[^>]*>", re.IGNORECASE)


@register("words")
class WordsConfig(TextFilter):
    """Reject texts with words of a list, as C4 does with a list of bad words. The list is yours: none is built in."""

    words: tuple[str, ...] = ()
    """The words or phrases; case does not matter."""
    path: str | None = None
    """A file with one on each line, in addition to `words`."""
    most: NonNegativeInt = 0
    """Occurrences that are allowed."""
    within_words: bool = False
    """Find them inside of words, too: for languages without blanks."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.raw_value("words") and self.raw_value("path") is None:
            yield "words", "is empty, and no path is given; set words: [...] or path: file with one word on each line"

    def files(self) -> list[Path]:
        path = self.raw_value("path")
        return [] if path is None else [Path(path).expanduser()]

    def depends_on(self) -> list[Any]:
        return [sha256_file(path) for path in self.files()]

    def apply(self, text: str) -> str | Rejected:
        found = _word_pattern(self.words, self.path, self.within_words).findall(text.lower())
        if len(found) <= self.most:
            return text
        some = ", ".join(dict.fromkeys(found[:20]))[:80]
        return Rejected("listed_words", f"{len(found)} listed words ({some}), more than {self.most}")


@lru_cache(8)
def _word_pattern(words: tuple[str, ...], path: str | None, within: bool) -> re.Pattern[str]:
    listed = list(words)
    if path is not None:
        place = Path(path).expanduser()
        listed += read_text(read_bytes(place), str(place), "utf-8").splitlines()
    listed = sorted({word.strip().lower() for word in listed if word.strip()}, key=lambda word: (-len(word), word))
    if not listed:
        raise DataError(f"{path}: has no words. Write one on each line, or remove the filter words")
    some = "|".join(map(re.escape, listed))
    return re.compile(some if within else rf"(?<!\w)(?:{some})(?!\w)")
