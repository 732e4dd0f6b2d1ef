"""Generation from a language model: `generate` writes a few samples with a KV cache (the evaluation's samples, `tauon generate`); `Engine`
serves many requests at once.
"""

from tauon.generate.engine import Engine
from tauon.generate.engine_config import EngineConfig, EngineStats
from tauon.generate.request import (
    Completion,
    FinishReason,
    QueueFull,
    Request,
    RequestError,
    SamplingParams,
    StructuredOutputs,
    Token,
    Usage,
)
from tauon.generate.sample import Sampling, generate, next_token_distribution
from tauon.generate.stream import Stream

__all__ = [
    "Completion",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "QueueFull",
    "Request",
    "RequestError",
    "Sampling",
    "SamplingParams",
    "Stream",
    "StructuredOutputs",
    "Token",
    "Usage",
    "generate",
    "next_token_distribution",
]
