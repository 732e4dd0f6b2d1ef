"""A tied head is one tensor with the embedding, from the first weights to what is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tauon.artifacts import latest_checkpoint
from tauon.config import parse
from tauon.models import ModelConfig, materialize, parameter_count
from tauon.pipeline import load_model, run
from tauon.recipe import Recipe

SIZES = {"layers": 1, "width": 16, "heads": 2, "vocab": 40, "seq_len": 8}


@pytest.mark.parametrize("kind", [{"kind": "gpt", "tied": True}, {"kind": "gpt2"}])
def test_a_tied_head_stays_tied_when_weights_are_made(kind: dict[str, object]) -> None:
    config = parse(ModelConfig, SIZES | kind)
    model = materialize(config, seed=0)
    assert model.head.weight is model.embed.weight  # type: ignore[union-attr]
    assert parameter_count(model) == parameter_count(config.build())
    assert model.embed.weight.std().item() == pytest.approx(0.02, rel=0.2)  # type: ignore[union-attr, operator]


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
