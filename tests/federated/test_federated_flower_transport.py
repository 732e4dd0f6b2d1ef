"""Messages over Flower: a coordinator and sites on loopback, with TLS and node authentication, each in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from federated.federation_sites import Adder
from tauon.federated import Failure, Message, Site
from tauon.federated.flower import (
    Coordinator,
    join,
    make_authority,
    make_server_certificate,
    make_site_key,
    serve,
)

pytest.importorskip("flwr", reason="federated training needs: pip install 'tauon[federated]'")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_authority(folder)
    make_server_certificate(folder, ["127.0.0.1", "localhost"])
    lines = [make_site_key(folder, name) for name in ("a", "b", "c")]
    (folder / "roster").write_text("# three sites\n" + "\n".join(lines) + "\n")
    make_site_key(folder, "stranger")
    return folder


class SiteThread:
    """A site in a thread; a real one has a process of its own."""

    def __init__(self, keys: Path, port: int, name: str, site: Site, clock: Callable[[], float] = time.time, recipe: str = "") -> None:
        self.notes: list[str] = []
        self.error: BaseException | None = None

        def run() -> None:
            try:
                join(
                    f"127.0.0.1:{port}",
                    site,
                    key=keys / f"{name}.key",
                    authority=keys / "ca.crt",
                    recipe=recipe,
                    note=self.notes.append,
                    clock=clock,
                )
            except BaseException as err:
                self.error = err

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()


@contextmanager
def federation(keys: Path, sites: dict[str, Site]) -> Iterator[tuple[Coordinator, dict[str, SiteThread], list[str]]]:
    notes: list[str] = []
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster", note=notes.append) as coordinator:
        threads = {name: SiteThread(keys, coordinator.port, name, site) for name, site in sites.items()}
        coordinator.wait_for(len(sites), timeout=120)
        yield coordinator, threads, notes
    for site in threads.values():
        site.thread.join(120)
        assert not site.thread.is_alive() and site.error is None, site.error


@pytest.fixture(scope="module")
def three(keys: Path) -> Iterator[Coordinator]:
    with federation(keys, {"a": Adder(1.0), "b": Adder(2.0), "c": Adder(3.0)}) as (coordinator, _, _):
        yield coordinator


def message(kind: str = "add", number: int = 1, **fields: object) -> Message:
    return Message(kind, number, f"nonce-{time.monotonic_ns()}", fields, {"w": torch.zeros(3)})


def reason(answer: Message | Failure) -> str:
    assert isinstance(answer, Failure), answer
    return answer.reason


def test_each_site_answers_its_own_message(three: Coordinator) -> None:
    assert three.sites() == ["a", "b", "c"] == three.expected()
    answers = three.ask({"c": message(), "a": message()}, timeout=120)
    assert list(answers) == ["c", "a"]
    assert [float(answers[name].tensors["w"].sum()) for name in ("a", "c")] == [3.0, 9.0]  # type: ignore[union-attr]


def test_a_large_message_arrives_as_it_was_sent(three: Coordinator) -> None:
    big = torch.arange(4_000_000, dtype=torch.float32)  # four chunks
    answer = three.ask({"b": Message("add", 1, "big", {}, {"w": big})}, timeout=60)["b"]
    assert isinstance(answer, Message) and torch.equal(answer.tensors["w"], big + 2.0)


def test_weights_for_several_sites_are_kept_once(three: Coordinator) -> None:
    weights = torch.randn(1_000_000)
    seen: list[int] = []
    push = three.link.pushed
    three.link.pushed = lambda *keys: (seen.append(sum(len(e.content) for e in three.link.state.object_store.store.values())), push(*keys))[
        1
    ]  # type: ignore[method-assign, func-returns-value]
    try:
        messages = {name: Message("add", 1, name, {"session": name, "seconds": 0.5}, {"w": weights}) for name in ("a", "b", "c")}
        answers = three.ask(messages, timeout=60)
    finally:
        three.link.pushed = push  # type: ignore[method-assign]
    assert all(isinstance(answer, Message) for answer in answers.values())
    assert len(seen) == 3 and max(seen) < 4_100_000, seen


def test_a_refusal_arrives_in_words_and_a_failure_without_its_text(three: Coordinator) -> None:
    assert reason(three.ask({"a": message("refuse")}, timeout=120)["a"]) == "this site has no data of that kind"
    failure = reason(three.ask({"a": message("fail")}, timeout=120)["a"])
    assert "KeyError" in failure and "4711" not in failure


def test_an_answer_of_another_round_is_a_failure(three: Coordinator) -> None:
    assert "answered round 4 instead of round 5" in reason(three.ask({"a": message("old", 5)}, timeout=120)["a"])


def test_a_replayed_message_is_refused(three: Coordinator) -> None:
    sent = message()
    assert isinstance(three.ask({"a": sent}, timeout=120)["a"], Message)
    assert "replay" in reason(three.ask({"a": sent}, timeout=120)["a"])


def test_a_slow_site_holds_up_no_other_and_its_late_answer_is_dropped(three: Coordinator) -> None:
    start = time.monotonic()
    answers = three.ask({"a": message(seconds=2.0), "b": message()}, timeout=0.5)
    assert reason(answers["a"]) == "no answer within 0.5 s" and isinstance(answers["b"], Message)
    assert time.monotonic() - start < 2.0
    answer = three.ask({"a": message()}, timeout=120)["a"]
    assert isinstance(answer, Message) and float(answer.tensors["w"].sum()) == 3.0
    assert not three.link.state.message_ins_store and not three.link.state.message_res_store
    assert not len(three.link.state.object_store), "nothing is kept of messages that were answered or given up"


def test_sites_that_are_not_there_are_failures_at_once(three: Coordinator) -> None:
    answers = three.ask({"nobody": message(), "a": message()}, timeout=120)
    assert reason(answers["nobody"]) == "it is not connected" and isinstance(answers["a"], Message)


def test_several_threads_may_ask(three: Coordinator) -> None:
    answers: dict[str, Message | Failure] = {}
    threads = [threading.Thread(target=lambda n=n: answers.update(three.ask({n: message()}, timeout=120))) for n in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name for name, answer in answers.items() if isinstance(answer, Message)} == {"a", "b", "c"}


def test_an_answer_that_is_much_larger_than_its_question_is_refused(three: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(three.ask({"a": message("large")}, timeout=120)["a"], Message)
    monkeypatch.setattr("tauon.federated.flower.grid.LARGEST_ANSWER", (100_000, 4))
    assert "more than 100,000 bytes" in reason(three.ask({"a": message("large")}, timeout=120)["a"])
    assert isinstance(three.ask({"a": message()}, timeout=120)["a"], Message)
    assert not len(three.link.state.object_store) and not three.transport.grid._arriving and not three.transport.grid._limits


def test_a_run_that_flower_ended_while_the_machine_slept_is_replaced(three: Coordinator) -> None:
    before = three.link.run_id
    (record,) = three.link.state.task_token_store.values()
    record.active_until = datetime(2026, 1, 1, tzinfo=UTC)
    assert isinstance(three.ask({"a": message()}, timeout=120)["a"], Message)
    assert three.link.run_id != before


def test_a_site_that_works_for_a_run_that_has_ended_takes_part_in_the_next(three: Coordinator) -> None:
    answers: dict[str, Message | Failure] = {}
    asking = threading.Thread(target=lambda: answers.update(three.ask({"a": message(seconds=1.0)}, timeout=1.5)))
    asking.start()
    while not any(m.metadata.delivered_at for m in list(three.link.state.message_ins_store.values())):
        time.sleep(0.01)
    (record,) = three.link.state.task_token_store.values()
    record.active_until = datetime(2026, 1, 1, tzinfo=UTC)
    asking.join()
    assert isinstance(answers["a"], Failure)
    assert isinstance(three.ask({"a": message()}, timeout=120)["a"], Message)


def test_bytes_sent_and_received_are_counted(three: Coordinator) -> None:
    before = three.transport.traffic().get("c", (0, 0))
    sent = message()
    answer = three.ask({"c": sent}, timeout=120)["c"]
    assert isinstance(answer, Message)
    after = three.transport.traffic()["c"]
    assert (after[0] - before[0], after[1] - before[1]) == (len(sent.to_bytes()), len(answer.to_bytes()))


def test_a_site_that_sends_nonsense_breaks_nothing(three: Coordinator, keys: Path) -> None:
    """Signed with a key that is in the roster: 200 bodies that follow no format, and calls about messages that are not this site's."""
    import random
    import ssl

    import httpx
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest

    from tauon.federated.flower.gate import CALLS
    from tauon.federated.flower.node import Connection

    draw = random.Random(0)
    (keys / "roster").write_text((keys / "roster").read_text() + make_site_key(keys, "mallory") + "\n")
    assert "mallory" in three.expected()
    url, context = f"https://127.0.0.1:{three.port}", ssl.create_default_context(cafile=str(keys / "ca.crt"))
    connection = Connection(f"127.0.0.1:{three.port}", keys / "mallory.key", keys / "ca.crt", note=print)
    with httpx.Client(verify=context) as client, connection:
        connection.join()

        def call(path: str, body: bytes) -> int:
            request = client.build_request("POST", url + path, content=body, headers={"content-type": "application/protobuf"})
            context = type("Context", (), {"request": request, "rpc_method": ""})()
            return int(connection.signature.intercept(context, lambda c: client.send(c.request)).status_code)

        for number in range(200):
            body = bytes(draw.randrange(256) for _ in range(draw.randrange(40)))
            assert call(sorted(CALLS)[number % len(CALLS)], body) >= 400
        tree = ObjectTree(object_id="ab" * 32, children=[ObjectTree(object_id="no hash")])
        for request in (
            PushMessagesRequest(node=connection.node, message_object_trees=[tree]),
            PushMessagesRequest(node=connection.node),
        ):
            assert call("/v1/fleet/push-messages", request.SerializeToString()) >= 400
        push = PushObjectRequest(node=connection.node, run_id=three.link.run_id, object_id="cd" * 32, object_content=b"x" * 1000)
        assert call("/v1/fleet/push-object", push.SerializeToString()) == 200, "answered, and not stored"
    assert not len(three.link.state.object_store)
    answers = three.ask({name: message() for name in ("a", "b", "c")}, timeout=120)
    assert all(isinstance(answer, Message) for answer in answers.values())


def test_a_site_cannot_answer_in_the_name_of_another(keys: Path) -> None:
    from flwr.app import Message as FlowerMessage

    from tauon.federated.flower.node import Connection
    from tauon.federated.flower.wire import write_error

    began, release = threading.Event(), threading.Event()

    class Waits:
        def answer(self, message: Message) -> Message:
            began.set()
            assert release.wait(120)
            return message.answer("own")

    (keys / "roster").write_text((keys / "roster").read_text() + make_site_key(keys, "eve") + "\n")
    with federation(keys, {"a": Waits()}) as (coordinator, _, _), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(coordinator.ask, {"a": message()}, timeout=120)
        assert began.wait(120)
        (question,) = coordinator.link.state.message_ins_store.values()
        with Connection(f"127.0.0.1:{coordinator.port}", keys / "eve.key", keys / "ca.crt", note=print) as connection:
            connection.join()
            assert not connection.reply(FlowerMessage(write_error("forged"), reply_to=question))
        release.set()
        answer = asked.result(120)["a"]
    assert isinstance(answer, Message) and answer.kind == "own"
