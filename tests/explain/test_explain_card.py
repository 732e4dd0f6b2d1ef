"""The model card says what the records say, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tauon.artifacts import write_json
from tauon.explain.card import model_card
from tauon.explain.config import CardConfig
from tauon.report import Records

SLICE = {"text": "age is above <b>40</b>\n# and", "rows": 31, "error": 0.5, "error_outside": 0.125, "error_interval": [0.3, 0.7]}


def card_of(folder: Path, record: Any = None, **said: str) -> str:
    (folder / "explain").mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text("name: toy\ntask: classification\nmodel: {kind: mlp}\n")
    if record is not None:
        write_json(folder / "explain/explanation.json", record)
    return model_card(Records.read(folder), CardConfig(**said))


def test_a_card_of_nothing_says_so(tmp_path: Path) -> None:
    text = card_of(tmp_path)
    for words in ("Not evaluated.", "Not examined.", "## Explanations\n\nNone.", "No guarantee", "Its purpose is not stated."):
        assert words in text


def test_groups_on_which_it_fails_are_named_in_one_line(tmp_path: Path) -> None:
    text = card_of(tmp_path, {"opening": ['It answers "<script>".\nTwo.'], "slices": {"slices": [SLICE], "note": ""}})
    assert "- fails more where age is above &lt;b>40&lt;/b> # and: error 0.500 on 31 examples, 0.125 elsewhere\n" in text
    assert '- It answers "&lt;script>". Two.\n' in text and "<script" not in text


@pytest.mark.parametrize(
    ("slices", "says"),
    [
        ({"slices": [], "note": ""}, "No group was found on which the model fails"),
        ({"problem": "60 examples are too few"}, "Groups on which it fails were not searched: 60 examples are too few"),
    ],
)
def test_no_group_is_not_the_same_as_no_search(tmp_path: Path, slices: dict[str, Any], says: str) -> None:
    assert says in card_of(tmp_path, {"opening": [], "slices": slices})


def test_what_only_a_person_can_say_is_in_it(tmp_path: Path) -> None:
    text = card_of(tmp_path, purpose="Sorts iris flowers: never people.", licence="apache-2.0", language="en")
    assert "license: apache-2.0" in text and "Sorts iris flowers: never people." in text and "purpose is not stated" not in text
    hub = pytest.importorskip("huggingface_hub")
    found = hub.ModelCard(text).data.to_dict()
    assert found["license"] == "apache-2.0" and found["language"] == "en" and "mlp" in found["tags"]
