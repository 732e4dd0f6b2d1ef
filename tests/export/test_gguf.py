"""A GGUF file is what llama.cpp documents: transformers reads it, undoes its permutation, and computes what the model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.artifacts import save_checkpoint
from tauon.config import dump, parse
from tauon.data.tokenizer import SubwordTokenizer
from tauon.errors import DataError
from tauon.export import export_weights, open_bundle
from tauon.export.gguf import permuted
from tauon.models import ModelConfig, materialize
from tauon.types import DataSpec
from toy import words

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "qwen2": {"tied": True},
    "qwen3": {"heads": 2, "head_size": 128, "kv_heads": 1},  # transformers takes 128 whatever the file says
}


def saved(folder: Path, kind: str, tokenizer: Any = None, **settings: Any) -> tuple[Path, Any]:
    spec = DataSpec(vocab=tokenizer.vocab_size if tokenizer else 300, seq_len=32)
    config = parse(ModelConfig, {"kind": kind, "layers": 2, "width": 16, "heads": 4, **settings}).resolve(spec)
    model, g = materialize(config, seed=0).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    preprocess = {} if tokenizer is None else {"preprocess": {"kind": "tokens", "tokenizer": tokenizer.to_json(), "seq_len": 32}}
    return save_checkpoint(folder / "c", 0, {"model": dict(model.state_dict())}, {"model": dump(config)} | preprocess).path, model


@pytest.mark.parametrize("kind", SHAPES)
def test_transformers_reads_the_file_and_computes_the_same(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path, model = saved(tmp_path, kind, **SHAPES[kind])
    record = export_weights(path, tmp_path / "out", format="gguf")
    assert record["verification"]["argmax"] == 1 and record["verification"]["relative"] < 1e-5
    assert "llama.cpp was not run" in record["verification"]["against"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32).eval()
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model.logits(model(tokens)), rtol=0, atol=1e-4)


def test_the_tokenizer_is_in_the_file(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(
        [words(300)], trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    )
    path, _ = saved(tmp_path, "llama", SubwordTokenizer(tok.to_str()))
    assert export_weights(path, tmp_path / "out", format="gguf")["script_note"] == ""
    fields = {n: f.contents() for n, f in gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields.items()}
    whole = json.loads(tok.to_str())["model"]
    assert fields["tokenizer.ggml.tokens"] == sorted(whole["vocab"], key=whole["vocab"].get)
    assert fields["tokenizer.ggml.merges"] == [" ".join(m) for m in whole["merges"]]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"], fields["tokenizer.ggml.bos_token_id"]) == ("gpt2", "gpt-2", 0)
    assert open_bundle(tmp_path / "out").record["kind"] == "gguf"
    with pytest.raises(DataError, match="has weights and no program"):
        open_bundle(tmp_path / "out").load()


@pytest.mark.parametrize(
    ("kind", "settings", "lacks"),
    [("gpt", {}, "the MLP is relu2"), ("mistral", {"window": 5}, "sliding window of 5"), ("gpt2", {}, "not shaped like Llama"),
     ("gpt", {"mlp": "swiglu", "qkv_bias": True}, "both QK-norm and biases")],
)  # fmt: skip
def test_a_shape_that_llama_cpp_lacks_is_refused_and_nothing_is_left(
    kind: str, settings: dict[str, Any], lacks: str, tmp_path: Path
) -> None:
    path, _ = saved(tmp_path, kind, **settings)
    with pytest.raises(DataError, match=lacks):
        export_weights(path, tmp_path / "new" / "out", format="gguf")
    assert not (tmp_path / "new" / "out").exists()


def test_an_earlier_export_comes_back_when_the_next_one_fails(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "gpt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(DataError):
        export_weights(path, tmp_path / "out", format="gguf", replace=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_permutation_keeps_scores() -> None:
    """q.k of rotated halves equals q.k of rotated neighbours after the permutation, at every distance."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(8, 1, generator=g), torch.randn(8, 1, generator=g)
    angle = torch.arange(1, 5).double() * 0.3

    def halves(x: torch.Tensor, t: int) -> torch.Tensor:
        a, b = x[:4, 0].double(), x[4:, 0].double()
        return torch.cat((a * (t * angle).cos() - b * (t * angle).sin(), b * (t * angle).cos() + a * (t * angle).sin()))

    def neighbours(x: torch.Tensor, t: int) -> torch.Tensor:
        a, b = x[::2, 0].double(), x[1::2, 0].double()
        return torch.stack((a * (t * angle).cos() - b * (t * angle).sin(), b * (t * angle).cos() + a * (t * angle).sin()), -1).flatten()

    for t in (0, 1, 7):
        torch.testing.assert_close(halves(q, t) @ halves(k, 2), neighbours(permuted(q, 1), t) @ neighbours(permuted(k, 1), 2))
