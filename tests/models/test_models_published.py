"""Published layouts against transformers' own models, both ways: the same tiny random weights give the same outputs; sizes are the published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.config import dump, parse
from tauon.errors import CheckpointError, RecipeError
from tauon.models import ModelConfig, materialize, open_huggingface, open_model_folder, parameter_count, resolved, write_huggingface
from tauon.types import DataSpec

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
LLAMA31 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}),
    "llama": ("LlamaForCausalLM", SMALL),
    "llama-tied": ("LlamaForCausalLM", SMALL | {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 10}),
    "llama-3.1": ("LlamaForCausalLM", SMALL | {"rope_parameters": LLAMA31}),
    "mistral": ("MistralForCausalLM", SMALL | {"sliding_window": 9}),
    "qwen2": ("Qwen2ForCausalLM", SMALL | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", SMALL | {"head_dim": 12}),
    "arcee": ("ArceeForCausalLM", SMALL | {"head_dim": 10}),
    "apertus": ("ApertusForCausalLM", SMALL | {"hidden_act": "relu2"}),
    "apertus-tied": (
        "ApertusForCausalLM",
        SMALL | {"hidden_act": "relu2", "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "bert-mlm": ("BertForMaskedLM", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "bert-classes": ("BertForSequenceClassification", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"} | {"num_labels": 3}),
}


def theirs(case: str, seed: int = 0) -> Any:
    """A tiny model of transformers in which nothing is zero or one."""
    name, sizes = CASES[case]
    kind = getattr(transformers, name)
    torch.manual_seed(seed)
    model = kind(kind.config_class(**sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():  # biases and norms too: at their start they hide mistakes
            p.add_(torch.randn_like(p) * 0.1)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def tokens(B: int = 2, T: int = 48) -> torch.Tensor:
    return torch.randint(0, 61, (B, T), generator=torch.Generator().manual_seed(1))


def spec_of(config: ModelConfig) -> DataSpec:
    outputs = config.__dict__.get("outputs")
    return DataSpec(vocab=61, seq_len=32, outputs=outputs)


def ours(path: Path) -> Any:
    """The model that a folder holds, as a run starts from it."""
    config = open_model_folder(str(path)).config
    start = parse(ModelConfig, {"from": str(path)})
    return materialize(resolved(start, spec_of(config)), seed=0).eval()


def logits(model: Any, ids: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(ids, segments)
        return model.logits(out) if out.ndim == 3 else out


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_transformers_and_a_folder_written_here_loads_there(case: str, tmp_path: Path) -> None:
    model, ids = theirs(case), tokens()
    folder = save(model, tmp_path / "theirs")
    mine = ours(folder)
    with torch.no_grad():
        want = model(ids).logits
    assert (logits(mine, ids) - want).abs().max() < 1e-5

    start = open_model_folder(str(folder))
    write_huggingface(tmp_path / "again", start.config, dict(mine.state_dict()), labels=start.labels)
    back, said = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(ids).logits, want, rtol=0, atol=1e-5)
    assert (logits(ours(tmp_path / "again"), ids) - want).abs().max() < 1e-5
    assert parameter_count(mine) == sum(p.numel() for p in model.parameters())


def test_vit_gives_the_logits_of_transformers_both_ways(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56, "image_size": 16, "patch_size": 4,
             "num_channels": 3, "num_labels": 5}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    folder = save(model, tmp_path / "theirs")
    pictures = torch.randn(3, 3, 16, 16)
    config = resolved(parse(ModelConfig, {"from": str(folder)}), DataSpec(input_shape=(3, 16, 16), outputs=5))
    mine = materialize(config, seed=0).eval()
    with torch.no_grad():
        want = model(pictures).logits
        torch.testing.assert_close(mine(pictures), want, rtol=0, atol=1e-5)
    write_huggingface(tmp_path / "again", open_model_folder(str(folder)).config, dict(mine.state_dict()), labels=tuple("abcde"))
    back = transformers.ViTForImageClassification.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        torch.testing.assert_close(back(pictures).logits, want, rtol=0, atol=1e-5)
    assert back.config.id2label[4] == "e"
    lazy = open_huggingface(folder).tensors["patches.weight"]
    assert torch.equal(lazy[slice(3, 9), slice(5, 40)], lazy.read()[3:9, 5:40])
    with pytest.raises(RecipeError, match="model.input_shape"):
        resolved(parse(ModelConfig, {"from": str(folder)}), DataSpec(input_shape=(3, 32, 32), outputs=5))


@pytest.mark.parametrize("suffix", [".safetensors", ".th"])
def test_a_file_of_weights_fills_a_model_whose_sizes_are_given(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    spec = DataSpec(input_shape=(3, 32, 32), outputs=10)
    record = {"kind": "resnet20"}
    made = materialize(parse(ModelConfig, record).resolve(spec), seed=3)
    theirs_ = {f"module.{k.replace('fc.', 'linear.')}": v for k, v in made.state_dict().items()}
    if suffix == ".th":
        torch.save({"state_dict": theirs_, "best_prec1": 91.7}, tmp_path / "w.th")
    else:
        save_file(theirs_, str(tmp_path / "w.safetensors"))
    start = {"from": str(tmp_path / f"w{suffix}"), **record}
    mine = materialize(resolved(parse(ModelConfig, start), spec), seed=0)
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in mine.state_dict().items())
    other = materialize(resolved(parse(ModelConfig, start), DataSpec(input_shape=(3, 32, 32), outputs=3)), seed=0)
    assert other.fc.weight.shape[0] == 3 and torch.equal(other.conv1.weight, made.conv1.weight)
    with pytest.raises(CheckpointError, match="a file of weights without the architecture"):
        resolved(parse(ModelConfig, {"from": str(tmp_path / f"w{suffix}")}), spec)
    with pytest.raises(CheckpointError, match=r"missing layer1.3"):
        materialize(resolved(parse(ModelConfig, {**start, "kind": "resnet32"}), spec), seed=0)


def test_padding_is_ignored_as_transformers_ignores_it(tmp_path: Path) -> None:
    model, ids = theirs("bert-classes"), tokens(T=16)
    mine = ours(save(model, tmp_path / "theirs"))
    segments = torch.zeros(2, 16, dtype=torch.int32)
    segments[0, 11:], segments[1, 5:] = -1, -1
    with torch.no_grad():
        want = model(ids, attention_mask=(segments >= 0).long()).logits
    torch.testing.assert_close(logits(mine, ids, segments), want, rtol=0, atol=1e-5)
    other = torch.where(segments < 0, (ids + 5) % 61, ids)
    torch.testing.assert_close(logits(mine, other, segments), want, rtol=0, atol=1e-5)


PUBLISHED = {
    "gpt2": ({"kind": "gpt2", "vocab": 50257, "seq_len": 1024}, 124_439_808),
    "llama-3.1-8b": (
        {"kind": "llama", "layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "mlp_width": 14336, "vocab": 128256, "seq_len": 131072,
         "rope_base": 5e5, "rope_scaling": {}}, 8_030_261_248,
    ),
    "llama-3.2-1b": (
        {"kind": "llama", "layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "mlp_width": 8192, "vocab": 128256, "seq_len": 2048,
         "tied": True}, 1_235_814_400,
    ),
    "mistral-7b-v0.1": (
        {"kind": "mistral", "layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "mlp_width": 14336, "vocab": 32000, "seq_len": 8192,
         "window": 4096}, 7_241_732_096,
    ),
    "qwen2.5-0.5b": (
        {"kind": "qwen2", "layers": 24, "width": 896, "heads": 14, "kv_heads": 2, "mlp_width": 4864, "vocab": 151936, "seq_len": 4096,
         "tied": True}, 494_032_768,
    ),
    "qwen3-0.6b": (
        {"kind": "qwen3", "layers": 28, "width": 1024, "heads": 16, "kv_heads": 8, "head_size": 128, "mlp_width": 3072, "vocab": 151936,
         "seq_len": 4096, "tied": True}, 596_049_920,
    ),
    "bert-base-uncased": ({"kind": "bert", "vocab": 30522, "seq_len": 512, "outputs": 2}, 109_482_240 + 2 * 768 + 2),
    "bert-base-uncased, masked": ({"kind": "bert", "vocab": 30522, "seq_len": 512}, 109_514_298),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    record, count = PUBLISHED[name]
    assert parameter_count(parse(ModelConfig, record).build_on_meta()) == count


@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen2"])
def test_shards_and_pickled_weights_load_as_one_file_does(case: str, tmp_path: Path) -> None:
    model, ids = theirs(case), tokens()
    want = logits(ours(save(model, tmp_path / "one")), ids)
    many = save(model, tmp_path / "many", max_shard_size="20KB")
    assert len(list(many.glob("*.safetensors"))) > 1
    assert torch.equal(logits(ours(many), ids), want)
    shutil.copytree(tmp_path / "one", tmp_path / "bin")
    (tmp_path / "bin/model.safetensors").unlink()
    torch.save(dict(model.state_dict()), tmp_path / "bin/pytorch_model.bin")
    assert torch.equal(logits(ours(tmp_path / "bin"), ids), want)


def test_a_folder_of_several_shards_is_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = theirs("llama"), tokens()
    mine = ours(save(model, tmp_path / "one"))
    monkeypatch.setattr("tauon.models.pretrained.huggingface_write._SHARD", 20_000)
    write_huggingface(tmp_path / "many", open_model_folder(str(tmp_path / "one")).config, dict(mine.state_dict()))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    back = type(model).from_pretrained(tmp_path / "many").eval()
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_names_without_prefix_and_old_names_are_known(tmp_path: Path) -> None:
    """As bert-base-uncased and openai-community/gpt2 are published."""
    from safetensors.torch import load_file, save_file

    for case, prefix in (("gpt2", "transformer."), ("bert-mlm", "")):
        model, ids = theirs(case), tokens()
        folder = save(model, tmp_path / case)
        want = logits(ours(folder), ids)
        old = {k.removeprefix(prefix): v for k, v in load_file(folder / "model.safetensors").items()}
        if case == "gpt2":
            old["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
        else:
            old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()}
            old |= {"cls.seq_relationship.weight": torch.zeros(2, 32), "cls.seq_relationship.bias": torch.zeros(2)}
        save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
        assert torch.equal(logits(ours(folder), ids), want)


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(theirs("llama"), tmp_path / "m")
    whole = load_file(folder / "model.safetensors")
    whole["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    whole["model.layers.7.extra.weight"] = torch.zeros(2)
    del whole["model.norm.weight"]
    save_file(whole, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        ours(folder)
    for said in (
        "missing model.norm.weight (32,)",
        "model.layers.1.mlp.up_proj.weight has shape (3, 3)",
        "left over model.layers.7.extra.weight",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gpt_neox"}, "model_type is 'gpt_neox', and there are: gpt2, llama"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_size": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"num_attention_heads": 5}, "key-value heads do not divide"),
    ],
)
def test_what_cannot_be_built_here_is_refused_in_words(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(CheckpointError) as caught:
        open_huggingface(folder)
    assert says in str(caught.value)


def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="plain file names"):
        open_huggingface(folder)


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({"x": shutil.rmtree}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read as weights alone"):
        open_huggingface(folder)


def test_a_shape_without_counterpart_is_not_written(tmp_path: Path) -> None:
    config = parse(ModelConfig, {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "vocab": 11, "seq_len": 8, "window": 4})
    with pytest.raises(CheckpointError, match="with a squared ReLU, a published one has no sliding window"):
        write_huggingface(tmp_path / "out", config, dict(materialize(config, seed=0).state_dict()))
    assert not (tmp_path / "out").exists()


def test_a_gpt_of_the_right_shape_is_written_as_what_it_computes(tmp_path: Path) -> None:
    for settings, kind in (
        ({"mlp": "swiglu", "qk_norm": True}, "qwen3"), ({"mlp": "swiglu", "qk_norm": False}, "llama"),
        ({"mlp": "swiglu", "qk_norm": False, "qkv_bias": True}, "qwen2"), ({}, "apertus"), ({"qk_norm": False}, "arcee"),
        ({"tied": True, "kv_heads": 1, "head_size": 6, "rope_scaling": {}}, "apertus"),
    ):  # fmt: skip
        shutil.rmtree(tmp_path / kind, ignore_errors=True)
        record = {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "vocab": 61, "seq_len": 64, **settings}
        model = materialize(parse(ModelConfig, record), seed=0).eval()
        with torch.no_grad():
            model.head.weight.normal_()
        write_huggingface(tmp_path / kind, parse(ModelConfig, record), dict(model.state_dict()))
        back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / kind).eval()
        assert back.config.model_type == kind
        with torch.no_grad():
            torch.testing.assert_close(back(tokens()).logits, logits(model, tokens()), rtol=0, atol=1e-5)


def test_what_contradicts_the_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "m")
    spec = DataSpec(vocab=61, seq_len=32)
    with pytest.raises(RecipeError) as caught:
        resolved(parse(ModelConfig, {"kind": "llama", "from": str(folder), "layers": 3, "width": 64, "heads": 4}), spec)
    assert "model.layers: 3, but" in str(caught.value) and "model.width: 64, but" in str(caught.value)
    with pytest.raises(RecipeError, match=r"model.kind: gpt, but .* holds a llama"):
        resolved(parse(ModelConfig, {"kind": "gpt", "from": str(folder)}), spec)
    fine = resolved(parse(ModelConfig, {"kind": "llama", "from": str(folder), "dropout": 0.1, "seq_len": 128}), spec)
    assert dump(fine)["dropout"] == 0.1 and dump(fine)["seq_len"] == 128


def test_only_the_part_that_is_asked_for_is_read(tmp_path: Path) -> None:
    """A slice of a transposed third of GPT-2's joined matrix, and the same from the whole."""
    found = open_huggingface(save(theirs("gpt2"), tmp_path / "m"))
    for name in ("blocks.1.attention.k.weight", "blocks.1.attention.k.bias", "blocks.0.mlp.down.weight"):
        lazy = found.tensors[name]
        where = tuple(slice(n // 4, n // 2) for n in lazy.shape)
        assert torch.equal(lazy[where], lazy.read()[where])


def test_another_number_of_classes_starts_a_new_head_and_the_rest_is_kept(tmp_path: Path) -> None:
    from tauon.models import match_weights

    folder = save(theirs("bert-classes"), tmp_path / "m")
    config = resolved(parse(ModelConfig, {"from": str(folder)}), DataSpec(vocab=61, seq_len=32, outputs=5))
    found = match_weights(config.build_on_meta(), open_model_folder(str(folder)))
    assert found.fresh == ("head.weight", "head.bias") and not found.dropped
    model = materialize(config, seed=0)
    assert model.head.weight.shape == (5, 32)
    masked = save(theirs("bert-mlm"), tmp_path / "masked")
    config = resolved(parse(ModelConfig, {"from": str(masked)}), DataSpec(vocab=61, seq_len=32, outputs=5))
    found = match_weights(config.build_on_meta(), open_model_folder(str(masked)))
    assert set(found.fresh) == {"head.weight", "head.bias", "pooler.weight", "pooler.bias"}
    assert {n.partition(".")[0] for n in found.dropped} == {"transform", "transform_norm"}


def test_another_model_has_another_fingerprint(tmp_path: Path) -> None:
    prints = [open_model_folder(str(save(theirs("llama", seed), tmp_path / str(seed)))).fingerprint for seed in (0, 1)]
    assert prints[0] != prints[1]
    assert open_model_folder(str(tmp_path / "0")).fingerprint == prints[0]


def test_a_name_that_is_neither_folder_nor_on_the_hub_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder nowhere"):
        open_model_folder("nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file. Give a folder"):
        open_model_folder("file")

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"no folder org/name, and it could not be downloaded from the Hugging Face hub .*offline"):
        open_model_folder("org/name")
