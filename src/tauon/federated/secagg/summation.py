"""The seam of the coordinator (`federated.summation`), secured: groups of sites answer with masked values, and only each group's sum is known.

At the site, `site_contribution` makes what is summed from the answer of its training, which does not leave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from tauon.federated.messages import Failure, Message, MessageError, Site, Transport
from tauon.federated.secagg.identity import PinnedKeys
from tauon.federated.secagg.joining import join_sites
from tauon.federated.secagg.quantise import Contribution, Entry, Integers, Layout, Total
from tauon.federated.secagg.server import SecureSettings, SecureSum, secure_sum
from tauon.federated.secagg.session import FEWEST, Refused, RoundFailed, SecureAggregationError, Session
from tauon.federated.summation import KNOWN, LOSS, WEIGHT, Collected, RoundRequest, limited, mean_of_sum, tensor_bytes, weighted_vector
from tauon.federated.updates import CONTROL, Update, norm_of

__all__ = ["AgreedRange", "SecureSummation", "site_contribution"]

LARGEST_LOSS = 1e4
"""A larger loss of a site counts as this one."""
LARGEST_METRIC = 100.0
"""A larger metric of a site counts as this one."""
MEASURED, MOST = "measured", "most_examples"
"""Fields of a request to evaluate: names of the metrics, and the number of examples at which a site's weight is 1."""


class AgreedRange:
    """The `noise` of a site that adds none: refuses bounds that were not agreed.

    With a bound below its values a site would say by its refusal how large they are, and with steps so coarse that most values are rounded to zero the
    sum would be that of the few that are not.

    Args:
        bound: largest absolute value of a number of an update (`SecureSummation`).
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def draw(self, layout: Layout, round: int) -> Mapping[str, Integers]:
        """Return no noise. Raises `Refused` for other bounds than agreed."""
        known = {WEIGHT: 1.0, KNOWN: 1.0, LOSS: LARGEST_LOSS}
        for entry in layout.entries:
            bound = known.get(entry.name, LARGEST_METRIC if entry.is_number else self.bound)
            if entry.noise or not math.isclose(entry.bound, bound, rel_tol=1e-9):
                raise Refused(f"{entry.name} has bound {entry.bound:g} and noise {entry.noise:g} in the sum, agreed were {bound:g} and 0")
        return {}


def site_contribution(site: Site) -> Callable[[Message], Contribution]:
    """Return what `SecureSite` calls: it has `site` train, and returns its weighted update, weight and loss (`weighted_vector`); or has it evaluate, and
    returns its weighted metrics. Raises `MessageError` for other work.

    Args:
        site: `TrainingSite`. Its answers to "train" and "evaluate" stay here.
    """

    def contribute(order: Message) -> Contribution:
        if order.kind == "evaluate":
            return weighted_metrics(order, site.answer(order))
        if order.kind != "train":
            raise MessageError(f"{order.kind!r} is not work whose result is summed: expected train or evaluate")
        vector = weighted_vector(order, site.answer(order))
        vector[LOSS] = vector[LOSS].clamp(-LARGEST_LOSS, LARGEST_LOSS)
        return Contribution(vector)

    return contribute


def weighted_metrics(order: Message, evaluated: Message) -> Contribution:
    """Return the metrics that were asked for, times the site's weight, its examples / `MOST` (at most 1). Raises `MessageError` if one is missing."""
    match order.fields, evaluated.fields:
        case {"measured": list(names), "most_examples": int(most)}, {"examples": int(examples), "metrics": dict(metrics)} if most > 0:
            missing = [name for name in names if not isinstance(metrics.get(name), int | float)]
            if missing:
                raise MessageError(f"this site does not measure {', '.join(map(str, missing[:3]))}")
            weight = min(examples, most) / most
            each = {str(name): weight * min(LARGEST_METRIC, max(-LARGEST_METRIC, float(metrics[name]))) for name in names}
            return Contribution({}, {WEIGHT: weight, **each})
    raise MessageError("a request to evaluate, or its answer, that cannot be read")


class SecureSummation:
    """A `Summation` that reveals the sums of groups of at least 3 sites.

    Args:
        run: identifier of the run, as the sites have it.
        pinned: identity keys of the sites, filled in when they join.
        bound: largest absolute value of a number of an update; a site whose update goes beyond it does not take part. The step of the fixed-point
            numbers is about 2^-31 times this times the number of sites.
        settings: thresholds and timeouts.
    """

    single: ClassVar[bool] = False
    smallest_group: ClassVar[int] = FEWEST

    def __init__(self, run: str, pinned: PinnedKeys, *, bound: float = 16.0, settings: SecureSettings | None = None) -> None:
        self.run, self.pinned, self.bound = run, pinned, bound
        self.settings = replace(settings or SecureSettings(), pinned=pinned)
        self.newest = 0
        """Number of the newest round that any site took part in."""
        self.progress: Callable[[str, int, int], None] | None = None
        """Called with the stages, how many sites answered, and how many were asked."""
        self._joined: dict[str, frozenset[str]] = {}
        """Sites that joined, and whose keys each has compared."""

    def collect(self, transport: Transport, request: RoundRequest) -> Collected:
        """See `Summation.collect`."""
        result = Collected()
        result.refused |= self._join(transport, list(request.messages), request.timeout)
        machines = []
        for group in request.groups:
            names = [name for name in group if name in self._joined]
            try:
                machines.append(self._start(names, request))
            except SecureAggregationError as err:
                result.failed |= {name: str(err) for name in names}
        self.newest += 1
        self._drive(transport, machines, request, result)
        for name in result.failed:  # it may have been restarted: it joins again
            self._joined.pop(name, None)
        return result

    def evaluate(
        self, transport: Transport, messages: Mapping[str, Message], metrics: Sequence[str], *, most_examples: int, timeout: float = 600.0
    ) -> dict[str, float]:
        """Return the means of the sites' metrics, weighted by their held-out examples; a single site's are not known.

        Args:
            transport: to the sites.
            messages: the request to evaluate of each site ("evaluate", with the weights).
            metrics: their names.
            most_examples: a site counts as at most this many examples; near the largest number, for the precision of the others.
            timeout: seconds for the evaluation.

        Raises:
            RoundFailed: too few sites are left.
        """
        self._join(transport, list(messages), timeout)
        names = [name for name in messages if name in self._joined]
        more = {MEASURED: list(metrics), MOST: int(most_examples)}
        work = {name: replace(messages[name], fields={**messages[name].fields, **more}) for name in names}
        bounds = {WEIGHT: 1.0, **dict.fromkeys(metrics, LARGEST_METRIC)}
        layout = Layout(max(1, len(names)), tuple(Entry(name, (), bound, is_number=True) for name, bound in bounds.items()))
        self.newest += 1
        settings = replace(self.settings, work_timeout=timeout)
        total = secure_sum(transport, names, work, layout, Session(self.run, self.newest), settings, self.progress)
        if not total.numbers[WEIGHT] > 0:
            raise RoundFailed("no site has held-out examples")
        return {name: total.numbers[name] / total.numbers[WEIGHT] for name in metrics}

    def _join(self, transport: Transport, names: Sequence[str], timeout: float) -> dict[str, str]:
        """Let sites join that have not, or not with all of these; return those that are refused."""
        if all(set(names) <= self._joined.get(name, frozenset()) for name in names):
            return {}
        joined = join_sites(transport, names, self.pinned, run=self.run, timeout=min(timeout, self.settings.timeout))
        self._joined |= {name: self._joined.get(name, frozenset()).union(joined.names) for name in joined.names}
        for name in joined.refused:
            self._joined.pop(name, None)
        self.newest = max(self.newest, joined.newest)
        return joined.refused

    def _start(self, names: Sequence[str], request: RoundRequest) -> SecureSum:
        if len(names) < self.settings.fewest:
            raise SecureAggregationError(f"a group of {len(names)} sites that joined: a secure sum needs {self.settings.fewest}")
        work = {name: self.order(request.messages[name]) for name in names}
        layout = self.layout(work[names[0]], request, len(names))
        return SecureSum(names, work, layout, Session(self.run, self.newest + 1), replace(self.settings, work_timeout=request.timeout))

    def order(self, message: Message) -> Message:
        """What a site is asked to do."""
        return message

    def layout(self, order: Message, request: RoundRequest, sites: int) -> Layout:
        """What is summed: an update, its control variates, the weight, the weighted loss."""
        shapes = {name: tuple(t.shape) for name, t in order.tensors.items() if not name.startswith(CONTROL)}
        shapes |= {name: shapes[name.removeprefix(CONTROL)] for name in request.extra}
        entries = [Entry(name, shape, self.bound) for name, shape in shapes.items()]
        return Layout(sites, (*entries, Entry(WEIGHT, (1,), 1.0), Entry(LOSS, (1,), LARGEST_LOSS), Entry(KNOWN, (1,), 1.0)))

    def _drive(self, transport: Transport, machines: Sequence[SecureSum], request: RoundRequest, result: Collected) -> None:
        """Take all groups through their stages, side by side. None is unmasked before it is known that together they are enough for the round."""
        running = list(machines)
        while running:
            turn = [m for m in running if m.stage != "agree"]
            if not turn:
                turn, names = list(running), [name for m in running for name in m.alive]
                if not request.enough(len(names), len(running)):
                    result.failed |= dict.fromkeys(names, f"{len(names)} sites are too few for the round: the sum was not revealed")
                    result.failed |= {name: why for m in running for name, why in m.lost.items()}
                    return
            if any(m.stage == "unmask" for m in turn):
                self.revealing()
            asked = {id(m): m.requests() for m in turn}
            works = any(m.stage == "keys" for m in turn)
            messages = {name: message for part in asked.values() for name, message in part.items()}
            answers = transport.ask(messages, timeout=request.timeout if works else self.settings.timeout)
            if self.progress is not None:
                stages = "+".join(sorted({m.stage for m in turn}))
                self.progress(f"secagg/{stages}", sum(isinstance(a, Message) for a in answers.values()), len(messages))
            result.received_bytes += sum(tensor_bytes(a) for a in answers.values() if isinstance(a, Message))
            for machine in turn:
                try:
                    machine.receive({name: answers.get(name, Failure("no answer")) for name in asked[id(machine)]})
                    if machine.total is not None:
                        running.remove(machine)
                        self._finish(machine.total, request, result, alone=len(request.groups) == 1)
                except (SecureAggregationError, MessageError) as err:
                    if machine in running:
                        running.remove(machine)
                    names = [n for group in request.groups if set(group) & set(asked[id(machine)]) for n in group]
                    result.failed |= {n: machine.lost.get(n, str(err)) for n in names if n not in result.refused}

    def revealing(self) -> None:
        """Called before sites are asked to unmask: whatever follows, the sums may be known from then on."""

    def _finish(self, total: Total, request: RoundRequest, result: Collected, *, alone: bool) -> None:
        result.updates.append(self.update(total, request, alone=alone))
        result.sites |= {name: {} for name in total.sites}
        result.failed |= total.lost

    def update(self, total: Total, request: RoundRequest, *, alone: bool) -> Update:
        """The weighted mean of a group. Raises `MessageError` if it is not finite, or has no weight."""
        version = next(iter(request.messages.values())).round
        mean = mean_of_sum(total.tensors, total.sites, version)
        unit = float(request.weighting.max_examples or 1) if request.weighting.by == "examples" else 1.0
        examples = mean.weight * unit
        factor = examples / request.weighting.divisor(examples, request.expected) if alone else 1.0
        if math.isinf(mean.loss):
            raise MessageError("the loss of the sites is not finite")
        most = request.limits.max_norm
        if most is not None and norm_of({n: t for n, t in mean.tensors.items() if not n.startswith(CONTROL)}) > most * (1 + 1e-6):
            raise MessageError(f"the mean of {len(total.sites)} updates is above the limit of {most:g}: a site did not keep to it")
        return replace(mean, tensors=limited(mean.tensors, factor), weight=examples)
