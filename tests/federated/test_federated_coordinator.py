"""The coordinator: exact resume, sites that vanish, come back and send nonsense, repeated rounds, groups, refused settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from federated_jobs import Everything, Points, close, logistic, make_job, weights
from tauon.artifacts import load_checkpoint, save_checkpoint
from tauon.config import parse
from tauon.data import Loader
from tauon.errors import RecipeError, TauonError, TrainingError
from tauon.federated import (
    Collected,
    Failure,
    LocalTraining,
    Message,
    PlainSummation,
    RoundRequest,
    Rounds,
    StrategyConfig,
    TrainingSite,
    Transport,
    Update,
    Weighting,
    evaluate_sites,
    fairness,
    federate,
    sample_sites,
)
from tauon.federated.gradients import FederatedGradients
from tauon.federated.simulation import ByQuantity, ClientRows, simulate
from tauon.federated.strategies import CoordinateMedian, FedAdam, FedAvg, Krum, QFedAvg, Scaffold
from tauon.models import GPTConfig, materialize
from tauon.models.adapters import LoraConfig
from tauon.train import TrainJob, job_state, restore, train, validation_loss

DATA = Points(90)
PARTS = ByQuantity(shares=(4, 3, 2, 1)).split(4, labels=DATA.y.numpy(), seed=0)
Fault = Callable[[Message, Callable[[], Message]], Message | Failure]
"""(request, how the site would answer) -> what comes back."""


class Sites:
    """Real sites in this process. Every message passes through bytes; faults change what a site answers."""

    def __init__(self, count: int = 4, **more: Any) -> None:
        self.names = ["east", "north", "south", "west"][:count]
        self.parts = dict(zip(self.names, PARTS, strict=False))
        self.more = more
        self.running = {name: self.start(name) for name in self.names}
        self.faults: dict[str, Fault] = {}
        self.faulty = "train"
        self.asked: list[tuple[str, str, int]] = []

    def start(self, name: str) -> TrainingSite:
        rows = ClientRows(DATA, self.parts[name])
        job = logistic(Loader(rows, batch=5, seed=1))
        return TrainingSite(LocalTraining(job, len(rows), data=rows.batches), held_out=rows.batches, **self.more)

    def sites(self) -> list[str]:
        return sorted(self.running)

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        answers: dict[str, Message | Failure] = {}
        for name, message in messages.items():
            self.asked.append((name, message.kind, message.round))
            sent = Message.from_bytes(message.to_bytes())

            def honest(name: str = name, sent: Message = sent) -> Message:
                return Message.from_bytes(self.running[name].answer(sent).to_bytes())

            try:
                fault = self.faults.get(name) if message.kind == self.faulty else None
                answers[name] = honest() if fault is None else fault(message, honest)
            except TauonError as err:
                answers[name] = Failure(str(err))
        return answers


class Events:
    def __init__(self) -> None:
        self.all: list[tuple[str, Mapping[str, Any]]] = []

    def __call__(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.all.append((kind, fields))

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [f for k, f in self.all if k == kind]


def coordinator(transport: Transport, strategy: StrategyConfig | None = None, *, events: Events | None = None, **more: Any) -> TrainJob:
    summation = more.pop("summation", None)
    rounds = Rounds(**({"count": 4, "steps": 3} | more))
    return federate(logistic(Everything(DATA)), transport, strategy or FedAvg(), rounds, summation=summation, on_event=events)


def test_a_round_is_the_mean_by_examples() -> None:
    sites = Sites()
    job = coordinator(sites, count=1)
    start = weights(job)
    train(job)
    alone = []
    for name in sites.names:
        one = Sites()
        one.running = {name: one.running[name]}
        alone.append(weights(train(coordinator(one, count=1))))
    n = [len(p) for p in PARTS]
    wanted = {k: start[k] + sum(c * (w[k] - start[k]) for c, w in zip(n, alone, strict=True)) / sum(n) for k in start}
    close(weights(job), wanted, atol=1e-6)
    assert job.examples == 90


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), Scaffold()], ids=lambda s: s.kind_)
def test_a_resume_after_any_round_ends_with_the_same_weights_to_the_last_bit(strategy: StrategyConfig, tmp_path: Path) -> None:
    def start() -> TrainJob:
        rounds = Rounds(5, steps=3, fraction=0.5, seed=4)
        return simulate(logistic(Everything(DATA)), DATA, PARTS, strategy, rounds, batch=5)

    whole = train(start())
    for cut in (1, 2, 4):
        first = start()

        def stop(job: TrainJob, info: Any, cut: int = cut) -> str | None:
            return "stop" if info.step == cut else None

        train(first, hooks=[stop])
        first.notes.clear()
        save_checkpoint(tmp_path / str(cut), cut, *job_state(first))
        second = start()
        restore(second, load_checkpoint(tmp_path / str(cut) / f"step-{cut:06d}"))
        close(weights(train(second)), weights(whole))


@pytest.mark.parametrize("lost", [[], ["north"], ["east", "north"]], ids=["none", "one", "most"])
def test_the_servers_control_variate_is_the_mean_of_the_sites_own_also_when_some_vanish(lost: list[str]) -> None:
    """Karimireddy et al. 2020, algorithm 1: c is the mean of all c_k, of sites that did not answer as well (theirs are still 0)."""
    sites = Sites()
    sites.faults = dict.fromkeys(lost, vanish)
    job = train(coordinator(sites, Scaffold(), count=1))
    for name, c in job.extra["strategy"].tensors().items():
        own = {k: site.state.before(2).get(name, torch.zeros_like(c)) for k, site in sites.running.items()}
        torch.testing.assert_close(c, sum(len(sites.parts[k]) * t for k, t in own.items()) / 90)


def test_a_coordinator_that_was_killed_repeats_rounds_at_living_sites(tmp_path: Path) -> None:
    sites = Sites()
    whole = train(coordinator(sites))
    first = coordinator(sites)
    train(first, hooks=[lambda job, info: "stop" if info.step == 2 else None])
    first.notes.clear()
    save_checkpoint(tmp_path, 2, *job_state(first))
    train(first, hooks=[lambda job, info: "stop" if info.step == 3 else None])  # lost
    second = coordinator(sites)
    restore(second, load_checkpoint(tmp_path / "step-000002"))
    close(weights(train(second)), weights(whole))


def test_a_coordinator_on_an_accelerator_sends_and_takes_tensors_of_the_cpu() -> None:
    """With torch's fake tensors, which have a device and refuse two in one operation, and need no accelerator."""
    with FakeTensorMode():
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(2, device="cuda"))
        model.register_parameter("w", torch.nn.Parameter(torch.empty(3, 2, device="cuda")))
        job: Any = SimpleNamespace(model=model, step=0)
        make = FederatedGradients(job, Sites(0), Scaffold(), Rounds(1, steps=1), PlainSummation())
        sent = make.tensors()
        assert {t.device.type for t in sent.values()} == {"cpu"} and set(sent) == {*make.travels, *make.state.held}
        update = Update("a", {n: torch.zeros(t.shape) for n, t in sent.items()}, 1.0, 5, 1, 0.5)
        make.collect = lambda job, number: Collected([update])  # type: ignore[method-assign]
        make(job, torch.zeros(1))  # type: ignore[arg-type]
        make.strategy.after(make.state.held, make.combined, 1.0)
        assert all(p.grad is not None and p.grad.device.type == "cuda" for p in model.parameters())


def nan(message: Message, honest: Callable[[], Message]) -> Message:
    answer = honest()
    return replace(answer, tensors={n: t * math.nan for n, t in answer.tensors.items()})


def vanish(message: Message, honest: Callable[[], Message]) -> Failure:
    return Failure("no answer within 600 s")


def with_fields(**fields: Any) -> Fault:
    def fault(message: Message, honest: Callable[[], Message]) -> Message:
        answer = honest()
        return replace(answer, fields={**answer.fields, **fields})

    return fault


def other_round(message: Message, honest: Callable[[], Message]) -> Message:
    return replace(honest(), round=message.round + 1)


def wrong_shape(message: Message, honest: Callable[[], Message]) -> Message:
    answer = honest()
    return replace(answer, tensors={n: t[:1] for n, t in answer.tensors.items()})


@pytest.mark.parametrize(
    ("fault", "where", "reason"),
    [
        (nan, "refused", "not finite"),
        (vanish, "failed", "no answer"),
        (with_fields(examples=10**9), "refused", "1,000,000,000 examples"),
        (with_fields(examples=-3), "refused", "examples -3"),
        (other_round, "refused", "round"),
        (wrong_shape, "refused", "expected"),
    ],
    ids=["nan", "vanish", "1e9 examples", "negative", "other round", "shape"],
)
def test_a_bad_site_is_left_out_and_named_and_the_round_is_saved(fault: Fault, where: str, reason: str) -> None:
    sites, events, weighting = Sites(), Events(), Weighting(max_gain=None)
    sites.faults["north"] = fault
    job = train(coordinator(sites, events=events, count=2, weighting=weighting))
    for event in events.of("federated_round"):
        assert list(event[where]) == ["north"]
        assert reason in event[where]["north"]
        assert sorted(event["sites"]) == ["east", "south", "west"]
    assert not events.of("round_repeated")
    without = Sites()
    del without.running["north"]
    close(weights(job), weights(train(coordinator(without, count=2, weighting=weighting))))


@pytest.mark.parametrize("loss", [-1.0, None, math.inf])
def test_a_site_without_a_usable_loss_does_not_stop_qfedavg(loss: float | None) -> None:
    sites, events = Sites(), Events()

    def lying(message: Message, honest: Callable[[], Message]) -> Message | Failure:
        answer = honest()
        fields = {k: v for k, v in answer.fields.items() if k != "first_loss"} | ({} if loss is None else {"first_loss": loss})
        return replace(answer, fields=fields)

    sites.faults["north"] = lying
    job = coordinator(sites, QFedAvg(), events=events, count=2)
    before = weights(job)
    train(job)
    assert all("first_loss" in event["refused"]["north"] for event in events.of("federated_round"))
    assert any(not torch.equal(t, before[n]) for n, t in weights(job).items())


def test_a_site_that_was_restarted_joins_again() -> None:
    sites, events = Sites(), Events()

    def restarted(message: Message, honest: Callable[[], Message]) -> Message:
        if message.round == 2:
            sites.running["west"] = sites.start("west")
        return honest()

    sites.faults["west"] = restarted
    job = train(coordinator(sites, events=events))
    rounds = events.of("federated_round")
    assert ["west" in r["sites"] for r in rounds] == [True, False, True, True]
    assert "not joined" in rounds[1]["failed"]["west"]
    assert [(e["site"], e["round"]) for e in events.of("site_joined")][-1] == ("west", 3)
    assert job.step == 4


def test_a_round_with_too_few_answers_is_repeated_with_other_sites() -> None:
    sites, events = Sites(), Events()
    failing = iter([True, True, False, False])

    def once(message: Message, honest: Callable[[], Message]) -> Message | Failure:
        return vanish(message, honest) if next(failing, False) else honest()

    sites.faults = dict.fromkeys(sites.names, once)
    job = train(coordinator(sites, events=events, count=1, fraction=0.5, min_answers=2))
    (repeated,), (done,) = events.of("round_repeated"), events.of("federated_round")
    assert "0 good answers of 2 sites, at least 2 are needed" in repeated["reason"]
    assert (repeated["attempt"], done["attempt"]) == (0, 1)
    assert repeated["sent_bytes"] == done["sent_bytes"] > 0 and repeated["received_bytes"] == 0
    assert job.step == 1


def test_a_round_that_always_fails_ends_the_run_in_words() -> None:
    sites = Sites()
    sites.faults = dict.fromkeys(sites.names, vanish)
    before = weights(job := coordinator(sites))
    with pytest.raises(TrainingError, match=r"round 1 failed 5 times.*no answer within 600 s"):
        train(job)
    close(weights(job), before)


def test_a_coordinator_waits_for_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    sites, events = Sites(), Events()
    late = {name: sites.running.pop(name) for name in ("north", "west")}
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            sites.running |= late

    monkeypatch.setattr("tauon.federated.gradients.time.sleep", sleep)
    train(coordinator(sites, events=events, count=1, min_answers=4, wait=600.0))
    assert len(slept) == 3
    (waiting,) = events.of("waiting_for_sites")
    assert "2 sites have joined, at least 4 are needed" in waiting["reason"]
    assert not events.of("round_repeated")
    with pytest.raises(TrainingError, match="4 sites have joined, at least 5 are needed"):
        train(coordinator(sites, count=1, min_answers=5))


def test_krum_waits_for_sites_that_were_there_before(tmp_path: Path) -> None:
    parts = ByQuantity(power=0).split(5, labels=DATA.y.numpy(), seed=0)
    job = simulate(logistic(Everything(DATA)), DATA, parts, Krum(malicious=1), Rounds(2, steps=1), batch=5)
    train(job, hooks=[lambda job, info: "stop"])
    job.notes.clear()
    save_checkpoint(tmp_path, 1, *job_state(job))
    resumed = simulate(logistic(Everything(DATA)), DATA, parts, Krum(malicious=1), Rounds(2, steps=1), batch=5)
    restore(resumed, load_checkpoint(tmp_path / "step-000001"))
    for one in (job, resumed):
        sites: Any = one.extra["sites"]
        del sites.names[-1]
        with pytest.raises(TrainingError, match=r"round 2 failed 5 times.*at least 5 sites"):
            train(one)


def test_a_site_of_another_recipe_does_not_join() -> None:
    sites, events = Sites(3, identity={"recipe": "old"}), Events()
    job = federate(logistic(Everything(DATA)), sites, FedAvg(), Rounds(1, steps=1), identity={"recipe": "new"}, on_event=events)
    with pytest.raises(TrainingError, match="the coordinator has recipe new, ours is old"):
        train(job)
    assert [e["site"] for e in events.of("site_refused")] == ["east", "north", "south"]
    assert not any(kind == "train" for _, kind, _ in sites.asked)


@pytest.mark.parametrize("identity", [["recipe"], "recipe", 5, {"recipe": ["new"]}])
def test_a_site_that_joins_with_nonsense_is_refused_and_ends_nothing(identity: Any) -> None:
    sites, events = Sites(4), Events()
    sites.faulty = "join"
    sites.faults["north"] = lambda m, honest: replace(a := honest(), fields={**a.fields, "identity": identity})
    train(federate(logistic(Everything(DATA)), sites, FedAvg(), Rounds(1, steps=1), identity={"recipe": "new"}, on_event=events))
    assert [e["site"] for e in events.of("site_refused")] == ["north"]
    assert sorted(events.of("federated_round")[0]["sites"]) == ["east", "south", "west"]


def test_a_site_that_claims_more_examples_than_all_others_is_named_unless_its_weight_is_limited() -> None:
    for weighting, named in ((Weighting(), ["north"]), (Weighting(max_examples=30), []), (Weighting(by="equal"), [])):
        sites, events = Sites(4), Events()
        sites.faulty = "join"
        sites.faults["north"] = lambda m, honest: replace(a := honest(), fields={**a.fields, "examples": 10**9})
        train(coordinator(sites, count=2, weighting=weighting, events=events))
        assert [e["site"] for e in events.of("site_outweighs")] == named
    train(coordinator(Sites(4), count=1, events=(events := Events())))
    assert not events.of("site_outweighs")


def test_samples_are_uniform_and_change_with_the_round() -> None:
    names = [f"s{i}" for i in range(20)]
    drawn = [sample_sites(names, 5, seed=1, number=r) for r in range(400)]
    counts = np.array([sum(n in d for d in drawn) for n in names])
    assert len({tuple(d) for d in drawn}) > 350
    assert abs(counts - 100).max() < 40  # five standard deviations of a binomial are 43
    kept = sample_sites(names[:-1], 5, seed=1, number=0)
    assert len(set(kept) & set(drawn[0])) >= 4


def poison(message: Message, honest: Callable[[], Message]) -> Message:
    answer = honest()
    return replace(answer, tensors={n: -100 * t for n, t in answer.tensors.items()})


def test_a_median_withstands_a_poisoned_site_that_breaks_the_mean() -> None:
    loss = {}
    for strategy in (FedAvg(), CoordinateMedian()):
        sites = Sites()
        sites.faults["west"] = poison
        job = train(coordinator(sites, strategy, count=10, weighting=Weighting(by="equal")))
        loss[strategy.kind_] = validation_loss(job, [DATA.batch(np.arange(90))])
    assert loss["median"] < 0.8 < 5 < loss["fedavg"]


class SumsOnly(PlainSummation):
    """As secure aggregation: a group of fewer than two gives nothing, and no single update is shown."""

    single = False  # type: ignore[misc]
    smallest_group = 2  # type: ignore[misc]
    groups: list[list[list[str]]] = []  # noqa: RUF012

    def collect(self, transport: Transport, request: RoundRequest) -> Collected:
        SumsOnly.groups.append([list(g) for g in request.groups])
        assert all(len(g) >= 2 for g in request.groups)
        return super().collect(transport, request)


def test_robust_rules_compare_the_sums_of_groups() -> None:
    SumsOnly.groups = []
    with pytest.raises(RecipeError, match="hides"):
        coordinator(Sites(), CoordinateMedian(), summation=SumsOnly(), weighting=Weighting(max_examples=50))
    with pytest.raises(RecipeError, match="too small"):
        coordinator(Sites(), CoordinateMedian(), summation=SumsOnly(), group=1, weighting=Weighting(max_examples=50))
    many = simulate(
        logistic(Everything(DATA)),
        DATA,
        ByQuantity(power=0).split(9, labels=DATA.y.numpy(), seed=0),
        CoordinateMedian(),
        Rounds(3, steps=2),
        batch=5,
    )
    transport: Any = many.extra["sites"]
    job = coordinator(transport, CoordinateMedian(), summation=SumsOnly(), group=3, count=3, weighting=Weighting(max_examples=50))
    train(job)
    assert all(sorted(map(len, g)) == [3, 3, 3] for g in SumsOnly.groups)
    assert SumsOnly.groups[0] != SumsOnly.groups[1]
    assert job.step == 3


def test_a_sum_hides_the_examples_so_the_limit_must_be_known() -> None:
    with pytest.raises(RecipeError, match="max_examples"):
        coordinator(Sites(), summation=SumsOnly())


def test_krum_with_too_few_sites_is_refused_before_anything_is_asked() -> None:
    sites = Sites()
    with pytest.raises(RecipeError, match="at least 5 sites"):
        train(coordinator(sites, Krum(malicious=1)))
    assert not any(kind == "train" for _, kind, _ in sites.asked)


@pytest.mark.parametrize("more", [{"steps": 3, "epochs": 1.0}, {"steps": None}, {"count": 0}, {"fraction": 0.0}, {"min_answers": 0}])
def test_rounds_that_make_no_sense_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Rounds(**({"count": 1, "steps": 3} | more))


def test_both_halves_of_an_adapter_cannot_be_summed_blindly() -> None:
    job = logistic(Everything(DATA))
    config = GPTConfig(layers=1, width=16, heads=2, vocab=31, seq_len=8).model_copy(update={"adapt": LoraConfig(rank=2)})
    job.model = materialize(config, seed=0)
    with pytest.raises(RecipeError, match="freeze A"):
        federate(job, Sites(), FedAvg(), Rounds(1, steps=1, weighting=Weighting(max_examples=9)), summation=SumsOnly())


def test_a_small_site_that_alone_answers_does_not_become_the_adapter() -> None:
    """`Weighting.max_gain` for products of adapters: of four equal sites one answers, which counts twice its usual part."""
    model = torch.nn.Module()
    for name, shape in (("lora_a", (2, 4)), ("lora_b", (3, 2))):
        model.register_parameter(name, torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
    job: Any = SimpleNamespace(model=torch.nn.ModuleDict({"q": model}), step=0, measured={})
    change = {"q.lora_a": torch.zeros(2, 4), "q.lora_b": torch.ones(3, 2)}

    class Four(Sites):
        def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
            join = {"examples": 10, "session": "s"}
            train = {"examples": 10, "steps": 1, "loss": 1.0}
            return {
                n: m.answer("joined", join) if m.kind == "join" else m.answer("trained", train, change) if n == "east" else Failure("away")
                for n, m in messages.items()
            }

    make = FederatedGradients(job, Four(), FedAvg(), Rounds(1, steps=1), PlainSummation())
    make(job, torch.zeros(1))  # type: ignore[arg-type]
    torch.testing.assert_close(make.combined["q.lora_b"], torch.full((3, 2), 0.5))
    torch.testing.assert_close(make.combined["q.lora_a"], torch.zeros(2, 4), atol=1e-6, rtol=0)


def test_each_site_measures_the_model_and_its_own_tuning() -> None:
    sites = Sites()
    job = train(coordinator(sites, count=5))
    found = evaluate_sites(job, sites, fine_tune=30)
    assert sorted(found) == sites.names
    for name, each in found.items():
        assert each["examples"] == len(sites.parts[name])
        assert each["tuned"]["loss"] < each["metrics"]["loss"] < math.log(3)
    spread = fairness(found, "loss")
    assert spread["sites"] == 4
    assert spread["smallest"] < spread["mean"] < spread["largest"]
    del sites.running["east"]
    assert sorted(evaluate_sites(job, sites)) == ["north", "south", "west"]


@pytest.mark.parametrize(
    "fields", [{"metrics": {"loss": "x"}}, {"metrics": {"loss": 10**400}}, {"metrics": [1]}, {"metrics": 5}, {"tuned": 7}, {"examples": -1}]
)
def test_figures_that_make_no_sense_are_the_failure_of_their_site(fields: dict[str, Any]) -> None:
    sites = Sites()
    job = train(coordinator(sites, count=1))
    sites.faulty = "evaluate"
    sites.faults["north"] = lambda m, honest: replace(a := honest(), fields={**a.fields, **fields})
    found = evaluate_sites(job, sites, fine_tune=1)
    assert found["north"].keys() == {"failed"} and fairness(found, "loss")["sites"] == 3


def test_a_skipped_round_changes_nothing() -> None:
    job = make_job(Everything(DATA))
    job.health.spike_factor = 1e-9
    job.health.good = 100
    coordinated = simulate(job, DATA, PARTS, Scaffold(), Rounds(2, steps=2), batch=5)
    before = weights(coordinated)
    seen: list[Any] = []
    train(coordinated, hooks=[lambda job, info: seen.append(info.metrics)])
    assert all("skipped" in m for m in seen)
    close(weights(coordinated), before)
    assert all(not t.any() for t in coordinated.extra["strategy"].tensors().values())


def test_every_strategy_learns() -> None:
    for kind in ("fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "scaffold", "krum", "median", "trimmed-mean", "qfedavg"):
        lr = {"fedavgm": 0.3}.get(kind)
        strategy = parse(StrategyConfig, {"kind": kind} | ({"server_lr": lr} if lr else {}))  # type: ignore[type-abstract]
        parts = ByQuantity(power=0.5).split(6, labels=DATA.y.numpy(), seed=0)
        job = train(simulate(logistic(Everything(DATA)), DATA, parts, strategy, Rounds(30, steps=3), batch=5))
        assert validation_loss(job, [DATA.batch(np.arange(90))]) < 0.75, kind
    assert torch.is_tensor(next(job.model.parameters()))
