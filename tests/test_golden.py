"""Loss curves of small recipes are those that were kept: a change that was not meant shows here, whatever it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golden_recipes import HERE, RECIPES, curve


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_curve_is_the_one_that_was_kept(name: str, tmp_path: Path) -> None:
    """To rounding: other processors add up in another order. After a change that is meant: python tests/golden_recipes.py, and read the difference."""
    kept = json.loads((HERE / "golden" / f"{name}.json").read_text())
    found = curve(name, tmp_path)
    assert found["train"][0] > 1.05 * found["train"][-1]  # it learns, so that there is something to compare
    for part in ("train", "validation"):
        assert found[part] == pytest.approx(kept[part], rel=2e-4), part
