"""No unit adds more than C to the clipped sum: inputs made to cancel, to overflow and to vanish, for every rule, mode and precision.

What is measured is what `ClippedSum.add` puts into `.grad` for one unit alone, in float64: the bound is on floating-point numbers as they are,
and not on the gradients that they stand for.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.config import parse
from tauon.models.adapters import AdaptedLinear, DoraConfig, LoraConfig
from tauon.models.families.transformer import MLP, Attention, RMSNorm
from tauon.privacy.clipped import ClippedSum, ClippingConfig
from tauon.privacy.clipped.rounding import bf16_operands, coarseness
from tauon.privacy.clipped.rules import head as head_rules
from tauon.privacy.clipped.rules import registered_rules
from tauon.tasks.losses import linear_cross_entropy, token_nll

Output = Callable[[nn.Module, Tensor], Tensor]
MODES = ("flat", "per-layer", "automatic", "adaptive")
ALLOWED = 1 + 1e-4


def contributions(
    model: nn.Module, forward: Callable[[], Tensor], g: Tensor, C: float, *, mode: str = "flat", bf16: bool = False, rows_per_unit: int = 1
) -> list[tuple[float, float]]:
    """Of each unit what it adds to the sum, in units of C (of per-layer clipping also to each parameter, in units of its own bound, the largest),
    and what it would add unclipped.

    `forward` is the recorded pass, and `g` the gradient of what it returns.
    """
    config = parse(ClippingConfig, {"kind": mode, "norm": C})
    state = config.start({n: p.numel() for n, p in model.named_parameters() if p.requires_grad})
    clipped = ClippedSum(model, rows_per_unit=rows_per_unit)
    with clipped.recording():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = forward()
        y.backward(g.to(y.dtype).view(y.shape))  # type: ignore[no-untyped-call]
    factors = config.factors(clipped.squared_norms(), state)
    found = []

    def added(factors: Tensor | dict[str, Tensor], alone: Tensor) -> Tensor:
        for p in model.parameters():
            p.grad = None
        clipped.add({n: f * alone for n, f in factors.items()} if isinstance(factors, dict) else factors * alone)
        return torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None])

    for u in range(clipped.record.units):
        alone = torch.zeros(clipped.record.units)
        alone[u] = 1.0
        norms, unclipped = added(factors, alone), float(added(alone, alone).norm()) / C
        assert bool(norms.isfinite().all())
        if not isinstance(factors, dict) and not factors[u]:  # its squares overflow, so that it is left out, unclipped as well
            unclipped = math.inf
        each = float((norms / (C * state["shares"])).max()) if mode == "per-layer" else 0.0
        found.append((max(each, float(norms.norm()) / C), unclipped))
    clipped.detach()
    return found


def cancelling(r: random.Random, g: torch.Generator, U: int, T: int, width: int, out: int) -> tuple[Tensor, Tensor]:
    """Inputs (U T width) and gradients of outputs (U T out) of which the products nearly cancel over T, at scales of all sizes."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    c, d = torch.ones(U, T, 1), -torch.ones(U, T, 1)
    pattern = r.choice(["one-against-all", "alternating", "repeated", "huge", "none"])
    if pattern == "one-against-all":
        d[:, 0] = T - 1
    elif pattern == "alternating" and T % 2 == 0:
        d[:, ::2] = 1
    elif pattern == "huge":
        c[:, 0], d[:, 0] = 10.0 ** r.uniform(0, 4), (T - 1) * 10.0 ** r.uniform(-4, 0)
    noise = [10.0 ** r.uniform(-8, 0) for _ in range(2)]
    x = c * normal(U, 1, width) + noise[0] * normal(U, T, width)
    w = d * normal(U, 1, out) + noise[1] * normal(U, T, out)
    if pattern == "none":
        x, w = normal(U, T, width), normal(U, T, out)
    w = w * 10.0 ** (torch.rand(U, 1, 1, generator=g) * 35 - 20)
    w[U - 1] *= r.choice([0.0, 1.0])
    return x * 10.0 ** r.uniform(-3, 3), w


class Difference(nn.Module):
    """One layer used twice, with opposite signs."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) - self.layer(x * (1 + 1e-5))


class Sparse(nn.Module):
    """One layer used on all positions and on half of them: kept in two forms."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) - F.pad(self.layer(x[:, :1]), (0, 0, 0, x.shape[1] - 1))


class Tied(nn.Module):
    """Rows of a table against all of them: what the table gets as an embedding, it loses as a head."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.table(ids), self.table.weight)


class Odd(nn.Module):
    """No rule knows it."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(out, width)), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, self.a) + self.b


class Bare(nn.Module):
    """Parameters of a parent, used directly."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.scale, self.matrix = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width, out))
        self.layer = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x * self.scale) @ self.matrix)


def adapted(width: int, out: int, config: LoraConfig) -> nn.Module:
    layer = nn.Linear(width, out)
    AdaptedLinear.wrap(layer, config)
    for p in layer.parameters():
        nn.init.normal_(p, 0, 0.3)
    layer.weight.requires_grad_(False)
    return layer


def of_positions(make: Callable[[int, int], nn.Module], T: int = 32, width: int = 48, out: int = 40) -> Callable[..., tuple]:
    def case(r: random.Random, g: torch.Generator) -> tuple:
        model = make(width, out)
        for p in model.parameters():  # ours are initialised by whole models
            nn.init.normal_(p, 0, width**-0.5)
        x, w = cancelling(r, g, 4, T, width, out)
        return model, (lambda: model(x)), w

    return case


def of_pictures(make: Callable[[], nn.Module], size: tuple[int, ...]) -> Callable[..., tuple]:
    def case(r: random.Random, g: torch.Generator) -> tuple:
        model = make()
        channels = next(p for p in model.parameters() if p.ndim > 1 or p.ndim == 1).shape
        inputs = channels[1] * getattr(model, "groups", 1) if len(channels) > 1 else channels[0]
        shape = model(torch.zeros(1, inputs, *size)).shape
        x, _ = cancelling(r, g, 4, size.numel() if isinstance(size, torch.Size) else torch.Size(size).numel(), inputs, 1)
        _, w = cancelling(r, g, 4, shape[2:].numel(), 1, shape[1])
        x, w = x.mT.reshape(4, inputs, *size).contiguous(), w.mT.reshape(4, *shape[1:]).contiguous()
        return model, (lambda: model(x)), w

    return case


def embedding(r: random.Random, g: torch.Generator) -> tuple:
    model = nn.Embedding(7, 24)
    ids = torch.randint(0, r.choice([1, 7]), (4, 32), generator=g)
    return model, (lambda: model(ids)), cancelling(r, g, 4, 32, 1, 24)[1]


def tied(r: random.Random, g: torch.Generator) -> tuple:
    rows = 24
    model = Tied(rows, 16)
    ids = torch.stack([torch.randperm(rows, generator=g) for _ in range(4)])
    w = torch.randn(4, rows, rows, generator=g)
    w = (w - w.mT).gather(1, ids[:, :, None].expand(-1, -1, rows))
    return model, (lambda: model(ids)), w + 10.0 ** r.uniform(-8, 0) * torch.randn(w.shape, generator=g)


def attention(r: random.Random, g: torch.Generator) -> tuple:
    model = nn.MultiheadAttention(16, 2, batch_first=True)
    x, w = cancelling(r, g, 4, 32, 16, 16)
    x = x / x.abs().amax()
    return model, (lambda: model(x, x, x, need_weights=False)[0]), w


def recurrent(kind: type[nn.Module]) -> Callable[..., tuple]:
    def case(r: random.Random, g: torch.Generator) -> tuple:
        model = kind(12, 16, batch_first=True)
        x, w = cancelling(r, g, 4, 32, 12, 16)
        return model, (lambda: model(x)[0]), w

    return case


CASES: dict[str, Callable[[random.Random, torch.Generator], tuple]] = {
    "linear": of_positions(nn.Linear),
    "linear-wide": of_positions(nn.Linear, 64, 256, 256),
    "linear-formed": of_positions(nn.Linear, 200, 6, 5),
    "linear-one-position": of_positions(nn.Linear, 1),
    "embedding": embedding,
    "conv1d": of_pictures(lambda: nn.Conv1d(4, 6, 3, padding=1), (40,)),
    "conv2d-many-channels": of_pictures(lambda: nn.Conv2d(12, 9, 3, padding=1), (6, 6)),
    "conv2d-gram": of_pictures(lambda: nn.Conv2d(24, 40, 3, padding=1), (2, 2)),
    "conv2d-pieces": of_pictures(lambda: nn.Conv2d(24, 40, 3, padding=1, groups=2), (2, 2)),
    "conv3d": of_pictures(lambda: nn.Conv3d(4, 5, 2), (4, 4, 4)),
    "layer-norm": of_positions(lambda width, out: nn.LayerNorm(width), 32, 40, 40),
    "rms-norm": of_positions(lambda width, out: nn.RMSNorm(width), 32, 40, 40),
    "our-rms-norm": of_positions(lambda width, out: RMSNorm(width), 32, 40, 40),
    "group-norm": of_pictures(lambda: nn.GroupNorm(2, 6), (5, 5)),
    "instance-norm": of_pictures(lambda: nn.InstanceNorm2d(6, affine=True), (5, 5)),
    "attention": attention,
    "our-attention": of_positions(lambda width, out: Rest(Attention(width, 2, 1, bias=True, qk_norm=True)), 32, 16, 16),
    "our-mlp": of_positions(lambda width, out: MLP(width, 24, "swiglu", bias=False), 32, 16, 16),
    "lstm": recurrent(nn.LSTM),
    "gru": recurrent(nn.GRU),
    "rnn": recurrent(nn.RNN),
    "lora": of_positions(lambda width, out: adapted(width, out, LoraConfig(rank=3))),
    "dora": of_positions(lambda width, out: adapted(width, out, DoraConfig(rank=3))),
    "generic": of_positions(Odd, 16, 12, 10),
    "bare": of_positions(Bare, 32, 12, 10),
    "opposite-signs": of_positions(Difference),
    "two-forms": of_positions(Sparse, 200, 6, 5),
    "tied": tied,
}


class Rest(nn.Module):
    """Ours takes two more arguments."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, None, None)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_no_unit_adds_more_than_the_bound(name: str, bf16: bool) -> None:
    r, g = random.Random(name), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if bf16 and name in ("lstm", "gru", "rnn"):
        pytest.skip("torch's CPU kernels of gates know no mixed types under autocast")
    for i in range(12):
        model, forward, w = CASES[name](r, g)
        mode, C = MODES[i % 4], 10.0 ** r.choice([-6, -3, 0])
        units = 2 if i % 3 == 0 else 1
        for clipped, whole in contributions(model, forward, w, C, mode=mode, bf16=bf16, rows_per_unit=units):
            assert clipped <= ALLOWED, f"{clipped} of the bound {C} in {mode}, trial {i}, {units} rows a unit"
            if mode == "flat" and whole * C < 1e18:  # beyond, squares overflow, and the factor is zero
                assert clipped >= 0.97 * min(1.0, whole), f"{clipped} of {whole}, trial {i}"


@pytest.mark.parametrize("name", ["linear", "linear-formed", "linear-one-position", "conv2d-gram", "embedding", "lora", "tied"])
def test_products_that_round_their_operands_first_are_allowed_for(name: str) -> None:
    """`torch.set_float32_matmul_precision("medium")`: float32 products of bf16 operands, where the processor has them."""
    r, g = random.Random(name), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for i in range(8):
        model, forward, w = CASES[name](r, g)
        with bf16_operands():
            assert coarseness(torch.device("cpu")) > 0
            for clipped, _ in contributions(model, forward, w, 1e-3, mode=MODES[i % 4]):
                assert clipped <= ALLOWED
        assert coarseness(torch.device("cpu")) == 0


def test_every_registered_rule_is_attacked() -> None:
    seen: set[type] = set()
    for case in CASES.values():
        seen |= {type(m) for m in case(random.Random(0), torch.Generator())[0].modules()}
    ours = [k for k in registered_rules() if k.__module__.startswith(("torch", "tauon"))]
    enrolled = {
        k for k in ours if getattr(sys.modules[k.__module__], k.__name__, None) is k
    }  # not those that an example in a docstring registered
    assert not enrolled - seen - {nn.InstanceNorm1d, nn.InstanceNorm3d}


class Scored(nn.Module):
    """A loss takes the head itself."""

    def __init__(self, rows: int, width: int, *, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.head = nn.Linear(width, rows, bias=False)
        if tied:
            self.head.weight = self.table.weight
        with torch.no_grad():
            self.head.weight.mul_(1e-3)  # all classes nearly alike: p less one at the target adds up to nearly nothing

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.zeros(x.shape[:2], dtype=torch.long))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "formed-again"])
@pytest.mark.parametrize("T", [16, 64], ids=["short", "long"])
@pytest.mark.parametrize("how", ["summed", "each"])
def test_no_unit_adds_more_than_the_bound_through_a_head_that_a_loss_takes(
    how: str, T: int, kept: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states that are nearly one, and every class as often the target: the gradients of the positions cancel."""
    if not kept:
        monkeypatch.setattr(head_rules, "KEPT", 0)
    r, g = random.Random(f"{how}/{T}"), torch.Generator().manual_seed(T)
    torch.manual_seed(0)
    V, D = 8, 24
    for i in range(8):
        model = Scored(V, D, tied=i % 2 == 1)
        x, w = cancelling(random.Random(i), g, 4, T, D, 1)
        x = x / x.abs().amax() if i % 4 else x
        target = torch.arange(T).remainder(V).repeat(4)
        weight = w[:, :1, 0].abs().expand(4, T).flatten()

        def forward(model: Scored = model, x: Tensor = x, weight: Tensor = weight, target: Tensor = target) -> Tensor:
            h = model(x).flatten(0, 1)
            h = h.bfloat16() if bf16 else h
            if how == "summed":
                return linear_cross_entropy(h, model.head.weight, target, weight)
            return (token_nll(h, model.head.weight, target) * weight).sum()

        C = 10.0 ** r.choice([-6, -3, 0])
        for clipped, whole in contributions(model, forward, torch.ones(()), C, mode=MODES[i % 4], bf16=bf16):
            assert clipped <= ALLOWED, f"{clipped} of the bound {C}, trial {i}"
            if MODES[i % 4] == "flat" and whole * C < 1e18:
                assert clipped >= 0.97 * min(1.0, whole)


@pytest.mark.parametrize("rows_per_unit", [1, 3])
def test_many_small_numbers_beside_a_large_one_count(rows_per_unit: int) -> None:
    """Squares that are each lost beside a sum, and together are not."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(2**21))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model, x = Wide(), torch.full((3, 2**21), 2e-4)
    x[:, 0] = 1.0
    for clipped, whole in contributions(model, lambda: model(x), torch.ones(3, 2**21), 1.0, rows_per_unit=rows_per_unit):
        assert whole > 1.03
        assert 0.999 <= clipped <= ALLOWED


def test_a_gradient_beyond_the_range_of_squares_adds_no_more_than_the_bound() -> None:
    torch.manual_seed(0)
    for size, T in itertools.product((1e10, 1e20, 1e30), (1, 8)):
        model, x = nn.Linear(16, 16), torch.randn(2, T, 16)
        x[1] *= 1e-22
        for clipped, _ in contributions(model, partial(model, x), size * torch.ones(2, T, 16), 1.0):
            assert clipped <= ALLOWED


@pytest.mark.parametrize("mode", ["flat", "per-layer", "automatic", "adaptive"])
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("name", ["linear", "positions", "embedding and head", "convolution", "norm"])
def test_a_gradient_that_is_not_finite_is_left_out(name: str, wrong: float, mode: str) -> None:
    """Whether one example overflows must not show: the sum is that of the others, to the last bits, and finite."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    if name == "linear":
        model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(5, 4, generator=g)
    elif name == "positions":
        model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), torch.randn(5, 7, 4, generator=g)
    elif name == "embedding and head":
        model, x = TiedHead(), torch.randint(0, 6, (5, 3), generator=g)
    elif name == "convolution":
        model, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 4)), torch.randn(5, 2, 4, 4, generator=g)
    else:
        model, x = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), torch.randn(5, 3, 4, generator=g)
    weights = torch.ones(5, 1)
    weights[2] = wrong  # of the loss: its gradient overflows, or has no value
    config = parse(ClippingConfig, {"kind": mode})
    state = config.start({n: p.numel() for n, p in model.named_parameters()})

    def summed(rows: list[int]) -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        clipped = ClippedSum(model)
        with clipped.recording():
            (model(x[rows]).flatten(1).square() * weights[rows]).sum().backward()
        clipped.add(config.factors(clipped.squared_norms(), state))
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole, others, none = summed([0, 1, 2, 3, 4]), summed([0, 1, 3, 4]), summed([2])
    for n, p in whole.items():
        assert bool(p.isfinite().all()), n
        torch.testing.assert_close(p, others[n], rtol=1e-5, atol=1e-6 * float(others[n].abs().max()))
        assert not bool(none[n].any()), n


class TiedHead(nn.Module):
    """A head that is the embedding, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.table(ids), self.table.weight)


def test_a_layer_of_an_example_that_cancels_costs_the_others_nothing() -> None:
    """64 positions of a 256 x 256 layer. Formed is the one unit whose positions cancel."""
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(256, 256)
    x, w = torch.randn(4, 64, 256, generator=g), torch.randn(4, 64, 256, generator=g)
    v, d = torch.randn(256, generator=g), torch.ones(64, 1)
    x[1], d[0] = x[1, 0], -63.0
    w[1] = (d * v + 3e-4 * torch.randn(64, 256, generator=g)) * 1e4
    found = contributions(model, lambda: model(x), w, 1.0)
    assert all(0.98 <= c <= ALLOWED for c, _ in found)
    clipped = ClippedSum(model)
    with clipped.recording():
        model(x).backward(w)
    clipped.squared_norms()
    assert {name: units.tolist() for name, (units, _) in clipped._formed.items()} == {"weight": [1]}
