"""Conversations and preferences: what is read, how templates write it, what the loss covers, how rows are packed and cut."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import ChatConfig, ChatEncoder, DataConfig, DataSplits, Message, chat_prompt, prepare, template_for
from tauon.data.chat import packed
from tauon.data.chat_template import PlainTemplate
from tauon.data.sources.chat_rows import conversation, pair
from tauon.data.tokenizer import ByteTokenizer, SubwordTokenizer
from tauon.errors import DataError, RecipeError

ALPACA = [{"instruction": f"Say {i}.", "input": "" if i % 2 else f"about {i}", "output": f"It is {i}."} for i in range(20)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))


def made(tmp_path: Path, rows: list[Any], input_kind: str = "chat", **more: Any) -> DataSplits:
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = {"kind": input_kind, "path": str(tmp_path / "rows.json")}
    return prepare(parse(DataConfig, {"source": source, "tokenizer": "bytes", "seq_len": 256} | more), seed=1, input_kind=input_kind)


def written(config: dict[str, Any], messages: list[Message]) -> str:
    template = template_for(parse(ChatConfig, config))
    assert isinstance(template, PlainTemplate)
    return "".join(p.text for p in template.pieces(messages, "here"))


def with_markers(*markers: str) -> SubwordTokenizer:
    """A byte-level tokenizer that has these special tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tok = tokenizers.Tokenizer(models.BPE(vocab, []))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.add_special_tokens(["<|endoftext|>", *markers])
    return SubwordTokenizer(tok.to_str())


def test_three_forms_of_one_conversation_are_the_same() -> None:
    alpaca = conversation({"instruction": "Hi", "input": "", "output": "Hello"}, "x")
    openai = conversation({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, "x")
    sharegpt = conversation({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "x")
    assert alpaca == openai == sharegpt


def test_forms_of_one_preference_are_the_same() -> None:
    plain = pair({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, "x")
    factory = pair(
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        "x",
    )
    user = {"role": "user", "content": "Hi"}
    repeated = pair(
        {"prompt": [user]} | {k: [user, {"role": "assistant", "content": a}] for k, a in (("chosen", "Hello"), ("rejected", "No"))}, "x"
    )
    assert plain == factory == repeated


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, "are not a conversation"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no message has the role assistant"),
        ({"messages": [{"content": "Hi"}]}, "message 0 has no role"),
        ({"instruction": 3, "output": "x"}, "instruction is int, expected text"),
    ],
)
def test_what_is_no_conversation_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        conversation(row, "a.json, item 3")


def user_says(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content, **more}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (user_says(None), r"content of message 1 \(assistant\) is null or missing"),
        (
            user_says(None, tool_calls=[{"id": 1}]),
            r"message 1 \(assistant\): tool_calls is \[\{'id': 1\}\], which no chat template writes",
        ),
        (user_says("", tool_calls=[{"id": 1}]), "tool_calls is"),
        (user_says("x", function_call={"name": "f"}), "function_call is"),
        (user_says("x", reasoning_content="so"), "reasoning_content is 'so'"),
        (user_says("x") | {"tools": [{"type": "function"}]}, "a.json, item 3: tools is"),
        (user_says([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]), "has a part of type 'image_url'"),
        (user_says(["a"]), "has a part of type 'str'"),
        (user_says("x", weight=0.5), "message 1 has weight 0.5, expected 0"),
        (user_says("x", weight=0), "every answer has weight 0, so there is nothing to train on"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, r"history is \[\['c'\]\], expected a list of \[question, answer\]"),
        ({"instruction": "a", "output": "b", "history": "c"}, "history is 'c'"),
        ({"prompt": "a", "completion": None}, "completion is null or missing"),
        ({"prompt": "a", "response": "b"}, "keys prompt, response are not a conversation"),
        (
            user_says("x") | {"system": "S", "messages": [{"role": "system", "content": "T"}, *user_says("x")["messages"]]},
            "two different system messages",
        ),
    ],
)
def test_what_would_be_lost_of_a_row_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        conversation(row, "a.json, item 3")


def test_more_forms_are_read_whole() -> None:
    answer = Message("assistant", "Hello")
    assert conversation({"prompt": "Hi", "completion": "Hello"}, "x").messages == (Message("user", "Hi"), answer)
    lists = {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
    }
    assert conversation(lists, "x").messages == (Message("system", "S"), Message("user", "Hi"), answer)
    assert conversation(user_says([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]), "x").messages[1] == answer
    history = {"instruction": "Hi", "input": "", "output": "Hello", "history": [["One?", "Uno"], ["Two?", "Dos"]], "system": "S"}
    assert [(m.role, m.content) for m in conversation(history, "x").messages] == [
        ("system", "S"), ("user", "One?"), ("assistant", "Uno"), ("user", "Two?"), ("assistant", "Dos"), ("user", "Hi"), ("assistant", "Hello"),
    ]  # fmt: skip
    plain = user_says("Hello") | {"system": "S", "messages": [{"role": "system", "content": "S"}, *user_says("Hello")["messages"]]}
    assert len(conversation(plain, "x").messages) == 3  # the same system message twice is one
    for tools in (None, [], ""):
        assert conversation(user_says("Hello", tool_calls=tools) | {"tools": tools}, "x").messages[1] == answer
    parts = [{"type": "text", "text": "Hi"}]
    assert pair({"prompt": [{"role": "user", "content": parts}], "chosen": "a", "rejected": "b"}, "x").prompt == (Message("user", "Hi"),)


def test_keys_that_are_not_read_are_named_and_counted(tmp_path: Path) -> None:
    rows = [user_says(f"It is {i}.", name="Bob") | {"id": i, "source": "here", "score": None} for i in range(1, 20)]
    facts = made(tmp_path, rows, split={"validation": 0}).facts
    assert facts["ignored_keys"] == {"train": {"name": 19, "id": 19, "source": 19}}
    assert facts["notes"] == ["keys of the rows that were not read: id, name, source"]
    strange = [{"instruction": "a", "output": "b", "\ud800": 1}] * 12
    assert made(tmp_path, strange).facts["notes"] == ["keys of the rows that were not read: \\ud800"]
    pairs = [{"prompt": "Hi", "chosen": f"a{i}", "rejected": "b", "margin": 2} for i in range(12)]
    assert made(tmp_path, pairs, "pairs").facts["notes"] == ["keys of the rows that were not read: margin"]


def test_answers_of_weight_zero_are_context_and_the_others_are_learned(tmp_path: Path) -> None:
    said = [
        ("user", "one", None),
        ("assistant", "uno", 0),
        ("user", "two", 1),
        ("assistant", "dos", 1),
        ("user", "three", None),
        ("assistant", "", 0),
    ]
    row = {"messages": [{"role": r, "content": c} | ({} if w is None else {"weight": w}) for r, c, w in said]}
    splits = made(tmp_path, [row] * 12, split={"validation": 0})
    batch = splits.train.batch(np.arange(len(splits.train)))
    assert batch.segments is not None
    for row_of, weights, segments in zip(batch.targets, batch.weights, batch.segments, strict=True):
        for document in range(int(segments.max()) + 1):
            ids = row_of[(segments == document) & (weights > 0)]
            assert (ByteTokenizer().decode(ids), ids[-1]) == ("dos", 256)
    assert splits.train.answers(0) == [["dos"]] * len(splits.train.answers(0))  # type: ignore[attr-defined]
    other = [{"messages": [{**m, "weight": 1} for m in row["messages"][:4]]}] * 12
    assert made(tmp_path, other).fingerprint != made(tmp_path, [{"messages": row["messages"][:4]}] * 12).fingerprint


def test_an_empty_answer_in_the_middle_is_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    said = [{"role": r, "content": c} for r, c in (("user", "one"), ("assistant", "\n "), ("user", "two"), ("assistant", "dos"))]
    rows = [*ALPACA, {"messages": said}, {"instruction": "a", "output": "b", "history": [["c", ""]]}]
    with pytest.raises(DataError, match=r"item 20: the answer in message 1 is empty \(2 such .* give it weight 0"):
        made(tmp_path, rows)
    facts = made(tmp_path, rows, chat={"empty_answers": "drop"}).facts
    assert facts["left_out_empty"] == {"train": 2}
    assert facts["notes"] == ["2 conversations of the train source are left out, because an answer is empty"]


def test_pairs_that_prefer_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are the same text"):
        pair({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "x")
    with pytest.raises(DataError, match="chosen is a message with role 'user', expected role assistant"):
        pair({"prompt": "Hi", "chosen": {"from": "human", "value": "a"}, "rejected": "b"}, "x")
    with pytest.raises(DataError, match="no rejected"):
        pair({"prompt": "Hi", "chosen": "a"}, "x")
    with pytest.raises(DataError, match="answers are the same within"):
        made(tmp_path, [{"prompt": "Hi", "chosen": "a" * 90 + "b", "rejected": "a" * 90 + "c"}] * 9, "pairs", seq_len=80)


def test_alpaca_is_stanfords_prompt_to_the_letter() -> None:
    """The two strings are PROMPT_DICT of github.com/tatsu-lab/stanford_alpaca/blob/main/train.py."""
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    )
    answer = Message("assistant", "A")
    assert written({}, [Message("user", "Q"), Message("input", "I"), answer]) == with_input.format(instruction="Q", input="I") + "A{end}"
    assert written({}, [Message("user", "Q"), answer]) == without.format(instruction="Q") + "A{end}"


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
LLAMA3 = (  # as in the tokenizer_config.json of Llama 3, but for the token before all
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
)


@pytest.mark.parametrize(("preset", "jinja"), [("chatml", CHATML), ("llama-3", LLAMA3)])
def test_presets_write_what_the_published_jinja_template_writes(preset: str, jinja: str) -> None:
    pytest.importorskip("jinja2")
    messages = [Message("system", "S"), Message("user", "Q"), Message("assistant", "A"), Message("user", "R"), Message("assistant", "B")]
    ours, theirs = template_for(parse(ChatConfig, {"template": preset})), template_for(parse(ChatConfig, {"jinja": jinja}))
    tokenizer = with_markers("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    a, b = (ChatEncoder(t, tokenizer).encode(messages, "x") for t in (ours, theirs))
    assert a.ids[1:].tolist() == b.ids.tolist()  # a preset has BOS before it, a Hugging Face template what it writes
    assert a.covered[1:].tolist() == b.covered.tolist()
    from transformers import PreTrainedTokenizerFast

    peer = PreTrainedTokenizerFast(tokenizer_object=__import__("tokenizers").Tokenizer.from_str(tokenizer.hugging_face_json()))
    said = peer.apply_chat_template([{"role": m.role, "content": m.content} for m in messages], chat_template=jinja, tokenize=True)
    ids = said["input_ids"] if not isinstance(said, list) else said
    assert b.ids.tolist() == ids


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        (
            "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}",
            r"drops or repeats the content of message 0 \(system\)",
        ),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "drops or repeats"),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
            "raised an error for the roles system, user",
        ),
        ("{% for m in messages %}", "not a valid Jinja template"),
    ],
)
def test_a_jinja_template_that_drops_something_is_refused(jinja: str, message: str) -> None:
    pytest.importorskip("jinja2")
    messages = [Message("system", "S"), Message("user", "Q"), Message("assistant", "A")]
    with pytest.raises(DataError, match=message):
        ChatEncoder(template_for(parse(ChatConfig, {"jinja": jinja})), ByteTokenizer()).encode(messages, "a.json, item 0")


def test_a_jinja_template_cannot_reach_out() -> None:
    pytest.importorskip("jinja2")
    hostile = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0]['content'] }}"
    with pytest.raises(DataError, match="unsafe"):
        ChatEncoder(template_for(parse(ChatConfig, {"jinja": hostile})), ByteTokenizer()).encode([Message("assistant", "A")], "x")


def test_a_template_of_roles_that_lacks_one_is_refused(tmp_path: Path) -> None:
    roles = {"user": {"before": "Q: ", "after": "\n"}, "assistant": {"before": "A: ", "after": "{end}\n"}}
    row = {"messages": [{"role": "tool", "content": "42"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    with pytest.raises(DataError, match="no role 'tool', so the message would be dropped"):
        made(tmp_path, [row] * 20, chat={"roles": roles})
    with pytest.raises(RecipeError, match="has no 'assistant'"):
        parse(ChatConfig, {"roles": {"user": {}}})


def test_markers_must_be_tokens_of_the_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'<\|im_start\|>', which is not a token of this tokenizer \(257 ids\)"):
        made(tmp_path, ALPACA, chat={"template": "chatml"})


def test_what_somebody_says_is_never_a_marker() -> None:
    tokenizer = with_markers("<|im_start|>", "<|im_end|>")
    encoder = ChatEncoder(template_for(parse(ChatConfig, {"template": "chatml"})), tokenizer)
    ids = encoder.encode([Message("user", "<|im_end|>{end}"), Message("assistant", "A")], "x").ids
    end = tokenizer.id_of("<|im_end|>")
    assert (ids == end).sum() == 2  # the template's own
    assert "<|im_end|>{end}" in tokenizer.decode(ids)


def test_the_loss_covers_answers_with_their_end_and_nothing_else(tmp_path: Path) -> None:
    splits = made(tmp_path, ALPACA, split={"validation": 0})
    batch = splits.train.batch(np.arange(len(splits.train)))
    assert batch.segments is not None
    tokenizer = ByteTokenizer()
    covered = []
    for row in range(len(batch)):
        for document in range(int(batch.segments[row].max()) + 1):
            ids = batch.targets[row][(batch.segments[row] == document) & (batch.weights[row] > 0)]
            assert ids[-1] == tokenizer.bos
            covered.append(tokenizer.decode(ids))
    assert sorted(covered) == sorted(r["output"] for r in ALPACA)
    assert (batch.weights[batch.segments < 0] == 0).all()
    assert splits.facts["parts"]["train"]["answer_tokens"] == int(batch.weights.sum())


def test_every_turn_of_the_assistant_is_learned() -> None:
    encoder = ChatEncoder(template_for(parse(ChatConfig, {})), ByteTokenizer())
    said = [Message("user", "one"), Message("assistant", "uno"), Message("user", "two"), Message("assistant", "dos")]
    found = encoder.encode(said, "x")
    assert ByteTokenizer().decode(found.ids[found.covered]) == "unodos"
    assert (found.ids[found.covered] == 256).sum() == 2


def test_long_rows_lose_the_beginning_of_the_prompt_then_the_end_of_the_answer(tmp_path: Path) -> None:
    encoder = ChatEncoder(template_for(parse(ChatConfig, {})), ByteTokenizer())
    said = [Message("user", "q" * 300), Message("assistant", "answer")]
    cut = encoder.fitted(said, "x", 65)
    assert len(cut.ids) == 65
    assert cut.ids[0] == 256
    assert cut.cut_answer == 0
    text = ByteTokenizer().decode(cut.ids)
    assert text.endswith("### Response:answer")
    long = encoder.fitted([Message("user", "q"), Message("assistant", "a" * 100)], "x", 65)
    assert (len(long.ids), int(long.covered.sum())) == (65, 63)
    assert long.cut_answer == 101 - 63
    splits = made(
        tmp_path, [*ALPACA, {"instruction": "q" * 400, "output": "a"}, {"instruction": "q", "output": "a" * 400}], split={"validation": 0}
    )
    part = splits.facts["parts"]["train"]
    assert (part["prompts_cut"], part["answers_cut"]) == (2, 1)
    assert [n.partition(":")[0] for n in splits.facts["notes"]] == [
        "2 conversations of the train part lost the beginning of the text before the last answer",
        "1 conversations of the train part lost the end of an answer",
    ]


def test_empty_answers_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*ALPACA, {"instruction": "Say nothing.", "output": " "}]
    with pytest.raises(DataError, match=r"item 20: the last answer is empty \(1 such"):
        made(tmp_path, rows)
    assert made(tmp_path, rows, chat={"empty_answers": "drop"}).facts["left_out_empty"] == {"train": 1}


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_packing_puts_each_conversation_once_into_a_row_that_holds_it(lengths: list[int]) -> None:
    rows = packed(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 64) * 2 + 1


def test_the_prompt_of_a_checkpoint_is_what_training_saw_before_the_answer(tmp_path: Path) -> None:
    splits = made(tmp_path, ALPACA)
    ids, end = chat_prompt(json.loads(json.dumps(splits.preprocess)), [Message("user", "Say 1.")])
    assert end == 256
    assert ByteTokenizer().decode(ids).endswith("### Instruction:\nSay 1.\n\n### Response:")


def test_alpaca_and_dpo_demo_are_read_whole(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_DATA", str(mirror))
    config = {"source": {"kind": "public", "name": "alpaca-5k"}, "tokenizer": "bytes", "seq_len": 512, "chat": {"empty_answers": "drop"}}
    chat = prepare(parse(DataConfig, config), seed=0, input_kind="chat")
    assert chat.facts["left_out_empty"] == {"train": 2}
    assert sum(p["conversations"] for p in chat.facts["parts"].values()) == 4_998
    pairs = prepare(
        parse(DataConfig, {"source": {"kind": "public", "name": "dpo-demo"}, "tokenizer": "bytes", "seq_len": 1024}),
        seed=0,
        input_kind="pairs",
    )
    assert sum(p["pairs"] for p in pairs.facts["parts"].values()) == 300
    first = json.loads(gzip.decompress((mirror / "preference-dpo" / "dpo_en_demo.json.gz").read_bytes()))[0]
    assert pair(first, "x").chosen == first["chosen"]["value"]


def test_pairs_share_their_prompt_and_cover_their_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Is {i} even? " * 9, "chosen": "Yes." if i % 2 else "No.", "rejected": "Who knows, it may be " + "so " * i}
        for i in range(12)
    ]
    splits = made(tmp_path, rows, "pairs", split={"validation": 0})
    batch = splits.train.batch(np.arange(12))
    assert batch.inputs.shape == (12, 2, 256)
    assert batch.segments is not None
    for i, row in enumerate(rows):
        for side, name in enumerate(("chosen", "rejected")):
            ids = batch.targets[i, side][batch.weights[i, side] > 0]
            assert row[name].startswith(ByteTokenizer().decode(ids))
        prompts = [batch.inputs[i, s][: int(batch.weights[i, s].argmax()) + 1] for s in (0, 1)]
        assert torch.equal(*prompts)
