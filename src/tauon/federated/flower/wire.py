"""A message of ours inside a message of Flower: a short one as one value, a longer one as an array, which Flower cuts into chunks of 5 MiB.

Flower sends each record, value and chunk by a request of its own: the short form takes three of them, the long one five and one for each chunk.
"""

from __future__ import annotations

from typing import Any

from tauon.federated.messages import Message, MessageError

__all__ = ["LONGEST_REASON", "read_bytes", "read_message", "write_error", "write_message"]

RECORD, ARRAY, KIND = "tauon", "message", "tauon.message"
LONGEST_REASON = 2000
"""Characters of a refusal at most."""
SHORT = 1 << 20
"""Bytes up to which a message is sent in one piece."""


def write_message(message: Message) -> Any:
    """Return Flower's `RecordDict` that holds the message."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    data = message.to_bytes()
    if len(data) <= SHORT:
        return RecordDict({RECORD: ConfigRecord({ARRAY: data})})
    return RecordDict({RECORD: ArrayRecord({ARRAY: Array("uint8", (len(data),), KIND, data)})})


def write_error(reason: str) -> Any:
    """Return Flower's `Error` with a reason in words."""
    from flwr.app import Error
    from flwr.common.constant import ErrorCode

    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason[:LONGEST_REASON])


def read_bytes(content: Any) -> bytes:
    """Return the bytes of the message inside Flower's content. Raises `MessageError` where it holds none."""
    record = content.get(RECORD)
    value = record.get(ARRAY) if hasattr(record, "get") else None
    data = value if isinstance(value, bytes) else getattr(value, "data", None)
    if not isinstance(data, bytes):
        raise MessageError("a Flower message that holds no message of Tauon")
    return data


def read_message(content: Any) -> Message:
    """Return the message inside Flower's content. Raises `MessageError` where it holds none."""
    return Message.from_bytes(read_bytes(content))
