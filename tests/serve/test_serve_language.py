"""OpenAI's API of a language model, asked by the `openai` client and by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import worlds

from tauon.artifacts import RunFolder
from tauon.generate import Sampling
from tauon.recipe import load_recipe
from tauon.stages.context import Context, null_callback
from tauon.stages.generate import TextGenerator

pytestmark = pytest.mark.long

openai = pytest.importorskip("openai")


def client_of(client: Any, key: str = "none") -> Any:
    return openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=client, max_retries=0)


def test_the_openai_client_completes_streams_and_lists(serve: Any) -> None:
    api = client_of(serve("language"))
    assert [m.id for m in api.models.list()] == ["language"]
    asked: dict[str, Any] = {"model": "language", "prompt": "the cat", "max_tokens": 20, "temperature": 0}
    whole = api.completions.create(**asked)
    assert whole.usage.completion_tokens <= 20 and whole.choices[0].finish_reason in ("length", "stop")
    pieces = list(api.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.text for p in pieces for c in p.choices) == whole.choices[0].text
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_greedy_text_is_that_of_tauon_generate(serve: Any) -> None:
    folder = worlds.run_of("language")
    (told,) = TextGenerator(Context(load_recipe(folder), RunFolder.read(folder), null_callback)).write(
        "the cat", max_tokens=30, sampling=Sampling(temperature=0)
    )
    api = client_of(serve("language"))
    assert api.completions.create(model="language", prompt="the cat", max_tokens=30, temperature=0).choices[0].text == told


def test_a_model_trained_in_bf16_writes_the_same_text_in_both(serve: Any) -> None:
    folder = worlds.language("language-bf16", precision="bf16")
    assert load_recipe(folder).train.precision == "bf16"
    (told,) = TextGenerator(Context(load_recipe(folder), RunFolder.read(folder), null_callback)).write(
        "the dog", max_tokens=40, sampling=Sampling(temperature=0)
    )
    api = client_of(serve(folder))
    asked = api.completions.create(model="language-bf16", prompt="the dog", max_tokens=40, temperature=0, logprobs=1)
    assert asked.choices[0].text == told and all(p <= 0 for p in asked.choices[0].logprobs.token_logprobs)


def test_a_chat_model_answers_messages(serve: Any) -> None:
    api = client_of(serve("chat"))
    asked: dict[str, Any] = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Is 3 even?"}],
        "temperature": 0,
        "max_completion_tokens": 8,
    }
    whole = api.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    pieces = list(api.chat.completions.create(**asked, stream=True))
    assert "".join(c.delta.content or "" for p in pieces for c in p.choices) == whole.choices[0].message.content
    content = whole.choices[0].logprobs.content
    assert content and all(len(t.top_logprobs) == 2 and t.logprob <= t.top_logprobs[0].logprob + 1e-6 for t in content)


def test_seeds_repeat_and_stop_strings_do_not_leak(serve: Any) -> None:
    api = client_of(serve("language"))
    asked: dict[str, Any] = {"model": "language", "prompt": "the", "max_tokens": 30, "seed": 3}
    texts = {api.completions.create(**asked).choices[0].text for _ in range(3)}
    assert len(texts) == 1
    (text,) = texts
    stop = text[4:7]
    stopped = api.completions.create(**asked, stop=[stop]).choices[0]
    assert stop not in stopped.text and text.startswith(stopped.text)


def test_json_is_constrained_by_its_schema(serve: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"even": {"type": "boolean"}}, "required": ["even"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    api = client_of(serve("chat"))
    asked = api.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Is 4 even?"}], response_format=form, seed=1, temperature=1.2, max_tokens=40
    )
    jsonschema.validate(json.loads(asked.choices[0].message.content), schema)


WRONG = [
    ("completions", {"prompt": "x", "model": "other"}, 404, "model"),
    ("completions", {"prompt": "x"}, 400, "model"),
    ("completions", {"prompt": "x", "model": "language", "temperature": -1}, 400, "temperature"),
    ("completions", {"prompt": "x", "model": "language", "max_tokens": 0}, 400, "max_tokens"),
    ("completions", {"prompt": [], "model": "language"}, 400, "prompt"),
    ("completions", {"prompt": "y" * 500, "model": "language"}, 400, "prompt"),
    ("completions", {"prompt": [999999], "model": "language"}, 400, "prompt"),
    ("completions", {"prompt": "x", "model": "language", "n": 1000}, 400, "n"),
    ("completions", {"prompt": "x", "model": "language", "best_of": 3}, 400, "best_of"),
    ("completions", {"prompt": "x", "model": "language", "colour": "red"}, 400, "colour"),
    ("completions", {"prompt": "x", "model": "language", "logit_bias": {"a": 1}}, 400, "logit_bias"),
    ("completions", {"prompt": "x", "model": "language", "stop": [""]}, 400, "stop"),
    ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "model": "language"}, 400, "messages"),
    ("chat/completions", {"messages": [{"role": "robot", "content": "x"}], "model": "language"}, 400, "messages.0.role"),
    ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "model": "language", "tools": [{}]}, 400, "tools"),
]


@pytest.mark.parametrize(("route", "body", "status", "param"), WRONG)
def test_what_is_not_supported_is_refused_by_name(serve: Any, route: str, body: dict[str, Any], status: int, param: str | None) -> None:
    client = serve("language")
    response = client.post(f"/v1/{route}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
    assert client.post("/v1/completions", json={"model": "language", "prompt": "x", "max_tokens": 1}).status_code == 200


def test_a_language_model_is_swapped_while_it_writes(serve: Any) -> None:
    worlds.language("language-2", seed=8)
    client = serve("language", admin_keys=("admin",))
    before = client.get("/info").json()["version"]
    response = client.post("/admin/swap", json={"name": "language-2"}, headers={"x-api-key": "admin"})
    assert response.status_code == 200, response.text
    assert client.get("/info").json()["version"] != before
    assert client.post("/v1/completions", json={"model": "language", "prompt": "x", "max_tokens": 3}).status_code == 200
