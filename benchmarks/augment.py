"""Pictures a second of the standard eight augmentations against torchvision v2's algorithms, picture by picture in PIL and NumPy.

crop, flip, rotate, affine, elastic, colour, erase, RandAugment, on 128 pictures of 32 x 32 bytes, each followed by normalising to
float32: what a data set does for a batch. Ours is one call for the batch through `ArrayDataset`; the peer does for each picture what
torchvision's transforms of these names do to a PIL picture (their ranges, their defaults; elastic in NumPy, as there is no PIL operation
for it), then ToTensor and Normalize in NumPy. One thread each.

The two take turns, so both see the same machine; compared are medians of processor time. `ratio` is of all eight together.

    python -m benchmarks.augment [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

N, SIDE = 128, 32
MEAN, STD = np.array([0.49, 0.48, 0.45], np.float32), np.array([0.25, 0.24, 0.26], np.float32)
OURS: dict[str, dict[str, Any]] = {
    "crop": {"kind": "crop", "padding": 4},
    "flip": {"kind": "flip"},
    "rotate": {"kind": "rotate", "degrees": 15},
    "affine": {"kind": "affine", "degrees": 15, "translate": 0.1, "scale": 0.1, "shear": 10},
    "elastic": {"kind": "elastic", "pixels": 1.0, "spacing": 6},
    "colour": {"kind": "colour", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "erase": {"kind": "erase", "share": 0.5},
    "randaugment": {"kind": "randaugment"},
}


# ---------------------------------------------------------------------------------------------- the peer, picture by picture


def crop(p: Any) -> Any:
    from PIL import ImageOps

    wide = ImageOps.expand(p, 4)
    x, y = random.randint(0, 8), random.randint(0, 8)
    return wide.crop((x, y, x + SIDE, y + SIDE))


def flip(p: Any) -> Any:
    from PIL import Image

    return p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else p


def rotate(p: Any) -> Any:
    from PIL import Image

    return p.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR)


def moved(p: Any, angle: float, away: tuple[float, float], scale: float, shear: float) -> Any:
    """torchvision's inverse affine matrix, about the middle."""
    from PIL import Image

    rot, slant, c = math.radians(angle), math.radians(shear), SIDE / 2
    a, b = math.cos(rot - 0) / 1, -math.cos(rot) * math.tan(slant) - math.sin(rot)
    d, e = math.sin(rot), -math.sin(rot) * math.tan(slant) + math.cos(rot)
    m = [e / scale, -b / scale, 0.0, -d / scale, a / scale, 0.0]
    m[2] = m[0] * (-c - away[0]) + m[1] * (-c - away[1]) + c
    m[5] = m[3] * (-c - away[0]) + m[4] * (-c - away[1]) + c
    return p.transform(p.size, Image.Transform.AFFINE, m, Image.Resampling.BILINEAR)


def affine(p: Any) -> Any:
    away = (round(random.uniform(-3.2, 3.2)), round(random.uniform(-3.2, 3.2)))
    return moved(p, random.uniform(-15, 15), away, random.uniform(0.9, 1.1), random.uniform(-10, 10))


def _blur_matrix() -> np.ndarray:
    reach = np.arange(-8, 9)
    kernel = np.exp(-(reach**2) / (2 * 3.0**2))
    kernel /= kernel.sum()
    out = np.zeros((SIDE, SIDE))
    for i in range(SIDE):
        for k, w in zip(reach, kernel, strict=True):
            out[i, abs(i + k) if i + k < SIDE else 2 * SIDE - 2 - i - k] += w  # reflected, as gaussian_blur pads
    return out


BLUR = _blur_matrix()
GRID = np.mgrid[:SIDE, :SIDE].astype(np.float64)


def elastic(p: Any) -> Any:
    """Noise, blurred, as displacement; bilinear (Simard et al. 2003)."""
    from PIL import Image

    pixels = np.asarray(p, np.float32)
    move = np.random.rand(2, SIDE, SIDE) * 2 - 1
    at = GRID + 10 * (BLUR @ move @ BLUR.T)
    low = np.floor(at).astype(np.int64)
    (fy, fx), (y, x) = at - low, low
    out = np.zeros((SIDE, SIDE, 3), np.float64)
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            inside = (y + dy >= 0) & (y + dy < SIDE) & (x + dx >= 0) & (x + dx < SIDE)
            out += pixels[np.clip(y + dy, 0, SIDE - 1), np.clip(x + dx, 0, SIDE - 1)] * (wy * wx * inside)[..., None]
    return Image.fromarray(out.astype(np.uint8))


def hued(p: Any, turn: float) -> Any:
    from PIL import Image

    h, s, v = p.convert("HSV").split()
    turned = (np.asarray(h, np.int16) + round(turn * 255)) & 255
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), s, v)).convert("RGB")


def colour(p: Any) -> Any:
    from PIL import ImageEnhance

    for i in random.sample(range(4), 4):
        if i == 3:
            p = hued(p, random.uniform(-0.1, 0.1))
        else:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[i]
            p = kind(p).enhance(random.uniform(0.6, 1.4))
    return p


def same(p: Any) -> Any:
    return p


def randaugment(p: Any) -> Any:
    from PIL import ImageEnhance, ImageOps

    for _ in range(2):
        sign, m = random.choice((-1, 1)), 9 / 30
        turn = random.randrange(14)
        if turn == 0:
            continue
        if turn <= 5:
            angle, away, shear = 30 * m * sign * (turn == 5), int(150 / 331 * SIDE * m * sign), math.degrees(math.atan(0.3 * m * sign))
            p = moved(p, angle, (away * (turn == 3), away * (turn == 4)), 1.0, shear * (turn <= 2))
        elif turn <= 9:
            kind = (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Sharpness)[turn - 6]
            p = kind(p).enhance(1 + 0.9 * m * sign)
        else:
            p = (
                lambda q: ImageOps.posterize(q, 6), lambda q: ImageOps.solarize(q, 178), ImageOps.autocontrast, ImageOps.equalize,
            )[turn - 10](p)  # fmt: skip
    return p


def erased(x: np.ndarray) -> np.ndarray:
    """RandomErasing, after ToTensor and Normalize."""
    if random.random() >= 0.5:
        return x
    for _ in range(10):
        area, ratio = SIDE * SIDE * random.uniform(0.02, 0.33), math.exp(random.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < SIDE and w < SIDE:
            i, j = random.randint(0, SIDE - h), random.randint(0, SIDE - w)
            x[:, i : i + h, j : j + w] = 0
            break
    return x


PEER: dict[str, Callable[[Any], Any]] = {
    "crop": crop, "flip": flip, "rotate": rotate, "affine": affine, "elastic": elastic, "colour": colour, "erase": same, "randaugment": randaugment,
}  # fmt: skip


def peer(photos: np.ndarray, name: str) -> np.ndarray:
    """A batch as a DataLoader's worker makes it: from arrays to PIL, transformed, to float32, normalised, stacked."""
    from PIL import Image

    act, rows = PEER[name], []
    for photo in photos:
        pixels = np.asarray(act(Image.fromarray(photo)), np.float32) / 255
        x = (np.ascontiguousarray(pixels.transpose(2, 0, 1)) - MEAN[:, None, None]) / STD[:, None, None]
        rows.append(erased(x) if name == "erase" else x)
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 counted rounds instead of 21")
    args = parser.parse_args()

    import torch

    from tauon.config import parse
    from tauon.data import ArrayDataset, Arrays, AugmentConfig, Normalizer, TrainingOptions

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (N, SIDE // 4, SIDE // 4, 3)).repeat(4, 1).repeat(4, 2)
    photos = np.clip(coarse + rng.normal(0, 10, coarse.shape), 0, 255).astype(np.uint8)
    scale = Normalizer("standard", 255 * MEAN[:, None, None], 255 * STD[:, None, None])
    table = Arrays(np.ascontiguousarray(photos.transpose(0, 3, 1, 2)), np.arange(N) % 2, (), ("a", "b"))
    sets = {
        n: ArrayDataset(table, np.arange(N), scale, training=TrainingOptions(augments=[parse(AugmentConfig, v)])) for n, v in OURS.items()
    }
    index, rounds = np.arange(N), 5 if args.quick else 21
    times: dict[str, dict[str, list[float]]] = {n: {"ours": [], "peer": []} for n in OURS}
    for r in range(rounds + 2):
        for name in OURS:
            for who in ("ours", "peer"):
                start = time.process_time()
                out = sets[name].batch(index, epoch=r).inputs if who == "ours" else peer(photos, name)
                if r >= 2:
                    times[name][who].append(time.process_time() - start)
                assert out.shape == (N, 3, SIDE, SIDE)
    median = {n: {who: statistics.median(t) for who, t in both.items()} for n, both in times.items()}
    for name, m in median.items():
        print(f"{name:<12} ours {N / m['ours']:>9,.0f}   PIL and NumPy {N / m['peer']:>8,.0f} pictures/s   {m['peer'] / m['ours']:.1f}x")
    ours, theirs = (len(OURS) * N / sum(m[who] for m in median.values()) for who in ("ours", "peer"))
    result: dict[str, Any] = {
        "claim": "augment",
        "ours": round(ours),
        "peer": round(theirs),
        "ratio": round(ours / theirs, 2),
        "floor": 2.0,
    }
    result |= {"unit": "pictures/s", "each": {n: round(m["peer"] / m["ours"], 1) for n, m in median.items()}}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
