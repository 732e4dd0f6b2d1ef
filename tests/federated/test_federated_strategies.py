"""Strategies against Flower's own code, and against poisoned updates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tauon.config import parse, registered
from tauon.distributed import AdamOuter
from tauon.errors import RecipeError
from tauon.federated import StrategyConfig, Update
from tauon.federated.strategies import CoordinateMedian, FedAdam, FedAvg, FedAvgM, FedBuff, FedYogi, Krum, QFedAvg, TrimmedMean
from tauon.federated.strategies.krum import krum_scores

SHAPES = {"w": (4, 3), "b": (3,)}


def random(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(*shape, generator=g, dtype=torch.float64) for n, shape in SHAPES.items()}


def updates(count: int, seed: int = 0) -> list[Update]:
    return [Update(f"s{k}", random(100 * seed + k), 10.0 + 7 * k, 10 + 7 * k, 5, first_loss=0.3 + 0.2 * k) for k in range(count)]


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for n, t in random(77).items():
            self.register_parameter(n, nn.Parameter(t.clone()))


def ours(strategy: StrategyConfig, rounds: Sequence[Sequence[Update]]) -> dict[str, Tensor]:
    """The weights after these rounds."""
    model = Weights()
    optimizer = strategy.optimizer(model)
    for each in rounds:
        combined = strategy.combine(each)
        for n, p in model.named_parameters():
            p.grad = -combined[n].double()
        optimizer.step()
    return {n: p.detach() for n, p in model.named_parameters()}


def flowers(strategy: Any, rounds: Sequence[Sequence[Update]]) -> dict[str, Tensor]:
    """The same by Flower's strategy, which gets the sites' weights as replies."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

    class Grid:
        def get_node_ids(self) -> list[int]:
            return list(range(len(rounds[0])))

    now = {n: p.detach().numpy().copy() for n, p in Weights().named_parameters()}
    for number, each in enumerate(rounds, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asked = list(strategy.configure_train(number, ArrayRecord({n: Array(x) for n, x in now.items()}), ConfigRecord(), Grid()))
            replies = []
            for message, u in zip(asked, each, strict=True):
                arrays = ArrayRecord({n: Array(now[n] + u.tensors[n].numpy()) for n in now})
                metrics = MetricRecord({"num-examples": u.examples, "train_loss": u.first_loss})
                replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message))
            found, _ = strategy.aggregate_train(number, replies)
        now = {n: a.numpy().copy() for n, a in found.items()}
    return {n: torch.from_numpy(x) for n, x in now.items()}


def flower(name: str, **settings: Any) -> Any:
    strategies = pytest.importorskip("flwr.serverapp.strategy")
    return getattr(strategies, name)(**settings)


@pytest.mark.parametrize(
    ("strategy", "theirs"),
    [
        (FedAvg(), ("FedAvg", {})),
        (FedAvgM(server_lr=0.7, momentum=0.8), ("FedAvgM", {"server_learning_rate": 0.7, "server_momentum": 0.8})),
        (FedAdam(server_lr=0.05), ("FedAdam", {"eta": 0.05})),
        (FedYogi(server_lr=0.02, tau=1e-2), ("FedYogi", {"eta": 0.02, "tau": 1e-2})),
        (CoordinateMedian(), ("FedMedian", {})),
        (TrimmedMean(trim=0.3), ("FedTrimmedAvg", {"beta": 0.3})),
        (Krum(malicious=1), ("Krum", {"num_malicious_nodes": 1})),
        (Krum(malicious=1, select=3), ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3})),
        (QFedAvg(q=0.7, client_lr=0.05), ("QFedAvg", {"q": 0.7, "client_learning_rate": 0.05})),
    ],
    ids=lambda x: getattr(x, "kind_", "") or x[0],
)
@pytest.mark.parametrize("sites", [6, 7])
def test_three_rounds_are_those_of_flower(
    strategy: StrategyConfig, theirs: tuple[str, dict[str, Any]], sites: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for name in ("_task_id", "_run_id", "_node_id"):  # of a process that Flower started
        monkeypatch.setattr(identity, name, 1)
    rounds = [updates(sites, seed) for seed in range(3)]
    wanted = flowers(flower(theirs[0], **theirs[1]), rounds)
    found = ours(strategy, rounds)
    for n in SHAPES:
        torch.testing.assert_close(found[n], wanted[n], rtol=1e-5, atol=1e-6)


def test_fedadam_without_correction_is_the_papers() -> None:
    tau = 1e-2
    rounds = [updates(4, seed) for seed in range(3)]
    outer = AdamOuter(lr=0.05, eps=tau)
    anchor = {n: p.detach().clone() for n, p in Weights().named_parameters()}
    state = outer.state(anchor)
    for each in rounds:
        outer.update(anchor, {n: -t for n, t in FedAvg().combine(each).items()}, state)
    found = ours(FedAdam(server_lr=0.05, tau=tau, start=tau**2, correct_bias=False), rounds)
    for n in SHAPES:
        torch.testing.assert_close(found[n], anchor[n])


ROBUST = [Krum(malicious=2), Krum(malicious=2, select=5), CoordinateMedian(), TrimmedMean(trim=0.2)]


@pytest.mark.parametrize("strategy", ROBUST, ids=lambda s: f"{s.kind_}-{getattr(s, 'select', '')}")
@pytest.mark.parametrize("attack", ["x100", "sign", "huge"])
def test_robust_rules_withstand_a_fifth_of_poisoned_updates(strategy: StrategyConfig, attack: str) -> None:
    truth = random(5)
    honest = [Update(f"h{k}", {n: t + 0.1 * random(k)[n] for n, t in truth.items()}, 10.0) for k in range(8)]
    factor = {"x100": 100.0, "sign": -1.0, "huge": 1e18}[attack]
    bad = [Update(f"m{k}", {n: factor * t for n, t in truth.items()}, 10.0) for k in range(2)]
    found = strategy.combine([*honest, *bad])
    off = torch.cat([(found[n] - truth[n]).flatten() for n in truth]).norm()
    size = torch.cat([t.flatten() for t in truth.values()]).norm()
    assert off < 0.15 * size
    plain = FedAvg().combine([*honest, *bad])
    assert torch.cat([(plain[n] - truth[n]).flatten() for n in truth]).norm() > 0.3 * size


def test_a_huge_loss_does_not_overflow_qfedavg() -> None:
    each = [Update(u.site, u.tensors, u.weight, first_loss=loss) for u, loss in zip(updates(2), (1e300, 0.1), strict=True)]
    found = QFedAvg(q=3.0).combine(each)
    torch.testing.assert_close(found["w"], each[0].tensors["w"])  # the other's share is 1e-900


def test_trimming_less_than_a_site_says_how_many_it_needs() -> None:
    for trim, least in ((1e-5, "100,000|100000"), (1 / 49, "49|50"), (0.2, "5")):
        with pytest.raises(RecipeError, match=f"at least ({least}) sites"):
            TrimmedMean(trim=trim).refuse(2)
        TrimmedMean(trim=trim).refuse(100_001)


def test_krum_refuses_fewer_than_2f_plus_3() -> None:
    Krum(malicious=2).refuse(7)
    with pytest.raises(RecipeError, match="at least 7 sites"):
        Krum(malicious=2).refuse(6)
    with pytest.raises(RecipeError, match="at least 7"):
        Krum(malicious=2).combine(updates(6))


def test_krum_scores_are_sums_of_distances_to_the_nearest() -> None:
    each = updates(7)
    flat = np.stack([np.concatenate([t.flatten().numpy() for t in u.tensors.values()]) for u in each])
    squared = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    wanted = np.sort(squared, 1)[:, 1 : 1 + 7 - 1 - 2].sum(1)
    np.testing.assert_allclose(krum_scores(each, 1).numpy(), wanted)


def test_fedbuff_scales_by_staleness() -> None:
    strategy = FedBuff(power=0.5)
    assert strategy.scale(0) == 1
    assert strategy.scale(3) == 0.5
    each = [Update(u.site, u.tensors, strategy.scale(3 * k)) for k, u in enumerate(updates(2))]
    found = strategy.combine(each)
    torch.testing.assert_close(found["w"], (each[0].tensors["w"] + 0.5 * each[1].tensors["w"]) / 2)


def test_every_strategy_is_registered_and_parses() -> None:
    kinds = registered("strategy")
    assert set(kinds) == {
        "fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "scaffold", "fedbn", "krum", "median", "trimmed-mean", "qfedavg", "fedbuff",
    }  # fmt: skip
    for kind in kinds:
        assert parse(StrategyConfig, {"kind": kind}).kind_ == kind  # type: ignore[type-abstract]
