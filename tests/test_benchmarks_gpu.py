"""The GPU benchmark's code, every part of it, in toy sizes on a CPU; and that it refuses, in words, where there is no GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import gpu

from tauon.models import parameter_count

ROOT = Path(__file__).parents[1]


def test_it_runs_in_toy_sizes_and_says_what_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--tiny"])
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert {"claim", "ours", "peer", "ratio", "floor", "unit"} <= set(found)
    assert found["claim"] == "gpu"
    assert found["unit"] == "tokens/s"
    assert found["ours"] > 0
    assert found["plain"] > 0
    assert found["lora"] > 0
    assert found["peer"] == max(found[k] or 0 for k in ("plain", "hf"))
    assert found["ratio"] == pytest.approx(found["ours"] / found["peer"], rel=1e-2)
    assert found["utilisation"] is None, "a CPU's peak rate is not in the table"
    assert any(line.startswith("LoRA: ") for line in lines)
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate"):
        assert found["hf"] > 0
    else:
        assert found["hf"] is None
        assert any(line.startswith("hf: left out") for line in lines)


def test_the_three_models_are_of_one_size_and_their_flops_are_the_stated_formula() -> None:
    size = gpu.DENSE
    model = size.config().build_on_meta()
    block = 4 * size.width**2 + 3 * size.width * size.hidden
    weights = size.layers * block + size.vocab * size.width
    assert parameter_count(model) == weights + size.vocab * size.width + (2 * size.layers + 1) * size.width == 1_059_137_536
    from tauon.types import DataSpec

    formula = (6 * weights + 6 * size.layers * size.seq * size.width) * size.seq
    assert model.flops_per_example(DataSpec(vocab=size.vocab, seq_len=size.seq)) == formula
    assert parameter_count(gpu.LLAMA_3_8B.config().build_on_meta()) == 8_030_261_248, "Llama-3-8B's"
    transformers = pytest.importorskip("transformers", reason="the peer is not installed")
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=size.vocab, hidden_size=size.width, intermediate_size=size.hidden, num_hidden_layers=size.layers,
                num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, tie_word_embeddings=False,
            )
        )  # fmt: skip
    assert parameter_count(theirs) == parameter_count(model)


def test_adapters_alone_train_and_begin_as_the_base_model() -> None:
    size = gpu.TINY_LLAMA
    model = gpu.adapted(size, torch.device("cpu"))
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trains) == size.layers * 7 * 2
    assert {p.dtype for p in trains.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert model.cos_TK.dtype == torch.float32
    tokens = torch.arange(16)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        adapted = model(tokens)
        for name, p in trains.items():
            if name.endswith("lora_a"):
                p.zero_()
        torch.testing.assert_close(model(tokens), adapted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H200", 989.4), ("NVIDIA H200 NVL", 835.5), ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A10G", 70.0), ("NVIDIA L4", 121.0), ("NVIDIA L40S", 362.1), ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla P100", None),
    ],
)  # fmt: skip
def test_the_peak_rate_of_a_card_is_found_by_its_name(name: str, rate: float | None) -> None:
    assert gpu.peak(name) == rate


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: it would be measured")
def test_without_a_gpu_it_refuses_in_one_sentence() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "benchmarks.gpu measures one CUDA device, and torch finds none here; --tiny runs its code on a CPU.\n"
