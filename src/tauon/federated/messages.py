"""What the coordinator and the sites of a federated run send each other: a kind, the round, a nonce, JSON fields and tensors.

On the wire: 8 bytes with the length of the header (little-endian), the header as JSON, then the tensors in the safetensors format. Nothing is
unpickled, and whatever does not follow the format is refused with `MessageError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tauon.errors import TauonError

__all__ = ["Failure", "Message", "MessageError", "Site", "Transport"]

LARGEST_HEADER = 1 << 24
"""Bytes of a header at most: a longer one is refused before it is read."""


class MessageError(TauonError):
    """A message that does not follow the format, or does not belong here: another round, another run, an answer that was not asked for."""


@dataclass(frozen=True)
class Message:
    """One message between the coordinator and a site.

    Args:
        kind: what is asked or answered: "join", "train", "evaluate", "secagg/keys", ...
        round: round of the run, from 1; 0 before the first.
        nonce: random text that the coordinator drew for this round. An answer repeats it; an old answer has another one.
        fields: anything that JSON can hold.
        tensors: tensors by name.

    >>> import torch
    >>> sent = Message("train", 3, "5f1c", {"steps": 20}, {"w": torch.ones(2)})
    >>> Message.from_bytes(sent.to_bytes()).tensors["w"]
    tensor([1., 1.])
    """

    kind: str
    round: int = 0
    nonce: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the message as it is sent. Raises `ValueError` for fields that JSON cannot hold, NaN and infinity included."""
        header = {"kind": self.kind, "round": self.round, "nonce": self.nonce, "fields": dict(self.fields)}
        text = json.dumps(header, allow_nan=False).encode()
        tensors: bytes = save({name: t.contiguous() for name, t in self.tensors.items()})
        return len(text).to_bytes(8, "little") + text + tensors

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """Return the message that `to_bytes` wrote. Raises `MessageError`."""
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > min(LARGEST_HEADER, len(data) - 8):
            raise MessageError(f"a message of {len(data)} bytes is cut off, or its header of {size} bytes is too long")
        try:
            header = json.loads(data[8 : 8 + size], parse_constant=_refuse_constant)
            tensors = load(data[8 + size :])
        except (ValueError, SafetensorError, RecursionError) as err:
            raise MessageError(f"a message that cannot be read: {err}") from None
        except (KeyError, TypeError, RuntimeError, OverflowError) as err:  # of types and shapes that safetensors knows and torch does not
            raise MessageError(f"a message with tensors of an unknown type or an impossible shape: {type(err).__name__} {err}") from None
        match header:
            case {"kind": str(kind), "round": int(number), "nonce": str(nonce), "fields": dict(fields)} if len(header) == 4 and number >= 0:
                return cls(kind, number, nonce, fields, tensors)
        raise MessageError("a message whose header is not {kind, round, nonce, fields}")

    def answer(self, kind: str, fields: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None) -> Message:
        """Return an answer to this message: of the same round, with the same nonce."""
        return Message(kind, self.round, self.nonce, fields or {}, tensors or {})


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


@dataclass(frozen=True)
class Failure:
    """Why a site gave no usable answer."""

    reason: str
    """In words, for the log: "no answer within 60 s", "its update is not finite: layer.weight"."""


class Site(Protocol):
    """The site's end: answers one message after another. Lives as long as the run, in one process; state stays at the site."""

    def answer(self, message: Message) -> Message:
        """Return the answer. An exception of `TauonError` reaches the coordinator as a `Failure` with its text; its traceback does not."""
        ...


class Transport(Protocol):
    """The coordinator's end: carries messages to sites that are known by name, and their answers back."""

    def sites(self) -> list[str]:
        """Return the names of the sites that can be asked now, sorted."""
        ...

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        """Send each site its message, all at once; return the answer of each, or why there is none, after `timeout` seconds at most.

        Answers that come later are thrown away. The keys are those of `messages`, in the same order.
        """
        ...
