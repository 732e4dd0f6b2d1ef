"""Every layer rule: norms and clipped sums equal the loop over single examples, at random shapes; and Opacus where it knows the layer."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tauon.models.adapters import AdaptedLinear, DoraConfig, LoraConfig
from tauon.models.families.transformer import MLP, Attention, RMSNorm
from tauon.privacy.clipped import ClippedSum, register_rule, registered_rules
from tauon.testing import check_clipping, gradients_one_by_one

Case = tuple[nn.Module, Tensor]


def adapted(r: random.Random, config: type[LoraConfig] = LoraConfig, **kwargs: float) -> AdaptedLinear:
    layer = nn.Linear(r.randint(3, 30), r.randint(2, 20))
    AdaptedLinear.wrap(layer, config(rank=3, **kwargs))
    for p in layer.parameters():
        nn.init.normal_(p, 0, 0.3)
    layer.weight.requires_grad_(False)
    assert isinstance(layer, AdaptedLinear)
    return layer


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Bare(nn.Module):
    """Parameters of a parent, used directly in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 5))
        self.positions = nn.Parameter(torch.randn(4, 5))
        self.scale = nn.Parameter(torch.randn(5))
        self.matrix = nn.Parameter(torch.randn(5, 3))
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.first.expand(len(x), -1, -1), x[:, :3]], 1) + self.positions
        return (self.layer(h) * self.scale) @ self.matrix


class Odd(nn.Module):
    """A layer that nobody has written a rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x * torch.sigmoid(self.b), self.a.softmax(1))


class Cross(nn.Module):
    """torch's attention, to something else."""

    def __init__(self, **kwargs: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        other = x.flip(1)[:, :3]
        return self.attention(x, other[..., : self.attention.kdim or 8], other[..., : self.attention.vdim or 8], need_weights=False)[0]


def conv(r: random.Random, dims: int, **kwargs: int | str) -> Case:
    groups = int(kwargs.pop("groups", 1))
    each, out = r.choice([1, 2, 9, 12]), r.choice([2, 3, 10])
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    kernel = tuple(r.randint(1, 3) for _ in range(dims))
    layer = kind(each * groups, out * groups, kernel, groups=groups, **kwargs)
    return layer, torch.randn(r.randint(2, 4), each * groups, *(r.randint(6, 9) for _ in range(dims)))


CASES: dict[str, Callable[[random.Random], Case]] = {
    "linear": lambda r: (nn.Linear(a := r.randint(1, 40), r.randint(1, 40)), torch.randn(r.randint(2, 6), r.randint(1, 30), a)),
    "linear-rows": lambda r: (nn.Linear(a := r.randint(1, 40), r.randint(1, 40), bias=False), torch.randn(r.randint(2, 6), a)),
    "linear-many": lambda r: (nn.Linear(7, 3), torch.randn(r.randint(2, 6), 3, r.randint(1, 9), 7)),
    "linear-dense": lambda r: (nn.Linear(5, 4), torch.randn(3, 60, 5)),
    "embedding": lambda r: (nn.Embedding(9, 4, padding_idx=2), torch.randint(0, 9, (r.randint(2, 5), r.randint(1, 12)))),
    "embedding-rows": lambda r: (nn.Embedding(9, 4), torch.randint(0, 9, (r.randint(2, 5),))),
    "conv1d": lambda r: conv(r, 1, padding=r.randint(0, 2), dilation=r.randint(1, 2)),
    "conv2d": lambda r: conv(r, 2, padding=1),
    "conv2d-stride": lambda r: conv(r, 2, padding=r.randint(0, 2), stride=r.randint(2, 3)),
    "conv2d-groups": lambda r: conv(r, 2, groups=r.randint(2, 3), padding=1, dilation=r.randint(1, 2), stride=r.randint(1, 2)),
    "conv2d-same": lambda r: conv(r, 2, padding="same", dilation=r.randint(1, 2)),
    "conv2d-reflect": lambda r: conv(r, 2, padding=1, padding_mode="reflect"),
    "conv2d-large": lambda r: (nn.Conv2d(24, 40, 3, padding=1), torch.randn(2, 24, 2, 2)),
    "conv2d-last": lambda r: (nn.Conv2d(12, 9, 3), torch.randn(3, 12, 6, 7).contiguous(memory_format=torch.channels_last)),
    "conv3d": lambda r: conv(r, 3, padding=r.randint(0, 1), stride=r.randint(1, 2)),
    "conv3d-groups": lambda r: conv(r, 3, groups=2),
    "layer-norm": lambda r: (nn.LayerNorm(a := r.randint(2, 20)), torch.randn(3, r.randint(1, 6), a)),
    "layer-norm-two": lambda r: (nn.LayerNorm((3, 4), bias=False), torch.randn(3, r.randint(1, 6), 3, 4)),
    "rms-norm": lambda r: (nn.RMSNorm(a := r.randint(2, 20)), torch.randn(3, r.randint(1, 6), a)),
    "rms-norm-two": lambda r: (nn.RMSNorm((3, 4)), torch.randn(3, 3, 4)),
    "our-rms-norm": lambda r: (RMSNorm(a := r.randint(2, 20)), torch.randn(3, r.randint(1, 6), 2, a)),
    "group-norm": lambda r: (nn.GroupNorm(2, 2 * (a := r.randint(1, 5))), torch.randn(3, 2 * a, 4, 5)),
    # behind a convolution, as torch 2.13 itself falls over where a GroupNorm's input in channels_last wants no gradient
    "group-norm-last": lambda r: (nn.Sequential(nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6)), torch.randn(3, 6, 4, 5).contiguous(memory_format=torch.channels_last)),
    "instance-norm": lambda r: (nn.InstanceNorm2d(5, affine=True), torch.randn(3, 5, 4, r.randint(2, 5))),
    "instance-norm1d": lambda r: (nn.InstanceNorm1d(5, affine=True), torch.randn(3, 5, 4)),
    "attention": lambda r: (nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, r.randint(2, 5), 8)),
    "attention-cross": lambda r: (Cross(), torch.randn(3, 4, 8)),
    "attention-other-widths": lambda r: (Cross(kdim=5, vdim=6), torch.randn(3, 4, 8)),
    "transformer-layer": lambda r: (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), torch.randn(3, 4, 8)),
    "our-attention": lambda r: (Attention(8, 2, 1, bias=True, qk_norm=True), torch.randn(3, 4, 8)),
    "our-mlp": lambda r: (MLP(8, 12, "swiglu", bias=False), torch.randn(3, 4, 8)),
    "lstm": lambda r: (nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True), torch.randn(3, r.randint(1, 6), 3)),
    "lstm-projected": lambda r: (nn.LSTM(3, 5, proj_size=2, batch_first=True), torch.randn(3, r.randint(1, 6), 3)),
    "gru": lambda r: (nn.GRU(3, 4, num_layers=2, batch_first=True, bias=r.random() < 0.5), torch.randn(3, r.randint(1, 6), 3)),
    "rnn": lambda r: (nn.RNN(3, 4, batch_first=True, nonlinearity=r.choice(["tanh", "relu"])), torch.randn(3, r.randint(1, 6), 3)),
    "lora": lambda r: ((a := adapted(r)), torch.randn(3, r.randint(1, 40), a.in_features)),
    "lora-apart": lambda r: ((a := adapted(r)), torch.randn(3, a.in_features)),
    "dora": lambda r: ((a := adapted(r, DoraConfig)), torch.randn(3, r.randint(1, 9), a.in_features)),
    "twice": lambda r: (Twice(), torch.randn(4, r.randint(1, 5), 6)),
    "bare-parameters": lambda r: (Bare(), torch.randn(4, 4, 5)),
    "generic": lambda r: (Odd(), torch.randn(4, r.randint(1, 5), 6)),
}  # fmt: skip


def loss_of(x: Tensor) -> Callable[[nn.Module, int, int], Tensor]:
    """A sum over rows in which every output has a weight of its own."""

    def loss(model: nn.Module, start: int, stop: int) -> Tensor:
        if isinstance(model, nn.MultiheadAttention):
            y = model(x[start:stop], x[start:stop], x[start:stop])[0]
        elif isinstance(model, Attention):
            y = model(x[start:stop], None, None)
        else:
            y = model(x[start:stop])
        y = y[0] if isinstance(y, tuple) else y
        weight = torch.cos(torch.arange(y[0].numel())).view(y.shape[1:])
        return ((y * weight).flatten(1).sum(1) + (y.square()).flatten(1).sum(1)).sum()

    return loss


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_rule_equals_one_example_at_a_time(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer, x = CASES[name](random.Random(f"{name}/{seed}"))
    for module in layer.modules():
        for p in module.parameters(recurse=False):
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RMSNorm, nn.InstanceNorm2d)):
                nn.init.uniform_(p, 0.5, 1.5)
    check_clipping(layer, loss_of(x), len(x), tolerance=2e-5)
    check_clipping(layer, loss_of(x), len(x), tolerance=2e-5, microbatch=2)
    if len(x) % 2 == 0:
        check_clipping(layer, loss_of(x), len(x), rows_per_unit=2, tolerance=2e-5)


def test_every_registered_rule_is_enrolled() -> None:
    seen: set[type] = set()
    for name, case in CASES.items():
        seen |= {type(m) for m in case(random.Random(name))[0].modules()}
    ours = [k for k in registered_rules() if k.__module__.startswith(("torch", "tauon"))]
    enrolled = {
        k for k in ours if getattr(sys.modules[k.__module__], k.__name__, None) is k
    }  # not those that an example in a docstring registered
    assert not enrolled - seen - {nn.InstanceNorm3d}


OPACUS = ["linear", "linear-rows", "embedding", "conv1d", "conv2d", "conv3d", "conv2d-groups", "layer-norm", "group-norm", "instance-norm"]


@pytest.mark.parametrize("name", OPACUS)
def test_norms_equal_those_of_opacus(name: str) -> None:
    pytest.importorskip("opacus", reason="needs the bench extra (opacus)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule

        torch.manual_seed(1)
        layer, x = CASES[name](random.Random(name))
        loss = loss_of(x)
        clipped = ClippedSum(layer)
        with clipped.recording():
            loss(layer, 0, len(x)).backward()
        ours = clipped.squared_norms()
        clipped.forget()
        theirs = GradSampleModule(layer, loss_reduction="sum")
        loss(theirs, 0, len(x)).backward()
        for n, p in layer.named_parameters():
            torch.testing.assert_close(ours[n], p.grad_sample.flatten(1).square().sum(1), rtol=1e-4, atol=1e-5)


def test_a_rule_of_ones_own() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    @register_rule(Scale)
    def scale(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        return {"weight": (g * x).flatten(1, -2).sum(1)}

    x = torch.randn(4, 3, 4)
    check_clipping(nn.Sequential(nn.Linear(4, 4), Scale()), loss_of(x), 4)
    assert set(gradients_one_by_one(Scale(), loss_of(x), 4)) == {"weight"}
