"""The page in headless Chromium: each kind of data is asked and answered, on a narrow and a wide screen, by keyboard, in light and dark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import worlds
from browser import CHROMIUM, Browser
from processes import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

SHOTS = os.environ.get("TAUON_SHOTS")
"""Folder for pictures of the pages, to look at."""
FILLED = {
    "table": "document.querySelector('input[type=text]').value = '50'; document.querySelector('select').value = 'Ulm'",
    "texts": "document.querySelector('textarea').value = 'good film, liked it'",
    "language": "document.querySelector('textarea').value = 'the cat'; document.querySelectorAll('input[type=number]')[1].value = 20",
    "chat": "document.querySelector('textarea').value = 'Is 4 even?'",
}
UNNAMED = """[...document.querySelectorAll('button, input, select, textarea, a, img, svg, [role=img]')].filter((e) =>
  !(e.getAttribute('aria-label') || e.getAttribute('alt') || e.textContent.trim() || (e.labels && e.labels.length && e.labels[0].textContent.trim()))
).map((e) => e.outerHTML)"""
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CONTRAST = """(() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number), light = (c) => { const [r, g, b] = rgb(c).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255,255,255)'; };
  return [...document.querySelectorAll('h1, h2, p, button:enabled, label, a, span, summary, td, th')].filter((e) => e.textContent.trim() && e.offsetParent)
    .map((e) => { const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((x, y) => y - x); return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 120)]; })
    .filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.fixture(scope="module")
def browser() -> Any:
    with Browser() as found:
        yield found


@pytest.mark.parametrize("kind", [*worlds.KINDS, "language", "chat"])
def test_each_kind_of_data_is_asked_and_answered(browser: Browser, kind: str) -> None:
    with ServerProcess(worlds.run_of(kind)) as server:
        url = f"http://127.0.0.1:{server.port}/"
        for width, dark in ((390, False), (1200, True)):
            browser.size(width, dark=dark)
            browser.open(url, "document.querySelector('#ask').children.length && document.title !== 'Tauon'")
            shot(browser, f"{kind}-{width}-empty")
            answer(browser, kind)
            shot(browser, f"{kind}-{width}")
            assert browser.js(WIDE) <= 0 and browser.js(UNNAMED) == []
            assert browser.js(CONTRAST) == []
        browser.size(360)
        assert browser.js(WIDE) <= 0
        assert not browser.errors


def answer(browser: Browser, kind: str) -> None:
    """Fill in the form and wait for the answer."""
    if kind in FILLED:
        browser.js(FILLED[kind])
        browser.js("document.querySelector('form').requestSubmit()")
    else:
        path, _ = worlds.raw(kind)
        browser.choose("input[type=file]", path)
        browser.wait("!document.querySelector('.drop + button').disabled")
        browser.js("document.querySelector('.drop + button').click()")
    browser.wait("document.querySelector('#status').textContent.startsWith('Answered in')")
    assert browser.js("document.querySelector('#status').className") != "error"
    told = browser.js(
        "document.querySelector('#answer').innerText + (document.querySelector('.chat .assistant') || {innerText: ''}).innerText"
    )
    wanted = {
        "table": "yes",
        "pictures": "dog",
        "texts": "good",
        "recordings": "no",
        "series": "Forecast",
        "language": "the cat",
        "chat": "",
    }
    assert wanted[kind] in told


def test_keyboard_errors_and_drops(browser: Browser) -> None:
    with ServerProcess(worlds.run_of("table")) as server:
        browser.size(800)
        browser.open(f"http://127.0.0.1:{server.port}/", "document.querySelector('#ask').children.length && document.title !== 'Tauon'")
        seen = []
        for _ in range(6):
            browser.key("Tab", 9)
            seen.append(browser.js("document.activeElement.tagName + ' ' + getComputedStyle(document.activeElement).outlineStyle"))
        assert seen[0].startswith("INPUT") and "SELECT" in seen[1] and seen[2].startswith("BUTTON")
        assert all("none" not in s for s in seen[:3]), "what has the focus shows it"
        browser.js("document.querySelector('input[type=text]').value = 'old'; document.querySelector('input[type=text]').focus()")
        browser.key("Enter", 13, "\r")
        browser.wait("document.querySelector('#status').className === 'error'")
        assert "old" in browser.js("document.querySelector('#status').textContent")


def test_a_key_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    with ServerProcess(worlds.run_of("table"), "--keys-file", str(keys)) as server:
        browser.open(f"http://127.0.0.1:{server.port}/", "!document.querySelector('#key-line').hidden")
        browser.js("document.querySelector('#key').value = 'open-sesame'; document.querySelector('#key-use').click()")
        browser.wait("document.querySelector('#ask').children.length && document.querySelector('#key-line').hidden")
        answer(browser, "table")
    browser.errors.clear()


def shot(browser: Browser, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        browser.picture(Path(SHOTS) / f"{name}.png")
