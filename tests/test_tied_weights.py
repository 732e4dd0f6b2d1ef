"""A tied head is one tensor with the embedding, also in what is evaluated."""

from __future__ import annotations

from pathlib import Path

import torch

from tauon.artifacts import latest_checkpoint
from tauon.config import parse
from tauon.pipeline import load_model, run
from tauon.recipe import Recipe


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
