"""A message of ours inside a message of Flower: a short one as one value, a longer one as its header and an array of its tensors.

Flower cuts an array into chunks of 5 MiB, sends each record, value and chunk by a request of its own, and keeps equal ones once: weights that
go to a hundred sites are in memory once, although each message has a header of its own.
"""

from __future__ import annotations

from typing import Any

from tauon.federated.messages import Message, MessageError

__all__ = ["LONGEST_REASON", "read_bytes", "read_message", "size_of", "write_error", "write_message"]

HEAD, TENSORS, KIND = "tauon", "tensors", "tauon.message"
LONGEST_REASON = 2000
"""Characters of a refusal at most."""
SHORT = 1 << 20
"""Bytes up to which a message is sent in one piece."""


def write_message(message: Message) -> Any:
    """Return Flower's `RecordDict` that holds the message."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    data = message.to_bytes()
    if len(data) <= SHORT:
        return RecordDict({HEAD: ConfigRecord({HEAD: data})})
    end = 8 + int.from_bytes(data[:8], "little")
    tensors = Array("uint8", (len(data) - end,), KIND, data[end:])
    return RecordDict({HEAD: ConfigRecord({HEAD: data[:end]}), TENSORS: ArrayRecord({TENSORS: tensors})})


def write_error(reason: str) -> Any:
    """Return Flower's `Error` with a reason in words."""
    from flwr.app import Error
    from flwr.common.constant import ErrorCode

    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason[:LONGEST_REASON])


def read_bytes(content: Any) -> bytes:
    """Return the bytes of the message inside Flower's content. Raises `MessageError` where it holds none."""
    head, tensors = content.get(HEAD), content.get(TENSORS)
    start = head.get(HEAD) if hasattr(head, "get") else None
    rest = getattr(tensors.get(TENSORS), "data", None) if hasattr(tensors, "get") else b""
    if not isinstance(start, bytes) or not isinstance(rest, bytes):
        raise MessageError("a Flower message that holds no message of Tauon")
    return start + rest if rest else start


def size_of(content: Any) -> int:
    """Return the bytes of the message inside Flower's content; 0 where it holds none."""
    try:
        head, tensors = content[HEAD][HEAD], content.get(TENSORS)
        return len(head) + (len(tensors[TENSORS].data) if tensors is not None else 0)
    except (KeyError, TypeError, AttributeError):
        return 0


def read_message(content: Any) -> Message:
    """Return the message inside Flower's content. Raises `MessageError` where it holds none."""
    return Message.from_bytes(read_bytes(content))
