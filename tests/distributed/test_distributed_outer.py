"""Outer optimizers against torch's own and against closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tauon.config import parse, registered
from tauon.distributed import AdamOuter, AverageOuter, DelayedNesterovOuter, NesterovOuter, OuterConfig, outer_gradient, weighted_mean
from tauon.distributed.int8 import BLOCK, from_int8, packed_size, to_int8
from tauon.errors import RecipeError


def weights(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(4, 3, generator=g), "b": torch.randn(5, generator=g)}


def members() -> list[OuterConfig]:
    given: dict[str, dict[str, Any]] = {"delayed-nesterov": {"delay": 2}}
    return [parse(OuterConfig, {"kind": kind, **given.get(kind, {})}) for kind in registered("outer")]


def test_nesterov_is_torch_sgd_on_the_outer_gradients_bit_for_bit() -> None:
    anchor = weights(0)
    theirs = {k: torch.nn.Parameter(x.clone()) for k, x in anchor.items()}
    sgd = torch.optim.SGD(theirs.values(), lr=0.7, momentum=0.9, nesterov=True, foreach=False)
    outer = NesterovOuter(lr=0.7, momentum=0.9)
    state = outer.state(anchor)
    for step in range(5):
        local = weights(step + 1)
        gradient = outer_gradient(anchor, local)
        for name, p in theirs.items():
            p.grad = p.detach() - local[name]
        sgd.step()
        outer.update(anchor, gradient, state)
        for name, p in theirs.items():
            torch.testing.assert_close(anchor[name], p.detach(), rtol=0, atol=0)


def test_average_at_rate_one_is_the_mean_of_the_weights() -> None:
    anchor, locals_ = weights(0), [weights(1), weights(2), weights(3)]
    examples = [10, 30, 60]
    mean = weighted_mean([outer_gradient(anchor, w) for w in locals_], examples)
    AverageOuter().update(anchor, mean, {})
    for name in anchor:
        expected = sum((n / 100 * w[name] for n, w in zip(examples, locals_, strict=True)), torch.zeros(()))
        torch.testing.assert_close(anchor[name], expected, rtol=0, atol=1e-6)


def test_adam_is_the_first_steps_of_fedadam_by_hand() -> None:
    anchor = {"x": torch.tensor([1.0])}
    outer = AdamOuter(lr=0.1, betas=(0.9, 0.99), eps=0.01)
    state = outer.state(anchor)
    m, v, x = 0.0, 0.01**2, 1.0
    for g in (0.5, -0.2, 0.3):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        x -= 0.1 * m / (v**0.5 + 0.01)
        outer.update(anchor, {"x": torch.tensor([g])}, state)
        assert anchor["x"].item() == pytest.approx(x, abs=1e-6)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_delayed_nesterov_ends_a_round_where_nesterov_on_the_mean_does_in_any_order_of_arrival(order: tuple[int, ...]) -> None:
    """c = 0, and answers that do not depend on when they arrive: what the anchor went through on the way does not matter."""
    rounds = [[weights(10 * r + k) for k in range(3)] for r in range(4)]
    anchor, plain = weights(99), weights(99)
    delayed, nesterov = DelayedNesterovOuter(lr=0.5, momentum=0.8, delay=3), NesterovOuter(lr=0.5, momentum=0.8)
    state, other = delayed.state(anchor), nesterov.state(plain)
    for gradients in rounds:
        for k in order:
            delayed.update(anchor, gradients[k], state)
        nesterov.update(plain, weighted_mean(gradients), other)
        for name in plain:
            torch.testing.assert_close(anchor[name], plain[name], rtol=1e-5, atol=1e-5)


def test_delayed_nesterov_of_one_worker_is_nesterov() -> None:
    one, two = weights(0), weights(0)
    delayed, nesterov = DelayedNesterovOuter(delay=1, activation=0.5), NesterovOuter()
    a, b = delayed.state(one), nesterov.state(two)
    for step in range(4):
        delayed.update(one, weights(step + 1), a)
        nesterov.update(two, weights(step + 1), b)
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_momentum_activation_is_spread_over_the_answers_of_a_round() -> None:
    """By hand, N = 2, c = 1/4, one element: m after the first round is 1.5; the rounds after apply c m, then (1 - 2c + c) m."""
    outer = DelayedNesterovOuter(lr=1.0, momentum=0.5, delay=2, activation=0.25)
    anchor = {"x": torch.zeros(1)}
    state = outer.state(anchor)
    expected = 0.0
    for g, moved in [(1.0, 0.5), (2.0, 1.0 + 0.75 * 0.5 * 1.5), (0.0, 0.25 * 0.5 * 1.5), (0.0, 0.75 * 0.5 * 0.75)]:
        outer.update(anchor, {"x": torch.tensor([g])}, state)
        expected -= moved
        assert anchor["x"].item() == pytest.approx(expected)


def test_momentum_on_each_answer_overshoots_where_delayed_momentum_does_not() -> None:
    """Four workers, each answering in turn with half of the way to the minimum from where it began: what arXiv:2401.09135 describes."""

    def distance(outer: OuterConfig, rate: float) -> float:
        anchor = {"x": torch.ones(1)}
        state = outer.state(anchor)
        began = [anchor["x"].clone() for _ in range(4)]
        worst = 0.0
        for k in [0, 1, 2, 3] * 10:
            outer.update(anchor, {"x": began[k] * rate}, state)
            began[k] = anchor["x"].clone()
            worst = max(worst, anchor["x"].abs().item())
        return worst

    assert distance(NesterovOuter(lr=0.7, momentum=0.9), 0.5) > 1e3
    assert distance(DelayedNesterovOuter(lr=0.7, momentum=0.9, delay=4), 0.5) < 10


@pytest.mark.parametrize("outer", members(), ids=lambda m: m.kind_)
def test_part_by_part_is_the_whole(outer: OuterConfig) -> None:
    """A fragment, or a shard of a server, moves its own parameters and no others."""
    whole, parts = weights(0), weights(0)
    a, b = outer.state(whole), outer.state(parts)
    for step in range(3):
        g = weights(step + 1)
        outer.update(whole, g, a)
        outer.update(parts, {"b": g["b"]}, b)
        outer.update(parts, {"a": g["a"]}, b)
    assert a.keys() == b.keys()
    for x, y in [*((whole[k], parts[k]) for k in whole), *((a[k], b[k]) for k in a)]:
        assert torch.equal(x, y)


@pytest.mark.parametrize("outer", members(), ids=lambda m: m.kind_)
def test_state_carried_over_goes_on_bit_for_bit(outer: OuterConfig) -> None:
    anchor = weights(0)
    state = outer.state(anchor)
    outer.update(anchor, weights(1), state)
    other, carried = {k: x.clone() for k, x in anchor.items()}, {k: x.clone() for k, x in state.items()}
    for step in (2, 3):
        outer.update(anchor, weights(step), state)
        outer.update(other, weights(step), carried)
    assert all(torch.equal(anchor[k], other[k]) for k in anchor)


def test_an_activation_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="above 1 / delay"):
        parse(OuterConfig, {"kind": "delayed-nesterov", "delay": 4, "activation": 0.5})
    with pytest.raises(RecipeError, match="below 1"):
        parse(OuterConfig, {"kind": "adam", "betas": [0.9, 1.0]})


@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 7])
def test_int8_is_off_by_half_a_step_at_most(n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)) * torch.logspace(-6, 3, n)
    packed = to_int8(x)
    assert packed.dtype == torch.uint8 and packed.numel() == packed_size(n)
    back = from_int8(packed, n)
    for block, y in zip(x.split(BLOCK), back.split(BLOCK), strict=True):
        assert (block - y).abs().max() <= block.abs().max() / 127 / 2 * 1.0001


def test_int8_of_zeros_is_zeros() -> None:
    assert torch.equal(from_int8(to_int8(torch.zeros(300)), 300), torch.zeros(300))
