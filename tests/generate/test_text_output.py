"""Text of a stream: whole characters only, stop strings that never leak, the same text as the tokenizer's own decoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generate.serving import tokenizers
from tauon.generate.text_output import TextOutput, special_ids, token_texts

TOKENIZERS = tokenizers()


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_add_up_to_what_the_tokenizer_decodes(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    texts = token_texts(tokenizer)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    out = TextOutput()
    shown = [out.add(texts[i], last=n == len(ids) - 1) for n, i in enumerate(ids)]
    assert "".join(shown) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_bytes_of_tokens_are_as_many_as_the_tokenizer_says(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    texts, special = token_texts(tokenizer), special_ids(tokenizer)
    counted = [len(t) if i not in special else 0 for i, t in enumerate(texts)]
    assert np.array_equal(counted, tokenizer.token_bytes)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.lists(st.integers(1, 4)))
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    out, shown, rest = TextOutput(stops), "", text
    while rest:
        size = cuts.pop() if cuts else 1
        shown += out.add(rest[:size].encode(), last=len(rest) <= size)
        rest = rest[size:]
        assert not any(stop in shown for stop in stops)  # at no time
        if out.stopped_by:
            break
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    if out.stopped_by is None:
        assert not ends and shown == text
    else:
        assert text.startswith(shown + out.stopped_by) and min(ends) <= len(shown)


def test_part_of_a_character_waits_and_becomes_the_replacement_at_the_end() -> None:
    out = TextOutput()
    assert [out.add(bytes([b])) for b in "€x".encode()] == ["", "", "€", "x"]
    assert out.add("€".encode()[:2]) == "" and out.add(b"", last=True) == "�"
