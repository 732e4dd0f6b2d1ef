"""Whole documents, patients and customers protected: drawn together, few rows of each, clipped as one."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import latest_checkpoint, read_json
from tauon.data import DocumentDataset, MaskedDataset, TokenDataset
from tauon.errors import DataError, RecipeError
from tauon.models import materialize
from tauon.pipeline import run
from tauon.privacy import PrivateLoader, SamplingScheme, seeded_key
from tauon.privacy.units import Units, protect
from tauon.recipe import Recipe, load_recipe
from tauon.stages.context import Context
from toy import merged, text_recipe, words, write

PRIVATE: dict[str, Any] = {"noise_multiplier": 1.0, "delta": 1e-4, "generator": "seeded"}


def visits(folder: Path, patients: int = 60, missing: bool = False) -> Path:
    """A table of visits: one to five of each patient, whose number says nothing of the target."""
    draw = random.Random(1)
    path = folder / "visits.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["patient", "age", "pressure", "ill"])
        for patient in range(patients):
            for _ in range(1 + patient % 5):
                age, pressure = draw.gauss(50, 10), draw.gauss(120, 10)
                out.writerow(["" if missing and patient == 7 else f"p{patient}", age, pressure, "yes" if age + pressure > 170 else "no"])
    return path


def table(folder: Path, **sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "visits", "seed": 3,
        "data": {
            "source": {"kind": "csv", "path": str(visits(folder)), "label": "ill"}, "table": {"group": "patient"},
            "split": {"test": "20%", "validation": 0}, "cache": str(folder / "cache"),
        },
        "task": "classification", "model": {"kind": "mlp", "hidden": [4]}, "optim": {"kind": "sgd", "lr": 0.5, "schedule": "constant"},
        "train": {"steps": 1, "batch": 12, "checkpoint_every": 1, "compile": False, "precision": "fp32"},
        "privacy": {**PRIVATE, "unit": "group", "rows_per_unit": 3}, "evaluate": {"resamples": 100},
    }  # fmt: skip
    return load_recipe(write(folder / "recipe.yaml", merged(base, sections)))


def splits_of(recipe: Recipe, folder: Path) -> Any:
    done = run(recipe, root=folder / "runs", stages=("prepare",))
    return Context(recipe, done, lambda *_, **__: None).splits


# ------------------------------------------------------------------------------------------------ rows of units


def test_all_rows_of_a_small_unit_and_a_draw_of_a_large_one() -> None:
    units = Units(np.array([7, 7, 3, 7, 7, 7, 3, 9]), 3)  # 3: rows 2, 6; 7: 0, 1, 3, 4, 5; 9: row 7
    assert len(units) == 3 and units.cut == 1
    seen: set[int] = set()
    for turn in range(50):
        small, large, single = units.rows(np.array([0, 1, 2]), lambda unit, turn=turn: np.random.default_rng([turn, unit])).tolist()
        assert small == [2, 6, -1] and single == [7, -1, -1]
        assert len(set(large)) == 3
        seen |= set(large)
    assert seen == {0, 1, 3, 4, 5}


def test_a_units_rows_do_not_depend_on_the_other_units(tmp_path: Path) -> None:
    """One unit's data set to nothing, or cut to one row, leaves what is drawn of all others as it was."""
    groups = np.repeat(np.arange(12), 5)
    whole, cut = (
        PrivateLoader(_Rows(60), batch=6, scheme=SamplingScheme("poisson", bytes(32), units=Units(g, 2))) for g in (groups, groups)
    )
    cut.units = Units(np.concatenate([groups[:16], np.arange(100, 104), groups[20:]]), 2)
    for step in range(20):
        chosen = whole.chosen(step)
        assert np.array_equal(chosen, cut.chosen(step))
        kept = chosen != 3
        a, b = (loader.units.rows(chosen, lambda u, at=loader, step=step: at._generator(f"rows/{step}/{u}")) for loader in (whole, cut))
        assert np.array_equal(a[kept], b[kept]) and np.array_equal(whole._rows_of_units(step), a)


class _Rows:
    """As many examples as it says."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


@pytest.mark.parametrize("views", [1, 2])
def test_ranks_together_have_the_rows_of_one_process(views: int, tmp_path: Path) -> None:
    data = splits_of(table(tmp_path), tmp_path).train
    protected = protect(data, "group", 3)
    assert protected.units is not None

    def loader(rank: int, world: int) -> PrivateLoader:
        scheme = SamplingScheme("poisson", b"k" * 32, views=views, units=protected.units)
        return PrivateLoader(protected.dataset, batch=12, scheme=scheme, rank=rank, world=world)

    one, ranks = loader(0, 1), [loader(r, 2) for r in range(2)]
    assert one.rate(0) == 12 / len(protected) and one.rows_per_unit == 3 * views and one.steps_for(2) == 8  # of 48 patients
    for step in range(6):
        whole = one.batch_at(step)
        assert len(whole) == 3 * views * max(1, one.size(step))
        there = whole.weights > 0
        assert whole.index is not None
        for unit, rows, present in zip(
            one.chosen(step), whole.index.view(-1, 3 * views), there.view(-1, 3 * views), strict=one.size(step) > 0
        ):
            mine = data.groups[rows[present].numpy()]
            assert set(mine.tolist()) == {np.unique(data.groups)[unit]}
            assert present.sum() == views * min(3, (data.groups == mine[0]).sum())
        parts = [r.batch_at(step) for r in ranks]
        found = torch.cat([p.index[p.weights > 0] for p in parts])
        assert found.tolist() == whole.index[there].tolist()
        assert one.expected(step) == ranks[1].expected(step) == 12  # what is counted tells nothing of the draw


def test_a_step_is_the_mean_over_a_unit_s_rows_clipped_unit_by_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a loop over units; the noise is taken out, to see what it hides."""
    monkeypatch.setattr("tauon.privacy.private.noise_like", lambda p, name, draw: torch.zeros_like(p))
    recipe = table(tmp_path, privacy={"clipping": {"kind": "flat", "norm": 0.5}}, train={"microbatch": 6})
    done = run(recipe, root=tmp_path / "runs", stages=("prepare", "train"))
    checkpoint = latest_checkpoint(done.checkpoints)
    assert checkpoint is not None
    after = checkpoint.tensors("model")
    context = Context(recipe, done, lambda *_, **__: None)
    protected = protect(context.splits.train, "group", 3)
    loader = PrivateLoader(protected.dataset, batch=12, scheme=SamplingScheme("poisson", seeded_key(3), units=protected.units))
    batch, model = loader.batch_at(0), materialize(context.model, seed=3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    total = {n: torch.zeros_like(p) for n, p in before.items()}
    assert (batch.weights == 0).any() and loader.size(0) > 1
    for i in range(0, len(batch), 3):
        there = batch.weights[i : i + 3] > 0
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.inputs[i : i + 3][there]), batch.targets[i : i + 3][there]).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        for n, g in grads.items():
            total[n] += g * min(1.0, 0.5 / float(norm))
    for n in total:
        assert torch.allclose(after[n], before[n] - 0.5 * total[n] / 12, atol=1e-5), n


# ------------------------------------------------------------------------------------------------ tables


def test_the_column_of_a_group_is_no_feature_and_groups_are_held_out_whole(tmp_path: Path) -> None:
    splits = splits_of(table(tmp_path), tmp_path)
    assert splits.train.spec.input_shape == (2,) and splits.preprocess["features"] == ["age", "pressure"]
    assert splits.facts["split"]["by"] == "group"
    assert len(np.unique(splits.train.groups)) == 48 and len(splits.train) + len(splits.test) == 180


def test_a_run_promises_for_patients(tmp_path: Path) -> None:
    recipe = table(tmp_path, train={"steps": 5, "checkpoint_every": 5})
    visits_of = np.unique(splits_of(recipe, tmp_path).train.groups, return_counts=True)[1]
    done = run(recipe, root=tmp_path / "runs")
    record = read_json(done.folder / "privacy.json")
    assert record["guarantee"]["unit"].startswith("patient (all rows")
    assert (record["units"], record["rows_per_unit"]) == (48, 3)
    told = {d["path"]: d for d in read_json(done.folder / "derived.json")}  # for the house: privacy.json tells no exact count but N
    assert f"{(visits_of > 3).sum()} of 48 units have more" in told["privacy.rows_per_unit"]["source"]
    assert "patient (all rows" in (done.folder / "report.html").read_text()


def test_a_group_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'doctor' is not among the columns that are read: patient, age, pressure"):
        splits_of(table(tmp_path, data={"table": {"group": "doctor"}}), tmp_path)
    with pytest.raises(RecipeError, match=r"privacy.unit.*data.table.group"):
        run(table(tmp_path, data={"table": {"group": None}}), root=tmp_path / "runs", stages=("prepare", "train"))
    with pytest.raises(RecipeError, match=r"rows_per_unit.*a unit is one row"):
        table(tmp_path, privacy={"unit": "example"})
    with pytest.raises(RecipeError, match=r"plants single examples, but the protected unit is group"):
        table(tmp_path, privacy={"audit": {"canaries": 5}})
    other = tmp_path / "other"
    other.mkdir()
    path = str(visits(other, missing=True))
    with pytest.raises(DataError, match=r"column 'patient' is missing"):
        splits_of(table(tmp_path, data={"source": {"path": path}, "cache": str(other / "cache")}), tmp_path)
    with pytest.raises(RecipeError, match=r"document needs plain text data"):
        run(table(tmp_path, privacy={"unit": "document"}, name="other"), root=tmp_path / "runs", stages=("prepare", "train"))


def test_a_budget_for_patients_is_not_for_rows(tmp_path: Path) -> None:
    budget = {"budget": {"epsilon": 1000, "delta": 1e-4}}
    run(table(tmp_path, privacy=budget), root=tmp_path / "runs", stages=("prepare", "train"))
    rows = table(tmp_path, name="rows", privacy={**budget, "unit": "example", "rows_per_unit": 1})
    with pytest.raises(RecipeError, match=r"is example, but this data set's budget is for one patient"):
        run(rows, root=tmp_path / "runs", stages=("prepare", "train"))


# ------------------------------------------------------------------------------------------------ text


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(f"{i} " + words(3 + 2 * (i % 7), seed=i))
    return folder


def text(folder: Path, documents: Path, **sections: Any) -> Recipe:
    base = {
        "data": {"source": {"path": str(documents)}, "split": {"validation": "20%", "by": "document"}},
        "privacy": {**PRIVATE, "unit": "document"},
    }
    return load_recipe(text_recipe(folder, **merged(base, sections)))  # fmt: skip


def test_every_token_of_a_document_is_predicted_once_and_no_sequence_has_two_documents(tmp_path: Path, documents: Path) -> None:
    stream = splits_of(text(tmp_path, documents), tmp_path).train
    assert isinstance(stream, TokenDataset)
    rows = DocumentDataset(stream.shards, stream.tokenizer, 16)
    batch = rows.batch(np.arange(len(rows)))
    for number, tokens in enumerate(stream.shards.documents()):
        mine = np.flatnonzero(rows.document == number)
        targets, weights, inputs = (t[mine].reshape(-1) for t in (batch.targets, batch.weights, batch.inputs))
        assert targets[weights > 0].tolist() == [*tokens.tolist(), stream.shards.bos]
        assert inputs[weights > 0].tolist() == [stream.shards.bos, *tokens.tolist()]
    assert len(np.unique(rows.document)) == stream.n_documents
    assert torch.equal(rows.batch(np.array([5]), epoch=3).inputs, batch.inputs[5:6])


@pytest.mark.parametrize("task", ["language-modelling", "masked-language-modelling"])
def test_a_run_promises_for_documents(task: str, tmp_path: Path, documents: Path) -> None:
    more: dict[str, Any] = {}
    if task != "language-modelling":
        more = {"model": {"kind": "bert", "layers": 1, "width": 32, "heads": 2}, "evaluate": {"samples": None, "prompts": None}}
    recipe = text(tmp_path, documents, task=task, privacy={"rows_per_unit": 2}, **more)
    done = run(recipe, root=tmp_path / "runs", stages=("prepare", "train"))
    record = read_json(done.folder / "privacy.json")
    train = Context(recipe, done, lambda *_, **__: None).splits.train
    assert record["guarantee"]["unit"] == "document"
    assert record["units"] == (train.tokens if isinstance(train, MaskedDataset) else train).n_documents


def test_windows_that_are_protected_hold_still(tmp_path: Path, documents: Path) -> None:
    """A window that begins elsewhere in each epoch would be two of them in turn."""
    train = splits_of(text(tmp_path, documents), tmp_path).train
    still = protect(train, "example", 1)
    assert still.name == "sequence of 16 tokens"
    moved = [torch.equal(d.batch(np.arange(4), epoch=0).inputs, d.batch(np.arange(4), epoch=1).inputs) for d in (train, still.dataset)]
    assert moved == [False, True]
