"""Scattering coefficients: Kymatio's filters by their published definition, and what the transform must do by mathematics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse, unread_keys
from tauon.data import DataConfig, features_of, prepare
from tauon.data.scattering import Scattering, coefficients, gabor, morlet, padded_size
from tauon.errors import DataError, RecipeError


def kymatio_gabor(M: int, N: int, sigma: float, theta: float, xi: float, slant: float) -> np.ndarray:
    """The formula of Kymatio's filter bank (arXiv:1812.11214), pixel by pixel: g(u) e^{i xi u_theta}, summed over 25 periods."""
    out = np.zeros((M, N), complex)
    c, s = math.cos(theta), math.sin(theta)
    for x in range(M):
        for y in range(N):
            for ex in range(-2, 3):
                for ey in range(-2, 3):
                    a, b = x + ex * M, y + ey * N
                    along, across = a * c + b * s, -a * s + b * c
                    out[x, y] += np.exp(-(along**2 + slant**2 * across**2) / (2 * sigma**2) + 1j * xi * along)
    return out / (2 * math.pi * sigma**2 / slant)


def test_filters_are_kymatios() -> None:
    for sigma, theta, xi, slant in [(0.8, 3 * math.pi / 8, 0.75 * math.pi, 0.5), (1.6, -math.pi / 2, 0.375 * math.pi, 0.5)]:
        assert np.allclose(gabor(12, 16, sigma, theta, xi, slant), kymatio_gabor(12, 16, sigma, theta, xi, slant), atol=1e-12)
        assert abs(morlet(12, 16, sigma, theta, xi, slant).sum()) < 1e-12  # no mean: blind to brightness
    assert (coefficients(2, 8), coefficients(3, 4), padded_size(28, 2)) == (81, 61, 36)


def direct(x: np.ndarray, J: int, L: int) -> np.ndarray:
    """Coefficients by the definition, at full resolution: |x * psi1| * phi and ||x * psi1| * psi2| * phi, read at every 2^J-th place."""
    M, N = (padded_size(n, J) for n in x.shape)
    edge = ((M - x.shape[0]) // 2, (M - x.shape[0] + 1) // 2), ((N - x.shape[1]) // 2, (N - x.shape[1] + 1) // 2)
    x = np.pad(x, edge, mode="reflect")

    def filtered(u: np.ndarray, psi: np.ndarray) -> np.ndarray:
        return np.fft.ifft2(np.fft.fft2(u) * np.fft.fft2(psi).real)

    phi = gabor(M, N, 0.8 * 2 ** (J - 1), 0.0, 0.0, 1.0)
    angles = [(int(L - L / 2 - 1) - t) * math.pi / L for t in range(L)]
    psi = [[morlet(M, N, 0.8 * 2**j, a, 0.75 * math.pi / 2**j, 4 / L) for a in angles] for j in range(J)]

    def average(u: np.ndarray) -> np.ndarray:
        return filtered(u, phi).real[:: 2**J, :: 2**J][1:-1, 1:-1]

    first = {(j, t): np.abs(filtered(x, psi[j][t])) for j in range(J) for t in range(L)}
    second = [
        average(np.abs(filtered(first[j, t], psi[k][s]))) for j in range(J) for t in range(L) for k in range(j + 1, J) for s in range(L)
    ]
    return np.stack([average(x), *(average(u) for u in first.values()), *second])


@pytest.mark.parametrize(("size", "J", "L"), [((28, 28), 2, 8), ((16, 20), 2, 4), ((32, 32), 3, 4)])
def test_coefficients_are_those_of_the_definition(size: tuple[int, int], J: int, L: int) -> None:
    """The fast way reads intermediate signals at fewer places: what that aliases is small."""
    rng = np.random.default_rng(0)
    x = np.abs(np.fft.ifft2(np.fft.fft2(rng.random(size)) * np.exp(-((np.fft.fftfreq(size[0])[:, None] * 9) ** 2))).real)
    ours = Scattering(*size, J=J, L=L)(torch.from_numpy(x)[None, None])[0].numpy()
    theirs = direct(x, J, L)
    assert ours.shape == theirs.shape == (coefficients(J, L), *Scattering(*size, J=J, L=L).shape(1)[1:])
    assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs)


def test_the_transform_is_contracting_and_blind_to_brightness_but_in_its_mean() -> None:
    transform = Scattering(28, 28)
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 1, 28, 28, generator=g) for _ in range(2))
    assert (transform(a) - transform(b)).norm() <= (a - b).norm()
    flat = transform(torch.full((1, 1, 28, 28), 0.5))
    assert torch.allclose(flat[:, 0], torch.tensor(0.5), atol=1e-3) and flat[:, 1:].abs().max() < 1e-3
    both = transform(torch.cat([a, b], 1))  # channels by themselves, pictures by themselves
    assert torch.allclose(both[:, :81], transform(a), atol=1e-6) and torch.allclose(both[:, 81:], transform(b), atol=1e-6)
    assert torch.allclose(transform(torch.cat([b, a]))[1:], transform(a), atol=1e-6)


def pictures(tmp_path: Path, **more: Any) -> DataConfig:
    rng = np.random.default_rng(1)
    if not (tmp_path / "p.npz").exists():
        np.savez(tmp_path / "p.npz", x=rng.integers(0, 256, (60, 1, 16, 16), dtype=np.uint8), y=rng.integers(0, 3, 60))
    source = {"kind": "npz", "path": str(tmp_path / "p.npz")}
    return parse(DataConfig, {"source": source, "scattering": {"angles": 4, "groups": None}, "cache": str(tmp_path / "cache")} | more)


def test_a_recipes_features_are_worked_out_once_and_kept(tmp_path: Path) -> None:
    config = pictures(tmp_path)
    splits = prepare(config, seed=0, input_kind="arrays")
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("features.npy")}
    again = prepare(pictures(tmp_path), seed=0, input_kind="arrays")
    assert len(made) == 1 and made == {p: p.stat().st_mtime_ns for p in made}
    x = np.load(tmp_path / "p.npz")["x"]
    batch = splits.train.batch(np.arange(len(splits.train)))
    whole = features_of(x, config.scattering)  # type: ignore[arg-type]
    found = {row.tobytes() for row in whole.astype(np.float16)}
    assert batch.inputs.shape[1:] == whole.shape[1:] == (25, 4, 4) and splits.spec.input_shape == (25, 4, 4)
    assert all(row.astype(np.float16).tobytes() in found for row in batch.inputs.numpy())
    assert again.fingerprint == splits.fingerprint and splits.preprocess["scattering"]["angles"] == 4
    assert splits.facts["normalize"]["kind"] == "none" and "image by image" in splits.facts["normalize"]["why"]
    other = prepare(pictures(tmp_path, scattering={"angles": 8, "groups": 27}), seed=0, input_kind="arrays")
    assert other.fingerprint != splits.fingerprint
    normed = other.train.batch(np.arange(5)).inputs.reshape(5, 27, -1)
    assert normed.mean(2).abs().max() < 1e-2 and normed.var(2, correction=0).max() < 1.01 and normed.var(2, correction=0)[:, 0].min() > 0.99


def test_settings_count_as_read_where_the_cache_has_the_features(tmp_path: Path) -> None:
    for _ in range(2):  # worked out, then found
        config = pictures(tmp_path, scattering={"scales": 2, "angles": 4, "groups": 5})
        prepare(config, seed=0, input_kind="arrays")
        assert not [k for k in unread_keys(config) if k.startswith("scattering")]


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"scattering": {"groups": 5}}, RecipeError, "does not divide the 81 coefficients"),
        ({"augment": ["shift"]}, RecipeError, "computed once per image"),
        ({"scattering": {"scales": 4, "angles": 4, "groups": None}}, DataError, "needs images"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        prepare(pictures(tmp_path, **more), seed=0, input_kind="arrays")
