"""Language models: the lens ends at the model's answer, patching everything brings everything back, attributions of an answer see only the past."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_cases import TOKENS, stirred

from tauon.config import parse
from tauon.errors import DataError
from tauon.explain import Work
from tauon.explain.language import attribute_answer, logit_lens, patch_activations
from tauon.explain.language.lens import residuals
from tauon.explain.language.patching import _patched
from tauon.models import ModelConfig, from_record, materialize, resolved

KINDS: list[dict[str, Any]] = [
    {"kind": "gpt", "layers": 3, "width": 16, "heads": 4},
    {"kind": "gpt", "layers": 2, "width": 16, "heads": 4, "kv_heads": 2},
    {"kind": "gpt2", "layers": 2, "width": 16, "heads": 2},
]
PROMPT = torch.tensor([3, 7, 1, 12, 5])


def model_of(tree: dict[str, Any]) -> Any:
    return stirred(from_record(tree).resolve(TOKENS))


@pytest.mark.parametrize("tree", KINDS)
def test_the_lens_ends_at_the_models_own_answer(tree: dict[str, Any]) -> None:
    model = model_of(tree)
    rows = logit_lens(model, PROMPT)
    with torch.no_grad():
        own = model.logits(model(PROMPT[None])[0, -1]).softmax(-1)
    assert [r.layer for r in rows] == ["embedding", *(f"block {i}" for i in range(tree["layers"] - 1)), "output"]
    assert rows[-1].tokens[0] == int(own.argmax()) and rows[-1].rank == 1
    assert abs(rows[-1].final - float(own.max())) < 1e-6
    assert all(0 <= r.final <= 1 and 1 <= r.rank <= 20 for r in rows)


def test_the_lens_equals_transformers_hidden_states(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=6)
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = materialize(resolved(parse(ModelConfig, {"from": str(tmp_path)}), TOKENS), seed=0).eval()
    with torch.no_grad():
        hidden = theirs(PROMPT[None], output_hidden_states=True).hidden_states
        expected = [theirs.lm_head(theirs.transformer.ln_f(h))[0, -1].softmax(-1) for h in hidden[:-1]]
        expected.append(theirs(PROMPT[None]).logits[0, -1].softmax(-1))
    for row, p in zip(logit_lens(ours, PROMPT), expected, strict=True):
        assert row.tokens[0] == int(p.argmax())
        assert abs(row.probabilities[0] - float(p.max())) < 1e-5


@pytest.mark.parametrize("tree", KINDS)
def test_all_positions_together_bring_the_first_answer_back(tree: dict[str, Any]) -> None:
    model = model_of(tree)
    other = PROMPT.clone()
    other[1] = 15
    with torch.no_grad(), residuals(model) as kept:
        clean = model.logits(model(PROMPT[None])[0, -1])
        model(other[None])
    n = len(kept) // 2
    for depth in range(n):  # the state of every position is the clean one: what comes out is the clean answer
        whole = _patched(model, other, depth, torch.tensor([0]), kept[depth][0], kept[depth][0])
        torch.testing.assert_close(whole[0], clean, rtol=1e-4, atol=1e-4)


def test_effects_are_zero_where_both_prompts_are_equal_so_far_and_one_at_the_end() -> None:
    model = model_of(KINDS[0])
    other = PROMPT.clone()
    other[2] = 17
    found = patch_activations(model, PROMPT, other, answers=(1, 2), work=Work(at_once=2))
    assert found.effect.shape == (4, 5)
    assert found.effect[:, :2].abs().max() < 1e-4  # before the difference nothing differs
    assert abs(float(found.effect[0, 2]) - 1) < 1e-4  # the only token that differs carries all of it at the embedding
    assert found.effect[0, 3:].abs().max() < 1e-4
    assert abs(float(found.effect[-1, -1]) - 1) < 1e-4  # after the last block only the last position is read
    assert found.effect[-1, :-1].abs().max() < 1e-4


def test_prompts_that_cannot_be_patched_are_refused() -> None:
    model = model_of(KINDS[0])
    with pytest.raises(DataError, match="same number of tokens"):
        patch_activations(model, PROMPT, PROMPT[:3])
    with pytest.raises(DataError, match="same answer"):
        patch_activations(model, PROMPT, PROMPT)


def test_an_answer_is_attributed_to_what_comes_before_each_token_and_sums_to_its_logits() -> None:
    model = model_of(KINDS[0])
    answer = torch.tensor([4])
    found = attribute_answer(model, TOKENS, PROMPT, answer)
    with torch.no_grad():
        logits = model.logits(model(PROMPT[None])[0, -1])
    assert abs(float(found.probabilities[0]) - float(logits.softmax(-1)[4])) < 1e-5
    two = attribute_answer(model, TOKENS, PROMPT[:4], torch.tensor([5, 4]))
    assert two.values.shape == (2, 6) and two.values[0, 4:].abs().max() == 0 and two.values[1, 5:].abs().max() == 0
    torch.testing.assert_close(two.values[1, :5], found.values[0, :5], rtol=1e-3, atol=1e-4)
    with pytest.raises(DataError, match="at most"):
        attribute_answer(model, TOKENS, PROMPT, torch.tensor([1, 2, 3, 4]))


def test_the_model_is_left_as_it_was() -> None:
    model = model_of(KINDS[0]).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logit_lens(model, PROMPT)
    other = PROMPT.clone()
    other[0] = 2
    patch_activations(model, PROMPT, other, answers=(1, 2))
    attribute_answer(model, TOKENS, PROMPT, torch.tensor([4]))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
