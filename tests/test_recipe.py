"""The recipe as a whole: what cannot work together is refused before any work, all of it at once; files are found and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tauon.config import dump, override, parse, read_yaml
from tauon.errors import RecipeError
from tauon.recipe import Recipe, differences, find_recipe, fingerprint, load_recipe, recipe_schema, shipped_recipes, to_yaml

TEXT = """
name: toy
data: {source: {kind: text, path: some.txt}, tokenizer: bytes, seq_len: 8}
task: language-modelling
model: {kind: gpt, layers: 1, width: 8, heads: 2}
optim: adamw
train: {steps: 3, batch: 2}
"""
TABLE = """
name: toy
data: {source: {kind: sklearn, name: iris}}
task: classification
model: mlp
optim: sgd
train: {epochs: 1}
"""


def problems(text: str, *assignments: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        parse(Recipe, override(read_yaml(text), assignments))
    return {p.path: p.message for p in caught.value.problems}


@pytest.mark.parametrize(
    ("text", "assignments", "key", "says"),
    [
        (TEXT, ["train.stesp=3"], "train.stesp", "did you mean 'steps'"),
        (TEXT, ["trian.steps=3"], "trian", "did you mean 'train'"),
        (TEXT, ["model.kind=gtp"], "model", "did you mean 'gpt'"),
        (TEXT, ["data.source.kind=txt"], "data.source", "did you mean 'text'"),
        (TEXT, ["optim.kind=adamm"], "optim", "did you mean 'adam'"),
        (TEXT, ["optim.schedule=cosin"], "optim.schedule", "did you mean 'cosine'"),
        (TEXT, ["task=classify"], "task", "Available: audio-classification, classification, "),
        (TEXT, ["train.steps=three"], "train.steps", "'three' is not a count"),
        (TEXT, ["train.steps=0"], "train.steps", "got 0"),
        (TEXT, ["train.steps=null"], "train.steps", "set exactly one of train.steps, epochs, tokens, time; got none"),
        (TEXT, ["train.time=2h"], "train.time", "got steps and time"),
        (TEXT, ["train.microbatch=3"], "train.microbatch", "3 does not divide batch 2"),
        (TEXT, ["train.batch=1999999973", "train.microbatch=1999999972"], "train.microbatch", "Use a divisor, for example 1"),
        (TEXT, ["train.ema=1"], "train.ema", "less than 1"),
        (TEXT, ["train.precision=fp8"], "train.precision", "'fp8'"),
        (TEXT, ["train.compile=perhaps"], "train.compile", "got 'perhaps'"),
        (TEXT, ["optim.lr=-1"], "optim.lr", "got -1"),
        (TEXT, ["optim.lr=yes"], "optim.lr", "got true"),
        (TEXT, ["data.workers=on"], "data.workers", "got true"),
        (TEXT, ["optim.lr=.nan"], "optim.lr", "finite"),
        (TEXT, ["optim.betas=[0.9, 1.5]"], "optim.betas.1", "less than 1"),
        (TEXT, ["optim.schedule.kind=cosine", "optim.schedule.warmup=1.5"], "optim.schedule.warmup", "is 1.5: expected a share below 100% or a whole number of steps"),
        (TEXT, ["optim.schedule.kind=cosine", "optim.schedule.warmup=100%"], "optim.schedule.warmup", "share below 100%"),
        (TEXT, ["optim.schedule.kind=wsd", "optim.schedule.decay=150%"], "optim.schedule.decay", "got 1.5"),
        (TEXT, ["model.width=9"], "model.heads", "2 heads do not divide width 9"),
        (TEXT, ["model.kv_heads=3"], "model.kv_heads", "do not divide 2 heads"),
        (TEXT, ["model.width=6"], "model.heads", "is odd"),
        (TEXT, ["model.layers=1M"], "model.layers", "less than or equal"),
        (TEXT, ["model.width=1T"], "model.width", "less than or equal"),
        (TEXT, ["model=mlp"], "model.kind", "mlp reads arrays"),
        (TEXT, ["task=classification"], "data.source", "provides text"),
        (TEXT, ["stages=[evaluate, train]"], "stages", "is not a valid order"),
        (TEXT, ["stages=[train, train]"], "stages", "each once"),
        (TEXT, ["stages=[]"], "stages", "is empty"),
        (TEXT, ["stages=[prepare, train]", "evaluate.confidence=90%"], "evaluate", "stage evaluate is not in stages"),
        (TEXT, ["stages=[prepare]", "track=[tensorboard]"], "track", "stage train is not in stages"),
        (TEXT, ["train.early_stopping={}", "data.split.validation=0"], "train.early_stopping", "needs validation data"),
        (TEXT, ["train.validate_every=2", "data.split.validation=0"], "train.validate_every", "needs validation data"),
        (TEXT, ["train.validate_examples=2", "data.split.validation=0"], "train.validate_examples", "needs validation data"),
        (TEXT, ["evaluate.resamples=3"], "evaluate.resamples", "at least 100"),
        (TEXT, ["evaluate.confidence=5%"], "evaluate.confidence", "got 0.05"),
        (TEXT, ["name=../../etc"], "name", "got '../../etc'"),
        (TEXT, ["seed=-1"], "seed", "got -1"),
        (TABLE, ["train.tokens=5k", "train.epochs=null"], "train.tokens", "has no tokens"),
        (TABLE, ["evaluate.prompts=[a]"], "evaluate.prompts", "is only for language models"),
        (TABLE, ["model.hidden=[16, 0]"], "model.hidden.1", "got 0"),
        (TABLE, ["model.kind=cnn", "model.channels=[12]"], "model.channels.0", "12 is not divisible into groups=8"),
        (TABLE, ["model.kind=cnn", "model.channels=[]"], "model.channels", "is empty"),
        (TABLE, ["optim.momentum=0", "optim.nesterov=true"], "optim.nesterov", "needs momentum above 0"),
        (TABLE, ["train.epochs=1e300"], "train.epochs", "less than or equal"),
        (TABLE, ["data.seq_len=8"], "data.seq_len", "is only for"),
        (TABLE, ["data.split.folds=1"], "data.split.folds", "leave no data to train on"),
    ],
)  # fmt: skip
def test_refused_with_the_key_and_the_way_out(text: str, assignments: list[str], key: str, says: str) -> None:
    found = problems(text, *assignments)
    assert key in found, found
    assert says in found[key]


def test_all_impossible_combinations_are_told_at_once() -> None:
    found = problems(
        TEXT, "train.time=1h", "train.microbatch=5", "model.width=9", "stages=[report, train]", "optim.schedule={kind: wsd, warmup: 2.5}"
    )
    assert sorted(found) == ["model.heads", "optim.schedule.warmup", "stages", "train.microbatch", "train.time"]


@pytest.mark.parametrize("stages", [["prepare"], ["evaluate"], ["report"], ["prepare", "train"], ["evaluate", "report"]])
def test_some_of_the_stages_may_be_asked_for(stages: list[str]) -> None:
    assert list(parse(Recipe, override(read_yaml(TABLE.replace("optim: sgd\n", "")), [f"stages={stages}"])).stages) == stages


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_fine_and_written_out_read_back_the_same(name: str, tmp_path: Path) -> None:
    tree = load_recipe(name)
    assert tree.name == name
    (tmp_path / "again.yaml").write_text(to_yaml(tree), encoding="utf-8")
    again = load_recipe(tmp_path / "again.yaml")
    assert again == tree
    assert to_yaml(again) == to_yaml(tree)
    assert json.loads(json.dumps(dump(tree))) == dump(tree)


def test_a_name_that_looks_like_a_number_survives_in_the_runs_recipe(tmp_path: Path) -> None:
    tree = parse(Recipe, override(read_yaml(TEXT), ["name='12e5'"]))
    (tmp_path / "12e5").mkdir()
    (tmp_path / "12e5" / "recipe.yaml").write_text(to_yaml(tree))
    assert load_recipe(tmp_path / "12e5").name == load_recipe(tmp_path / "12e5" / "recipe.yaml").name == "12e5"


def test_where_a_recipe_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(TEXT)
    assert find_recipe("run").read_text() == TEXT
    assert find_recipe("quickstart") == shipped_recipes()["quickstart"]
    (tmp_path / "empty").mkdir()
    for ref, says in [("empty", "is not a run"), ("quikstart", "Shipped recipes: "), ("x" * 5000, "cannot be opened"), ("a\0b", "")]:
        with pytest.raises(RecipeError) as caught:
            find_recipe(ref)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "expected keys and values, got NoneType"),
        (b"- 1\n- 2\n", "got list"),
        (b"hello", "got str"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: [1", "not valid YAML"),
        (TEXT.encode() + b"train: {steps: 5}\n", "'train' occurs twice"),
        (b"\xef\xbb\xbf" + TEXT.encode() + b"x: 1\n", "x: unknown key"),
    ],
)
def test_files_that_are_no_recipe_are_named(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_differences_name_the_key_and_both_values() -> None:
    a, b = (dump(parse(Recipe, override(read_yaml(TEXT), more))) for more in ([], ["optim.lr=1e-2", "model.layers=2"]))
    assert differences(a, b) == ["model.layers: 1 -> 2", "optim.lr: None -> 0.01"]


def test_a_stages_fingerprint_moves_with_its_sections_and_with_nothing_else() -> None:
    base = parse(Recipe, read_yaml(TEXT))
    same = parse(Recipe, override(read_yaml(TEXT), ["evaluate.samples=1", "name=other"]))
    other = parse(Recipe, override(read_yaml(TEXT), ["optim.lr=1e-2"]))
    seeded = parse(Recipe, override(read_yaml(TEXT), ["seed=1"]))
    sections = ("data", "optim")
    assert fingerprint(base, sections) == fingerprint(same, sections)
    assert len({fingerprint(r, sections) for r in (base, other, seeded)}) == 3


def test_the_schema_is_valid_and_accepts_what_ships() -> None:
    jsonschema: Any = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in shipped_recipes().values():
        validator.validate(read_yaml(path.read_text()))


@pytest.mark.parametrize(
    ("clean", "valid"), [("default", True), (["default"], True), ({"kind": "length", "min": 3}, True), ("defualt", False), ([3], False)]
)
def test_the_schema_takes_one_filter_in_place_of_a_list(clean: Any, valid: bool) -> None:
    jsonschema: Any = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    values = read_yaml(shipped_recipes()["quickstart"].read_text())
    values["data"]["clean"] = clean
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(values) is valid


def test_the_schema_knows_every_field_of_the_tree() -> None:
    schema = recipe_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert set(schema["$defs"]["optim.adamw"]["properties"]) >= {"kind", "lr", "betas"}
    assert schema["additionalProperties"] is False
    json.dumps(schema)


def test_a_part_without_kind_is_the_default_one() -> None:
    """`optim: {lr: 1e-3}`, and `optim.lr=1e-3` on a recipe that names no optimizer, change AdamW."""
    recipe = load_recipe("breast-cancer", ["optim={lr: 1e-3}", "optim.schedule.warmup=3"])
    assert (recipe.optim.kind_, recipe.optim.lr, recipe.optim.schedule.kind_) == ("adamw", 1e-3, "cosine")
    assert recipe.optim.schedule.warmup == 3
