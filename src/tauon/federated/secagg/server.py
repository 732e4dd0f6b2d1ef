"""The coordinator of a secure sum: a state machine over messages (`SecureSum`), and the loop that drives it over a transport (`secure_sum`).

After Bell et al. 2020 (CCS, algorithm 3), with the check of consistency of Bonawitz et al. 2017 (CCS, figure 4) before the unmasking. The coordinator
is not trusted with single values. It sees who takes part, who vanishes, and the sum.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tauon.federated.messages import Failure, Message, Transport
from tauon.federated.secagg.graph import degree, neighbours
from tauon.federated.secagg.identity import PinnedKeys
from tauon.federated.secagg.keys import Announcement, check_keys, commitment_of, mask_key_of, own_mask_key, public_of
from tauon.federated.secagg.masks import Words, add_mask
from tauon.federated.secagg.quantise import Layout, Total
from tauon.federated.secagg.session import (
    FEWEST,
    Refused,
    RoundFailed,
    SecureAggregationError,
    Session,
    digest_of,
    fingerprint_of_work,
    majority,
)
from tauon.federated.secagg.shamir import recover
from tauon.federated.secagg.site import agreement, roster_digest

__all__ = ["SecureSettings", "SecureSum", "secure_sum"]

Work = Message | Mapping[str, Message]

MARGIN = 0.7
"""The keys are exchanged again, without those that vanished, if 30% of the sites that are left could end the round."""
ATTEMPTS = 5


@dataclass(frozen=True)
class SecureSettings:
    """Settings of the coordinator's end. `share` and `fewest` are at least what the sites insist on (`SiteRules`)."""

    pinned: PinnedKeys | None = None
    """Identity keys of the sites: keys and signatures that the other sites would refuse are left out here, instead of ending the round there."""
    share: float = 0.5
    """More than this share of a site's neighbours give its secret back, and of all sites agree."""
    fewest: int = FEWEST
    """Sites in a sum at least."""
    work_timeout: float = 600.0
    """Seconds for the first stage, in which the sites train."""
    timeout: float = 60.0
    """Seconds for each other stage."""


@dataclass
class _Exchange:
    """What the coordinator knows in one key exchange."""

    roster: dict[str, Announcement] = field(default_factory=dict)
    beside: dict[str, tuple[str, ...]] = field(default_factory=dict)
    degree: int = 0
    threshold: int = 0
    quorum: int = 0
    sealed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Shares by their receiver and their sender."""
    shared: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    words: Words | None = None
    signatures: dict[str, str] = field(default_factory=dict)


class SecureSum:
    """One secure sum: send what `requests()` gives, pass the answers to `receive()`, until `total` is there.

    Args:
        sites: names of the sites that are asked.
        work: what each site is asked to do, for all or by name; its tensors travel with the first message. All are the same, but for the fields
            in `PER_SITE`.
        layout: what is summed.
        session: the run and the round.
        settings: thresholds, timeouts, pinned keys.
    """

    def __init__(
        self, sites: Sequence[str], work: Work, layout: Layout, session: Session, settings: SecureSettings = SecureSettings()
    ) -> None:  # fmt: skip
        if len(set(sites)) != len(sites) or not settings.fewest <= len(sites) <= layout.sites:
            raise SecureAggregationError(
                f"a secure sum of {len(sites)} sites ({len(set(sites))} names): expected from {settings.fewest} to {layout.sites}, the number that the "
                "range was chosen for"
            )
        self.work = dict.fromkeys(sites, work) if isinstance(work, Message) else work
        self.layout, self.session, self.settings = layout, session, settings
        self.stage = "keys"
        self.lost: dict[str, str] = {}
        self.total: Total | None = None
        self._asked = tuple(sorted(sites))
        self._now = _Exchange()
        self._expected = digest_of([fingerprint_of_work(self.work[sites[0]]), layout.digest])

    def requests(self) -> dict[str, Message]:
        """The messages of this stage."""
        now, session = self._now, self.session
        if self.stage == "keys":
            return {name: self._ask_keys(self.work[name]) for name in self._asked}
        if self.stage == "shares":
            roster = [now.roster[name].to_json() for name in sorted(now.roster)]
            return dict.fromkeys(
                sorted(now.roster), session.message("shares", {"roster": roster, "degree": now.degree, "threshold": now.threshold})
            )
        if self.stage == "masked":
            return {n: session.message("masked", {"shared": list(now.shared), "shares": now.sealed.get(n, {})}) for n in now.shared}
        if self.stage == "agree":
            return dict.fromkeys(now.alive, session.message("agree", {"alive": list(now.alive), "dropped": list(self._dropped)}))
        if self.stage == "unmask":
            return dict.fromkeys(sorted(now.signatures), session.message("unmask", {"signatures": now.signatures}))
        return {}

    def _ask_keys(self, work: Message) -> Message:
        """The first message; only in the first key exchange it brings the work."""
        if self.session.attempt:
            return self.session.message("keys", {"layout": self.layout.to_json(), "work": None})
        inner = {"kind": work.kind, "round": work.round, "nonce": work.nonce, "fields": dict(work.fields)}
        return replace(self.session.message("keys", {"layout": self.layout.to_json(), "work": inner}), tensors=work.tensors)

    @property
    def alive(self) -> tuple[str, ...]:
        """Sites whose values arrived; known from the stage "agree" on."""
        return self._now.alive

    @property
    def _dropped(self) -> tuple[str, ...]:
        """Sites that shared their secrets, but whose values did not arrive."""
        return tuple(sorted(set(self._now.shared) - set(self._now.alive)))

    def receive(self, answers: Mapping[str, Message | Failure]) -> None:
        """Take the answers of this stage; the next one follows. Raises `RoundFailed` if too few sites are left."""
        good: dict[str, Any] = {}
        for name, message in self.requests().items():
            answer = answers.get(name, Failure("no answer"))
            try:
                if isinstance(answer, Failure):
                    raise Refused(answer.reason)
                if (answer.kind, answer.round, answer.nonce) != (message.kind, message.round, message.nonce):
                    raise Refused(f"an answer of another kind or round: {answer.kind}, round {answer.round}")
                good[name] = getattr(self, f"_read_{self.stage}")(name, answer)
            except Refused as err:
                if name not in self.lost:
                    self.lost[name] = f"{self.stage}: {err}"
        getattr(self, f"_after_{self.stage}")(good)

    def _need(self, left: int, least: int) -> None:
        """Raise `RoundFailed` unless enough sites are left."""
        if left < least:
            raise RoundFailed(
                f"round {self.session.round} must be repeated, under a new number: {left} of {len(self._asked)} sites are left after the stage "
                f"{self.stage!r}, at least {least} are needed. Nothing was revealed. Lost: "
                + "; ".join(f"{name} ({why})" for name, why in sorted(self.lost.items()))
            )

    # ---------------------------------------------------------------------------------------------- keys

    def _read_keys(self, name: str, answer: Message) -> Announcement:
        announced = Announcement.from_json(answer.fields)
        if announced.name != name:
            raise Refused(f"announced the keys of {announced.name}")
        if self.settings.pinned is not None:
            announced.check(self.session, self.settings.pinned)
            if announced.work != self._expected:
                raise Refused("it signed another request than the one that was sent")
            check_keys(announced)
        return announced

    def _after_keys(self, good: dict[str, Announcement]) -> None:
        self._need(len(good), self.settings.fewest)
        k = degree(len(good), self.settings.share)
        now = self._now = _Exchange(roster=good, degree=k)
        now.threshold, now.quorum = majority(k, self.settings.share), majority(len(good), self.settings.share)
        now.beside = neighbours(sorted(good), k, roster_digest(good))
        self.stage = "shares"

    # ---------------------------------------------------------------------------------------------- shares

    def _read_shares(self, name: str, answer: Message) -> dict[str, str]:
        shares = answer.fields.get("shares")
        if (
            not isinstance(shares, dict)
            or set(shares) != set(self._now.beside[name])
            or not all(isinstance(s, str) for s in shares.values())
        ):
            raise Refused("shares for others than its neighbours")
        return shares

    def _after_shares(self, good: dict[str, dict[str, str]]) -> None:
        now = self._now
        self._need(len(good), self.settings.fewest)
        near = {name: sum(other in good for other in now.beside[name]) + 1 for name in now.roster}
        scarce = len(good) * MARGIN < now.quorum or min(near.values()) * MARGIN < now.threshold
        if scarce and len(good) < len(now.roster) and self.session.attempt + 1 < ATTEMPTS:
            self._asked, self.session, self.stage = tuple(sorted(good)), self.session.again(), "keys"
            return
        self._need(len(good), now.quorum)
        now.shared = tuple(sorted(good))
        now.sealed = {to: {sender: good[sender][to] for sender in good if to in good[sender]} for to in good}
        self.stage = "masked"

    # ---------------------------------------------------------------------------------------------- masked values

    def _read_masked(self, name: str, answer: Message) -> Words:
        values = answer.tensors.get("values")
        if values is None or values.dtype != torch.uint32 or tuple(values.shape) != (self.layout.count,):
            raise Refused("values of another type or number than agreed")
        words: Words = values.contiguous().numpy()
        return words

    def _after_masked(self, good: dict[str, Words]) -> None:
        now = self._now
        self._need(len(good), max(self.settings.fewest, now.quorum))
        now.alive = tuple(sorted(good))
        now.words = np.zeros(self.layout.count, dtype="<u4")
        for words in good.values():
            np.add(now.words, words, out=now.words)
        self.stage = "agree"

    # ---------------------------------------------------------------------------------------------- unmasking

    def _read_agree(self, name: str, answer: Message) -> str:
        signature = answer.fields.get("signature")
        if not isinstance(signature, str):
            raise Refused("no signature")
        if self.settings.pinned is not None:
            agreed = agreement(self.session, self._now.roster, self._now.alive, self._dropped)
            self.settings.pinned.check(name, _bytes(signature, 64), agreed)
        return signature

    def _after_agree(self, good: dict[str, str]) -> None:
        self._need(len(good), self._now.quorum)
        self._now.signatures = good
        self.stage = "unmask"

    def _read_unmask(self, name: str, answer: Message) -> tuple[bytes, dict[str, bytes], dict[str, bytes]]:
        alive, beside = set(self._now.alive), set(self._now.beside[name])
        match answer.fields:
            case {"seed": str(seed), "seed_shares": dict(seeds), "key_shares": dict(keys)} if (
                set(seeds) <= alive & beside and set(keys) <= beside - alive
            ):
                read = [{other: _bytes(share, 32) for other, share in part.items()} for part in (seeds, keys)]
                return _bytes(seed, 32), read[0], read[1]
        raise Refused("shares that cannot be read")

    def _after_unmask(self, good: dict[str, tuple[bytes, dict[str, bytes], dict[str, bytes]]]) -> None:
        now = self._now
        assert now.words is not None
        sum_words = now.words
        for name in now.alive:
            is_right = self._is_seed_of(name)
            seed = good[name][0] if name in good else b""
            if not is_right(seed):
                seed = self._recover(name, {holder: seeds[name] for holder, (_, seeds, _) in good.items() if name in seeds}, is_right)
            add_mask(sum_words, own_mask_key(seed, name, self.session), subtract=True)
        for name in self._dropped:
            own = now.roster[name]
            near = [other for other in now.beside[name] if other in now.alive]
            if not near:
                continue
            secret = self._recover(
                name,
                {holder: keys[name] for holder, (_, _, keys) in good.items() if name in keys},
                lambda secret, own=own: public_of(secret) == own.mask_key,  # type: ignore[misc]
            )
            for other in near:  # the other one added it, if its name comes first
                add_mask(sum_words, mask_key_of(secret, own, now.roster[other], self.session), subtract=other < name)
        self.total = self.layout.decode(sum_words, now.alive, {n: why for n, why in self.lost.items() if n not in now.alive})
        self.stage = "done"

    def _is_seed_of(self, name: str) -> Callable[[bytes], bool]:
        return lambda seed: secrets.compare_digest(commitment_of(seed), self._now.roster[name].commitment)

    def _recover(self, name: str, by_holder: dict[str, bytes], is_right: Callable[[bytes], bool]) -> bytes:
        now = self._now
        self._need(len(by_holder), now.threshold)
        points = {now.beside[name].index(holder) + 1: share for holder, share in by_holder.items()}
        try:
            return recover(points, now.threshold, is_right, name)
        except SecureAggregationError as err:
            raise RoundFailed(f"round {self.session.round} must be repeated, under a new number: {err}") from None


def _bytes(text: Any, size: int) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except (TypeError, ValueError):
        raw = b""
    if len(raw) != size:
        raise Refused(f"expected {size} bytes in hexadecimal")
    return raw


def secure_sum(
    transport: Transport, sites: Sequence[str], work: Work, layout: Layout, session: Session,
    settings: SecureSettings = SecureSettings(), progress: Callable[[str, int, int], None] | None = None,
) -> Total:  # fmt: skip
    """Ask the sites to do the work, and return the sum of what they contribute; no single contribution can be read.

    Args:
        transport: carries the messages.
        sites: names of the sites that are asked, at least 3.
        work: what they are asked, with the model's weights (`SecureSum`).
        layout: what is summed, and in which range.
        session: the run and the number of the round. A round that failed is repeated under a new number.
        settings: thresholds, timeouts, pinned keys.
        progress: called with the stage, how many answered, and how many were asked.

    Raises:
        RoundFailed: too few sites are left; nothing was revealed.
    """
    machine = SecureSum(sites, work, layout, session, settings)
    while machine.total is None:
        stage, requests = machine.stage, machine.requests()
        answers = transport.ask(requests, timeout=settings.work_timeout if stage == "keys" else settings.timeout)
        if progress is not None:
            progress(f"secagg/{stage}", sum(isinstance(a, Message) for a in answers.values()), len(requests))
        machine.receive(answers)
    return machine.total
