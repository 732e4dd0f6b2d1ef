"""Generation: sampling with a KV cache. Shared by the quickstart's samples, `tauon generate`, and serving."""

from tauon.generate.sample import generate, next_token_distribution

__all__ = ["generate", "next_token_distribution"]
