"""`Transport` over Flower's Grid: asks sites by name, with our own deadlines.

A site is in `sites()` once it is online and, where there is a greeting, has answered it. Flower's own deadline (messages live for hours, a node counts
as online for a minute after its last sign of life) only bounds how long the link keeps an answer that no caller asks for.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tauon.federated.flower.wire import read_message, size_of, write_message
from tauon.federated.messages import Failure, Message, MessageError
from tauon.federated.network import Trouble

__all__ = ["FlowerTransport"]

CONNECT, CONNECTED, END, ENDED = "transport/connect", "transport/connected", "transport/end", "transport/ended"
"""Kinds of the messages that are the transport's own; a `Site` never sees them."""
EXTRA_LIFE = 300.0
"""Seconds that the link keeps a message beyond its deadline: clocks of sites differ."""
GREETING_TIMEOUT = 60.0
LONGEST_PAUSE = 0.25
"""Seconds between two looks at the link at most; a link in this process wakes us earlier."""


@dataclass
class _Node:
    """A node that is online: its number, and when its process joined."""

    number: int
    since: str


@dataclass
class _Visit:
    """A process of a site, from its joining on."""

    node: _Node
    greeting_id: str = ""
    asked: float = 0.0
    welcome: bool = False
    refused: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


class FlowerTransport:
    """Carries messages to Flower's nodes.

    Args:
        grid: Flower's `Grid`: that of `serve`, or of a `ServerApp` (its simulation included).
        names: public key (PEM) to name; nodes with another key do not exist for us. None: every node, named `site-<number>`.
        greeting: sent to every process that joins; a site that answers anything but `CONNECTED` is left out.
        note: called with what is worth a line in the log: sites that join, leave, are refused.
    """

    def __init__(
        self,
        grid: Any,
        names: Callable[[], Mapping[bytes, str]] | None = None,
        *,
        greeting: Message | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.grid, self.names, self.greeting = grid, names, greeting
        self.note = note or (lambda text: None)
        self._visits: dict[str, _Visit] = {}
        self._traffic: dict[str, tuple[int, int]] = {}
        self._lock = threading.RLock()  # several threads may ask at once, each its own sites

    def sites(self) -> list[str]:
        """Return the names of the sites that can be asked now, sorted. Sends the greeting to those that are new, without waiting for its answer."""
        return sorted(name for name, visit in self._look().items() if visit.welcome)

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Return the bytes of the messages sent to each site and of the answers received from it so far, before TLS."""
        return dict(self._traffic)

    def joined(self, site: str) -> Mapping[str, Any]:
        """Return the fields with which a site answered the greeting. Raises `KeyError` for a site that is not connected."""
        return self._visits[site].fields

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        """Send each site its message; see `Transport.ask`. Answers of another round or with another nonce are failures."""
        give_up = time.monotonic() + timeout
        visits = self._look()
        answers: dict[str, Message | Failure] = {}
        pending: dict[str, tuple[str, _Node]] = {}  # id of the message -> site, and the process that was asked
        written: dict[int, Any] = {}  # one message for several sites is written once
        for name, message in messages.items():
            visit = visits.get(name)
            if visit is None or not visit.welcome:
                answers[name] = Failure("it has not joined" if visit else "it is not connected")
                continue
            if id(message) not in written:
                written = {id(message): write_message(message)}
            self._count(name, size_of(written[id(message)]), 0)
            message_id = self._push(visit.node, message, timeout, written[id(message)])
            if message_id:
                pending[message_id] = name, visit.node
            else:
                answers[name] = Failure("Flower did not take the message: the site was removed from the roster, or has just left")
        try:
            self._collect(pending, messages, answers, give_up)
        finally:
            self._discard(list(pending))
        for name, _ in pending.values():
            answers[name] = Failure(f"no answer within {timeout:g} s")
        return {name: answers[name] for name in messages}

    def _collect(
        self, pending: dict[str, tuple[str, _Node]], messages: Mapping[str, Message], answers: dict[str, Message | Failure], give_up: float
    ) -> None:
        """Move answers from `pending` to `answers` until none is missing or the time is over."""
        last_look = time.monotonic()
        while pending:
            for reply in self.grid.pull_messages(list(pending)):
                name, _ = pending.pop(reply.metadata.reply_to_message_id, ("", None))
                if name:
                    answers[name] = _answer(reply, messages[name])
                    self._count(name, 0, size_of(reply.content) if reply.has_content() else 0)
            if time.monotonic() - last_look > 1.0:
                last_look = time.monotonic()
                self._drop_restarted(pending, answers)
            if not pending or time.monotonic() >= give_up:
                return
            self._pause(give_up)

    def _count(self, site: str, sent: int, received: int) -> None:
        with self._lock:
            before = self._traffic.get(site, (0, 0))
            self._traffic[site] = (before[0] + sent, before[1] + received)

    def _pause(self, give_up: float) -> None:
        seconds = max(0.0, min(LONGEST_PAUSE, give_up - time.monotonic()))
        wait = getattr(self.grid, "wait", None)
        wait(seconds) if wait is not None else time.sleep(min(seconds, 0.05))

    def _discard(self, message_ids: Iterable[str]) -> None:
        discard = getattr(self.grid, "discard", None)
        if discard is not None:
            discard(list(message_ids))

    def _drop_restarted(self, pending: dict[str, tuple[str, _Node]], answers: dict[str, Message | Failure]) -> None:
        """Fail what was asked of processes that are gone: a site that started again knows nothing of the question."""
        visits = self._look()
        for message_id, (name, node) in list(pending.items()):
            visit = visits.get(name)
            if visit is not None and visit.node == node:
                continue  # the same process
            answers[name] = Failure("it went offline before it answered" if visit is None else "it was started again before it answered")
            self._discard([message_id])
            del pending[message_id]

    def _push(self, node: _Node, message: Message, timeout: float, content: Any = None) -> str:
        from flwr.app import Metadata
        from flwr.app.message import make_message
        from flwr.common.constant import SUPERLINK_NODE_ID

        metadata = Metadata(
            run_id=self.grid.run.run_id, message_id="", src_node_id=SUPERLINK_NODE_ID, dst_node_id=node.number, reply_to_message_id="",
            group_id=str(message.round), created_at=time.time(), ttl=timeout + EXTRA_LIFE, message_type="query",
        )  # fmt: skip
        metadata.delivered_at = ""
        (message_id,) = self.grid.push_messages([make_message(metadata, content=content or write_message(message))]) or [""]
        return message_id or ""

    def _online(self) -> dict[str, _Node]:
        names = self.names() if self.names is not None else None
        nodes = {}
        for info in self.grid.get_nodes():
            name = f"site-{info.node_id}" if names is None else names.get(info.public_key)
            if name is not None:
                nodes[name] = _Node(info.node_id, info.last_activated_at)
        return nodes

    def _look(self) -> dict[str, _Visit]:
        """Return the sites that are online, after greeting the new ones and reading the answers to earlier greetings."""
        with self._lock:
            self._update()
            return dict(self._visits)

    def _update(self) -> None:
        self._read_greetings()  # also of a site that has left since
        online = self._online()
        for name in [n for n, visit in self._visits.items() if online.get(n) != visit.node]:
            visit = self._visits.pop(name)
            self._discard([visit.greeting_id] if visit.greeting_id else [])
            if name not in online:
                self.note(Trouble(f"{name} went offline"))
        for name, node in online.items():
            visit = self._visits.setdefault(name, _Visit(node, welcome=self.greeting is None))
            late = visit.greeting_id and time.monotonic() - visit.asked > GREETING_TIMEOUT
            if not visit.welcome and not visit.refused and (not visit.greeting_id or late):
                self._discard([visit.greeting_id] if visit.greeting_id else [])
                self._greet(visit)
        self._read_greetings()

    def _greet(self, visit: _Visit) -> None:
        assert self.greeting is not None
        message = replace(self.greeting, nonce=secrets.token_hex(16))
        visit.greeting_id, visit.asked = self._push(visit.node, message, GREETING_TIMEOUT), time.monotonic()

    def _read_greetings(self) -> None:
        asked = {visit.greeting_id: name for name, visit in self._visits.items() if visit.greeting_id}
        for reply in self.grid.pull_messages(list(asked)) if asked else []:
            name = asked.get(reply.metadata.reply_to_message_id, "")
            if not name:
                continue
            visit, answer = self._visits[name], _read(reply)
            visit.greeting_id = ""
            if isinstance(answer, Message) and answer.kind == CONNECTED:
                visit.welcome, visit.fields = True, answer.fields
                self.note(f"{name} joined")
            else:
                visit.refused = True
                reason = answer.reason if isinstance(answer, Failure) else f"it answered {answer.kind!r}"
                self.note(Trouble(f"{name} cannot take part: {reason}"))


def _read(reply: Any) -> Message | Failure:
    if reply.has_error():
        return Failure(_words(reply.error))
    try:
        return read_message(reply.content)
    except MessageError as err:
        return Failure(f"its answer cannot be read: {err}")


def _answer(reply: Any, asked: Message) -> Message | Failure:
    answer = _read(reply)
    if isinstance(answer, Message) and (answer.round, answer.nonce) != (asked.round, asked.nonce):
        return Failure(f"it answered round {answer.round} instead of round {asked.round}, or with another nonce: an old answer")
    return answer


def _words(error: Any) -> str:
    from flwr.common.constant import ErrorCode

    known = {ErrorCode.NODE_UNAVAILABLE: "it went offline before it answered", ErrorCode.MESSAGE_UNAVAILABLE: "the message was lost"}
    reason = str(error.reason or known.get(error.code, f"Flower's error {error.code}"))
    return known.get(error.code, reason) if error.code == ErrorCode.NODE_UNAVAILABLE else reason
