"""The seam of the coordinator with private updates: in the clear (`PrivateSummation`), and as a secure sum (`PrivateSecureSummation`); and the
sites' ends.

All sites that are in the request take part in the mechanism; with sampling, each is drawn here, by a secret key, and those that were not drawn count as
sites that answered: who was drawn is known to the coordinator only. So every site is asked for each round (`Rounds.fraction` 1).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tauon.artifacts import atomic_write
from tauon.errors import PrivacyError, Problem, RecipeError, RunError, TrainingError
from tauon.federated.messages import Failure, Message, MessageError, Site, Transport
from tauon.federated.private.clipping import WITHIN, AdaptiveClip, add_central_noise, add_local_noise, clip_contribution, private_mean
from tauon.federated.private.distributed import DistributedNoise
from tauon.federated.private.sampling import choose_sites
from tauon.federated.private.settings import UpdatePrivacy, private_layout
from tauon.federated.secagg import Contribution, Integers, Layout, PinnedKeys, SecureSettings, Total
from tauon.federated.secagg.site import spent_rounds
from tauon.federated.secagg.summation import SecureSummation
from tauon.federated.summation import Collected, RoundRequest, tensor_bytes
from tauon.federated.updates import CONTROL, Update, check_update, finite_number
from tauon.privacy.noise import NoiseSource

__all__ = ["PrivateContribution", "PrivateSecureSummation", "PrivateSite", "PrivateSummation"]

CLIP, LOSS = "clip_norm", "loss"
"""Field of a request with the clipping norm of the round; number with the loss of a site."""


class _Rounds:
    """What both kinds have in common: the clipping norm of the next round, the rounds that were released, noise, sampling, the mean.

    Attributes:
        released: rounds whose result was revealed, also to the coordinator alone, and also if it was not used.
        most: rounds that may be released, as the privacy of so many was reserved; None: not limited.
        on_release: called with `released` when it grows: with central noise before the result is used, else before the sites reveal it.
    """

    single: ClassVar[bool] = False

    def __init__(self, privacy: UpdatePrivacy, adaptive: AdaptiveClip | None) -> None:
        if adaptive is not None and WITHIN not in privacy.numbers:
            raise RecipeError(
                [Problem("federate.privacy.numbers", f"adaptive clipping needs {WITHIN!r}: 0.5, which is noised like the update.")]
            )
        self.privacy, self.adaptive, self.released = privacy, adaptive, 0
        self.most: int | None = None
        self.on_release: Callable[[int], None] | None = None
        self._drawn = 0
        self._source, self._key = NoiseSource.secure(), os.urandom(32)  # new in each process: a round that is done again draws again

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps (`Stateful`): the clipping norm, and how many rounds were released."""
        return {"clip_norm": torch.tensor(self.privacy.clip_norm, dtype=torch.float64), "released": torch.tensor(self.released)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put it back."""
        self.privacy = replace(self.privacy, clip_norm=float(tensors["clip_norm"]))
        self.released = int(tensors["released"])

    def order(self, message: Message) -> Message:
        """The request of a site, with the clipping norm of the round."""
        return replace(message, fields={**message.fields, CLIP: self.privacy.clip_norm})

    def drawn(self, request: RoundRequest) -> RoundRequest:
        """The request for those sites that take part. Raises `TrainingError` if the privacy of all rounds is spent."""
        if self.most is not None and self.released >= self.most:
            raise TrainingError(
                f"the results of {self.released} rounds were released, and the privacy of no more was reserved: training ends here."
            )
        if len(request.groups) != 1:
            raise RecipeError(
                [Problem("federate.strategy", "compares updates or groups of them, and private updates give one sum. Use fedavg.")]
            )
        names = list(request.messages)
        attempt = next(iter(request.messages.values())).fields.get("attempt", 0)
        round = next(iter(request.messages.values())).round
        drawn = set(choose_sites(names, self.privacy, self._key, round, int(attempt)))
        messages = {name: self.order(message) for name, message in request.messages.items() if name in drawn}
        return replace(request, messages=messages, groups=[[name for name in names if name in drawn]])

    def count(self) -> None:
        """Count a round as released."""
        self.released += 1
        if self.on_release is not None:
            self.on_release(self.released)

    def finished(self, total: Total, request: RoundRequest) -> Update:
        """Noise the sum (central), take the mean, move the clipping norm."""
        privacy, expected = (
            self.privacy,
            max(self.privacy.expected(len(request.declared)), self.privacy.rate),
        )  # no site at all: noise alone
        if privacy.mode == "central":
            self._drawn += 1
            total = add_central_noise(total, privacy, self._source, self._drawn)
            self.count()
        weights = [1.0 if (most := _cap(request)) is None else min(n, most) / most for n in request.declared.values()]
        mean = private_mean(total, privacy, expected / len(weights) * sum(weights))
        if self.adaptive is not None:
            self.privacy = self.adaptive.moved(privacy, total, expected)
        loss = total.numbers[LOSS] / expected if LOSS in privacy.numbers else math.nan
        return Update(
            "+".join(request.declared), mean, expected, loss=loss, version=max((m.round for m in request.messages.values()), default=0)
        )


class PrivateSummation(_Rounds):
    """A `Summation` in the clear: the coordinator clips and adds the noise (central), or sums what the sites have noised (local).

    Args:
        privacy: settings.
        adaptive: moves the clipping norm.
    """

    smallest_group: ClassVar[int] = 1

    def __init__(self, privacy: UpdatePrivacy, adaptive: AdaptiveClip | None = None) -> None:
        super().__init__(privacy, adaptive)
        if privacy.mode == "distributed":
            raise RecipeError(
                [Problem("federate.privacy.mode", "is distributed: shares of noise protect only a secure sum. Use secure aggregation.")]
            )

    def collect(self, transport: Transport, request: RoundRequest) -> Collected:
        """See `Summation.collect`. Sites that were not drawn count as answers."""
        refuse_control(request)
        asked, result = self.drawn(request), Collected()
        if self.privacy.mode == "local":
            self.count()  # the first answer reveals something of its site, also if the round is lost
        tensors: dict[str, Tensor] = {}
        numbers = dict.fromkeys(self.privacy.numbers, 0.0)
        for name, answer in transport.ask(asked.messages, timeout=request.timeout).items():
            if isinstance(answer, Failure):
                result.failed[name] = answer.reason
                continue
            result.received_bytes += tensor_bytes(answer)
            try:
                update = check_update(
                    asked.messages[name], answer, site=name, declared=request.declared[name], limits=request.limits, extra=request.extra
                )
                one = self._vector(update, answer, weight_of(asked.messages[name], request.declared[name]))
            except (MessageError, KeyError, TypeError, ValueError) as err:
                result.refused[name] = str(err) if isinstance(err, MessageError) else "numbers that cannot be read"
                continue
            tensors = {n: t + tensors[n] if n in tensors else t.float() for n, t in one.tensors.items()}
            numbers = {n: v + one.numbers[n] for n, v in numbers.items()}
        if not tensors:  # no one was drawn, or answered: noise alone
            sent = next(iter(request.messages.values())).tensors
            tensors = {n: torch.zeros(t.shape) for n, t in sent.items() if not n.startswith(CONTROL)}
        result.updates.append(self.finished(Total(tensors, numbers, tuple(asked.messages)), request))
        lost = {*result.failed, *result.refused}
        result.sites = {name: {} for name in request.messages if name not in lost}
        return result

    def _vector(self, update: Update, answer: Message, weight: float) -> Contribution:
        if self.privacy.mode == "local":
            numbers = {name: finite_number(answer.fields["private"][name]) for name in self.privacy.numbers}
            if None in numbers.values():
                raise MessageError("private numbers that are not finite")
            return Contribution(update.tensors, {name: v for name, v in numbers.items() if v is not None})
        known = {LOSS: 0.0 if math.isnan(update.loss) else update.loss, **update.metrics}
        return clip_contribution(update.tensors, known, self.privacy, weight=weight)


class PrivateSecureSummation(_Rounds, SecureSummation):
    """A secure `Summation` of private updates, with central or distributed noise; the sites have `PrivateContribution`.

    Args:
        run: identifier of the run.
        pinned: identity keys of the sites.
        privacy: settings; sampling is full or fixed-size.
        adaptive: moves the clipping norm.
        settings: thresholds and timeouts.
    """

    def __init__(
        self, run: str, pinned: PinnedKeys, privacy: UpdatePrivacy, *, adaptive: AdaptiveClip | None = None, settings: SecureSettings | None = None,
    ) -> None:  # fmt: skip
        _Rounds.__init__(self, privacy, adaptive)
        settings = settings or SecureSettings()
        SecureSummation.__init__(self, run, pinned, settings=replace(settings, fewest=max(settings.fewest, privacy.fewest)))
        if privacy.sampling == "poisson":
            message = "is poisson: a sample may be smaller than a secure sum permits, and drawing again is another mechanism. Set fixed-size, or full."
            raise RecipeError([Problem("federate.privacy.sampling", message)])
        if math.floor(privacy.divisor + 1e-9) < self.settings.fewest:
            message = (
                f"is {privacy.rate:g} of {privacy.sites} sites: a secure sum needs {self.settings.fewest} in each round. Set it higher."
            )
            raise RecipeError([Problem("federate.privacy.rate", message)])

    def collect(self, transport: Transport, request: RoundRequest) -> Collected:
        """See `Summation.collect`. Sites that were not drawn count as answers."""
        asked = self.drawn(request)
        others = len(request.messages) - len(asked.messages)
        asked = replace(asked, enough=lambda sites, groups: request.enough(sites + others, groups))
        result = SecureSummation.collect(self, transport, asked)
        if result.updates:
            result.sites |= {name: {} for name in request.messages if name not in asked.messages}
        return result

    def revealing(self) -> None:
        """With noise of the sites the sum counts as soon as the coordinator may know it, also if it cannot be used."""
        if self.privacy.mode != "central":
            self.count()

    def layout(self, order: Message, request: RoundRequest, sites: int) -> Layout:
        """The private vector; control variates are refused."""
        refuse_control(request)
        return private_layout({name: tuple(t.shape) for name, t in order.tensors.items()}, self.privacy, sites)

    def update(self, total: Total, request: RoundRequest, *, alone: bool) -> Update:
        """The noised mean."""
        return self.finished(total, request)


class PrivateContribution:
    """At the site of a secure sum: clips what the training gives (`SecureSite(contribute=...)`), and has the noise (`noise=...`).

    Args:
        site: `TrainingSite`. Its answer to "train" stays here.
        privacy: as the site has agreed to it.
        examples: number of examples that it declares, for its weight.
        adaptive: whether the coordinator may move the clipping norm.
    """

    def __init__(self, site: Site, privacy: UpdatePrivacy, examples: int, *, adaptive: bool = False) -> None:
        self.site, self.privacy, self.examples, self.adaptive = site, privacy, examples, adaptive
        self._source = NoiseSource.secure()
        self._draws = 0

    def __call__(self, order: Message) -> Contribution:
        """Train, clip, and, with local noise, noise. Raises `MessageError` for other work: its result would not be private."""
        if order.kind != "train":
            raise MessageError(f"this site contributes nothing but private updates, got {order.kind!r}")
        self.privacy = agreed_norm(self.privacy, order, adaptive=self.adaptive)
        trained = self.site.answer(order)
        known = {LOSS: trained.fields.get("loss", 0.0), **trained.fields.get("metrics", {})}
        vector = clip_contribution(trained.tensors, known, self.privacy, weight=weight_of(order, self.examples))
        self._draws += 1
        return add_local_noise(vector, self.privacy, self._source, self._draws) if self.privacy.mode == "local" else vector

    def draw(self, layout: Layout, round: int) -> Mapping[str, Integers]:
        """The site's share of distributed noise, for the clipping norm of the round. Raises `PrivacyError` for another range than agreed."""
        shapes = {e.name: e.shape for e in layout.entries if not e.is_number}
        agreed = {e.name: e for e in private_layout(shapes, self.privacy, layout.sites).entries}
        for entry in layout.entries:
            known = agreed.get(entry.name)
            if known is None or not all(
                math.isclose(a, b, rel_tol=1e-6) for a, b in ((entry.bound, known.bound), (entry.noise, known.noise))
            ):
                raise PrivacyError(f"{entry.name} has bound {entry.bound:g} and noise {entry.noise:g} in the sum: not what was agreed")
        return DistributedNoise(self.privacy).draw(layout, round) if self.privacy.mode == "distributed" else {}


class PrivateSite:
    """A `Site` with local noise, without secure aggregation: its answer to "train" is clipped and noised, and has no loss or metrics in clear."""

    def __init__(
        self, site: Site, privacy: UpdatePrivacy, examples: int, *, adaptive: bool = False, most: int | None = None, run: str = "",
        memory: Path | None = None,
    ) -> None:  # fmt: skip
        """`most`: rounds in which it takes part at most, over restarts (None: not limited); `run`, `memory`: as of `SecureSite`."""
        if privacy.mode != "local":
            raise RecipeError([Problem("federate.privacy.mode", f"is {privacy.mode}: only local noise is added by a single site.")])
        self.site, self.contribution = site, PrivateContribution(site, privacy, examples, adaptive=adaptive)
        self.most, self.run, self.memory = most, run, memory
        self.answered = _answered(memory, run) if memory is not None and memory.exists() else 0

    def answer(self, message: Message) -> Message:
        """Return the answer, private if the message asks for training. "evaluate" is refused: its figures would be exact."""
        if message.kind == "evaluate":
            raise MessageError("this site gives no exact figures of its held-out examples to the coordinator")
        if message.kind != "train":
            return self.site.answer(message)
        if self.most is not None and self.answered >= self.most:
            raise MessageError(f"this site: {spent_rounds(self.answered)}")
        private = self.contribution(message)
        self.answered += 1
        if self.memory is not None:  # before anything leaves
            atomic_write(self.memory, json.dumps({"run": self.run, "answered": self.answered}) + "\n")
        fields = {"examples": self.contribution.examples, "steps": 1, "private": dict(private.numbers)}
        return message.answer("trained", fields, {n: t.to(message.tensors[n].dtype) for n, t in private.tensors.items()})


def _answered(memory: Path, run: str) -> int:
    """In how many rounds of this run a site took part; 0 for another one. Raises `RunError`."""
    try:
        kept = json.loads(memory.read_text())
        return int(kept["answered"]) if kept["run"] == run else 0
    except (ValueError, TypeError, KeyError, OSError):
        raise RunError(
            f"{memory} does not say in how many rounds this site took part: restore it, or start the run again under another name."
        ) from None


def weight_of(order: Message, declared: int) -> float:
    """The weight of a site in [0, 1]: from the number of examples that it declared, which is public, and the cap."""
    most: Any = order.fields.get("max_examples")
    return 1.0 if order.fields.get("weight_by") == "equal" or not most else min(declared, most) / most


def _cap(request: RoundRequest) -> int | None:
    return request.weighting.max_examples if request.weighting.by == "examples" else None


def agreed_norm(privacy: UpdatePrivacy, order: Message, *, adaptive: bool) -> UpdatePrivacy:
    """The settings with the clipping norm of the round. Raises `MessageError` if it is not the agreed one, and must be."""
    norm = order.fields.get(CLIP, privacy.clip_norm)
    if (
        not isinstance(norm, int | float)
        or not 0 < norm < math.inf
        or not (adaptive or math.isclose(norm, privacy.clip_norm, rel_tol=1e-9))
    ):
        raise MessageError(f"the clipping norm of this round is {norm}, agreed was {privacy.clip_norm:g}")
    return replace(privacy, clip_norm=float(norm))


def refuse_control(request: RoundRequest) -> None:
    """Raise `RecipeError` for a strategy whose control variates would not be noised."""
    if request.extra:
        raise RecipeError(
            [Problem("federate.strategy", "has control variates, which private updates do not cover. Use fedavg, fedprox or fedadam.")]
        )
