"""`NoiseSource`: standard normal numbers that are a pure function of (key, step, name), so that a resume, another layout of processes, or
repeating an earlier step draws the same numbers.

The bits are those of ChaCha20 (RFC 8439), a cryptographic stream cipher: without the key, noise that was seen does not predict any other noise.
Each (step, name) has its own key, BLAKE2b of it under the source's 256-bit key. By OpenSSL where `cryptography` is
installed, else, and on accelerators, by torch's integer operations: the same bits. Box and Muller's transform makes them normal, with 62
bits in the radius (so up to 9.3 standard deviations) and 32 in the angle, in float32; no number is rounded to zero. It is not the
discrete Gaussian, and attacks on floating-point rounding (Mironov 2012) are not covered: see docs/privacy.md.

Training repeats draws on purpose, when a resume repeats a step. Where it would be a leak (the difference of two answers with the same noise is
the exact difference of the data), the caller claims the name first (`claim`), which works once per key in a process, for all sources with that
key. Processes do not know each other's claims: give a key to one process only.

The key is the secret: `secure` takes it from the operating system, `seeded` makes it from a number that is not secret.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tauon.errors import PrivacyError

__all__ = ["NoiseSource"]

_CONSTANT = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
PIECE = 2**14
"""Pairs of numbers whose words are adjacent in the stream: high, low and turn of all of them."""
_ZEROS = memoryview(bytes(12 * PIECE))
"""Plaintext of zeros, so that the output is the key stream."""
TOGETHER = 16
"""Pieces computed at once on a CPU: enough for all threads of torch, few enough for the caches."""


_CLAIMED: dict[bytes, set[str]] = {}
"""Claimed names by the digest of their key; per process, as several sources may have the same key."""
_LOCK = threading.Lock()


class NoiseSource:
    """Normal numbers from a key.

    >>> source = NoiseSource.seeded(1)
    >>> bool((source.normal(3, "weight", (2, 4)) == source.normal(3, "weight", (2, 4))).all())
    True
    """

    def __init__(self, key: bytes, *, secret: bool = True, repeats: bool = False) -> None:
        """`key`: 32 bytes; `secret`: whether it is secret (only for the report); `repeats`: the caller ensures that a name is
        drawn again only for the same query about the same data (a resumed run), so that names may be claimed again.
        """
        if len(key) != 32:
            raise ValueError(f"a key has 32 bytes, got {len(key)}")
        self._key = key
        self.secret, self.repeats = secret, repeats

    @classmethod
    def seeded(cls, seed: int) -> NoiseSource:
        """Source for tests: anyone who knows the seed can remove the noise."""
        return cls(hashlib.blake2b(f"seed/{seed}".encode(), digest_size=32).digest(), secret=False)

    @classmethod
    def secure(cls) -> NoiseSource:
        """Source with a key from the operating system, which only this object has."""
        return cls(os.urandom(32))

    @property
    def description(self) -> str:
        """Origin of the noise, for the report."""
        stream = "Normal numbers (float32, Box-Muller) from ChaCha20 under a 256-bit key"
        return f"{stream} from the operating system." if self.secret else f"{stream} made from a seed: for tests, no protection."

    def claim(self, name: str, message: str = "this noise was already drawn", subject: str = "the draw") -> None:
        """Claim the draws called `name`, once per key. Raises `PrivacyError` if they were already claimed."""
        if self.repeats:
            return
        with _LOCK:
            mine = _CLAIMED.setdefault(hashlib.blake2b(self._key, digest_size=32, person=b"claimed").digest(), set())
            if name in mine:
                raise PrivacyError(
                    f"{message}: the difference of two answers with the same noise would reveal the exact difference of the data. Give "
                    f"{subject} its own name, or use another key (NoiseSource.secure())."
                )
            mine.add(name)

    def normal(self, step: int, name: str, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        """Return standard normal numbers of `shape`, float32, on `device`: always the same for the same (step, name)."""
        return self.normals(step, [name], shape, device=device)[0]

    def normals(self, step: int, names: Sequence[str], shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        """(N, *shape): the numbers of `normal` for each of N names; faster than N calls if they are small."""
        count = math.prod(shape)
        if not count:
            return torch.zeros(len(names), *shape, device=device)
        pairs = (count + 1) // 2
        out = torch.empty(len(names), 2 * pairs, device=device)
        streams = [_words(hashlib.blake2b(f"{step}/{name}".encode(), key=self._key, digest_size=32).digest(), device) for name in names]
        _fill(out, streams, TOGETHER if torch.device(device).type == "cpu" else pairs // PIECE * len(names))
        return out[:, :count].view(len(names), *shape) if 2 * pairs == count else out[:, :count].reshape(len(names), *shape)


Words = Callable[[Tensor], None]
"""Fills a row of int32 with the next words of a key stream. All calls but the last ask for a multiple of 16."""


def _fill(out: Tensor, streams: Sequence[Words], together: int) -> None:
    """Write normal numbers to `out` (N, even), one row per stream: `together` full pieces at once, then the rest of each row. The numbers do
    not depend on `together`: small for a CPU's caches, large for an accelerator, where each kernel launch takes long.
    """
    pairs = out.shape[1] // 2
    whole, left = divmod(pairs, PIECE)
    pieces = [(row, at) for row in range(len(out)) for at in range(whole)]
    for start in range(0, len(pieces), max(1, together)):
        here = pieces[start : start + together]
        bits = torch.empty(len(here), 3, PIECE, dtype=torch.int32, device=out.device)
        runs, first = [], 0
        while first < len(here):  # pieces of one row, side by side
            row, at = here[first]
            count = min(whole - at, len(here) - first)
            streams[row](bits[first : first + count].view(-1))
            runs.append((row, 2 * PIECE * at, first, count))
            first += count
        if not left:
            _box_muller(bits.unbind(1), out.view(-1, 2, PIECE)[start : start + len(here)].unbind(1))
            continue
        made = torch.empty(len(here), 2, PIECE, device=out.device)
        _box_muller(bits.unbind(1), made.unbind(1))
        for row, at, first, count in runs:
            out[row, at : at + 2 * PIECE * count] = made[first : first + count].view(-1)
    if left:
        bits = torch.empty(3, left, dtype=torch.int32, device=out.device)
        for row, words in zip(out, streams, strict=True):
            words(bits.view(-1))
            _box_muller(bits.unbind(0), row[2 * whole * PIECE :].view(2, left).unbind(0))


def _box_muller(bits: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Two normal numbers (cosines, sines) from each place of three tensors of words: radius sqrt(-2 log u), angle uniform."""
    high, low, turn = bits
    cosines, sines = out
    radius = _radius(high.bitwise_and(0x7FFFFFFF), low.bitwise_and(0x7FFFFFFF))
    angle = turn.to(torch.float32).add_(0.5).mul_(math.pi * 2.0**-31)
    torch.cos(angle, out=cosines)
    torch.sin(angle, out=sines)
    cosines.mul_(radius)
    sines.mul_(radius)


def _radius(high: Tensor, low: Tensor) -> Tensor:
    """sqrt(-2 log u), u uniform in (0, 1) with 62 bits: floats have relative precision, so small u (the tail) are as fine as large
    ones. Near 1, where floats are coarse (one u in 2^25 would be rounded to 1, which is no noise at all), it is computed from 1 - u.
    """
    fine = low.to(torch.float32).add_(0.5).mul_(2.0**-62)
    radius = high.to(torch.float32).mul_(2.0**-31).add_(fine).clamp_(max=1.0).log_().mul_(-2).sqrt_()
    near_one = high >= 2**31 - 2**24

    def exactly(high: Tensor, fine: Tensor) -> Tensor:
        complement = (0x7FFFFFFF - high).to(torch.float32).mul_(2.0**-31).add_(2.0**-31 - fine).clamp_(min=2.0**-63)
        return complement.neg_().log1p_().mul_(-2).sqrt_()

    if radius.device.type != "cpu":  # all of them: selecting would need a sync on an accelerator
        return torch.where(near_one, exactly(high, fine), radius)
    at = near_one.nonzero(as_tuple=True)
    return radius.index_put_(at, exactly(high[at], fine[at]))


def _words(key: bytes, device: torch.device | str) -> Words:
    """The key stream, nonce and first counter zero. Without `cryptography` a CPU takes about five times as long."""
    if torch.device(device).type == "cpu":
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
        except ImportError:
            pass
        else:
            encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()

            def by_openssl(out: Tensor) -> None:
                wanted = out.numpy().data.cast("B")
                for at in range(0, len(wanted), len(_ZEROS)):
                    part = wanted[at : at + len(_ZEROS)]
                    encryptor.update_into(_ZEROS[: len(part)], part)

            return by_openssl
    done = 0

    def by_torch(out: Tensor) -> None:
        nonlocal done
        blocks = -(-len(out) // 16)
        first, done = done, done + blocks
        out.copy_(_blocks(key, first, blocks, device)[: len(out)])

    return by_torch


def _blocks(key: bytes, first: int, count: int, device: torch.device | str) -> Tensor:
    """Blocks `first` to `first + count` of the stream: RFC 8439, section 2.3, a row of the state for all blocks at once."""
    words = [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]

    def row(values: Sequence[int]) -> Tensor:
        signed = [v - 2**32 if v >= 2**31 else v for v in values]
        return torch.tensor(signed, dtype=torch.int32, device=device)[:, None].expand(4, count).clone()

    start = [row(_CONSTANT), row(words[:4]), row(words[4:]), row([0, 0, 0, 0])]
    counter = torch.arange(first, first + count, dtype=torch.int64, device=device)
    start[3][0] = torch.where(counter >= 2**31, counter - 2**32, counter).to(torch.int32)
    a, b, c, d = (r.clone() for r in start)
    for _ in range(10):
        _quarters(a, b, c, d)
        b, c, d = b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0)  # diagonals become columns
        _quarters(a, b, c, d)
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    return torch.stack([x + y for x, y in zip((a, b, c, d), start, strict=True)]).view(16, count).t().reshape(-1)


def _quarters(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    """The quarter round on all four columns of all blocks, in place."""
    for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x.add_(y)  # wraps around
        z.bitwise_xor_(x)
        left = z << bits
        z.bitwise_right_shift_(32 - bits).bitwise_and_((1 << bits) - 1).bitwise_or_(left)
