"""From the section `federate` to what protects the updates: how the coordinator sums, and what stands before a site's training.

| secure_aggregation | privacy | the coordinator | a site |
|---|---|---|---|
| no | no | `PlainSummation` | as it is |
| yes | no | `SecureSummation` | `SecureSite` |
| no | central | `PrivateSummation` clips and noises | as it is |
| no | local | `PrivateSummation` | `PrivateSite` clips and noises |
| yes | central, local, distributed | `PrivateSecureSummation` | `SecureSite` around `PrivateContribution` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tauon.errors import TauonError
from tauon.federated.config import FederateConfig
from tauon.federated.messages import Failure, Message, MessageError, Site, Transport
from tauon.federated.private import (
    WITHIN,
    AdaptiveClip,
    PrivateContribution,
    PrivateSecureSummation,
    PrivateSite,
    PrivateSummation,
    UpdatePrivacy,
    calibrate_noise,
)
from tauon.federated.secagg import (
    AgreedRange,
    Identity,
    PinnedKeys,
    SecureSettings,
    SecureSite,
    SecureSummation,
    SiteRules,
    site_contribution,
)
from tauon.federated.summation import PlainSummation, Summation
from tauon.federated.updates import CONTROL, norm_of

__all__ = ["SecuredSimulation", "Who", "adaptive_clip", "most_held_out", "protect", "summation_of", "update_privacy"]


@dataclass(frozen=True)
class Who:
    """A site, to the others.

    Args:
        name: of the site.
        examples: training examples that it declares.
        sites: sites that may take part, in all.
        run: identifier of the run.
        identity: its key for secure aggregation.
        pinned: keys of all sites.
        memory: file that keeps its last round, and how many it took part in, over a restart.
    """

    name: str
    examples: int
    sites: int
    run: str
    identity: Identity | None = None
    pinned: PinnedKeys | None = None
    memory: Path | None = None


def update_privacy(config: FederateConfig, sites: int) -> UpdatePrivacy | None:
    """Return the privacy of updates for so many sites, or None."""
    found = config.privacy
    if found is None:
        return None
    sampling = "full" if config.fraction == 1 else found.sampling
    numbers = {} if found.adaptive is None else {WITHIN: 0.5}
    noise = found.noise_multiplier
    if found.target_epsilon is not None:
        kind = (found.mode, sampling, config.fraction, sites, found.contributors, found.colluders, len(numbers))
        noise = least_noise(kind, config.rounds, found.target_epsilon, found.delta)
    return UpdatePrivacy(
        found.mode, found.clip_norm, noise or 0.0, sites=sites, sampling=sampling, rate=config.fraction, contributors=found.contributors,
        colluders=found.colluders, numbers=numbers,
    )  # fmt: skip


@lru_cache
def least_noise(kind: tuple[Any, ...], rounds: int, target_epsilon: float, delta: float) -> float:
    """Return the noise multiplier for which so many rounds stay within the target; the same at the coordinator and at every site."""
    mode, sampling, rate, sites, contributors, colluders, numbers = kind
    start = UpdatePrivacy(
        mode, 1.0, 1.0, sites=sites, sampling=sampling, rate=rate, contributors=contributors, colluders=colluders,
        numbers={str(i): 1.0 for i in range(numbers)},
    )  # fmt: skip
    return calibrate_noise(start, rounds, target_epsilon=target_epsilon, delta=delta).noise_multiplier


def adaptive_clip(config: FederateConfig) -> AdaptiveClip | None:
    """Return what moves the clipping norm, or None."""
    found = None if config.privacy is None else config.privacy.adaptive
    return None if found is None else AdaptiveClip(found.quantile, found.rate)


def summation_of(config: FederateConfig, sites: int, run: str, pinned: PinnedKeys) -> Summation:
    """Return how the coordinator sums updates."""
    privacy, secure = update_privacy(config, sites), config.secure_aggregation
    if secure is None:
        return PlainSummation() if privacy is None else PrivateSummation(privacy, adaptive_clip(config))
    settings = SecureSettings(pinned=pinned, work_timeout=config.timeout, timeout=secure.timeout)
    if privacy is None:
        return SecureSummation(run, pinned, bound=secure.bound, settings=settings)
    return PrivateSecureSummation(run, pinned, privacy, adaptive=adaptive_clip(config), settings=settings)


def protect(site: Site, config: FederateConfig, who: Who) -> Site:
    """Return what answers for a site: its training, behind the privacy and the masks that the section asks for."""
    privacy, secure = update_privacy(config, who.sites), config.secure_aggregation
    moves = adaptive_clip(config) is not None
    if secure is None:
        if privacy is None or privacy.mode != "local":
            return site
        return PrivateSite(site, privacy, who.examples, adaptive=moves, most=config.rounds, run=who.run, memory=who.memory)
    assert who.identity is not None
    assert who.pinned is not None
    agreed = _AsAgreed(site, config)
    private = None if privacy is None else PrivateContribution(agreed, privacy, who.examples, adaptive=moves)
    most = None if privacy is None or privacy.mode == "central" else config.rounds  # the guarantee is against the coordinator
    fewest = SiteRules().fewest if privacy is None else privacy.fewest
    rules = SiteRules(fewest=fewest, first_use=secure.first_use, most_sites=who.sites, most_sums=most)
    end = SecureSite(
        who.name, who.identity, who.pinned, private or site_contribution(agreed), run=who.run, rules=rules, memory=who.memory,
        noise=private or AgreedRange(secure.bound),
    )  # fmt: skip
    end.others, end.allowed = site, ("join", "final")
    return end


def most_held_out(config: FederateConfig) -> int:
    """Return the held-out examples at which a site's weight in a mean of metrics is 1."""
    return config.weighting.max_examples or 100_000


class _AsAgreed:
    """A site in secure sums: refuses other weights than the recipe's, and an update beyond `max_norm`, which no one else can measure. With weights so small
    that most updates are rounded to zero, the sum would be the update of the largest site.
    """

    def __init__(self, site: Site, config: FederateConfig) -> None:
        self.site, self.max_norm = site, config.max_norm
        weighting = config.weighting
        self.agreed: dict[str, Mapping[str, Any]] = {
            "train": {"weight_by": weighting.by, "max_examples": weighting.max_examples},
            "evaluate": {"most_examples": most_held_out(config)},
        }

    def answer(self, message: Message) -> Message:
        for name, value in self.agreed.get(message.kind, {}).items():
            if message.fields.get(name) != value:
                raise MessageError(f"this site would be weighted with {name} {message.fields.get(name)!r}, agreed is {value!r}")
        answer = self.site.answer(message)
        if message.kind == "train" and self.max_norm is not None:
            norm = norm_of({n: t for n, t in answer.tensors.items() if not n.startswith(CONTROL)})
            if not norm <= self.max_norm:
                raise MessageError(f"its update is above the limit of {self.max_norm:g} (federate.max_norm), or not finite")
        return answer


class SecuredSimulation:
    """A transport to simulated sites, each behind its own protection; messages pass as bytes, as they do between machines."""

    def __init__(self, inner: Transport, config: FederateConfig, examples: Mapping[str, int], run: str) -> None:
        self.inner = inner
        names = inner.sites()
        identities = {name: Identity.generate() for name in names} if config.secure_aggregation is not None else {}
        keys = {name: identity.public for name, identity in identities.items()}
        self.pinned = PinnedKeys(keys)
        self.ends = {
            name: protect(
                _One(inner, name),
                config,
                Who(name, examples[name], len(names), run, identities.get(name), PinnedKeys(keys) if keys else None),
            )
            for name in names
        }

    def sites(self) -> list[str]:
        """Return the names of the sites."""
        return self.inner.sites()

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        """Answer each message in turn."""
        answers: dict[str, Message | Failure] = {}
        for name, message in messages.items():
            try:
                answers[name] = Message.from_bytes(self.ends[name].answer(Message.from_bytes(message.to_bytes())).to_bytes())
            except TauonError as err:
                answers[name] = Failure(str(err))
        return answers


class _One:
    """One simulated site."""

    def __init__(self, inner: Transport, name: str) -> None:
        self.inner, self.name = inner, name

    def answer(self, message: Message) -> Message:
        found = self.inner.ask({self.name: message}, timeout=float("inf"))[self.name]
        if isinstance(found, Failure):
            raise TauonError(found.reason)
        return found
