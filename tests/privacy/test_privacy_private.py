"""A private step: clipped as one example at a time, noised as it says, the same whatever the microbatches; a private run from a recipe."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from private_layouts import CNN, GPT, IMAGES, SGD, TEXT, make_job, private

from tauon.artifacts import load_checkpoint, read_json
from tauon.errors import PrivacyError, RecipeError, RunError
from tauon.pipeline import run
from tauon.privacy.keys import run_key
from tauon.privacy.ledger import Ledger, find_ledgers
from tauon.recipe import load_recipe
from tauon.train import TrainJob
from tauon.types import Batch
from toy import Tauon, text_recipe

pytestmark = pytest.mark.long


def job_of(model: dict[str, Any] = GPT, spec: Any = TEXT, **more: Any) -> TrainJob:
    return make_job({"replicate": 1}, {"kind": "mesh", "replicate": 1}, model, SGD, spec, packed=False, **more)


def gradients(job: TrainJob, batch: Batch) -> dict[str, torch.Tensor]:
    job.model.train()
    job.model.zero_grad(set_to_none=True)
    job.functions.make(job, batch)
    return {n: p.grad.clone() for n, p in job.model.named_parameters() if p.grad is not None}


def one_at_a_time(job: TrainJob, batch: Batch, bound: float) -> dict[str, torch.Tensor]:
    """Algorithm 1 without noise, as it is written."""
    found: dict[str, torch.Tensor] = {}
    for i in range(len(batch)):
        row = batch.rows(i, i + 1)
        if row.weights.ndim > 1:
            row = replace(row, weights=row.weights / row.weights.sum())
        job.model.zero_grad(set_to_none=True)
        job.task.loss(job.model, row)[0].backward()
        named = {n: p.grad for n, p in job.model.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in named.values()))
        for n, g in named.items():
            found[n] = found.get(n, 0) + g * min(1.0, bound / norm) / len(batch)
    job.model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("micro", [8, 4, 3, 1])
@pytest.mark.parametrize("model", ["gpt", "cnn"])
def test_a_step_is_the_sum_of_clipped_gradients_whatever_the_microbatches(model: str, micro: int) -> None:
    plain = job_of(GPT if model == "gpt" else CNN, TEXT if model == "gpt" else IMAGES, micro=micro)
    with torch.no_grad():
        for p in plain.model.parameters():  # a head at zero would hide what lies behind it
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = plain.loader.batch_at(0)
    expected = one_at_a_time(plain, batch, 1.0)
    found = gradients(private(plain, multiplier=1e-12), batch)
    assert found.keys() == expected.keys()
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-5 * float(g.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


def test_noise_has_the_standard_deviation_that_was_asked_for() -> None:
    job = private(job_of(), multiplier=3.0)
    quiet = private(job_of(), multiplier=1e-12)
    batch = job.loader.batch_at(0)
    noise = torch.cat([(gradients(job, batch)[n] - g).flatten() for n, g in gradients(quiet, batch).items()])
    assert float(noise.std()) == pytest.approx(3.0 / 8, rel=4 / math.sqrt(2 * len(noise)))
    assert abs(float(noise.mean())) < 4 * 3.0 / 8 / math.sqrt(len(noise))
    job.step = 1
    again = gradients(job, batch)
    assert all(not torch.equal(g, gradients(private(job_of(), multiplier=3.0), batch)[n]) for n, g in again.items())


def clip_after_averaging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic bug: the mean of the batch is clipped, and no example's part in it."""
    from tauon.privacy import private as engine
    from tauon.privacy.clipped import ClippedSum

    add, sum_over = ClippedSum.add, engine.sum_over
    monkeypatch.setattr(ClippedSum, "add", lambda self, factors: add(self, torch.ones_like(factors)))

    def clip_the_mean(mesh: Any, grads: list[torch.Tensor]) -> None:
        sum_over(mesh, grads)
        norm = float(torch.stack([g.norm() for g in grads]).norm()) / 8
        for g in grads:
            g *= min(1.0, 1.0 / norm)

    monkeypatch.setattr(engine, "sum_over", clip_the_mean)


def furthest_move() -> float:
    """By how much the sum moves at most when one of eight examples, as extreme as they come, is taken out; C is 1."""
    job = private(job_of(CNN | {"dropout": 0.5}, IMAGES), multiplier=1e-12)
    batch = job.loader.batch_at(0)
    wild = replace(batch, inputs=batch.inputs * torch.logspace(-3, 6, len(batch))[:, None, None, None])
    whole = gradients(job, wild)
    most = 0.0
    for i in range(len(wild)):
        weights = wild.weights.clone()
        weights[i] = 0
        without = gradients(job, replace(wild, weights=weights))
        kept = [j for j in range(len(wild)) if j != i]
        shorter = gradients(job, replace(wild, **{k: getattr(wild, k)[kept] for k in ("inputs", "targets", "weights", "draws")}))
        for other in (without, shorter):  # zeroed out, and not drawn
            most = max(most, math.sqrt(sum(float((8 * (whole[n] - g)).double().square().sum()) for n, g in other.items())))
    return most


def test_one_example_more_moves_the_sum_by_the_bound_at_most() -> None:
    """The sensitivity that the accountant takes for granted."""
    assert furthest_move() <= 1.0 + 1e-5


def test_clipping_after_averaging_lets_one_example_move_the_sum_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an audit of a trained model notices in special cases alone is seen at once where the move is measured."""
    clip_after_averaging(monkeypatch)
    assert furthest_move() > 3.0


def test_an_empty_batch_is_noise_alone() -> None:
    job = private(job_of(), multiplier=1.0)
    batch = job.loader.batch_at(0)
    found = gradients(job, replace(batch, weights=torch.zeros_like(batch.weights)))
    quiet = gradients(private(job_of(), multiplier=1e-12), replace(batch, weights=torch.zeros_like(batch.weights)))
    assert all(torch.isfinite(g).all() and float(g.abs().max()) > 0 for g in found.values())
    assert all(float(g.abs().max()) < 1e-11 for g in quiet.values())


PRIVATE = {"target_epsilon": 4.0, "delta": 1e-3, "generator": "seeded"}


def test_two_lines_make_a_recipe_private_and_the_promise_is_on_record(tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    recipe = load_recipe(text_recipe(tmp_path, privacy={"target_epsilon": 4.0, "delta": 1e-3}))
    done = run(recipe, root=tmp_path / "runs", on_event=lambda kind, **facts: told.append((kind, facts)))
    record = read_json(done.folder / "privacy.json")
    assert record["steps"] == 12 and 3.9 < record["guarantee"]["epsilon"] <= 4.0
    assert record["guarantee"]["neighbouring"] == "zero out one" and record["sampling"] == "poisson"
    settings = {d["path"]: d["value"] for kind, facts in told if kind == "derived" for d in facts["settings"]}
    assert settings["privacy.noise_multiplier"] == pytest.approx(record["noise_multiplier"], abs=1e-4)
    assert done.manifest()["privacy"]["epsilon"] == record["guarantee"]["epsilon"]
    assert not (done.folder / "privacy.key").exists()
    page = (done.folder / "report.html").read_text()
    assert "zero out one" in page and "one unit whose data is zeroed out" in page
    assert "differential privacy for one sequence of 16 tokens" in page and "Not covered" in page


@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
@pytest.mark.parametrize("noise", ["constant", "gradient-norm", "validation-loss"])
def test_a_stopped_private_run_goes_on_to_the_same_bits(tmp_path: Path, noise: str, clipping: str) -> None:
    privacy = PRIVATE | {"noise": {"kind": noise}, "clipping": {"kind": clipping}}
    path = text_recipe(tmp_path, privacy=privacy)
    whole = run(load_recipe(path, ["name=whole"]), root=tmp_path / "runs", stages=("train",))
    recipe = load_recipe(path, ["name=parts"])

    class Stop(Exception):
        pass

    def stop(kind: str, **facts: Any) -> None:
        if kind == "step" and facts["step"] == 7:
            raise Stop

    with pytest.raises(Stop):
        run(recipe, root=tmp_path / "runs", stages=("train",), on_event=stop)
    assert read_json(tmp_path / "runs/parts/privacy.json")["steps"] == 7
    parts = run(recipe, root=tmp_path / "runs", stages=("train",))
    for group in ("model", "optim"):
        a, b = (load_checkpoint(r.checkpoints / "step-000012").tensors(group) for r in (whole, parts))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert read_json(parts.folder / "privacy.json") == read_json(whole.folder / "privacy.json")


def test_a_run_that_lost_its_key_does_not_go_on(tmp_path: Path) -> None:
    path = text_recipe(tmp_path, privacy={"target_epsilon": 4.0, "delta": 1e-3})

    def stop(kind: str, **facts: Any) -> None:
        if kind == "step" and facts["step"] == 7:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(load_recipe(path), root=tmp_path / "runs", stages=("train",), on_event=stop)
    key = tmp_path / "runs/toy/privacy.key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(bytes.fromhex(read_json(key)["key"])) == 32
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(RunError, match=r"privacy\.key is missing"):
        run(load_recipe(path), root=tmp_path / "runs", stages=("train",))
    key.touch(0o600)
    key.write_bytes(kept)
    run(load_recipe(path), root=tmp_path / "runs", stages=("train",))
    assert not key.exists()


def test_correlated_noise_in_whole_passes(tmp_path: Path) -> None:
    privacy = PRIVATE | {"noise": {"kind": "correlated"}, "sampling": "shuffled"}
    done = run(load_recipe(text_recipe(tmp_path, privacy=privacy)), root=tmp_path / "runs", stages=("train",))
    record = read_json(done.folder / "privacy.json")
    assert record["guarantee"]["neighbouring"] == "zero out one" and record["guarantee"]["epsilon"] <= 4.0


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    run_key(tmp_path)
    assert run_key(tmp_path) == run_key(tmp_path)
    (tmp_path / "privacy.key").chmod(0o644)
    with pytest.raises(RunError, match="is readable by other users"):
        run_key(tmp_path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"privacy": {"target_epsilon": 3, "delta": 0.5}}, r"privacy\.delta: delta 0\.5 is not below 1/N"),
        ({"privacy": {"delta": 1e-5}}, r"privacy\.target_epsilon: set exactly one of"),
        ({"privacy": {"target_epsilon": -1}}, r"privacy\.target_epsilon"),
        ({"privacy": {"noise_multiplier": 0}}, r"privacy\.noise_multiplier"),
        ({"privacy": PRIVATE, "train": {"batch": 4000}}, r"train\.batch: is 4000, but there are only .* examples"),
        (
            {"privacy": PRIVATE | {"noise": {"kind": "correlated"}}},
            r"privacy\.sampling: is poisson, but correlated noise needs full passes",
        ),
        ({"privacy": PRIVATE | {"sampling": "fixed-size"}}, r"privacy\.accountant: pld is not proven for fixed-size"),
        ({"privacy": PRIVATE, "parallel": {"kind": "mesh", "pipeline": 2}}, r"parallel\.pipeline: splits an example"),
        (
            {"privacy": PRIVATE | {"sampling": "shuffled"}, "train": {"batch_warmup": {"start": 2, "steps": 4}}},
            r"train\.batch_warmup: changes the batch size",
        ),
        ({"privacy": PRIVATE, "parallel": {"kind": "diloco"}}, r"parallel\.kind: diloco does not work with privacy"),
    ],
)
def test_what_cannot_be_private_is_refused_by_name(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(load_recipe(text_recipe(tmp_path, **sections)), root=tmp_path / "runs", stages=("train",))
    assert not (tmp_path / "runs/toy/privacy.json").exists()


def test_events_say_how_much_noise_a_step_had(tmp_path: Path) -> None:
    privacy = PRIVATE | {"noise": {"kind": "linear", "final": 0.5}}
    done = run(load_recipe(text_recipe(tmp_path, privacy=privacy)), root=tmp_path / "runs", stages=("train",))
    steps = [json.loads(line) for line in (done.folder / "events.jsonl").read_text().splitlines()]
    noise = [e["noise"] for e in steps if e.get("kind", e.get("event")) == "step"]
    assert noise[-1] == pytest.approx(0.5 * noise[0]) and noise == sorted(noise, reverse=True)


def test_a_data_set_has_one_budget_for_all_its_runs(tmp_path: Path, ledgers: Path) -> None:
    budget = {"epsilon": 4.3, "delta": 1e-3}
    path = text_recipe(tmp_path, privacy=PRIVATE | {"budget": budget})
    root = tmp_path / "runs"
    told: list[str] = []
    first = run(load_recipe(path, ["name=first"]), root=root, stages=("train",), on_event=lambda k, **f: told.append(str(f.get("message"))))
    assert any("privacy budget: epsilon 4 of 4.3 at delta 0.001" in t for t in told)
    ledger = Ledger(ledgers, first.manifest()["privacy"]["data"])
    assert [e.action for e in ledger.entries()] == ["open", "reserve", "settle"]
    with pytest.raises(PrivacyError, match=r"(?s)budget of data set .* times the noise \(epsilon [\d.]+ at delta 0.001 alone\)"):
        run(load_recipe(path, ["name=second"]), root=root, stages=("train",))
    assert not (root / "second/checkpoints").exists() or not any((root / "second/checkpoints").iterdir())
    small = ["name=third", "privacy.target_epsilon=1"]
    run(load_recipe(path, small), root=root, stages=("train",))
    standing = ledger.standing()
    assert 4.0 < standing.spent <= 4.3 and not standing.open


def test_a_stopped_run_keeps_its_reservation_and_pays_once(tmp_path: Path, ledgers: Path) -> None:
    path = text_recipe(tmp_path, privacy=PRIVATE | {"budget": {"epsilon": 4.5, "delta": 1e-3}})
    root = tmp_path / "runs"

    class Stop(Exception):
        pass

    def stop(kind: str, **facts: Any) -> None:
        if kind == "step" and facts["step"] == 7:
            raise Stop

    with pytest.raises(Stop):
        run(load_recipe(path), root=root, stages=("train",), on_event=stop)
    done = run(load_recipe(path), root=root, stages=("train",))
    ledger = Ledger(ledgers, done.manifest()["privacy"]["data"])
    assert [e.action for e in ledger.entries()] == ["open", "reserve", "settle"] and ledger.standing().spent <= 4.0


def test_a_run_that_fails_before_its_first_step_pays_nothing(tmp_path: Path, ledgers: Path) -> None:
    path = text_recipe(tmp_path, privacy=PRIVATE | {"budget": {"epsilon": 4.5, "delta": 1e-3}})

    def fail(kind: str, **facts: Any) -> None:
        if kind == "training":
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        run(load_recipe(path), root=tmp_path / "runs", stages=("train",), on_event=fail)
    [ledger] = find_ledgers(ledgers, "")
    assert ledger.standing().reserved == 0
    run(load_recipe(path), root=tmp_path / "runs", stages=("train",))


def test_adam_is_told_of_the_noise(tmp_path: Path) -> None:
    optim = {"kind": "adamw-bc", "lr": 1e-3}
    done = run(load_recipe(text_recipe(tmp_path, privacy=PRIVATE, optim=optim)), root=tmp_path / "runs", stages=("train",))
    state = load_checkpoint(done.checkpoints / "step-000012").state["optimizer"]
    [noise] = {e["noise"] for e in map(json.loads, (done.folder / "events.jsonl").read_text().splitlines()) if "noise" in e}
    assert state["head.weight/noise_sq"] == pytest.approx(noise**2 * (1 - 0.999**12))
    with pytest.raises(RecipeError, match=r"optim\.kind: adamw-bc corrects for the noise of private training"):
        load_recipe(text_recipe(tmp_path, optim=optim))


def test_a_range_test_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Tauon(capsys)("tune", text_recipe(tmp_path, privacy=PRIVATE), "--lr-range", "--root", tmp_path / "runs")
    assert ended.code == 2 and "trains without privacy" in ended.err
