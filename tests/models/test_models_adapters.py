"""Adapters: merged equals unmerged, PEFT's outputs are ours, both ways; what trains and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models_published import SMALL, logits, save, theirs, tokens

from tauon.config import parse
from tauon.errors import CheckpointError, RecipeError
from tauon.models import (
    AdaptConfig,
    ModelConfig,
    adapt_like,
    materialize,
    merged,
    open_model_folder,
    read_peft,
    resolved,
    saved_weights,
    write_peft,
)
from tauon.types import DataSpec

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for an old name
SPEC = DataSpec(vocab=61, seq_len=32)


def adapted(folder: Path, adapt: dict[str, Any], spec: DataSpec = SPEC) -> tuple[ModelConfig, Any]:
    """(config, model) of a published base with adapters in which nothing is zero."""
    config = resolved(parse(ModelConfig, {"from": str(folder)}), spec)
    config = config.model_copy(update={"adapt": adapt_like(parse(AdaptConfig, adapt), config)})
    model = materialize(config, seed=0).eval()
    if "from" not in adapt:
        g = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=g) * 0.1)
    return config, model


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "bert-classes"])
def test_a_new_adapter_changes_nothing_and_a_merged_one_answers_as_it_did_apart(kind: str, case: str, tmp_path: Path) -> None:
    folder = save(theirs(case), tmp_path / "base")
    spec = SPEC if case != "bert-classes" else DataSpec(vocab=61, seq_len=32, outputs=3)
    start = open_model_folder(str(folder))
    config = resolved(parse(ModelConfig, {"from": str(folder)}), spec)
    plain = materialize(config, seed=0).eval()
    fresh = materialize(config.model_copy(update={"adapt": parse(AdaptConfig, {"kind": kind, "rank": 3})}), seed=0).eval()
    torch.testing.assert_close(logits(fresh, tokens()), logits(plain, tokens()), rtol=0, atol=1e-5)

    config, model = adapted(folder, {"kind": kind, "rank": 3, "alpha": 5.0}, spec)
    moved = logits(model, tokens())
    assert (moved - logits(plain, tokens())).abs().max() > 1e-2
    assert config.adapt is not None
    whole = merged(start.tensors, saved_weights(model), config.adapt.scale)
    alone = materialize(config.model_copy(update={"adapt": None, "from_": None}), seed=1, weights=whole).eval()
    torch.testing.assert_close(logits(alone, tokens()), moved, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_weight_is_read_by_slices(kind: str, tmp_path: Path) -> None:
    folder = save(theirs("gpt2"), tmp_path / "base")
    config, model = adapted(folder, {"kind": kind, "rank": 3})
    assert config.adapt is not None
    whole = merged(open_model_folder(str(folder)).tensors, saved_weights(model), config.adapt.scale)["blocks.1.mlp.up.weight"]
    assert torch.equal(whole[slice(3, 9), slice(4, 20)], whole.read()[3:9, 4:20])


def test_only_adapters_train_and_only_they_are_saved(tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "base")
    _, model = adapted(folder, {"kind": "lora", "rank": 2, "target": ["q", "v"], "also": ["norm.weight"]})
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    layers = [f"blocks.{i}.attention.{x}" for i in range(2) for x in "qv"]
    assert trains == {f"{n}.{leaf}" for n in layers for leaf in ("lora_a", "lora_b")} | {"norm.weight"}
    assert set(saved_weights(model)) == trains
    logits_ = model.logits(model(tokens()))
    logits_.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_a_classifiers_head_trains_beside_its_adapters(tmp_path: Path) -> None:
    folder = save(theirs("bert-mlm"), tmp_path / "base")
    _, model = adapted(folder, {"kind": "lora", "rank": 2, "target": ["q"]}, DataSpec(vocab=61, seq_len=32, outputs=4))
    trains = {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trains == {"blocks", "pooler", "head"}


def test_dropout_is_of_the_adapter_and_of_training_alone(tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "base")
    _, model = adapted(folder, {"kind": "lora", "rank": 2, "dropout": 0.5})
    with torch.no_grad():
        assert torch.equal(model(tokens()), model(tokens()))
        model.train()
        assert not torch.equal(model(tokens()), model(tokens()))


def test_a_target_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "base")
    with pytest.raises(RecipeError, match=r"adapt.target: 'c_attn' names no linear layer .* Available: down, gate, k, out, q, up, v"):
        adapted(folder, {"kind": "lora", "target": ["q", "c_attn"]})
    with pytest.raises(RecipeError, match=r"adapt.also: 'nrom' names no parameter"):
        adapted(folder, {"kind": "lora", "also": ["nrom"]})
    with pytest.raises(RecipeError, match=r"adapt.also: '\*' names blocks.0.attention.q.weight, which has an adapter"):
        adapted(folder, {"kind": "lora", "target": ["q"], "also": ["*"]})


# ------------------------------------------------------------------------------------------------ PEFT


def test_all_that_trained_beside_adapters_is_in_pefts_folder_or_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    folder = save(theirs("gpt2"), tmp_path / "base")
    config, model = adapted(folder, {"kind": "lora", "rank": 2, "target": ["q"], "also": ["*norm*", "embed.weight", "positions.weight"]})
    write_peft(tmp_path / "out", config, saved_weights(model), base="x", fingerprint="y")
    back = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder), tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(back(tokens()).logits, logits(model, tokens()), rtol=0, atol=1e-5)
    config, model = adapted(folder, {"kind": "lora", "rank": 2, "target": ["q"], "also": ["*.attention.q.bias"]})
    with pytest.raises(
        CheckpointError, match=r"of transformer.h.0.attn.c_attn only blocks.0.attention.q.bias trained, and PEFT keeps whole layers"
    ):
        write_peft(tmp_path / "no", config, saved_weights(model), base="x", fingerprint="y")
    config, model = adapted(
        save(theirs("bert-mlm"), tmp_path / "bert"), {"kind": "lora", "rank": 2, "target": ["q"], "also": ["embed.weight"]}
    )
    with pytest.raises(CheckpointError, match=r"head.weight trained, but it is not a separate weight in Hugging Face's bert"):
        write_peft(tmp_path / "no", config, saved_weights(model), base="x", fingerprint="y")


TARGETS = {"llama": (["q", "v", "down"], ["q_proj", "v_proj", "down_proj"]), "gpt2": (["q", "k", "v", "up"], ["c_attn", "c_fc"])}


def in_peft(model: Any, targets: list[str], dora: bool) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    made = peft.get_peft_model(
        model,
        peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_dora=dora, task_type="CAUSAL_LM", fan_in_fan_out="c_fc" in targets),
    )
    torch.manual_seed(7)
    with torch.no_grad():
        for _, p in made.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return made.eval()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_an_adapter_of_peft_gives_its_outputs_here(case: str, dora: bool, tmp_path: Path) -> None:
    folder = save(theirs(case), tmp_path / "base")
    made = in_peft(theirs(case), TARGETS[case][1], dora)
    made.save_pretrained(tmp_path / "adapter")
    _, model = adapted(folder, {"kind": "dora" if dora else "lora", "from": str(tmp_path / "adapter")})
    with torch.no_grad():
        torch.testing.assert_close(logits(model, tokens()), made(tokens()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_an_adapter_written_here_gives_its_outputs_in_peft_and_comes_back(case: str, dora: bool, tmp_path: Path) -> None:
    folder = save(theirs(case), tmp_path / "base")
    kind = "dora" if dora else "lora"
    config, model = adapted(folder, {"kind": kind, "rank": 3, "alpha": 5.0, "target": TARGETS[case][0]})
    want = logits(model, tokens())
    start = open_model_folder(str(folder))
    write_peft(tmp_path / "adapter", config, saved_weights(model), base=str(folder), fingerprint=start.fingerprint)
    _, again = adapted(folder, {"kind": kind, "from": str(tmp_path / "adapter")})
    torch.testing.assert_close(logits(again, tokens()), want, rtol=0, atol=1e-6)
    peft = pytest.importorskip("peft", reason="peft is not installed")
    loaded = peft.PeftModel.from_pretrained(theirs(case), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens()).logits, want, rtol=0, atol=1e-5)


def test_part_of_gpt2s_joined_matrix_goes_out_and_comes_back(tmp_path: Path) -> None:
    folder = save(theirs("gpt2"), tmp_path / "base")
    config, model = adapted(folder, {"kind": "lora", "rank": 3, "target": ["q", "v"]})
    write_peft(tmp_path / "adapter", config, saved_weights(model), base="x", fingerprint=open_model_folder(str(folder)).fingerprint)
    _, again = adapted(folder, {"kind": "lora", "from": str(tmp_path / "adapter")})
    torch.testing.assert_close(logits(again, tokens()), logits(model, tokens()), rtol=0, atol=1e-6)
    peft = pytest.importorskip("peft", reason="peft is not installed")
    loaded = peft.PeftModel.from_pretrained(theirs("gpt2"), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens()).logits, logits(model, tokens()), rtol=0, atol=1e-5)


def test_the_published_format_is_written_by_the_letter(tmp_path: Path) -> None:
    """Names and keys as in https://huggingface.co/docs/peft/developer_guides/checkpoint, which needs no peft to be read."""
    from safetensors import safe_open

    folder = save(theirs("llama"), tmp_path / "base")
    config, model = adapted(folder, {"kind": "dora", "rank": 3, "alpha": 6.0, "target": ["q"]})
    write_peft(tmp_path / "adapter", config, saved_weights(model), base="org/base", fingerprint="f")
    raw = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (raw["peft_type"], raw["r"], raw["lora_alpha"], raw["target_modules"], raw["use_dora"], raw["base_model_name_or_path"]) == (
        "LORA", 3, 6.0, ["self_attn.q_proj"], True, "org/base",
    )  # fmt: skip
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", framework="pt") as f:
        assert sorted(f.keys())[:3] == [
            f"base_model.model.model.layers.0.self_attn.q_proj.{leaf}"
            for leaf in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        ]
        assert f.get_tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight").shape == (32, 3)


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    folder, other = save(theirs("llama"), tmp_path / "base"), save(theirs("llama", seed=1), tmp_path / "other")
    config, model = adapted(folder, {"kind": "lora", "rank": 3})
    write_peft(tmp_path / "adapter", config, saved_weights(model), base="x", fingerprint=open_model_folder(str(folder)).fingerprint)
    with pytest.raises(CheckpointError, match=r"is an adapter for another base .* Give the base it belongs to"):
        adapted(other, {"kind": "lora", "from": str(tmp_path / "adapter")})
    wide = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | {"intermediate_size": 24}))
    write_peft(tmp_path / "plain", config, saved_weights(model), base="x", fingerprint="")
    with pytest.raises(CheckpointError, match=r"for another base"):
        adapted(save(wide, tmp_path / "wide"), {"kind": "lora", "from": str(tmp_path / "plain")})
    with pytest.raises(CheckpointError, match=r"adapts none of the layers"):
        adapted(save(theirs("gpt2"), tmp_path / "gpt2"), {"kind": "lora", "from": str(tmp_path / "adapter")})


def test_what_an_adapter_says_of_itself_may_not_be_contradicted(tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "base")
    config, model = adapted(folder, {"kind": "lora", "rank": 3})
    write_peft(tmp_path / "adapter", config, saved_weights(model), base="x", fingerprint=open_model_folder(str(folder)).fingerprint)
    with pytest.raises(RecipeError) as caught:
        adapted(folder, {"kind": "dora", "rank": 8, "from": str(tmp_path / "adapter")})
    assert "adapt.kind: dora" in str(caught.value) and "adapt.rank: 8" in str(caught.value)
    raw = json.loads((tmp_path / "adapter/adapter_config.json").read_text()) | {"use_rslora": True}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="use_rslora"):
        read_peft(tmp_path / "adapter", config, config.build_on_meta())


def test_the_product_with_the_merged_matrix_has_the_gradients_of_the_two_apart() -> None:
    from torch import nn

    from tauon.models import AdaptedLinear, LoraConfig

    torch.manual_seed(0)
    layer = nn.Linear(6, 8)
    layer.weight.requires_grad_(False)
    AdaptedLinear.wrap(layer, LoraConfig(rank=2, alpha=3.0))
    with torch.no_grad():
        for p in (layer.lora_a, layer.lora_b):
            p.normal_()
    found = []
    for rows in (2, 40):  # apart where few rows do not pay for the sum, and together
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        layer.zero_grad()
        out = torch.cat([layer(part) for part in x.split(rows)])
        out.square().sum().backward()
        found.append((out.detach(), x.grad, layer.lora_a.grad.clone(), layer.lora_b.grad.clone(), layer.bias.grad.clone()))
    assert layer._may_merge(torch.zeros(40, 6)) and not layer._may_merge(torch.zeros(2, 6))
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-4)


def test_frozen_matrices_in_bf16_give_what_autocast_gives(tmp_path: Path) -> None:
    folder = save(theirs("llama"), tmp_path / "base")
    config, model = adapted(folder, {"kind": "lora", "rank": 3})
    half = materialize(config, seed=0, weights=dict(open_model_folder(str(folder)).tensors) | saved_weights(model), half=True).eval()
    assert half.blocks[0].mlp.up.weight.dtype == torch.bfloat16 and half.head.weight.dtype == half.norm.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(half, tokens()), logits(model, tokens()))


# ------------------------------------------------------------------------------------------------ QLoRA


def test_nf4_rounds_each_weight_to_the_nearest_of_sixteen_by_the_block() -> None:
    from tauon.models.adapters.nf4 import CODES, dequantize, quantize

    torch.manual_seed(0)
    for shape in ((8, 64), (5, 37)):
        w = torch.randn(shape)
        packed, largest = quantize(w)
        flat = torch.cat((w.flatten(), torch.zeros(-w.numel() % 64))).view(-1, 64)
        assert torch.equal(largest, flat.abs().amax(1)) and packed.numel() == flat.numel() // 2
        codes = torch.tensor(CODES)
        nearest = codes[(flat / largest[:, None])[..., None].sub(codes).abs().argmin(-1)] * largest[:, None]
        assert torch.equal(dequantize(packed, largest, shape, torch.float32), nearest.flatten()[: w.numel()].view(shape))
    zero = torch.zeros(2, 64)
    assert torch.equal(dequantize(*quantize(zero), (2, 64), torch.float32), zero)


@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_nf4_is_that_of_torchao() -> None:
    nf4 = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor", reason="torchao has no NF4 here")
    from tauon.models.adapters.nf4 import CODES, dequantize, quantize

    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    theirs = nf4.to_nf4(w, block_size=64, scaler_block_size=128)
    torch.testing.assert_close(torch.tensor(CODES), theirs.nf4.float(), rtol=0, atol=5e-5)  # theirs has four decimals
    step = 2 / 15 * w.abs().max()  # theirs rounds the magnitudes, too
    torch.testing.assert_close(dequantize(*quantize(w), (64, 128), torch.float32), theirs.get_original_weight(), rtol=0, atol=float(step))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_beside_nf4_is_one_beside_the_rounded_base(kind: str, tmp_path: Path) -> None:
    from tauon.models.adapters.nf4 import Rounded

    folder = save(theirs("llama"), tmp_path / "base")
    config, model = adapted(folder, {"kind": kind, "rank": 3, "quantize": "nf4"})
    layer = model.blocks[0].mlp.up
    assert layer.rounded and not hasattr(layer, "weight") and layer.codes.numel() == layer.lora_b.shape[0] * layer.lora_a.shape[1] // 2
    base = dict(open_model_folder(str(folder)).tensors)
    for name in list(base):
        if name.startswith("blocks") and ".attention." in name + "." and name.endswith("weight") and "norm" not in name:
            base[name] = Rounded(base[name])
        if ".mlp." in name:
            base[name] = Rounded(base[name])
    assert config.adapt is not None
    plain = config.adapt.model_copy(update={"quantize": "none"})
    same = materialize(config.model_copy(update={"adapt": plain}), seed=0, weights=base | saved_weights(model)).eval()
    torch.testing.assert_close(logits(model, tokens()), logits(same, tokens()), rtol=0, atol=1e-5)
    model.logits(model(tokens())).square().sum().backward()
    same.logits(same(tokens())).square().sum().backward()
    for (name, p), (_, q) in zip(
        ((n, p) for n, p in model.named_parameters() if p.requires_grad), ((n, p) for n, p in same.named_parameters() if p.requires_grad),
        strict=True,
    ):  # fmt: skip
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4 * float(q.grad.abs().max()), msg=name)
    whole = merged(open_model_folder(str(folder)).tensors, saved_weights(model), config.adapt.scale, rounded=True)
    alone = materialize(config.model_copy(update={"adapt": None, "from_": None}), seed=1, weights=whole).eval()
    torch.testing.assert_close(logits(alone, tokens()), logits(model, tokens()), rtol=0, atol=1e-5)
