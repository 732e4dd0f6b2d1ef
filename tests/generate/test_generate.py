"""Sampling: the distribution over the next token, and text that is a function of (seed, sample number)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tauon.errors import CheckpointError, DataError
from tauon.generate import Sampling, generate, next_token_distribution
from tauon.models import GPT, GPT2Config, GPTConfig, materialize


def small(layout: str = "gpt", seq_len: int = 24) -> GPT:
    sizes = {"layers": 2, "width": 32, "heads": 4, "vocab": 29, "seq_len": seq_len}
    model = materialize(GPTConfig(**sizes) if layout == "gpt" else GPT2Config(**sizes), seed=1)
    assert isinstance(model, GPT)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    return model


def logits(V: int = 50, seed: int = 0) -> Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3


# ------------------------------------------------------------------------------------------------ the distribution


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 5.0])
def test_plain_sampling_is_the_tempered_softmax(temperature: float) -> None:
    torch.testing.assert_close(next_token_distribution(logits(), temperature, None, None), (logits().double() / temperature).softmax(0))


@pytest.mark.parametrize("k", [1, 3, 50, 100])
def test_top_k_keeps_the_k_likeliest_in_proportion(k: int) -> None:
    p, full = next_token_distribution(logits(), 1.0, k, None), logits().double().softmax(0)
    kept = full.argsort(descending=True)[:k]
    assert set(p.nonzero().flatten().tolist()) == set(kept.tolist())
    torch.testing.assert_close(p[kept], full[kept] / full[kept].sum())


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_the_share(top_p: float) -> None:
    p, full = next_token_distribution(logits(), 1.0, None, top_p), logits().double().softmax(0)
    kept, mass = [], 0.0
    for i in full.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        kept.append(i)
        mass += full[i].item()
    assert set(p.nonzero().flatten().tolist()) == set(kept)
    assert p.sum().item() == pytest.approx(1.0)


def test_top_p_counts_within_the_top_k() -> None:
    p = next_token_distribution(torch.tensor([4.0, 3.0, 2.0, 1.0]).log(), 1.0, 2, 0.5)
    torch.testing.assert_close(p, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))


def test_temperature_zero_is_the_likeliest_and_tiny_ones_are_near_it() -> None:
    assert next_token_distribution(logits(), 0, 5, 0.9).argmax() == logits().argmax()
    for tiny in (1e-3, 1e-100, 1e-320):
        p = next_token_distribution(logits(), tiny, None, None)
        assert p[logits().argmax()] == pytest.approx(1.0) and p.sum() == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize("layout", ["gpt", "gpt2"])
def test_greedy_text_is_what_recomputing_everything_gives(layout: str) -> None:
    model = small(layout)
    (out,) = generate(model, [1, 2, 3], max_tokens=20, sampling=Sampling(temperature=0))
    ids = [1, 2, 3]
    with torch.no_grad():
        for _ in range(20):
            ids.append(int(model.logits(model.eval()(torch.tensor([ids])))[0, -1].argmax()))
    assert out == ids[3:]


def test_sampled_tokens_follow_the_distribution() -> None:
    model = small()
    with torch.no_grad():
        p = next_token_distribution(model.logits(model.eval()(torch.tensor([[5, 6]])))[0, -1], 1.0, None, None)
    out = generate(model, [5, 6], max_tokens=1, samples=4000, sampling=Sampling(temperature=1.0, seed=3))
    counts = torch.bincount(torch.tensor([o[0] for o in out]), minlength=29).double()
    chi2 = ((counts - 4000 * p) ** 2 / (4000 * p)).sum().item()
    assert chi2 < 28 + 4 * math.sqrt(2 * 28)  # 28 degrees of freedom: mean 28, standard deviation 7.5


def test_a_seed_writes_the_same_text_whatever_the_number_of_samples() -> None:
    model = small()
    one = generate(model, [1], max_tokens=15, samples=1, sampling=Sampling(seed=7))
    four = generate(model, [1], max_tokens=15, samples=4, sampling=Sampling(seed=7))
    assert one[0] == four[0] and len({tuple(t) for t in four}) == 4
    assert generate(model, [1], max_tokens=15, samples=4, sampling=Sampling(seed=7)) == four
    assert generate(model, [1], max_tokens=15, samples=1, sampling=Sampling(seed=8)) != one
    assert generate(model, [1], max_tokens=5, samples=1, sampling=Sampling(seed=7))[0] == one[0][:5]  # nor on how much is asked for


def test_nor_does_it_where_every_token_is_about_equally_likely() -> None:
    model = small()
    with torch.no_grad():
        model.head.weight.mul_(1e-6)  # which tokens are the last in the top p hangs on the last bits
    one, four = (generate(model, [1], max_tokens=40, samples=n, sampling=Sampling(seed=1, top_p=0.9)) for n in (1, 4))
    assert one[0] == four[0]


def test_nothing_else_in_the_process_decides_the_text() -> None:
    model = small()
    torch.manual_seed(1)
    a = generate(model, [1], max_tokens=10)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert generate(model, [1], max_tokens=10) == a
    assert torch.equal(torch.random.get_rng_state(), state)  # and it leaves torch's own generator alone


def test_a_sample_ends_at_the_stop_token_and_the_others_go_on() -> None:
    model = small()
    free = generate(model, [1], max_tokens=20, samples=3, sampling=Sampling(seed=2))
    stop = free[0][4]
    ended = generate(model, [1], max_tokens=20, samples=3, sampling=Sampling(seed=2), stop_id=stop)
    for a, b in zip(free, ended, strict=True):
        assert b == (a[: a.index(stop)] if stop in a else a)


@pytest.mark.parametrize("layout", ["gpt", "gpt2"])
def test_text_longer_than_the_models_longest_sequence_goes_on(layout: str) -> None:
    model = small(layout, seq_len=8)
    (out,) = generate(model, [1, 2], max_tokens=30, sampling=Sampling(temperature=0))
    assert len(out) == 30
    whole, at = [1, 2, *out], 8  # where the first window was full, the last half of it is the context
    with torch.no_grad():
        for i in range(2, 9):
            assert whole[i] == int(model.logits(model(torch.tensor([whole[:i]])))[0, -1].argmax())
        context = whole[at + 1 - 4 : at + 1]
        assert whole[at + 1] == int(model.logits(model(torch.tensor([context])))[0, -1].argmax())


def test_a_long_prompt_is_cut_to_its_end() -> None:
    model = small(seq_len=8)
    prompt = [i % 29 for i in range(40)]
    assert generate(model, prompt, max_tokens=1, sampling=Sampling(temperature=0)) == generate(
        model, prompt[-8:], max_tokens=1, sampling=Sampling(temperature=0)
    )


def test_each_token_is_told_as_it_comes() -> None:
    told: list[tuple[int, int]] = []
    out = generate(small(), [1], max_tokens=6, samples=2, on_token=lambda i, t: told.append((i, t)))
    assert [[t for i, t in told if i == n] for n in range(2)] == out
    assert [i for i, _ in told] == [0] * 6 + [1] * 6


def test_training_mode_is_put_back() -> None:
    model = small()
    model.train()
    generate(model, [1], max_tokens=2)
    assert model.training


@pytest.mark.parametrize(
    ("prompt", "says"), [([], "no token"), ([3, 29], "ids are 0 to 28"), ([3, -1], "token id -1, but the model's ids are 0 to 28")]
)
def test_prompts_that_cannot_be_continued(prompt: list[int], says: str) -> None:
    with pytest.raises(DataError, match=says):
        generate(small(), prompt, max_tokens=2)


def test_a_model_that_diverged_is_named_as_such() -> None:
    model = small()
    with torch.no_grad():
        model.head.weight[3, 3] = math.nan
    with pytest.raises(CheckpointError, match="training diverged"):
        generate(model, [1], max_tokens=2)
