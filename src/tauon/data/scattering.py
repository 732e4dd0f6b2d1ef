"""The wavelet scattering transform of images (Bruna & Mallat 2013, arXiv:1203.1513): convolve with oriented Morlet wavelets, take the
modulus, repeat, and average: features that need no training data, which helps private training on little data (Tramer &
Boneh 2021, arXiv:2011.11660).

The filters and the padding are those of Kymatio's Scattering2D (Andreux et al. 2018, arXiv:1812.11214), so the coefficients are equal.
All numbers are fixed: nothing is fitted or trained.

Shapes: B batch, C channels, H height, W width, K coefficients = 1 + L J + L^2 J (J - 1) / 2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Scattering", "coefficients", "padded_size"]


def coefficients(J: int, L: int) -> int:
    """Number of coefficients of orders 0, 1 and 2."""
    return int(1 + L * J + L * L * J * (J - 1) // 2)


def padded_size(n: int, J: int) -> int:
    """Pixels of a side after padding: space for the averaging filter on both sides, a multiple of 2^J."""
    return int(((n + 2**J) // 2**J + 1) * 2**J)


def gabor(M: int, N: int, sigma: float, theta: float, xi: float, slant: float) -> np.ndarray:
    """A Gaussian of width sigma, stretched by 1/slant along its waves, times a wave of frequency xi: (M, N) complex128, periodic."""
    rotation = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    curve = rotation @ np.diag([1.0, slant * slant]) @ rotation.T / (2 * sigma * sigma)
    found = np.zeros((M, N), np.complex128)
    for ex in range(-2, 3):
        for ey in range(-2, 3):
            x, y = np.mgrid[ex * M : M + ex * M, ey * N : N + ey * N]
            shape = curve[0, 0] * x * x + (curve[0, 1] + curve[1, 0]) * x * y + curve[1, 1] * y * y
            found += np.exp(-shape + 1j * xi * (x * math.cos(theta) + y * math.sin(theta)))
    whole: np.ndarray = found / (2 * math.pi * sigma * sigma / slant)
    return whole


def morlet(M: int, N: int, sigma: float, theta: float, xi: float, slant: float) -> np.ndarray:
    """A Gabor wavelet minus its mean: (M, N) complex128."""
    wave, bump = gabor(M, N, sigma, theta, xi, slant), gabor(M, N, sigma, theta, 0.0, slant)
    found: np.ndarray = wave - wave.sum() / bump.sum() * bump
    return found


class Scattering(nn.Module):
    """BCHW -> B (C K) H/2^J W/2^J. Each channel separately; coefficients in the order of Kymatio: by order, then scale, then angle."""

    def __init__(self, height: int, width: int, *, J: int = 2, L: int = 8) -> None:
        super().__init__()
        self.J, self.L, self.image = J, L, (height, width)
        M, N = padded_size(height, J), padded_size(width, J)
        self.padded = (M, N)
        for j, res in [(a, b) for a in range(J) for b in range(a + 1)]:
            self.register_buffer(f"psi_{j}_{res}", torch.empty(L, M >> res, N >> res), persistent=False)
        for res in range(J):
            for axis, side in (("h", M), ("w", N)):
                self.register_buffer(f"low_{res}_{axis}", torch.empty(side // 2**J - 2, side >> res), persistent=False)
        self.fill()

    def shape(self, channels: int) -> tuple[int, int, int]:
        """Shape of the coefficients of an image."""
        M, N = (side // 2**self.J - 2 for side in self.padded)
        return channels * coefficients(self.J, self.L), M, N

    def fill(self) -> None:
        """Compute the filters in the Fourier domain; at a coarser resolution a filter's spectrum is folded."""
        M, N = self.padded
        J, L = self.J, self.L
        for j in range(J):
            angles = [(int(L - L / 2 - 1) - t) * math.pi / L for t in range(L)]
            whole = np.stack([np.real(np.fft.fft2(morlet(M, N, 0.8 * 2**j, a, 0.75 * math.pi / 2**j, 4.0 / L))) for a in angles])
            for res in range(j + 1):
                getattr(self, f"psi_{j}_{res}").copy_(torch.from_numpy(folded(whole, res)))
        for res in range(J):
            for axis, side in (("h", M), ("w", N)):
                getattr(self, f"low_{res}_{axis}").copy_(torch.from_numpy(averaging(side, J, res)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        J = self.J
        B = len(x_BCHW)
        with torch.no_grad(), torch.autocast(x_BCHW.device.type, enabled=False):
            x = self._pad(x_BCHW.float().flatten(0, 1))  # (B C) M N
            spectrum = torch.fft.fft2(x)
            first, second = [], []
            low = self._average(x, 0)[:, None]
            for j1 in range(J):
                u1 = self._wavelet(spectrum[:, None], j1, 0, 2**j1)  # (B C) L M' N'
                first.append(self._average(u1, j1))
                if j1 == J - 1:
                    break
                u1_spectrum = torch.fft.fft2(u1)
                deeper = [
                    self._average(self._wavelet(u1_spectrum[:, :, None], j2, j1, 2 ** (j2 - j1)), j2)  # (B C) L L M'' N''
                    for j2 in range(j1 + 1, J)
                ]
                second.append(torch.stack(deeper, 2).flatten(1, 3))  # by angle of the first wavelet, then scale and angle of the second
            return torch.cat([low, *first, *second], 1).view(B, -1, *low.shape[-2:])

    def _pad(self, x: Tensor) -> Tensor:
        (H, W), (M, N) = self.image, self.padded
        edges = ((N - W) // 2, (N - W + 1) // 2, (M - H) // 2, (M - H + 1) // 2)
        return F.pad(x[:, None], edges, mode="reflect")[:, 0]

    def _wavelet(self, spectrum: Tensor, j: int, res: int, step: int) -> Tensor:
        """|signal * psi_j| at every `step`-th place, for all angles."""
        return fold(spectrum, getattr(self, f"psi_{j}_{res}"), step).abs()

    def _average(self, signal: Tensor, res: int) -> Tensor:
        """Signal * phi at every 2^J-th place, without the padding: phi is a product of one function of each coordinate."""
        found: Tensor = getattr(self, f"low_{res}_h") @ signal @ getattr(self, f"low_{res}_w").t()
        return found


def averaging(side: int, J: int, res: int) -> np.ndarray:
    """Matrix (side / 2^J - 2, side / 2^res) that convolves with phi along one coordinate, at every 2^J-th place that is not padding."""
    sigma = 0.8 * 2 ** (J - 1)
    bump = sum(np.exp(-((np.arange(side) + e * side) ** 2) / (2 * sigma**2)) for e in range(-2, 3)) / math.sqrt(2 * math.pi * sigma**2)
    spectrum = np.real(np.fft.fft(bump))
    if res:  # frequencies above the Nyquist limit after subsampling by 2^res
        start = side // 2 ** (res + 1)
        spectrum[start : start + side - side // 2**res] = 0
    kernel = np.real(np.fft.ifft(spectrum.reshape(2**res, -1).sum(0)))
    places = np.arange(side // 2**J)[1:-1, None] * 2 ** (J - res)
    found: np.ndarray = kernel[(places - np.arange(side >> res)) % (side >> res)].astype(np.float32)
    return found


def folded(spectra: np.ndarray, res: int) -> np.ndarray:
    """Return the filters for a signal subsampled by 2^res, (..., M / 2^res, N / 2^res): frequencies above its Nyquist limit are removed, as in
    Kymatio, and the parts of the spectrum are added.
    """
    k = 2**res
    *lead, M, N = spectra.shape
    kept = spectra.copy()
    if res:
        for axis, size in ((-2, M), (-1, N)):
            start = size // (2 * k)
            cut: list[slice] = [slice(None)] * spectra.ndim
            cut[axis] = slice(start, start + size - size // k)
            kept[tuple(cut)] = 0
    parts = kept.reshape(*lead, k, M // k, k, N // k).sum(axis=(-4, -2))
    found: np.ndarray = parts.astype(np.float32)
    return found


def fold(spectrum: Tensor, filter_: Tensor, step: int) -> Tensor:
    """The filtered signal at every `step`-th place, complex: the parts of the filtered spectrum are averaged before the transform back."""
    M, N = (n // step for n in spectrum.shape[-2:])
    parts = [(..., slice(i * M, i * M + M), slice(j * N, j * N + N)) for i in range(step) for j in range(step)]
    total = spectrum[parts[0]] * filter_[parts[0]]
    for part in parts[1:]:  # part by part, so that no full-size array is allocated
        total = total + spectrum[part] * filter_[part]
    signal: Tensor = torch.fft.ifft2(total / step**2 if step > 1 else total)
    return signal
