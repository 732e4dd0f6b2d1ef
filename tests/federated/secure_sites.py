"""Sites of a secure sum in this process, and a transport that carries bytes, loses answers, and can lie."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tauon.errors import TauonError
from tauon.federated import Failure, Message
from tauon.federated.secagg import Contribution, Identity, Layout, PinnedKeys, SecureSettings, SecureSite, Session, SiteRules, layout_of

RUN = "run-1"
SHAPES = {"w": (4, 3), "b": (5,)}
RULES = SiteRules()


@dataclass
class Wire:
    """A transport of bytes. `lose`: names by stage, that do not answer it. `change`: what the coordinator sends instead."""

    sites: Mapping[str, SecureSite]
    lose: Mapping[str, Sequence[str]] = field(default_factory=dict)
    change: Callable[[str, Message], Message] | None = None
    sent: list[bytes] = field(default_factory=list)
    """Answers of the sites, as they came."""
    refusals: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        return sorted(self.sites)

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        answers: dict[str, Message | Failure] = {}
        for name, message in messages.items():
            stage = message.kind.removeprefix("secagg/")
            if name in self.lose.get(stage, ()):
                answers[name] = Failure(f"no answer within {timeout:g} s")
                continue
            message = message if self.change is None else self.change(name, message)
            try:
                raw = self.sites[name].answer(Message.from_bytes(message.to_bytes())).to_bytes()
            except TauonError as err:
                self.refusals[name] = str(err)
                answers[name] = Failure(str(err))
                continue
            self.sent.append(raw)
            answers[name] = Message.from_bytes(raw)
        return answers


@dataclass
class Group:
    sites: dict[str, SecureSite]
    values: dict[str, dict[str, Tensor]]
    weights: dict[str, float]
    pinned: PinnedKeys
    layout: Layout
    work: Message
    identities: dict[str, Identity] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return sorted(self.sites)

    @property
    def settings(self) -> SecureSettings:
        return SecureSettings(self.pinned)

    def expected(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The sum in float64."""
        return {k: sum(self.values[n][k].double() * self.weights[n] for n in names) for k in SHAPES}  # type: ignore[misc]


def group(
    count: int, *, rules: SiteRules = RULES, seed: int = 0, norm: float = 8.0, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> Group:
    """`count` sites with updates of normal numbers and weights from 1 to 100."""
    draws = torch.Generator().manual_seed(seed)
    names = [f"site-{i:02d}" for i in range(count)]
    identities = {n: Identity.generate() for n in names}
    keys = {n: i.public for n, i in identities.items()}
    values = {n: {k: torch.randn(s, generator=draws) for k, s in shapes.items()} for n in names}
    weights = {n: float(torch.randint(1, 101, (), generator=draws)) for n in names}

    def contribute(name: str) -> Callable[[Message], Contribution]:
        def work(message: Message) -> Contribution:
            assert message.kind == "train" and "w" in message.tensors
            weight = weights[name]
            return Contribution({k: v * weight for k, v in values[name].items()}, {"weight": weight, "loss": 0.5 * weight})

        return work

    sites = {n: SecureSite(n, identities[n], PinnedKeys(keys), contribute(n), run=RUN, rules=rules) for n in names}
    layout = layout_of(shapes, count, norm=norm, weight=100.0, numbers={"loss": 1000.0})
    work = Message("train", 1, "n", {"steps": 2}, {k: torch.zeros(s) for k, s in shapes.items()})
    return Group(sites, values, weights, PinnedKeys(keys), layout, work, identities)


def flower(module: str) -> Any:
    """A module of Flower, whose import warns of a deprecation in Click."""
    pytest.importorskip("cryptography")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(f"flwr.supercore.{module}")
        except ImportError:
            pytest.skip("Flower is not installed")


def session(number: int = 1) -> Session:
    return Session(RUN, number)
