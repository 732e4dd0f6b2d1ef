"""A site's round: one client against central training, FedProx, SCAFFOLD, FedBN, what a site refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from federated_jobs import SGD, SPEC, Everything, Points, close, logistic, make_job, weights
from tauon.config import parse
from tauon.data import Loader
from tauon.errors import RecipeError
from tauon.federated import (
    LocalTraining,
    Message,
    MessageError,
    RoundOrder,
    Rounds,
    SiteState,
    TrainingSite,
    Weighting,
    federate,
    mean_of_sum,
    travelling,
    weighted_vector,
)
from tauon.federated.private import PrivateSummation, UpdatePrivacy
from tauon.federated.simulation import SimulatedSites, local_job, simulate
from tauon.federated.strategies import FedAvg, FedBN, FedProx, Scaffold
from tauon.models import ModelConfig
from tauon.optim import AdamWConfig, Constant, SGDConfig
from tauon.privacy import make_private
from tauon.privacy.clipped import FlatClipping
from tauon.privacy.noise import Constant as ConstantNoise
from tauon.privacy.noise import NoisePlan, NoiseSource
from tauon.testing import run_processes
from tauon.train import TrainJob, train
from tauon.types import DataSpec

DATA = Points()
IMAGES = DataSpec(input_shape=(1, 16, 16), outputs=3, labels=("a", "b", "c"))


def order(job: TrainJob, number: int = 1, **fields: Any) -> Message:
    fields = {"steps": 3} | fields
    return Message("train", number, f"nonce-{number}", fields, {n: t.clone() for n, t in travelling(job.model).items()})


def loader(batch: int = 8) -> Loader:
    return Loader(DATA, batch=batch, seed=3)


@pytest.mark.parametrize(
    ("optim", "kept"),
    [
        (SGD, "fresh"),
        (SGDConfig(lr=0.1, momentum=0.9, schedule=Constant(warmup=0)), "kept"),
        (AdamWConfig(lr=1e-2, schedule=Constant(warmup=0), clip_norm=0.1), "kept"),
    ],
    ids=["sgd", "momentum", "adamw"],
)
@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_one_client_with_one_full_step_a_round_is_central_training(optim: Any, kept: Any, kind: str) -> None:
    model = parse(ModelConfig, {"kind": kind})  # type: ignore[type-abstract]
    central = train(make_job(Everything(DATA), model=model, optim=optim, steps=8))
    job = simulate(
        make_job(Everything(DATA), model=model, optim=optim), DATA, [np.arange(60)], FedAvg(), Rounds(8, steps=1, optimizer=kept), batch=0
    )
    close(weights(train(job)), weights(central), atol=1e-6)


def test_several_local_steps_of_one_client_are_central_training_too() -> None:
    central = train(make_job(loader(), steps=8))
    local = LocalTraining(make_job(loader()), 60)
    server = make_job(loader())
    state = SiteState()
    for number in (1, 2):
        answer = local.train(order(server, number, steps=4), state)
        with torch.no_grad():
            for n, t in travelling(server.model).items():
                t.add_(answer.tensors[n])
    close(weights(server), weights(central), atol=1e-6)
    assert answer.fields["steps"] == 4
    assert answer.fields["examples"] == 60


def test_the_rate_of_a_round_scales_its_learning_rate() -> None:
    server = logistic(loader())
    slow, fast = (LocalTraining(logistic(loader()), 60).train(order(server, steps=1, rate=r), SiteState()) for r in (0.25, 1.0))
    for n, t in fast.tensors.items():
        torch.testing.assert_close(slow.tensors[n], 0.25 * t)


def test_a_round_does_not_depend_on_the_rounds_before() -> None:
    server = logistic(loader())
    busy, new = LocalTraining(logistic(loader()), 60), LocalTraining(logistic(loader()), 60)
    for number in (1, 2, 4):
        busy.train(order(server, number, rate=0.1 * number), SiteState())
    for n, t in new.train(order(server, 5), SiteState()).tensors.items():
        assert torch.equal(busy.train(order(server, 5), SiteState()).tensors[n], t)


def test_a_private_site_never_uses_a_step_twice() -> None:
    local, state = LocalTraining(logistic(loader()), 60), SiteState()
    local.private = True
    used: list[int] = []
    at = local.job.loader.batch_at
    local.job.loader.batch_at = lambda step: (used.append(step), at(step))[1]  # type: ignore[method-assign, func-returns-value]
    server = logistic(loader())
    for number in (1, 2, 2, 1):
        local.train(order(server, number), state)
    again, saved = LocalTraining(logistic(loader()), 60), SiteState()
    saved.load(state.tensors())
    again.private = True
    again.train(order(server, 1), saved)
    assert used == list(range(12))
    assert again.job.step == 15


def private_job() -> TrainJob:
    plan = NoisePlan(ConstantNoise(), 1.0, 30)
    return make_private(logistic(loader()), FlatClipping(), plan, NoiseSource.seeded(0), expected=lambda step: 8.0)


def test_a_private_site_gives_no_exact_loss_of_its_examples() -> None:
    server, local = logistic(loader()), LocalTraining(private_job(), 60, data=lambda: [DATA.batch(np.arange(60))])
    private = local.train(order(server, max_examples=60), SiteState())
    assert set(private.fields) == {"examples", "steps"} and math.isfinite(local.loss)
    with pytest.raises(MessageError, match="no exact loss"):
        local.train(order(server, 2, first_loss=True), SiteState())
    open_ = LocalTraining(logistic(loader()), 60).train(order(server, max_examples=60), SiteState())
    vectors = [weighted_vector(order(server, max_examples=60), a) for a in (private, open_)]
    total = {n: sum(v[n] for v in vectors) for n in vectors[0]}
    assert mean_of_sum(total, ["a", "b"], 1).loss == pytest.approx(open_.fields["loss"])  # type: ignore[arg-type]
    assert math.isnan(mean_of_sum(vectors[0], ["a"], 1).loss)


def test_a_private_site_makes_no_more_steps_than_were_reserved() -> None:
    server, state = logistic(loader()), SiteState()
    local = LocalTraining(private_job(), 60, most_steps=7)
    for number in (1, 2):
        local.train(order(server, number), state)
    with pytest.raises(MessageError, match="reserved privacy for 7 local steps and has made 6"):
        local.train(order(server, 3), state)
    with pytest.raises(MessageError, match="refuses 5 more"):
        local.fine_tune(5)
    with pytest.raises(MessageError, match="refuses 1,000,000 more"):
        local.train(order(server, 3, steps=10**6), state)
    assert local.job.step == 6
    assert local.train(order(server, 3, steps=1), state).fields["steps"] == 1
    plain = LocalTraining(logistic(loader()), 60, most_steps=3)
    assert [plain.train(order(server, n), SiteState()).fields["steps"] for n in (1, 2)] == [3, 3]


def test_a_private_site_repeats_its_answer_to_a_round_that_is_repeated() -> None:
    server, saved = logistic(loader()), []
    site = TrainingSite(LocalTraining(private_job(), 60, most_steps=6), save=lambda state: saved.append(state.steps))
    first = site.answer(order(server, session=joined(site), attempt=0))
    session = joined(site)  # the coordinator was restarted
    second = site.answer(replace(order(server, session=session, attempt=1), nonce="another"))
    assert second.nonce == "another" and second.fields == first.fields and saved == [3]
    close(dict(second.tensors), dict(first.tensors))
    with torch.no_grad():
        next(server.model.parameters()).add_(0.1)
    site.answer(order(server, session=session, attempt=2))  # from other weights: other steps
    assert saved == [3, 6]


def gradient(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
    F.cross_entropy(x @ w.t() + b, y).backward()
    assert w.grad is not None
    assert b.grad is not None
    return w.grad, b.grad


def test_the_proximal_term_is_the_gradient_of_its_penalty() -> None:
    mu, lr = 0.7, 0.1
    local = LocalTraining(logistic(Everything(DATA)), 60)
    server = logistic(Everything(DATA))
    with torch.no_grad():
        for p in server.model.parameters():
            p.add_(0.3)
    answer = local.train(order(server, steps=6, **FedProx(mu=mu).order()), SiteState())
    w0, b0 = (p.detach().clone() for p in server.model.parameters())
    w, b = w0.clone(), b0.clone()
    for _ in range(6):
        gw, gb = gradient(DATA.x, DATA.y, w, b)
        w, b = w - lr * (gw + mu * (w - w0)), b - lr * (gb + mu * (b - b0))
    for found, wanted in zip(answer.tensors.values(), (w - w0, b - b0), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_scaffold_is_its_algorithm() -> None:
    """Algorithm 1 of the paper, option II, written plainly; sites of equal size, all in each round."""
    lr, steps, rounds = 0.1, 4, 3
    parts = [np.arange(0, 20), np.arange(20, 40), np.arange(40, 60)]
    job = simulate(logistic(Everything(DATA)), DATA, parts, Scaffold(server_lr=0.8), Rounds(rounds, steps=steps), batch=0)
    x = [p.detach().clone() for p in job.model.parameters()]
    c = [torch.zeros_like(p) for p in x]
    own = [[torch.zeros_like(p) for p in x] for _ in parts]
    for _ in range(rounds):
        moved, changed = [], []
        for k, rows in enumerate(parts):
            y = [p.clone() for p in x]
            for _ in range(steps):
                g = gradient(DATA.x[rows], DATA.y[rows], *y)
                y = [yi - lr * (gi - oi + ci) for yi, gi, oi, ci in zip(y, g, own[k], c, strict=True)]
            new = [oi - ci + (xi - yi) / (steps * lr) for oi, ci, xi, yi in zip(own[k], c, x, y, strict=True)]
            moved.append([yi - xi for yi, xi in zip(y, x, strict=True)])
            changed.append([n - o for n, o in zip(new, own[k], strict=True)])
            own[k] = new
        x = [xi + 0.8 * sum(m[i] for m in moved) / 3 for i, xi in enumerate(x)]
        c = [ci + sum(d[i] for d in changed) / 3 for i, ci in enumerate(c)]
    train(job)
    for found, wanted in zip(job.model.parameters(), x, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-6)
    for found, wanted in zip(job.extra["strategy"].tensors().values(), c, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_scaffold_refuses_momentum_at_the_sites() -> None:
    job = make_job(loader(), optim=SGDConfig(lr=0.1, momentum=0.9))
    control = {f"control/{n}": torch.zeros_like(t) for n, t in travelling(job.model).items()}
    message = order(job, control=True)
    with pytest.raises(RecipeError, match="plain SGD"):
        LocalTraining(job, 60).train(replace(message, tensors={**message.tensors, **control}), SiteState())


def batch_norm_job(data: Points) -> TrainJob:
    model = parse(ModelConfig, {"kind": "resnet20", "width": 8})  # type: ignore[type-abstract]
    return make_job(Loader(data, batch=10, seed=1), model=model, spec=IMAGES)


def test_fedbn_leaves_batch_norm_at_the_site() -> None:
    data = Points(30, spec=IMAGES)
    before = {n: t.clone() for n, t in travelling(batch_norm_job(data).model).items()}
    job = simulate(batch_norm_job(data), data, [np.arange(0, 15), np.arange(15, 30)], FedBN(), Rounds(2, steps=2), batch=10)
    train(job)
    kept = FedBN().keep(job.model)
    after = travelling(job.model)
    assert all(torch.equal(after[n], before[n]) for n in kept)
    assert any(not torch.equal(after[n], before[n]) for n in after.keys() - set(kept))
    sites: Any = job.extra["sites"]
    first, second = (sites.states[name].before(3) for name in sites.names)
    name = next(n for n in kept if n.endswith("running_mean"))
    assert not torch.equal(first[f"kept/{name}"], second[f"kept/{name}"])
    assert not torch.equal(first[f"kept/{name}"], before[name])


def test_statistics_of_batch_norm_are_not_noised() -> None:
    data, summation = Points(30, spec=IMAGES), PrivateSummation(UpdatePrivacy("central", 1.0, 1.0, sites=3))
    rounds = Rounds(1, steps=1, weighting=Weighting(by="equal"))
    for strategy in (FedAvg(), FedBN(affine=False)):
        job = batch_norm_job(data)
        sites = SimulatedSites(local_job(job), data, np.split(np.arange(30), 3), batch=10, strategy=strategy)
        if isinstance(strategy, FedBN):
            train(federate(job, sites, strategy, rounds, summation=summation))
        else:
            with pytest.raises(RecipeError, match=r"a variance may become negative.*norm=group"):
                federate(job, sites, strategy, rounds, summation=summation)


def test_running_statistics_are_averaged_and_counters_are_not() -> None:
    data = Points(30, spec=IMAGES)
    job = simulate(batch_norm_job(data), data, [np.arange(0, 10), np.arange(10, 30)], FedAvg(), Rounds(1, steps=1), batch=10)
    single = []
    for rows in (np.arange(0, 10), np.arange(10, 30)):
        alone = simulate(batch_norm_job(data), data, [np.arange(0, 10), np.arange(10, 30)], FedAvg(), Rounds(1, steps=1), batch=10)
        sites: Any = alone.extra["sites"]
        name = sites.names[0 if len(rows) == 10 else 1]
        sites.names = [name]
        train(alone)
        single.append({n: t.clone() for n, t in travelling(alone.model).items()})
    start = {n: t.clone() for n, t in travelling(job.model).items()}
    train(job)
    found = travelling(job.model)
    name = next(n for n in found if n.endswith("running_var"))
    # of two sites with 10 and 20 examples; alone, each is the only one that was asked
    wanted = start[name] + (single[0][name] - start[name]) / 3 + 2 * (single[1][name] - start[name]) / 3
    torch.testing.assert_close(found[name], wanted)
    assert all(int(b) == 0 for n, b in job.model.named_buffers() if n.endswith("num_batches_tracked"))


@pytest.mark.parametrize(
    "fields",
    [{"steps": 0}, {"steps": -1}, {"steps": 2.5}, {"steps": True}, {"steps": None}, {"steps": 1, "epochs": 1.0}, {"proximal": "big"},
     {"proximal": -1.0}, {"rate": math.nan}, {"optimizer": "old"}, {"control": 1}],
)  # fmt: skip
def test_a_malformed_request_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="a request to train"):
        RoundOrder.of(order(logistic(loader()), **fields))


def test_weights_of_another_model_are_refused() -> None:
    local, message = LocalTraining(logistic(loader()), 60), order(make_job(loader()))
    with pytest.raises(MessageError, match="another model"):
        local.train(message, SiteState())
    name = next(iter(local.travels))
    wrong = order(logistic(loader()))
    with pytest.raises(MessageError, match="expected"):
        local.train(replace(wrong, tensors={**wrong.tensors, name: torch.zeros(2)}), SiteState())


def joined(site: TrainingSite) -> str:
    session: str = site.answer(Message("join", fields={"identity": {}})).fields["session"]
    return session


def test_a_site_refuses_what_is_not_new() -> None:
    job = logistic(loader())
    site = TrainingSite(LocalTraining(logistic(loader()), 60))
    with pytest.raises(MessageError, match="not joined"):
        site.answer(order(job))
    session = joined(site)
    first = order(job, 2, session=session, attempt=0)
    site.answer(first)
    for old in (first, order(job, 1, session=session)):
        with pytest.raises(MessageError, match="a replay"):
            site.answer(old)
    site.answer(order(job, 2, session=session, attempt=1))
    other = joined(site)  # the coordinator was restarted, and repeats the round
    with pytest.raises(MessageError, match="another session"):
        site.answer(order(job, 3, session=session))
    site.answer(order(job, 2, session=other))
    with pytest.raises(MessageError, match="kind 'dance'"):
        site.answer(Message("dance", 2, fields={"session": other}))


def test_both_sides_must_train_the_same() -> None:
    site = TrainingSite(LocalTraining(logistic(loader()), 60), identity={"recipe": "aaaa", "normalize": "bbbb"})
    site.answer(Message("join", fields={"identity": {"recipe": "aaaa", "version": "9"}}))
    with pytest.raises(MessageError, match="the coordinator has recipe cccc, ours is aaaa"):
        site.answer(Message("join", fields={"identity": {"recipe": "cccc"}}))
    with pytest.raises(MessageError, match="no training examples"):
        TrainingSite(LocalTraining(logistic(loader()), 0)).answer(Message("join"))


def test_a_site_measures_its_held_out_examples_and_fine_tunes() -> None:
    held_out = Points(40, seed=5)
    site = TrainingSite(
        LocalTraining(logistic(loader()), 60), held_out=lambda: [held_out.batch(np.arange(40))], measure=lambda job: {"ones": float(job.model.training)}
    )  # fmt: skip
    session, job = joined(site), logistic(loader())
    fields = {"session": session, "fine_tune": 20}
    answer = site.answer(replace(order(job), kind="evaluate", fields=fields))
    assert answer.kind == "evaluated"
    assert answer.fields["examples"] == 40
    assert answer.fields["metrics"]["loss"] == pytest.approx(math.log(3), abs=1e-4)  # the weights that were sent are zero
    assert answer.fields["metrics"]["ones"] == 0
    assert answer.fields["tuned"]["loss"] < 0.9


def test_the_state_of_a_site_follows_a_coordinator_that_went_back() -> None:
    state = SiteState(keep=3)
    for number in range(1, 6):
        state.put(number, {"w": torch.tensor(float(number))}, steps=number)
    assert state.before(6)["w"] == 5
    assert sorted(state.rounds) == [3, 4, 5]
    again = SiteState(keep=3)
    again.load(state.tensors())
    assert again.before(5)["w"] == 4
    again.put(4, {"w": torch.tensor(40.0)}, steps=4)
    assert again.before(9)["w"] == 40
    assert again.steps == 5


def test_the_sum_of_weighted_vectors_is_the_weighted_mean() -> None:
    job = logistic(loader())
    request = order(job, max_examples=50)
    answers = [LocalTraining(logistic(loader()), n).train(order(job, number), SiteState()) for number, n in ((1, 20), (2, 60))]
    vectors = [weighted_vector(request, a) for a in answers]
    update = mean_of_sum({n: vectors[0][n] + vectors[1][n] for n in vectors[0]}, ["a", "b"], version=1)
    assert update.weight == pytest.approx(0.4 + 1.0)
    for n, t in update.tensors.items():
        torch.testing.assert_close(t, (0.4 * answers[0].tensors[n] + answers[1].tensors[n]) / 1.4)
    assert update.loss == pytest.approx((0.4 * answers[0].fields["loss"] + answers[1].fields["loss"]) / 1.4)


def site_of_two_processes() -> dict[str, Tensor] | None:
    import torch.distributed as dist

    from tauon.distributed import Layout, Mesh, MeshParallel, World
    from tauon.models import LogisticConfig
    from tauon.plan import make_plan
    from tauon.tasks import Classification
    from tauon.train import JobConfig, TrainConfig, build_job

    rank = dist.get_rank()
    mesh = Mesh(Layout(replicate=2), World(rank=rank, size=2))
    config = JobConfig(
        LogisticConfig().resolve(SPEC), SGD, TrainConfig(steps=5, batch=8, precision="fp32", compile=False, device="cpu"), Classification(), SPEC, 3
    )  # fmt: skip
    job = build_job(
        config, Loader(DATA, batch=8, seed=3, rank=rank, world=2), make_plan(config, examples=60), mesh=mesh, parallel=MeshParallel()
    )
    site = TrainingSite(LocalTraining(job, 60))
    if rank:
        site.follow()
        return None
    session = joined(site)
    answers = [site.answer(order(logistic(loader()), number, session=session)) for number in (1, 2)]
    site.stop()
    return dict(answers[1].tensors)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_site_of_two_processes_gives_the_update_of_one() -> None:
    found = run_processes(site_of_two_processes, 2, 200)[0]
    wanted = LocalTraining(logistic(loader()), 60).train(order(logistic(loader()), 2), SiteState()).tensors
    close(dict(wanted), found, atol=1e-6)
