"""Fixed-point numbers modulo 2^32: what is summed, its range, and the error of rounding.

Every entry has a bound: the largest absolute value that one site may add. With n sites its step is the smallest power of two for which n sites at their
bound, with their rounding and their noise, stay within 32 bits:

    n (bound / step + 1) + 12 noise / step  <=  2^31 - 1

A value beyond the bound is an error at the site, before anything is sent. Rounding is to the nearest step (an error of at most half a step for each
site) or stochastic (below one step, without bias). The sum is then exact: there is no other error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tauon.federated.secagg.masks import Words
from tauon.federated.secagg.session import RoundFailed, SecureAggregationError, digest_of

__all__ = ["Contribution", "Entry", "Integers", "Layout", "Rounding", "Total", "layout_of"]

Rounding = Literal["nearest", "stochastic"]
Integers = NDArray[np.int64]

LARGEST = 2**31 - 1
LIMIT = 1 + 2**-20
"""Values may exceed their bound by this factor: clipping in float32 is that exact."""
TAIL = 12.0
"""Standard deviations of noise that the range has space for; the noise exceeds it with probability 4e-33 for each number."""
MOST_NUMBERS = 2**33
"""Numbers of a layout at most."""


@dataclass(frozen=True)
class Contribution:
    """What one site adds to the sum: tensors that are weighted already (the update times the site's weight), and numbers (the weight itself, its
    examples, the sum of its losses).
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Total:
    """The sum over the sites that took part."""

    tensors: Mapping[str, Tensor]
    """float32."""
    numbers: Mapping[str, float]
    sites: tuple[str, ...]
    """Names of those whose values are in the sum."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Names of the others, with the stage and the reason."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """Step of the fixed-point numbers of each entry."""

    def mean(self, weight: str = "weight") -> dict[str, Tensor]:
        """The tensors divided by the number called `weight`."""
        total = self.numbers[weight]
        if not total > 0:
            raise RoundFailed(f"the sum of {weight} over {len(self.sites)} sites is {total:g}: there is nothing to average")
        return {name: tensor / total for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor, or one number (an empty shape), of the sum."""

    name: str
    shape: tuple[int, ...]
    bound: float
    """Largest absolute value that one site may add, in each number of the tensor."""
    noise: float = 0.0
    """Standard deviation of the noise that all sites together add."""
    is_number: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.bound < math.inf and 0 <= self.noise < math.inf and all(n >= 0 for n in self.shape)):
            raise SecureAggregationError(f"{self.name}: got bound {self.bound:g}, noise {self.noise:g}, shape {self.shape}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """All entries of a sum, in their order, for at most `sites` sites.

    >>> layout = Layout(3, (Entry("w", (2,), bound=1.0), Entry("examples", (), bound=1000, is_number=True)))
    >>> sent = [layout.encode(Contribution({"w": torch.tensor([0.25, -1.0])}, {"examples": n})) for n in (10, 20, 700)]
    >>> total = layout.decode(sum(sent), sites=("a", "b", "c"))
    >>> total.tensors["w"], total.numbers["examples"]
    (tensor([ 0.7500, -3.0000]), 730.0)
    """

    sites: int
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        names = [e.name for e in self.entries]
        if len(set(names)) != len(names) or self.sites < 1 or self.count > MOST_NUMBERS:
            raise SecureAggregationError(
                f"a layout of {len(names)} entries ({len(set(names))} names), {self.sites} sites, {self.count} numbers"
            )
        for entry in self.entries:
            self.step(entry)

    @cached_property
    def count(self) -> int:
        """Numbers on the wire: all entries, and one that counts the sites."""
        return 1 + sum(e.size for e in self.entries)

    def step(self, entry: Entry) -> float:
        """Step of an entry, a power of two."""
        per_site = self.sites * entry.bound * LIMIT + TAIL * entry.noise
        step = 2.0 ** math.ceil(math.log2(per_site / (LARGEST - self.sites)))
        if not 2.0**-960 < step < 2.0**960:
            raise SecureAggregationError(f"{entry.name}: the bound {entry.bound:g} for {self.sites} sites is out of range")
        return step

    def most(self, entry: Entry) -> int:
        """Largest absolute value, in steps, that a site may add before noise."""
        return math.floor(entry.bound * LIMIT / self.step(entry)) + 1

    # ---------------------------------------------------------------------------------------------- at the site

    def encode(self, contribution: Contribution, *, rounding: Rounding = "nearest", noise: Mapping[str, Integers] | None = None) -> Words:
        """Return the contribution in steps, modulo 2^32, with `noise` (in steps, by entry) added.

        Raises `SecureAggregationError` for a missing or additional name, another shape, a value that is not finite or is beyond its bound.
        """
        given = set(contribution.tensors) | set(contribution.numbers)
        expected = {e.name for e in self.entries}
        if given != expected:
            raise SecureAggregationError(f"the values to be summed are {sorted(given)}, expected {sorted(expected)}")
        read = [self._values(entry, contribution) for entry in self.entries]
        words = np.empty(self.count, dtype="<u4")
        words[0], at = 1, 1
        for entry, values in zip(self.entries, read, strict=True):
            steps = self._in_steps(entry, values, rounding)
            if noise is None or entry.name not in noise:
                words[at : at + entry.size] = steps.astype(np.int32).view(np.uint32)  # modulo 2^32
            else:
                words[at : at + entry.size] = (steps.astype(np.int64) + noise[entry.name].reshape(-1)).astype(np.uint32)
            at += entry.size
        return words

    def _values(self, entry: Entry, contribution: Contribution) -> NDArray[Any]:
        if entry.is_number:
            value = contribution.numbers.get(entry.name)
            if value is None:
                raise SecureAggregationError(f"{entry.name} is a tensor, expected a number")
            return np.array([value], dtype=np.float64)
        tensor = contribution.tensors.get(entry.name)
        if tensor is None or tuple(tensor.shape) != entry.shape or not tensor.dtype.is_floating_point:
            got = "a number" if tensor is None else f"shape {tuple(tensor.shape)}, {tensor.dtype}"
            raise SecureAggregationError(f"{entry.name}: got {got}, expected floating point of shape {entry.shape}")
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        values: NDArray[Any] = tensor.detach().to("cpu", wide).contiguous().reshape(-1).numpy()
        return values

    def _in_steps(self, entry: Entry, values: NDArray[Any], rounding: Rounding) -> NDArray[Any]:
        """(size) float64 with integer values."""
        largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
        if not largest <= entry.bound * LIMIT:  # also for NaN, which max and min give back
            what = "is not finite" if not math.isfinite(largest) else f"reaches {largest:.6g}, beyond the agreed bound {entry.bound:.6g}"
            raise SecureAggregationError(
                f"{entry.name} {what}: it would not fit into the 32 bits of the sum. Clip it, or agree on a larger bound."
            )
        scaled = np.multiply(values, 1 / self.step(entry), dtype=np.float64)
        if rounding == "nearest":
            nearest: NDArray[Any] = np.rint(scaled, out=scaled)
            return nearest
        scaled += np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(32), "little"))).random(len(scaled))
        below: NDArray[Any] = np.floor(scaled, out=scaled)
        return below

    # ---------------------------------------------------------------------------------------------- at the coordinator

    def decode(self, words: Words, sites: tuple[str, ...], lost: Mapping[str, str] | None = None) -> Total:
        """Return the sum, from the sum of all words modulo 2^32. Raises `RoundFailed` if a mask is left in it, or a site went beyond a bound."""
        if len(words) != self.count or int(words[0]) != len(sites):
            raise RoundFailed(
                f"the sum of {len(sites)} sites counts {int(words[0])}: a mask was not removed, or a site did not follow the protocol. Repeat the round."
            )
        signed = np.ascontiguousarray(words, dtype="<u4").view("<i4")
        tensors, numbers, at = {}, {}, 1
        for entry in self.entries:
            part = signed[at : at + entry.size]
            at += entry.size
            most = len(sites) * self.most(entry) + TAIL * entry.noise / self.step(entry)
            if max(int(part.max(initial=0)), -int(part.min(initial=0))) > most:
                raise RoundFailed(
                    f"the sum of {entry.name} is beyond {len(sites)} times its bound: a site did not follow the protocol. Repeat the round."
                )
            if entry.is_number:
                numbers[entry.name] = float(part[0]) * self.step(entry)
            else:
                values = np.multiply(part, np.float32(self.step(entry)), dtype=np.float32, casting="unsafe")
                tensors[entry.name] = torch.from_numpy(values).reshape(entry.shape)
        return Total(tensors, numbers, sites, lost or {}, {e.name: self.step(e) for e in self.entries})

    # ---------------------------------------------------------------------------------------------- on the wire

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"sites": self.sites, "entries": [[e.name, list(e.shape), e.bound, e.noise, e.is_number] for e in self.entries]}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it. All sites of a sum compare it: with another step at one site, the sum would show the values of that one."""
        values = ((e.name, str(tuple(e.shape)), float(e.bound).hex(), float(e.noise).hex(), str(bool(e.is_number))) for e in self.entries)
        return digest_of([str(self.sites), *(digest_of(each) for each in values)])

    @classmethod
    def from_json(cls, values: Any) -> Layout:
        """Inverse of `to_json`. Raises `SecureAggregationError`."""
        try:
            entries = tuple(
                Entry(str(name), tuple(int(n) for n in shape), float(bound), float(noise), bool(number))
                for name, shape, bound, noise, number in values["entries"]
            )
            return cls(int(values["sites"]), entries)
        except (TypeError, ValueError, KeyError, OverflowError) as err:
            raise SecureAggregationError(f"a layout that cannot be read: {err}") from None


def layout_of(
    shapes: Mapping[str, tuple[int, ...]], sites: int, *, norm: float, weight: float, numbers: Mapping[str, float] | None = None, noise: float = 0.0
) -> Layout:  # fmt: skip
    """Return the layout of weighted updates: no number of an update of L2 norm `norm`, times a weight of at most `weight`, exceeds their product.

    Args:
        shapes: shapes of the tensors of an update.
        sites: sites that are asked.
        norm: L2 norm that updates are clipped to; or, without clipping, the largest absolute value agreed for a number of an update.
        weight: cap of the weight of a site.
        numbers: bounds of further numbers that are summed, for each site: {"examples": 10_000, "loss": 1e5}. "weight" is always summed.
        noise: standard deviation of the noise in the sum of the tensors (differential privacy).

    >>> layout_of({"w": (3, 2)}, 10, norm=1.0, weight=100.0).count
    8
    """
    tensors = (Entry(name, tuple(shape), norm * weight, noise) for name, shape in shapes.items())
    bounds = {"weight": weight, **(numbers or {})}
    return Layout(sites, (*tensors, *(Entry(name, (), bound, is_number=True) for name, bound in bounds.items())))
