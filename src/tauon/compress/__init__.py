"""Make a trained model smaller or faster, and know what that costs: quantisation, sparsity, removed parts, low rank, and the search among them.

`compress_model(model, task, calibration, steps)` applies steps to a copy; `save_compressed` keeps the result as numbers and JSON.
"""

from tauon.compress.base import PHASES, Calibration, CompressStep, LayerStep, Subject, calibration_from
from tauon.compress.compress import Compressed, Heal, compress_model, model_bytes, ordered
from tauon.compress.quantized import Int4Linear, Int8Conv2d, Int8Embedding, Int8Linear
from tauon.compress.save import load_compressed, open_compressed, save_compressed
from tauon.compress.steps import Bf16, Int8, Int8WeightOnly

__all__ = [
    "PHASES",
    "Bf16",
    "Calibration",
    "CompressStep",
    "Compressed",
    "Heal",
    "Int4Linear",
    "Int8",
    "Int8Conv2d",
    "Int8Embedding",
    "Int8Linear",
    "Int8WeightOnly",
    "LayerStep",
    "Subject",
    "calibration_from",
    "compress_model",
    "load_compressed",
    "model_bytes",
    "open_compressed",
    "ordered",
    "save_compressed",
]
