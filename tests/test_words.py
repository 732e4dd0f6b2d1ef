"""Texts are plain modern English (`CONTRIBUTING.md`): what people read in code, errors, help and documentation holds none of these phrases.

Each pattern has what to write instead. A word that a field or a library really uses is let through by `ALLOWED`.
"""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

INSTEAD = {
    r"can(not)? be had": "could not be downloaded; is not available",
    r"in vain": "timed out; without success",
    r"(is|are) there to (be )?\w+": "has no ... yet",
    r"(has|have|had) been told|(is|are|was|were) told": "is reported, is printed, is recorded; is called with",
    r"tells? of|told of|telling of": "reveals, says about, is about",
    r"teach(es)? to": "would train the model to",
    r"rooms?": "package (a metaphor of our own); space, memory",
    r"dress(ed|es|ing)?": "transform, wrap, apply",
    r"hearts?": "heartbeat; memorized",
    r"by heart": "memorized",
    r"the dead": "a process that ended",
    r"(goes|go|went|going|gone) on": "continues, resumes",
    r"anew|afresh": "again, from scratch",
    r"(is|are) to be \w+": "must be, should be",
    r"(is|are) not to be \w+": "must not be",
    r"com(e|es|ing) along": "is shipped with, is included",
    r"in the place of|in the stead of": "instead of",
    r"l(ies|ie|ay|ying) (in|at|on|beside|below|under|there|above|beneath)": "is in, is at",
    r"(do|does|did) no harm": "is safe",
    r"of (its|their) own accord": "by itself",
    r"upon|thereof|whereof|therein|whence|thither|hither|ere|nought|whilst|thereby|hereby|herein|be it": "plain modern words",
    r"nobody(?! who)": "no one, no process, nothing",
    r"somebody": "someone, a person",
    r"may well": "probably",
    r"at (a|one) time together": "at once",
    r"ways? out": "how to fix it",
    r"holds? good": "is valid",
    r"knows? no \w+": "does not depend on",
    r"what it is told": "its input",
    r"(hand|handed|handing) on": "share, publish, pass",
    r"give(s|n)? away": "publish, share",
    r"makes? nothing of": "ignores",
    r"set(s)? about": "starts",
    r"for want of": "because there is no",
    r"not (yet )?there": "missing, does not exist",
    r"(is|are) no \w+ (of|that|which)": "is not a ...",
}
"""Pattern to what is written instead."""
ALLOWED = re.compile(
    r"set_about|room_temperature|heart disease|heart rate|based upon|upon_|rooms? of the house|bedrooms?|n_rooms|AveRooms|classrooms?",
    re.IGNORECASE,
)
PATTERNS = {re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE): instead for pattern, instead in INSTEAD.items()}

PACKAGES = sorted(p for p in (ROOT / "src" / "tauon").iterdir() if not p.name.startswith(("_", ".")))
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
LOGS = {"experiments.md", "CHANGELOG.md", "changelog.md", "README.zh-CN.md"}
"""What is a record of its day, or in another language."""


def faults(text: str, where: str, first_line: int = 1) -> list[str]:
    """place: phrase -> what to write."""
    found = []
    for number, line in enumerate(text.splitlines(), first_line):
        line = ALLOWED.sub("", line)
        for pattern, instead in PATTERNS.items():
            found += [f"{where}:{number}: {m[0]!r} -> {instead}" for m in pattern.finditer(line)]
    return found


def texts_of(path: Path) -> list[tuple[int, str]]:
    """(line, text) of each comment and string of a Python file."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return [(t.start[0], t.string) for t in tokens if t.type in (tokenize.COMMENT, tokenize.STRING)]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_texts_of_a_package_are_plain(package: Path) -> None:
    files = sorted(package.rglob("*.py")) if package.is_dir() else [package]
    found = [f for path in files for line, text in texts_of(path) for f in faults(text, str(path.relative_to(ROOT)), line)]
    assert not found, f"{len(found)} phrases\n" + "\n".join(found)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in LOGS], ids=lambda p: p.name)
def test_texts_of_a_page_are_plain(page: Path) -> None:
    found = faults(page.read_text(), str(page.relative_to(ROOT)))
    assert not found, f"{len(found)} phrases\n" + "\n".join(found)


def test_the_patterns_find_what_they_are_for() -> None:
    for text in (
        "it cannot be had here",
        "waited in vain",
        "no run is there to evaluate",
        "training goes on",
        "Dress the model",
        "what it tells of you",
    ):
        assert faults(text, "x"), text
    assert not faults("It continues with the heart disease data set.", "x")
