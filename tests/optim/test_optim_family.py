"""The optimizers beyond SGD and Adam, against torch's own and other people's implementations; clipping by layer and by unit; schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.optim import AdamBC, OptimConfig, ScheduleConfig, ScheduleFree, clip_adaptive, clip_layers, load_optimizer, optimizer_tensors
from tauon.optim.decays import CosineRestarts, Exponential, OneCycle, Plateau, Polynomial, StepDecay


class Net(nn.Module):
    """Matrices and vectors, named as models name them; large enough in one place for 8-bit state."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.first = nn.Linear(6, width)
        self.middle = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.middle(torch.tanh(self.first(self.embed(x)))))))  # type: ignore[no-any-return]


def twins(width: int = 64) -> tuple[Net, Net]:
    torch.manual_seed(0)
    one, two = Net(width), Net(width)
    two.load_state_dict(one.state_dict())
    return one, two


def backward(model: nn.Module, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    x, y = torch.randint(0, 7, (16,), generator=g), torch.randint(0, 3, (16,), generator=g)
    nn.functional.cross_entropy(model(x), y).backward()


def descend(model: nn.Module, optimizer: Any, steps: int = 20, first: int = 0) -> None:
    for step in range(first, first + steps):
        backward(model, step)
        optimizer.step()
        model.zero_grad()


def same(one: nn.Module, two: nn.Module, tolerance: float = 1e-5) -> None:
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance / 10, msg=lambda m, n=name: f"{n}: {m}")


def by_hand(model: Net) -> list[dict[str, Any]]:
    matrices = [model.first.weight, model.middle.weight, model.head.weight]
    return [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if all(p is not m for m in matrices)], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"kind": "gd"}, lambda g: torch.optim.SGD(g, lr=0.01)),
        ({"kind": "adagrad", "initial_sum": 0.1}, lambda g: torch.optim.Adagrad(g, lr=0.01, initial_accumulator_value=0.1, foreach=False)),
        ({"kind": "rmsprop"}, lambda g: torch.optim.RMSprop(g, lr=0.01, foreach=False)),
        (
            {"kind": "rmsprop", "alpha": 0.9, "momentum": 0.8, "centered": True, "eps": 1e-6},
            lambda g: torch.optim.RMSprop(g, lr=0.01, alpha=0.9, momentum=0.8, centered=True, eps=1e-6, foreach=False),
        ),
        ({"kind": "adafactor", "clip_update": 1.5}, lambda g: torch.optim.Adafactor(g, lr=0.01, d=1.5, foreach=False)),
    ],
)
def test_twenty_steps_are_torchs_own(settings: dict[str, Any], theirs: Any) -> None:
    one, two = twins()
    descend(one, parse(OptimConfig, settings | {"lr": 0.01, "weight_decay": 0.1}).build(one))
    descend(two, theirs(by_hand(two)))
    same(one, two)


def test_lion_is_its_papers_algorithm() -> None:
    theirs = pytest.importorskip("pytorch_optimizer", reason="the reference is not installed")
    one, two = twins()
    descend(one, parse(OptimConfig, {"kind": "lion", "lr": 0.003, "weight_decay": 0.1, "betas": [0.9, 0.98]}).build(one))
    descend(two, theirs.Lion(by_hand(two), lr=0.003, betas=(0.9, 0.98), weight_decouple=True))
    same(one, two)


def test_adamw_bc_without_noise_is_adamw() -> None:
    one, two = twins()
    descend(one, parse(OptimConfig, {"kind": "adamw-bc", "lr": 0.003, "weight_decay": 0.1, "floor": 1e-30}).build(one))
    descend(two, torch.optim.AdamW(by_hand(two), lr=0.003, eps=1e-15))
    same(one, two)


def test_adamw_bc_takes_the_noise_off_the_mean_of_squares() -> None:
    """Of a constant gradient under changing noise, v - s^2 is the gradient's own square again (arXiv:2312.14334, section 3)."""
    draw = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(40_000))
    own = AdamBC([p], lr=0.0, floor=1e-12)
    for step in range(400):
        own.param_groups[0]["noise"] = s = 0.3 + 0.001 * step
        p.grad = 0.2 + s * torch.randn(p.shape, generator=draw)
        own.step()
    held = own.state[p]
    left = (held["exp_avg_sq"] - held["noise_sq"]) / (1 - 0.999**400)
    assert float(left.mean()) == pytest.approx(0.04, rel=0.05) and float(held["exp_avg_sq"].mean() / (1 - 0.999**400)) > 0.25


@pytest.mark.parametrize(("every", "largest"), [(3, 4096), (10, 5)])
def test_soap_is_the_reference_on_the_inner_matrices_and_adamw_the_rest(every: int, largest: int) -> None:
    theirs = pytest.importorskip("pytorch_optimizer", reason="the reference is not installed")
    one, two = (model.double() for model in twins(6))
    one.norm = two.norm = nn.Identity()  # type: ignore[assignment]  # gradients of full rank: eigenvectors of nothing are what rounding makes them
    settings = {"kind": "soap", "lr": 0.003, "weight_decay": 0.1, "betas": [0.9, 0.95], "every": every, "largest": largest}
    descend(one, parse(OptimConfig, settings).build(one))
    inner = [two.first.weight, two.middle.weight]
    soap = theirs.SOAP(
        inner, lr=0.003, betas=(0.9, 0.95), weight_decay=0.1, precondition_frequency=every, max_precondition_dim=largest, shampoo_beta=0.95
    )
    rest = [
        {"params": [two.head.weight], "weight_decay": 0.1},
        {
            "params": [p for n, p in two.named_parameters() if not n.endswith(("first.weight", "middle.weight", "head.weight"))],
            "weight_decay": 0.0,
        },
    ]
    adamw = torch.optim.AdamW(rest, lr=0.003, betas=(0.9, 0.95), foreach=False)

    class Both:
        def step(self) -> None:
            soap.step()
            adamw.step()

    descend(two, Both())
    same(one, two, 1e-4)


def test_schedule_free_is_the_authors_own_in_training_and_in_what_is_evaluated() -> None:
    theirs = pytest.importorskip("schedulefree", reason="the reference is not installed")
    one, two = twins()
    config = parse(OptimConfig, {"kind": "schedule-free", "lr": 0.01, "weight_decay": 0.1})
    mine = config.build(one)
    descend(one, mine)
    reference = theirs.AdamWScheduleFree(by_hand(two), lr=0.01, betas=(0.9, 0.95), foreach=False)
    reference.train()
    descend(two, reference)
    same(one, two)
    reference.eval()
    standing = config.averaged_weights(one, mine)
    assert standing is not None
    held = {n: p.detach().clone() for n, p in one.named_parameters()}
    with standing.swapped_in():
        same(one, two)
    for n, p in one.named_parameters():
        assert torch.equal(p, held[n]), f"{n} did not come back"


def test_schedule_free_goes_on_from_saved_averages_bit_for_bit() -> None:
    one, two = twins()
    config = parse(OptimConfig, {"kind": "schedule-free", "lr": 0.01})
    mine = config.build(one)
    descend(one, mine, 7)
    standing = config.averaged_weights(one, mine)
    assert standing is not None
    tensors, numbers = optimizer_tensors(mine, one)
    tensors = {k: t.clone() for k, t in tensors.items()}
    two.load_state_dict({n: x.clone() for n, x in standing.anchor.items()})  # what a checkpoint keeps is the average
    assert not torch.equal(one.middle.weight, two.middle.weight)
    other = config.build(two)
    load_optimizer(other, two, tensors, numbers)
    descend(one, mine, 5, first=7)
    descend(two, other, 5, first=7)
    for (name, p), q in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name


def test_schedule_free_refuses_a_falling_schedule() -> None:
    with pytest.raises(RecipeError, match="constant"):
        parse(OptimConfig, {"kind": "schedule-free", "schedule": "cosine"})
    assert isinstance(parse(OptimConfig, {"kind": "schedule-free"}).build(Net()), ScheduleFree)


def test_adamw8bit_is_torchaos_own_and_near_adamw() -> None:
    torchao = pytest.importorskip("torchao.optim", reason="torchao is not installed")
    from torchao.optim.adam import single_param_adam

    one, two = twins()
    optimizer = parse(OptimConfig, {"kind": "adamw8bit", "lr": 0.01, "weight_decay": 0.1}).build(one)
    assert isinstance(optimizer, torchao.AdamW8bit)
    descend(one, optimizer)
    state = optimizer.state[one.middle.weight]["exp_avg"]
    assert type(state).__name__ == "OptimState8bit" and state.codes.dtype == torch.uint8
    exact = torch.optim.AdamW(by_hand(two), lr=0.01, betas=(0.9, 0.95))
    descend(two, exact)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert (p - q).abs().mean() < 0.01  # twenty steps of 0.01; blocks of 256 share a scale
    torch.testing.assert_close(one.first.weight, two.first.weight, rtol=0.05, atol=0.02)
    assert callable(single_param_adam)


# ------------------------------------------------------------------------------------------------ clipping


def test_clipping_by_layer_is_torchs_clipping_of_each_parameter_alone() -> None:
    one, two = twins()
    for model in (one, two):
        backward(model, 0)
        model.head.weight.grad *= 1000  # type: ignore[operator]
    clip_layers(one.parameters(), 0.05)
    for p in two.parameters():
        nn.utils.clip_grad_norm_([p], 0.05)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
        assert p.grad is not None and p.grad.norm() <= 0.05 + 1e-6


def test_adaptive_clipping_bounds_each_units_gradient_by_its_weights() -> None:
    one, two = twins()
    for model in (one, two):
        backward(model, 0)
        for p in model.parameters():
            p.grad *= 10  # type: ignore[operator]
    clip_adaptive(one.named_parameters(), 0.01)
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        if name.startswith("head."):
            assert torch.equal(p.grad, q.grad)  # the output layer is left alone
            continue
        rows = p.detach().reshape(len(p), -1) if p.ndim > 1 else p.detach()[None]
        mine = p.grad.reshape(rows.shape)
        most = 0.01 * rows.norm(dim=1).clamp(min=1e-3)
        was = q.grad.reshape(rows.shape).norm(dim=1)
        torch.testing.assert_close(mine.norm(dim=1), torch.minimum(was, most), rtol=1e-4, atol=1e-8)


# ------------------------------------------------------------------------------------------------ schedules


def factors(schedule: ScheduleConfig, total: int) -> list[float]:
    return [schedule.factor(i, total) for i in range(total)]


def theirs(make: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "make"),
    [
        (StepDecay(warmup=0, at=(0.5, 0.75), gamma=0.1), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 30], 0.1)),
        (StepDecay(warmup=0, at=(7, 11), gamma=0.5), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [7, 11], 0.5)),
        (Exponential(warmup=0, final=0.01), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.01 ** (1 / 40))),
        (Polynomial(warmup=0, power=3), lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 40, power=3)),
        (CosineRestarts(warmup=0, cycles=4, final=0.1), lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=0.1)),
        (OneCycle(warmup=0.3), lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=40, pct_start=0.3)),
    ],
)
def test_a_schedule_is_torchs_own(ours: ScheduleConfig, make: Any) -> None:
    assert factors(ours, 40) == pytest.approx(theirs(make, 40), rel=1e-6, abs=1e-12)


def test_cycles_that_grow_are_torchs_own() -> None:
    ours = CosineRestarts(warmup=0, cycles=3, longer=2)
    make = lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 10, T_mult=2)  # noqa: E731
    assert factors(ours, 70) == pytest.approx(theirs(make, 70), rel=1e-6, abs=1e-9)


def test_plateau_falls_when_torchs_own_does() -> None:
    ours = Plateau(warmup=0, gamma=0.5, patience=1, threshold=0.01, least=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0.01, min_lr=0.1)
    seen: dict[str, Any] | None = None
    for loss in (3.0, 2.0, 1.99, 1.995, 1.5, 1.6, 1.6, 1.6, 1.6, 1.6, 1.7, 1.2, 1.3, 1.3, 1.3, 1.3):
        seen = ours.observe(loss, seen)
        reference.step(loss)
        assert seen["factor"] == pytest.approx(optimizer.param_groups[0]["lr"]), loss
    assert seen is not None and seen["factor"] == pytest.approx(0.1)


@pytest.mark.parametrize("at", [[], [0.5, 7], [0.7, 0.3], [0.0, 0.5]])
def test_milestones_that_make_no_sense_are_refused(at: list[float]) -> None:
    with pytest.raises(RecipeError, match="milestone"):
        parse(ScheduleConfig, {"kind": "step", "at": at})


def test_a_one_cycle_ends_near_zero() -> None:
    ends = factors(OneCycle(), 100)
    assert max(ends) == pytest.approx(1.0, abs=0.01) and ends[-1] == pytest.approx(4e-6) and math.isclose(ends[0], 0.04)
