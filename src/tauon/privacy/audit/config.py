"""What an audit of a trained run tries: the recipe's section `audit`."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tauon.config import Config, Count

__all__ = ["AuditConfig"]


class AuditConfig(Config):
    """How the trained model is attacked."""

    shadows: Count = Field(0, ge=0, le=512)
    """Reference models for the likelihood-ratio attack (Carlini et al. 2022), trained by the same recipe: an even number."""
    examples: Count = Field(10_000, ge=10)
    """Members, and held-out examples, that are looked at: at most so many of each."""
    confidence: float = Field(0.95, ge=0.5, le=0.9999)
    """Confidence level of the intervals and tests."""
    seed: Count = Field(0, ge=0)
    """Which examples, pairs and halves are drawn."""
    slices: bool = True
    """Also each class by itself."""

    def problems(self) -> Iterator[tuple[str, str]]:
        shadows = self.raw_value("shadows")
        if shadows % 2:
            yield "shadows", f"{shadows} is odd: halves come in pairs, so that each example is in half of them. Give an even number."
