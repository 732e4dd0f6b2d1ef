"""Arrays: statistics of the training part only, wrong values named, augmentation the same in every batch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse, registered
from tauon.data import ArrayDataset, Arrays, AugmentConfig, Draws, Normalizer, Points, TrainingOptions
from tauon.data.arrays import check_arrays
from tauon.data.augment import ElasticConfig, augment
from tauon.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 3, 12, 10)).astype(np.uint8)


def step(kind: str, **values: Any) -> AugmentConfig:
    return parse(AugmentConfig, {"kind": kind, **values})


def apply(steps: list[AugmentConfig], images: torch.Tensor, index: list[int], epoch: int = 0, seed: int = 1) -> torch.Tensor:
    return augment(images, steps, seed=seed, epoch=epoch, index=np.array(index))


# ---------------------------------------------------------------------------------------------- normalising


def test_standard_equals_scikit_learns_scaler() -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = (RNG.normal(size=(200, 5)) * [1, 10, 1e4, 1e-3, 1] + [0, 5, -1e5, 3, 7]).astype(np.float32)
    x[:, 4] = 7  # constant
    ours = Normalizer.fit(x, "standard")(x)
    theirs = preprocessing.StandardScaler().fit_transform(x.astype(np.float64))
    assert np.allclose(ours[:, :4], theirs[:, :4], atol=2e-3)
    assert np.array_equal(ours[:, 4], np.zeros(200))
    minmax = Normalizer.fit(x, "minmax")(x)
    assert np.allclose(minmax[:, :4], preprocessing.MinMaxScaler().fit_transform(x.astype(np.float64))[:, :4], atol=1e-5)


@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_images_are_normalised_by_channel(kind: Any) -> None:
    out = Normalizer.fit(IMAGES, kind)(IMAGES)
    for c in range(3):
        if kind == "standard":
            assert out[:, c].mean() == pytest.approx(0, abs=1e-5)
            assert out[:, c].std() == pytest.approx(1, abs=1e-5)
        else:
            assert (out[:, c].min(), out[:, c].max()) == (0, 1)


@pytest.mark.parametrize("kind", ["standard", "quantile", "none"])
def test_batches_of_a_table_are_its_rows_normalised(kind: Any) -> None:
    """Whatever is kept of the normalised table: the same bits, also after the scaler was replaced."""
    x = RNG.normal(size=(300, 5)) * [1, 10, 1e9, 1e-3, 1]
    rows, index = np.arange(290, -1, -2), np.array([3, 3, 0, 140])
    data = ArrayDataset(table(x, np.arange(300) % 2, ("a", "b")), rows, Normalizer.fit(x, kind))
    for normalizer in (data.normalizer, Normalizer.fit(x * 2 + 1, kind)):
        data.scale_by(normalizer)
        for _ in range(2):
            assert np.array_equal(data.batch(index).inputs.numpy(), normalizer(x[rows[index]]))
    batch = data.batch(index)
    batch.inputs.zero_()  # a copy: the next batch has the values again
    assert np.array_equal(data.batch(index).inputs.numpy(), data.normalizer(x[rows[index]]))


def test_unit_divides_bytes_by_255_and_refuses_other_ranges() -> None:
    assert np.array_equal(Normalizer.fit(IMAGES, "unit")(IMAGES), IMAGES.astype(np.float32) / np.float32(255))
    assert np.array_equal(Normalizer.fit(IMAGES, "none")(IMAGES), IMAGES.astype(np.float32))
    with pytest.raises(DataError, match=r"unit divides bytes by 255, but features range from -1"):
        Normalizer.fit(np.array([[-1.0], [3.0]], np.float32), "unit")


@pytest.mark.parametrize("kind", ["none", "standard", "minmax", "unit"])
def test_a_normaliser_comes_back_from_json_to_the_last_bit(kind: Any) -> None:
    import json

    one = Normalizer.fit(IMAGES, kind)
    again = Normalizer.from_json(json.loads(json.dumps(one.to_json())))
    assert np.array_equal(one(IMAGES), again(IMAGES))


def test_statistics_of_large_means_do_not_cancel() -> None:
    x = (1e4 + RNG.normal(size=(500, 1, 4, 4))).astype(np.float32)
    out = Normalizer.fit(x, "standard")(x)
    assert out.std() == pytest.approx(1, abs=1e-2)


# ---------------------------------------------------------------------------------------------- checks


def table(features: Any, targets: Any, labels: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Arrays:
    return Arrays(np.asarray(features), np.asarray(targets), names, labels)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (table([[1.0, np.nan], [2.0, 3.0]], [0, 1], names=("a", "b")), r"features: row 0, column 'b' is nan \(1 such values in 1 rows\)"),
        (table([[1.0], [np.inf]], [0, 1]), r"features: row 1, column \(0,\) is inf"),
        (table([[1.0], [1e39]], [0, 1]), r"features as float32: row 1, column \(0,\) is inf"),
        (table([[1.0], [2.0]], [0.5, np.nan], ("y",)), r"targets: row 1, the column is nan"),
        (table(np.zeros((0, 3)), []), r"no rows"),
        (table([[1.0], [2.0]], [1]), r"2 rows of features but 1 targets"),
        (table([1.0, 2.0], [0, 1]), r"features have shape \(2,\)"),
        (table([["a"], ["b"]], [0, 1]), r"features have type <U1, expected numbers"),
        (table([[1.0], [2.0]], [1, 1], ("a", "b")), r"every row has the label 'b'"),
        (table([[1.0], [2.0]], [0, 2], ("a", "b")), r"label 2 of row 1 is out of range, expected 0 to 1"),
        (table([[1.0], [2.0]], [0, -1], ("a", "b")), r"label -1 of row 1 is out of range"),
        (table([[1.0], [2.0]], [[0], [1]], ("a", "b")), r"class labels have shape \(2, 1\)"),
        (table([[1.0], [2.0]], np.zeros((2, 2, 2))), r"targets have shape"),
    ],
)
def test_what_cannot_be_learned_from_is_named(bad: Arrays, message: str) -> None:
    with pytest.raises(DataError, match=f"here: {message}"):
        check_arrays(bad, "here")


def test_one_class_is_enough_for_held_out_rows() -> None:
    check_arrays(table([[1.0], [2.0]], [1, 1], ("a", "b")), "here", training=False)


# ---------------------------------------------------------------------------------------------- the data set


def test_batches_hold_the_rows_asked_for() -> None:
    data = ArrayDataset(table(IMAGES, np.arange(40) % 4, tuple("abcd")), np.arange(5, 35), Normalizer.fit(IMAGES, "unit"))
    batch = data.batch(np.array([3, 0, 29, 3]))
    assert batch.inputs.dtype == torch.float32
    assert np.array_equal(batch.inputs.numpy(), IMAGES[[8, 5, 34, 8]].astype(np.float32) / 255)
    assert batch.targets.tolist() == [0, 1, 2, 0]
    assert batch.targets.dtype == torch.int64
    assert batch.weights.tolist() == [1, 1, 1, 1]
    assert batch.index is not None
    assert batch.index.tolist() == [3, 0, 29, 3]
    assert batch.segments is None
    assert (data.spec.input_shape, data.spec.outputs, data.spec.labels) == ((3, 12, 10), 4, tuple("abcd"))
    assert data.facts["classes"] == {"a": 7, "b": 8, "c": 8, "d": 7}
    assert len(data) == 30


def test_values_keep_their_shape() -> None:
    one = ArrayDataset(check_arrays(table([[1.0], [2.0]], [0.5, 1.5], ("y",)), ""), np.arange(2), Normalizer.fit(np.ones((1, 1)), "none"))
    two = ArrayDataset(check_arrays(table([[1.0], [2.0]], [[0.5, 1], [2, 3]]), ""), np.arange(2), Normalizer.fit(np.ones((1, 1)), "none"))
    assert (one.batch(np.array([1])).targets.tolist(), one.spec.outputs) == ([1.5], 1)
    assert (two.batch(np.array([1])).targets.tolist(), two.spec.outputs) == ([[2, 3]], 2)
    assert one.facts["targets"]["mean"] == [1.0]


# ---------------------------------------------------------------------------------------------- augmentation

ALL = [
    step("shift", pixels=3),
    step("affine", degrees=20, scale=0.2, shear=10, translate=0.1),
    step("elastic", pixels=1.5, spacing=4),
    step("flip"),
    step("noise", std=0.2),
]


def test_every_registered_augmentation_is_tried_here() -> None:
    assert set(registered("augment")) >= {s.kind_ for s in ALL}


@pytest.mark.parametrize("steps", [[s] for s in ALL] + [ALL, ALL[::-1]], ids=lambda s: "+".join(x.kind_ for x in s))
def test_an_example_comes_out_the_same_in_every_batch(steps: list[AugmentConfig]) -> None:
    """Bit for bit: alone, in another order, with other companions."""
    data = ArrayDataset(
        table(IMAGES, np.arange(40) % 2, ("a", "b")), np.arange(40), Normalizer.fit(IMAGES, "standard"), training=TrainingOptions(3, steps)
    )
    whole = data.batch(np.arange(40), epoch=2).inputs
    for index in ([7], [39, 7, 0], [*range(40)][::-1], [7] * 9):
        assert torch.equal(data.batch(np.array(index), epoch=2).inputs, whole[index])
    assert not torch.equal(data.batch(np.arange(40), epoch=3).inputs, whole)
    other = ArrayDataset(
        table(IMAGES, np.arange(40) % 2, ("a", "b")), np.arange(40), Normalizer.fit(IMAGES, "standard"), training=TrainingOptions(4, steps)
    )
    assert not torch.equal(other.batch(np.arange(40), epoch=2).inputs, whole)


def test_shift_equals_numpys_roll_with_zeros() -> None:
    images = torch.from_numpy(IMAGES[:, :1].astype(np.float32))
    out = apply([step("shift", pixels=2)], images, list(range(40)))
    seen = set()
    for i in range(40):
        padded = np.pad(IMAGES[i, 0].astype(np.float32), 2)
        fits = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if np.allclose(out[i, 0].numpy(), padded[2 - dy : 14 - dy, 2 - dx : 12 - dx], atol=0.02)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 12


def test_affine_equals_torchs_own_grid() -> None:
    """The same rotation, scale, shear and move through torch.nn.functional.affine_grid."""
    config = step("affine", degrees=30, scale=0.3, shear=20, translate=0.2)
    images = torch.from_numpy(RNG.normal(size=(16, 2, 15, 15)).astype(np.float32))
    out = apply([config], images, list(range(16)))
    u = Draws(1, 0, 0, np.arange(16)).uniform(5, -1, 1).astype(np.float64)
    theta = np.zeros((16, 2, 3))
    for i, (r, k, s, tx, ty) in enumerate(u):
        a, slant, size = np.radians(30 * r), np.tan(np.radians(20 * k)), 1 + 0.3 * s
        inverse = np.array([[1, slant], [0, 1]]) @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) / size
        theta[i, :, :2] = inverse
        theta[i, :, 2] = -inverse @ np.array([0.2 * tx, 0.2 * ty]) * 2  # in units of half the picture, both sides 15
    grid = torch.nn.functional.affine_grid(torch.from_numpy(theta).float(), list(images.shape), align_corners=False)
    assert torch.allclose(out, torch.nn.functional.grid_sample(images, grid, align_corners=False), atol=2e-4)


def test_elastic_moves_points_by_the_distance_asked() -> None:
    """Sampling an image whose value is its own column shows the displacement; in the middle no edge disturbs it."""
    ramp = torch.arange(64.0).expand(300, 1, 64, 64).contiguous()
    moved = apply([step("elastic", pixels=2.0, spacing=8)], ramp, list(range(300))) - ramp
    middle = moved[:, 0, 20:44, 20:44]
    assert float(middle.square().mean().sqrt()) == pytest.approx(2.0, rel=0.1)
    assert float((middle[:, :, 1:] - middle[:, :, :-1]).abs().mean()) < 0.5  # neighbours move together


def test_elastic_is_scipys_cubic_b_spline_over_its_lattice() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    bump = interpolate.BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    height, width, spacing = 17, 26, 5.0
    points, draws = Points(np.tile(np.eye(2, 3), (6, 1, 1)), height, width), Draws(1, 0, 0, np.arange(6))
    ElasticConfig(pixels=1.5, spacing=spacing).move(points, draws)

    def basis(n: int) -> np.ndarray:
        knots = int(np.ceil((n - 1) / spacing)) + 4
        at = (np.arange(n)[:, None] - (n - 1) / 2) / spacing - (np.arange(knots) - (knots - 1) / 2)
        w = np.nan_to_num(bump(at))
        return w / np.sqrt((w**2).sum(1, keepdims=True))

    down, along = basis(height), basis(width)
    knots = draws.normal(2 * down.shape[1] * along.shape[1]).reshape(6, 2, down.shape[1], along.shape[1]) * 1.5
    assert points.displaced is not None
    np.testing.assert_allclose(points.displaced, np.einsum("hi,bcij,wj->bchw", down, knots.astype(np.float64), along), atol=1e-5)


def test_flip_mirrors_about_the_share_asked() -> None:
    images = torch.from_numpy(IMAGES[:1].astype(np.float32)).repeat(2000, 1, 1, 1)
    out = apply([step("flip", share=0.3)], images, list(range(2000)))
    flipped = (out == images.flip(-1)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert bool((flipped ^ kept).all())
    assert int(flipped.sum()) == pytest.approx(600, abs=4 * np.sqrt(2000 * 0.21))


def test_noise_is_normal_and_independent() -> None:
    stats = pytest.importorskip("scipy.stats")
    out = apply([step("noise", std=0.5)], torch.zeros(400, 50), list(range(400))).numpy()
    assert stats.kstest(out.ravel() / 0.5, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(out[:, 0], out[:, 1])[0, 1]) < 0.2
    assert abs(np.corrcoef(out[0], out[1])[0, 1]) < 0.5


def test_what_comes_in_at_the_edge_is_a_raw_zero_after_normalising() -> None:
    black = np.zeros((4, 1, 8, 8), np.uint8)
    sample = np.concatenate([black, black + 200])
    data = ArrayDataset(
        table(sample, np.arange(8) % 2, ("a", "b")),
        np.arange(8),
        Normalizer.fit(sample, "standard"),
        training=TrainingOptions(augments=[step("shift", pixels=3)]),
    )
    plain = ArrayDataset(table(sample, np.arange(8) % 2, ("a", "b")), np.arange(8), Normalizer.fit(sample, "standard"))
    assert torch.allclose(data.batch(np.arange(4)).inputs, plain.batch(np.arange(4)).inputs, atol=1e-5)


def test_images_are_needed_where_points_move() -> None:
    with pytest.raises(DataError, match=r"data\.augment\.1: affine needs images .* shape \(3,\)"):
        ArrayDataset(
            table(np.zeros((2, 3)), [0, 1], ("a", "b")),
            np.arange(2),
            Normalizer.fit(np.ones((2, 3)), "none"),
            training=TrainingOptions(augments=[ALL[4], ALL[1]]),
        )


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_draws_depend_on_nothing_but_their_key(seed: int, epoch: int, n: int) -> None:
    whole = Draws(seed, 0, epoch, np.arange(20)).uniform(n, -1, 1)
    assert whole.shape == (20, n)
    assert np.array_equal(Draws(seed, 0, epoch, np.array([13, 2])).uniform(n, -1, 1), whole[[13, 2]])
    assert not np.array_equal(Draws(seed, 1, epoch, np.arange(20)).uniform(n, -1, 1), whole)
    assert whole.min() >= -1
    assert whole.max() < 1


def test_uniform_draws_are_uniform() -> None:
    stats = pytest.importorskip("scipy.stats")
    drawn = Draws(0, 0, 0, np.arange(20_000)).uniform(2)
    assert stats.kstest(drawn[:, 0], "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.03


def test_augmenting_a_batch_of_mnist_size_is_fast() -> None:
    """A guard against an accidental loop over examples: 128 would take 128 times as long as one."""
    images = torch.rand(128, 1, 28, 28)
    steps = [step("affine"), step("elastic")]
    apply(steps, images, list(range(128)))
    pairs = [[_seconds(lambda n=n: apply(steps, images[:n], list(range(n)))) for n in (1, 128)] for _ in range(9)]
    one, many = (min(p[i] for p in pairs) for i in (0, 1))
    assert many < 64 * one


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
