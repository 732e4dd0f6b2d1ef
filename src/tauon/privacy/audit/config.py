"""The recipe's section `audit`."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tauon.config import Config, Count

__all__ = ["AuditConfig"]


class AuditConfig(Config):
    """Attacks on the trained model."""

    shadows: Count = Field(0, ge=0, le=512)
    """Number of reference models for the likelihood-ratio attack (Carlini et al. 2022), trained with the same recipe: an even number."""
    examples: Count = Field(10_000, ge=10)
    """Maximum number of members, and of held-out examples, in the attacks."""
    confidence: float = Field(0.95, ge=0.5, le=0.9999)
    """Confidence level of the intervals and tests."""
    seed: Count = Field(0, ge=0)
    """Seed of the sampled examples, pairs and halves."""
    slices: bool = True
    """Also report each class separately."""

    def problems(self) -> Iterator[tuple[str, str]]:
        shadows = self.raw_value("shadows")
        if shadows % 2:
            yield (
                "shadows",
                f"is {shadows}, which is odd: reference models are trained in pairs on complementary halves. Set an even number.",
            )
