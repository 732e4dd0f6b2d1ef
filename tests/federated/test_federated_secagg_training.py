"""Secure and private sums in federated training: the model is the same as in the clear, within the quantisation, or with the stated noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from federated_jobs import Everything, Points, logistic, weights
from tauon.config import parse
from tauon.data import Loader
from tauon.errors import RecipeError, RunError, TauonError, TrainingError
from tauon.federated import (
    Failure,
    Limits,
    LocalTraining,
    Message,
    PlainSummation,
    RoundRequest,
    Rounds,
    Site,
    Summation,
    TrainingSite,
    Weighting,
    federate,
)
from tauon.federated.config import FederateConfig
from tauon.federated.private import (
    WITHIN,
    AdaptiveClip,
    PrivateContribution,
    PrivateSecureSummation,
    PrivateSite,
    PrivateSummation,
    UpdatePrivacy,
)
from tauon.federated.protection import Who, protect
from tauon.federated.secagg import Identity, Layout, PinnedKeys, RoundFailed, SecureSite, SecureSummation, SiteRules, site_contribution
from tauon.federated.simulation import ByQuantity, ClientRows
from tauon.federated.strategies import CoordinateMedian, FedAvg, Scaffold, StrategyConfig
from tauon.train import TrainJob, train

DATA = Points(120)
NAMES = list("abcdefghi")
PARTS = dict(zip(NAMES, ByQuantity(shares=(7, 6, 5, 4, 3, 2, 1, 4, 3)).split(9, labels=DATA.y.numpy(), seed=0), strict=True))
CAP = Weighting(max_examples=20)


def training(name: str) -> TrainingSite:
    rows = ClientRows(DATA, PARTS[name])
    return TrainingSite(LocalTraining(logistic(Loader(rows, batch=5, seed=1)), len(rows), data=rows.batches), held_out=rows.batches)


class Sites:
    """Sites in this process, by messages as bytes. `lost`: (name, kind, attempt of asking it) that does not answer."""

    def __init__(self, ends: Mapping[str, Site]) -> None:
        self.ends = dict(ends)
        self.lost: set[tuple[str, str]] = set()
        self.seen: list[bytes] = []

    def sites(self) -> list[str]:
        return sorted(self.ends)

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        answers: dict[str, Message | Failure] = {}
        for name, message in messages.items():
            try:
                if (name, message.kind) in self.lost:
                    answers[name] = Failure("no answer")
                    continue
                raw = self.ends[name].answer(Message.from_bytes(message.to_bytes())).to_bytes()
                self.seen.append(raw)
                answers[name] = Message.from_bytes(raw)
            except TauonError as err:
                answers[name] = Failure(str(err))
        return answers


def secure(privacy: UpdatePrivacy | None = None, *, adaptive: bool = False, names: list[str] = NAMES) -> Sites:
    identities = {n: Identity.generate() for n in names}
    keys = {n: i.public for n, i in identities.items()}
    ends = {}
    for n in names:
        inner = training(n)
        private = None if privacy is None else PrivateContribution(inner, privacy, len(PARTS[n]), adaptive=adaptive)
        rules = SiteRules() if privacy is None else SiteRules(fewest=privacy.fewest)
        ends[n] = SecureSite(n, identities[n], PinnedKeys(keys), private or site_contribution(inner), run="r", rules=rules, noise=private)
        ends[n].others = inner
    return Sites(ends)


def trained(
    transport: Any,
    summation: Summation | None = None,
    *,
    count: int = 3,
    strategy: StrategyConfig | None = None,
    events: Any = None,
    **more: Any,
) -> TrainJob:
    rounds = Rounds(**({"count": count, "steps": 4, "weighting": CAP} | more))
    job = federate(logistic(Everything(DATA)), transport, strategy or FedAvg(), rounds, summation=summation, on_event=events)
    return train(job)


def distance(one: TrainJob, other: TrainJob) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


def test_secure_training_is_training_in_the_clear_within_the_quantisation() -> None:
    clear = trained(Sites({n: training(n) for n in NAMES}))
    summation, seen = SecureSummation("r", PinnedKeys()), []
    summation.progress = lambda what, done, total: seen.append((what, done, total))
    hidden = trained(secure(), summation)
    assert [f"secagg/{s}" for s in ("keys", "shares", "masked", "agree", "unmask")] * 3 == [what for what, _, _ in seen]
    assert {(done, total) for _, done, total in seen} == {(9, 9)}
    assert distance(clear, logistic(Everything(DATA))) > 0.05
    assert distance(clear, hidden) < 1e-6


def test_sites_that_vanish_in_a_round_are_left_out_and_come_back() -> None:
    events: list[tuple[str, Mapping[str, Any]]] = []
    sites, plain = secure(), Sites({n: training(n) for n in NAMES})
    sites.lost = {("b", "secagg/keys"), ("f", "secagg/masked")}
    plain.lost = {("b", "train"), ("f", "train")}
    hidden = trained(sites, SecureSummation("r", PinnedKeys()), count=2, events=lambda kind, fields: events.append((kind, fields)))
    assert distance(hidden, trained(plain, count=2)) < 1e-6
    failed = [fields["failed"] for kind, fields in events if kind == "federated_round"]
    assert [set(f) for f in failed] == [{"b", "f"}, {"b", "f"}] and failed[0]["f"] == "masked: no answer"


def test_a_round_below_the_threshold_is_repeated_and_said_so() -> None:
    events: list[tuple[str, Mapping[str, Any]]] = []
    sites = secure()
    sites.lost = {(n, "secagg/masked") for n in "abcde"}

    def on_event(kind: str, fields: Mapping[str, Any]) -> None:
        events.append((kind, fields))
        if kind == "round_repeated":
            sites.lost = set()

    sites_again = trained(sites, SecureSummation("r", PinnedKeys()), count=1, events=on_event)
    (_, repeated), (_, good) = [e for e in events if e[0] in ("round_repeated", "federated_round")]
    assert repeated["reason"].startswith("0 good answers of 9 sites") and "masked: no answer" in str(repeated["failed"])
    assert (good["attempt"], good["good"]) == (1, 9)
    assert distance(sites_again, trained(Sites({n: training(n) for n in NAMES}), count=1)) < 1e-6


def test_sites_that_meet_for_the_first_time_pin_each_other_before_they_train() -> None:
    sites, events = secure(), []
    for name in NAMES:
        end: Any = sites.ends[name]
        end.pinned, end.rules = PinnedKeys({name: end.identity.public}), SiteRules(first_use=True)
    summation = SecureSummation("r", PinnedKeys())
    trained(sites, summation, count=8, fraction=0.5, events=lambda kind, _: events.append(kind))  # 4 of 9 sites a round
    assert events.count("federated_round") == 8 and "round_repeated" not in events


@pytest.mark.parametrize("groups", [False, True])
def test_a_sum_of_too_few_sites_for_the_round_is_not_revealed(groups: bool) -> None:
    """The round is repeated with the same weights: the difference of its two sums would be the update of the site that was missing."""
    sites = secure()
    sites.lost = {("b", "secagg/masked")}
    shown: list[int] = []

    def on_event(kind: str, fields: Mapping[str, Any]) -> None:
        if kind in ("round_repeated", "federated_round"):
            shown.append(sum(b"seed_shares" in raw for raw in sites.seen))
            assert kind == "federated_round" or fields["failed"]["b"] == "masked: no answer"
            sites.lost = set()

    more: dict[str, Any] = {"strategy": CoordinateMedian(), "group": 3} if groups else {}
    trained(sites, SecureSummation("r", PinnedKeys()), count=1, min_answers=9, events=on_event, **more)
    assert shown == [0, 9]


def test_a_coordinator_that_was_restarted_continues_with_higher_rounds() -> None:
    sites = secure()
    trained(sites, SecureSummation("r", PinnedKeys()), count=3)
    again = SecureSummation("r", PinnedKeys())
    trained(sites, again, count=2)
    assert again.newest == 5


def test_robust_rules_get_the_sums_of_groups() -> None:
    with pytest.raises(RecipeError, match="secure aggregation hides"):
        trained(secure(), SecureSummation("r", PinnedKeys()), strategy=CoordinateMedian())
    hidden = trained(secure(), SecureSummation("r", PinnedKeys()), strategy=CoordinateMedian(), group=3, count=2)
    clear = trained(Sites({n: training(n) for n in NAMES}), PlainSummation(), strategy=CoordinateMedian(), group=3, count=2)
    assert distance(hidden, clear) < 1e-6


def test_control_variates_are_summed_too() -> None:
    hidden = trained(secure(), SecureSummation("r", PinnedKeys()), strategy=Scaffold(), count=2)
    assert distance(hidden, trained(Sites({n: training(n) for n in NAMES}), strategy=Scaffold(), count=2)) < 1e-5


def test_nothing_about_one_site_is_sent_in_clear() -> None:
    sites = secure()
    trained(sites, SecureSummation("r", PinnedKeys()), count=1)
    everything = b"".join(sites.seen)
    assert b"trained" not in everything and b'"loss"' not in everything and b"secagg/masked" in everything


def test_metrics_are_summed_without_showing_those_of_a_site() -> None:
    sites = secure()
    summation = SecureSummation("r", PinnedKeys())
    job = trained(sites, summation, count=1)
    sites.seen.clear()
    tensors = {n: t.clone() for n, t in weights(job).items()}
    order = {n: Message("evaluate", 1, "n", {"session": sites.ends[n].others._session, "fine_tune": 0}, tensors) for n in NAMES}  # type: ignore[attr-defined]
    found = summation.evaluate(sites, order, ["loss"], most_examples=50)
    each = {n: sites.ends[n].others.answer(order[n]).fields for n in NAMES}  # type: ignore[attr-defined]
    expected = sum(e["metrics"]["loss"] * e["examples"] for e in each.values()) / sum(e["examples"] for e in each.values())
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert b'"metrics"' not in b"".join(sites.seen) and b"evaluated" not in b"".join(sites.seen)
    with pytest.raises(RoundFailed, match="does not measure f1"):
        summation.evaluate(sites, order, ["f1"], most_examples=50)


def test_other_work_is_not_summed() -> None:
    for contribute in (site_contribution(training("a")), PrivateContribution(training("a"), central(), 5)):
        with pytest.raises(TauonError, match="'join'"):
            contribute(Message("join", 1, "n", {}))


# ------------------------------------------------------------------------------------------------ what a site has agreed to


PRIVACY = {"mode": "central", "clip_norm": 0.2, "noise_multiplier": 1e-9, "delta": 1e-3}


def protected(privacy: Mapping[str, Any] | None = None, **more: Any) -> Sites:
    """Sites as a recipe protects them, with the range of its sum and its weights."""
    tree = {"rounds": 3, "sites": 9, "weighting": {"max_examples": 20}, "secure_aggregation": {}, "privacy": privacy, **more}
    config = parse(FederateConfig, tree)
    identities = {n: Identity.generate() for n in NAMES}
    keys = {n: i.public for n, i in identities.items()}
    return Sites({n: protect(training(n), config, Who(n, len(PARTS[n]), 9, "r", identities[n], PinnedKeys(keys))) for n in NAMES})


@pytest.mark.parametrize("private", [False, True])
def test_a_site_adds_to_a_sum_with_the_range_and_the_weights_of_its_recipe_only(private: bool) -> None:
    def summation(factor: float = 1.0) -> SecureSummation:
        made = PrivateSecureSummation("r", PinnedKeys(), central()) if private else SecureSummation("r", PinnedKeys())
        own = made.layout

        def layout(order: Message, request: RoundRequest, sites: int) -> Layout:
            honest = own(order, request, sites)
            return replace(honest, entries=tuple(replace(e, bound=e.bound * factor) for e in honest.entries))

        made.layout = layout  # type: ignore[method-assign]
        return made

    trained(protected(PRIVACY if private else None), summation(), count=1)
    for factor in (1e-6, 1e9):  # values beyond the bound would be told; values below a step would vanish
        with pytest.raises(TrainingError, match="in the sum(, agreed were|: not what was agreed)"):
            trained(protected(PRIVACY if private else None), summation(factor), count=1, attempts=1)
    for weighting in (Weighting(max_examples=10**9), Weighting(by="equal", max_examples=20)):
        with pytest.raises(TrainingError, match="this site would be weighted with"):
            trained(protected(PRIVACY if private else None), summation(), count=1, attempts=1, weighting=weighting)


def test_the_limit_of_the_norm_is_kept_by_each_site_and_checked_of_their_mean() -> None:
    for sites, said in ((protected(max_norm=1e-3), "federate.max_norm"), (protected(), "a site did not keep to it")):
        with pytest.raises(TrainingError, match=said):
            trained(sites, SecureSummation("r", PinnedKeys()), count=1, attempts=1, limits=Limits(1e-3))
    trained(protected(max_norm=50.0), SecureSummation("r", PinnedKeys()), count=1, attempts=1, limits=Limits(50.0))


def test_a_site_measures_with_the_weights_of_its_recipe_only() -> None:
    sites, summation = protected(), SecureSummation("r", PinnedKeys())
    job = trained(sites, summation, count=1)
    tensors = {n: t.clone() for n, t in weights(job).items()}
    order = {n: Message("evaluate", 1, "n", {"session": sites.ends[n].others._session}, tensors) for n in NAMES}  # type: ignore[attr-defined]
    assert summation.evaluate(sites, order, ["loss"], most_examples=20)["loss"] > 0
    with pytest.raises(RoundFailed, match="would be weighted with most_examples 1000000000, agreed is 20"):
        summation.evaluate(sites, order, ["loss"], most_examples=10**9)


# ------------------------------------------------------------------------------------------------ privacy


def central(**changes: Any) -> UpdatePrivacy:
    return UpdatePrivacy(**({"mode": "central", "clip_norm": 0.2, "noise_multiplier": 1e-9, "sites": 9} | changes))


def averaged(norm: float, factor: Callable[[str], float]) -> dict[str, torch.Tensor]:
    """Sum of the clipped updates times `factor`, one round from the start, computed site by site."""
    start = weights(logistic(Everything(DATA)))
    total = {n: torch.zeros_like(t) for n, t in start.items()}
    for name in NAMES:
        alone = weights(trained(Sites({name: training(name)}), count=1, weighting=Weighting(by="equal")))
        update = {n: alone[n] - start[n] for n in start}
        size = float(torch.cat([t.flatten() for t in update.values()]).norm())
        total = {n: t + update[n] * min(1.0, norm / size) * factor(name) for n, t in total.items()}
    return {n: start[n] + t for n, t in total.items()}


@pytest.mark.parametrize("kind", ["clear", "secure", "distributed"])
def test_without_noise_to_speak_of_it_is_the_mean_of_clipped_updates(kind: str) -> None:
    weight = {n: min(len(PARTS[n]), 20) / 20 for n in NAMES}
    expected = averaged(0.2, lambda n: weight[n] / sum(weight.values()))
    if kind == "clear":
        job = trained(Sites({n: training(n) for n in NAMES}), PrivateSummation(central()), count=1)
    else:
        p = central(noise_multiplier=1e-5) if kind == "secure" else central(mode="distributed", noise_multiplier=1e-5, contributors=5)
        job = trained(secure(p), PrivateSecureSummation("r", PinnedKeys(), p), count=1)
    assert all(torch.allclose(t, expected[n], atol=2e-6) for n, t in weights(job).items())


@pytest.mark.parametrize("kind", ["central", "central and secure", "distributed", "local"])
def test_private_training_has_the_stated_noise(kind: str) -> None:
    std = 30.0 * 0.2
    p = central(noise_multiplier=30.0, numbers={"loss": 5.0})
    if kind == "central":
        job = trained(Sites({n: training(n) for n in NAMES}), PrivateSummation(p), count=1)
    elif kind == "local":
        p = replace(p, mode="local")
        job = trained(Sites({n: PrivateSite(training(n), p, len(PARTS[n])) for n in NAMES}), PrivateSummation(p), count=1)
        std *= 9**0.5
    else:
        p = p if kind != "distributed" else replace(p, mode="distributed", contributors=9)
        job = trained(secure(p), PrivateSecureSummation("r", PinnedKeys(), p), count=1)
    start = weights(logistic(Everything(DATA)))
    moved = torch.cat([(t - start[n]).flatten() for n, t in weights(job).items()])
    expected = std * p.norm / sum(min(len(PARTS[n]), 20) / 20 for n in NAMES)
    assert 0.3 * expected < float(moved.square().mean().sqrt()) < 3 * expected  # few parameters


def test_local_sites_send_no_exact_figures() -> None:
    p = replace(central(noise_multiplier=30.0), mode="local")
    sites = Sites({n: PrivateSite(training(n), p, len(PARTS[n])) for n in NAMES})
    trained(sites, PrivateSummation(p), count=1)
    assert b'"loss"' not in b"".join(sites.seen)
    with pytest.raises(TauonError, match="no exact figures"):
        sites.ends["a"].answer(Message("evaluate", 1, "n"))


@pytest.mark.parametrize("loss", [10**400, "x", True, None])
def test_private_numbers_that_make_no_sense_are_refused(loss: Any) -> None:
    p = replace(central(noise_multiplier=30.0), mode="local", numbers={"loss": 5.0})
    ends: dict[str, Any] = {n: PrivateSite(training(n), p, len(PARTS[n])) for n in NAMES}

    class Odd:
        def answer(self, message: Message) -> Message:
            answer = ends["a"].answer(message)
            return replace(answer, fields={**answer.fields, "private": {"loss": loss}}) if message.kind == "train" else answer

    events: list[Mapping[str, Any]] = []
    trained(Sites({**ends, "a": Odd()}), PrivateSummation(p), count=1, events=lambda _, fields: events.append(fields))
    assert [e["refused"] for e in events if "refused" in e] == [{"a": "private numbers that are not finite"}]


def test_a_site_with_local_noise_answers_no_more_rounds_than_were_agreed(tmp_path: Path) -> None:
    p, memory = replace(central(noise_multiplier=30.0), mode="local"), tmp_path / "round.json"

    def start(run: str = "r") -> PrivateSite:
        return PrivateSite(training("a"), p, len(PARTS["a"]), most=2, run=run, memory=memory)

    tensors = {n: t.clone() for n, t in training("a").local.travels.items()}

    def ask(site: PrivateSite, number: int) -> Message:
        session = site.answer(Message("join", fields={"identity": {}})).fields["session"]
        return site.answer(Message("train", number, "n", {"steps": 1, "session": session}, tensors))

    ask(start(), 1)
    ask(site := start(), 2)
    for spent in (site, start()):
        with pytest.raises(TauonError, match="privacy of 2 rounds is spent"):
            ask(spent, 3)
    ask(start("another recipe"), 1)
    memory.write_text("{")
    with pytest.raises(RunError, match="does not say in how many rounds"):
        start()


def test_noise_of_the_sites_is_counted_as_soon_as_it_may_be_known() -> None:
    local = replace(central(noise_multiplier=30.0), mode="local")
    sites, summation = Sites({n: PrivateSite(training(n), local, len(PARTS[n])) for n in NAMES}), PrivateSummation(local)
    counted: list[int] = []

    def killed(messages: Mapping[str, Message], *, timeout: float) -> Any:
        if next(iter(messages.values())).kind == "train":
            counted.append(summation.released)
            raise KeyboardInterrupt
        return Sites.ask(sites, messages, timeout=timeout)

    sites.ask = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trained(sites, summation, count=1)
    assert counted == [1]

    p = replace(local, mode="distributed", contributors=5)
    hidden, secret = secure(p), PrivateSecureSummation("r", PinnedKeys(), p)
    hidden.lost = {(n, "secagg/agree") for n in NAMES}  # nothing is known
    with pytest.raises(TrainingError):
        trained(hidden, secret, count=1, attempts=2)
    assert secret.released == 0
    hidden.lost = {(n, "secagg/unmask") for n in NAMES}  # they answered, perhaps, but it did not arrive
    with pytest.raises(TrainingError):
        trained(hidden, secret, count=1, attempts=2)
    assert secret.released == 2


def test_sampled_sites_are_drawn_secretly_and_a_round_without_any_is_noise() -> None:
    events: list[Mapping[str, Any]] = []
    p = central(sampling="poisson", rate=0.3, noise_multiplier=1.0)
    sites = Sites({n: training(n) for n in NAMES})
    summation = PrivateSummation(p)
    trained(sites, summation, count=12, events=lambda kind, fields: events.append(fields) if kind == "federated_round" else None)
    asked = sum(b'"kind": "trained"' in raw for raw in sites.seen)
    assert 12 < asked < 55 and summation.released == 12
    assert all(set(e["sites"]) == set(NAMES) for e in events)
    with pytest.raises(RecipeError, match="Set fixed-size, or full"):
        PrivateSecureSummation("r", PinnedKeys(), p)
    fixed = replace(p, sampling="fixed-size", rate=0.6)
    events.clear()
    hidden = secure(fixed)
    trained(hidden, PrivateSecureSummation("r", PinnedKeys(), fixed), count=2, events=lambda kind, fields: events.append(fields))
    assert [len(e["sites"]) for e in events if "sites" in e] == [9, 9]
    assert sum(b"secagg/masked" in raw for raw in hidden.seen) == 2 * 5


def test_the_clipping_norm_moves_and_is_kept_in_checkpoints() -> None:
    p = central(clip_norm=1e-3, numbers={WITHIN: 0.5}, noise_multiplier=0.01)
    summation = PrivateSummation(p, AdaptiveClip(rate=1.0))
    trained(Sites({n: training(n) for n in NAMES}), summation, count=6)
    assert summation.privacy.clip_norm > 3e-3
    again = PrivateSummation(p, AdaptiveClip())
    again.load(summation.tensors())
    assert (again.privacy.clip_norm, again.released) == (summation.privacy.clip_norm, 6)
    hidden = replace(p, mode="distributed", contributors=5, noise_multiplier=0.05)
    moving = PrivateSecureSummation("r", PinnedKeys(), hidden, adaptive=AdaptiveClip(rate=1.0))
    trained(secure(hidden, adaptive=True), moving, count=4)
    assert moving.privacy.clip_norm > 2e-3
    with pytest.raises(TauonError, match="agreed was 0.001"):
        secure(hidden).ends["a"].contribute(Message("train", 1, "n", {"clip_norm": 5.0}))  # type: ignore[attr-defined]


def test_what_would_not_be_covered_is_refused() -> None:
    with pytest.raises(RecipeError, match="control variates"):
        trained(Sites({n: training(n) for n in NAMES}), PrivateSummation(central()), strategy=Scaffold(), count=1)
    with pytest.raises(RecipeError, match="only a secure sum"):
        PrivateSummation(central(mode="distributed", contributors=5))
    with pytest.raises(RecipeError, match="adaptive clipping needs"):
        PrivateSummation(central(), AdaptiveClip())
    with pytest.raises(RecipeError, match="a secure sum needs 3 in each round"):
        PrivateSecureSummation("r", PinnedKeys(), central(sampling="fixed-size", rate=0.25))
    with pytest.raises(RecipeError, match="only local noise"):
        PrivateSite(training("a"), central(), 5)
    with pytest.raises(RecipeError, match="give one sum"):
        PrivateSummation(central()).drawn(RoundRequest({}, [["a"], ["b"]], {}, 1.0))
