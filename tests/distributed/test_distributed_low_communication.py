"""The outer loop: schedule of fragments, closed forms over two processes, state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tauon.config import parse, unread_keys
from tauon.distributed import AverageOuter, DiLoCo, LowCommunication, NesterovOuter, OuterConfig, OuterLoop, ParallelConfig, Traffic
from tauon.distributed.low_communication import Rhythm, split_evenly
from tauon.errors import RecipeError
from tauon.testing import run_processes

SIZES = {"a": (4, 3), "b": (7,), "c": (2, 2)}
ELEMENTS = 12 + 7 + 4


def start() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=g) for name, shape in SIZES.items()}


def inner_step(weights: dict[str, Tensor], rank: int, step: int) -> None:
    """What training does to the weights: here something that depends on weights, replica and step."""
    g = torch.Generator().manual_seed(1000 * rank + step)
    for w in weights.values():
        w.mul_(0.99).add_(torch.randn(w.shape, generator=g), alpha=0.01)


def trained(steps: int, config: LowCommunication, last: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """(weights, anchor, bytes sent) of this rank."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    weights, traffic = start(), Traffic()
    loop = config.build(weights, traffic=traffic)
    for step in range(steps):
        inner_step(weights, rank, step)
        loop.after(step + 1, last=last and step + 1 == steps)
    return weights, dict(loop.anchor), sum(traffic.total.values())


def by_hand(steps: int, every: int, outer: OuterConfig) -> dict[str, Tensor]:
    """DiLoCo of two replicas, in one process."""
    anchor = start()
    state = outer.state(anchor)
    replicas = [{n: w.clone() for n, w in anchor.items()} for _ in range(2)]
    for step in range(steps):
        for rank, w in enumerate(replicas):
            inner_step(w, rank, step)
        if (step + 1) % every == 0 or step + 1 == steps:
            outer.update(anchor, {n: ((x - replicas[0][n]) + (x - replicas[1][n])) / 2 for n, x in anchor.items()}, state)
            replicas = [{n: w.clone() for n, w in anchor.items()} for _ in range(2)]
    return anchor


def streamed_by_hand(steps: int, config: Any) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Algorithm 2 of arXiv:2501.18512 for two replicas, written plainly; without the end of training."""
    h, tau, alpha = config["every"], config["overlap"], config["mix"]
    parts = split_evenly({n: w.numel() for n, w in start().items()}, config["fragments"])
    anchor, outer = start(), NesterovOuter()
    state = outer.state(anchor)
    replicas = [start(), start()]
    sent: dict[int, dict[str, Tensor]] = {}
    for t in range(1, steps + 1):
        for rank, w in enumerate(replicas):
            inner_step(w, rank, t - 1)
        for p, names in enumerate(parts):
            offset = p * h // len(parts)
            if (t - offset - tau) % h == 0 and p in sent:
                outer.update(anchor, sent.pop(p), state)
                for w in replicas:
                    for n in names:
                        w[n] = alpha * w[n] + (1 - alpha) * anchor[n]
        for p, names in enumerate(parts):
            if (t - p * h // len(parts)) % h == 0:
                sent[p] = {n: sum((anchor[n] - w[n] for w in replicas), torch.zeros(())) / 2 for n in names}
    return replicas, anchor


STREAMED = {"every": 6, "fragments": 3, "overlap": 2, "mix": 0.3}


def on_two_ranks() -> dict[str, Any]:
    """Everything at once: starting processes takes longer than all of it."""
    whole = trained(13, DiLoCo(every=4))
    same = trained(13, DiLoCo(every=4, fragments=1, overlap=0))
    streamed = trained(17, DiLoCo(**STREAMED), last=False)  # type: ignore[arg-type]
    coded = {c: trained(12, DiLoCo(every=4, compression=c)) for c in ("bf16", "int8")}  # type: ignore[arg-type]
    config = parse(ParallelConfig, {"kind": "local-sgd", "every": 3})
    assert isinstance(config, LowCommunication)
    averaged = trained(6, config)
    pair = dist.new_group([0, 1])
    weights = start()
    loop = OuterLoop(weights, AverageOuter(), Rhythm(1), group=pair)
    inner_step(weights, dist.get_rank(), 0)
    loop.after(1)
    return {
        "whole": whole, "same": same, "streamed": streamed, "coded": coded, "averaged": averaged, "paired": weights,
        "resumed": resumed(), "uninterrupted": trained(20, DiLoCo(**STREAMED)),  # type: ignore[arg-type]
    }  # fmt: skip


def resumed() -> dict[str, Tensor]:
    """The streamed training, saved and loaded into new objects after each step."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    config = DiLoCo(**STREAMED)  # type: ignore[arg-type]
    weights = start()
    loop = config.build(weights)
    for step in range(20):
        inner_step(weights, rank, step)
        loop.after(step + 1, last=step == 19)
        own, anchor = {n: w.clone() for n, w in weights.items()}, {n: w.clone() for n, w in loop.anchor.items()}
        saved = {n: t.clone() for n, t in loop.tensors().items()}
        weights = {n: w.clone() for n, w in anchor.items()}  # what `model` in a checkpoint is
        loop = config.build(weights)
        loop.load(saved)
        for n, w in weights.items():
            w.copy_(own[n])
    return weights


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(on_two_ranks, 2, 400)


def close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for n in a:
        torch.testing.assert_close(a[n], b[n], rtol=0, atol=atol)


@pytest.mark.distributed
def test_two_processes_do_what_diloco_says(ranks: list[dict[str, Any]]) -> None:
    expected = by_hand(13, 4, NesterovOuter())
    for rank in ranks:
        weights, anchor, sent = rank["whole"]
        close(anchor, expected)
        close(weights, anchor, atol=0)
        assert sent == 4 * 4 * ELEMENTS  # after 4, 8 and 12 steps, and after the last


@pytest.mark.distributed
def test_local_sgd_is_the_mean_of_the_weights(ranks: list[dict[str, Any]]) -> None:
    close(ranks[0]["averaged"][1], by_hand(6, 3, AverageOuter()))


@pytest.mark.distributed
def test_streaming_one_fragment_without_overlap_is_plain_diloco(ranks: list[dict[str, Any]]) -> None:
    close(ranks[0]["same"][1], ranks[0]["whole"][1], atol=0)


@pytest.mark.distributed
def test_streaming_is_what_its_paper_writes(ranks: list[dict[str, Any]]) -> None:
    replicas, anchor = streamed_by_hand(17, STREAMED)
    for rank, weights in zip(ranks, replicas, strict=True):
        close(rank["streamed"][0], weights)
        close(rank["streamed"][1], anchor)
    assert not torch.equal(ranks[0]["streamed"][0]["a"], ranks[1]["streamed"][0]["a"])


@pytest.mark.distributed
def test_replicas_hold_the_same_anchor_to_the_last_bit(ranks: list[dict[str, Any]]) -> None:
    for key in ("whole", "streamed", "averaged"):
        close(ranks[0][key][1], ranks[1][key][1], atol=0)
    for c in ("bf16", "int8"):
        close(ranks[0]["coded"][c][1], ranks[1]["coded"][c][1], atol=0)


@pytest.mark.distributed
def test_compressed_outer_gradients_are_near_and_smaller(ranks: list[dict[str, Any]]) -> None:
    exact = by_hand(12, 4, NesterovOuter())
    _, bf16, sent_bf16 = ranks[0]["coded"]["bf16"]
    _, int8, sent_int8 = ranks[0]["coded"]["int8"]
    close(bf16, exact, atol=2e-3)
    close(int8, exact, atol=2e-3)
    assert not torch.equal(bf16["a"], exact["a"])
    assert sent_bf16 == 3 * 2 * ELEMENTS
    assert sent_int8 == 3 * (256 + 4)  # one block


@pytest.mark.distributed
def test_a_group_is_heeded(ranks: list[dict[str, Any]]) -> None:
    close(ranks[0]["paired"], ranks[1]["paired"], atol=0)


@pytest.mark.distributed
def test_saving_and_loading_after_each_step_changes_nothing_even_with_fragments_on_their_way(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        close(rank["resumed"], rank["uninterrupted"][0], atol=0)


def test_one_process_without_a_group_goes_the_same_way_and_sends_nothing() -> None:
    weights, anchor, sent = trained(8, DiLoCo(every=4, outer=AverageOuter()))
    plain = start()
    for step in range(8):
        inner_step(plain, 0, step)
    close(weights, plain)
    close(weights, anchor, atol=0)
    assert sent == 0


def test_one_process_resumes_with_fragments_on_their_way() -> None:
    close(resumed(), trained(20, DiLoCo(**STREAMED))[0], atol=0)  # type: ignore[arg-type]


def test_swapping_the_anchor_in_and_out_leaves_the_weights_as_they_were() -> None:
    weights = start()
    loop = DiLoCo(every=4).build(weights)
    inner_step(weights, 0, 0)
    own = {n: w.clone() for n, w in weights.items()}
    with pytest.raises(KeyError), loop.swapped_in():
        close(weights, start(), atol=0)
        raise KeyError
    close(weights, own, atol=0)


def test_fragments_are_about_even_and_hold_every_name_once() -> None:
    sizes = {f"w{i}": (i * 37) % 11 + 1 for i in range(20)}
    parts = split_evenly(sizes, 4)
    assert sorted(n for p in parts for n in p) == sorted(sizes)
    totals = [sum(sizes[n] for n in p) for p in parts]
    assert max(totals) - min(totals) <= max(sizes.values())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"every": 4, "fragments": 5}, "is 5, but they are spread over 4 steps"),
        ({"every": 4, "overlap": 4}, "is sent again after 4"),
        ({"mix": 0.5}, "needs overlap above 0"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(ParallelConfig, {"kind": "diloco", **keys})


def test_more_fragments_than_parameters_are_refused() -> None:
    with pytest.raises(RecipeError, match="the model has only 3 parameters"):
        DiLoCo(every=8, fragments=4).build(start())


def test_every_key_that_is_set_is_read() -> None:
    config = parse(
        ParallelConfig,
        {
            "kind": "diloco",
            "every": 8,
            "fragments": 2,
            "overlap": 1,
            "mix": 0.1,
            "compression": "bf16",
            "outer": {"lr": 0.5, "momentum": 0.8},
        },
    )
    assert isinstance(config, LowCommunication)
    loop = config.build(start())
    for step in range(1, 12):
        loop.after(step)
    assert unread_keys(config) == []
