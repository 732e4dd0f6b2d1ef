"""Every registered cleaning filter keeps the contract of its family: a new one is enrolled by its registration, and needs an example here."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clean_corpus import prose
from tauon.config import parse, register, registered
from tauon.data import Arrays, FilterConfig, Rejected, Series, Signals, Table, TextFilter, cleaning_function
from tauon.data.clean.defaults import _DEFAULTS
from tauon.testing import check_filter

PROSE = [prose(random.Random(seed)) for seed in range(12)]


@cleaning_function("contract-short")
def contract_short(text: str) -> bool:
    return len(text) > 9


TEXTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "repair": ({}, ["cafÃ© au lait", "a &amp; b"]), "language": ({}, ["Der Hund und die Katze wissen nicht, warum sie das tun. " * 3]),
    "script": ({}, ["и никто не знает", "123"]), "length": ({}, ["", " "]), "html": ({}, ["<html><body></body></html>", "<div><p>" + PROSE[0] + "</p></div>"]),
    "words": ({"words": ["spam"]}, ["this is spam", "Spam!"]), "expression": ({"keep": "digits < 0.2"}, ["123 a"]),
    "function": ({"name": "contract-short"}, ["short"]), "pii": ({}, ["write to a@b.com", "4111 1111 1111 1111"]),
    "gopher-quality": ({}, ["few words", "# " * 200, "abcdefghijklmnop " * 80]), "gopher-repetition": ({}, ["", "on and on " * 40, "a line.\n" * 9]),
    "c4": ({}, ["One. Two.", PROSE[0] + "\nno end", PROSE[0] + "\nThe lorem ipsum text."]), "fineweb-quality": ({}, ["", "no end\n" * 9, "x.\n" * 50]),
}  # fmt: skip


def _table() -> tuple[Table, Table]:
    numbers = [str(n) for n in np.random.default_rng(0).integers(20, 60, 40)]
    good = Table({"n": numbers, "w": [f"{i}" for i in range(40)]}, np.arange(40) % 2, ("a", "b"))
    return good, replace(good, columns={"n": [*numbers[:-3], "x", None, "4000"], "w": ["5 lb", *good.columns["w"][1:]]})


def _twice() -> tuple[Table, Table]:
    good = _table()[0]
    return good, replace(good, columns={k: [*v[:-1], v[1]] for k, v in good.columns.items()})


def _images(change: Callable[[np.ndarray], None]) -> Callable[[], tuple[Arrays, Arrays]]:
    def made() -> tuple[Arrays, Arrays]:
        x = np.random.default_rng(0).integers(0, 256, (20, 1, 16, 18)).astype(np.uint8)
        bad = x.copy()
        change(bad)
        return Arrays(x, np.zeros(20, np.int64)), Arrays(bad, np.zeros(20, np.int64))

    return made


def _waves(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], tuple[Signals, Signals]]:
    def made() -> tuple[Signals, Signals]:
        good = [(0.5 * np.sin(np.arange(1600) / (3 + i))).astype(np.float32) for i in range(6)]
        names = [str(i) for i in range(6)]
        bad = [*good[:5], change(good[5]).astype(np.float32)]
        return Signals(good, 8000, names, np.zeros(6, np.int64)), Signals(bad, 8000, names, np.zeros(6, np.int64))

    return made


def _series() -> tuple[Series, Series]:
    values = np.random.default_rng(0).normal(size=(100, 1))
    good = Series(np.arange(100).astype("datetime64[s]"), values, ("v",), 1, "1 s", 60)
    stuck = values.copy()
    stuck[10:50] = 1.5
    return good, replace(good, values=stuck)


def _copy_first(x: np.ndarray) -> None:
    x[7] = x[2]


def _black(x: np.ndarray) -> None:
    x[3] = 0


ROWS: dict[str, tuple[dict[str, Any], Callable[[], tuple[Any, Any]]]] = {
    "range": ({"column": "n", "low": 0, "high": 100}, _table), "types": ({"columns": {"n": "whole"}}, _table), "missing": ({"columns": ["n"]}, _table),
    "outliers": ({"columns": ["n"], "action": "drop"}, _table), "units": ({"column": "w", "units": {"": 1, "lb": 0.45}}, _table),
    "duplicates": ({}, _twice), "near-duplicates": ({}, _images(_copy_first)), "blank": ({}, _images(_black)),
    "silent": ({}, _waves(lambda w: w * 1e-6)), "clipped": ({}, _waves(lambda w: np.clip(w * 9, -1, 1))), "duration": ({}, _waves(lambda w: w[:300])),
    "stuck": ({}, _series),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(set(registered("clean")) - {"default"}))
def test_filter_contract(kind: str) -> None:
    assert kind in TEXTS or kind in ROWS, f"the filter {kind!r} has no example in this file: add one"
    if kind in TEXTS:
        settings, dirty = TEXTS[kind]
        made = parse(FilterConfig, {"kind": kind, **settings})
        check_filter(made, clean=PROSE, dirty=dirty)
    else:
        settings, pair = ROWS[kind]
        good, bad = pair()
        check_filter(parse(FilterConfig, {"kind": kind, **settings}), clean=good, dirty=bad)


def test_default_filters_are_for_their_kind_of_data() -> None:
    for kind in _DEFAULTS:
        made: Any = parse(FilterConfig, {"kind": "default"})
        assert all(kind in one.cleans for one in made.filters(kind))


class Forgetful(TextFilter):
    """Rejects every second text that it sees."""

    def apply(self, text: str) -> str | Rejected:
        _SEEN.append(text)
        return text if len(_SEEN) % 2 else Rejected("second", "the second text")


_SEEN: list[str] = []


class Silent(TextFilter):
    """Gives no reason."""

    def apply(self, text: str) -> str | Rejected:
        return Rejected("x", "") if text == "bad" else text


class Restless(TextFilter):
    """Changes again what it has changed."""

    def apply(self, text: str) -> str | Rejected:
        return text + "!" if text.startswith("bad") else text


@pytest.mark.parametrize(
    ("cls", "message"),
    [(Silent, "the reason says nothing"), (Restless, "not clean to itself"), (Forgetful, "a clean text was changed or rejected")],
)
def test_the_contract_can_fail(cls: type[TextFilter], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FilterConfig, "_members", dict(FilterConfig._members))
    made = register(f"test-{cls.__name__.lower()}")(cls)()
    with pytest.raises(AssertionError, match=message):
        check_filter(made, clean=["one", "two", "three"], dirty=["bad"])


def test_a_filter_of_a_package_works_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.data import DataConfig

    monkeypatch.setattr(FilterConfig, "_members", dict(FilterConfig._members))

    @register("test-no-shouting")
    class NoShoutingConfig(TextFilter):
        """Reject texts in capitals."""

        def apply(self, text: str) -> str | Rejected:
            return Rejected("shouting", "100% capitals, more than 50%") if text.isupper() else text

    made = parse(DataConfig, {"source": {"kind": "text", "path": "x"}, "clean": "test-no-shouting"})
    assert made.clean == (NoShoutingConfig(),)
