"""What travels, what is refused before it is aggregated, how updates are weighted, and the mean of adapters."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauon.federated import Limits, Message, MessageError, Update, Weighting, check_update, fingerprint, freeze_lora_a, travelling
from tauon.federated.adapters import has_trainable_pairs, mean_of_products, nearest_pair
from tauon.federated.updates import batch_norm_names, weighted_sum
from tauon.models import GPTConfig, materialize
from tauon.models.adapters import LoraConfig

SENT = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
ORDER = Message("train", 4, "nonce", {"steps": 5}, SENT)
GOOD = ORDER.answer("trained", {"examples": 10, "steps": 5, "loss": 0.5}, {n: t + 0.1 for n, t in SENT.items()})


def read(answer: Message, **more: Any) -> Update:
    return check_update(ORDER, answer, site="north", declared=10, **more)


def changed(**tensors: Tensor) -> Message:
    return replace(GOOD, tensors={**GOOD.tensors, **tensors})


def test_a_good_update_is_read() -> None:
    update = read(GOOD)
    assert (update.site, update.examples, update.steps, update.loss, update.version) == ("north", 10, 5, 0.5, 4)
    assert math.isnan(update.first_loss)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (replace(GOOD, kind="evaluated"), "'evaluated'"),
        (replace(GOOD, round=3), "round 3"),
        (replace(GOOD, nonce="old"), "nonce"),
        (changed(w=torch.full((2, 3), math.nan)), "not finite: w"),
        (changed(b=torch.full((3,), math.inf)), "not finite: b"),
        (changed(w=torch.zeros(3, 2)), r"w of \(3, 2\)"),
        (changed(w=torch.zeros(2, 3, dtype=torch.float64)), "float64"),
        (changed(more=torch.zeros(1)), "unknown more"),
        (replace(GOOD, tensors={"w": GOOD.tensors["w"]}), "without b"),
        *(
            (replace(GOOD, fields={**GOOD.fields, "examples": n}), "north reports")
            for n in (10**9, 11, 0, -5, 2.5, None, "7", True, math.nan)
        ),
        (replace(GOOD, fields={**GOOD.fields, "steps": -1}), "steps"),
        (replace(GOOD, fields={**GOOD.fields, "steps": 10**400}), "steps"),
        (replace(GOOD, fields={**GOOD.fields, "loss": math.nan}), "loss"),
        (replace(GOOD, fields={**GOOD.fields, "loss": 10**400}), "loss"),
        (replace(GOOD, fields={**GOOD.fields, "metrics": {"accuracy": -(10**400)}}), "accuracy"),
        (replace(GOOD, fields={**GOOD.fields, "metrics": {"accuracy": "high"}}), "accuracy"),
        (replace(GOOD, fields={**GOOD.fields, "metrics": [1]}), "metrics"),
    ],
)
def test_a_bad_update_is_refused_in_words_with_the_name_of_the_site(answer: Message, reason: str) -> None:
    with pytest.raises(MessageError, match=reason) as caught:
        read(answer)
    assert "north" in str(caught.value)


def test_a_large_update_is_refused() -> None:
    read(GOOD, limits=Limits(max_norm=1.0, max_steps=5))
    with pytest.raises(MessageError, match="norm 0.3, above the limit of 0.2"):
        read(GOOD, limits=Limits(max_norm=0.2))
    with pytest.raises(MessageError, match="at most 4"):
        read(GOOD, limits=Limits(max_steps=4))


def test_integer_buffers_and_frozen_parameters_never_travel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[2].weight.requires_grad_(False)
    assert set(travelling(model)) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.bias"}
    assert set(travelling(model, keep=batch_norm_names(model))) == {"0.weight", "0.bias", "2.bias"}
    assert set(travelling(model, keep=batch_norm_names(model, affine=False))) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}


def test_the_fingerprint_covers_frozen_parameters_only() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for p in model[0].parameters():
        p.requires_grad_(False)
    before = fingerprint(model)
    with torch.no_grad():
        model[1].weight.add_(1)
        assert fingerprint(model) == before
        model[0].weight.add_(1)
    assert fingerprint(model) != before


def test_a_small_site_does_not_fill_the_gap_that_others_leave() -> None:
    examples = [6000, 2500, 1000, 440, 60]  # the last has 0.6% of the data
    weighting = Weighting()
    weights = weighting.of(examples)
    everyone = sum(weights)
    assert weights[-1] / weighting.divisor(everyone, everyone) == 0.006
    alone = weights[-1] / weighting.divisor(weights[-1], everyone)
    assert alone == pytest.approx(2 * 0.006)  # not 1, though no other site answered
    assert Weighting(max_gain=None).divisor(60.0, everyone) == 60.0
    assert Weighting(max_examples=1000).of(examples) == [1000, 1000, 1000, 440, 60]
    assert Weighting(by="equal").of(examples) == [1.0] * 5


def test_a_sampled_round_of_which_all_answer_is_a_plain_mean() -> None:
    weighting = Weighting()
    expected = 1000 * 100 * 0.1  # 100 sites of 1,000 examples, 10 sampled
    assert weighting.divisor(10_000.0, expected) == 10_000.0
    assert weighting.divisor(6_000.0, expected) == 6_000.0


def test_the_sum_of_bf16_updates_is_in_float32() -> None:
    ones = {"w": torch.full((1,), 1e-3, dtype=torch.bfloat16)}
    total = weighted_sum([ones] * 1000, [1.0] * 1000)["w"]
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(1000 * float(ones["w"]), rel=1e-3)


def adapted() -> Any:
    config = GPTConfig(layers=1, width=16, heads=2, vocab=31, seq_len=8).model_copy(update={"adapt": LoraConfig(rank=2, target=("*",))})
    return materialize(config, seed=0)


def pair(seed: int, rank: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rank, 8, generator=g).double(), torch.randn(6, rank, generator=g).double()


def test_the_mean_of_adapters_is_the_mean_of_their_product() -> None:
    pairs, shares = [pair(1, 2), pair(2, 2)], [0.25, 0.75]
    wanted = sum(s * b @ a for (a, b), s in zip(pairs, shares, strict=True))
    naive = sum(s * b for (_, b), s in zip(pairs, shares, strict=True)) @ sum(s * a for (a, _), s in zip(pairs, shares, strict=True))
    a, b = nearest_pair(pairs, shares)
    u, s, vt = torch.linalg.svd(wanted)
    best = (u[:, :2] * s[:2]) @ vt[:2]  # Eckart and Young: no other pair of rank 2 is nearer
    torch.testing.assert_close(b @ a, best)
    assert (naive - wanted).norm() > 1.5 * (b @ a - wanted).norm()


def test_the_mean_of_equal_adapters_is_the_adapter() -> None:
    a, b = pair(1)
    new_a, new_b = nearest_pair([(a, b), (a, b)], [0.5, 0.5])
    torch.testing.assert_close(new_a, a)
    torch.testing.assert_close(new_b, b)


def test_with_one_a_everywhere_it_is_the_plain_mean_of_b() -> None:
    (a, b), (_, other) = pair(1), pair(2)
    new_a, new_b = nearest_pair([(a, b), (a, other)], [0.5, 0.5])
    torch.testing.assert_close(new_a, a)
    torch.testing.assert_close(new_b, (b + other) / 2)


@pytest.mark.parametrize("used", [0, 1])
def test_an_adapter_that_is_not_used_in_full_stays_trainable(used: int) -> None:
    pairs = [pair(1), pair(2)]
    for _, b in pairs:
        b[:, used:] = 0
    wanted = sum(0.5 * b @ a for a, b in pairs)
    a, b = nearest_pair(pairs, [0.5, 0.5])
    torch.testing.assert_close(b @ a, wanted)
    assert int(torch.linalg.matrix_rank(a)) == 3  # each direction of A gets a gradient for B


def test_products_replace_the_mean_for_pairs_only() -> None:
    model = adapted()
    assert has_trainable_pairs(model)
    sent = travelling(model)
    g = torch.Generator().manual_seed(0)
    updates = [Update(str(k), {n: torch.randn(t.shape, generator=g) for n, t in sent.items()}, 1.0 + k) for k in range(2)]
    combined = mean_of_products(updates, sent)
    name = next(n.removesuffix("lora_a") for n in sent if n.endswith("lora_a"))
    products = [
        (sent[name + "lora_b"] + u.tensors[name + "lora_b"]) @ (sent[name + "lora_a"] + u.tensors[name + "lora_a"]) for u in updates
    ]
    wanted = (products[0] + 2 * products[1]) / 3
    found = (sent[name + "lora_b"] + combined[name + "lora_b"]) @ (sent[name + "lora_a"] + combined[name + "lora_a"])
    u, s, vt = torch.linalg.svd(wanted)
    torch.testing.assert_close(found, (u[:, :2] * s[:2]) @ vt[:2], rtol=1e-4, atol=1e-4)
    plain = weighted_sum([u.tensors for u in updates], [1 / 3, 2 / 3])
    assert all(torch.equal(combined[n], plain[n]) for n in sent if "lora_" not in n)


def test_a_part_of_the_sites_moves_the_product_by_that_part() -> None:
    g = torch.Generator().manual_seed(0)
    sent = {"q.lora_a": torch.randn(2, 8, generator=g), "q.lora_b": torch.randn(6, 2, generator=g), "bias": torch.randn(6, generator=g)}
    update = Update("a", {n: torch.randn(t.shape, generator=g) for n, t in sent.items()}, 5.0)
    combined = mean_of_products([update], sent, part=0.25)
    new = {n: (sent[n] + update.tensors[n]).double() for n in sent}
    u, s, vt = torch.linalg.svd(0.25 * new["q.lora_b"] @ new["q.lora_a"] + 0.75 * (sent["q.lora_b"] @ sent["q.lora_a"]).double())
    found = {n: (sent[n] + combined[n]).double() for n in sent}
    torch.testing.assert_close(found["q.lora_b"] @ found["q.lora_a"], (u[:, :2] * s[:2]) @ vt[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(combined["bias"], 0.25 * update.tensors["bias"])


def test_freezing_a_leaves_b() -> None:
    model = adapted()
    frozen = freeze_lora_a(model)
    assert frozen
    assert not has_trainable_pairs(model)
    assert not any(n.endswith("lora_a") for n in travelling(model))
    assert any(n.endswith("lora_b") for n in travelling(model))
