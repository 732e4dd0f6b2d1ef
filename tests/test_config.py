"""Values with units, the typed tree, YAML and a.b=c: what is taken, and how what is not taken is refused."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
import yaml
from pydantic import Field

from tauon.config import (
    Bytes,
    Config,
    Count,
    Duration,
    Fraction,
    Registered,
    dump,
    json_schema,
    override,
    parse,
    read_yaml,
    register,
    registered,
    unread_keys,
    write_yaml,
)
from tauon.errors import RecipeError


class Animal(Registered, family="test-animal"):
    """A family of this test's own."""

    legs: Count = Field(4, ge=0)
    """How many it stands on."""


@register("cat")
class Cat(Animal):
    """A cat."""

    lives: Count = Field(9, ge=1)
    """How many it has."""


@register("bird")
class Bird(Animal):
    """A bird."""

    legs: Count = Field(2, ge=0)
    friend: Animal = Cat()
    """Another animal."""

    def problems(self) -> Any:
        if self.raw_value("legs") > 2:
            yield "legs", f"{self.raw_value('legs')} is more than birds have. Take 2."


class Units(Config):
    """One field of each kind."""

    count: Count = 1
    """c"""
    size: Bytes = 1
    """b"""
    time: Duration = 1.0
    """d"""
    share: Fraction = 0.5
    """f"""
    either: Fraction | Count = 0.5
    """e"""
    paths: str | tuple[str, ...] = "x"
    """p"""


class House(Config):
    """A node with a family, a list and a node below."""

    pet: Animal = Cat()
    """p"""
    others: tuple[Animal, ...] = ()
    """o"""
    units: Units = Units()
    """u"""


def refused(data: Any, cls: type[Config] = House) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        parse(cls, data)
    return {p.path: p.message for p in caught.value.problems}


# ------------------------------------------------------------------------------------------------ units


@pytest.mark.parametrize("text", ["64", "64k", "1.001k", "0.29k", "1.5M", "2.3m", "3G", "1t", "1e3", "1_000", "2e2k", "7b"])
def test_counts_are_the_decimal_number_times_its_power_of_ten(text: str) -> None:
    number = text.rstrip("kmgbtMGT")
    powers = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
    exact = Decimal(number.replace("_", "")) * 10 ** powers[text[len(number) :].lower()]
    assert parse(Units, {"count": text}).count == exact


@pytest.mark.parametrize(("text", "bits"), [("64Ki", 16), ("1Mi", 20), ("2Gi", 31)])
def test_binary_counts(text: str, bits: int) -> None:
    assert parse(Units, {"count": text}).count == 1 << bits


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("size", "1GiB", 2**30),
        ("size", "1GB", 10**9),
        ("size", "512", 512),
        ("time", "1500ms", 1.5),
        ("time", "2h", 7200.0),
        ("time", "1.5d", 129600.0),
        ("time", "90", 90.0),
        ("share", "5%", 0.05),
        ("share", "0.05", 0.05),
        ("share", "12.5 %", 0.125),
        ("either", "5%", 0.05),
        ("either", "2k", 2000),
        ("either", 200, 200),
        ("either", 0.1, 0.1),
    ],
)
def test_units(key: str, text: Any, value: float) -> None:
    assert getattr(parse(Units, {key: text}), key) == value


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("count", "1.0001k", "not a whole number"),
        ("count", "5 apples", "'apples' of a count is not one of k, m"),
        ("count", "many", "write it like 64, 64k"),
        ("count", True, "got true (in YAML also yes, on, no, off), expected a number"),
        ("count", 1.5, "1.5"),
        ("count", "1e99999", "not a count"),
        ("count", "9" * 5000, "not a count"),
        ("count", 10**30, "largest count"),
        ("count", 1e30, "largest count"),
        ("count", math.inf, "inf"),
        ("count", math.nan, "nan"),
        ("count", "-5", "not a count"),
        ("count", None, "None"),
        ("count", [1], "[1]"),
        ("size", "1 parsec", "'parsec' of a size"),
        ("size", False, "got false (in YAML also"),
        ("time", "2 fortnights", "'fortnights' of a time"),
        ("time", math.inf, "finite"),
        ("share", "5 percent", "'percent' of a share"),
        ("share", "five", "write it like 5% or 0.05"),
    ],
)
def test_wrong_values_are_named_with_the_key_and_an_example(key: str, value: Any, says: str) -> None:
    problems = refused({"units": {key: value}})
    assert list(problems) == [f"units.{key}"]
    assert says in problems[f"units.{key}"]


def test_a_value_that_may_be_two_things_is_refused_once_at_its_own_key() -> None:
    problems = refused({"units": {"paths": 3, "either": "abc"}})
    assert sorted(problems) == ["units.either", "units.paths"]
    assert "string" in problems["units.paths"] and "tuple" in problems["units.paths"] and "got 3" in problems["units.paths"]
    assert sorted(refused({"units": {"paths": ["a", 3]}})) in (["units.paths"], ["units.paths", "units.paths.1"])


# ------------------------------------------------------------------------------------------------ the tree


def test_every_problem_is_listed_at_once_each_at_its_dotted_key() -> None:
    problems = refused(
        {
            "pet": {"kind": "cat", "lifes": 3, "legs": -1},
            "others": ["cat", {"kind": "bird", "friend": {"kind": "cta"}}, {"legs": 2}, 7],
            "unts": {},
        }
    )
    assert sorted(problems) == ["others.1.friend", "others.2", "others.3", "pet.legs", "pet.lifes", "unts"]
    assert "did you mean 'lives'" in problems["pet.lifes"]
    assert "did you mean 'units'" in problems["unts"]
    assert "did you mean 'cat'" in problems["others.1.friend"]
    assert "bird | cat" in problems["others.2"] and "{" not in problems["others.3"]


def test_a_nodes_own_problems_come_with_its_path() -> None:
    assert refused({"others": ["cat", {"kind": "bird", "legs": 4}]}) == {"others.1.legs": "4 is more than birds have. Take 2."}


def test_yaml_python_and_assignments_build_the_same_tree() -> None:
    from_yaml = parse(House, read_yaml("pet: {kind: bird, legs: 1}\nunits: {count: 2k}\n"))
    from_python = House(pet=Bird(legs=1), units=Units(count=2000))
    from_assignments = parse(House, override({}, ["pet=bird", "pet.legs=1", "units.count=2k"]))
    assert from_yaml == from_python == from_assignments


def test_the_complete_tree_written_out_reads_back_equal_and_asks_for_nothing() -> None:
    tree = parse(
        House, {"pet": "bird", "others": [{"kind": "cat", "lives": 3}], "units": {"paths": ["1e3", "null", "a: b", "=", "\u2028é"]}}
    )
    again = parse(House, read_yaml(write_yaml(dump(tree))))
    assert again == tree
    assert unread_keys(again) == unread_keys(tree) == ["others", "pet", "units"]


@pytest.mark.parametrize(
    "text", ["1e3", "2E-5", "12e5", "1e400", "0x1F", "1_000", "1:30", "on", "~", "2024-01-01", "", " a", "=", "<<", ".inf"]
)
def test_strings_survive_writing_and_reading(text: str) -> None:
    assert read_yaml(write_yaml({"a": [text]})) == {"a": [text]}


def test_two_classes_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="is already"):

        @register("cat")
        class Lion(Animal):
            """Not a cat of ours."""

    assert registered("test-animal")["cat"] is Cat


def test_what_was_set_and_not_read_is_listed() -> None:
    tree = parse(House, {"pet": {"kind": "cat", "lives": 3, "legs": 3}, "units": {"count": 2, "size": 4096}})
    assert unread_keys(tree) == ["pet", "units"]
    assert isinstance(tree.pet, Cat)
    assert (tree.pet.lives, tree.units.raw_value("size")) == (3, 4096)
    assert unread_keys(tree) == ["pet.legs", "units.count", "units.size"]  # a look is no use


def test_a_value_cannot_be_changed_in_place() -> None:
    with pytest.raises(Exception, match="frozen"):
        Units().count = 5  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------ YAML


def test_numbers_are_read_as_people_mean_them() -> None:
    assert read_yaml("[1e-3, 1E3, -2e+2, 1.5e2, 0.1]") == [1e-3, 1e3, -2e2, 150.0, 0.1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "'a' occurs twice at line 3"),
        ("a: [b", "at line 1"),
        ("a: !!python/object:os.system x", "tag"),
        ("a: !!bool maybe", "does not fit its tag"),
        ("a: !!int ''", "does not fit its tag"),
        ("a: !!timestamp x", "does not fit its tag"),
        ("a: 2024-13-45", "does not fit its tag"),
        ("{a: b}: 1", "unhashable"),
        ("a: \x00", "not valid YAML"),
        ("a: &x {b: *x}", "levels deep"),
        ("[" * 80 + "]" * 80, "levels deep"),
        ("[" * 5000, "too deeply"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)), "over 100,000 values"),
    ],
)  # fmt: skip
def test_what_is_not_yaml_or_no_recipe_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "file.yaml")
    assert says in str(caught.value) and str(caught.value).startswith("file.yaml: ")
    assert len(str(caught.value)) < 400


def test_merged_keys_are_not_keys_given_twice() -> None:
    text = "base: &b {x: 1, y: 2}\nchild: &c {<<: *b, x: 3}\ngrandchild: {<<: *c, y: 4}\n"
    assert read_yaml(text) == yaml.safe_load(text)


# ------------------------------------------------------------------------------------------------ a.b=c


def test_assignments_reach_into_nodes_names_and_lists() -> None:
    data = {"pet": "cat", "others": ["cat", {"kind": "bird"}]}
    changed = override(data, ["pet.lives=3", "others.1.friend.lives=2", "others.0=bird", "units.count=5"])
    assert changed == {
        "pet": {"kind": "cat", "lives": 3},
        "others": ["bird", {"kind": "bird", "friend": {"lives": 2}}],
        "units": {"count": 5},
    }
    assert data == {"pet": "cat", "others": ["cat", {"kind": "bird"}]}  # the original is as it was


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("count", "write it like train.steps=100"),
        ("=5", "write it like train.steps=100"),
        ("others.5=cat", "others: has 2 items"),
        ("others.²=cat", "others: has 2 items"),
        ("others." + "9" * 5000 + "=cat", "others: has 2 items"),
        ("others.-1=cat", "others: has 2 items"),
        ("pet=[", "not valid YAML"),
        ("x" * 5000, "write it like train.steps=100"),
        ("pet=" + "[" * 5000, "too deeply"),
    ],
)
def test_assignments_that_mean_nothing(text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override({"others": ["cat", "cat"]}, [text])
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


# ------------------------------------------------------------------------------------------------ JSON Schema


def test_the_schema_names_every_member_and_refers_to_nothing_that_is_missing() -> None:
    schema = json_schema(House)
    text = str(schema)
    assert "test-animal.cat" in schema["$defs"] and "test-animal.bird" in schema["$defs"]
    assert schema["$defs"]["test-animal.cat"]["properties"]["kind"] == {"const": "cat"}
    refs = {part.split("'")[0] for part in text.split("#/$defs/")[1:]}
    assert refs <= set(schema["$defs"])
    assert "x-family" not in text
