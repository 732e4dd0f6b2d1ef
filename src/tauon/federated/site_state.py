"""State that never leaves a site: batch norm (FedBN), its control variate (SCAFFOLD), its optimizer if that is kept. Stored by round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["SiteState"]


class SiteState:
    """A site's own tensors after each of the last rounds it took part in, so that it can follow a coordinator that resumed from an earlier round.

    It is `Stateful`: `tensors` and `load` save and restore it.

    >>> state = SiteState()
    >>> state.put(4, {"kept/w": torch.ones(1)}, steps=8)
    >>> state.before(5), state.before(4)
    ({'kept/w': tensor([1.])}, {})
    """

    def __init__(self, keep: int = 10) -> None:
        """`keep`: rounds to store at most."""
        self.keep = keep
        self.rounds: dict[int, dict[str, Tensor]] = {}
        self.steps = 0
        """Local steps so far: a private job never repeats one."""

    def before(self, number: int) -> Mapping[str, Tensor]:
        """Return the tensors after the last round before `number`; empty before the first."""
        earlier = [r for r in self.rounds if r < number]
        return self.rounds[max(earlier)] if earlier else {}

    def put(self, number: int, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Store the tensors after round `number`; those of later rounds, which the coordinator took back, are dropped."""
        self.rounds = {r: t for r, t in self.rounds.items() if r < number}
        if tensors:
            self.rounds[number] = dict(tensors)
        for old in sorted(self.rounds)[: -self.keep]:
            del self.rounds[old]
        self.steps = max(self.steps, steps)

    def tensors(self) -> dict[str, Tensor]:
        found = {f"{r:06d}/{n}": t for r, each in self.rounds.items() for n, t in each.items()}
        return found | {"steps": torch.tensor(self.steps)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.steps = int(tensors["steps"])
        self.rounds = {}
        for key, t in tensors.items():
            number, _, name = key.partition("/")
            if name:
                self.rounds.setdefault(int(number), {})[name] = t.clone()
