"""Layers with quantised weights, and the arithmetic behind them."""

from tauon.compress.quantized.half import Bf16Conv2d, Bf16Embedding, Bf16Linear
from tauon.compress.quantized.layers import Activations, Int4Linear, Int8Conv2d, Int8Embedding, Int8Linear
from tauon.compress.quantized.numbers import int_matmul, pack_int4, quantize_channels, quantize_groups, quantize_rows, unpack_int4

__all__ = [
    "Activations",
    "Bf16Conv2d",
    "Bf16Embedding",
    "Bf16Linear",
    "Int4Linear",
    "Int8Conv2d",
    "Int8Embedding",
    "Int8Linear",
    "int_matmul",
    "pack_int4",
    "quantize_channels",
    "quantize_groups",
    "quantize_rows",
    "unpack_int4",
]
