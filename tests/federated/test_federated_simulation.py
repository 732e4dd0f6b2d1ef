"""Simulated clients: batched and side by side as one after the other, thousands of them, and asynchronous ones."""

from __future__ import annotations

import resource
import threading
from typing import Any

import numpy as np
import pytest
import torch

from federated_jobs import Everything, Points, close, logistic, make_job, weights
from tauon.config import parse
from tauon.data import Loader
from tauon.errors import RecipeError, TrainingError
from tauon.federated import Failure, Message, Rounds, Weighting, evaluate_sites, federate, travelling
from tauon.federated.asynchronous import SimulatedArrivals
from tauon.federated.simulation import BatchedSites, ByQuantity, Dirichlet, Even, SimulatedSites, local_job, simulate
from tauon.federated.strategies import FedAvg, FedBuff, Scaffold
from tauon.models import LogisticConfig, MLPConfig, ModelConfig
from tauon.optim import AdamWConfig, Constant, SGDConfig
from tauon.train import train, validation_loss
from tauon.types import DataSpec

DATA = Points(200)
UNEVEN = ByQuantity(power=1.5).split(7, labels=DATA.y.numpy(), seed=0)


def answers(
    kind: type[SimulatedSites], model: ModelConfig, optim: Any = None, workers: int = 1, batch: int = 6, **fields: Any
) -> dict[str, Any]:
    more = {"optim": optim} if optim is not None else {}
    job = make_job(None, model=model, **more)
    sites = kind(local_job(job), DATA, UNEVEN, batch=batch, strategy=FedAvg(), workers=workers)
    tensors = {n: t.clone() + 0.1 for n, t in travelling(job.model).items()}
    asked = {n: Message("train", 3, "nonce", {"epochs": 2, "rate": 0.5} | fields, tensors) for n in sites.names}
    return sites.ask(asked, timeout=1.0)


def same(found: dict[str, Any], wanted: dict[str, Any], atol: float = 2e-6) -> None:
    assert list(found) == list(wanted)
    for name, answer in wanted.items():
        assert isinstance(answer, Message)
        assert found[name].fields["steps"] == answer.fields["steps"]
        assert found[name].fields["examples"] == answer.fields["examples"]
        assert found[name].fields["loss"] == pytest.approx(answer.fields["loss"], rel=1e-4)
        close(dict(found[name].tensors), dict(answer.tensors), atol=atol)


@pytest.mark.parametrize("model", [LogisticConfig(), MLPConfig(hidden=(8, 5))], ids=lambda m: m.kind_)
@pytest.mark.parametrize(
    ("optim", "fields"),
    [
        ({}, {}),
        ({"momentum": 0.9}, {}),
        ({"weight_decay": 0.1}, {"proximal": 0.5}),
        ({"clip_norm": 0.3}, {"epochs": None, "steps": 4}),
    ],
    ids=["plain", "momentum", "decay and proximal", "clipped"],
)
def test_clients_that_train_together_give_the_updates_of_single_ones(
    model: ModelConfig, optim: dict[str, Any], fields: dict[str, Any]
) -> None:
    how = SGDConfig(**{"lr": 0.1, "momentum": 0.0, "schedule": Constant(warmup=0), **optim})
    same(answers(BatchedSites, model, how, **fields), answers(SimulatedSites, model, how, **fields))


def test_only_what_gives_the_same_is_trained_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def together(*args: Any) -> None:
        raise AssertionError("trained together")

    monkeypatch.setattr(BatchedSites, "_train_together", together)
    with pytest.raises(AssertionError, match="together"):
        answers(BatchedSites, MLPConfig())
    answers(BatchedSites, MLPConfig(dropout=0.5))
    answers(BatchedSites, MLPConfig(), AdamWConfig())
    answers(BatchedSites, MLPConfig(), SGDConfig(nesterov=True))
    answers(BatchedSites, MLPConfig(), SGDConfig(clip_layer=0.1))
    answers(BatchedSites, MLPConfig(), optimizer="kept")
    answers(BatchedSites, MLPConfig(), first_loss=True)


def test_a_model_that_cannot_be_batched_is_trained_sequentially(monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.models.families.mlp import Perceptron

    forward = Perceptron.forward

    def depends_on_values(self: Perceptron, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x) if float(x.sum()) < 1e9 else x

    wanted = answers(SimulatedSites, MLPConfig())
    monkeypatch.setattr(Perceptron, "forward", depends_on_values)
    same(answers(BatchedSites, MLPConfig()), wanted, atol=0.0)


def test_clients_side_by_side_give_the_same_bits() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, beside = (answers(SimulatedSites, MLPConfig(), AdamWConfig(), workers=w) for w in (1, 2))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    same(beside, alone, atol=0.0)


def test_models_that_draw_at_random_are_not_trained_side_by_side() -> None:
    with pytest.raises(RecipeError, match="dropout"):
        answers(SimulatedSites, MLPConfig(dropout=0.1), workers=2)


def test_ten_thousand_clients_take_no_memory_each() -> None:
    data = Points(20_000)
    parts = Even().split(10_000, labels=data.y.numpy(), seed=0)
    job = simulate(logistic(Everything(data)), data, parts, FedAvg(), Rounds(4, epochs=1, fraction=0.01), batch=2)
    seen: list[int] = []
    sampled: list[set[str]] = []
    joined: list[int] = []
    make: Any = job.functions.make
    make.on_event = lambda kind, fields: sampled.append(set(fields["sites"])) if kind == "federated_round" else None
    make.roster.on_event = lambda kind, fields: joined.append(fields["count"]) if kind == "sites_joined" else None
    train(job, hooks=[lambda job, info: seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)])
    assert [len(s) for s in sampled] == [100] * 4
    assert joined == [10_000]
    assert len(set.union(*sampled)) > 380
    assert seen[-1] - seen[0] < 20_000  # kilobytes


def test_a_round_that_is_repeated_starts_from_the_clients_state_before_it() -> None:
    job = logistic(None)
    sites = SimulatedSites(local_job(job), DATA, UNEVEN, batch=6, strategy=Scaffold())
    tensors = {n: t.clone() for n, t in travelling(job.model).items()}
    tensors |= Scaffold().state(tensors)

    def ask(number: int, attempt: int) -> dict[str, Any]:
        fields = {"steps": 3, "control": True, "attempt": attempt}
        return sites.ask({n: Message("train", number, "nonce", fields, tensors) for n in sites.names}, timeout=1.0)

    ask(1, 0)
    first, again = ask(2, 0), ask(2, 1)
    for name in sites.names:
        close(dict(again[name].tensors), dict(first[name].tensors))


def test_simulated_clients_measure_and_fine_tune() -> None:
    strategy = FedAvg()
    job = make_job(None)
    sites = SimulatedSites(local_job(job), DATA, UNEVEN, batch=6, strategy=strategy, held_out=UNEVEN)
    coordinator = train(federate(job, sites, strategy, Rounds(5, epochs=2)))
    found = evaluate_sites(coordinator, sites, fine_tune=30)
    assert [each["examples"] for each in found.values()] == [len(p) for p in UNEVEN]
    assert all(0 <= each["metrics"]["accuracy"] <= 1 for each in found.values())
    better = [each["tuned"]["loss"] < each["metrics"]["loss"] for each in found.values()]
    assert sum(better) >= 5


def run_buffered(rounds: int = 40, *, slow: float = 1.0, fails: Any = None, **more: Any) -> Any:
    """FedBuff over skewed clients; half of them are `slow` times slower. Returns (job, arrivals, events)."""
    strategy = FedBuff(**{"buffer": 3, "concurrency": 6, **more})
    parts = Dirichlet(alpha=0.5).split(12, labels=DATA.y.numpy(), seed=1)
    job = logistic(None)
    sites = SimulatedSites(local_job(job), DATA, parts, batch=6, strategy=strategy)
    if fails is not None:
        honest = sites.ask

        def ask(messages: Any, *, timeout: float) -> dict[str, Any]:
            return {n: fails(n, m) or honest({n: m}, timeout=timeout)[n] for n, m in messages.items()}

        sites.ask = ask  # type: ignore[method-assign]
    arrivals = SimulatedArrivals(sites, lambda name, count: 1.0 + 0.01 * count % 0.5 if int(name[-2:]) < 6 else slow)
    events: list[tuple[str, Any]] = []
    coordinator = federate(
        job, sites, strategy, Rounds(rounds, steps=3), arrivals=arrivals, on_event=lambda kind, fields: events.append((kind, fields))
    )
    return train(coordinator), arrivals, [f for k, f in events if k == "federated_round"]


def test_stale_updates_leave_running_variances_positive() -> None:
    spec = DataSpec(input_shape=(1, 16, 16), outputs=3, labels=("a", "b", "c"))
    data, strategy = Points(60, spec=spec), FedBuff(buffer=2, concurrency=6)
    data.x *= 0.05  # so that variances fall, from all sites alike
    model = parse(ModelConfig, {"kind": "resnet20", "width": 8})  # type: ignore[type-abstract]
    job = make_job(Loader(data, batch=10, seed=1), model=model, spec=spec)
    sites = SimulatedSites(local_job(job), data, np.split(np.arange(60), 6), batch=10, strategy=strategy)
    arrivals = SimulatedArrivals(sites, lambda name, count: 1.0 + 0.001 * count)
    train(federate(job, sites, strategy, Rounds(4, steps=4), arrivals=arrivals))
    variances = {n: t for n, t in travelling(job.model).items() if n.endswith("running_var")}
    assert variances and all(float(t.min()) > 0 for t in variances.values())


def test_updates_are_applied_as_they_arrive() -> None:
    job, arrivals, rounds = run_buffered(slow=10.0)
    assert job.step == 40
    assert all(r["good"] == 3 for r in rounds)
    assert max(max(r["staleness"]) for r in rounds) > 2
    assert arrivals.clock < 40 * 10 * 0.3  # rounds that wait for everyone would take about 40 x 10 seconds
    assert validation_loss(job, [DATA.batch(np.arange(200))]) < 0.8
    again, _, _ = run_buffered(slow=10.0)
    close(weights(job), weights(again))


def test_a_buffer_of_fresh_updates_of_equal_weight_is_a_mean() -> None:
    job, _, rounds = run_buffered(rounds=1, buffer=12, concurrency=12)
    assert rounds[0]["staleness"] == [0] * 12
    parts = Dirichlet(alpha=0.5).split(12, labels=DATA.y.numpy(), seed=1)
    plain = train(simulate(logistic(None), DATA, parts, FedAvg(), Rounds(1, steps=3, weighting=Weighting(by="equal")), batch=6))
    close(weights(job), weights(plain), atol=1e-6)


def test_sites_that_fail_do_not_hold_up_the_others() -> None:
    job, _, rounds = run_buffered(
        rounds=10, fails=lambda name, message: Failure("lost") if name == "client-03" and message.kind == "train" else None
    )
    assert job.step == 10
    assert all("client-03" not in r["sites"] for r in rounds)
    with pytest.raises(TrainingError, match="15 answers could not be used.*lost"):
        run_buffered(rounds=10, fails=lambda name, message: Failure("lost") if message.kind == "train" else None)
    with pytest.raises(TrainingError, match="no site answered.*closed"):
        run_buffered(rounds=10, fails=lambda name, message: Failure("closed"))


def test_old_updates_are_refused() -> None:
    _, _, rounds = run_buffered(rounds=20, slow=30.0, max_staleness=2)
    refused = {n: r for event in rounds for n, r in event["refused"].items()}
    assert refused
    assert all("above the limit of 2" in reason for reason in refused.values())


def test_threads_ask_a_real_transport() -> None:
    parts = Even().split(4, labels=DATA.y.numpy(), seed=1)
    strategy = FedBuff(buffer=2, concurrency=3)
    job = logistic(None)
    sites = SimulatedSites(local_job(job), DATA, parts, batch=6, strategy=strategy)
    lock = threading.Lock()
    honest = sites.ask

    def ask(messages: Any, *, timeout: float) -> dict[str, Any]:
        with lock:
            return honest(messages, timeout=timeout)

    sites.ask = ask  # type: ignore[method-assign]
    assert train(federate(job, sites, strategy, Rounds(6, steps=2, timeout=30.0))).step == 6


def test_groups_and_asynchrony_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match="as they arrive"):
        simulate(logistic(None), DATA, UNEVEN, FedBuff(), Rounds(1, steps=1, group=3), batch=6)
