"""What docs/data.md shows, works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tauon.config import parse, read_yaml, registered
from tauon.data import DataConfig, SourceConfig

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_each_section_shown_is_valid(block: str) -> None:
    parse(DataConfig, read_yaml(block))


def test_the_source_shown_works() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, object] = {"__name__": "shown"}
    try:
        exec(block, space)  # our own page
        (document,) = parse(SourceConfig, {"kind": "primes", "upto": 20}).documents()
        assert document.text == "2 3 5 7 11 13 17 19"
    finally:
        SourceConfig._members.pop("primes", None)


@pytest.mark.parametrize("family", ["source", "tokenizer", "augment"])
def test_every_registered_part_is_on_the_page(family: str) -> None:
    assert [k for k in registered(family) if f"`{k}`" not in PAGE] == []
