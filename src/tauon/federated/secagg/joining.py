"""Joining: the coordinator collects the identity keys of the sites, and every site compares the list with the keys that it has pinned."""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tauon.federated.messages import Failure, Message, Transport
from tauon.federated.secagg.identity import PinnedKeys
from tauon.federated.secagg.session import Refused
from tauon.federated.secagg.site import joining

__all__ = ["JoinedSites", "join_sites"]


FURTHEST = 1 << 20
"""Rounds that a site may be beyond the middle one of the sites. One that lies could otherwise bring all to numbers that no message can hold."""


@dataclass(frozen=True)
class JoinedSites:
    """Sites that can take part in secure sums."""

    names: tuple[str, ...]
    newest: int
    """The newest round that any of them took part in: the next one has a higher number."""
    refused: dict[str, str]
    """The others, with the reason."""


def join_sites(transport: Transport, names: Sequence[str], pinned: PinnedKeys, *, run: str, timeout: float = 60.0) -> JoinedSites:
    """Collect the identity keys of the sites in `pinned`, and have every site compare them. A site that refuses, or whose key is another one than
    before, does not join.
    """
    nonce, refused, rounds = secrets.token_hex(16), {}, {}
    message = Message("secagg/join", 0, nonce, {"run": run})
    for name, answer in transport.ask(dict.fromkeys(names, message), timeout=timeout).items():
        try:
            rounds[name] = _pin(name, answer, message, pinned, run)
        except Refused as err:
            refused[name] = str(err)
    usual = statistics.median_low(rounds.values()) if rounds else 0
    for name, number in rounds.items():  # all sites would have to continue from there, and their numbers never fall
        if number > usual + FURTHEST:
            refused[name] = f"it took part in round {str(number)[:20]}, it says, far beyond the {usual} of the other sites"
    joined = [name for name in rounds if name not in refused]
    newest = max((rounds[name] for name in joined), default=0)
    keys = {name: pinned[name].hex() for name in joined}
    message = Message("secagg/pin", 0, nonce, {"run": run, "keys": keys})
    answers = transport.ask(dict.fromkeys(joined, message), timeout=timeout) if joined else {}
    refused |= {name: answer.reason for name, answer in answers.items() if isinstance(answer, Failure)}
    return JoinedSites(tuple(sorted(n for n in joined if n not in refused)), newest, refused)


def _pin(name: str, answer: Message | Failure, asked: Message, pinned: PinnedKeys, run: str) -> int:
    """Pin the key in an answer; return the site's newest round. Raises `Refused`."""
    if isinstance(answer, Failure):
        raise Refused(answer.reason)
    match answer.fields:
        case {"identity": str(identity), "proof": str(proof), "newest": int(newest)} if answer.nonce == asked.nonce and newest >= 0:
            try:
                public, signature = bytes.fromhex(identity), bytes.fromhex(proof)
            except ValueError:
                raise Refused("an identity key that is not hexadecimal") from None
            PinnedKeys({name: public}).check(name, signature, joining(run, asked.nonce, name, public))
            pinned.pin(name, public)
            return newest
    raise Refused("not an answer to joining")
