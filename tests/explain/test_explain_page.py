"""The page of an explanation: hostile names stay text, every picture has words, nothing is loaded, damage does not break the report."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from explained import Worlds
from tauon.artifacts import read_json, write_json
from tauon.explain.report import comparison_page, explanation, new_examples_page, read_arrays
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tauon.report import Records, render

HOSTILE = "<script>alert('x')</script>\"'&<img src=x onerror=alert(1)>\x00\x1b[31m\u202e\u2066\ud800 🦜 " + "ein sehr langes Wort" * 30
KEPT = {"kind", "array", "method", "name_of_method", "format", "family", "part", "meaning", "fill", "mode"}
"""Keys whose words are the program's own."""


class Page(HTMLParser):
    """What a page holds: tags, pictures, addresses, identifiers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.bare: list[str] = []
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.events: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("img", "br", "meta", "link", "input", "hr", "path", "line", "rect", "circle", "polyline", "polygon", "use", "col"):
            self.open.append(tag)
        given = dict(attrs)
        if tag == "img" and not (given.get("alt") or "").strip():
            self.bare.append(str(attrs)[:200])
        for name, value in given.items():
            if name in ("src", "href", "srcset", "action") and not (value or "").startswith(("data:image/png;base64,", "#")):
                self.outside.append(f"{tag} {name}={value}"[:200])
            if name.startswith("on"):
                self.events.append(f"{tag} {name}")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.unbalanced.append(f"</{tag}> inside {self.open[-3:]}")
        elif self.open:
            self.open.pop()


def check(html: str, *, scripts: int = 0) -> Page:
    page = Page(html)
    assert not page.bare and not page.outside and not page.events, (page.bare, page.outside, page.events)
    assert "alert(" not in "".join(page.tags) and page.tags.count("script") == scripts
    assert not page.unbalanced, page.unbalanced[:5]
    assert len(set(page.ids)) == len(page.ids), [i for i in page.ids if page.ids.count(i) > 1][:5]
    for character in ("\x00", "\x1b", "\u202e", "\u2066", "\ud800"):
        assert character not in html
    return page


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("explained"))


NAMES = ["iris", "images", "texts-bag", "series-dlinear", "sounds-cnn", "gpt", "multi-label"]


@pytest.fixture(scope="module")
def explained(worlds: Worlds) -> dict[str, Path]:
    found = {}
    for name in NAMES:
        run(load_recipe(worlds[name]), folder=worlds[name], stages=("explain",))
        found[name] = worlds[name]
    return found


def hostile(value: Any, key: str = "") -> Any:
    """Every word of the record that may come from the data, as an attacker would choose it."""
    if isinstance(value, dict):
        return {k: v if k in KEPT or (k == "name" and "title" in value) else hostile(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v, key) for v in value]
    return value + HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("name", NAMES)
def test_hostile_words_stay_words(explained: dict[str, Path], name: str, tmp_path: Path) -> None:
    folder = explained[name]
    record, arrays = read_json(folder / "explain/explanation.json"), read_arrays(folder / "explain/maps.safetensors")
    records = Records.read(folder)
    section = explanation(records)
    assert section is not None
    check(section.html)
    assert "<img" in section.html or record["kind"] in ("table", "text")
    worse = hostile(copy.deepcopy(record))
    monkey = {"explain/explanation.json": worse}
    records.json = lambda path, *a, **k: monkey.get(path)  # type: ignore[method-assign,assignment]
    section = explanation(records)
    assert section is not None
    check(section.html)
    check(new_examples_page(HOSTILE, worse, arrays), scripts=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_record_does_not_break_the_report(explained: dict[str, Path], name: str) -> None:
    folder = explained[name]
    path, maps = folder / "explain/explanation.json", folder / "explain/maps.safetensors"
    kept = path.read_bytes(), maps.read_bytes()
    try:
        for damage in (b"", b"{", b"[]", b"null", b"{}", b'{"cases": null}', b'{"kind": "image", "cases": [{}, null, 3], "methods": [{}]}'):
            path.write_bytes(damage)
            assert "</html>" in render(folder, [explanation]).read_text()
        path.write_bytes(kept[0])
        for damage in (b"", b"x" * 50, kept[1][: len(kept[1]) // 2]):
            maps.write_bytes(damage)
            found = explanation(Records.read(folder))
            assert found is not None and ("missing or damaged" in found.html or not json.loads(kept[0])["cases"])
        maps.write_bytes(kept[1])
        rng, record = np.random.default_rng(0), json.loads(kept[0])
        for _ in range(60):
            broken = copy.deepcopy(record)
            spoil(broken, rng)
            write_json(path, broken)
            assert "</html>" in render(folder, [explanation]).read_text()
    finally:
        path.write_bytes(kept[0])
        maps.write_bytes(kept[1])


def spoil(record: dict[str, Any], rng: np.random.Generator) -> None:
    """Take out, or replace, something at a random place."""
    at: Any = record
    while True:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = keys[int(rng.integers(len(keys)))]
        child = at[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.25:
            value = [None, "x", [], {}, 1.5, -3, float("nan")][int(rng.integers(7))]
            if rng.random() < 0.4 and isinstance(at, dict):
                del at[key]
            else:
                at[key] = value
            return
        at = child


def test_the_report_of_many_examples_stays_small(worlds: Worlds, explained: dict[str, Path]) -> None:
    folder = explained["images"]
    run(load_recipe(folder, ["explain.examples=40"]), folder=folder, stages=("explain", "report"))
    assert (folder / "report.html").stat().st_size < 5_000_000
    page = Page((folder / "report.html").read_text())
    assert not page.bare and not page.outside
    run(load_recipe(folder), folder=folder, stages=("explain",))


def test_a_comparison_is_safe_too(worlds: Worlds, explained: dict[str, Path]) -> None:
    from tauon.stages.explain_runs import compare_runs

    for name in ("iris", "images"):
        page, lines = compare_runs(explained[name], explained[name], ["explain.checks=false"])
        assert len(lines) == 3
        check(page.read_text(), scripts=1)
        check(comparison_page(HOSTILE, HOSTILE, hostile(read_json(page.with_suffix(".json"))), {}), scripts=1)
