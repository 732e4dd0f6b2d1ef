"""Parsing of numbers: one rule for features, targets, values of series, labels, `inspect_table` and `tauon recipe new`.

The canonical form is ASCII digits with an optional sign, decimal point and exponent: 12, -0.5, .5, 1e-3. Underscores, hexadecimal, digits
of other scripts, inf and nan are text. Other forms (decimal comma, thousands, percent, currency) are detected for a column as a whole, or
set by `numbers:`. A column that can be read in two ways is an error, never a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.config import Config
from tauon.errors import DataError

__all__ = [
    "CANONICAL", "Look", "NumberForm", "NumbersConfig", "all_floats", "as_numbers", "is_number", "look_at", "number_of", "plain_floats", "shorten",
    "stands_for_missing",
]  # fmt: skip

Floats = NDArray[np.float64]


class NumbersConfig(Config):
    """How numbers are written in a file: {decimal: ",", thousands: "."}. Percent signs and currency are recognised by themselves."""

    decimal: Literal[".", ","] = "."
    """The decimal mark."""
    thousands: Literal["", ".", ",", " ", "'"] = ""
    """Separator of groups of three digits (or two, as in India: 1,00,000). A blank also matches a no-break one."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("decimal") == self.raw_value("thousands"):
            yield "thousands", f"{self.raw_value('thousands')!r} is also the decimal mark; set another, or remove it"

    def form(self) -> NumberForm:
        return NumberForm(self.decimal, self.thousands)


@dataclass(frozen=True)
class NumberForm:
    """How the numbers of one column are written."""

    decimal: str = "."
    thousands: str = ""
    percent: bool = False
    """Every value ends with a percent sign; 50% is 0.5."""
    currency: str = ""
    """A sign that may come before or after a value."""

    def value(self, text: str) -> float | None:
        """Return the number that a text is in this form, or None."""
        text = text.strip().replace("\u2212", "-")
        if self.currency:
            text = _without_sign(text, self.currency)
        if self.percent:
            if not text.endswith("%"):
                return None
            text = text[:-1].rstrip()
        if self.thousands == " ":
            text = _BLANKS.sub(" ", text)
        if not _pattern(self.decimal, self.thousands).fullmatch(text):
            return None
        plain = text.replace(self.thousands, "") if self.thousands else text
        number = float(plain.replace(",", "."))
        if not math.isfinite(number):
            return None
        return number / 100 if self.percent else number

    def words(self) -> str:
        """Return a description: decimal ',', thousands '.', percent."""
        parts = [f"decimal {self.decimal!r}"] if self.decimal != "." or self.thousands else []
        parts += [f"thousands {self.thousands!r}"] if self.thousands else []
        parts += ["percent (50% is 0.5)"] if self.percent else []
        return ", ".join(parts + ([f"currency {self.currency!r}"] if self.currency else []))

    def setting(self) -> str:
        """Return the setting for a recipe."""
        thousands = f', thousands: "{self.thousands}"' if self.thousands else ""
        return f'numbers: {{decimal: "{self.decimal}"{thousands}}}'

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


CANONICAL = NumberForm()
_POINTS = NumberForm(",", ".")

_DIGIT = re.compile("[0-9]")
_BLANKS = re.compile("[ \u00a0\u2009\u202f]")
_SIGNS = ("$", "€", "£", "¥", "₹", "₽", "₩", "₺", "₴", "zł", "kr", "Fr", "R$", "US$", "USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR")
_MARKS = ((".", ""), (",", ""), (".", ","), (",", "."), (",", " "), (".", " "), (".", "'"), (",", "'"))
"""(decimal, thousands) pairs to try."""

_MISSING = frozenset([
    "", "na", "n/a", "n.a.", "nan", "-nan", "null", "none", "nil", "?", "-", "--", "\u2013", "\u2014", ".", "..", "...", "#n/a", "#na",
    "#n/a n/a", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "<na>", "nd", "n.d.", "missing", "unknown", "#value!", "#div/0!", "#ref!", "#num!",
])  # fmt: skip


@cache
def _pattern(decimal: str, thousands: str) -> re.Pattern[str]:
    whole = r"\d+" if not thousands else rf"(?:[1-9]\d{{0,2}}(?:{re.escape(thousands)}\d{{2,3}})*{re.escape(thousands)}\d{{3}}|\d+)"
    mark = re.escape(decimal)
    return re.compile(rf"[+-]?(?:{whole}(?:{mark}\d*)?|{mark}\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def _without_sign(text: str, sign: str) -> str:
    head = "-" if text.startswith("-") else ""
    rest = text.removeprefix("-").strip()
    if rest.startswith(sign):
        return head + rest.removeprefix(sign).strip()
    return head + rest.removesuffix(sign).strip()


def stands_for_missing(text: str) -> bool:
    """Return whether a word usually means a missing value: NA, n/a, null, NaN, ?, -."""
    return text.strip().casefold() in _MISSING


def number_of(value: Any, form: NumberForm = CANONICAL) -> float | None:
    """Return the finite number that a value is, or its text in this form; None if it is not a number."""
    if isinstance(value, str):
        return form.value(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_number(value: Any) -> bool:
    """Return whether a value, or its text in the canonical form, is a finite number.

    >>> [is_number(v) for v in ("12", "-.5", "1e3", True, "1_000", "0x10", "nan", "1,5", "٣")]
    [True, True, True, True, False, False, False, False, False]
    """
    return number_of(value) is not None


def all_floats(values: Sequence[Any] | Floats) -> Floats | None:
    """Convert all at once if each is a canonical number or None (NaN), several times faster than one by one; otherwise return None."""
    if isinstance(values, np.ndarray):
        return values
    try:
        texts = "".join(values if None not in values else [v for v in values if v is not None])
    except TypeError:  # some values are not text
        texts = "".join([v for v in values if v.__class__ is str])
    if not texts.isascii() or "_" in texts:  # Python's float accepts digits of all scripts, and 1_000
        return None
    try:
        found = np.array([math.nan if v is None else float(v) for v in values] if None in values else [*map(float, values)], np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if found.shape != (len(values),) or np.isinf(found).any():
        return None
    lost = np.flatnonzero(np.isnan(found))
    return found if all(values[i] is None for i in lost.tolist()) else None


def plain_floats(values: Sequence[Any]) -> tuple[Floats | None, bool]:
    """Return (`all_floats`, whether a text has a decimal point); None if 1.200 may mean 1200, because every point is before three last digits."""
    numbers = all_floats(values)
    dotted = numbers is not None and any(v.__class__ is str and "." in v for v in values)
    if dotted and all(_POINTS.value(v) is not None for v in values if isinstance(v, str)):
        return None, True
    return numbers, dotted


def as_numbers(
    values: Sequence[Any] | Floats, where: Callable[[int], str], form: NumberForm = CANONICAL, missing: Collection[str] = ("",)
) -> Floats:
    """Return float64, missing ones (None) as NaN. `DataError` with the first that is not a number. `missing`: the spellings set, for advice."""
    found = all_floats(values) if form == CANONICAL or isinstance(values, np.ndarray) else None
    if found is not None:
        return found
    out = np.empty(len(values))
    for i, value in enumerate(values):
        number = math.nan if value is None else number_of(value, form)
        if number is None:
            raise DataError(_no_number(values, i, where(i), form, missing))
        out[i] = number
    return out


def _no_number(values: Sequence[Any] | Floats, i: int, where: str, form: NumberForm, missing: Collection[str]) -> str:
    value = values[i]
    form_text = f" ({form.words()})" if form.words() else ""
    if not isinstance(value, str) or not stands_for_missing(value):
        listed = [*dict.fromkeys((*missing, str(value)))]
        return (
            f"{where} is {shorten(value)}, expected a number{form_text}. If it means a missing value, set data.source.missing: {shorten(listed, 200)}; "
            "if the column has categories, list it in data.source.categorical; or leave the column out with data.source.drop"
        )
    words = [*dict.fromkeys(v for v in values if isinstance(v, str) and number_of(v, form) is None and stands_for_missing(v))]
    count = sum(isinstance(v, str) and v in words for v in values)
    return (
        f"{where} is {shorten(value)}, expected a number{form_text}: {count:,} of {len(values):,} values seem to be missing. "
        f"If so, set data.source.missing: {shorten([*dict.fromkeys((*missing, *words))], 200)}; for categories, list the column in data.source.categorical"
    )


def shorten(value: Any, most: int = 40) -> str:
    """Return a value as error messages show it."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


# ---------------------------------------------------------------------------------------------- how a column is written


@dataclass(frozen=True)
class Look:
    """Detected form of the numbers of a column."""

    form: NumberForm
    numbers: int
    """Number of values that are numbers in this form."""
    others: int
    """Number of values that are not, except spellings of missing ones."""
    rival: NumberForm | None = None
    """Another form that reads as many values, as other numbers."""
    example: str = ""
    """A text that `form` and `rival` read differently."""
    doubtful: bool = False
    """Whether `rival` is more likely, although `form` is the canonical one."""
    marks: frozenset[str] = field(default_factory=frozenset)
    """Decimal marks that the column shows unambiguously."""

    @property
    def mostly(self) -> bool:
        """Return whether it is a column of numbers: at least half of the values that are not missing are numbers."""
        return self.numbers > 0 and self.numbers >= self.others

    @property
    def ambiguous(self) -> bool:
        """Return whether it can be read in two ways, and the canonical one is not one of them, or not the more likely one."""
        return self.rival is not None and (self.doubtful or (self.form.decimal, self.form.thousands) != (".", ""))

    def decided(self, marks: Collection[str]) -> NumberForm | None:
        """Return the one form; of two, the one whose decimal mark is the only one in the other columns of the file, or, for amounts of money,
        the one in which three digits are not a fraction. None: ambiguous.
        """
        if self.rival is None:
            return self.form
        fits = [f for f in (self.form, self.rival) if f.decimal in marks]
        if len(fits) == 1 and len({*marks}) == 1:
            return fits[0]
        if not self.ambiguous:
            return self.form
        grouped = [f for f in (self.form, self.rival) if f.currency and f.thousands]
        return grouped[0] if not marks and len(grouped) == 1 else None

    def two_ways(self) -> str:
        """Return the message for an ambiguous column."""
        assert self.rival is not None
        return (
            f"{self.example!r} is {self.form.value(self.example):,g} or {self.rival.value(self.example):,g}. "
            f"Set data.source.{self.form.setting()} or data.source.{self.rival.setting()}"
        )


def look_at(values: Sequence[Any], rule: NumberForm | None = None) -> Look:
    """Detect how a column's numbers are written: by `rule` if it reads at least as many as any other form, else from the values alone."""
    texts = [v for v in values if isinstance(v, str)]
    told = sum(v is not None and not isinstance(v, str) and number_of(v) is not None for v in values)
    odd = sum(v is not None and not isinstance(v, str) for v in values) - told
    counts: dict[str, int] = {}
    for text in texts:
        if not stands_for_missing(text):
            counts[text] = counts.get(text, 0) + 1
    total = sum(counts.values())
    if not _DIGIT.search("".join(counts)):
        return Look(CANONICAL, told, odd + total)
    percent = 2 * sum(n for t, n in counts.items() if t.rstrip().endswith("%")) >= max(total, 1)
    currency = _currency(counts, total)
    best: list[_Reading] = []
    for decimal, thousands in _marks(rule):
        form = NumberForm(decimal, thousands, percent, currency)
        read = [form.value(t) for t in counts]
        n = sum(c for c, v in zip(counts.values(), read, strict=True) if v is not None)
        if n and (not best or n > best[0][1]):
            best = [(form, n, read)]
        elif n and n == best[0][1]:
            best.append((form, n, read))
    if not best:
        return Look(CANONICAL, told, odd + total)
    grouped = next((r for r in best if rule is None and _must_be_thousands(r, [*counts])), None)
    if grouped is not None and (best[0][0].decimal, best[0][0].thousands) != (".", ""):
        best = [grouped]
    form, n, read = best[0]
    rival = next(((f, r) for f, _, r in best[1:] if r != read), None) if rule is None else None
    if rival is None:
        after = re.compile(rf"{re.escape(form.decimal)}\d")
        marks = frozenset([form.decimal] if any(after.search(t) for t in counts) else [])
        return Look(form, n + told, odd + total - n, marks=marks)
    example = next(t for t, a, b in zip(counts, read, rival[1], strict=True) if a != b)
    return Look(form, n + told, odd + total - n, rival[0], example, grouped is not None)


_Reading = tuple[NumberForm, int, list[float | None]]


def _must_be_thousands(reading: _Reading, texts: Sequence[str]) -> bool:
    """Return whether 950 occurs beside 1,200: as decimals, 1,200 would probably have been written 1,2 or 950 as 950,000."""
    form, _, values = reading
    if not form.thousands or None in values or form.decimal in "".join(texts):
        return False
    plain = [t for t in texts if form.thousands not in t]
    short = all(len(re.sub(r"\D", "", t)) < 4 for t in plain)
    return bool(plain) and short and any(t.rstrip(" %" + form.currency).endswith("0") for t in texts if form.thousands in t)


def _marks(rule: NumberForm | None) -> Sequence[tuple[str, str]]:
    return _MARKS if rule is None else [*dict.fromkeys([(rule.decimal, rule.thousands), (".", "")])]


def _currency(counts: dict[str, int], total: int) -> str:
    """Return the sign that at least half of the values have."""
    found: dict[str, int] = {}
    for text, n in counts.items():
        bare = text.strip().lstrip("-").strip()
        sign = next((s for s in sorted(_SIGNS, key=len, reverse=True) if bare.startswith(s) or bare.endswith(s)), None)
        if sign is not None:
            found[sign] = found.get(sign, 0) + n
    top = max(found, key=lambda s: found[s], default="")
    return top if top and 2 * found[top] >= total else ""
