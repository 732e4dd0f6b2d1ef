"""Augmentations of pictures against Pillow, and what every augmentation promises: the same picture in every batch."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import ArrayDataset, Arrays, AugmentConfig, Draws, Normalizer, TrainingOptions, pictures
from tauon.data.augment import augment
from tauon.errors import DataError, RecipeError

Image = pytest.importorskip("PIL.Image", reason="the reference is Pillow")
ImageEnhance = pytest.importorskip("PIL.ImageEnhance")
ImageOps = pytest.importorskip("PIL.ImageOps")

RNG = np.random.default_rng(0)


def photographs(n: int, side: int = 24, channels: int = 3) -> np.ndarray:
    """Smooth pictures with a few sharp edges, full range: bytes (N, C, H, W)."""
    y, x = np.mgrid[:side, :side] / side
    out = np.empty((n, channels, side, side))
    for i in range(n):
        for c in range(channels):
            a, b, phase = RNG.uniform(-6, 6, 3)
            out[i, c] = 128 + 100 * np.sin(a * x + b * y + phase) + RNG.normal(0, 8, (side, side))
        h, w = RNG.integers(4, side // 2, 2)
        out[i, :, h : h + 6, w : w + 5] = RNG.uniform(0, 255, (channels, 1, 1))
    return np.clip(out, 0, 255).astype(np.uint8)


PHOTOS = photographs(16)
UNIT = torch.from_numpy(PHOTOS).float() / 255
ALL: list[dict[str, Any]] = [
    {"kind": "crop", "padding": 3},
    {"kind": "crop", "padding": 3, "fill": "reflect"},
    {"kind": "crop", "padding": 3, "fill": "edge"},
    {"kind": "resized-crop", "area": [0.3, 1.0]},
    {"kind": "rotate", "degrees": 20},
    {"kind": "flip", "axis": "vertical"},
    {"kind": "colour", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    {"kind": "erase", "share": 0.7},
    {"kind": "cutout", "size": 7},
    {"kind": "randaugment", "changes": 3, "magnitude": 12},
]


def step(values: dict[str, Any]) -> AugmentConfig:
    return parse(AugmentConfig, values)


def pillow(picture: np.ndarray) -> Any:
    return Image.fromarray(np.moveaxis(picture, 0, -1))


def unit(image: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(image, np.float64), -1, 0) / 255


def data_of(photos: np.ndarray, steps: list[AugmentConfig], normalize: Any = "standard", seed: int = 3) -> ArrayDataset:
    table = Arrays(photos, np.arange(len(photos)) % 2, (), ("a", "b"))
    return ArrayDataset(table, np.arange(len(photos)), Normalizer.fit(photos, normalize), training=TrainingOptions(seed, steps))


# ---------------------------------------------------------------------------------------------- Pillow's formulas


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pictures.brightness, "Brightness"),
        (pictures.contrast, "Contrast"),
        (pictures.saturation, "Color"),
        (pictures.sharpness, "Sharpness"),
    ],
)
def test_enhancing_equals_pillow_to_a_byte(ours: Any, theirs: str, factor: float) -> None:
    out = ours(UNIT, torch.full((16,), factor)).numpy()
    for i in range(16):
        wanted = unit(getattr(ImageEnhance, theirs)(pillow(PHOTOS[i])).enhance(factor))
        # Pillow rounds to bytes on the way, the plain picture too: half a byte each, times the factor
        assert np.abs(out[i] - wanted).max() <= (1.01 + abs(1 - factor)) / 255


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_histogram_operations_equal_pillow(name: str) -> None:
    out = getattr(pictures, name)(UNIT).numpy()
    for i in range(16):
        wanted = unit(getattr(ImageOps, name)(pillow(PHOTOS[i])))
        assert np.abs(out[i] - wanted).max() <= (1e-6 if name == "equalize" else 1.01 / 255)
    flat = torch.full((2, 3, 5, 5), 0.4)
    assert torch.allclose(getattr(pictures, name)(flat), flat, atol=1e-6)  # one value: nothing to stretch


@pytest.mark.parametrize("bits", [1, 4, 7, 8])
def test_posterize_equals_pillow(bits: int) -> None:
    out = (pictures.posterize(UNIT, torch.full((16,), bits)) * 255).round().numpy()
    for i in range(16):
        assert np.array_equal(out[i], unit(ImageOps.posterize(pillow(PHOTOS[i]), bits)) * 255)


@pytest.mark.parametrize("threshold", [0, 100, 255])
def test_solarize_equals_pillow(threshold: int) -> None:
    out = pictures.solarize(UNIT, torch.full((16,), threshold / 255)).numpy()
    for i in range(16):
        assert np.allclose(out[i], unit(ImageOps.solarize(pillow(PHOTOS[i]), threshold)), atol=1e-6)


@pytest.mark.parametrize("turn", [-0.3, 0.0, 0.1, 0.5])
def test_hue_equals_pythons_colorsys(turn: float) -> None:
    some = UNIT[:2, :, ::6, ::6].clone()
    some[0, :, 0, 0] = 0.5  # grey: no hue to turn
    out = pictures.hue(some, torch.full((2,), turn)).numpy()
    for i, y, x in np.ndindex(2, 4, 4):
        h, s, v = colorsys.rgb_to_hsv(*some[i, :, y, x].tolist())
        assert np.allclose(out[i, :, y, x], colorsys.hsv_to_rgb((h + turn) % 1.0, s, v), atol=1e-5)


def test_grey_is_pillows_luma() -> None:
    out = pictures.grey(UNIT).numpy()
    for i in range(16):
        assert np.abs(out[i, 0] * 255 - np.asarray(pillow(PHOTOS[i]).convert("L"), np.float64)).max() <= 0.51
    assert pictures.grey(UNIT[:, :1]) is UNIT[:, :1] or torch.equal(pictures.grey(UNIT[:, :1]), UNIT[:, :1])


@pytest.mark.parametrize("degrees", [10.0, 30.0])
def test_rotation_equals_pillow_inside(degrees: float) -> None:
    """Away from the edge; Pillow's bilinear filter rounds to bytes. Positive angles turn to the right here, to the left there."""
    out = augment(UNIT, [step({"kind": "rotate", "degrees": degrees})], seed=1, epoch=0, index=np.arange(16)).numpy()
    angles = Draws(1, 0, 0, np.arange(16)).uniform(1, -1, 1)[:, 0] * degrees
    for i in range(16):
        wanted = unit(pillow(PHOTOS[i]).rotate(-float(angles[i]), Image.Resampling.BILINEAR))
        inner = (slice(None), slice(6, 18), slice(6, 18))
        assert np.abs(out[i][inner] - wanted[inner]).max() < 0.03


def test_resized_crop_equals_pillows_box_resize() -> None:
    """A rectangle of the picture, blown up: Pillow's bilinear transform of the same rectangle."""
    config = step({"kind": "resized-crop", "area": [0.3, 0.6], "ratio": [0.8, 1.25]})
    out = augment(UNIT, [config], seed=2, epoch=0, index=np.arange(16)).numpy()
    u = Draws(2, 0, 0, np.arange(16)).uniform(4).astype(np.float64)
    for i in range(16):
        area, ratio = (0.3 + 0.3 * u[i, 0]) * 576, np.exp(np.log(0.8) + u[i, 1] * np.log(1.25 / 0.8))
        w, h = min(np.sqrt(area * ratio), 24), min(np.sqrt(area / ratio), 24)
        x, y = u[i, 2] * (24 - w), u[i, 3] * (24 - h)
        wanted = unit(pillow(PHOTOS[i]).transform((24, 24), Image.Transform.EXTENT, (x, y, x + w, y + h), Image.Resampling.BILINEAR))
        inner = (slice(None), slice(2, 22), slice(2, 22))
        assert np.abs(out[i][inner] - wanted[inner]).max() < 0.03


@pytest.mark.parametrize(("fill", "mode"), [("black", "constant"), ("reflect", "reflect"), ("edge", "edge")])
def test_crop_equals_numpys_pad_and_a_slice(fill: str, mode: Any) -> None:
    data = data_of(PHOTOS, [step({"kind": "crop", "padding": 3, "fill": fill})], "unit")
    out = data.batch(np.arange(16), epoch=4).inputs.numpy()
    corner = np.floor(Draws(3, 0, 4, np.arange(16)).uniform(2, 0, 7)).astype(int)
    for i, (y, x) in enumerate(corner):
        wide = np.pad(PHOTOS[i], ((0, 0), (3, 3), (3, 3)), mode=mode)
        assert np.allclose(out[i], wide[:, y : y + 24, x : x + 24] / 255, atol=1e-6)
    assert len({tuple(c) for c in corner}) > 8


@pytest.mark.parametrize(
    "kinds",
    [
        [{"kind": "crop", "padding": 4}],
        [{"kind": "crop", "padding": 3, "fill": "reflect"}, {"kind": "flip"}],
        [
            {"kind": "flip", "axis": "vertical"},
            {"kind": "crop", "padding": 2},
            {"kind": "noise"},
            {"kind": "crop", "padding": 2, "fill": "edge"},
        ],
    ],
    ids=["crop", "crop and flip", "with noise between"],
)
@pytest.mark.parametrize("normalize", ["standard", "unit", "none"])
def test_bytes_that_are_moved_before_normalising_give_the_same_bits(kinds: list[dict[str, Any]], normalize: Any) -> None:
    steps = [step(k) for k in kinds]
    data = data_of(PHOTOS, steps, normalize)
    n = data.normalizer
    moved = {"seed": 3, "epoch": 4, "index": np.arange(16), "outside": torch.from_numpy(-n.center / n.scale)}
    wanted = augment(torch.from_numpy(n(PHOTOS[:16])), steps, **moved)
    assert torch.equal(data.batch(np.arange(16), epoch=4).inputs, wanted)


def test_what_crop_brings_in_is_black_after_normalising() -> None:
    dark = np.concatenate([np.zeros((2, 3, 8, 8), np.uint8), np.full((2, 3, 8, 8), 200, np.uint8)])
    out = data_of(dark, [step({"kind": "crop", "padding": 4})]).batch(np.arange(2)).inputs
    assert torch.allclose(out, data_of(dark, []).batch(np.arange(2)).inputs, atol=1e-5)


def test_erase_and_cutout_put_rectangles_of_the_asked_size_to_zero() -> None:
    ones = torch.ones(3000, 1, 20, 30)
    index = np.arange(3000)
    out = augment(ones, [step({"kind": "erase", "share": 0.4, "area": [0.1, 0.2], "ratio": [0.5, 2.0]})], seed=0, epoch=0, index=index)
    erased = (out == 0).flatten(1).float().mean(1)
    hit = erased > 0
    assert hit.float().mean().item() == pytest.approx(0.4, abs=0.04)
    assert erased[hit].min() > 0.08 and erased[hit].max() < 0.225
    one = out[int(torch.nonzero(hit)[0])][0] == 0
    rows, cols = one.any(1), one.any(0)
    assert int(one.sum()) == int(rows.sum()) * int(cols.sum())  # a rectangle
    cut = augment(ones, [step({"kind": "cutout", "size": 6})], seed=0, epoch=0, index=index) == 0
    assert int(cut.flatten(1).sum(1).max()) == 36
    assert int(cut.flatten(1).sum(1).min()) >= 9  # a quarter of the square, in a corner


# ---------------------------------------------------------------------------------------------- every augmentation


@pytest.mark.parametrize("values", ALL, ids=lambda v: v["kind"])
@pytest.mark.parametrize("normalize", ["standard", "unit"])
def test_a_picture_comes_out_the_same_in_every_batch(values: dict[str, Any], normalize: str) -> None:
    data = data_of(PHOTOS, [step(values)], normalize)
    whole = data.batch(np.arange(16), epoch=2).inputs
    for index in ([7], [15, 7, 0], [*range(16)][::-1], [7] * 9):
        assert torch.equal(data.batch(np.array(index), epoch=2).inputs, whole[index])
    assert not torch.equal(data.batch(np.arange(16), epoch=3).inputs, whole)
    assert not torch.equal(data_of(PHOTOS, [step(values)], normalize, seed=4).batch(np.arange(16), epoch=2).inputs, whole)
    assert torch.isfinite(whole).all()


def test_all_of_them_in_turn_stay_pictures() -> None:
    """In every order colours, geometry and noise are put into their own units and back."""
    steps = [step(v) for v in ALL if v["kind"] not in ("erase", "cutout")]
    for order in (steps, steps[::-1]):
        values = data_of(PHOTOS, order, "unit").batch(np.arange(16)).inputs
        assert values.min() >= -1e-5 and values.max() <= 1 + 1e-5
    noisy = [step({"kind": "colour"}), step({"kind": "noise", "std": 0.01}), step({"kind": "colour", "brightness": 0.0, "contrast": 0.01})]
    plain = data_of(PHOTOS, []).batch(np.arange(16)).inputs
    out = data_of(PHOTOS, noisy).batch(np.arange(16)).inputs
    assert (out - plain).abs().max() < 2
    assert 0.8 < np.corrcoef(out.flatten(), plain.flatten())[0, 1] <= 1


def test_no_amount_is_no_change() -> None:
    nothing = [step({"kind": "randaugment", "magnitude": 0, "changes": 1})]
    out = data_of(PHOTOS, nothing, "unit").batch(np.arange(16)).inputs
    same = (out - UNIT).abs().flatten(1).amax(1) < 1e-5
    # of 14, only autocontrast and equalize change a picture at magnitude 0 (solarize inverts what is white)
    assert int(same.sum()) >= 11


def test_randaugment_draws_every_change() -> None:
    config: Any = step({"kind": "randaugment", "changes": 1, "magnitude": 9})
    drawn = np.minimum((Draws(0, 0, 0, np.arange(4000)).uniform(2)[:, 0] * 14).astype(int), 13)
    counts = np.bincount(drawn, minlength=14)
    assert counts.min() > 200 and counts.max() < 370
    out = data_of(PHOTOS[:1].repeat(200, 0), [config], "unit").batch(np.arange(200)).inputs
    assert len({p.numpy().tobytes() for p in out}) >= 20  # 14 changes, most of them two ways


def test_grey_pictures_work_where_colours_are_not_needed() -> None:
    grey = photographs(6, channels=1)
    for values in ({"kind": "colour", "brightness": 0.3, "contrast": 0.3}, {"kind": "randaugment"}, {"kind": "erase"}):
        assert data_of(grey, [step(values)]).batch(np.arange(6)).inputs.shape == (6, 1, 24, 24)


@pytest.mark.parametrize(
    ("values", "photos", "says"),
    [
        ({"kind": "colour", "saturation": 0.2}, photographs(2, channels=1), r"data\.augment\.0: colour: grey images have neither"),
        ({"kind": "colour"}, np.zeros((2, 2, 8, 8), np.uint8), "1 or 3 channels, but these have 2"),
        ({"kind": "randaugment"}, np.zeros((2, 4, 8, 8), np.uint8), "1 or 3 channels, but these have 4"),
        ({"kind": "colour"}, np.zeros((2, 3, 8, 8), np.float32), "needs images of bytes .0 to 255., but the features are float32"),
        ({"kind": "crop", "padding": 8, "fill": "reflect"}, np.zeros((2, 3, 8, 8), np.uint8), "cannot be mirrored in an image of 8 x 8"),
        ({"kind": "erase"}, np.zeros((2, 5), np.uint8), r"erase needs images .* shape \(5,\)"),
    ],
)
def test_pictures_that_an_augmentation_cannot_change_are_named(values: dict[str, Any], photos: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        data_of(photos, [step(values)], "none")


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "colour", "brightness": 0, "contrast": 0},
        {"kind": "erase", "area": [0.5, 0.1]},
        {"kind": "resized-crop", "ratio": [0, 1]},
        {"kind": "randaugment", "magnitude": 31},
    ],
)
def test_settings_without_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        step(values)
