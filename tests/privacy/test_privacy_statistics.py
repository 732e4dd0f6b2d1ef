"""Means and deviations with noise: counted with the steps, drawn once, the same in training, after a resume, in evaluation and at inference."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toy import contents, table_recipe

pytest.importorskip("dp_accounting")
pytest.importorskip("sklearn")

from tauon.artifacts import RunFolder, latest_checkpoint, load_checkpoint, read_json
from tauon.config import parse
from tauon.data import DataConfig, Normalizer, inputs_from_records, prepare
from tauon.errors import DataError, Interrupted, PrivacyError, RecipeError, RunError
from tauon.pipeline import run
from tauon.privacy.accounting import Release
from tauon.privacy.ledger import find_ledgers
from tauon.privacy.noise import NoiseSource
from tauon.privacy.statistics import StatisticsConfig, apply_statistics, draw_statistics
from tauon.recipe import Recipe, load_recipe
from tauon.stages.context import Context
from tauon.testing.processes import run_processes

dp_accounting: Any = pytest.importorskip("dp_accounting")
BOUNDS = {"*": [0, 8], "sepal length (cm)": [4, 8]}
IRIS = {"source": {"kind": "sklearn", "name": "iris"}, "normalize": "bounds", "bounds": BOUNDS}
DATA = {"normalize": "standard", "bounds": BOUNDS, "split": {"validation": 0.1, "test": 0.2}}
PRIVACY = {"target_epsilon": 4.0, "delta": 1e-3, "generator": "seeded", "statistics": {"noise": 4.0}}


def toy(folder: Path, *assigned: str, data: Any = None, privacy: Any = None, **more: Any) -> Recipe:
    made = table_recipe(folder / "recipes", data=DATA | (data or {}), privacy=PRIVACY | (privacy or {}), **more)
    return load_recipe(made, list(assigned))


def context(recipe: Recipe, folder: Path) -> Context:
    return Context(recipe, RunFolder.read(folder), lambda kind, **facts: None)


def drawn(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "statistics.json")
    return found


def scale_of(folder: Path) -> Normalizer:
    checkpoint = latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    return Normalizer.from_json(checkpoint.state["preprocess"]["normalize"])


# ------------------------------------------------------------------------------------------------ what they cost


def test_epsilon_of_a_run_is_that_of_its_steps_and_of_its_statistics(tmp_path: Path) -> None:
    """By dp-accounting's own accountant, from what privacy.json says was released."""
    folder = run(toy(tmp_path), root=tmp_path, stages=("prepare", "train")).folder
    record = read_json(folder / "privacy.json")
    first, *steps = record["guarantee"]["releases"]
    assert first == Release(4.0, "full").to_json() and len(steps) == 1 and steps[0]["count"] == 12
    library = dp_accounting
    accountant = library.pld.PLDAccountant(neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(library.GaussianDpEvent(4.0))
    accountant.compose(library.PoissonSampledDpEvent(steps[0]["rate"], library.GaussianDpEvent(steps[0]["noise_multiplier"])), 12)
    assert record["guarantee"]["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3), rel=0.01)
    assert 3.95 < record["guarantee"]["epsilon"] <= 4.0  # and not more, as if they had cost nothing
    plain = run(toy(tmp_path, "name=plain", "privacy.statistics=null"), root=tmp_path, stages=("prepare", "train")).folder
    assert read_json(plain / "privacy.json")["noise_multiplier"] < record["noise_multiplier"]
    assert record["statistics"] == {"noise": 4.0, "columns": 4, "error": pytest.approx(np.sqrt(5.0) * 4 / record["units"])}


def test_what_is_not_covered_is_true_of_the_recipe(tmp_path: Path) -> None:
    said = {}
    for name, changes in {
        "noisy": (),
        "public": ("data.normalize=bounds", "privacy.statistics=null"),
        "fitted": ("privacy.statistics=null",),
    }.items():
        folder = run(toy(tmp_path, f"name={name}", "train.steps=2", *changes), root=tmp_path, stages=("train",)).folder
        guarantee = read_json(folder / "privacy.json")["guarantee"]
        said[name] = next(line for line in guarantee["not_covered"] if "fitted on the data without noise" in line)
        assert any("stated without looking" in line for line in guarantee["assumptions"])
    assert "they have noise" in said["noisy"] and "it was stated, not fitted" in said["public"] and said["fitted"].startswith("Statistics,")


def test_the_ledger_counts_them_before_they_are_drawn_and_after(tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.privacy import run as of_run

    seen: list[Any] = []
    whole = of_run.draw_statistics

    def looking(*args: Any) -> Any:
        (ledger,) = find_ledgers(ledgers, "")
        seen.extend(entry.releases[0] for entry in ledger.standing().open)
        return whole(*args)

    monkeypatch.setattr(of_run, "draw_statistics", looking)
    folder = run(toy(tmp_path, privacy={"budget": {"epsilon": 5, "delta": 1e-3}}), root=tmp_path, stages=("train",)).folder
    assert seen == [Release(4.0, "full")]  # reserved by the time that they are told
    (ledger,) = find_ledgers(ledgers, "")
    settled = next(e for e in ledger.entries() if e.action == "settle")
    assert [r.to_json() for r in settled.releases] == read_json(folder / "privacy.json")["guarantee"]["releases"]
    over = toy(tmp_path, "name=over", privacy={"budget": {"epsilon": 5, "delta": 1e-3}})
    with pytest.raises(PrivacyError, match="budget"):
        run(over, root=tmp_path, stages=("train",))
    assert not (tmp_path / "over" / "statistics.json").exists()  # a run that does not start is told nothing


def test_statistics_that_cost_all_there_is_are_refused_in_words(tmp_path: Path) -> None:
    accountant = dp_accounting.pld.PLDAccountant().compose(dp_accounting.GaussianDpEvent(0.5))
    alone = re.escape(f"privacy.statistics.noise: 0.5 costs epsilon {accountant.get_epsilon(1e-3):.3g} at delta 0.001 alone, but the whole")
    with pytest.raises(RecipeError, match=alone + r" run may cost 4\. Set it to about 9\.5"):
        run(toy(tmp_path, "privacy.statistics.noise=0.5"), root=tmp_path)
    assert not (tmp_path / "table" / "statistics.json").exists()


# ------------------------------------------------------------------------------------------------ what they are


def test_little_noise_gives_the_statistics_of_clipped_values(tmp_path: Path) -> None:
    prepared = prepare(parse(DataConfig, IRIS), seed=0, input_kind="arrays")
    config = StatisticsConfig.model_construct(noise=1e-9)  # no recipe may say so
    splits = apply_statistics(prepared, draw_statistics(tmp_path, prepared, config, NoiseSource.seeded(0)))
    exact = prepare(parse(DataConfig, IRIS | {"normalize": "standard"}), seed=0, input_kind="arrays")
    ours, theirs = (Normalizer.from_json(s.preprocess["normalize"]) for s in (splits, exact))
    np.testing.assert_allclose(ours.center, theirs.center, rtol=1e-6)
    np.testing.assert_allclose(ours.scale, theirs.scale, rtol=1e-5)
    for part in ("train", "validation"):
        found, wanted = (getattr(s, part).batch(np.arange(12)).inputs.numpy() for s in (splits, exact))
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert exact.fingerprint != splits.fingerprint != prepared.fingerprint


def test_noise_is_as_large_as_it_says_and_other_data_draw_other_noise(tmp_path: Path) -> None:
    splits = prepare(parse(DataConfig, IRIS), seed=0, input_kind="arrays")
    found = []
    for i in range(200):
        other, folder = replace(splits, facts=splits.facts | {"content": str(i)}), tmp_path / str(i)  # under one key
        folder.mkdir()
        found.append(draw_statistics(folder, other, StatisticsConfig(noise=4.0), NoiseSource.seeded(0)))
    means = np.array([f["mean"] for f in found])
    assert means.std(0) == pytest.approx(found[0]["error"], rel=0.15)
    half = np.array([2.0, 4, 4, 4])
    assert found[0]["error"] == pytest.approx(half * np.sqrt(5.0) * 4 / len(splits.train))


def test_the_run_carries_them_from_training_to_inference(tmp_path: Path) -> None:
    """statistics.json = preprocess of the checkpoint = what evaluation scales by = what a record becomes, to the last bit."""
    recipe = toy(tmp_path, "train.steps=3")
    done = run(recipe, root=tmp_path)
    record, scale = drawn(done.folder), scale_of(done.folder)
    assert scale.kind == "standard"
    assert scale.center.tolist() == record["mean"]
    assert scale.scale.tolist() == record["std"]
    splits = context(recipe, done.folder).splits
    assert splits.preprocess == latest_checkpoint(done.folder / "checkpoints").state["preprocess"]  # type: ignore[union-attr]
    assert splits.fingerprint == done.manifest()["training"]["data"]
    from sklearn.datasets import load_iris

    iris = load_iris()
    names, every = iris.feature_names, inputs_from_records(
        splits.preprocess, [dict(zip(iris.feature_names, row, strict=True)) for row in iris.data.tolist()]
    )  # fmt: skip
    low, high = np.array([BOUNDS.get(n, BOUNDS["*"]) for n in names]).T
    np.testing.assert_allclose(every, (np.clip(iris.data, low, high) - record["mean"]) / record["std"], rtol=1e-4, atol=1e-5)
    there = {row.tobytes() for row in every}
    for part in (splits.train, splits.validation, splits.test):
        assert part is not None
        assert all(row.tobytes() in there for row in part.batch(np.arange(len(part))).inputs.numpy())
    assert "noise multiplier of means and deviations" in (done.folder / "report.html").read_text()
    assert read_json(done.folder / "data.json")["normalize"]["why"].startswith("noisy means and deviations")


# ------------------------------------------------------------------------------------------------ once, and the same


class Stopped(Exception):
    pass


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.privacy import sampling

    whole = sampling.PrivateLoader.batch_at

    def breaking(self: Any, at: int) -> Any:
        if at == step:
            raise Stopped
        return whole(self, at)

    monkeypatch.setattr(sampling.PrivateLoader, "batch_at", breaking)


@pytest.mark.parametrize("generator", ["seeded", "secure"])
def test_a_resumed_run_goes_on_with_the_very_same(generator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy(tmp_path, privacy={"generator": generator})
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        with pytest.raises(Stopped):
            run(recipe, root=tmp_path, stages=("prepare", "train"))
    before = (tmp_path / "table" / "statistics.json").read_bytes()
    cut = scale_of(tmp_path / "table")
    folder = run(recipe, root=tmp_path, stages=("prepare", "train")).folder
    assert (folder / "statistics.json").read_bytes() == before
    assert np.array_equal(cut.center, scale_of(folder).center)
    if generator == "seeded":
        whole = run(recipe, root=tmp_path / "whole", stages=("prepare", "train")).folder
        ours, theirs = (load_checkpoint(f / "checkpoints/step-000012").tensors("model") for f in (folder, whole))
        assert ours.keys() == theirs.keys() and all((ours[n] == theirs[n]).all() for n in ours)


def test_a_run_that_fails_before_its_first_step_has_told_nothing(tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy(tmp_path, privacy={"budget": {"epsilon": 4.1, "delta": 1e-3}})
    with monkeypatch.context() as patch:
        stop_at(0, patch)
        with pytest.raises(Stopped):
            run(recipe, root=tmp_path, stages=("train",))
    assert not (tmp_path / "table" / "statistics.json").exists()
    (ledger,) = find_ledgers(ledgers, "")
    assert ledger.standing().spent == 0 and not ledger.standing().open
    folder = run(recipe, root=tmp_path, stages=("train",)).folder
    assert ledger.standing().spent == pytest.approx(read_json(folder / "privacy.json")["guarantee"]["epsilon"])


def test_what_was_drawn_cannot_be_lost_changed_or_used_for_something_else(tmp_path: Path) -> None:
    recipe = toy(tmp_path, "train.steps=2")
    folder = run(recipe, root=tmp_path, stages=("train",)).folder
    path = folder / "statistics.json"
    whole = path.read_text()
    path.unlink()
    with pytest.raises(RunError, match=r"statistics\.json is missing, but the run has trained with it"):
        run(recipe, root=tmp_path, stages=("evaluate",))
    for edit, said in (({"mean": [0.0] * 4}, "changed"), ({"std": [0.0] * 4}, "std was edited"), ({"mean": ["a"]}, "mean was edited")):
        path.write_text(json.dumps(json.loads(whole) | edit))
        with pytest.raises((RunError, DataError), match=said):
            run(recipe, root=tmp_path, stages=("evaluate",))
    path.write_text(json.dumps(json.loads(whole) | {"settings": json.loads(whole)["settings"] | {"noise": 1.0}}))
    with pytest.raises(RunError, match=r"was drawn for other data or settings \(noise\)"):
        run(recipe, root=tmp_path, stages=("evaluate",))
    path.write_text(whole)
    run(recipe, root=tmp_path, stages=("evaluate",))


def on_two_ranks(path: str, root: str) -> tuple[str, bytes]:
    """Train half, stop; what the ranks then read lies on disk."""
    torch.set_num_threads(1)
    recipe = load_recipe(path)

    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "step" and facts["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    said = "done"
    try:
        run(recipe, root=root, stages=("prepare", "train"), on_event=on_event)
    except Interrupted as err:
        said = str(err)
    return said, (Path(root) / "table" / "statistics.json").read_bytes()


@pytest.mark.distributed
def test_several_processes_draw_once_and_one_goes_on(tmp_path: Path) -> None:
    path = table_recipe(tmp_path / "recipes", data=DATA, privacy=PRIVACY)
    alone = run(load_recipe(path), root=tmp_path / "alone", stages=("prepare", "train")).folder
    found = run_processes(on_two_ranks, 2, 400, str(path), str(tmp_path / "two"))
    assert all("step 6" in said for said, _ in found), found
    assert {there for _, there in found} == {(alone / "statistics.json").read_bytes()}
    folder = run(load_recipe(path), root=tmp_path / "two", stages=("prepare", "train")).folder
    ours, theirs = (load_checkpoint(f / "checkpoints/step-000012").tensors("model") for f in (folder, alone))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6)


def test_each_fold_draws_its_own(tmp_path: Path) -> None:
    recipe = toy(tmp_path, "train.steps=2", data={"split": {"folds": 2, "validation": 0}}, train={"validate_every": None})
    folder = run(recipe, root=tmp_path).folder
    means = [drawn(folder / f"fold-{k}")["mean"] for k in range(2)]
    assert means[0] != means[1]
    assert all(read_json(folder / f"fold-{k}/privacy.json")["guarantee"]["releases"][0]["sampling"] == "full" for k in range(2))


def test_canaries_are_among_the_rows_and_reference_models_take_the_targets_statistics(tmp_path: Path) -> None:
    from tauon.privacy.audit import AuditConfig
    from tauon.stages.audit import audit_run

    recipe = toy(tmp_path, "train.steps=3", privacy={"audit": {"canaries": 10, "kind": "mislabelled"}})
    folder = run(recipe, root=tmp_path).folder
    train = context(recipe, folder).splits.train
    assert drawn(folder)["examples"] == len(train) == read_json(folder / "privacy.json")["units"]
    audit_run(folder, AuditConfig(shadows=2), on_event=lambda kind, **facts: None)
    for k in range(2):
        assert drawn(folder / f"audit/shadow-00{k}")["mean"] == drawn(folder)["mean"]
        assert np.array_equal(scale_of(folder / f"audit/shadow-00{k}").center, scale_of(folder).center)


def test_the_twin_without_privacy_has_exact_ones(tmp_path: Path) -> None:
    from tauon.stages.privacy_cost import cost_of

    folder = run(toy(tmp_path, "train.steps=2"), root=tmp_path).folder
    cost_of(folder, on_event=lambda kind, **facts: None)
    twin = folder / "without-privacy"
    assert not (twin / "statistics.json").exists() and "statistics" not in " ".join(contents(twin))
    assert np.abs(scale_of(twin).center - scale_of(folder).center).max() > 0


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("data", "privacy", "said"),
    [
        ({"bounds": None}, {}, r"data\.bounds: are missing"),
        ({"normalize": "bounds"}, {}, r"privacy\.statistics: are not needed"),
        ({"normalize": None, "bounds": None}, {}, r"data\.normalize: is auto, but privacy\.statistics are means and deviations"),
        ({"normalize": "robust", "bounds": None}, {}, r"data\.normalize: is robust"),
        ({}, {"target_epsilon": None, "audit": {"canaries": 10}}, r"privacy\.statistics: cost epsilon, but the run is not private"),
        ({}, {"unit": "group"}, r"privacy\.statistics: are private for single rows only, but the protected unit is group"),
        ({}, {"statistics": {"noise": 0}}, r"privacy\.statistics\.noise: .*greater than or equal to 0.1"),
    ],
)  # fmt: skip
def test_what_is_not_proven_or_has_no_effect_is_refused(data: Any, privacy: Any, said: str, tmp_path: Path) -> None:
    clean = {k: v for k, v in (DATA | data).items() if v is not None}
    wanted = {k: v for k, v in (PRIVACY | privacy).items() if v is not None}
    with pytest.raises(RecipeError, match=said):
        load_recipe(table_recipe(tmp_path, data=clean, privacy=wanted))


def test_a_task_without_a_table_has_no_statistics(tmp_path: Path) -> None:
    from toy import text_recipe

    with pytest.raises(RecipeError, match=r"privacy\.statistics: are means and deviations of a table's columns"):
        load_recipe(text_recipe(tmp_path, privacy={"target_epsilon": 3.0, "statistics": {}}))


def test_a_table_without_numbers_has_none(tmp_path: Path) -> None:
    lines = ["a,b,label", *(f"{'xyz'[i % 3]},{'uv'[i % 2]},{'no' if i % 5 else 'yes'}" for i in range(100))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = DATA | {"source": {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "label"}, "bounds": {"*": [0, 1]}}
    with pytest.raises(RecipeError, match=r"privacy\.statistics: need columns of numbers, but the table has none"):
        run(load_recipe(table_recipe(tmp_path, data=data, privacy=PRIVACY)), root=tmp_path, stages=("train",))


def test_whole_passes_compose_with_them(tmp_path: Path) -> None:
    """A zeroed-out example adds nothing to the answer, so that its sensitivity is the same; the pass is one Gaussian release more."""
    privacy = {"sampling": "shuffled", "target_epsilon": None, "noise_multiplier": 2.0, "statistics": {"noise": 2.0}}
    recipe = toy(tmp_path, privacy=privacy, train={"steps": 2, "batch": 53, "validate_every": None})
    record = read_json(run(recipe, root=tmp_path, stages=("train",)).folder / "privacy.json")
    assert record["guarantee"]["neighbouring"] == "zero out one"
    library = dp_accounting
    accountant = library.pld.PLDAccountant(neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE)
    passes = int(np.ceil(2 / (record["units"] // 53)))
    accountant.compose(library.GaussianDpEvent(2.0), 1 + passes)
    assert record["guarantee"]["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3), rel=0.01)


def test_fixed_batches_compose_with_them_for_a_zeroed_out_row(tmp_path: Path) -> None:
    """By hand: one Gaussian of the answer, the steps as for a replaced row, which one that is set to nothing is a case of."""
    privacy = {"sampling": "fixed-size", "accountant": "rdp", "target_epsilon": None, "noise_multiplier": 4.0, "statistics": {"noise": 5.0}}
    recipe = toy(tmp_path, privacy=privacy, train={"steps": 3, "batch": 20, "validate_every": None})
    record = read_json(run(recipe, root=tmp_path, stages=("train",)).folder / "privacy.json")
    assert record["guarantee"]["neighbouring"] == "zero out one"
    library = dp_accounting
    steps = library.rdp.RdpAccountant(neighboring_relation=library.NeighboringRelation.REPLACE_ONE)
    steps.compose(library.SampledWithoutReplacementDpEvent(record["units"], 20, library.GaussianDpEvent(2.0)), 3)
    answer = library.rdp.RdpAccountant().compose(library.GaussianDpEvent(5.0))
    by_hand = library.rdp.compute_epsilon(steps.orders, steps.rdp + answer.rdp, 1e-3)[0]
    assert record["guarantee"]["epsilon"] == pytest.approx(by_hand, rel=1e-3)
