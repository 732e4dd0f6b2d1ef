"""Adapters beside frozen weights: LoRA, DoRA, and bases rounded to four bits."""

from tauon.models.adapters.layers import (
    LEAVES,
    AdaptConfig,
    AdaptedLinear,
    DoraConfig,
    LoraConfig,
    Merged,
    init_adapter,
    is_adapter,
    merged,
    saved_weights,
)

__all__ = [
    "LEAVES",
    "AdaptConfig",
    "AdaptedLinear",
    "DoraConfig",
    "LoraConfig",
    "Merged",
    "init_adapter",
    "is_adapter",
    "merged",
    "saved_weights",
]
