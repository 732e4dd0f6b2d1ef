"""Generation: sampling from a language model with a KV cache. Used by the evaluation's samples and `tauon generate`."""

from tauon.generate.sample import Sampling, generate, next_token_distribution

__all__ = ["Sampling", "generate", "next_token_distribution"]
