"""Optimizers, clipping and schedules against torch's own and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauon.config import parse
from tauon.models import CNNConfig, GPT2Config, GPTConfig, MLPConfig, materialize
from tauon.optim import WSD, Constant, Cosine, OptimConfig, ScheduleConfig, clip_gradients, decay_groups
from tauon.optim.schedule import Linear
from tauon.types import DataSpec


class Net(nn.Module):
    """Matrices and vectors, named as models name them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.first = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.first(self.embed(x)))))  # type: ignore[no-any-return]


def twins() -> tuple[Net, Net]:
    torch.manual_seed(0)
    one, two = Net(), Net()
    two.load_state_dict(one.state_dict())
    return one, two


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 20) -> None:
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randint(0, 7, (16,), generator=g), torch.randint(0, 3, (16,), generator=g)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def same(one: nn.Module, two: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def by_hand(model: Net) -> list[dict[str, Any]]:
    """What decays, written out."""
    return [
        {"params": [model.first.weight, model.head.weight], "weight_decay": 0.1},
        {"params": [model.embed.weight, model.first.bias, model.norm.weight, model.norm.bias, model.head.bias], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"kind": "adamw", "betas": [0.8, 0.99], "eps": 1e-7}, lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.8, 0.99), eps=1e-7, foreach=False, fused=False)),
        ({"kind": "adam"}, lambda g: torch.optim.Adam(g, lr=0.01, foreach=False, fused=False)),
        ({"kind": "sgd", "momentum": 0}, lambda g: torch.optim.SGD(g, lr=0.01, foreach=False, fused=False)),
        ({"kind": "sgd", "momentum": 0.8}, lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.8, foreach=False, fused=False)),
        ({"kind": "sgd", "momentum": 0.8, "nesterov": True}, lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.8, nesterov=True, foreach=False, fused=False)),
    ],
)  # fmt: skip
def test_twenty_steps_are_torchs_own(settings: dict[str, Any], theirs: Any) -> None:
    one, two = twins()
    descend(one, parse(OptimConfig, settings | {"lr": 0.01, "weight_decay": 0.1}).build(one))
    descend(two, theirs(by_hand(two)))
    same(one, two)


def test_muon_takes_the_inner_matrices_and_adamw_the_rest() -> None:
    one, two = twins()
    config = parse(OptimConfig, {"kind": "muon", "lr": 0.02, "adamw_lr": 0.003, "momentum": 0.9, "betas": [0.8, 0.95], "weight_decay": 0.1})
    descend(one, config.build(one))
    muon = torch.optim.Muon([two.first.weight], lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1)
    rest = [
        {"params": [two.head.weight], "weight_decay": 0.1},
        {"params": [two.embed.weight, two.first.bias, two.norm.weight, two.norm.bias, two.head.bias], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(rest, lr=0.003, betas=(0.8, 0.95), eps=1e-10, foreach=False, fused=False)

    class Both:
        def step(self) -> None:
            muon.step()
            adamw.step()

        def zero_grad(self) -> None:
            two.zero_grad()

    descend(two, Both())  # type: ignore[arg-type]
    same(one, two)


def test_a_learning_rate_set_on_a_group_is_the_parts_own() -> None:
    one, _ = twins()
    optimizer = parse(OptimConfig, {"kind": "muon"}).build(one)
    before = {n: p.detach().clone() for n, p in one.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    descend(one, optimizer, steps=2)
    assert all(torch.equal(p, before[n]) for n, p in one.named_parameters())


@pytest.mark.parametrize(
    "config", [GPTConfig(layers=1, width=16, heads=2, vocab=9, seq_len=4), GPT2Config(layers=1, width=16, heads=2, vocab=9, seq_len=4)]
)
def test_of_a_transformer_only_matrices_decay(config: Any) -> None:
    model = materialize(config, seed=0)
    decaying, free = decay_groups(model.named_parameters(), 0.1, 0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    assert decaying["weight_decay"] == 0.5 and free["weight_decay"] == 0.0
    for p in decaying["params"]:
        assert p.ndim == 2 and not names[id(p)].startswith(("embed", "positions")) and "norm" not in names[id(p)]
    free_names = {names[id(p)] for p in free["params"]}
    assert all("norm" in n or n.endswith("bias") or n.startswith(("embed", "positions")) for n in free_names)
    assert len(decaying["params"]) + len(free["params"]) == len(names)


def test_of_other_models_too() -> None:
    spec = DataSpec(input_shape=(1, 8, 8), outputs=3, labels=("a", "b", "c"))
    for config, decay in (
        (MLPConfig(), ["layers.0.weight", "layers.1.weight"]),
        (CNNConfig(channels=(8,)), ["convs.0.weight", "head.weight"]),
    ):
        model = materialize(config.resolve(spec), seed=0)
        names = {id(p): n for n, p in model.named_parameters()}
        assert sorted(names[id(p)] for p in decay_groups(model.named_parameters(), 0.1, 0.5)[0]["params"]) == decay


def test_what_does_not_train_is_in_no_group() -> None:
    one, _ = twins()
    one.first.requires_grad_(False)
    for kind in ("adamw", "muon", "sgd"):
        held = {id(p) for g in parse(OptimConfig, {"kind": kind}).build(one).param_groups for p in g["params"]}
        assert held == {id(p) for p in one.parameters() if p.requires_grad}


# ------------------------------------------------------------------------------------------------ clipping


def with_gradients(scale: float) -> Net:
    one, _ = twins()
    g = torch.Generator().manual_seed(2)
    for p in one.parameters():
        p.grad = torch.randn(p.shape, generator=g) * scale
    one.norm.bias.grad = None  # a parameter that was not used
    return one


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize(("norm", "value"), [(1.0, None), (None, 0.3), (0.5, 0.3), (None, None), (1e9, 1e9)])
def test_clipping_is_torchs_own(scale: float, norm: float | None, value: float | None) -> None:
    one, two = with_gradients(scale), with_gradients(scale)
    returned = clip_gradients(one.parameters(), norm, value)
    if value is not None:
        nn.utils.clip_grad_value_(two.parameters(), value, foreach=False)
    wanted = nn.utils.clip_grad_norm_(two.parameters(), norm if norm is not None else math.inf, foreach=False)
    torch.testing.assert_close(returned, wanted)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_element_shows_in_the_norm(bad: float) -> None:
    model = with_gradients(1.0)
    assert model.first.weight.grad is not None
    model.first.weight.grad[0, 0] = bad
    assert not torch.isfinite(clip_gradients(model.parameters(), 1.0, None))


def test_no_gradient_is_a_norm_of_zero() -> None:
    assert clip_gradients(Net().parameters(), 1.0, 1.0).item() == 0.0


# ------------------------------------------------------------------------------------------------ schedules


def factors(schedule: ScheduleConfig, total: int) -> list[float]:
    return [schedule.factor(i, total) for i in range(total)]


def test_cosine_is_torchs_annealing_after_the_warm_up() -> None:
    total, rise, final = 50, 10, 0.1
    ours = factors(Cosine(warmup=rise, final=final), total)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - rise, eta_min=final)
    wanted = []
    for _ in range(total - rise):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert ours[rise:] == pytest.approx(wanted, rel=1e-6)
    assert ours[:rise] == pytest.approx([(i + 1) / (rise + 1) for i in range(rise)])


def test_linear_wsd_and_constant_are_their_closed_forms() -> None:
    assert factors(Linear(warmup=0, final=0.2), 8) == pytest.approx([1 - 0.8 * i / 8 for i in range(8)])
    assert factors(Constant(warmup=2), 5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    wsd = factors(WSD(warmup=0, decay=0.5, final=0.0), 20)
    assert wsd[:11] == [1.0] * 11
    assert wsd[10:] == pytest.approx([1 - i / 10 for i in range(10)])
    assert factors(WSD(warmup=0, decay=1.0), 4) == pytest.approx(factors(Linear(warmup=0), 4))


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [("5%", 200, 10), (0.5, 10, 5), (0, 10, 0), (3, 10, 3), ("2k", 10, 2000), (1, 10, 1)]
)
def test_a_warm_up_is_a_share_or_a_number_of_steps(warmup: Any, total: int, steps: int) -> None:
    assert parse(ScheduleConfig, {"kind": "cosine", "warmup": warmup}).warmup_steps(total) == steps


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    rising = factors(Cosine(warmup=100), 10)
    assert rising == sorted(rising) and rising[-1] < 0.11
