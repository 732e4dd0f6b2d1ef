"""Noise: its numbers against RFC 8439 and normal laws, its schedules, its looks at the data, correlation against brute force."""

from __future__ import annotations

import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("dp_accounting")

from tauon.config import parse, registered
from tauon.errors import RecipeError
from tauon.privacy.accounting import Release, epsilon
from tauon.privacy.accounting.release import plain
from tauon.privacy.noise import (
    Constant,
    Correlated,
    Cosine,
    Exponential,
    GradientNorm,
    Linear,
    NoiseConfig,
    NoisePlan,
    NoiseSource,
    Query,
    Steps,
    ValidationLoss,
    prefix_error,
    sensitivity,
    source,
)
from tauon.privacy.noise.correlated import coefficients_of_inverse, square_root_coefficients

# ---------------------------------------------------------------------------------------------- numbers


def test_the_stream_is_that_of_the_rfc() -> None:
    """RFC 8439, appendix A.1: key stream of the zero key, blocks 0 and 1; key 00..01, block 1."""
    words = source._blocks(bytes(32), 0, 2, "cpu").numpy().tobytes()
    assert words[:16].hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    assert words[64:80].hex() == "9f07e7be5551387a98ba977c732d080d"
    assert source._blocks(bytes(31) + b"\x01", 1, 1, "cpu").numpy().tobytes()[:16].hex() == "3aeb5224ecf849929b9d828db1ced4dd"


def test_torch_and_openssl_make_the_same_bits_piece_by_piece_or_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    key, pairs = bytes(range(32)), 2 * source.PIECE + 501
    fast, slow = torch.empty(1, 2 * pairs), torch.empty(1, 2 * pairs)
    source._fill(fast, [source._words(key, "cpu")], together=1)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)  # not installed
    source._fill(slow, [source._words(key, "cpu")], together=100)  # as on an accelerator
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("count", [3, 2 * source.PIECE, 4 * source.PIECE, 6 * source.PIECE + 7])
def test_several_names_at_once_have_what_each_has_alone(count: int) -> None:
    noise, names = NoiseSource.seeded(2), [f"w/{i}" for i in range(7)]
    together = noise.normals(4, names, (count,))
    assert all(torch.equal(row, noise.normal(4, name, (count,))) for row, name in zip(together, names, strict=True))


def test_numbers_are_standard_normal() -> None:
    x = NoiseSource.seeded(0).normal(1, "w", (300, 1001))
    assert x.shape == (300, 1001) and x.dtype == torch.float32
    flat = x.flatten().double().numpy()
    assert stats.kstest(flat, "norm").pvalue > 0.01
    assert abs(flat.var() - 1) < 4 * math.sqrt(2 / flat.size)
    assert abs(flat.mean()) < 4 / math.sqrt(flat.size)
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 4 / math.sqrt(flat.size)
    assert (np.abs(flat) > 4).sum() == pytest.approx(flat.size * 6.33e-5, abs=4 * math.sqrt(flat.size * 6.33e-5))
    half = flat[: 2 * source.PIECE].reshape(2, -1)
    assert abs(np.corrcoef(half[0] ** 2, half[1] ** 2)[0, 1]) < 4 / math.sqrt(half.shape[1])  # cosine and sine of one radius


def test_the_tail_reaches_as_far_as_62_bits_let_it() -> None:
    out = torch.empty(2, 2)
    source._box_muller(torch.tensor([[0, 2**31 - 1], [0, -1], [0, 0]], dtype=torch.int32), out)
    assert out[0, 0] == pytest.approx(math.sqrt(2 * 63 * math.log(2)), rel=1e-4)
    assert torch.isfinite(out).all() and 0 < out[0, 1] < 1e-4


def test_no_number_is_zero_because_it_was_rounded() -> None:
    """The radius for u next to 1, where float32 has few numbers, is that of float64; the angle is never a whole turn or a half."""
    high = (2**31 - 1 - torch.cat([torch.arange(0, 5000, 7), torch.arange(2**20, 2**23, 2**16 + 1)])).to(torch.int32)
    low, turn = torch.full_like(high, 12345), torch.zeros_like(high)
    out = torch.empty(2, len(high))
    source._box_muller(torch.stack([high, low, turn]), out)
    complement = (2**31 - 1 - high.double()) * 2.0**-31 + (2.0**-31 - 12345.5 * 2.0**-62)  # 1 - u, as exactly as float64 has it
    torch.testing.assert_close(out[0].double(), (-2 * torch.log1p(-complement)).sqrt(), rtol=1e-6, atol=0)
    assert bool((out != 0).all())
    half = torch.tensor([-(2**31), -1, 0, 2**31 - 1], dtype=torch.int32)
    found = torch.empty(2, 4)
    source._box_muller(torch.stack([torch.full_like(half, 5), half, half]), found)
    assert bool((found != 0).all())


def test_a_number_is_a_function_of_key_step_and_name_alone() -> None:
    a, b = NoiseSource.seeded(1), NoiseSource.seeded(1)
    assert torch.equal(a.normal(3, "x", (5,)), b.normal(3, "x", (5,)))
    assert torch.equal(a.normal(3, "x", (2, 3)).flatten(), a.normal(3, "x", (6,)))
    others = [NoiseSource.seeded(2).normal(3, "x", (5,)), a.normal(4, "x", (5,)), a.normal(3, "y", (5,))]
    assert all(not torch.equal(a.normal(3, "x", (5,)), o) for o in others)
    assert a.normal(1, "x", ()).shape == () and a.normal(1, "x", (0, 3)).shape == (0, 3)


def test_secure_sources_differ_and_both_say_what_they_are() -> None:
    one, two = NoiseSource.secure(), NoiseSource.secure()
    assert not torch.equal(one.normal(0, "x", (8,)), two.normal(0, "x", (8,)))
    assert "operating system" in one.description and "for tests" in NoiseSource.seeded(1).description
    with pytest.raises(ValueError, match=r"32 bytes, got 5"):
        NoiseSource(b"short")


# ---------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Constant(), [1, 1, 1, 1, 1]),
        (Linear(final=0.5), [1, 0.875, 0.75, 0.625, 0.5]),
        (Exponential(final=1 / 16), [1, 0.5, 0.25, 0.125, 1 / 16]),
        (Cosine(final=0.2), [1, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2]),
        (Steps(at=(0.4, 0.8), gamma=0.5), [1, 1, 0.5, 0.5, 0.25]),
        (Steps(at=(1, 3), gamma=2.0), [1, 2, 2, 4, 4]),
    ],
)
def test_schedules_are_their_formula_and_counted_step_by_step(config: NoiseConfig, expected: list[float]) -> None:
    plan = NoisePlan(config, 3.0, 5)
    assert [plan.multiplier(s) for s in range(5)] == pytest.approx([3 * e for e in expected])
    told = [r.noise_multiplier for r in plan.releases(0.1, "poisson") for _ in range(r.count)]
    assert told == pytest.approx([3 * e for e in expected])
    assert {(r.sampling, r.rate) for r in plan.releases(0.1, "poisson")} == {("poisson", 0.1)}
    assert not plan.adaptive and plan.query(0) is None


def test_changing_batches_change_the_rate_of_their_steps() -> None:
    plan = NoisePlan(Linear(final=0.5), 1.0, 4)
    found = plan.releases([(0.1, 2), (0.3, 2)], "poisson")
    assert [(r.rate, r.count) for r in found] == [(0.1, 1), (0.1, 1), (0.3, 1), (0.3, 1)]
    assert NoisePlan(Constant(), 1.0, 4).releases([(0.1, 2), (0.3, 1), (0.3, 1)], "poisson") == [
        Release(1.0, "poisson", 0.1, 2),
        Release(1.0, "poisson", 0.3, 2),
    ]


def test_only_the_steps_that_were_made_are_counted_where_fewer_were() -> None:
    plan = NoisePlan(Linear(final=0.5), 2.0, 3)
    assert [r.noise_multiplier for r in plan.releases([(0.1, 2)], "poisson")] == [2.0, 1.5]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"kind": "step", "at": []}, "no milestone"),
        ({"kind": "step", "at": [0.5, 3]}, "rising milestones"),
        ({"kind": "linear", "final": 0}, "greater than 0"),
        ({"kind": "validation-loss", "least": 1.5}, "less than 1"),
        ({"kind": "correlated", "bands": 100}, "too many to optimize"),
        ({"kind": "pink"}, "no noise is called"),
    ],
)
def test_impossible_noise_is_refused(section: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse(NoiseConfig, section)


def test_every_kind_has_a_plan_that_starts_at_the_base() -> None:
    kinds = registered("noise")
    assert set(kinds) >= {"constant", "linear", "exponential", "cosine", "step", "validation-loss", "gradient-norm", "correlated"}
    for kind in kinds:
        plan = NoisePlan(parse(NoiseConfig, {"kind": kind}), 1.5, 400)
        assert plan.multiplier(0) == 1.5
        assert plan.releases(0.1, "shuffled")
    with pytest.raises(RecipeError, match=r"nothing is private"):
        NoisePlan(Constant(), 0.0, 10)


# ---------------------------------------------------------------------------------------------- looks at the data


def test_a_look_is_noised_as_it_says() -> None:
    plan = NoisePlan(ValidationLoss(every=2, query_noise=3.0, bound=5.0), 1.0, 100)
    answers = []
    for i in range(400):
        query = Query("validation-loss", i, 5.0, 3.0)
        answers.append(plan.observe(query, 250.0, 100, NoiseSource.seeded(0)))
    assert np.mean(answers) == pytest.approx(2.5, abs=4 * 0.15 / 20)
    assert np.std(answers) == pytest.approx(3 * 5 / 100, rel=0.15)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([ValidationLoss, GradientNorm]),
    st.integers(1, 4), st.integers(0, 2), st.lists(st.floats(0.0, 3.0), min_size=24, max_size=24), st.integers(0, 24),
)  # fmt: skip
def test_the_worst_case_covers_whatever_is_seen(kind: type, every: int, patience: int, seen: list[float], stop: int) -> None:
    """Nothing that can be seen makes the noise fall below what was accounted before the run, nor, later, below what can still come."""
    fields = {"every": every, "query_noise": 4.0, "least": 0.3} | ({"patience": patience} if kind is ValidationLoss else {})
    plan = NoisePlan(kind(**fields), 2.0, 24)
    before = [r.noise_multiplier for r in plan.releases(0.1, "poisson") if r.sampling == "poisson" for _ in range(r.count)]
    midway: list[float] = []
    used = []
    for step in range(24):
        if step == stop:
            midway = [
                r.noise_multiplier for r in plan.releases(0.1, "poisson", done=step) if r.sampling == "poisson" for _ in range(r.count)
            ]
        used.append(plan.multiplier(step))
        query = plan.query(step)
        if query is not None:
            plan.observe(query, seen[step] * 50, 50, NoiseSource.seeded(0))
    after = [r.noise_multiplier for r in plan.releases(0.1, "poisson", done=24) if r.sampling == "poisson" for _ in range(r.count)]
    for step in range(24):
        together = used[step] if kind is ValidationLoss or step % every or step == 23 else (used[step] ** -2 + 4.0**-2) ** -0.5
        assert after[step] == pytest.approx(together)
        assert before[step] <= after[step] * (1 + 1e-12)
        if midway:
            assert before[step] <= midway[step] * (1 + 1e-12) and midway[step] <= after[step] * (1 + 1e-12)
    assert epsilon(plan.releases(0.1, "poisson"), 1e-5) >= epsilon(plan.releases(0.1, "poisson", done=24), 1e-5) * (1 - 1e-9)


def test_looks_at_the_validation_loss_are_releases_of_their_own() -> None:
    plan = NoisePlan(ValidationLoss(every=10, query_noise=7.0), 1.0, 100)
    assert plan.releases(0.1, "poisson")[-1] == Release(7.0, "full", count=9)
    assert sum(plan.query(s) is not None for s in range(100)) == 9
    assert plan.query(9) == Query("validation-loss", 9, 5.0, 7.0)


def test_noise_falls_when_the_validation_loss_stands_still() -> None:
    plan = NoisePlan(ValidationLoss(every=1, query_noise=1e-6, gamma=0.5, patience=1, least=0.2), 1.0, 12)
    losses = [3.0, 2.0, 2.5, 2.6, 1.9, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5]
    used = []
    for step in range(12):
        used.append(plan.multiplier(step))
        query = plan.query(step)
        if query is not None:
            plan.observe(query, losses[step] * 10, 10, NoiseSource.seeded(0))
    assert used == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_noise_follows_the_norm_of_the_gradients() -> None:
    plan = NoisePlan(GradientNorm(every=2, query_noise=1e-6, least=0.2), 1.0, 9)
    norms = {0: 0.8, 2: 0.4, 4: 0.01, 6: 0.9}
    used = []
    for step in range(9):
        query = plan.query(step)
        used.append(plan.multiplier(step))
        if query is not None:
            assert query.bound == 1.0
            plan.observe(query, norms[step] * 10, 10, NoiseSource.seeded(0))
    assert used == pytest.approx([1, 1, 1, 0.5, 0.5, 0.2, 0.2, 1, 1])


def test_a_resumed_plan_goes_on_as_if_nothing_had_happened() -> None:
    source = NoiseSource.seeded(3)

    def go(plan: NoisePlan, start: int, stop: int) -> list[float]:
        used = []
        for step in range(start, stop):
            used.append(plan.multiplier(step))
            query = plan.query(step)
            if query is not None:
                plan.observe(query, 10.0 + step % 3, 10, source)
        return used

    config = ValidationLoss(every=2, query_noise=0.5, patience=0)
    whole = go(NoisePlan(config, 1.0, 40), 0, 40)
    first = NoisePlan(config, 1.0, 40)
    begun = go(first, 0, 17)
    second = NoisePlan(config, 1.0, 40)
    second.load(json.loads(json.dumps(first.state())))
    assert begun + go(second, 17, 40) == whole
    assert whole[-1] < 1


# ---------------------------------------------------------------------------------------------- correlated noise


def matrix(r: np.ndarray, steps: int) -> np.ndarray:
    """The lower-triangular Toeplitz matrix with first column r."""
    column = np.concatenate([r, np.zeros(max(0, steps - len(r)))])[:steps]
    return np.array([[column[i - j] if i >= j else 0.0 for j in range(steps)] for i in range(steps)])


def test_coefficients_are_those_of_the_matrix_square_root() -> None:
    from scipy.linalg import inv, sqrtm

    whole = inv(sqrtm(np.tril(np.ones((12, 12)))))
    assert square_root_coefficients(12) == pytest.approx(whole[:, 0], abs=1e-6)
    r = square_root_coefficients(4)
    assert coefficients_of_inverse(r, 12) == pytest.approx(np.linalg.inv(matrix(r, 12))[:, 0])


@pytest.mark.parametrize(("steps", "apart"), [(6, 2), (9, 3), (8, 8), (10, 4), (7, 1)])
@pytest.mark.parametrize("form", ["square-root", "optimised"])
def test_sensitivity_is_the_worst_of_all_participation_patterns(steps: int, apart: int, form: str) -> None:
    """Every set of steps at least `apart` apart, with every sign of its contributions (brute force)."""
    r = Correlated(bands=4, form=form).coefficients(steps, apart)
    c = np.linalg.inv(matrix(np.array(r), steps))
    worst = 0.0
    for size in range(1, -(-steps // apart) + 1):
        for pattern in itertools.combinations(range(steps), size):
            if all(b - a >= apart for a, b in itertools.pairwise(pattern)):
                for signs in itertools.product([1.0, -1.0], repeat=size if steps < 10 else 1):
                    full = np.resize(np.array(signs), size)
                    worst = max(worst, float(np.linalg.norm(c[:, list(pattern)] @ full)))
    assert sensitivity(r, steps, apart) == pytest.approx(worst)


def test_sensitivity_without_correlation_is_the_square_root_of_the_participations() -> None:
    assert sensitivity((1.0,), 20, 5) == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"worst participation pattern"):
        sensitivity((1.0, 0.5), 5, 5)


@pytest.mark.parametrize(("steps", "apart"), [(200, 200), (200, 50), (300, 20)])
def test_prefix_sums_err_less_than_with_independent_noise_of_the_same_epsilon(steps: int, apart: int) -> None:
    independent = prefix_error((1.0,), steps, apart)
    assert independent == pytest.approx(math.sqrt((steps + 1) / 2) * math.sqrt(-(-steps // apart)))  # closed form
    root = prefix_error(Correlated(bands=4, form="square-root").coefficients(steps, apart), steps, apart)
    best = prefix_error(Correlated(bands=4).coefficients(steps, apart), steps, apart)
    assert best < root < 0.65 * independent
    assert best < 0.5 * independent
    r = np.array(Correlated(bands=4).coefficients(steps, apart))
    a = np.tril(np.ones((steps, steps)))
    frobenius = float(np.linalg.norm(a @ matrix(r, steps))) / math.sqrt(steps)
    assert best == pytest.approx(frobenius * sensitivity(r, steps, apart))


def test_it_errs_less_than_the_binary_tree() -> None:
    """Kairouz et al. 2021: error of a prefix sum from the tree's nodes, sensitivity sqrt(levels) for one pass."""
    steps = 255
    levels = 8
    tree = math.sqrt(np.mean([bin(t).count("1") for t in range(1, steps + 1)]) * levels)
    assert prefix_error(Correlated(bands=8).coefficients(steps, steps), steps, steps) < tree


def test_drawn_noise_is_the_matrix_times_independent_noise() -> None:
    plan = NoisePlan(Correlated(bands=3), 2.0, 6)
    source = NoiseSource.seeded(1)
    with pytest.raises(RuntimeError, match=r"releases\(\) first"):
        plan.draw(source, 0, ["w"], (4,))[0]
    plan.releases(1 / 3, "shuffled")
    r = plan.config.coefficients(6, 3)  # type: ignore[attr-defined]
    fresh = torch.stack([source.normal(t, "w", (4,)) for t in range(6)])
    expected = torch.tensor(matrix(np.array(r), 6), dtype=torch.float32) @ fresh
    drawn = torch.stack([plan.draw(source, t, ["w"], (4,))[0] for t in range(6)])
    assert torch.allclose(drawn, expected, atol=1e-6)
    again = NoisePlan(Correlated(bands=3), 2.0, 6)
    again.load(json.loads(json.dumps(plan.state())))
    assert torch.equal(again.draw(source, 4, ["w"], (4,))[0], drawn[4])
    independent = NoisePlan(Constant(), 2.0, 6)
    assert torch.equal(independent.draw(source, 4, ["w"], (4,))[0], fresh[4])


def test_correlated_noise_counts_as_one_gaussian_of_its_sensitivity() -> None:
    plan = NoisePlan(Correlated(bands=4), 10.0, 60)
    (release,) = plan.releases(0.05, "shuffled")
    assert release.noise_multiplier == pytest.approx(10 / sensitivity(plan.config.coefficients(60, 20), 60, 20))  # type: ignore[attr-defined]
    assert plain([release]) == [Release(release.noise_multiplier, "full")]
    stopped = plan.releases([(0.05, 25)], "shuffled")
    assert epsilon(stopped, 1e-5) < epsilon(release, 1e-5)
    with pytest.raises(RecipeError, match=r"sampling=shuffled"):
        plan.releases(0.05, "poisson")
    with pytest.raises(RecipeError, match=r"the batch size changes"):
        plan.releases([(0.05, 30), (0.1, 30)], "shuffled")
