"""Hugging Face chat templates, in the style of a dozen families, against transformers' own `apply_chat_template`: tokens and masks.

The templates are our own, short; what they do (trim, fold the system message, drop earlier thoughts, ask for the next answer) is what those
families do. Each marks the model's part with `{% generation %}`: transformers' mask is the reference, also for the same template without it.
"""

from __future__ import annotations

import datetime
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import ChatConfig, ChatEncoder, DataConfig, Message, chat_prompt, prepare, template_for
from tauon.data.tokenizer import ByteTokenizer, SubwordTokenizer
from tauon.errors import DataError, RecipeError

pytest.importorskip("jinja2")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

G, H = "{% generation %}", "{% endgeneration %}"
CHATML = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}" + G + "{{ m['content'] + '<|im_end|>' }}" + H
    + "{{ '\n' }}{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}" + G + "{{ ' ' + content.strip() + ' ' + eos_token }}" + H + "{% endif %}{% endfor %}"
)  # fmt: skip
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}" + G + "{{ message['content'] | trim + '<|eot_id|>' }}" + H
    + "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)  # fmt: skip
LLAMA31 = (
    "{{- bos_token }}\n{%- set date_string = strftime_now('%d %b %Y') %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] | trim %}\n    {%- set messages = messages[1:] %}\n"
    "{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' }}\n"
    "{{- system_message + '<|eot_id|>' }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
    "    {%- if message.role == 'assistant' %}" + G + "{{- message['content'] | trim + '<|eot_id|>' }}" + H
    + "{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)  # fmt: skip
MISTRAL = (  # the system message goes before the last question
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set system = none %}{%- set rest = messages %}{%- endif %}{{- bos_token }}{%- for m in rest %}"
    "{%- if m['role'] == 'user' %}{%- if system is not none and loop.index0 == rest | map(attribute='role') | list | length - 2 + rest | length % 2 %}"
    "{{- '[INST] ' + system + '\n\n' + m['content'] + ' [/INST]' }}{%- else %}{{- '[INST] ' + m['content'] + ' [/INST]' }}{%- endif %}"
    "{%- else %}" + G + "{{- ' ' + (m['content'] | trim) + eos_token }}" + H + "{%- endif %}{%- endfor %}"
)  # fmt: skip
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}" + G + "{{- message.content + '<|im_end|>' }}" + H
    + "{{- '\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)  # fmt: skip
QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.multi_step_tool and message.role == 'user' %}{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}"
    "{%- endfor %}{%- for message in messages %}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- elif message.role == 'assistant' %}{%- set content = message.content %}{%- set reasoning_content = '' %}"
    "{%- if '</think>' in message.content %}{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{%- set reasoning_content = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' }}" + G + "{%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}"
    "{{- '<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{%- else %}{{- content }}{%- endif %}"
    "{{- '<|im_end|>' }}" + H + "{{- '\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)  # fmt: skip
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' }}{% if role == 'model' %}" + G + "{{ message['content'] | trim + '<end_of_turn>' }}" + H
    + "{% else %}{{ message['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)  # fmt: skip
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' }}" + G + "{{ message['content'] + '<|end|>' }}" + H
    + "{{ '\n' }}{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)  # fmt: skip
DEEPSEEK = (
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' }}" + G + "{{ content + '<｜end▁of▁sentence｜>' }}" + H + "{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)  # fmt: skip
ZEPHYR = (  # its headings are no tokens
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n' }}" + G + "{{ message['content'] + eos_token }}" + H + "{{ '\n' }}{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)  # fmt: skip
LOOPS = (  # leaves out what is empty, and stops at a marker
    "{%- for m in messages %}\n    {%- if not m['content'] | trim %}\n        {%- continue %}\n    {%- endif %}\n"
    "    {%- if m['role'] == 'assistant' %}{{ 'A: ' }}" + G + "{{ m['content'] + eos_token }}" + H
    + "{%- else %}{{ m['role'] | upper ~ ' ' ~ {'said': m['content'] | trim} | tojson ~ '\n' }}{%- endif %}\n"
    "    {%- if loop.index > 90 %}\n        {%- break %}\n    {%- endif %}\n{%- endfor %}"
)  # fmt: skip

TEXT = (
    "Hello there, how are you? I am fine. What is 12 times 34? Thinking... The answer is\n\n\n408: that's it! user system assistant INST SYS Ünï 你好 "
    * 9
)


@cache
def byte_level(bos: str | None, eos: str, *special: str) -> SubwordTokenizer:
    """BPE over bytes, trained; `<think>` is a token, and not a special one, as in Qwen 3."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = [t for t in dict.fromkeys((bos, eos, *special)) if t]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=named, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tok.train_from_iterator([TEXT], trainer)
    tok.add_tokens(["<think>", "</think>"])
    return SubwordTokenizer(tok.to_str(), bos or eos, named={k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v})


@cache
def sentence_piece(bos: str, eos: str, *special: str) -> SubwordTokenizer:
    """BPE over letters with U+2581 for blanks and bytes for what is unknown, as Llama 2, Mistral and Gemma have it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tok = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)])
    specials = ["<unk>", bos, eos, *special]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*specials, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False)
    tok.train_from_iterator(re.findall(r"\s*\S+", TEXT), trainer)
    state = json.loads(tok.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return SubwordTokenizer(json.dumps(state), bos, named={"bos_token": bos, "eos_token": eos})


im = ("<|im_start|>", "<|im_end|>")
llama3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES: dict[str, tuple[str, Any]] = {
    "chatml": (CHATML, lambda: byte_level("<|endoftext|>", "<|im_end|>", *im)),
    "llama-2": (LLAMA2, lambda: sentence_piece("<s>", "</s>")),
    "llama-3": (LLAMA3, lambda: byte_level("<|begin_of_text|>", "<|eot_id|>", *llama3)),
    "llama-3.1": (LLAMA31, lambda: byte_level("<|begin_of_text|>", "<|eot_id|>", *llama3)),
    "mistral": (MISTRAL, lambda: sentence_piece("<s>", "</s>")),
    "qwen-2.5": (QWEN25, lambda: byte_level(None, "<|im_end|>", *im)),
    "qwen-3": (QWEN3, lambda: byte_level(None, "<|im_end|>", *im)),
    "gemma": (GEMMA, lambda: sentence_piece("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")),
    "phi-3": (PHI3, lambda: sentence_piece("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
    "deepseek": (DEEPSEEK, lambda: byte_level("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")),
    "zephyr": (ZEPHYR, lambda: sentence_piece("<s>", "</s>")),
    "loops": (LOOPS, lambda: byte_level("<s>", "</s>")),
}
TODAY = datetime.date(2026, 11, 29)


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' `strftime_now` tells the date that the recipe names."""
    from transformers.utils import chat_template_utils

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime(TODAY.year, TODAY.month, TODAY.day)

    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)


def without_tags(jinja: str) -> str:
    return jinja.replace(G, "").replace(H, "")


@cache
def ours(name: str, tags: bool) -> ChatEncoder:
    jinja, tokenizer = FAMILIES[name]
    config = {"jinja": jinja if tags else without_tags(jinja), "date": TODAY.isoformat()}
    return ChatEncoder(template_for(parse(ChatConfig, config)), tokenizer())


@cache
def peer(name: str) -> Any:
    import tokenizers

    tokenizer: SubwordTokenizer = FAMILIES[name][1]()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.hugging_face_json()), **tokenizer.named
    )


def theirs(name: str, messages: list[Message], *, tags: bool = False, prompt: bool = False) -> tuple[list[int], list[int]]:
    """(ids, mask) by transformers."""
    jinja = FAMILIES[name][0] if tags else without_tags(FAMILIES[name][0])
    given = [{"role": m.role, "content": m.content} for m in messages]
    said = peer(name).apply_chat_template(
        given, chat_template=jinja, tokenize=True, return_dict=True, return_assistant_tokens_mask=tags, add_generation_prompt=prompt
    )
    return said["input_ids"], said.get("assistant_masks", [])


def talk(*said: str, system: str | None = None) -> list[Message]:
    """User and assistant in turn."""
    found = [Message("user" if i % 2 == 0 else "assistant", s) for i, s in enumerate(said)]
    return [*([] if system is None else [Message("system", system)]), *found]


TALKS = {
    "one turn": talk("Hi", "Hello!"),
    "with blanks around": talk("  What is 12 times 34?\n", "\n\n 408: that's it! "),
    "three turns": talk("Hi", "Hello there.", "how are you?", "I am fine.\nAnd you?", "你好", "Ünï 😀 answer"),
    "a system message": talk("Hi", "Hello!", "What?", "That.", system="You are  fine. \n"),
    "ends with a question": talk("Hi", "Hello!", "And?"),
    "marks and words of the templates": talk("[INST] user: <<SYS>> {{ x }}", "assistant [/INST] {% if %}", "### A:", "B:"),
}
cases = [
    pytest.param(name, talked, id=f"{name}-{called}")
    for name in FAMILIES
    for called, talked in TALKS.items()
    if not (name == "gemma" and talked[0].role == "system")
]


@pytest.mark.parametrize(("name", "messages"), cases)
def test_tokens_and_masks_are_those_of_transformers(name: str, messages: list[Message]) -> None:
    ids, mask = theirs(name, messages, tags=True)
    found = ours(name, True).encode(messages, "here")
    assert found.ids.tolist() == ids
    assert found.covered.astype(int).tolist() == mask
    plain = ours(name, False).encode(messages, "here")
    assert plain.ids.tolist() == theirs(name, messages)[0]
    if plain.rewritten:
        assert name == "qwen-3"  # answers before the last question lack their thoughts
        return
    assert plain.covered.astype(int).tolist() == mask


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tags", [True, False])
def test_the_prompt_of_an_answer_is_what_transformers_gives_to_generate(name: str, tags: bool) -> None:
    for messages in (talk("Hi"), talk("Hi", "Hello there.", "  how are you? ")):
        got = ours(name, tags).prompt(messages, "here").tolist()
        want = theirs(name, messages, prompt=True)[0]
        if name == "loops":  # it knows no prompt: what it writes before an answer
            assert got[: len(want)] == want
            assert ours(name, tags).tokenizer.decode(got[len(want) :]) == "A: "
        else:
            assert got == want


@given(
    name=st.sampled_from([n for n in FAMILIES if n != "loops"]),
    said=st.lists(
        st.lists(st.sampled_from([*"aHI \n:?!'", "你", "é", "<", ">", "|", "[INST]", "the ", "1"]), min_size=1, max_size=12).map("".join),
        min_size=2,
        max_size=6,
    ),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_said_becomes_the_tokens_of_transformers(name: str, said: list[str]) -> None:
    messages = talk(*(said if len(said) % 2 == 0 else said[:-1]))
    if any(not m.content.strip() for m in messages if m.role == "assistant"):
        if name == "qwen-3":  # it writes its empty thoughts; that an answer is empty is seen before (`chat.py`)
            return
        with pytest.raises(DataError, match="removes all of the answer"):
            ours(name, False).encode(messages, "here")
        return
    found = ours(name, False).encode(messages, "here")
    assert found.ids.tolist() == theirs(name, messages)[0]
    tokenizer = ours(name, False).tokenizer
    read = "".join(tokenizer.decode(found.ids[found.covered]).split()).replace("<think></think>", "")
    if not found.rewritten:
        assert read == "".join("".join(m.content.split()) for m in messages if m.role == "assistant")


THOUGHT = talk("Hi", "<think>\nSay hello.\n</think>\n\nHello!", "What is 12 times 34?", "<think>\n12 x 34\n</think>\n\n408")


def test_earlier_thoughts_that_a_template_drops_are_context_and_the_last_are_learned() -> None:
    found = ours("qwen-3", False).encode(THOUGHT, "here")
    assert found.ids.tolist() == theirs("qwen-3", THOUGHT)[0]
    tokenizer = ours("qwen-3", False).tokenizer
    assert "Say hello" not in tokenizer.decode(found.ids)
    assert tokenizer.decode(found.ids[found.covered]) == "<think>\n12 x 34\n</think>\n\n408"
    assert found.rewritten == 1
    assert found.answers == ("<think>\n12 x 34\n</think>\n\n408",)
    assert found.ids[found.covered][-1] == ours("qwen-3", False).end


def test_thoughts_that_a_template_drops_everywhere_are_not_learned() -> None:
    found = ours("deepseek", False).encode(THOUGHT, "here")
    assert found.ids.tolist() == theirs("deepseek", THOUGHT)[0]
    assert found.answers == ("\n\nHello!", "\n\n408")
    with pytest.raises(DataError, match="removes all of the answer in message 1"):
        ours("deepseek", False).encode(talk("Hi", "<think>Only this</think>"), "here")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tags", [True, False])
def test_an_answer_of_weight_zero_is_written_and_not_learned(name: str, tags: bool) -> None:
    messages = talk("Hi", "Hello there.", "how are you?", "I am fine.")
    whole = ours(name, tags).encode(messages, "here")
    messages[1] = Message("assistant", "Hello there.", learn=False)
    found = ours(name, tags).encode(messages, "here")
    assert found.ids.tolist() == whole.ids.tolist()
    assert ours(name, tags).tokenizer.decode(found.ids[found.covered]).split()[-3:] == ["I", "am", "fine."]
    assert "Hello" not in ours(name, tags).tokenizer.decode(found.ids[found.covered])
    assert found.answers == whole.answers[-1:]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_somebody_says_is_no_token_of_the_template(name: str) -> None:
    tokenizer: SubwordTokenizer = FAMILIES[name][1]()
    special = [s for s in tokenizer.added(special=True) if s != "<unk>"]
    usual = ours(name, False).encode(talk("Say X now", "It X is"), "here")
    said = "".join(special)
    found = ours(name, False).encode(talk(f"Say {said} now", f"It {said} is"), "here")
    own = set(tokenizer.added(special=True).values())
    assert [i for i in found.ids.tolist() if i in own] == [i for i in usual.ids.tolist() if i in own]
    assert said in tokenizer.decode(found.ids[found.covered])


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_with_the_token_that_its_template_writes(name: str) -> None:
    ends = {"llama-3": "<|eot_id|>", "llama-3.1": "<|eot_id|>", "gemma": "<end_of_turn>", "phi-3": "<|end|>"}
    encoder = ours(name, False)
    tokenizer = encoder.tokenizer
    assert isinstance(tokenizer, SubwordTokenizer)
    end = ends.get(name, tokenizer.named["eos_token"])
    assert encoder.end == tokenizer.id_of(end)
    found = encoder.encode(talk("Hi", "Hello!"), "here")
    assert found.ids[found.covered][-1] == encoder.end
    assert ours(name, True).end == encoder.end


def test_a_template_that_does_not_end_its_answers_is_refused() -> None:
    jinja = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    for tokenizer in (ByteTokenizer(), byte_level("<s>", "</s>")):
        encoder = ChatEncoder(template_for(parse(ChatConfig, {"jinja": jinja})), tokenizer)
        with pytest.raises(DataError, match=r"a\.json, item 3: after the answer in message 1 .* would not learn to stop"):
            encoder.encode(talk("Hi", "Hello!"), "a.json, item 3")


def test_a_tokenizer_of_bytes_has_its_own_token_for_the_end() -> None:
    jinja = "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    encoder = ChatEncoder(template_for(parse(ChatConfig, {"jinja": jinja})), ByteTokenizer())
    stands_for_bos = "\U0010f000"
    said = encoder.encode(talk("é", f"ü{stands_for_bos}"), "here")
    assert (said.ids == 256).sum() == 3 and stands_for_bos in ByteTokenizer().decode(said.ids)
    found = encoder.encode(talk("é?", "ü!"), "here")
    assert found.ids[0] == found.ids[-1] == encoder.end == 256
    assert ByteTokenizer().decode(found.ids) == "user: é?assistant: ü!"
    assert ByteTokenizer().decode(found.ids[found.covered]) == "ü!"


def test_a_template_that_writes_the_date_needs_one() -> None:
    encoder = ChatEncoder(template_for(parse(ChatConfig, {"jinja": without_tags(LLAMA31)})), FAMILIES["llama-3.1"][1]())
    with pytest.raises(DataError, match=r"x: the chat template writes today's date .* data\.chat\.date: 2026-01-31"):
        encoder.encode(talk("Hi", "Hello!"), "x")
    with pytest.raises(RecipeError, match="is not a date"):
        parse(ChatConfig, {"jinja": "x", "date": "2026-02-31"})
    with pytest.raises(RecipeError, match=r"date: has no effect without data\.chat\.jinja"):
        parse(ChatConfig, {"date": "2026-02-01"})


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.__base__.x }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ self.__init__.__globals__ }}",
        "{{ range(99999999) | list }}",
        "{{ 'x' | nothing }}",
        "{{ 1 / 0 }}",
        "{{ messages[9]['content'] + 1 }}",
    ],
)
def test_a_template_cannot_reach_out_and_fails_by_row(hostile: str) -> None:
    jinja = hostile + "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r"item 3|data\.chat\.jinja: not a valid Jinja template"):
        ChatEncoder(template_for(parse(ChatConfig, {"jinja": jinja})), ByteTokenizer()).encode(talk("Hi", "Hello!"), "a.json, item 3")


def test_rows_are_packed_cut_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    tokenizer = FAMILIES["qwen-3"][1]()
    (tmp_path / "tokenizer.json").write_text(tokenizer.hugging_face_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": None}))
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in THOUGHT]} for _ in range(12)]
    rows.append({"messages": [{"role": "user", "content": "x " * 400}, {"role": "assistant", "content": "Short."}]})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = {
        "source": {"kind": "chat", "path": str(tmp_path / "rows.json")}, "tokenizer": {"kind": "file", "path": str(tmp_path)}, "seq_len": 128,
        "chat": {"jinja": without_tags(QWEN3)}, "split": {"validation": 0},
    }  # fmt: skip
    splits = prepare(parse(DataConfig, config), seed=0, input_kind="chat")
    part = splits.facts["parts"]["train"]
    assert (part["answers_rewritten"], part["prompts_cut"], part["answers_cut"]) == (12, 1, 0)
    assert splits.facts["notes"] == [
        "1 conversations of the train part lost the beginning of the text before the last answer: they are longer than data.seq_len",
        "12 answers of the train part are context only (no loss): the chat template writes them differently when others follow",
    ]
    data: Any = splits.train
    batch = data.batch(np.arange(len(data)))
    assert batch.segments is not None
    said = [
        tokenizer.decode(batch.targets[row][(batch.segments[row] == d) & (batch.weights[row] > 0)].numpy())
        for row in range(len(batch))
        for d in range(int(batch.segments[row].max()) + 1)
    ]
    assert sorted(set(said)) == ["<think>\n\n</think>\n\nShort.", "<think>\n12 x 34\n</think>\n\n408"]
    ids, end = chat_prompt(json.loads(json.dumps(splits.preprocess)), [Message("user", "Hi")])
    assert ids == theirs("qwen-3", talk("Hi"), prompt=True)[0]
    assert end == tokenizer.id_of("<|im_end|>")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tags", [True, False])
def test_both_answers_of_a_preference_have_one_prompt_and_cover_themselves(name: str, tags: bool) -> None:
    from tauon.data import PairDataset
    from tauon.data.sources.base import Pair
    from tauon.types import DataSpec

    encoder = ours(name, tags)
    before = tuple(talk("Hi", "Hello there.", "how are you?"))
    pairs = [Pair(before, "I am fine.", "12 times 34", "here"), Pair(before[:1], "Hello!", "What?\nWho?", "there")]
    batch = PairDataset(pairs, encoder, DataSpec(vocab=encoder.tokenizer.vocab_size, seq_len=160)).batch(np.arange(2))
    for row, pair in enumerate(pairs):
        prompts = []
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            weights = batch.weights[row, side]
            first = int(weights.argmax())
            covered = batch.targets[row, side][weights > 0]
            said = encoder.tokenizer.decode(covered).removeprefix("<think>\n\n</think>")  # Qwen 3's, of an answer without thoughts
            assert said.split() == answer.split()
            assert covered[-1] == encoder.end
            prompts.append(batch.inputs[row, side][: first + 1].tolist())
        assert prompts[0] == prompts[1]
