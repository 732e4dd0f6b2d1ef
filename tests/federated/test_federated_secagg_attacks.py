"""Attacks of a coordinator on a secure sum, planted: each is refused by the sites, and no sum comes out that would show one of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_sites import RUN, SHAPES, Group, Wire, flower, group, session

from tauon.errors import TauonError
from tauon.federated import Failure, Message
from tauon.federated.secagg import (
    Contribution,
    Identity,
    PinnedKeys,
    Refused,
    RoundFailed,
    SecureSum,
    Session,
    SiteRules,
    join_sites,
    secure_sum,
)
from tauon.federated.secagg.keys import RoundKeys
from tauon.federated.secagg.site import agreement

Change = Callable[[str, Message], Message]


def fields(message: Message, **values: Any) -> Message:
    return replace(message, fields={**message.fields, **values})


def attacked(g: Group, change: Change, number: int = 1) -> Wire:
    """Run a round with a coordinator that changes what it sends; it must not get a sum."""
    wire = Wire(g.sites, change=change)
    with pytest.raises(RoundFailed):
        secure_sum(wire, g.names, g.work, g.layout, session(number), replace(g.settings, pinned=None))  # it compares nothing itself
    return wire


def refused_by_all(g: Group, change: Change, words: str) -> None:
    wire = attacked(g, change)
    assert len(wire.refusals) == len(g.names)
    assert all(words in text for text in wire.refusals.values()), wire.refusals


def at(kind: str, change: Change) -> Change:
    return lambda name, message: change(name, message) if message.kind == f"secagg/{kind}" else message


# ------------------------------------------------------------------------------------------------ lists


def test_a_site_on_both_lists_is_refused() -> None:
    g = group(5)
    refused_by_all(g, at("agree", lambda _, m: fields(m, dropped=["site-02"])), "both alive and dropped")


def test_a_site_on_neither_list_is_refused() -> None:
    g = group(5)
    refused_by_all(g, at("agree", lambda _, m: fields(m, alive=[n for n in m.fields["alive"] if n != "site-04"])), "")


def test_unmasking_fewer_than_three_sites_is_refused() -> None:
    g = group(3)
    change = at("agree", lambda _, m: fields(m, alive=g.names[:2], dropped=g.names[2:]))
    wire = attacked(g, change)
    assert "refuses to unmask a sum of 2 of 3 sites" in wire.refusals["site-00"]


def test_a_sum_of_two_is_refused_at_each_stage() -> None:
    g = group(5)
    site = g.sites["site-00"]
    ask = SecureSum(g.names, g.work, g.layout, session(), g.settings)
    message = ask.requests()["site-00"]
    with pytest.raises(Refused, match="refuses a sum of 2 sites"):
        site.answer(fields(message, layout={**message.fields["layout"], "sites": 2}))
    for number, (stage, cut) in enumerate((("shares", "roster"), ("masked", "shared")), 1):
        keep = {"roster": lambda values: values[:2], "shared": lambda values: values[:2]}[cut]
        wire = attacked(g, at(stage, lambda _, m, cut=cut, keep=keep: fields(m, **{cut: keep(m.fields[cut])})), number)  # type: ignore[misc]
        assert "refuses a sum of 2" in wire.refusals["site-00"]


def test_two_views_of_who_is_alive_are_not_unmasked() -> None:
    """Half of the sites are told that site-00 dropped, the others that it is alive: together they would reveal both of its secrets."""
    g = group(8)

    def change(name: str, message: Message) -> Message:
        if name in g.names[1:5]:
            return fields(message, alive=g.names[1:], dropped=["site-00"])
        return message

    wire = attacked(g, at("agree", change))
    assert not [raw for raw in wire.sent if b"key_shares" in raw]
    # and a coordinator that forwards all the signatures that it has
    g = group(8)
    forwarded: dict[str, str] = {}

    def forward(name: str, message: Message) -> Message:
        return fields(message, signatures=forwarded) if message.kind == "secagg/unmask" else at("agree", change)(name, message)

    machine = SecureSum(g.names, g.work, g.layout, session(), replace(g.settings, pinned=None))
    wire = Wire(g.sites, change=forward)
    with pytest.raises(RoundFailed):
        while machine.total is None:
            answers = wire.ask(machine.requests(), timeout=1)
            if machine.stage == "agree":
                forwarded |= {n: str(a.fields["signature"]) for n, a in answers.items() if isinstance(a, Message)}
            machine.receive(answers)
    assert len(forwarded) == 8 and not [raw for raw in wire.sent if b"key_shares" in raw]
    assert all("signature" in text for text in wire.refusals.values()) and len(wire.refusals) == 8


def test_unmasking_without_a_majority_of_signatures_is_refused() -> None:
    g = group(7)
    change = at("unmask", lambda _, m: fields(m, signatures=dict(list(m.fields["signatures"].items())[:3])))
    refused_by_all(g, change, "3 of 7 sites agree on who is alive, at least 4 must")


# ------------------------------------------------------------------------------------------------ keys


def roster_change(change: Callable[[dict[str, dict[str, str]]], None]) -> Change:
    def apply(name: str, message: Message) -> Message:
        listed = {values["name"]: dict(values) for values in message.fields["roster"]}
        change(listed)
        return fields(message, roster=list(listed.values()))

    return at("shares", apply)


def test_swapped_keys_are_refused() -> None:
    def swap(listed: dict[str, dict[str, str]]) -> None:
        a, b = listed["site-01"], listed["site-02"]
        listed["site-01"], listed["site-02"] = {**b, "name": "site-01"}, {**a, "name": "site-02"}

    g = group(5)
    wire = attacked(g, roster_change(swap))
    assert "signature of site-01 is not valid" in wire.refusals["site-00"]
    assert "its own keys are missing from the list, or were changed" in wire.refusals["site-01"]

    def swap_kinds(listed: dict[str, dict[str, str]]) -> None:
        one = listed["site-01"]
        one["mask_key"], one["share_key"] = one["share_key"], one["mask_key"]

    assert "signature of site-01" in attacked(group(5), roster_change(swap_kinds)).refusals["site-00"]


def test_keys_of_the_coordinator_are_refused() -> None:
    """Signed by an identity of its own, under the name of a site, or under a new name."""
    g, mallory = group(5), Identity.generate()

    def forge(name: str) -> Change:
        def apply(to: str, message: Message) -> Message:
            listed = [dict(v) for v in message.fields["roster"]]
            at_session = Session(RUN, message.round, message.nonce, message.fields["attempt"])
            own = RoundKeys(name, at_session, bytes.fromhex(listed[0]["work"]), mallory).own.to_json()
            rest = [v for v in listed if v["name"] != name]
            return fields(message, roster=[*(rest if name in g.names else rest[:-1] if to != rest[-1]["name"] else rest[1:]), own])

        return at("shares", apply)

    assert "signature of site-03 is not valid" in attacked(g, forge("site-03"), 1).refusals["site-00"]
    assert "identity of mallory is not pinned" in attacked(g, forge("mallory"), 2).refusals["site-00"]


def test_keys_of_an_earlier_round_are_refused() -> None:
    g = group(4)
    seen: list[dict[str, str]] = []

    def keep(_: str, message: Message) -> Message:
        seen[:] = message.fields["roster"]
        return message

    secure_sum(Wire(g.sites, change=at("shares", keep)), g.names, g.work, g.layout, session(1), g.settings)
    old = next(v for v in seen if v["name"] == "site-03")
    wire = attacked(g, roster_change(lambda listed: listed.update({"site-03": old})), 2)
    assert "signature of site-03 is not valid" in wire.refusals["site-00"]


def test_a_site_listed_twice_or_with_the_key_of_another_is_refused() -> None:
    g = group(4)
    change = at("shares", lambda _, m: fields(m, roster=[*m.fields["roster"], m.fields["roster"][0]]))
    refused_by_all(g, change, "listed twice")


def test_a_pinned_identity_never_changes() -> None:
    one, two = Identity.generate(), Identity.generate()
    pinned = PinnedKeys({"a": one.public})
    pinned.pin("a", one.public)
    with pytest.raises(Refused, match="another identity key than the one that was pinned"):
        pinned.pin("a", two.public)
    with pytest.raises(Refused, match="same identity key"):
        pinned.pin("b", one.public)


def test_sites_join_with_the_keys_that_they_have_pinned() -> None:
    g = group(4)
    pinned = PinnedKeys()
    joined = join_sites(Wire(g.sites), g.names, pinned, run=RUN)
    assert joined.names == tuple(g.names) and dict(pinned) == dict(g.pinned) and joined.newest == 0 and joined.refused == {}
    finished(g, 7)
    assert join_sites(Wire(g.sites), g.names, pinned, run=RUN).newest == 7
    assert "belongs to run run-1" in join_sites(Wire(g.sites), g.names, pinned, run="other").refused["site-00"]


def test_a_coordinator_with_other_identity_keys_at_joining_is_refused() -> None:
    g, mallory = group(4), Identity.generate()
    change = at("pin", lambda _, m: fields(m, keys={**m.fields["keys"], "site-03": mallory.public.hex()}))
    joined = join_sites(Wire(g.sites, change=change), g.names, PinnedKeys(), run=RUN)
    assert joined.names == () and all("site-03 has another identity key" in text for text in joined.refused.values())
    change = at("pin", lambda _, m: fields(m, keys={**m.fields["keys"], "new": mallory.public.hex()}))
    joined = join_sites(Wire(g.sites, change=change), g.names, PinnedKeys(), run=RUN)
    assert all("has no pinned identity key for new" in text for text in joined.refused.values())


def test_the_first_keys_are_pinned_only_if_a_site_says_so_and_never_change() -> None:
    g = group(4, rules=SiteRules(first_use=True))
    for name, site in g.sites.items():
        site.pinned = PinnedKeys({name: site.identity.public})
    assert join_sites(Wire(g.sites), g.names, PinnedKeys(), run=RUN).names == tuple(g.names)
    g.sites["site-03"].identity = Identity.generate()
    joined = join_sites(Wire(g.sites), g.names, PinnedKeys(), run=RUN)
    assert joined.names == () and "another identity key" in joined.refused["site-00"]


def test_a_coordinator_cannot_invent_more_sites_than_were_agreed() -> None:
    g = group(4, rules=SiteRules(first_use=True, most_sites=4))
    invented = {f"new-{i}": Identity.generate().public.hex() for i in range(3)}
    change = at("pin", lambda _, m: fields(m, keys={**m.fields["keys"], **invented}))
    joined = join_sites(Wire(g.sites, change=change), g.names, PinnedKeys(), run=RUN)
    assert joined.names == () and all("as many as sites were agreed" in text for text in joined.refused.values())


def test_a_site_that_claims_a_round_far_ahead_is_refused() -> None:
    """All others would have to go on from there, for ever."""
    g = group(4)
    for number in (1, 2, 3):
        finished(g, number)

    class Ahead:
        newest = 3 + 2**20

        def answer(self, message: Message) -> Message:
            answer = g.sites["site-00"].answer(message)
            return fields(answer, newest=self.newest) if "newest" in answer.fields else answer

    sites: dict[str, Any] = {**g.sites, "site-00": Ahead()}
    assert join_sites(Wire(sites), g.names, PinnedKeys(), run=RUN).newest == 3 + 2**20
    for far in (4 + 2**20, 10**4000):
        Ahead.newest = far
        joined = join_sites(Wire(sites), g.names, PinnedKeys(), run=RUN)
        assert (
            joined.names == tuple(g.names[1:]) and joined.newest == 3 and "far beyond the 3 of the other sites" in joined.refused["site-00"]
        )


def test_a_site_without_the_secret_of_its_identity_does_not_join() -> None:
    g, stolen = group(4), Identity.generate()

    class Copied:
        def answer(self, message: Message) -> Message:
            answer = g.sites["site-00"].answer(message)
            return replace(answer, fields={**answer.fields, "identity": stolen.public.hex()}) if "identity" in answer.fields else answer

    joined = join_sites(Wire({**g.sites, "site-00": Copied()}), g.names, PinnedKeys(), run=RUN)  # type: ignore[dict-item]
    assert joined.names == tuple(g.names[1:]) and "not valid" in joined.refused["site-00"]


# ------------------------------------------------------------------------------------------------ thresholds, models


@pytest.mark.parametrize("threshold", [0, 1, 3, 7, 100])
def test_a_shrunk_threshold_is_refused(threshold: int) -> None:
    refused_by_all(group(7), at("shares", lambda _, m: fields(m, threshold=threshold)), f"refuses a threshold of {threshold}")


@pytest.mark.parametrize("degree", [2, 5, 7, -1])
def test_fewer_neighbours_are_refused(degree: int) -> None:
    refused_by_all(group(7), at("shares", lambda _, m: fields(m, degree=degree)), f"refuses {degree} neighbours")


def test_a_model_of_its_own_for_one_site_is_refused() -> None:
    """With weights for which the others' updates vanish, the sum would be the update of the one (Pasquini et al. 2022)."""
    for part in ("tensors", "fields"):
        g = group(4)

        def change(name: str, message: Message, part: str = part) -> Message:
            if name != "site-02":
                return message
            if part == "tensors":
                return replace(message, tensors={**message.tensors, "w": message.tensors["w"] + 1e-6})
            return fields(message, work={**message.fields["work"], "fields": {"steps": 3}})

        wire = attacked(g, at("keys", change))
        assert "was sent another model, or other settings" in wire.refusals["site-00"]
        assert len(wire.refusals) == 4


def test_a_range_of_its_own_for_one_site_is_refused() -> None:
    """With a bound so large that the values of all others are rounded to zero, the sum would be the update of the one."""

    def coarse(layout: dict[str, Any]) -> dict[str, Any]:
        return {**layout, "entries": [[name, shape, 1e30, noise, number] for name, shape, _, noise, number in layout["entries"]]}

    g = group(5)
    wire = attacked(g, at("keys", lambda name, m: m if name == "site-02" else fields(m, layout=coarse(m.fields["layout"]))))
    assert "or other settings of training or sum" in wire.refusals["site-02"] and len(wire.refusals) == 5

    def coarse_again(name: str, message: Message) -> Message:
        second = message.fields["attempt"] == 1 and name != "site-02"
        return fields(message, layout=coarse(message.fields["layout"])) if second else message

    g = group(6)  # in the second key exchange of a round, too
    wire = Wire(g.sites, {"shares": ["site-05"]}, change=at("keys", coarse_again))
    with pytest.raises(RoundFailed):
        secure_sum(wire, g.names, g.work, g.layout, session(), replace(g.settings, pinned=None))
    assert len(wire.refusals) == 5 and "or other settings of training or sum" in wire.refusals["site-02"]


def test_a_range_that_values_exceed_does_not_show_them() -> None:
    g = group(4)
    g.sites["site-01"].contribute = lambda _: Contribution(g.values["site-01"], {"weight": 1.0, "loss": 1234.5})
    total = secure_sum(Wire(g.sites), g.names, g.work, g.layout, session(), g.settings)
    assert "beyond the range of the sum" in total.lost["site-01"] and "1234" not in total.lost["site-01"]
    seen: list[str] = []
    machine, wire = SecureSum(g.names, g.work, g.layout, session(2), g.settings), Wire(g.sites)
    while machine.stage != "masked":
        machine.receive(wire.ask(machine.requests(), timeout=1))
    flower("primitives.asymmetric")  # imports Flower, or skips
    from flwr.app import Metadata
    from flwr.app.message import make_message

    from tauon.federated.flower import Answerer
    from tauon.federated.flower.wire import write_message

    metadata = Metadata(
        run_id=1, message_id="m", src_node_id=1, dst_node_id=2, reply_to_message_id="", group_id="", created_at=0.0, ttl=60.0, message_type="query"
    )  # fmt: skip
    answer = Answerer(g.sites["site-01"], note=seen.append)(make_message(metadata, content=write_message(machine.requests()["site-01"])))
    assert "1234" not in str(answer.error.reason) and "loss reaches 1234.5" in seen[0]  # for the site's own operator


def test_a_range_for_more_sites_than_have_keys_is_refused() -> None:
    """Steps are coarser the more sites there are."""
    change = at("keys", lambda _, m: fields(m, layout={**m.fields["layout"], "sites": 1000}))
    refused_by_all(group(4), change, "refuses a range for 1000 sites: 4 have a pinned identity key")


# ------------------------------------------------------------------------------------------------ repetition


def finished(g: Group, number: int = 1) -> dict[str, Message]:
    """Run a round; return the last message of each kind to site-00."""
    kept: dict[str, Message] = {}

    def keep(name: str, message: Message) -> Message:
        if name == "site-00":
            kept[message.kind.removeprefix("secagg/")] = message
        return message

    secure_sum(Wire(g.sites, change=keep), g.names, g.work, g.layout, session(number), g.settings)
    return kept


def test_a_second_unmasking_is_refused() -> None:
    g = group(5)
    kept = finished(g)
    for stage in ("unmask", "agree", "masked", "shares"):
        with pytest.raises(Refused, match="no session is open"):
            g.sites["site-00"].answer(kept[stage])
    with pytest.raises(Refused, match="took part in round 1 already"):
        g.sites["site-00"].answer(kept["keys"])


def test_a_second_list_to_sign_in_a_round_is_refused() -> None:
    g = group(5)
    machine, wire = SecureSum(g.names, g.work, g.layout, session(), g.settings), Wire(g.sites)
    while machine.stage != "agree":
        machine.receive(wire.ask(machine.requests(), timeout=1))
    first = machine.requests()["site-00"]
    g.sites["site-00"].answer(first)
    with pytest.raises(Refused, match="Each stage of a round is done once"):
        g.sites["site-00"].answer(fields(first, alive=g.names[:4], dropped=g.names[4:]))


def test_a_second_masked_vector_in_a_round_is_refused_also_in_another_key_exchange() -> None:
    g = group(5)
    machine, wire = SecureSum(g.names, g.work, g.layout, session(), g.settings), Wire(g.sites)
    while machine.stage != "agree":
        machine.receive(wire.ask(machine.requests(), timeout=1))
    again = machine.session.again().message("keys", {"layout": g.layout.to_json(), "work": None})
    with pytest.raises(Refused, match="took part in round 1 already"):
        g.sites["site-00"].answer(again)


def test_replayed_rounds_and_messages_are_refused() -> None:
    g = group(5)
    first, second = finished(g, 1), finished(g, 2)
    site = g.sites["site-00"]
    for old in (first, second):
        with pytest.raises(Refused, match="took part in round 2 already"):
            site.answer(old["keys"])
    with pytest.raises(Refused, match="belongs to run run-1, got a message of run other"):
        site.answer(fields(replace(second["keys"], round=3), run="other"))
    machine, wire = SecureSum(g.names, g.work, g.layout, session(3), g.settings), Wire(g.sites)
    machine.receive(wire.ask(machine.requests(), timeout=1))
    for stage in ("shares", "masked", "unmask"):
        with pytest.raises(Refused, match="another session"):
            site.answer(second[stage])
    while machine.total is None:  # an old message does not end the session of today
        machine.receive(wire.ask(machine.requests(), timeout=1))
    assert machine.total.sites == tuple(g.names)


def test_stages_out_of_order_are_refused() -> None:
    g = group(4)
    machine, wire = SecureSum(g.names, g.work, g.layout, session(), g.settings), Wire(g.sites)
    machine.receive(wire.ask(machine.requests(), timeout=1))
    early = machine.session.message("unmask", {"signatures": {}})
    with pytest.raises(Refused, match="it was at 'keys'"):
        g.sites["site-00"].answer(early)
    with pytest.raises(Refused, match="no session is open"):
        g.sites["site-00"].answer(machine.requests()["site-00"])


# ------------------------------------------------------------------------------------------------ a coordinator that reads bytes


def test_a_coordinator_that_reads_every_byte_finds_no_single_update() -> None:
    shapes = {"w": (40, 30), "b": (50,)}
    g = group(5, shapes=shapes, seed=9)
    wire = Wire(g.sites, {"masked": ["site-04"]})
    machine = SecureSum(g.names, g.work, g.layout, session(), g.settings)
    masked: dict[str, np.ndarray] = {}
    while machine.total is None:
        stage, answers = machine.stage, wire.ask(machine.requests(), timeout=1)
        if stage == "masked":
            masked = {n: a.tensors["values"].numpy().copy() for n, a in answers.items() if isinstance(a, Message)}
        machine.receive(answers)
    everything = b"".join(wire.sent)
    assert set(masked) == set(g.names[:4])
    for name in g.names:
        weight = g.weights[name]
        sent = g.sites[name].contribute(g.work)
        plain = g.layout.encode(sent)
        clear = [*(t.numpy().tobytes() for t in sent.tensors.values()), *(t.numpy().tobytes() for t in g.values[name].values())]
        for raw in [*clear, plain.tobytes(), plain[1:].tobytes()]:
            assert all(raw[i : i + 24] not in everything for i in range(0, len(raw) - 24, 24))
        if name in masked:
            noise = (masked[name] - plain).astype(np.float64) / 2**32  # uniform, and without relation to the values
            assert abs(noise.mean() - 0.5) < 0.05 and abs(noise.std() - 12**-0.5) < 0.02
            signed = plain.view(np.int32).astype(np.float64)
            assert abs(np.corrcoef(masked[name].view(np.int32), signed)[0, 1]) < 0.12
        assert str(weight) + "}" not in everything.decode("latin1")


def test_the_sums_of_fewer_sites_stay_masked() -> None:
    """With all that it gets in a round, the coordinator removes the masks of some sites only: what is left is uniform."""
    from tauon.federated.secagg.keys import own_mask_key
    from tauon.federated.secagg.masks import add_mask

    g = group(5, shapes={"w": (40, 30), "b": (50,)}, seed=9)
    machine, wire = SecureSum(g.names, g.work, g.layout, session(), g.settings), Wire(g.sites)
    kept: dict[str, dict[str, Any]] = {}
    while machine.total is None:
        stage, answers = machine.stage, wire.ask(machine.requests(), timeout=1)
        kept[stage] = {n: a for n, a in answers.items() if isinstance(a, Message)}
        if stage == "masked":
            masked = {n: a.tensors["values"].numpy().copy() for n, a in kept[stage].items()}
        machine.receive(answers)
    for some in (["site-00"], g.names[:2], g.names[:4]):
        words = np.zeros(g.layout.count, np.uint32)
        for name in some:
            words += masked[name]
            add_mask(words, own_mask_key(bytes.fromhex(kept["unmask"][name].fields["seed"]), name, machine.session), subtract=True)
        assert abs((words / 2**32).mean() - 0.5) < 0.05 and abs((words / 2**32).std() - 12**-0.5) < 0.02


def test_masks_are_new_in_each_round_and_key_exchange() -> None:
    g = group(4, shapes={"w": (40, 30), "b": (50,)})
    vectors = []
    for number in (1, 2):
        wire = Wire(g.sites)
        machine = SecureSum(g.names, g.work, g.layout, session(number), g.settings)
        while machine.total is None:
            stage, answers = machine.stage, wire.ask(machine.requests(), timeout=1)
            if stage == "masked" and isinstance(one := answers["site-00"], Message):
                vectors.append(one.tensors["values"].numpy().copy())
            machine.receive(answers)
    difference = (vectors[1] - vectors[0]).astype(np.float64) / 2**32  # of the same values
    assert abs(difference.mean() - 0.5) < 0.05 and abs(difference.std() - 12**-0.5) < 0.02


def test_no_secret_is_sent_before_the_sites_agree_and_never_both_of_one_site() -> None:
    g = group(5)
    machine = SecureSum(g.names, g.work, g.layout, session(), g.settings)
    wire = Wire(g.sites, {"masked": ["site-04"]})
    secrets: dict[str, tuple[bytes, bytes]] = {}
    while machine.total is None:
        if machine.stage == "unmask":
            assert not [raw for raw in wire.sent for pair in secrets.values() for s in pair if s in raw or s.hex().encode() in raw]
        machine.receive(wire.ask(machine.requests(), timeout=1))
        for name, site in g.sites.items():
            if site._open is not None:
                secrets[name] = site._open.keys.seed, site._open.keys.mask_secret
    everything = b"".join(wire.sent)
    for name, (seed, mask_secret) in secrets.items():
        assert (seed.hex().encode() in everything) == (name != "site-04")
        assert mask_secret.hex().encode() not in everything


def test_a_failure_says_nothing_but_the_reason() -> None:
    g = group(4)

    def broken(_: Message) -> Any:
        raise TauonError("the training failed")

    g.sites["site-01"].contribute = broken
    total = secure_sum(Wire(g.sites), g.names, g.work, g.layout, session(), g.settings)
    assert total.lost == {"site-01": "keys: the training failed"}


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.just("00" * 32),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["site-00", "site-01", "name", "entries", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["join", "pin", "keys", "shares", "masked", "agree", "unmask"]), st.integers(0, 5), JUNK, st.booleans())
def test_messages_that_make_no_sense_are_refused_and_break_nothing(stage: str, which: int, junk: Any, deep: bool) -> None:
    g = FUZZED
    machine, wire = SecureSum(g.names, g.work, g.layout, session(next(NUMBERS)), g.settings), Wire(g.sites)
    while machine.stage != stage and stage not in ("join", "pin"):
        machine.receive(wire.ask(machine.requests(), timeout=1))
    site = g.sites["site-00"]
    keys = {"keys": {n: g.pinned[n].hex() for n in g.names}}
    message = machine.session.message(stage, keys) if stage in ("join", "pin") else machine.requests()["site-00"]
    values = dict(message.fields)
    name = sorted(values)[which % len(values)]
    inner = values[name]
    if deep and isinstance(inner, dict) and inner:
        values[name] = {**inner, sorted(inner)[which % len(inner)]: junk}
    elif deep and isinstance(inner, list) and inner:
        values[name] = [*inner[:-1], junk]
    else:
        values[name] = junk
    with contextlib.suppress(TauonError):
        site.answer(replace(message, fields=values))


FUZZED, NUMBERS = group(4), itertools.count(1)


def test_what_is_agreed_depends_on_all_of_it() -> None:
    g = group(4)
    machine, wire = SecureSum(g.names, g.work, g.layout, session(), g.settings), Wire(g.sites)
    machine.receive(wire.ask(machine.requests(), timeout=1))
    roster = machine._now.roster
    one = agreement(machine.session, roster, g.names, [])
    assert one != agreement(machine.session.again(), roster, g.names, [])
    assert one != agreement(machine.session, roster, g.names[:3], g.names[3:])
    assert one != agreement(machine.session, {k: v for k, v in roster.items() if k != "site-03"}, g.names, [])
    assert isinstance(Failure("x"), Failure) and SHAPES and torch.is_tensor(g.work.tensors["w"])
