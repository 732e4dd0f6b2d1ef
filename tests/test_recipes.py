"""Every recipe that comes with Tauon: it parses, it runs through all its stages at toy size, and (slow) at full size it reaches
the figure that it was written for. The figures, and how they were measured, are in docs/experiments.md.
"""

from __future__ import annotations

import atexit
import json
import lzma
import math
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tauon.artifacts import read_json
from tauon.config import dump
from tauon.data import prepare
from tauon.pipeline import run
from tauon.recipe import Recipe, load_recipe, shipped_recipes, to_yaml
from tauon.stages.privacy_cost import cost_of

NAMES = sorted(shipped_recipes())
TEXT = ["data.tokenizer={kind: bpe, vocab: 300}", "data.seq_len=16", "model.layers=1", "model.width=16", "model.heads=2"]
TEXT += ["evaluate.samples=1", "evaluate.resamples=100"]
ARRAYS = ["evaluate.resamples=100"]
SHORT = ["train.epochs=null", "train.time=null", "train.tokens=null", "train.steps=4", "train.batch=4", "train.microbatch=null"]
SORTED = ["data.tokenizer={kind: bpe, vocab: 300}", "data.seq_len=16", "evaluate.resamples=100"]
ANSWERS = ["data.seq_len=200", "model.seq_len=200", "evaluate.samples=1", "evaluate.resamples=100"]
LIMIT = {"text": 2, "arrays": 200, "series": 600, "signals": 300, "labelled-text": 60, "chat": 60, "pairs": 20}


def uses(recipe: Recipe) -> set[str]:
    """Kinds of the sources that a recipe reads."""
    return {s.kind_ for s in (recipe.data.source, recipe.data.validation, recipe.data.test) if s is not None}


def toy(name: str, folder: Path) -> Recipe:
    """The recipe with a tiny model, little data and four steps; everything else as shipped. A model that it starts from is first made in
    `folder`, as tiny."""
    source = yaml.safe_load(shipped_recipes()[name].read_text())["data"]["source"]
    recipe = load_recipe(name)
    small = {"tokens": TEXT, "labelled-text": SORTED, "chat": ANSWERS, "pairs": ANSWERS}.get(recipe.task.input_kind, ARRAYS)
    if recipe.model.from_ is not None:
        base = Path(recipe.model.from_).name
        if not (folder / base).exists():
            run(toy(base, folder), root=folder, stages=("prepare", "train"))
        small = [*small, f"model.from={folder / base}"]
    if recipe.model.kind_.startswith("resnet"):
        small = [*small, "model.width=8"]  # with 4, oneDNN of torch 2.13 writes past its memory on processors with AVX2 alone
    given = source if isinstance(source, dict) else {"kind": source}
    limited = given | {"limit": LIMIT[recipe.data.source.output_kind()]}
    if given["kind"] == "folder":
        limited["path"] = str(pictures())
    if given.get("name") == "cifar10":  # the whole of it is not in the mirror
        limited["name"] = "cifar10-subset"
        recipe = load_recipe(name, [f"data.source={json.dumps(limited)}"])
    if recipe.data.source.kind_ == "sklearn":
        limited = given  # small already; its first rows are of one class
    if given["kind"] == "python-stdlib":
        limited |= {"limit": 40}
    for part in ("validation", "test"):  # published parts of their own, which a limit of the source does not shorten
        own = recipe.data.source.part(part)  # type: ignore[arg-type]
        if own is not None:
            small = [*small, f"data.{part}={json.dumps(dump(own) | {'limit': LIMIT[own.output_kind()]})}"]
    if recipe.data.split.folds is not None:
        small = [*small, "data.split.folds=2"]
    held_out = recipe.data.validation is not None or recipe.data.split.validation > 0
    return load_recipe(name, [f"data.source={json.dumps(limited)}", *small, *SHORT, *(["train.validate_examples=4"] if held_out else [])])


@cache
def pictures() -> Path:
    """A folder of pictures with a subfolder a class, one file of which is no picture."""
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    folder = Path(tempfile.mkdtemp(prefix="tauon-signs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for sign, colour in (("stop", (200, 20, 20)), ("yield", (230, 220, 40)), ("50", (240, 240, 240))):
        (folder / sign).mkdir()
        for i in range(40):
            image.new("RGB", (40 + i % 5, 44), tuple(max(0, c - i) for c in colour)).save(folder / sign / f"{i:05d}.ppm")
    (folder / "stop" / "torn.ppm").write_bytes(b"P6 40 40 255 no more")
    return folder


def run_folders(recipe: Recipe, folder: Path) -> list[Path]:
    """The folder of each training run: the run's own, or one a fold."""
    folds = recipe.data.split.folds
    return [folder] if folds is None or recipe.data.split.fold is not None else [folder / f"fold-{i}" for i in range(folds)]


@pytest.fixture
def with_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Checks that what a recipe reads is here: skips, with the reason, where it is not."""

    def check(recipe: Recipe) -> None:
        kinds = uses(recipe)
        if "public" in kinds:
            monkeypatch.setenv("TAUON_DATA", str(request.getfixturevalue("mirror")))
        if "sklearn" in kinds:
            pytest.importorskip("sklearn", reason="scikit-learn's tables need scikit-learn")

    return check


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_named_like_its_file_and_says_what_it_is_for(name: str) -> None:
    assert load_recipe(name).name == name
    assert shipped_recipes()[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_written_out_in_full_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "full.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "full.yaml") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_runs_through_all_its_stages_at_toy_size(name: str, tmp_path: Path, with_data: Any) -> None:
    with_data(load_recipe(name))
    recipe = toy(name, tmp_path)
    told: list[tuple[str, Any, Any]] = []

    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "stage":
            told.append((kind, facts["name"], facts["state"]))

    folder = run(recipe, root=tmp_path, on_event=on_event).folder
    for one in run_folders(recipe, folder):
        steps = [e for e in map(json.loads, (one / "events.jsonl").read_text().splitlines()) if e["kind"] == "step"]
        rounds = len(steps) if recipe.model.fits_whole else 4  # a fit has as many rounds as it needs
        assert [e["step"] for e in steps] == [*range(1, rounds + 1)]
        assert all(math.isfinite(e["loss"]) for e in steps)
        figures = read_json(one / "evaluation.json")["metrics"]
        assert figures
        assert all(math.isfinite(m["value"]) for m in figures.values() if m["value"] is not None)
        page = (one / "report.html").read_text(encoding="utf-8")
        assert recipe.task.kind_ in page
        assert len(page) <= 5e6
        if recipe.task.input_kind in ("tokens", "chat", "pairs"):
            assert read_json(one / "samples.json")
    assert (folder / "report.html").exists()

    told.clear()
    run(recipe, root=tmp_path, on_event=on_event)
    assert told
    assert {state for _, _, state in told} == {"done before"}


# ---------------------------------------------------------------------------------------------- at full size


def figures(folder: Path) -> dict[str, float]:
    """Metric to value of a finished run."""
    return {k: m["value"] for k, m in read_json(folder / "evaluation.json")["metrics"].items()}


def validation_losses(folder: Path) -> list[float]:
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [e["loss"] for e in events if e["kind"] == "validate"]


def quiet(kind: str, /, **facts: Any) -> None:
    """Tells nobody."""


def full_size(name: str, folder: Path, with_data: Any, *more: str) -> tuple[Path, float]:
    """(folder of the run, seconds that all its stages took)."""
    recipe = load_recipe(name, more)
    with_data(recipe)
    began = time.perf_counter()
    return run(recipe, root=folder).folder, time.perf_counter() - began


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_mnist_mlp_reaches_its_figure(seed: int, tmp_path: Path, with_data: Any) -> None:
    recipe = load_recipe("mnist-mlp")
    assert recipe.model.hidden == (128,)  # type: ignore[attr-defined]
    folder, _ = full_size("mnist-mlp", tmp_path, with_data, f"seed={seed}")
    evaluation = read_json(folder / "evaluation.json")
    assert (evaluation["split"], evaluation["n"]) == ("test", 10_000)
    assert figures(folder)["accuracy"] >= 0.9865


def assert_promised(folder: Path, *, epsilon: float, units: int) -> None:
    promise = read_json(folder / "privacy.json")
    assert promise["guarantee"]["epsilon"] <= epsilon and promise["guarantee"]["delta"] == 1e-5 and promise["units"] == units


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_mnist_private_reaches_its_figure(seed: int, tmp_path: Path, with_data: Any) -> None:
    folder, _ = full_size("mnist-private", tmp_path, with_data, f"seed={seed}")
    assert_promised(folder, epsilon=2.93, units=60_000)
    evaluation = read_json(folder / "evaluation.json")
    assert (evaluation["split"], evaluation["n"]) == ("test", 10_000)
    assert figures(folder)["accuracy"] >= 0.981


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_images_10k_reaches_its_figures(tmp_path: Path, with_data: Any) -> None:
    recipe = load_recipe("images-10k")
    assert (recipe.model.hidden, recipe.optim.kind_, recipe.optim.peak) == ((128, 128), "adam", 1e-3)  # type: ignore[attr-defined]
    folder, _ = full_size("images-10k", tmp_path, with_data)
    assert read_json(folder / "data.json")["parts"]["train"]["rows"] == 6_000
    evaluation = read_json(folder / "evaluation.json")
    assert (evaluation["split"], evaluation["n"]) == ("test", 4_000)
    found = figures(folder)
    assert found["accuracy"] >= 0.965
    assert found["recall_macro"] >= 0.942
    assert found["f1_macro"] >= 0.957


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_breast_cancer_is_at_least_as_good_as_scikit_learns_tuned_logistic_regression(tmp_path: Path, with_data: Any) -> None:
    from benchmarks.breast_cancer import peer_accuracy

    recipe = load_recipe("breast-cancer")
    folder, _ = full_size("breast-cancer", tmp_path, with_data)
    ours = [f["metrics"]["accuracy"] for f in read_json(folder / "folds.json")["folds"]]
    peers = [peer_accuracy(recipe, fold)[0] for fold in range(5)]
    assert len(ours) == 5
    assert sum(ours) >= sum(peers) - 1e-9  # a sum of five fractions, to rounding


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_credit_risk_is_as_good_as_scikit_learns_best_on_the_same_folds(seed: int, tmp_path: Path, with_data: Any) -> None:
    from benchmarks.credit_risk import peer_areas

    pytest.importorskip("sklearn")
    recipe = load_recipe("credit-risk", [f"seed={seed}"])
    folder, _ = full_size("credit-risk", tmp_path, with_data, f"seed={seed}")
    ours = [f["metrics"]["roc_auc"] for f in read_json(folder / "folds.json")["folds"]]
    peers = [peer_areas(recipe, fold) for fold in range(10)]
    assert len(ours) == 10
    best = max(sum(p[name] for p in peers) / 10 for name in peers[0])
    assert sum(ours) / 10 >= best - 0.005


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_credit_risk_private_costs_less_than_three_points_of_area(seed: int, tmp_path: Path, with_data: Any) -> None:
    folder, _ = full_size("credit-risk-private", tmp_path, with_data, f"seed={seed}")
    for each in (folder / f"fold-{i}" for i in range(10)):
        promise = read_json(each / "privacy.json")["guarantee"]
        assert promise["epsilon"] <= 3 and promise["delta"] == 1e-5
        assert any(line.startswith("Statistics") for line in promise["not_covered"])
    area = cost_of(folder, on_event=quiet)["roc_auc"]
    assert area["private"] >= area["plain"] - 0.03 and area["private"] >= 0.797 - 0.03  # the twin's, and that of credit-risk


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_chest_xray_private_costs_less_than_three_points_of_area(seed: int, tmp_path: Path, with_data: Any) -> None:
    folder, _ = full_size("chest-xray-private", tmp_path, with_data, f"seed={seed}")
    assert_promised(folder, epsilon=3, units=4_708)
    area = cost_of(folder, on_event=quiet)["roc_auc"]
    assert area["private"] >= area["plain"] - 0.03


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cifar10_private_is_not_below_opacus_with_the_same_settings(with_data: Any) -> None:
    from benchmarks.cifar10_private import accuracies

    pytest.importorskip("opacus")
    with_data(load_recipe("cifar10-private"))
    ours, peer, epsilon = accuracies(7)
    assert epsilon <= 8
    assert ours >= 0.55
    assert ours >= peer - 0.016  # one standard error of the difference of two shares of 2,000


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_instruct_lora_private_lies_between_the_base_and_the_run_without_privacy(
    tmp_path: Path, with_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    full_size("wikitext2-gpt", runs, with_data)
    private, _ = full_size("instruct-lora-private", runs, with_data)
    promise = read_json(private / "privacy.json")["guarantee"]
    assert promise["epsilon"] <= 8 and promise["delta"] == 1e-5 and promise["unit"] == "sequence of 256 tokens"
    plain, _ = full_size("instruct-lora", runs, with_data)
    full_size("instruct-lora", runs, with_data, "name=untrained", "train.epochs=null", "train.steps=1", "optim.lr=1e-9")
    assert figures(plain)["loss"] < figures(private)["loss"] < figures(runs / "untrained")["loss"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_energy_forecast_reaches_dlinears_published_figures(seed: int, tmp_path: Path, with_data: Any) -> None:
    folder, _ = full_size("energy-forecast", tmp_path, with_data, f"seed={seed}")
    evaluation = read_json(folder / "evaluation.json")
    assert (evaluation["split"], evaluation["n"]) == ("test", 2_785)  # every window: nothing is dropped
    assert len(evaluation["per_class"]) == 7
    spans = read_json(folder / "data.json")["split"]["spans"]
    assert spans == {"train": [0, 8_640], "validation": [8_640, 11_520], "test": [11_520, 14_400]}
    assert figures(folder)["mse"] <= 0.386
    assert figures(folder)["mae"] <= 0.400


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quickstart_says_more_about_held_out_files_than_xz_does(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart")
    began = time.perf_counter()
    folder = run(recipe, root=tmp_path).folder
    seconds = time.perf_counter() - began
    made = prepare(recipe.data, seed=recipe.seed, input_kind="tokens")
    assert made.tokenizer is not None
    files = [made.tokenizer.decode(d).encode() for d in made.validation.shards.documents()]  # type: ignore[union-attr]
    evaluation = read_json(folder / "evaluation.json")
    assert evaluation["counts"]["bytes"] == sum(map(len, files))  # both are of the very same bytes
    alone = sum(len(lzma.compress(f, preset=9)) for f in files)
    together = len(lzma.compress(b"".join(files), preset=9))
    assert figures(folder)["bits_per_byte"] < 8 * min(alone, together) / sum(map(len, files))
    assert seconds <= 240


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shakespeare_char_reaches_nanogpts_validation_loss(tmp_path: Path, with_data: Any) -> None:
    folder, seconds = full_size("shakespeare-char", tmp_path, with_data)
    part = read_json(folder / "data.json")["parts"]["validation"]
    assert part["bytes"] == 111_540  # nanoGPT's 90/10 split, by position
    assert validation_losses(folder)[-1] <= 1.88
    assert seconds <= 300


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cifar10_resnet_reaches_its_figure(tmp_path: Path, with_data: Any) -> None:
    folder, seconds = full_size("cifar10-resnet", tmp_path, with_data)
    evaluation = read_json(folder / "evaluation.json")
    assert (evaluation["split"], evaluation["n"]) == ("test", 2_000)
    assert load_recipe("cifar10-resnet").model.kind_ == "resnet20"
    assert figures(folder)["accuracy"] >= 0.75
    assert seconds <= 1200


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_chest_xray_reaches_the_published_figures(seed: int, tmp_path: Path, with_data: Any) -> None:
    """ResNet-18 at 28 pixels, Yang et al. 2023 (MedMNIST v2), table 3: accuracy 0.854, area 0.944."""
    folder, seconds = full_size("chest-xray", tmp_path, with_data, f"seed={seed}")
    evaluation = read_json(folder / "evaluation.json")
    assert (evaluation["split"], evaluation["n"]) == ("test", 624)
    found = figures(folder)
    assert found["accuracy"] >= 0.854
    assert found["roc_auc"] >= 0.944
    assert {"recall_macro", "f1_macro"} <= set(found)
    assert seconds <= 600


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sentiment_is_a_point_above_tf_idf_with_logistic_regression(tmp_path: Path, with_data: Any) -> None:
    from benchmarks.text_classes import peers

    pytest.importorskip("sklearn")
    folder, _ = full_size("sentiment", tmp_path, with_data)
    assert figures(folder)["accuracy"] >= peers(load_recipe("sentiment"))[0] + 0.01


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_news_topics_is_a_point_above_tf_idf_with_logistic_regression(tmp_path: Path, with_data: Any) -> None:
    from benchmarks.text_classes import peers

    pytest.importorskip("sklearn")
    folder, _ = full_size("news-topics", tmp_path, with_data)
    assert figures(folder)["accuracy"] >= peers(load_recipe("news-topics"))[0] + 0.01


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_model_learns_to_answer_and_then_to_prefer(tmp_path: Path, with_data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three recipes in turn: loss of held-out answers a fifth below the base model's; margin and accuracy of held-out pairs rise."""
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    full_size("wikitext2-gpt", runs, with_data)
    answers, _ = full_size("instruct-lora", runs, with_data)
    full_size("instruct-lora", runs, with_data, "name=untrained", "train.epochs=null", "train.steps=1", "optim.lr=1e-9")
    assert figures(answers)["loss"] <= 0.8 * figures(runs / "untrained")["loss"]
    prefers, _ = full_size("prefer-dpo", runs, with_data)
    assert figures(prefers)["reward_margin"] > 0.1
    assert figures(prefers)["reward_accuracy"] > 0.5
    events = map(json.loads, (prefers / "events.jsonl").read_text().splitlines())
    assert all({"reward_margin", "reward_accuracy"} <= set(e) for e in events if e["kind"] == "validate")
