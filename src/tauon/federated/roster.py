"""Which sites take part: joining, what each declared, and who is sampled for a round."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tauon.errors import TauonError
from tauon.federated.messages import Failure, Message, MessageError, Transport
from tauon.federated.training_site import check_identity
from tauon.federated.updates import LARGEST_COUNT

__all__ = ["Joined", "Roster", "sample_sites"]

EventFn = Callable[[str, Mapping[str, Any]], None]
"""Called with the kind of an event and its fields, JSON values."""
MANY = 100
"""Sites that join at once up to which each has an event of its own."""


@dataclass(frozen=True)
class Joined:
    """What a site declared when it joined."""

    examples: int
    session: str


def sample_sites(names: Sequence[str], count: int, *, seed: int, number: int, attempt: int = 0) -> list[str]:
    """Return `count` of the names, sorted, uniformly at random: a function of seed, round and attempt, so that a resumed run samples the same sites.
    The order of two names does not depend on the others, so few change when a site vanishes.

    >>> sample_sites(["a", "b", "c"], 2, seed=0, number=1) == sample_sites(["c", "b", "a"], 2, seed=0, number=1)
    True
    """
    return sorted(sorted(names, key=lambda name: draw_of(name, seed, number, attempt))[:count])


def draw_of(name: str, seed: int, number: int, attempt: int) -> bytes:
    """Return a random key of a name; names sorted by it are in random order."""
    return hashlib.blake2b(f"{seed}/{number}/{attempt}/{name}".encode(), digest_size=16).digest()


@dataclass
class Roster:
    """The sites that have joined. A site that fails joins again before it is asked again."""

    transport: Transport
    identity: Mapping[str, str] = field(default_factory=dict)
    """What sites must have in common with the coordinator (`check_identity`)."""
    timeout: float = 60.0
    """Seconds for joining."""
    on_event: EventFn | None = None
    joined: dict[str, Joined] = field(default_factory=dict)
    declared: dict[str, int] = field(default_factory=dict)
    """Examples of every site that ever joined, also of those that are away."""
    refused: dict[str, str] = field(default_factory=dict)
    """Sites that could not join, with the reason."""

    def update(self, number: int) -> list[str]:
        """Ask the sites that are reachable and have not joined; return the names of all that take part now, sorted."""
        present = self.transport.sites()
        new = [name for name in present if name not in self.joined]
        message = Message("join", number, secrets.token_hex(8), {"identity": dict(self.identity)})
        answers = self.transport.ask(dict.fromkeys(new, message), timeout=self.timeout) if new else {}
        for name, answer in answers.items():
            try:
                self.joined[name] = self._read(name, answer, message)
            except TauonError as err:
                if self.refused.get(name) != str(err) and self.on_event is not None:
                    self.on_event("site_refused", {"site": name, "round": number, "reason": str(err)})
                self.refused[name] = str(err)
                continue
            self.declared[name] = self.joined[name].examples
            came_back = self.refused.pop(name, None) is not None
            if self.on_event is not None and len(new) <= MANY:
                self.on_event("site_joined", {"site": name, "round": number, "examples": self.joined[name].examples, "again": came_back})
        if self.on_event is not None and len(new) > MANY:
            self.on_event("sites_joined", {"round": number, "count": sum(name in self.joined for name in new)})
        return sorted(name for name in present if name in self.joined)

    def forget(self, name: str, reason: str) -> None:
        """Make a site join again before its next round: it failed, and may have been restarted."""
        self.joined.pop(name, None)
        self.refused[name] = reason

    def _read(self, name: str, answer: Message | Failure, message: Message) -> Joined:
        if isinstance(answer, Failure):
            raise MessageError(answer.reason)
        examples, session = answer.fields.get("examples"), answer.fields.get("session")
        if answer.kind != "joined" or answer.nonce != message.nonce or not isinstance(session, str):
            raise MessageError(f"{name} gave no proper answer to the request to join")
        if not isinstance(examples, int) or isinstance(examples, bool) or not 1 <= examples <= LARGEST_COUNT:
            raise MessageError(f"{name} declares {str(examples)[:40]} training examples")
        check_identity(self.identity, answer.fields.get("identity") or {}, who=name)
        return Joined(examples, session)
