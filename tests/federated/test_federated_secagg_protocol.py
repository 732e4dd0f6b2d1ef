"""Secure sums: equal to the plain sum, also when sites vanish at any stage; too few are an error, and nothing is revealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from secure_sites import SHAPES, Group, Wire, group, session

from tauon.errors import RunError
from tauon.federated import Message
from tauon.federated.secagg import (
    Contribution,
    Refused,
    RoundFailed,
    SecureAggregationError,
    SecureSettings,
    SecureSite,
    SecureSum,
    Session,
    SiteRules,
    Total,
    layout_of,
    secure_sum,
)
from tauon.federated.secagg.keys import Announcement


def run(g: Group, lose: Mapping[str, Sequence[str]] | None = None, number: int = 1) -> Total:
    return secure_sum(Wire(g.sites, lose or {}), g.names, g.work, g.layout, session(number), g.settings)


def assert_is_sum(g: Group, total: Total, names: Sequence[str]) -> None:
    assert total.sites == tuple(names)
    for key, expected in g.expected(names).items():
        step = total.steps[key]
        assert (total.tensors[key].double() - expected).abs().max() <= step * len(names) / 2 + expected.abs().max() * 2**-23
    assert total.numbers["weight"] == sum(g.weights[n] for n in names)
    assert total.numbers["loss"] == pytest.approx(0.5 * total.numbers["weight"], abs=1e-4)


@pytest.mark.parametrize("count", [3, 4, 5, 10])
def test_the_sum_is_the_plain_sum_within_half_a_step_a_site(count: int) -> None:
    g = group(count, seed=count)
    total = run(g)
    assert_is_sum(g, total, g.names)
    assert total.lost == {}
    mean = g.expected(g.names)["w"] / sum(g.weights.values())
    assert torch.allclose(total.mean()["w"].double(), mean, atol=1e-5)


@pytest.mark.parametrize("count", [7, 10, 20])
@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "agree", "unmask"])
def test_thirty_percent_may_vanish_at_each_stage(count: int, stage: str) -> None:
    g = group(count, seed=1)
    gone = g.names[1 :: count // (count * 3 // 10)][: count * 3 // 10]
    assert len(gone) == count * 3 // 10
    total = run(g, {stage: gone})
    there = [n for n in g.names if n not in gone]
    assert_is_sum(g, total, there if stage in ("keys", "shares", "masked") else g.names)  # later their values have arrived
    assert set(total.lost) == (set(gone) if stage in ("keys", "shares", "masked") else set())


def test_thirty_percent_of_those_left_may_vanish_at_all_four_stages() -> None:
    g = group(10, seed=2)
    total = run(g, {"keys": g.names[:3], "shares": g.names[3:5], "masked": g.names[5:6], "unmask": g.names[6:7]})
    assert_is_sum(g, total, g.names[6:])
    assert sorted(total.lost) == g.names[:6] and total.lost["site-04"].startswith("shares: no answer")


@pytest.mark.parametrize(("stage", "left"), [("keys", 2), ("shares", 2), ("masked", 5), ("agree", 5), ("unmask", 4)])
def test_below_the_threshold_the_round_must_be_repeated(stage: str, left: int) -> None:
    g = group(10, seed=3)
    with pytest.raises(RoundFailed, match=r"round 1 must be repeated, under a new number: \d of 10 sites.*no answer") as failed:
        run(g, {stage: g.names[left:]})
    assert stage in str(failed.value)
    assert_is_sum(g, run(g, number=2), g.names)


def test_a_round_cannot_be_repeated_under_its_number() -> None:
    g = group(5)
    run(g)
    wire = Wire(g.sites)
    with pytest.raises(RoundFailed):
        secure_sum(wire, g.names, g.work, g.layout, session(1), g.settings)
    assert len(wire.refusals) == 5 and "took part in round 1 already" in wire.refusals["site-00"]


def test_many_rounds_and_different_sites_each() -> None:
    g = group(8, seed=4)
    for number in range(1, 6):
        names = g.names[number % 3 :]
        total = secure_sum(Wire(g.sites), names, g.work, g.layout, session(number), g.settings)
        assert_is_sum(g, total, names)


def test_a_graph_of_neighbours_gives_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("server", "site"):
        monkeypatch.setattr(f"tauon.federated.secagg.{module}.degree", lambda sites, share=0.5: min(6, sites - 1))
    g = group(16, seed=5)
    assert_is_sum(g, run(g), g.names)
    lost = {
        "masked": g.names[:1],
        "unmask": g.names[1:2],
    }  # two of a site's six neighbours at most, whatever graph was drawn: four are enough
    assert_is_sum(g, run(g, lost, number=2), g.names[1:])


def test_two_thirds_of_the_neighbours_may_be_asked_for() -> None:
    g = group(9, rules=SiteRules(share=2 / 3))
    settings = SecureSettings(g.pinned, share=2 / 3)
    total = secure_sum(Wire(g.sites, {"masked": g.names[:2]}), g.names, g.work, g.layout, session(), settings)
    assert_is_sum(g, total, g.names[2:])
    wire = Wire(g.sites)
    with pytest.raises(RoundFailed):
        secure_sum(wire, g.names, g.work, g.layout, session(2), g.settings)
    assert "more than 67%" in wire.refusals["site-00"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"w": torch.full((4, 3), 801.0), "b": torch.zeros(5)}, "reaches 801, beyond the agreed bound 800"),
        ({"w": torch.full((4, 3), float("nan")), "b": torch.zeros(5)}, "w is not finite"),
        ({"w": torch.full((4, 3), float("-inf")), "b": torch.zeros(5)}, "w is not finite"),
        ({"w": torch.zeros(3, 4), "b": torch.zeros(5)}, r"got shape \(3, 4\)"),
        ({"w": torch.zeros(4, 3, dtype=torch.int64), "b": torch.zeros(5)}, "expected floating point"),
        ({"w": torch.zeros(4, 3)}, "values to be summed are"),
    ],
)
def test_values_out_of_range_are_an_error_at_the_site_and_never_wrap(bad: dict[str, torch.Tensor], words: str) -> None:
    g = group(4, seed=6)
    g.sites["site-01"].contribute = lambda _: Contribution(bad, {"weight": 1.0, "loss": 1.0})
    wire = Wire(g.sites)
    with pytest.raises(SecureAggregationError, match=words):
        g.layout.encode(Contribution(bad, {"weight": 1.0, "loss": 1.0}))
    total = secure_sum(wire, g.names, g.work, g.layout, session(), g.settings)  # the others do without it
    assert_is_sum(g, total, ["site-00", "site-02", "site-03"])
    assert "masked" in total.lost["site-01"]


def test_sums_at_the_bound_of_all_sites_do_not_wrap() -> None:
    for count, bound in ((3, 1.0), (10, 3.7e5), (1000, 1e-12)):
        layout = layout_of({"w": (2,)}, count, norm=bound, weight=1.0)
        one = layout.encode(Contribution({"w": torch.tensor([bound, -bound], dtype=torch.float64)}, {"weight": 1.0}))
        total = layout.decode((one.astype(np.uint64) * count % 2**32).astype(np.uint32), tuple(map(str, range(count))))
        assert torch.allclose(total.tensors["w"], torch.tensor([bound, -bound]) * count, rtol=1e-6)


def test_stochastic_rounding_has_no_bias() -> None:
    layout = layout_of({"w": (200_000,)}, 3, norm=1e9, weight=1.0)
    step = layout.step(layout.entries[0])
    value = torch.full((200_000,), 0.3 * step)
    words = layout.encode(Contribution({"w": value}, {"weight": 1.0}), rounding="stochastic")[1:-1]
    assert set(np.unique(words)) == {0, 1} and abs(words.mean() - 0.3) < 0.005
    assert not layout.encode(Contribution({"w": value}, {"weight": 1.0}))[1:-1].any()


def test_a_site_that_sends_wrong_shares_or_a_wrong_seed_does_not_end_the_round() -> None:
    g = group(7, seed=7)
    wire = Wire(g.sites, {"masked": ["site-06"], "unmask": ["site-05"]})

    class Liar:
        def answer(self, message: Message) -> Message:
            answer = g.sites["site-00"].answer(message)
            if message.kind != "secagg/unmask":
                return answer
            wrong = {k: dict.fromkeys(v, "00" * 32) for k, v in answer.fields.items() if k != "seed"}
            return message.answer(answer.kind, {"seed": "11" * 32, **wrong})

    wire.sites = {**g.sites, "site-00": Liar()}  # type: ignore[dict-item]
    total = secure_sum(wire, g.names, g.work, g.layout, session(), g.settings)
    assert_is_sum(g, total, g.names[:6])


def test_answers_that_make_no_sense_lose_the_site_only() -> None:
    g = group(5, seed=8)
    for stage in ("keys", "shares", "masked", "agree", "unmask"):
        number = {"keys": 1, "shares": 2, "masked": 3, "agree": 4, "unmask": 5}[stage]
        machine = SecureSum(g.names, g.work, g.layout, session(number), g.settings)
        wire = Wire(g.sites)
        while machine.total is None:
            requests = machine.requests()
            answers = wire.ask(requests, timeout=1)
            if machine.stage == stage and machine.session.attempt == 0:
                answers["site-02"] = requests["site-02"].answer(
                    f"secagg/{stage}", {"signature": 7, "seed": [], "shares": None, "name": "site-02"}
                )
            machine.receive(answers)
        assert "site-02" not in machine.total.sites or stage in ("agree", "unmask")
        assert_is_sum(g, machine.total, list(machine.total.sites))


@pytest.mark.parametrize("wrong", ["work", "mask_key", "share_key"])
def test_a_site_whose_keys_the_others_would_refuse_is_left_out_and_named(wrong: str) -> None:
    g = group(5, seed=9)

    class Odd:
        def answer(self, message: Message) -> Message:
            answer = g.sites["site-02"].answer(message)
            if message.kind != "secagg/keys":
                return answer
            values = Announcement(**{**vars(Announcement.from_json(answer.fields)), wrong: bytes(32)})  # of low order, if it is a key
            signature = g.identities["site-02"].sign(values.body(session_of(message)))
            return message.answer(answer.kind, Announcement(**{**vars(values), "signature": signature}).to_json())

    total = secure_sum(Wire({**g.sites, "site-02": Odd()}), g.names, g.work, g.layout, session(), g.settings)  # type: ignore[dict-item]
    assert_is_sum(g, total, [n for n in g.names if n != "site-02"])
    assert ("another request" if wrong == "work" else "not a valid X25519 key") in total.lost["site-02"]


def session_of(message: Message) -> Session:
    return Session(message.fields["run"], message.round, message.nonce, message.fields["attempt"])


def test_fewer_than_three_sites_are_refused() -> None:
    g = group(3)
    with pytest.raises(SecureAggregationError, match="expected from 3 to 3"):
        secure_sum(Wire(g.sites), g.names[:2], g.work, g.layout, session(), g.settings)
    with pytest.raises(ValueError, match="at least 3"):
        SiteRules(fewest=2)


def test_the_round_is_remembered_over_a_restart(tmp_path: Path) -> None:
    g = group(4)
    memory = tmp_path / "round.json"
    old = g.sites["site-00"]
    old.memory = memory
    run(g, number=5)

    def again() -> SecureSite:
        return SecureSite("site-00", old.identity, g.pinned, old.contribute, run=old.run, memory=memory)

    g.sites["site-00"] = again()
    wire = Wire(g.sites)
    with pytest.raises(RoundFailed):
        secure_sum(wire, g.names, g.work, g.layout, session(5), g.settings)
    assert "took part in round 5 already" in wire.refusals["site-00"]
    g.sites["site-00"] = again()
    assert_is_sum(g, run(g, number=6), g.names)
    memory.write_text("{")
    with pytest.raises(RunError, match="does not say in which round"):
        again()


def test_a_site_unmasks_no_more_sums_than_were_agreed(tmp_path: Path) -> None:
    rules, memory = SiteRules(most_sums=2), tmp_path / "round.json"
    g = group(4)
    g.sites = {n: SecureSite(n, s.identity, g.pinned, s.contribute, run=s.run, rules=rules) for n, s in g.sites.items()}
    g.sites["site-00"].memory = memory
    for number in (1, 2):
        assert_is_sum(g, run(g, number=number), g.names)
    old = g.sites["site-00"]
    g.sites["site-00"] = SecureSite("site-00", old.identity, g.pinned, old.contribute, run=old.run, rules=rules, memory=memory)
    wire = Wire(g.sites)
    with pytest.raises(RoundFailed):
        secure_sum(wire, g.names, g.work, g.layout, session(3), g.settings)
    assert set(wire.refusals) == set(g.names) and all("privacy of 2 rounds is spent" in why for why in wire.refusals.values())


def test_messages_in_clear_are_refused() -> None:
    g = group(3)
    with pytest.raises(Refused, match="in clear"):
        g.sites["site-00"].answer(Message("train", 1, "n", {}, {k: torch.zeros(s) for k, s in SHAPES.items()}))
