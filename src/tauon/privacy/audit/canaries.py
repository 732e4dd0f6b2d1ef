"""Canaries: examples planted in the training data, each included by an independent fair coin, so that the model's behavior on them measures its
leakage (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846; secrets: Carlini et al. 2019, arXiv:1802.08232).

The coins come from a key that is in no checkpoint: an attacker with the model must not know them. Three kinds:

mislabelled   training examples with a wrong class: half of them are included, the others are zeroed out; for classification
gradient      no examples: a gradient of the full clipping norm along its own coordinate, added to the private sum; the strongest test of
              noise, sampling and accounting, but does not test the clipping of examples
secret        sentences with random digits, for language models; some of them several times

A canary that is not included stays in the data set with weight zero, so that both outcomes of its coin are neighbors as in the guarantee: one
unit zeroed out, the same N, rate, divisor and number of steps. (Older records leave it out, and are read as such.)

Everything is a pure function of the key. Trains nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Config, Count
from tauon.data import permute, without_augmentation
from tauon.errors import DataError, Problem, RecipeError
from tauon.privacy.audit.secrets import Secret, SecretRows, alphabet_of, make_secrets
from tauon.types import Batch, Dataset

__all__ = [
    "Canaries",
    "CanaryConfig",
    "CanaryExamples",
    "GradientCanaries",
    "WithCanaries",
    "canary_dataset",
    "canary_key",
    "with_canaries",
]


class CanaryConfig(Config):
    """Plant canaries at random, to audit the run afterwards: `tauon audit RUN`."""

    canaries: Count = Field(1000, ge=1, le=10**7)
    """Number of canaries. More give tighter bounds; mislabelled ones cost accuracy."""
    kind: Literal["mislabelled", "gradient", "secret"] = "mislabelled"
    """mislabelled: training examples with a wrong class; gradient: added to the private sum; secret: sentences, for language models."""
    repeats: tuple[Count, ...] = (1,)
    """secret: repetitions of a sentence, in turn: [1, 4, 16] plants a third once, a third four times, a third sixteen times."""
    digits: Count = Field(8, ge=1, le=64)
    """secret: number of random digits in a sentence."""
    template: str = Field("the code of {name} is {secret}", max_length=1000)
    """secret: the sentence; `{name}` identifies it, `{secret}`, at its end, is what the model must not learn."""
    seed: Count | None = Field(None, ge=0)
    """Seed of the coins, for tests. Default: from the operating system, saved in the run's folder and in no checkpoint."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("kind") != "secret":
            for name in ("repeats", "digits", "template"):
                if self.raw_value(name) != type(self).model_fields[name].default:
                    yield name, f"is for kind=secret, but the kind is {self.raw_value('kind')}. Remove it."
        template = self.raw_value("template")
        if template.count("{secret}") != 1 or not template.endswith("{secret}") or template.count("{name}") != 1:
            yield "template", f"is {template!r}: it must contain {{name}} once, and {{secret}} once, at its end."
        if not self.raw_value("repeats") or min(self.raw_value("repeats"), default=0) < 1:
            yield "repeats", "is empty or has a number below 1. Set one or more numbers of at least 1, e.g. [1, 4, 16]."


def canary_key(config: CanaryConfig) -> bytes:
    """32 bytes that determine the coins: from the seed, or from the operating system."""
    if config.seed is None:
        return os.urandom(32)
    return hashlib.blake2b(f"canaries/{config.seed}".encode(), digest_size=32).digest()


def drawn(key: bytes, *purpose: str | int) -> np.random.Generator:
    """Return a separate random stream for each purpose."""
    digest = hashlib.blake2b("/".join(map(str, purpose)).encode(), key=key, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def coins(key: bytes, n: int) -> NDArray[np.bool_]:
    """Draw whether each canary is included: independent fair coins."""
    return drawn(key, "coins").random(n) < 0.5


@dataclass(frozen=True)
class Canaries:
    """Record of the planted canaries, for the audit only: keep it secret."""

    kind: str
    key: bytes
    included: NDArray[np.bool_]
    """(M)."""
    rows: NDArray[np.int64] | None = None
    """mislabelled: indices of their training examples, (M)."""
    labels: NDArray[np.int64] | None = None
    """mislabelled: the wrong classes, (M)."""
    secrets: tuple[Secret, ...] = ()
    """secret: the sentences, (M)."""
    absent: Literal["zeroed", "left-out"] = "zeroed"
    """Canaries that are not included: rows of weight zero, or (earlier versions) no rows."""

    def __len__(self) -> int:
        return len(self.included)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": self.kind, "key": self.key.hex(), "included": self.included.astype(int).tolist()}
        if self.absent != "left-out":
            found["absent"] = self.absent
        if self.rows is not None and self.labels is not None:
            found |= {"rows": self.rows.tolist(), "labels": self.labels.tolist()}
        return found | ({"secrets": [s.to_json() for s in self.secrets]} if self.secrets else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Canaries:
        """Read a record. Raises `DataError` if `data` is not one."""
        try:
            rows, labels = (np.array(data[k], np.int64) if k in data else None for k in ("rows", "labels"))
            secrets = tuple(Secret(**s) for s in data.get("secrets", ()))
            absent: Any = data.get("absent", "left-out")
            if absent not in ("zeroed", "left-out"):
                raise ValueError(f"absent={absent!r}")
            return cls(str(data["kind"]), bytes.fromhex(data["key"]), np.array(data["included"], bool), rows, labels, secrets, absent)
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(f"not a record of canaries ({type(err).__name__}: {err}). Restore it from a copy of the run") from None


def with_canaries(
    dataset: Dataset, config: CanaryConfig, *, key: bytes, absent: Literal["zeroed", "left-out"] = "zeroed"
) -> tuple[Dataset, Canaries]:
    """Return the training data with canaries, and their record. The number of rows does not depend on the coins.

    mislabelled: some examples of `dataset` are moved to the end with a wrong class; secret: rows are added. Canaries that are not included are
    rows of weight zero. gradient: the data does not change (a step uses `GradientCanaries`). `absent`: "left-out" repeats earlier versions.
    Raises `RecipeError` if the data does not support the kind.
    """
    n = config.canaries
    included = coins(key, n)
    if config.kind == "gradient":
        return dataset, Canaries("gradient", key, included, absent=absent)
    for name, what in (("order", "sampling: balanced"), ("mixer", "mix")):
        chosen = getattr(dataset, name, None)
        if chosen is not None:
            what = what if getattr(chosen, "setting", "data.sampling") == "data.sampling" else "source: mixture"
            raise _refused("kind", f"does not work with data.{what}: canaries would interact with other examples. Remove data.{what}")
    if config.kind == "secret":
        tokenizer: Any = getattr(dataset, "tokenizer", None)
        if (
            dataset.spec.vocab is None
            or tokenizer is None
            or dataset.spec.seq_len is None
            or dataset.batch(np.array([0])).targets.ndim != 2
        ):
            raise _refused(
                "kind", "secret needs a language model on plain text, and this data is not plain text. Set mislabelled or gradient"
            )
        secrets = make_secrets(n, alphabet_of(tokenizer), config.digits, config.template, config.repeats, drawn(key, "secrets"))
        rows = SecretRows(secrets, tokenizer, dataset.spec, segments=dataset.batch(np.array([0])).segments is not None)
        repeats = np.array([s.repeats for s in secrets], np.int64)
        times = np.repeat(np.arange(n), repeats if absent == "zeroed" else np.where(included, repeats, 0))
        planted = WithCanaries(dataset, np.arange(len(dataset)), rows, times, included[times])
        return planted, Canaries("secret", key, included, secrets=tuple(secrets), absent=absent)
    classes = len(dataset.spec.labels)
    if classes < 2 or dataset.batch(np.array([0])).targets.ndim != 1:
        raise _refused("kind", "mislabelled needs classes, and this data has none. Set gradient, or secret for language models")
    if n > len(dataset) // 2:
        raise _refused("canaries", f"is {n:,}, more than half of the {len(dataset):,} training examples. Set at most half")
    which = np.sort(permute(np.arange(len(dataset), dtype=np.int64), len(dataset), int(drawn(key, "rows").integers(2**62)))[:n])
    true = targets_of(dataset, which)
    wrong = (true + drawn(key, "labels").integers(1, classes, n)) % classes
    kept = np.setdiff1d(np.arange(len(dataset)), which)
    found = Canaries("mislabelled", key, included, which, wrong, absent=absent)
    rows_at = np.arange(n) if absent == "zeroed" else np.flatnonzero(included)
    return WithCanaries(dataset, kept, CanaryExamples(dataset, found), rows_at, included[rows_at]), found


def _refused(name: str, message: str) -> RecipeError:
    return RecipeError([Problem(f"privacy.audit.{name}", f"{message}.")])


def targets_of(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Classes of some examples, read in chunks."""
    parts = [dataset.batch(rows[i : i + 1024]).targets.numpy() for i in range(0, len(rows), 1024)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class CanaryExamples:
    """All mislabelled canaries, included or not: example i is canary i."""

    def __init__(self, dataset: Dataset, canaries: Canaries) -> None:
        assert canaries.rows is not None
        assert canaries.labels is not None
        self._dataset, self._rows, self._labels = dataset, canaries.rows, canaries.labels
        self.spec, self.facts = dataset.spec, {"canaries": len(canaries)}

    def __len__(self) -> int:
        return len(self._rows)

    def plain(self) -> CanaryExamples:
        """The canaries without augmentation."""
        other = object.__new__(CanaryExamples)
        other.__dict__ |= self.__dict__ | {"_dataset": without_augmentation(self._dataset)}
        return other

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Examples with their wrong classes."""
        import torch

        index = np.asarray(index, np.int64)
        found = self._dataset.batch(self._rows[index], epoch=epoch)
        return replace(found, targets=torch.from_numpy(self._labels[index]), index=torch.from_numpy(index.copy()))


class WithCanaries:
    """Examples of a data set followed by canaries. Example i of epoch e is a pure function of (i, e, key)."""

    def __init__(
        self, dataset: Dataset, kept: NDArray[np.int64], canaries: Dataset, which: NDArray[np.int64], included: NDArray[np.bool_]
    ) -> None:
        """`kept`: examples of `dataset` that stay; `which`: canary of each canary row, with repetitions; `included`: which of these rows
        are included. The others have weight zero and the contents of the first example, so that they reveal nothing.
        """
        from tauon.data import ChosenExamples

        self.base, self.canaries, self.kept = dataset, canaries, kept
        rows = np.concatenate([kept, len(dataset) + which])
        self._zeroed = np.concatenate([np.zeros(len(kept), bool), ~included])
        rows[self._zeroed] = rows[0]
        self._examples = ChosenExamples([dataset, canaries], rows)
        self.spec = dataset.spec
        self.facts: dict[str, Any] = dict(dataset.facts) | {"with_canaries": len(self._examples)}

    def __len__(self) -> int:
        return len(self._examples)

    def __getattr__(self, name: str) -> Any:
        """Other attributes of the wrapped data set."""
        if name.startswith("_") or name in ("base", "canaries", "kept"):
            raise AttributeError(name)
        return getattr(self._examples, name)

    def answers(self, row: int) -> Any:
        """For conversations: the text that the loss of a row must cover; None if unknown or empty."""
        return None if self._zeroed[row] else self._examples.answers(row)

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Batch of examples and canaries by index."""
        import torch

        found = self._examples.batch(index, epoch=epoch)
        zeroed = self._zeroed[np.asarray(index, np.int64)]
        if not zeroed.any():
            return found
        there_B = torch.from_numpy(~zeroed).to(found.weights.dtype)
        return replace(found, weights=found.weights * there_B.view(-1, *(1 for _ in found.weights.shape[1:])))


@dataclass
class GradientCanaries:
    """Gradient canaries (the paper's Dirac canaries): canary i is the gradient norm x e_i along its own coordinate. It takes part in a step
    like an example, and is searched for in every noised sum. Its state is saved in checkpoints.

    In a private step: `insert` between the clipped sum and the noise, `observe` after the noise.
    """

    included: NDArray[np.bool_]
    key: bytes
    places: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    """Parameter name -> (flat indices in it, their canaries)."""
    rate: Callable[[int], float]
    """Sampling rate of step n."""
    total: NDArray[np.float64] = field(init=False)
    """(M) sum over the steps of the value at each canary's coordinate, in clipping norms."""
    change: NDArray[np.float64] = field(init=False)
    """(M) sum of squares of the change from step to step: reveals noise that is reused."""
    last: NDArray[np.float64] = field(init=False)
    squares: NDArray[np.float64] | None = field(init=False)
    """(M) sum over the steps of (value / stated standard deviation of the noise)^2; None in checkpoints of older versions."""
    looked: int = 0
    """Number of steps in `squares`: those with independent noise."""
    steps: int = 0

    def __post_init__(self) -> None:
        self.total, self.change, self.last, self.squares = (np.zeros(len(self.included)) for _ in range(4))

    @classmethod
    def of(cls, canaries: Canaries, sizes: Mapping[str, int], *, rate: Callable[[int], float]) -> GradientCanaries:
        """Assign coordinates. `sizes`: elements of each trainable parameter. Raises `RecipeError` if there are fewer than canaries."""
        total, n = sum(sizes.values()), len(canaries)
        if n > total:
            raise _refused(
                "canaries", f"is {n:,}, but each needs its own coordinate and only {total:,} parameters are trained. Set at most {total}"
            )
        at = permute(np.arange(n, dtype=np.int64), total, int(drawn(canaries.key, "places").integers(2**62)))
        places, start = {}, 0
        for name, size in sizes.items():
            mine = np.flatnonzero((at >= start) & (at < start + size))
            if len(mine):
                places[name] = (at[mine] - start, mine)
            start += size
        return cls(canaries.included, canaries.key, places, rate)

    def present(self, step: int) -> NDArray[np.bool_]:
        """Canaries in step `step`: the included ones, sampled like examples."""
        return self.included & (drawn(self.key, "step", step).random(len(self.included)) < self.rate(step))

    def insert(self, sums: Mapping[str, Any], *, step: int, norm: float) -> None:
        """Add the gradients of the canaries in this step to the clipped sums (tensors by name); `norm`: the sensitivity of the step."""
        import torch

        there = self.present(step)
        for name, (at, who) in self.places.items():
            flat = sums[name].view(-1)
            here = there[who]
            flat[torch.from_numpy(at[here]).to(flat.device)] += norm

    def observe(self, sums: Mapping[str, Any], *, norm: float, noise: float | None = None) -> None:
        """Record the noised sums, as an attacker who sees every update; `norm` as in `insert`. `noise`: its stated standard deviation, in
        clipping norms; None if it depends on the noise of other steps.
        """
        import torch

        seen = np.zeros(len(self.included))
        for name, (at, who) in self.places.items():
            flat = sums[name].detach().reshape(-1)
            seen[who] = flat[torch.from_numpy(at).to(flat.device)].double().cpu().numpy() / norm
        self.total += seen
        if noise is not None and self.squares is not None:
            self.squares += (seen / noise) ** 2
            self.looked += 1
        if self.steps:
            self.change += (seen - self.last) ** 2
        self.last, self.steps = seen, self.steps + 1

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Scores, larger for canaries that look included; two statistics for one joint test."""
        return {"sum": self.total, "change": self.change}

    def tensors(self) -> dict[str, Any]:
        """State by name, float64."""
        import torch

        found = {"total": self.total, "change": self.change, "last": self.last, "steps": np.array([float(self.steps)])}
        if self.squares is not None:
            found |= {"squares": self.squares, "looked": np.array([float(self.looked)])}
        return {name: torch.from_numpy(value.copy()) for name, value in found.items()}

    def load(self, tensors: Mapping[str, Any]) -> None:
        """Restore what `tensors` returned."""
        self.total, self.change, self.last = (tensors[name].numpy().copy() for name in ("total", "change", "last"))
        self.steps = int(tensors["steps"][0])
        self.squares = tensors["squares"].numpy().copy() if "squares" in tensors else None
        self.looked = int(tensors["looked"][0]) if "looked" in tensors else 0


def canary_dataset(dataset: Dataset, canaries: Canaries, *, segments: bool = False) -> Dataset:
    """All canaries as examples for a model: example i is canary i. `dataset`: the training data without them."""
    if canaries.kind == "mislabelled":
        return CanaryExamples(without_augmentation(dataset), canaries)
    tokenizer: Any = dataset.tokenizer  # type: ignore[attr-defined]
    return SecretRows(list(canaries.secrets), tokenizer, dataset.spec, segments=segments)
