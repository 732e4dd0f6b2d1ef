"""Small models with random weights, and calibration data for them."""

from __future__ import annotations

from typing import Any

import torch

from tauon.compress import Calibration
from tauon.models import CNNConfig, GPT2Config, GPTConfig, MLPConfig, ViTConfig, materialize
from tauon.models.families.resnet import ResNet20Config
from tauon.tasks import Classification, LanguageModelling
from tauon.types import Batch, DataSpec

IMAGE = DataSpec(input_shape=(3, 16, 16), outputs=4, labels=("a", "b", "c", "d"))
TABLE = DataSpec(input_shape=(24,), outputs=4, labels=("a", "b", "c", "d"))
TEXT = DataSpec(vocab=50, seq_len=16)
CONFIGS: dict[str, Any] = {
    "mlp": MLPConfig(hidden=(32, 16)).resolve(TABLE),
    "gpt": GPTConfig(layers=2, width=32, heads=4, kv_heads=2, mlp="swiglu", mlp_width=48).resolve(TEXT),
    "gpt2": GPT2Config(layers=2, width=32, heads=4).resolve(TEXT),
    "vit": ViTConfig(layers=2, width=32, heads=4, patch=4).resolve(IMAGE),
    "cnn": CNNConfig(channels=(16, 32)).resolve(IMAGE),
    "resnet": ResNet20Config(width=4).resolve(IMAGE),
}


def task_of(kind: str) -> Any:
    return LanguageModelling() if kind.startswith("gpt") else Classification()


def model_of(kind: str, seed: int = 0) -> Any:
    """A model whose every weight is random: initial zeros would hide errors."""
    model = materialize(CONFIGS[kind], seed=seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / (p[0].numel() if p.ndim > 1 else 4) ** 0.5 + (p.ndim == 1))
        for name, b in model.named_buffers():
            if "running" in name:
                b.copy_(torch.rand(b.shape, generator=g) + 0.5)
    return model.eval()


def batch_of(kind: str, n: int = 8, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    if kind.startswith("gpt"):
        tokens = torch.randint(50, (n, 17), generator=g)
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(n, 16))
    shape = (24,) if kind == "mlp" else (3, 16, 16)
    return Batch(torch.randn(n, *shape, generator=g), torch.arange(n) % 4, torch.ones(n))


def calibration(kind: str, n: int = 2) -> Calibration:
    return Calibration(tuple(batch_of(kind, seed=i + 1) for i in range(n)))


def outputs(kind: str, model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        hidden = model(batch.inputs)
        out: torch.Tensor = model.logits(hidden) if kind.startswith("gpt") else hidden
        return out
