"""Generation: sampling with a KV cache. Shared by the quickstart's samples, `tauon generate`, and serving."""

from tauon.generate.sample import Sampling, generate, next_token_distribution

__all__ = ["Sampling", "generate", "next_token_distribution"]
