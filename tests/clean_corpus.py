"""Texts for the tests of cleaning: paragraphs of WikiText where the mirror is, prose made up otherwise, and the same with faults planted."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path
from typing import Any

from tauon.config import parse
from tauon.data import DataConfig, TokenDataset

WORDS = [
    "the",
    "river",
    "of",
    "stone",
    "and",
    "light",
    "with",
    "a",
    "quiet",
    "morning",
    "that",
    "people",
    "have",
    "to",
    "be",
    "under",
    "when",
    "they",
    "walk",
    "along",
    "old",
    "bridges",
    "between",
    "small",
    "towns",
    "where",
    "nobody",
    "asked",
    "for",
    "more",
    "than",
    "bread",
    "water",
    "paper",
    "music",
    "or",
    "another",
    "long",
    "summer",
    "before",
    "winter",
]


def sentence(draw: random.Random) -> str:
    words = draw.choices(WORDS, k=draw.randint(6, 18))
    return " ".join(words).capitalize() + draw.choice([".", ".", ".", "?", "!"])


def prose(draw: random.Random, paragraphs: int = 3) -> str:
    """Text that every default filter keeps as it is."""
    return "\n".join(" ".join(sentence(draw) for _ in range(draw.randint(4, 7))) for _ in range(paragraphs))


def wikitext(n: int) -> list[str]:
    """`n` paragraphs."""
    path = Path(os.environ.get("TAUON_DATA", "none")) / "wikitext-2" / "valid.txt.gz"
    draw = random.Random(0)
    if not path.is_file():
        return [prose(draw, 1) for _ in range(n)]
    found = [line for line in gzip.decompress(path.read_bytes()).decode().split("\n") if len(line) > 80]
    return draw.sample(found, n)


def faulty(draw: random.Random) -> str:
    """Prose with one of the faults that the published rules are about, or with several."""
    text = prose(draw, draw.randint(1, 4))
    for _ in range(draw.randint(0, 3)):
        lines, words = text.split("\n"), text.split(" ")
        at = draw.randrange(len(words))
        phrase = words[at : at + draw.randint(2, 12)]
        text = draw.choice(
            [
                "\n".join([*lines, *lines[: draw.randint(1, len(lines))]]),
                "\n\n".join([*lines, lines[0], lines[0]]),
                " ".join(words[:at] + phrase * draw.randint(2, 9) + words[at:]),
                text + "\n" + "\n".join(draw.choice(["Home", "Read more...", "- item", "• one", "Terms of use.", "We use cookies, you know."]) for _ in range(9)),
                text.replace(".", draw.choice(["", "...", "…", "!?", "[1].", " . "])),
                text.replace(" ", draw.choice(["", "  ", "\n", " # ", " ... ", " 12 "]), draw.randint(1, 80)),
                text + draw.choice(["\nlorem ipsum dolor sit amet.", "\nfunction() { return 1; }.", "\nPlease enable java[2]script now.", "\n" + "x" * 1200 + " y z."]),
                text[: draw.randint(0, 300)],
                text.upper(),
                "\n".join(line[:25] for line in text.split(". ")),
            ]
        )  # fmt: skip
    return text


def config(**values: Any) -> DataConfig:
    return parse(DataConfig, values)


def decoded(data: Any) -> list[str]:
    """The documents of a data set of tokens."""
    assert isinstance(data, TokenDataset)
    return [data.tokenizer.decode(d) for d in data.shards.documents()]
