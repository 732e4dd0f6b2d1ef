"""Clipped sums equal the loop over single examples: language models, tied and untied, several rows a unit."""

from __future__ import annotations

import pytest
import torch

from tauon.models import materialize
from tauon.models.families.gpt import GPT2Config, GPTConfig
from tauon.tasks import LanguageModelling
from tauon.testing import check_clipping, tiny_batch
from tauon.types import DataSpec

SPEC = DataSpec(vocab=50, seq_len=16)


@pytest.mark.parametrize("rows_per_unit", [1, 3])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize(
    "config",
    [GPTConfig(layers=2, width=32, heads=2), GPTConfig(layers=1, width=32, heads=2, tied=True, kv_heads=1, mlp="swiglu"),
     GPT2Config(layers=1, width=32, heads=2)],
    ids=["gpt", "tied", "gpt2"],
)  # fmt: skip
def test_a_language_models_clipped_sum_equals_the_loop(config: GPTConfig, z_loss: float, rows_per_unit: int) -> None:
    model = materialize(config.resolve(SPEC), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    batch = tiny_batch(SPEC, 6)
    batch.weights[0] = 0
    task = LanguageModelling(z_loss=z_loss)
    check_clipping(model, lambda m, a, b: task.loss(m, batch.rows(a, b))[0], 6, rows_per_unit=rows_per_unit)
