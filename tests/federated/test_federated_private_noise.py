"""Clipping and noise of updates: bounded, of the stated size, drawn from the stated distribution, the same as Flower's where it has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_sites import Wire, flower, group, session

from tauon.errors import DataError, PrivacyError, RecipeError
from tauon.federated import Failure, Message, RoundRequest, Weighting
from tauon.federated.private import (
    WITHIN,
    AdaptiveClip,
    DistributedNoise,
    PrivateSummation,
    UpdatePrivacy,
    add_central_noise,
    add_local_noise,
    choose_sites,
    clip_contribution,
    clip_update,
    discrete_gaussian,
    private_layout,
    private_mean,
)
from tauon.federated.private.distributed import effective_multiplier, rounded_norm
from tauon.federated.secagg import Contribution, RoundFailed, SiteRules, Total, secure_sum
from tauon.privacy.noise import NoiseSource

SHAPES = {"w": (40, 30), "b": (50,)}


def privacy(mode: str = "central", **changes: object) -> UpdatePrivacy:
    defaults: dict[str, object] = {"clip_norm": 0.7, "noise_multiplier": 1.3, "sites": 10}
    defaults |= {"contributors": 6} if mode == "distributed" else {}
    return UpdatePrivacy(mode, **(defaults | changes))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ clipping


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_clipped_updates_equal_flower_and_are_within_the_norm(norm: float, size: float, seed: int) -> None:
    compute_clip_model_update = flower("differential_privacy").compute_clip_model_update

    draws = torch.Generator().manual_seed(seed)
    update = {"w": size * torch.randn(5, 4, generator=draws), "b": size * torch.randn(3, generator=draws)}
    clipped, had = clip_update(update, norm)
    base = [np.zeros((5, 4), np.float32), np.zeros(3, np.float32)]
    theirs = [t.numpy().copy() for t in update.values()]
    compute_clip_model_update(theirs, base, norm)
    for ours, other in zip(clipped.values(), theirs, strict=True):
        assert np.allclose(ours.numpy(), other, rtol=1e-5)
    assert math.isclose(had, math.sqrt(sum(float((t.double() ** 2).sum()) for t in update.values())), rel_tol=1e-6)
    assert math.sqrt(sum(float((t.double() ** 2).sum()) for t in clipped.values())) <= norm * (1 + 1e-6)


def test_a_vector_with_numbers_is_within_its_norm_in_every_scale() -> None:
    p = privacy(numbers={"loss": 2.0, WITHIN: 0.5}, number_scale=0.3)
    worst = 0.0
    for seed in range(50):
        draws = torch.Generator().manual_seed(seed)
        update = {n: 10 ** float(torch.randn((), generator=draws)) * torch.randn(s, generator=draws) for n, s in SHAPES.items()}
        c = clip_contribution(update, {"loss": 100.0 * (-1) ** seed}, p)
        scaled = [float(t.double().norm()) / p.scale() for t in c.tensors.values()] + [v / p.scale(n) for n, v in c.numbers.items()]
        worst = max(worst, math.hypot(*scaled))
    assert 0.99 * p.norm < worst <= p.norm * (1 + 1e-6)


def test_values_that_would_not_be_bounded_are_refused() -> None:
    p = privacy(numbers={"loss": 2.0})
    good = {"w": torch.ones(2)}
    with pytest.raises(DataError, match="not finite"):
        clip_contribution({"w": torch.tensor([1.0, float("nan")])}, {"loss": 1.0}, p)
    with pytest.raises(DataError, match="not finite"):
        clip_contribution({"w": torch.tensor([1.0, float("inf")])}, {"loss": 1.0}, p)
    with pytest.raises(DataError, match="loss is nan"):
        clip_contribution(good, {"loss": float("nan")}, p)
    with pytest.raises(DataError, match="weight of a site is 1.5"):
        clip_contribution(good, {"loss": 1.0}, p, weight=1.5)
    assert float(clip_contribution({"w": torch.full((3,), 1e30)}, {"loss": 0.0}, p).tensors["w"].norm()) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "secret"}, "Use central, local or distributed"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"rate": 0.5}, "with sampling full every site is in every round"),
        ({"mode": "local", "sampling": "poisson", "rate": 0.5}, "sampling does not strengthen it"),
        ({"mode": "distributed"}, "set how many sites' noise is counted on"),
        ({"mode": "distributed", "contributors": 2}, "from 3 to 10"),
        ({"mode": "distributed", "contributors": 8, "colluders": 3}, "more than the 10 sites"),
        ({"numbers": {"loss": 0.0}}, "finite bounds"),
    ],
)
def test_settings_that_give_no_guarantee_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        UpdatePrivacy(**({"mode": "central", "clip_norm": 1.0, "noise_multiplier": 1.0, "sites": 10} | changes))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ central and local noise


def test_central_noise_has_the_standard_deviation_of_flower() -> None:
    compute_stdv = flower("differential_privacy").compute_stdv

    p = privacy(clip_norm=0.5, noise_multiplier=2.0)
    total = Total({"w": torch.zeros(100_000)}, {}, ("a",))
    mean = private_mean(add_central_noise(total, p, NoiseSource.seeded(1), 1), p)["w"]
    assert float(mean.std()) == pytest.approx(compute_stdv(2.0, 0.5, 10), rel=0.01)
    assert abs(float(mean.mean())) < 4 * 0.1 / math.sqrt(100_000)


def test_noise_of_a_round_is_drawn_once_for_each_key() -> None:
    p, source = privacy(numbers={"loss": 1.0}), NoiseSource.seeded(2)
    total = Total({"w": torch.zeros(5)}, {"loss": 0.0}, ("a",))
    first = add_central_noise(total, p, source, 1)
    with pytest.raises(PrivacyError, match="already drawn"):
        add_central_noise(total, p, source, 1)
    second = add_central_noise(total, p, source, 2)
    assert not torch.equal(first.tensors["w"], second.tensors["w"]) and first.numbers != second.numbers


def test_local_noise_is_in_every_scale() -> None:
    p = privacy("local", numbers={"loss": 3.0})
    values = [add_local_noise(Contribution({"w": torch.zeros(2000)}, {"loss": 0.0}), p, NoiseSource.seeded(100 + i), 1) for i in range(200)]
    assert float(torch.stack([v.tensors["w"] for v in values]).std()) == pytest.approx(p.noise_std(), rel=0.01)
    assert np.std([v.numbers["loss"] for v in values]) == pytest.approx(p.noise_std("loss"), rel=0.15)
    layout = private_layout({"w": (2000,)}, p, 10)
    layout.encode(values[0])  # within the range that has space for noise


def test_adaptive_clipping_equals_the_split_of_noise_of_flower_and_finds_the_quantile() -> None:
    compute_adaptive_noise_params = flower("differential_privacy").compute_adaptive_noise_params

    p = privacy(noise_multiplier=0.8, numbers={WITHIN: 0.5}, number_scale=0.25)
    count_std, multiplier = compute_adaptive_noise_params(0.8, 10, p.noise_std(WITHIN))
    assert count_std == p.noise_std(WITHIN)
    assert multiplier * p.clip_norm == pytest.approx(p.noise_std())

    draws = np.random.Generator(np.random.PCG64(0))
    norms = draws.lognormal(1.0, 0.5, size=1000)
    many = privacy(sites=1000, clip_norm=0.01, numbers={WITHIN: 0.5})
    clip, source = AdaptiveClip(quantile=0.8), NoiseSource.seeded(5)
    for number in range(120):
        within = float(sum(0.5 if n <= many.clip_norm else -0.5 for n in norms))
        many = clip.moved(many, add_central_noise(Total({}, {WITHIN: within}, ()), many, source, number))
    assert many.clip_norm == pytest.approx(np.quantile(norms, 0.8), rel=0.1)


# ------------------------------------------------------------------------------------------------ the discrete Gaussian


def exact(sigma: float, reach: int) -> np.ndarray:
    k = np.arange(-reach, reach + 1)
    p = np.exp(-(k**2) / (2 * sigma**2))
    return np.asarray(p / np.exp(-(np.arange(-reach * 4, reach * 4 + 1) ** 2) / (2 * sigma**2)).sum())


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.7, 9.0])
def test_the_discrete_gaussian_has_its_probabilities(sigma: float) -> None:
    from scipy.stats import chisquare

    reach, count = math.ceil(4 * sigma), 400_000
    drawn = discrete_gaussian(sigma, count, key=bytes([7] * 32))
    p = exact(sigma, reach)
    inside = drawn[np.abs(drawn) <= reach]
    observed = np.bincount(inside + reach, minlength=2 * reach + 1).astype(float)
    often = p * count > 20
    expected = p[often] / p[often].sum() * observed[often].sum()
    assert chisquare(observed[often], expected).pvalue > 1e-3
    assert len(inside) / count == pytest.approx(p.sum(), abs=4e-3)


@pytest.mark.parametrize("sigma", [300.0, 1.5e6, 2.0**33])
def test_wide_discrete_gaussians_have_mean_deviation_and_tails(sigma: float) -> None:
    from scipy.stats import kstest, norm

    drawn = discrete_gaussian(sigma, 300_000, key=bytes([3] * 32))
    assert abs(drawn.mean()) < 5 * sigma / math.sqrt(300_000)
    assert drawn.std() == pytest.approx(sigma, rel=0.01)
    assert kstest(drawn / sigma, norm.cdf).statistic < 0.005
    assert (np.abs(drawn) > 3.5 * sigma).mean() == pytest.approx(2 * norm.sf(3.5), rel=0.3)
    assert np.abs(drawn % 2 - 0.5).mean() == 0.5 and abs((drawn % 2).mean() - 0.5) < 0.01  # every integer, odd ones too


def test_a_key_gives_the_same_numbers_and_none_gives_others() -> None:
    assert (discrete_gaussian(5.0, 1000, key=bytes(32)) == discrete_gaussian(5.0, 1000, key=bytes(32))).all()
    assert (discrete_gaussian(5.0, 1000) != discrete_gaussian(5.0, 1000)).any()
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="sigma"):
            discrete_gaussian(sigma, 3)


# ------------------------------------------------------------------------------------------------ distributed noise


def test_shares_of_noise_add_up_in_the_secure_sum() -> None:
    p = privacy("distributed", contributors=6, sites=10, numbers={"loss": 2.0})
    g = group(10, shapes=SHAPES, rules=SiteRules(fewest=p.fewest))
    layout = private_layout(SHAPES, p, 10)
    vectors = {n: clip_contribution(g.values[n], {"loss": 1.0}, p) for n in g.names}
    for name, site in g.sites.items():
        site.contribute = lambda _, name=name: vectors[name]  # type: ignore[misc]
        site.noise = DistributedNoise(p)
    total = secure_sum(Wire(g.sites, {"masked": g.names[:2]}), g.names, g.work, layout, session(), g.settings)
    clear = {k: sum(vectors[n].tensors[k].double() for n in g.names[2:]) for k in SHAPES}
    noise = torch.cat([(total.tensors[k].double() - clear[k]).flatten() for k in SHAPES])  # type: ignore[operator]
    assert float(noise.std()) == pytest.approx(p.noise_std() * math.sqrt(8 / 6), rel=0.06)  # 8 shares, of which 6 are counted on
    assert abs(total.numbers["loss"] - 8) < 6 * p.noise_std("loss")
    with pytest.raises(RoundFailed):  # 5 shares would be less noise than was agreed
        secure_sum(Wire(g.sites, {"masked": g.names[:5]}), g.names, g.work, layout, session(2), g.settings)


def test_sites_refuse_a_layout_that_would_weaken_the_noise() -> None:
    p = privacy("distributed")
    good = private_layout(SHAPES, p, 10)
    noise = DistributedNoise(p)
    assert {k: v.shape for k, v in noise.draw(good, 1).items()} == {"w": (1200,), "b": (50,)}
    for bound in (1e6, 0.1):
        with pytest.raises(PrivacyError, match="not what was agreed"):
            noise.draw(replace(good, entries=tuple(replace(e, bound=bound) for e in good.entries)), 1)
    with pytest.raises(PrivacyError, match="steps are too coarse"):
        noise.draw(replace(good, sites=2**28), 1)
    with pytest.raises(PrivacyError, match="not what was agreed"):
        noise.draw(replace(good, entries=(*good.entries, replace(good.entries[0], name="more", shape=(), is_number=True))), 1)
    with pytest.raises(PrivacyError, match="the noise is central"):
        DistributedNoise(privacy())


def test_rounding_is_inside_the_norm_that_the_noise_is_measured_in() -> None:
    p = privacy("distributed", numbers={"loss": 2.0})
    layout = private_layout(SHAPES, p, 10)
    worst = 0.0
    for seed in range(20):
        draws = torch.Generator().manual_seed(seed)
        c = clip_contribution({n: torch.randn(s, generator=draws) for n, s in SHAPES.items()}, {"loss": 9.0}, p)
        words = layout.encode(c)[1:].view(np.int32).astype(np.float64)
        at, scaled = 0, []
        for entry in layout.entries:
            scale = p.scale(entry.name if entry.is_number else None)
            scaled.append(words[at : at + entry.size] * layout.step(entry) / scale)
            at += entry.size
        worst = max(worst, float(np.linalg.norm(np.concatenate(scaled))))
    assert worst <= rounded_norm(layout, p) <= 1.001 * p.norm
    assert effective_multiplier(layout, p) == pytest.approx(p.noise_multiplier, rel=1e-12)


def test_a_million_numbers_leave_the_noise_as_it_is() -> None:
    p = privacy("distributed")
    layout = private_layout({"w": (1_000_000,)}, p, 10)
    assert rounded_norm(layout, p) < 1.001 * p.norm


# ------------------------------------------------------------------------------------------------ sampling


def test_poisson_sampling_takes_each_site_with_the_stated_probability_independently() -> None:
    p = privacy(sites=40, sampling="poisson", rate=0.25)
    names = [f"s{i}" for i in range(40)]
    drawn = np.array([[name in choose_sites(names, p, b"k" * 32, r) for name in names] for r in range(400)], dtype=float)
    assert drawn.mean() == pytest.approx(0.25, abs=0.01)
    assert drawn.sum(1).var() == pytest.approx(40 * 0.25 * 0.75, rel=0.25)  # of a binomial
    off = np.corrcoef(drawn.T)[~np.eye(40, dtype=bool)]
    assert abs(off.mean()) < 0.01


FIVE = [f"s{i}" for i in range(5)]


class Alike:
    """Five sites with the same update."""

    def sites(self) -> list[str]:
        return FIVE

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        return {n: m.answer("trained", {"examples": 10, "steps": 1}, {"w": torch.ones(3)}) for n, m in messages.items()}


@pytest.mark.parametrize(("rate", "numbers"), [(0.5, {}), (0.3, {}), (1.0, {}), (0.5, {WITHIN: 0.5})])
def test_the_mean_of_a_fixed_number_of_equal_updates_is_that_update(rate: float, numbers: dict[str, float]) -> None:
    p = privacy(sites=5, clip_norm=100.0, noise_multiplier=1e-12, sampling="fixed-size", rate=rate, numbers=numbers)
    order = Message("train", 1, "n", {"weight_by": "examples", "max_examples": 20}, {"w": torch.zeros(3)})
    weighting = Weighting(max_examples=20)
    request = RoundRequest(dict.fromkeys(FIVE, order), [FIVE], dict.fromkeys(FIVE, 10), 1.0, weighting)
    summation = PrivateSummation(p, AdaptiveClip(quantile=1.0) if numbers else None)
    (update,) = summation.collect(Alike(), request).updates
    torch.testing.assert_close(update.tensors["w"], torch.ones(3))
    assert summation.privacy.clip_norm == pytest.approx(100.0)  # all were within it


def test_a_sample_of_less_than_one_site_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"0\.1 of 5 sites: less than one"):
        privacy(sites=5, sampling="fixed-size", rate=0.1)
    privacy(sites=5, sampling="fixed-size", rate=0.2)
    privacy(sites=5, sampling="poisson", rate=0.1)


def test_fixed_size_sampling_takes_as_many_and_full_takes_all() -> None:
    names = [f"s{i}" for i in range(10)]
    p = privacy(sampling="fixed-size", rate=0.3)
    rounds = [choose_sites(names, p, b"k" * 32, r) for r in range(200)]
    assert {len(r) for r in rounds} == {3} and len({tuple(r) for r in rounds}) > 60
    assert choose_sites(names, p, b"k" * 32, 1) == choose_sites(names[::-1], p, b"k" * 32, 1) != choose_sites(names, p, b"j" * 32, 1)
    assert choose_sites(names, privacy(), b"k" * 32, 1) == names
