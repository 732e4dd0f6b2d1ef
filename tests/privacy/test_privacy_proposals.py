"""What is proposed for private training: only where settings are far from it, with the reason; and a run without a step promises nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauon.artifacts import read_json
from tauon.errors import TrainingError
from tauon.pipeline import run
from tauon.privacy.proposals import ENOUGH, propose
from tauon.recipe import load_recipe


@given(st.integers(100, 10**6), st.integers(1, 4096), st.integers(1, 10**5), st.floats(0.3, 20))
def test_a_proposed_batch_is_larger_and_at_most_a_quarter_of_the_data(units: int, batch: int, steps: int, multiplier: float) -> None:
    found = {key: value for key, value, _ in propose(units, batch, steps, multiplier)}
    if "train.batch" in found:
        assert 1.5 * batch <= found["train.batch"] <= units / 4 and multiplier < ENOUGH and found["optim.lr"] > 1
    assert all(reason for _, _, reason in propose(units, batch, steps, multiplier))


def test_settings_that_suit_private_training_are_left_alone() -> None:
    assert propose(30_000, 2_048, 300, 3.0) == []


def recipe(tmp_path: Path, *more: str) -> list[str]:
    rows = "\n".join(f"{i % 17},{i % 5},{i % 2}" for i in range(800))
    (tmp_path / "t.csv").write_text("a,b,y\n" + rows)
    (tmp_path / "r.yaml").write_text(
        f"name: r\ndata: {{source: {{kind: csv, path: {tmp_path / 't.csv'}, label: y, target: class}}, cache: {tmp_path / 'cache'}, "
        "normalize: bounds, bounds: {'*': [0, 20]}}\ntask: classification\nmodel: logistic\noptim: {kind: sgd, lr: 0.5}\n"
        f"train: {{steps: 4, batch: 8}}\nprivacy: {{target_epsilon: 8, generator: seeded, ledger: {tmp_path / 'ledger'}}}\n"
    )
    return [str(tmp_path / "r.yaml"), *more]


def test_proposals_are_printed_with_their_reason(tmp_path: Path) -> None:
    done = run(load_recipe(recipe(tmp_path)[0]), root=tmp_path / "runs", stages=("prepare", "train"))
    derived = {d["path"]: d for d in read_json(done.folder / "derived.json")}
    assert (
        derived["privacy: consider train.batch"]["value"] > 8 and "noise multiplier" in derived["privacy: consider train.batch"]["source"]
    )
    assert derived["privacy.epsilon"]["source"].startswith("planned")


def test_a_run_that_failed_before_its_first_step_promises_no_epsilon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise TrainingError("out of memory at step 1")

    monkeypatch.setattr("tauon.stages.train.train", fails)
    notes: list[str] = []
    with pytest.raises(TrainingError):
        run(
            load_recipe(recipe(tmp_path)[0]), root=tmp_path / "runs", stages=("prepare", "train"),
            on_event=lambda kind, **event: notes.append(str(event.get("message"))),
        )  # fmt: skip
    folder = tmp_path / "runs" / "r"
    assert not (folder / "privacy.json").exists() and "epsilon" not in (read_json(folder / "manifest.json").get("privacy") or {})
    assert any("no step was made, so no epsilon was spent, and none is promised" in note for note in notes)
