"""A mixture of sources of text: how much of each is in the training, how often at most, and how that changes during training.

Reads nothing itself: each source reads its own files. The order that follows from the numbers here is in `data/mixture_order.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat

from tauon.config import Config, Count, Fraction, register
from tauon.data.files import canonical, sha256_bytes
from tauon.data.mixture_order import Change, MixtureOrder
from tauon.data.sources.base import Document, SourceConfig
from tauon.data.sources.numbered import limited

__all__ = ["CurriculumConfig", "MixtureConfig", "MixtureSourceConfig"]


class MixtureSourceConfig(Config):
    """One source of a mixture."""

    source: SourceConfig
    """What to read: any source of text."""
    name: str | None = None
    """Name for records, and for `curriculum`. Default: its kind, and a number if two have the same kind."""
    weight: PositiveFloat | None = None
    """Its part of the training windows, relative to the other weights. Default: in proportion to its size. Set it for every source, or for none."""
    epochs: PositiveFloat | None = None
    """At most this many passes over it; then the other sources take its place. Default: as many as its weight asks for."""


class CurriculumConfig(Config):
    """From a point of training on, other weights."""

    step: Count | None = Field(default=None, ge=1)
    """The first step with these weights, counted from 0."""
    share: Fraction | None = Field(default=None, gt=0, lt=1)
    """Instead of `step`: the share of all steps after which they hold."""
    weights: dict[str, float]
    """New weights, by name of the source; 0 leaves a source out. Sources that are not named keep theirs."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.raw_value("step") is None) == (self.raw_value("share") is None):
            yield "step", "set either step or share: when the new weights begin"
        negative = [name for name, weight in self.raw_value("weights").items() if weight < 0]
        if negative:
            yield "weights", f"of {negative[0]!r} is negative; 0 leaves a source out"
        elif not self.raw_value("weights"):
            yield "weights", "is empty, so nothing changes; name a source: {code: 2}"


@register("mixture")
class MixtureConfig(SourceConfig):
    """Several sources of text, each sampled as often as its weight says. Windows never cross from one source to another."""

    sources: tuple[MixtureSourceConfig, ...]
    """The sources, each with its weight."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Proportions become p^(1/T): above 1 small sources come more often (Devlin 2019 used 1.43, mT5 3.3), below 1 less often."""
    curriculum: tuple[CurriculumConfig, ...] = ()
    """Weights that change during training, in order."""

    def member_names(self) -> list[str]:
        """Return the name of each source."""
        return _named([m.name for m in self.sources], self.members())

    def problems(self) -> Iterator[tuple[str, str]]:
        mixed = self.raw_value("sources")
        names = _named([m.raw_value("name") for m in mixed], [m.raw_value("source") for m in mixed])
        if len(mixed) < 2:
            yield "sources", f"has {len(mixed)} source; a mixture needs at least two. Use the source itself"
        if self.raw_value("limit") is not None:
            yield "limit", "would cut the mixture after its first sources; set limit on each source"
        if len(set(names)) < len(names):
            yield "sources", f"two sources are called {next(n for n in names if names.count(n) > 1)!r}; give each another name"
        weighted = [m.raw_value("weight") is not None for m in mixed]
        if any(weighted) and not all(weighted):
            yield (
                f"sources.{weighted.index(False)}.weight",
                "is missing, while other sources have one; set it for every source, or for none",
            )
        for i, m in enumerate(mixed):
            kind = m.raw_value("source").output_kind()
            if kind != "text" or isinstance(m.raw_value("source"), MixtureConfig):
                yield f"sources.{i}.source", f"provides {kind if kind != 'text' else 'a mixture'}; only sources of text can be mixed"
        for unit in ("step", "share"):
            at = [c.raw_value(unit) for c in self.raw_value("curriculum") if c.raw_value(unit) is not None]
            if at != sorted(set(at)):
                yield "curriculum", f"is not in order: {unit} {', '.join(f'{a:g}' for a in at)}. Put the earliest change first"
        for i, change in enumerate(self.raw_value("curriculum")):
            odd = [n for n in change.raw_value("weights") if n not in names]
            if odd:
                yield f"curriculum.{i}.weights", f"names {odd[0]!r}; the sources are {', '.join(names)}"
            if not all(weighted):
                yield f"curriculum.{i}.weights", "needs weights to start from: set weight for every source"
                return

    def members(self) -> list[SourceConfig]:
        return [m.source for m in self.sources]

    def documents(self) -> Iterator[Document]:
        for number, (name, member) in enumerate(zip(self.member_names(), self.members(), strict=True)):
            for document in limited(member.documents(), member.limit):
                yield replace(document, name=f"{name}/{document.name}", source=number)

    def files(self) -> list[tuple[Path, str]]:
        return [(path, f"{name}/{file}") for name, m in zip(self.member_names(), self.members(), strict=True) for path, file in m.files()]

    def describe(self) -> dict[str, Any]:
        described = [{"name": n} | m.describe() for n, m in zip(self.member_names(), self.members(), strict=True)]
        return {"kind": self.kind_} | self.provenance() | {"sources": described}

    def fingerprint(self) -> str:
        """Return the sha256 over the sources. Weights decide the order, not the tokens: another mixture of the same sources is not prepared again."""
        return sha256_bytes(canonical(["mixture", [m.fingerprint() for m in self.members()]]).encode())

    def order(self, windows: list[int], seed: int) -> MixtureOrder:
        """Return the order of training windows. `windows`: number of windows of each source."""
        T, names = self.temperature, self.member_names()
        asked = {n: float(w if m.weight is None else m.weight) for n, m, w in zip(names, self.sources, windows, strict=True)}
        changes, epochs = [], [m.epochs for m in self.sources]
        now = dict(asked)
        for change in self.curriculum:
            now |= change.weights
            changes.append(Change(tempered([now[n] for n in names], T), change.step, change.share))
        return MixtureOrder(windows, tempered(list(asked.values()), T), seed, epochs=epochs, changes=changes)


def _named(given: list[str | None], sources: list[SourceConfig]) -> list[str]:
    """Return a name for each source: as given, or its kind, numbered where two have the same."""
    kinds = [source.kind_ for source in sources]
    numbered = [k if kinds.count(k) == 1 else f"{k}-{kinds[:i].count(k) + 1}" for i, k in enumerate(kinds)]
    return [name or number for name, number in zip(given, numbered, strict=True)]


def tempered(weights: list[float], temperature: float) -> tuple[float, ...]:
    """Return w^(1/T), rounded to twelve digits; unchanged at temperature 1.

    >>> tempered([1, 16], 2), tempered([3, 1], 1)
    ((1.0, 4.0), (3, 1))
    """
    return tuple(weights) if temperature == 1 else tuple(round(w ** (1 / temperature), 12) for w in weights)
