"""Server shards without any network: partition, the optimizer over pieces against torch's over the whole model, state, compensation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.distributed.outer import NesterovOuter
from tauon.distributed.parameter_server import ParameterServer
from tauon.distributed.partition import Partition, partition
from tauon.distributed.server import Names, OptimizerRule, OuterRule, Push, ServerShard, skeleton
from tauon.distributed.server_group import gather, scatter
from tauon.errors import RecipeError
from tauon.models import GPTConfig, MLPConfig, Model, materialize
from tauon.optim import OptimConfig, clip_gradients, optimizer_tensors

GPT = GPTConfig(layers=2, width=16, heads=2, vocab=64, seq_len=12)
MLP = MLPConfig(hidden=(32, 8), inputs=10, outputs=3)
OPTIMS: list[dict[str, Any]] = [
    {"kind": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 1e-3},
    {"kind": "adam", "lr": 0.01, "weight_decay": 0.01},
    {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
    {"kind": "muon", "lr": 0.02, "embed_lr": 0.3, "weight_decay": 0.01},
]


def parted(model: Model, config: OptimConfig, servers: int) -> tuple[Names, Partition]:
    names = Names.of(model)
    return names, partition(names.trained, servers, rows_may_part=config.elementwise)


def by(config: OptimConfig) -> Any:
    return lambda names, parameters: OptimizerRule(config.build, names, parameters)


def random_gradients(model: Model, step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return {n: torch.randn(p.shape, generator=g) for n, p in model.named_parameters()}


def flat(parts: Partition, shard: int, tensors: dict[str, Any]) -> np.ndarray:
    rows = [
        tensors[p.name].detach().numpy() if p.whole else tensors[p.name].detach().numpy()[p.row : p.row + p.shape[0]]
        for p in parts.shards[shard]
    ]
    return np.concatenate([r.reshape(-1) for r in rows])


# ------------------------------------------------------------------------------------------------ partition


@pytest.mark.parametrize("servers", [1, 2, 3, 5])
@pytest.mark.parametrize("may_part", [True, False])
def test_pieces_cover_every_number_once_and_balance(servers: int, may_part: bool) -> None:
    shapes = {"big": (100, 7), "a": (13, 5), "b": (40,), "scalar": (), "c": (3, 3, 3), "d": (17,)}
    parts = partition(shapes, servers, rows_may_part=may_part)
    seen = {n: np.zeros(s, int) for n, s in shapes.items()}
    for pieces in parts.shards:
        assert len({p.name for p in pieces}) == len(pieces)
        at = 0
        for p in pieces:
            assert p.offset == at
            at = p.end
            if p.whole:
                seen[p.name] += 1
            else:
                assert may_part
                seen[p.name][p.row : p.row + p.shape[0]] += 1
    assert all((s == 1).all() for s in seen.values())
    total = sum(parts.sizes)
    if may_part:
        assert max(parts.sizes) <= 4 / 3 * total / servers + 7
    assert partition(shapes, servers, rows_may_part=may_part) == parts


def test_more_servers_than_tensors_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"parallel.servers: is 3, but the model has only 2 tensors .* at most 2"):
        partition({"w": (1, 5), "b": (1,)}, 3, rows_may_part=True)
    with pytest.raises(RecipeError, match="at most 1"):
        partition({"w": (9, 5)}, 2, rows_may_part=False)


def test_a_skeleton_has_the_names_shapes_and_ties_of_the_model() -> None:
    for config in (GPT, GPT.model_copy(update={"tied": True}), MLP):
        model = materialize(config, seed=0)
        copy = skeleton(Names.of(model), {})
        both = [{n: (tuple(p.shape), p.requires_grad) for n, p in m.named_parameters(remove_duplicate=False)} for m in (model, copy)]
        assert both[0] == both[1]
        assert len(list(model.parameters())) == len(list(copy.parameters()))


# ------------------------------------------------------------------------------------------------ the optimizer over pieces


@pytest.mark.parametrize("optim", OPTIMS, ids=lambda o: o["kind"])
@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("model_config", [GPT, MLP], ids=["gpt", "mlp"])
def test_shards_together_are_torch_s_optimizer_over_the_whole_model(optim: dict[str, Any], servers: int, model_config: Any) -> None:
    if model_config is MLP:
        optim = {k: v for k, v in optim.items() if k != "embed_lr"}
    config = parse(OptimConfig, optim)
    model = materialize(model_config, seed=3)
    names, parts = parted(model, config, servers)
    shards = [ServerShard(pieces, names, by(config), clip_value=0.8) for pieces in parts.shards]
    start = {n: p.detach().numpy() for n, p in model.named_parameters()}
    for shard, state in zip(shards, scatter(parts, start, {}, {}, 0), strict=True):
        shard.load(state)
    whole = config.build(model)
    for step in range(5):
        factor = 1 / (step + 1)
        halves = [random_gradients(model, 2 * step + i) for i in range(2)]
        for n, p in model.named_parameters():
            p.grad = halves[0][n] + halves[1][n]
        norm = clip_gradients(model.parameters(), 1.0, 0.8)
        for group in whole.param_groups:
            group["lr"] = group["peak_lr"] * factor
        whole.step()
        norms = [shard.reduce([Push([flat(parts, s, h)]) for h in halves]) for s, shard in enumerate(shards)]
        ours = np.sqrt(sum((n.astype(np.float64) ** 2).sum() for n in norms))
        assert ours == pytest.approx(norm.item(), rel=1e-6)
        for shard in shards:
            assert shard.apply(min(1.0, 1.0 / (norm.item() + 1e-6)), factor) == step + 1
    weights, tensors, numbers = gather(parts, names.trained, [s.state() for s in shards])
    for n, p in model.named_parameters():
        np.testing.assert_allclose(weights[n], p.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=n)
    wanted, wanted_numbers = optimizer_tensors(whole, model)
    assert set(tensors) == set(wanted) and numbers == wanted_numbers
    for key, value in wanted.items():
        np.testing.assert_allclose(tensors[key], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=key)


def test_one_shard_of_whole_tensors_is_bit_for_bit_torch_s_optimizer() -> None:
    config = parse(OptimConfig, OPTIMS[2])
    model = materialize(GPT, seed=3)
    names, parts = parted(model, config, 1)
    shard = ServerShard(parts.shards[0], names, by(config))
    shard.load(scatter(parts, {n: p.detach().numpy() for n, p in model.named_parameters()}, {}, {}, 0)[0])
    whole = config.build(model)
    torch.set_num_threads(1)
    for step in range(4):
        gradient = random_gradients(model, step)
        for n, p in model.named_parameters():
            p.grad = gradient[n].clone()
        norm = clip_gradients(model.parameters(), 1.0, None)
        whole.step()
        norms = torch.from_numpy(shard.reduce([Push([flat(parts, 0, gradient)])]))
        assert torch.linalg.vector_norm(norms) == norm
        shard.apply(torch.clamp(1.0 / (norm + 1e-6), max=1.0).item(), 1.0)
    assert np.array_equal(shard.weights()[0], flat(parts, 0, dict(model.named_parameters())))


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    config = parse(OptimConfig, OPTIMS[2])
    model = materialize(MLP, seed=0)
    names, parts = parted(model, config, 1)
    shard = ServerShard(parts.shards[0], names, by(config))
    shard.load(scatter(parts, {n: p.detach().numpy() for n, p in model.named_parameters()}, {}, {}, 0)[0])
    before = shard.weights()[0].copy()
    first = parts.shards[0][0]
    here = np.arange(len(parts.shards[0])) != 0
    gradient = flat(parts, 0, random_gradients(model, 0))
    shard.reduce([Push([gradient], here), Push([gradient], here)])
    shard.apply(1.0, 1.0)
    after = shard.weights()[0]
    assert np.array_equal(after[: first.end], before[: first.end])  # weight decay alone would have moved it
    assert (after[first.end :] != before[first.end :]).mean() > 0.9


@pytest.mark.parametrize("optim", OPTIMS, ids=lambda o: o["kind"])
def test_state_put_into_another_shard_goes_on_bit_for_bit(optim: dict[str, Any]) -> None:
    config, model = parse(OptimConfig, optim), materialize(GPT, seed=1)
    names, parts = parted(model, config, 2)
    start = scatter(parts, {n: p.detach().numpy() for n, p in model.named_parameters()}, {}, {}, 0)
    for number, pieces in enumerate(parts.shards):
        one, other = (ServerShard(pieces, names, by(config)) for _ in range(2))
        one.load(start[number])

        def step(shard: ServerShard, i: int, number: int = number) -> None:
            shard.reduce([Push([flat(parts, number, random_gradients(model, i))])])
            shard.apply(1.0, 1.0)

        for i in range(3):
            step(one, i)
        other.load(one.state())
        assert other.version == 3
        for i in range(3, 6):
            step(one, i)
            step(other, i)
        assert np.array_equal(one.weights()[0], other.weights()[0])


def test_gather_undoes_scatter_over_any_number_of_servers() -> None:
    config, model = parse(OptimConfig, OPTIMS[2]), materialize(GPT, seed=1)
    weights = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    tensors = {f"{n}/exp_avg": np.random.default_rng(1).random(w.shape).astype(np.float32) for n, w in weights.items()}
    tensors |= {f"{n}/step": np.array(4.0, np.float32) for n in weights}
    for servers in (1, 2, 5):
        names, parts = parted(model, config, servers)
        w, t, numbers = gather(parts, names.trained, scatter(parts, weights, tensors, {"embed.weight/note": 3}, 7))
        assert numbers == {"embed.weight/note": 3}
        assert all(np.array_equal(w[n], weights[n]) for n in weights)
        assert set(t) == set(tensors) and all(np.array_equal(t[k], tensors[k]) for k in tensors)


def test_delay_compensation_is_the_paper_s_formula() -> None:
    config, model = parse(OptimConfig, {"kind": "sgd", "lr": 0.5, "momentum": 0.0}), materialize(MLP, seed=0)
    names, parts = parted(model, config, 1)
    shard = ServerShard(parts.shards[0], names, by(config), compensation=0.3)
    w = flat(parts, 0, dict(model.named_parameters()))
    shard.load(scatter(parts, {n: p.detach().numpy() for n, p in model.named_parameters()}, {}, {}, 0)[0])
    pulled = w + 0.1 * np.random.default_rng(0).standard_normal(len(w)).astype(np.float32)
    g = flat(parts, 0, random_gradients(model, 0))
    shard.reduce([Push([g])], pulled=[pulled])
    shard.apply(1.0, 1.0)
    np.testing.assert_allclose(shard.weights()[0], w - 0.5 * (g + 0.3 * g * g * (w - pulled)), rtol=1e-5, atol=1e-6)


def test_an_outer_optimizer_over_pieces_is_the_one_over_the_whole_and_its_state_moves_on() -> None:
    outer, model = NesterovOuter(lr=0.5, momentum=0.8), materialize(MLP, seed=0)
    names = Names.of(model)
    parts = partition(names.trained, 3, rows_may_part=True)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    shards = [ServerShard(pieces, names, lambda _, mine: OuterRule(outer, mine)) for pieces in parts.shards]
    for shard, state in zip(shards, scatter(parts, {n: w.numpy() for n, w in weights.items()}, {}, {}, 0), strict=True):
        shard.load(state)
    whole = outer.state(weights)
    for step in range(4):
        if step == 2:  # others take over
            states = [s.state() for s in shards]
            shards = [ServerShard(pieces, names, lambda _, mine: OuterRule(outer, mine)) for pieces in parts.shards]
            for shard, state in zip(shards, states, strict=True):
                shard.load(state)
        pushed = random_gradients(model, step)
        outer.update(weights, pushed, whole)
        for s, shard in enumerate(shards):
            shard.reduce([Push([flat(parts, s, pushed)])])
            shard.apply(1.0, 1.0)
    ours, tensors, _ = gather(parts, names.trained, [s.state() for s in shards])
    for n, w in weights.items():
        np.testing.assert_allclose(ours[n], w.numpy(), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(tensors[f"{n}/momentum"], whole[f"momentum/{n}"].numpy(), rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------------ settings that cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backup_workers": 2}, "backup_workers: 2 of 2 workers leaves none"),
        ({"backup_workers": 1, "mode": "async"}, "backup_workers: is for mode=sync, but mode is async"),
        ({"mode": "ssp"}, "staleness: is missing"),
        ({"staleness": 2}, "staleness: is for mode=ssp"),
        ({"delay_compensation": 0.1}, "delay_compensation: is for the modes async and ssp"),
        ({"pull": {"kind": "top-k"}}, "pull: top-k sends only part"),
        ({"replicas": 1}, "replicas: 1 copies need as many additional servers"),
        ({"address": "ray://somewhere:10001"}, "address: ray://"),
        ({"every": 5, "mode": "async"}, "every: 5 local steps need an outer optimizer"),
        ({"outer": "nesterov"}, "outer: is for the modes async and ssp"),
        ({"outer": "nesterov", "mode": "async", "delay_compensation": 1}, "delay_compensation: corrects gradients"),
        ({"workers": 0}, "workers"),
        ({"mode": "synch"}, "mode"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(ParameterServer, settings)
