"""Make a trained model smaller or faster, and know what that costs: quantisation, sparsity, removed parts, low rank, and the search among them.

`compress_model(model, task, calibration, steps)` applies steps to a copy; `save_compressed` keeps the result as numbers and JSON.
"""

from tauon.compress.base import PHASES, Calibration, CompressStep, LayerStep, Subject, calibration_from
from tauon.compress.candidates import Candidate, candidates, serve
from tauon.compress.compress import Compressed, Heal, compress_model, model_bytes, ordered
from tauon.compress.graph import GraphInt8, quantise_graph
from tauon.compress.measure import Cost, measure
from tauon.compress.quality import Drop, Quality, paired_drop, quality_of
from tauon.compress.quantized import Int4Linear, Int8Conv2d, Int8Embedding, Int8Linear
from tauon.compress.save import load_compressed, open_compressed, save_compressed
from tauon.compress.search import Point, SearchResult, SearchSettings, search
from tauon.compress.sensitivity import layer_sensitivity
from tauon.compress.steps import Bf16, Int4WeightOnly, Int8, Int8Graph, Int8WeightOnly, LowRank, Magnitude, Structured, Wanda

__all__ = [
    "PHASES",
    "Bf16",
    "Calibration",
    "Candidate",
    "CompressStep",
    "Compressed",
    "Cost",
    "Drop",
    "GraphInt8",
    "Heal",
    "Int4Linear",
    "Int4WeightOnly",
    "Int8",
    "Int8Conv2d",
    "Int8Embedding",
    "Int8Graph",
    "Int8Linear",
    "Int8WeightOnly",
    "LayerStep",
    "LowRank",
    "Magnitude",
    "Point",
    "Quality",
    "SearchResult",
    "SearchSettings",
    "Structured",
    "Subject",
    "Wanda",
    "calibration_from",
    "candidates",
    "compress_model",
    "layer_sensitivity",
    "load_compressed",
    "measure",
    "model_bytes",
    "open_compressed",
    "ordered",
    "paired_drop",
    "quality_of",
    "quantise_graph",
    "save_compressed",
    "search",
    "serve",
]
