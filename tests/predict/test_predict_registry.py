"""A kind of data from outside brings its replay; what has none, or lacks what is needed, is refused with the way out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tauon.artifacts import steps_in
from tauon.data import Replay, Rows, register_replay, replay_of
from tauon.data.replay import base
from tauon.errors import DataError, RunError
from tauon.pipeline import run
from tauon.predict import Predictor, predict_rows
from tauon.recipe import load_recipe
from tauon.types import Batch
from toy import table_recipe


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_KINDS", dict(base._KINDS))


@pytest.mark.usefixtures("kinds")
def test_a_kind_from_outside_joins_by_registration(tmp_path: Path) -> None:
    @register_replay("moons")
    @dataclass
    class MoonReplay(Replay):
        columns = ("angle",)  # type: ignore[assignment]

        def batch(self, rows: Rows) -> Batch:
            rows.need(self.columns)
            angle = np.asarray(rows.columns["angle"], np.float32)
            x = np.stack([np.cos(angle), np.sin(angle), angle, angle], axis=1)
            return Batch(torch.from_numpy(x), self.filler(len(x)), torch.ones(len(x)))

    folder = run(load_recipe(table_recipe(tmp_path)), root=tmp_path / "runs").folder
    predictor = Predictor.open(folder)
    predictor.replay = replay_of({"kind": "moons", "targets": "classes"})
    (answer,) = predictor.records([{"angle": 0.5}])
    x = torch.tensor([[np.cos(0.5), np.sin(0.5), 0.5, 0.5]], dtype=torch.float32)
    with torch.no_grad():
        expected = predictor.trained.model(x).softmax(-1)[0].tolist()
    assert [v for k, v in answer.items() if k.startswith("probability")] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(DataError, match="'angle'"):
        predictor.records([{"angel": 0.5}])
    with pytest.raises(ValueError, match="already"):
        register_replay("table")(MoonReplay)


def test_a_kind_that_nobody_registered_is_named_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"'stars'.*register_replay"):
        replay_of({"kind": "stars"})


def test_a_checkpoint_is_opened_as_well_as_its_run(tmp_path: Path) -> None:
    folder = run(load_recipe(table_recipe(tmp_path)), root=tmp_path / "runs").folder
    rows = [dict.fromkeys(Predictor.open(folder).columns, 1.0)]
    steps = dict(steps_in(folder / "checkpoints"))
    assert predict_rows(steps[max(steps)], rows) == predict_rows(folder, rows)
    assert predict_rows(steps[min(steps)], rows) != predict_rows(folder, rows)
    with pytest.raises(RunError, match="is not a run"):
        predict_rows(tmp_path / "nowhere", rows)
