"""A site in a secure sum: a state machine that answers the coordinator's messages and trusts it with nothing but the sum.

    secagg/keys     does the work, keeps its result, makes keys               -> its announcement, signed
    secagg/shares   all announcements: checked                                -> shares of its two secrets, encrypted for each neighbour
    secagg/masked   who sent shares, and the shares for this site             -> its values with all masks
    secagg/agree    whose values arrived, and whose did not                   -> its signature of these two lists
    secagg/unmask   the signatures of the others on the same lists            -> its seed; shares of the seeds of those whose values arrived,
                                                                                 and of the mask keys of those whose values did not

What does not follow the protocol is refused, and ends the session. The last step is done once, whatever the coordinator asks later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from tauon.artifacts import atomic_write
from tauon.errors import RunError
from tauon.federated.messages import Message, Site
from tauon.federated.secagg.graph import degree, neighbours
from tauon.federated.secagg.identity import Identity, PinnedKeys
from tauon.federated.secagg.keys import Announcement, RoundKeys
from tauon.federated.secagg.masks import add_mask
from tauon.federated.secagg.quantise import Contribution, Integers, Layout, Rounding
from tauon.federated.secagg.session import FEWEST, Refused, SecureAggregationError, Session, digest_of, fingerprint_of_work, majority
from tauon.federated.secagg.shamir import split

__all__ = ["IntegerNoise", "SecureSite", "SiteRules", "agreement", "roster_digest"]


class IntegerNoise(Protocol):
    """Noise that a site adds before it masks, for distributed differential privacy; and what it insists on in the layout."""

    def draw(self, layout: Layout, round: int) -> Mapping[str, Integers]:
        """Return the noise of each entry, in its steps. Raises if the layout is not the agreed one."""
        ...


@dataclass(frozen=True)
class SiteRules:
    """What a site insists on, whatever the coordinator sends."""

    fewest: int = FEWEST
    """Sites in a sum at least. For distributed noise: as many as its guarantee counts on."""
    share: float = 0.5
    """More than this share of its neighbours give a secret back, and more than this share of all sites sign what is unmasked. With 2/3 a third of
    the sites may help a coordinator that lies; then fewer may drop out."""
    rounding: Rounding = "nearest"
    first_use: bool = False
    """Pin identity keys that the coordinator brings when sites join, if a name has none yet. Unless the operators compare the fingerprints, the
    coordinator is then trusted not to invent sites, whose values it would know."""
    most_sites: int | None = None
    """With `first_use`: keys that are pinned at most, its own included. None: not limited."""
    most_sums: int | None = None
    """Sums that are unmasked at most, over restarts: the rounds that a guarantee against the coordinator counts. None: not limited."""

    def __post_init__(self) -> None:
        if not (self.fewest >= FEWEST and 0.5 <= self.share < 1):
            raise ValueError(f"got fewest={self.fewest}, share={self.share:g}: expected at least {FEWEST}, and from 0.5 to below 1")


@dataclass
class _Open:
    """A session between its first and its last message."""

    session: Session
    layout: Layout
    keys: RoundKeys
    stage: str = "keys"
    roster: dict[str, Announcement] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    """Neighbours."""
    threshold: int = 0
    quorum: int = 0
    shares: dict[str, bytes] = field(default_factory=dict)
    """Shares of the others, by their name: of the seed, then of the mask key."""
    shared: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    agreed: bytes = b""


class SecureSite:
    """Answers "secagg/..." messages. Everything else goes to `others`, if its kind is `allowed`: not "train", whose answer would be in clear.

    Args:
        name: name of the site.
        identity: its key.
        pinned: identity keys of all sites, its own among them.
        contribute: does what it is asked (a message with the model's weights) and returns the weighted values.
        run: identifier of the run.
        rules: what it insists on.
        noise: added before masking; without noise, `AgreedRange`, which compares the layout only.
        memory: file that keeps the last round over a restart, so that it cannot be replayed.
    """

    def __init__(
        self, name: str, identity: Identity, pinned: PinnedKeys, contribute: Callable[[Message], Contribution], *, run: str,
        rules: SiteRules = SiteRules(), noise: IntegerNoise | None = None, memory: Path | None = None,
    ) -> None:  # fmt: skip
        pinned.pin(name, identity.public)
        self.name, self.identity, self.pinned, self.contribute, self.run = name, identity, pinned, contribute, run
        self.rules, self.noise, self.memory = rules, noise, memory
        self.others: Site | None = None
        self.allowed: Collection[str] = ("join",)
        self._open: _Open | None = None
        self._newest, self._attempt, self._sent = 0, -1, True
        self._unmasked = 0
        self._work: tuple[Contribution, bytes] | None = None
        if memory is not None and memory.exists():
            self._newest, self._unmasked = _remembered(memory, run)

    def answer(self, message: Message) -> Message:
        """Return the answer. Raises `Refused`, and closes the session, for what the protocol does not allow."""
        stage = message.kind.removeprefix("secagg/")
        if stage == message.kind:
            if self.others is None or message.kind not in self.allowed:
                raise Refused(f"{self.name} does not answer {message.kind!r}: this run sums securely, and the answer would be in clear")
            return self.others.answer(message)
        handlers = {"shares": self._shares, "masked": self._masked, "agree": self._agree, "unmask": self._unmask}
        before = {"shares": "keys", "masked": "shares", "agree": "masked", "unmask": "agree"}
        if stage in ("join", "pin", "keys"):
            return {"join": self._join, "pin": self._pin, "keys": self._keys}[stage](message)
        if stage not in before:
            raise Refused(f"{self.name}: there is no stage {stage!r}")
        if self._open is not None:
            _same_session(self.name, self._open.session, message)  # an old message does not end the session of today
        now, self._open = self._open, None  # closed, unless the stage succeeds
        if now is None or now.stage != before[stage]:
            state = "no session is open" if now is None else f"it was at {now.stage!r}"
            raise Refused(f"{self.name} refuses {stage!r}: {state}. Each stage of a round is done once.")
        answer = handlers[stage](now, message)
        if stage == "unmask":
            self._work = None
        else:
            now.stage, self._open = stage, now
        return answer

    # ---------------------------------------------------------------------------------------------- stages

    def _join(self, message: Message) -> Message:
        """Its identity, with a signature that it has the secret key, and its newest round."""
        self._refuse_other_run(_text(message, "run"))
        proof = self.identity.sign(joining(self.run, message.nonce, self.name, self.identity.public))
        return message.answer("secagg/join", {"identity": self.identity.public.hex(), "proof": proof.hex(), "newest": self._newest})

    def _pin(self, message: Message) -> Message:
        """Compare the identity keys of all sites with the pinned ones."""
        self._refuse_other_run(_text(message, "run"))
        keys = message.fields.get("keys")
        if not isinstance(keys, dict) or self.name not in keys:
            raise Refused(f"{self.name}: identity keys that cannot be read, or without its own")
        for name, text in keys.items():
            if name not in self.pinned and not self.rules.first_use:
                raise Refused(f"{self.name} has no pinned identity key for {name}: add it to {self.pinned.path or 'its pinned keys'}")
            if name not in self.pinned and self.rules.most_sites is not None and len(self.pinned) >= self.rules.most_sites:
                raise Refused(f"{self.name} has pinned {len(self.pinned)} identity keys, as many as sites were agreed: {name} is one more")
            self.pinned.pin(name, _bytes(text))
        return message.answer("secagg/pin")

    def _refuse_other_run(self, run: str) -> None:
        if run != self.run:
            raise Refused(f"{self.name} belongs to run {self.run}, got a message of run {run}")

    def _keys(self, message: Message) -> Message:
        session = Session(_text(message, "run"), message.round, message.nonce, _number(message, "attempt"))
        self._refuse_replay(session)
        self._refuse_more()
        self._open = None
        layout = Layout.from_json(message.fields.get("layout"))
        if layout.sites < self.rules.fewest:
            raise Refused(f"{self.name} refuses a sum of {layout.sites} sites: at least {self.rules.fewest} take part")
        if layout.sites > len(self.pinned):
            raise Refused(f"{self.name} refuses a range for {layout.sites} sites: {len(self.pinned)} have a pinned identity key")
        if session.round > self._newest:
            self._work = None
        self._newest, self._attempt, self._sent = session.round, session.attempt, False
        wanted = message.fields.get("work")
        if wanted is not None:
            if self._work is not None:
                raise Refused(f"{self.name} has done the work of round {session.round} already")
            match wanted:
                case {"kind": str(kind), "round": int(number), "nonce": str(nonce), "fields": dict(fields)}:
                    work = Message(kind, number, nonce, fields, message.tensors)
                case _:
                    raise Refused(f"{self.name}: the work of round {session.round} cannot be read")
            self._work = self.contribute(work), fingerprint_of_work(work)
        if self._work is None:
            raise Refused(f"{self.name} has no values for round {session.round}: the first message of a round brings the work")
        asked = digest_of([self._work[1], layout.digest])
        self._open = _Open(session, layout, RoundKeys(self.name, session, asked, self.identity))
        return message.answer("secagg/keys", self._open.keys.own.to_json())

    def _refuse_replay(self, session: Session) -> None:
        self._refuse_other_run(session.run)
        same = session.round == self._newest
        if session.round < self._newest or (same and self._sent):
            raise Refused(f"{self.name} refuses round {session.round}: it took part in round {self._newest} already, and does so once")
        if same and session.attempt <= self._attempt:
            raise Refused(f"{self.name} refuses key exchange {session.attempt} of round {session.round}: it made that one already")

    def _refuse_more(self) -> None:
        if self.rules.most_sums is not None and self._unmasked >= self.rules.most_sums:
            raise Refused(f"{self.name}: {spent_rounds(self._unmasked)}")

    def _shares(self, now: _Open, message: Message) -> Message:
        listed = message.fields.get("roster")
        announced = [Announcement.from_json(values) for values in listed] if isinstance(listed, list) else []
        now.roster = {a.name: a for a in announced}
        self._check_roster(now, announced)
        names, k = sorted(now.roster), _number(message, "degree")
        least = degree(len(names), self.rules.share)
        if k < least or k > len(names) - 1 or (k % 2 and k < len(names) - 1):
            raise Refused(f"{self.name} refuses {k} neighbours of {len(names)} sites: expected {least}")
        now.beside = neighbours(names, k, roster_digest(now.roster), self.name)[self.name]
        now.threshold, now.quorum = _number(message, "threshold"), majority(len(names), self.rules.share)
        if not majority(k, self.rules.share) <= now.threshold <= k:
            raise Refused(
                f"{self.name} refuses a threshold of {now.threshold}: its secrets must need more than {self.rules.share:.0%} of its {k} neighbours"
            )
        seeds, keys = (split(secret, now.threshold, k) for secret in (now.keys.seed, now.keys.mask_secret))
        sealed = {
            other: now.keys.seal(now.roster[other], seed + key).hex() for other, seed, key in zip(now.beside, seeds, keys, strict=True)
        }
        return message.answer("secagg/shares", {"shares": sealed})

    def _check_roster(self, now: _Open, announced: list[Announcement]) -> None:
        if len(now.roster) != len(announced):
            raise Refused(f"{self.name}: a site is listed twice")
        if len(now.roster) < self.rules.fewest or len(now.roster) > now.layout.sites:
            raise Refused(
                f"{self.name} refuses a sum of {len(now.roster)} sites: at least {self.rules.fewest} take part, and the range is for {now.layout.sites}"
            )
        if now.roster.get(self.name) != now.keys.own:
            raise Refused(f"{self.name}: its own keys are missing from the list, or were changed")
        for announcement in announced:
            announcement.check(now.session, self.pinned)
            if announcement.work != now.keys.own.work:
                raise Refused(
                    f"{announcement.name} was sent another model, or other settings of training or sum, than {self.name}: the sum would show one update"
                )
        public = [key for a in announced for key in (a.mask_key, a.share_key)]
        if len(set(public)) != len(public):
            raise Refused(f"{self.name}: two sites have the same key")

    def _masked(self, now: _Open, message: Message) -> Message:
        now.shared = _names(message, "shared")
        near = set(now.shared) & set(now.beside)
        if not set(now.shared) <= set(now.roster) or self.name not in now.shared:
            raise Refused(f"{self.name}: the list of sites that sent shares has others, or not {self.name}")
        if len(now.shared) < max(self.rules.fewest, now.quorum) or len(near) + 1 < now.threshold:
            raise Refused(
                f"{self.name} refuses a sum of {len(now.shared)} of {len(now.roster)} sites ({len(near)} of its {len(now.beside)} neighbours): "
                f"at least {max(self.rules.fewest, now.quorum)} take part (threshold {now.threshold})"
            )
        sealed = message.fields.get("shares")
        if not isinstance(sealed, dict) or not set(sealed) <= near:
            raise Refused(f"{self.name}: shares from sites that are not its neighbours")
        for other, text in sealed.items():
            opened = now.keys.unseal(now.roster[other], _bytes(text))
            if opened is not None and len(opened) == 64:  # otherwise it is a share that this site does not have
                now.shares[other] = opened
        assert self._work is not None
        noise = self.noise.draw(now.layout, now.session.round) if self.noise is not None else None
        try:
            words = now.layout.encode(self._work[0], rounding=self.rules.rounding, noise=noise)
        except SecureAggregationError as err:  # its text has a number of the update, which stays here
            raise Refused(
                f"{self.name}: its values are not finite, or beyond the range of the sum (secure_aggregation.bound); its own log says which"
            ) from err
        self._remember()  # before anything leaves
        add_mask(words, now.keys.own_mask())
        for other in sorted(near):
            add_mask(words, now.keys.pair_mask(now.roster[other]), subtract=other < self.name)
        return message.answer("secagg/masked", tensors={"values": torch.from_numpy(words)})

    def _remember(self) -> None:
        self._sent = True
        if self.memory is not None:
            atomic_write(self.memory, json.dumps({"run": self.run, "round": self._newest, "unmasked": self._unmasked}) + "\n")

    def _agree(self, now: _Open, message: Message) -> Message:
        now.alive, dropped = _names(message, "alive"), _names(message, "dropped")
        both = set(now.alive) & set(dropped)
        if both:
            raise Refused(
                f"{self.name}: {', '.join(sorted(both))} would be both alive and dropped: both secrets of a site reveal its values"
            )
        if set(now.alive) | set(dropped) != set(now.shared):
            raise Refused(f"{self.name}: the lists of alive and dropped sites are not those that sent shares")
        near = set(now.alive) & set(now.beside)
        if self.name not in now.alive or len(now.alive) < max(self.rules.fewest, now.quorum) or len(near) + 1 < now.threshold:
            raise Refused(
                f"{self.name} refuses to unmask a sum of {len(now.alive)} of {len(now.roster)} sites ({'with' if self.name in now.alive else 'without'} "
                f"itself): at least {max(self.rules.fewest, now.quorum)} take part (threshold {now.threshold})"
            )
        now.agreed = agreement(now.session, now.roster, now.alive, dropped)
        return message.answer("secagg/agree", {"signature": self.identity.sign(now.agreed).hex()})

    def _unmask(self, now: _Open, message: Message) -> Message:
        signatures = message.fields.get("signatures")
        if not isinstance(signatures, dict) or not set(signatures) <= set(now.alive):
            raise Refused(f"{self.name}: signatures that cannot be read, or of others than the sites that are alive")
        for name, text in signatures.items():
            self.pinned.check(name, _bytes(text), now.agreed)
        if len(signatures) < now.quorum:
            raise Refused(
                f"{self.name} refuses to unmask: {len(signatures)} of {len(now.roster)} sites agree on who is alive, at least {now.quorum} must"
            )
        self._refuse_more()
        self._unmasked += 1
        self._remember()  # before anything leaves
        seeds = {name: shares[:32].hex() for name, shares in now.shares.items() if name in now.alive}
        keys = {name: shares[32:].hex() for name, shares in now.shares.items() if name not in now.alive}
        return message.answer("secagg/unmask", {"seed": now.keys.seed.hex(), "seed_shares": seeds, "key_shares": keys})


def roster_digest(roster: Mapping[str, Announcement]) -> bytes:
    """SHA-256 of all announcements: the seed of the graph, and part of what is agreed."""
    return digest_of(
        part for name in sorted(roster) for part in (name, roster[name].mask_key, roster[name].share_key, roster[name].commitment)
    )


def agreement(session: Session, roster: Mapping[str, Announcement], alive: Collection[str], dropped: Collection[str]) -> bytes:
    """What sites sign before they unmask: the keys, whose values arrived, and whose did not."""
    return session.context("agree", roster_digest(roster), digest_of(sorted(alive)), digest_of(sorted(dropped)))


def spent_rounds(count: int) -> str:
    """Why a site takes part in no more rounds."""
    return (
        f"the privacy of {count} rounds is spent, as many as were agreed, and it takes part in no more. To take part in another training, which costs "
        "more of its privacy, start it under another name (name=...)."
    )


def _remembered(memory: Path, run: str) -> tuple[int, int]:
    """The last round of this run, and how many sums were unmasked in it; 0 for another one. Raises `RunError`."""
    try:
        kept = json.loads(memory.read_text())
        return (int(kept["round"]), int(kept.get("unmasked", 0))) if kept["run"] == run else (0, 0)
    except (ValueError, TypeError, KeyError, OSError):
        raise RunError(
            f"{memory} does not say in which round this site took part last: restore it, or start the run again, with all sites."
        ) from None


def joining(run: str, nonce: str, name: str, public: bytes) -> bytes:
    """What a site signs to show that it has the secret key of its identity."""
    return Session(run, 0, nonce).context("join", name, public)


def _same_session(name: str, session: Session, message: Message) -> None:
    got = Session(_text(message, "run"), message.round, message.nonce, _number(message, "attempt"))
    if got != session:
        raise Refused(
            f"{name} refuses a message of another session: round {got.round}, key exchange {got.attempt}, expected round {session.round}, {session.attempt}"
        )


def _text(message: Message, key: str) -> str:
    value = message.fields.get(key)
    if not isinstance(value, str):
        raise Refused(f"{message.kind}: {key} is not a text")
    return value


def _number(message: Message, key: str) -> int:
    value = message.fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused(f"{message.kind}: {key} is not an integer")
    return value


def _names(message: Message, key: str) -> tuple[str, ...]:
    value: Any = message.fields.get(key)
    if not isinstance(value, list) or not all(isinstance(n, str) for n in value) or len(set(value)) != len(value):
        raise Refused(f"{message.kind}: {key} is not a list of names, each once")
    return tuple(value)


def _bytes(text: Any) -> bytes:
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError):
        raise Refused("bytes that are not hexadecimal") from None
