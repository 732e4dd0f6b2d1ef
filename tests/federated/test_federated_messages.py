"""Messages: what was sent is read back, and whatever else arrives is refused."""

from __future__ import annotations

import contextlib
import json

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


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F4", [2], 1), ("F6_E2M3", [4], 3), ("F8_E8M0", [1], 1), ("F32", [2**63, 0], 0), ("F32", [0, 2**62, 2**62], 0), ("F32", [-1], 4)],
)
def test_tensors_that_torch_cannot_hold_are_refused(dtype: str, shape: list[int], size: int) -> None:
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    ours = Message("trained", 1, "n").to_bytes()
    start = 8 + int.from_bytes(ours[:8], "little")
    with pytest.raises(MessageError):
        Message.from_bytes(ours[:start] + len(header).to_bytes(8, "little") + header + bytes(size))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(value: str) -> None:
    header = b'{"kind": "trained", "round": 1, "nonce": "n", "fields": {"loss": %s}}' % value.encode()
    tensors = Message("x").to_bytes()
    with pytest.raises(MessageError, match="not a number in JSON"):
        Message.from_bytes(len(header).to_bytes(8, "little") + header + tensors[8 + int.from_bytes(tensors[:8], "little") :])


def test_the_answer_is_of_the_round() -> None:
    asked = Message("train", 4, "abc")
    assert asked.answer("trained", {"examples": 3}).round == 4 and asked.answer("trained").nonce == "abc"
    with pytest.raises(ValueError, match="JSON"):
        Message("x", fields={"loss": float("nan")}).to_bytes()
