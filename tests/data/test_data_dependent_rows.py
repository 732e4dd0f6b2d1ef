"""A random split of rows that belong together is refused or warned of, unless the recipe says what it wants."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tauon.config import parse
from tauon.data import DataConfig, prepare
from tauon.errors import DataError


def table(tmp_path: Path, header: str, rows: list[list[Any]]) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def visits(tmp_path: Path, name: str = "patient_id", each: int = 5, more: str = "") -> Path:
    rng = random.Random(0)
    rows = [[f"p{i // each:03d}", rng.gauss(0, 1), *([rng.randrange(20)] if more else []), rng.choice("ab")] for i in range(200)]
    return table(tmp_path, f"{name},x,{more + ',' if more else ''}y", rows)


def made(path: Path, **more: Any) -> Any:
    section: dict[str, Any] = {"source": {"kind": "csv", "path": str(path), "label": "y"}} | more
    return prepare(parse(DataConfig, section), seed=0, input_kind="arrays")


def test_a_random_split_of_patients_is_refused_with_the_keys_to_set(tmp_path: Path) -> None:
    path = visits(tmp_path)
    with pytest.raises(
        DataError, match=r"'patient_id' has the same value in 5\.0 rows .* data\.table\.group: patient_id.* or data\.split\.by: row"
    ):
        made(path)
    assert made(path, table={"group": "patient_id"}).facts["split"]["by"] == "group"
    assert made(path, split={"by": "row"}).facts["split"]["by"] == "row"
    assert made(path, split={"by": "position"}).facts["split"]["by"] == "position"
    assert made(path, validation={"kind": "csv", "path": str(path), "label": "y"}).validation is not None
    assert made(path, split={"validation": 0}).validation is None


@pytest.mark.parametrize(("name", "each"), [("order_id", 5), ("children", 5), ("account", 5), ("patient_id", 100), ("family_size", 4)])
def test_columns_that_may_be_features_or_hardly_repeat_are_not_refused(tmp_path: Path, name: str, each: int) -> None:
    made(visits(tmp_path, name, each))


def test_two_ids_that_repeat_are_a_warning(tmp_path: Path) -> None:
    splits = made(visits(tmp_path, "user_id", more="item_id"))
    assert any("other ids repeat" in line and "data.table.group: user_id" in line for line in splits.facts["warnings"])


def test_values_that_follow_their_predecessor_in_time_are_a_warning(tmp_path: Path) -> None:
    rng = random.Random(0)
    level, rows = 100.0, []
    for day in range(200):
        level += rng.gauss(0, 1)
        rows.append([f"2024-{1 + day // 28:02d}-{1 + day % 28:02d}", rng.gauss(0, 1), round(level, 3)])
    rng.shuffle(rows)
    splits = made(table(tmp_path, "date,x,y", rows), table={"dates": ["weekday"]})
    assert any("data.table.time: date" in line for line in splits.facts["warnings"])
    for row in rows:
        row[2] = rng.gauss(0, 1)
    assert not any(
        "data.table.time" in line
        for line in made(table(tmp_path, "date,x,y", rows), table={"dates": ["weekday"]}).facts.get("warnings", [])
    )
