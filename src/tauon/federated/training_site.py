"""A site that trains: answers "join", "train" and "evaluate".

At joining it draws a token that every later request has to repeat, and afterwards it takes no request of a round and attempt that are not newer than
the last: a recorded message that is sent again is refused, while a coordinator that was restarted joins again and may repeat rounds.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from tauon.distributed.timeouts import group_store
from tauon.federated.local import LocalTraining
from tauon.federated.messages import Message, MessageError
from tauon.federated.site_state import SiteState
from tauon.train import TrainJob, validation_loss, validation_marks
from tauon.types import Batch

__all__ = ["TrainingSite", "check_identity"]

POLL = 0.02
"""Seconds between two looks for a message of the site's first process."""


WAYS_OUT = {
    "schema": "shapes, classes or columns of the data differ. Compare what `tauon federate spec` writes at both, or give both the same --spec",
    "preprocessing": "it was fitted to other data. Use normalize: unit, bounds or none and a tokenizer in a file, or give both the same --spec",
    "version": "install the same",
}
"""What to do where coordinator and site differ, by the name of what differs."""


def check_identity(ours: Mapping[str, str], theirs: Any, *, who: str) -> None:
    """Raise `MessageError` if two parties do not train the same: version, recipe, schema, normalising statistics, frozen weights, by name.

    Names that only one side has are not compared.
    """
    if not isinstance(theirs, Mapping):
        raise MessageError(f"{who} sent no names with hashes of what both sides must have in common")
    for name, value in ours.items():
        if name in theirs and theirs[name] != value:
            why = WAYS_OUT.get(name, "both sides must have the same")
            raise MessageError(f"{who} has {name} {str(theirs[name])[:16]}, ours is {value[:16]}: {why}")


class TrainingSite:
    """A site's end of a federated run.

    Args:
        local: its training.
        identity: what has to be the same everywhere, by name: "version", "recipe", "schema", "normalize", "frozen", ... usually as hashes.
        held_out: batches of the site's held-out examples, for "evaluate".
        measure: more metrics of the loaded model by name; called in eval mode.
        state: tensors that never leave the site; give the saved one after a restart.
        save: called with the state after each round, before the answer leaves.
    """

    def __init__(
        self, local: LocalTraining, *, identity: Mapping[str, str] | None = None, held_out: Callable[[], Iterable[Batch]] | None = None,
        measure: Callable[[TrainJob], Mapping[str, float]] | None = None, state: SiteState | None = None,
        save: Callable[[SiteState], None] | None = None,
    ) -> None:  # fmt: skip
        self.local, self.identity, self.held_out, self.measure = local, dict(identity or {}), held_out, measure
        self.state = state or SiteState()
        self._save = save
        self.is_final = False
        """Whether the job has the weights that training ended with."""
        self._session: str | None = None
        self._last = (0, 0)
        self._done: tuple[Message, Message] | None = None
        """Of a private job: the last request to train, and its answer."""
        self._sent = 0
        """Messages that the first process passed on to the others."""

    @property
    def world(self) -> int:
        """Processes of this site."""
        return self.local.job.mesh.world.size

    def answer(self, message: Message) -> Message:
        """Return the answer to a message; on the first process of the site. Raises `MessageError` in words for one that does not belong here."""
        if message.kind == "join":
            return self._join(message)
        self._check(message)
        if self.world > 1:
            self._send(message.to_bytes())
        return self.work(message)

    def follow(self) -> None:
        """On the other processes of the site: do the same work as the first one, until it calls `stop`."""
        while data := self._receive():
            self.work(Message.from_bytes(data))

    def stop(self) -> None:
        """End `follow` on the other processes."""
        if self.world > 1:
            self._send(b"")

    def _send(self, data: bytes) -> None:
        self._sent += 1
        group_store().set(f"tauon-site/{self._sent}", "")
        _broadcast(data)

    def _receive(self) -> bytes:
        """Wait for the next message, which may take longer than a collective may: as long as the other sites need."""
        self._sent += 1
        store, key = group_store(), f"tauon-site/{self._sent}"
        while not store.check([key]):
            time.sleep(POLL)
        return _broadcast(None)

    def work(self, message: Message) -> Message:
        """Answer "train", "evaluate" or "final" without the checks of `answer`; collective over the processes of the site."""
        if message.kind == "train":
            self.is_final = False
            return self._train(message)
        if message.kind == "evaluate":
            return message.answer("evaluated", self._evaluate(message))
        if message.kind == "final":
            self.local.load(message.tensors, self.state.before(message.round + 1))
            self.is_final = True
            return message.answer("loaded")
        raise MessageError(f"a message of kind {message.kind!r}, expected join, train, evaluate or final")

    def _train(self, message: Message) -> Message:
        """Train, save, answer. Asked for the same again (a round that is repeated), a private job gives the same answer: that spends nothing."""
        if self._done is not None and _is_same(self._done[0], message):
            return message.answer("trained", self._done[1].fields, self._done[1].tensors)
        trained = self.local.train(message, self.state)
        if self._save is not None:
            self._save(self.state)
        if self.local.private:
            self._done = replace(message, tensors={n: t.clone() for n, t in message.tensors.items()}), trained
        return trained

    def _join(self, message: Message) -> Message:
        check_identity(self.identity, message.fields.get("identity") or {}, who="the coordinator")
        if self.local.examples < 1:
            raise MessageError("this site has no training examples")
        self._session, self._last = secrets.token_hex(16), (0, 0)
        fields = {"examples": self.local.examples, "session": self._session, "identity": self.identity}
        return message.answer("joined", fields)

    def _check(self, message: Message) -> None:
        """Raise `MessageError` for another session, or a round and attempt that are not new."""
        if self._session is None:
            raise MessageError("this site has not joined the run yet, or was restarted since")
        if message.fields.get("session") != self._session:
            raise MessageError("a message of another session: it is a replay, or this site has joined again since")
        attempt = message.fields.get("attempt", 0)
        if message.kind == "train":
            if not isinstance(attempt, int) or (message.round, attempt) <= self._last:
                raise MessageError(f"round {message.round}, attempt {attempt} is not newer than {self._last[0]}, {self._last[1]}: a replay")
            self._last = (message.round, attempt)

    def _evaluate(self, message: Message) -> dict[str, Any]:
        if self.held_out is None:
            raise MessageError("this site has no held-out examples")
        self.local.load(message.tensors, self.state.before(message.round + 1))
        fields = self._metrics()
        tune = message.fields.get("fine_tune", 0)
        if isinstance(tune, int) and tune > 0:
            self.local.fine_tune(tune)
            self.state.steps = max(self.state.steps, self.local.job.step)
            if self.local.private and self._save is not None:
                self._save(self.state)  # steps that were made are not made again
            fields["tuned"] = self._metrics()["metrics"]
        return fields

    def _metrics(self) -> dict[str, Any]:
        """{"examples": n, "metrics": {"loss": ..., ...}} of the weights that are loaded."""
        assert self.held_out is not None
        job, batches = self.local.job, list(self.held_out())
        found = {"loss": validation_loss(job, batches)} | validation_marks(job, batches)
        if self.measure is not None:
            was_training = job.model.training
            job.model.eval()
            try:
                found |= self.measure(job)
            finally:
                job.model.train(was_training)
        return {"examples": sum(len(b) for b in batches), "metrics": {n: float(v) for n, v in found.items() if math.isfinite(v)}}


def _is_same(asked: Message, message: Message) -> bool:
    """Whether two requests ask for the same work, from the same weights."""
    one, other = ({k: v for k, v in m.fields.items() if k not in ("attempt", "session")} for m in (asked, message))
    same = asked.round == message.round and one == other and asked.tensors.keys() == message.tensors.keys()
    return same and all(torch.equal(t, message.tensors[n]) for n, t in asked.tensors.items())


def _broadcast(data: bytes | None) -> bytes:
    """Send bytes from the first process (None: receive them); empty ends the others' loop."""
    size = torch.tensor([len(data) if data is not None else 0])
    dist.broadcast(size, 0)
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(int(size), dtype=torch.uint8)
    if int(size):
        dist.broadcast(content, 0)
    return content.numpy().tobytes()
