"""A tied head is one tensor with the embedding: in what trains, what is saved, loaded, averaged, merged and exported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.artifacts import RunFolder, latest_checkpoint, load_checkpoint
from tauon.config import parse
from tauon.export import export_checkpoint, merge_adapter
from tauon.models import materialize, open_model_folder
from tauon.pipeline import run
from tauon.recipe import Recipe
from tauon.stages.load import load_model


def test_a_tied_model_trained_with_an_average_is_evaluated_with_the_average(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question " * 40)
    recipe = parse(
        Recipe,
        {
            "name": "tied",
            "data": {"source": {"kind": "text", "path": str(tmp_path / "text.txt")}, "tokenizer": "bytes", "seq_len": 8},
            "task": "language-modelling",
            "model": {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "tied": True},
            "optim": {"kind": "adamw", "lr": 0.01},
            "train": {"steps": 6, "batch": 4, "ema": 0.9},
            "evaluate": {"samples": 0, "resamples": 100},
        },
    )
    checkpoint = latest_checkpoint(run(recipe, root=tmp_path / "runs", stages=("prepare", "train", "evaluate")).checkpoints)
    assert checkpoint is not None
    average, raw = checkpoint.tensors("ema"), checkpoint.tensors("model")
    model, _ = load_model(checkpoint, recipe)
    assert model.head.weight is model.embed.weight
    assert all(torch.equal(p, average[name]) for name, p in model.named_parameters())
    assert not torch.equal(model.head.weight, raw["head.weight"])
    assert torch.equal(load_model(checkpoint, recipe, weights="raw")[0].head.weight, raw["head.weight"])


TIED = ("embed.weight", "head.weight")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published tied model `hf` (bytes as tokens), and text."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("tied")
    (folder / "text.txt").write_text("to be or not to be, that is the question " * 40)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "hf")
    return folder


def tuned(base: Path, name: str, **sections: Any) -> RunFolder:
    tree: dict[str, Any] = {
        "name": name, "task": "language-modelling", "model": {"from": str(base / "hf")}, "optim": {"kind": "adamw", "lr": 0.01},
        "data": {"source": {"kind": "text", "path": str(base / "text.txt")}, "tokenizer": "bytes", "seq_len": 8, "cache": str(base / "cache")},
        "train": {"steps": 6, "batch": 4, "checkpoint_every": 3, "precision": "fp32", "compile": False}, "evaluate": {"samples": 0, "resamples": 100},
    }  # fmt: skip
    return run(parse(Recipe, tree | sections), root=base / "runs", stages=("prepare", "train", "evaluate"))


def adapt(kind: str, *also: str) -> dict[str, Any]:
    return {"kind": kind, "rank": 2, "target": ["q"], "also": list(also)}


@pytest.mark.parametrize(
    ("kind", "also"),
    [("lora", ("embed.weight",)), ("lora", ("head.*",)), ("dora", ("embed.*", "head.weight")), ("lora", ("*e*d*.weight",))],
)
def test_a_tied_weight_trains_once_by_whichever_name_it_is_named(base: Path, kind: str, also: tuple[str, ...]) -> None:
    done = tuned(base, f"also-{kind}-{'-'.join(also).replace('*', 'all')}", adapt=adapt(kind, *also))
    found = latest_checkpoint(done.checkpoints)
    assert found is not None
    start, held = open_model_folder(str(base / "hf")).tensors["embed.weight"].read(), found.tensors("model")
    assert not torch.equal(held["embed.weight"], start)
    assert held["embed.weight"].data_ptr() == held["head.weight"].data_ptr()  # one tensor in the file
    assert sum(n.startswith(TIED) for n in found.tensors("optim")) == sum(n.startswith("embed.weight") for n in found.tensors("optim")) > 0
    model, _ = load_model(found, parse(Recipe, _tree(done)))
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.embed.weight, held["embed.weight"])


def _tree(done: RunFolder) -> dict[str, Any]:
    from tauon.config import read_yaml

    return dict(read_yaml(done.recipe_path.read_text()))


def test_without_being_named_a_tied_weight_stays(base: Path) -> None:
    found = latest_checkpoint(tuned(base, "still", adapt=adapt("lora", "norm.weight")).checkpoints)
    assert found is not None and not set(TIED) & set(found.tensors("model"))


def test_a_tied_weight_beside_adapters_goes_on_bit_for_bit(base: Path) -> None:
    sections: dict[str, Any] = {"adapt": adapt("lora", "embed.weight")}
    whole = latest_checkpoint(tuned(base, "at-once", **sections).checkpoints)
    done = tuned(base, "in-two", **sections)
    shutil.rmtree(done.checkpoints / "step-000006")
    (done.folder / "stages.json").unlink()
    again = latest_checkpoint(tuned(base, "in-two", **sections).checkpoints)
    assert whole is not None and again is not None
    assert all(torch.equal(again.tensors("model")[n], t) for n, t in whole.tensors("model").items())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for an old name
def test_a_tied_weight_beside_adapters_is_merged_and_exported_as_one(base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    done = tuned(base, "out", adapt=adapt("lora", "embed.weight"))
    checkpoint = latest_checkpoint(done.checkpoints)
    assert checkpoint is not None
    ids = torch.arange(16).view(2, 8) * 3
    model, _ = load_model(checkpoint, parse(Recipe, _tree(done)))
    with torch.no_grad():
        want = model.logits(model(ids))
        start = open_model_folder(str(merge_adapter(done.folder, tmp_path / "merged")))
        alone = materialize(start.config, seed=0, weights=start.tensors).eval()
        assert alone.head.weight is alone.embed.weight  # type: ignore[union-attr]
        torch.testing.assert_close(alone.logits(alone(ids)), want, rtol=0, atol=1e-5)
        export_checkpoint(done.folder, tmp_path / "hf", format="huggingface")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
        assert theirs.config.tie_word_embeddings and theirs.lm_head.weight is theirs.model.embed_tokens.weight
        torch.testing.assert_close(theirs(ids).logits, want, rtol=0, atol=1e-5)
        export_checkpoint(done.folder, tmp_path / "peft", format="peft")
        beside = transformers.AutoModelForCausalLM.from_pretrained(base / "hf")
        torch.testing.assert_close(peft.PeftModel.from_pretrained(beside, tmp_path / "peft").eval()(ids).logits, want, rtol=0, atol=1e-5)
    again = tuned(base, "again", adapt={**adapt("lora", "embed.weight"), "from": str(tmp_path / "peft")}, train={"steps": 1, "batch": 4})
    found = latest_checkpoint(again.checkpoints)
    assert found is not None
    assert (
        found.tensors("model")["embed.weight"] - checkpoint.tensors("model")["embed.weight"]
    ).abs().max() < 0.05  # it went on from there


def test_rates_and_freezing_know_both_names_of_a_tied_weight(base: Path) -> None:
    moved = {}
    for name, scale in (("slow", 1e-6), ("usual", 1.0)):
        found = latest_checkpoint(
            tuned(base, f"rate-{name}", optim={"kind": "adamw", "lr": 0.01, "lr_scale": {"head.*": scale}}).checkpoints
        )
        assert found is not None
        moved[name] = float(
            (found.tensors("model")["embed.weight"] - open_model_folder(str(base / "hf")).tensors["embed.weight"].read()).abs().max()
        )
    assert moved["slow"] < 1e-4 < moved["usual"]
    for pattern in TIED:
        frozen = tuned(base, f"frozen-{pattern[:4]}", train={"steps": 2, "batch": 4, "freeze": [pattern]})
        held = load_checkpoint(sorted(frozen.checkpoints.iterdir())[-1]).tensors("model")
        assert torch.equal(held["head.weight"], open_model_folder(str(base / "hf")).tensors["embed.weight"].read())
