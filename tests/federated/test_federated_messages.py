"""Messages: what was sent is read back, and whatever else arrives is refused."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tauon.federated import Message, MessageError

FIELDS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(), st.integers(0, 2**40), st.text(), st.dictionaries(st.text(), FIELDS, max_size=4))
def test_a_message_is_read_back_as_it_was_sent(kind: str, number: int, nonce: str, fields: dict[str, object]) -> None:
    sent = Message(kind, number, nonce, fields, {"a": torch.arange(6).view(2, 3).t(), "b": torch.tensor([float("nan")])})
    got = Message.from_bytes(sent.to_bytes())
    assert (got.kind, got.round, got.nonce, got.fields) == (kind, number, nonce, fields)
    assert torch.equal(got.tensors["a"], sent.tensors["a"]) and got.tensors["b"].isnan()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        Message.from_bytes(data)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_message_is_refused_or_another_message(at: int, flip: int) -> None:
    data = bytearray(Message("train", 1, "n", {"steps": 2}, {"w": torch.ones(4)}).to_bytes())
    data[at % len(data)] ^= flip
    with contextlib.suppress(MessageError):
        Message.from_bytes(bytes(data))


def test_the_answer_is_of_the_round() -> None:
    asked = Message("train", 4, "abc")
    assert asked.answer("trained", {"examples": 3}).round == 4 and asked.answer("trained").nonce == "abc"
    with pytest.raises(ValueError, match="JSON"):
        Message("x", fields={"loss": float("nan")}).to_bytes()
