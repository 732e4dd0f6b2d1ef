"""Constrained output always parses and validates, whatever the model prefers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from generate.serving import Engine, EngineConfig, Request, SamplingParams, small, tokenizers
from tauon.generate import RequestError, StructuredOutputs

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

TOKENIZERS = tokenizers()
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def texts(kind: str, outputs: StructuredOutputs, count: int, temperature: float) -> list[Any]:
    tokenizer = TOKENIZERS[kind]
    model = small(vocab=tokenizer.vocab_size, seq_len=256)
    with Engine(model, tokenizer, EngineConfig(max_running=6)) as engine:
        params = [SamplingParams(seed=i, temperature=temperature, structured_outputs=outputs, n=1 + i % 2) for i in range(count)]
        streams = [engine.submit(Request([tokenizer.bos], p)) for p in params]
        return [answer for s in streams for answer in s.result(60)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_json_always_parses_and_validates(kind: str, temperature: float) -> None:
    found = texts(kind, StructuredOutputs(json=SCHEMA), 12, temperature)
    for answer in found:
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    if temperature:
        assert len({a.text for a in found}) > 5


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_regex_choice_and_grammar(kind: str) -> None:
    for answer in texts(kind, StructuredOutputs(regex=r"[a-f]{3,6}-[0-9]{2}"), 6, 1.5):
        assert re.fullmatch(r"[a-f]{3,6}-[0-9]{2}", answer.text) and answer.finish_reason == "stop"
    assert {a.text for a in texts(kind, StructuredOutputs(choice=("yes", 'n"o', "a b")), 12, 1.5)} == {"yes", 'n"o', "a b"}
    grammar = 'start: pair ("," pair)? \npair: "(" /[0-9]/ ")"'
    for answer in texts(kind, StructuredOutputs(grammar=grammar), 6, 1.5):
        assert re.fullmatch(r"\(\d\)(,\(\d\))?", answer.text)


def test_a_constraint_that_does_not_compile_is_refused_in_words() -> None:
    tokenizer = TOKENIZERS["bytes"]
    with Engine(small(vocab=257), tokenizer) as engine:
        for outputs in (
            StructuredOutputs(regex="("),
            StructuredOutputs(grammar="start: missing"),
            StructuredOutputs(json={"type": "nothing"}),
        ):
            with pytest.raises(RequestError, match="structured_outputs: .{10}"):
                engine.submit(Request([1], SamplingParams(structured_outputs=outputs)))
        assert engine.stats().requests == 0


def test_without_a_tokenizer_it_is_refused() -> None:
    with Engine(small()) as engine, pytest.raises(RequestError, match="needs a tokenizer"):
        engine.submit(Request([1], SamplingParams(structured_outputs=StructuredOutputs(json=True))))
