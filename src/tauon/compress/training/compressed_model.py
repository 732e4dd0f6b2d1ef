"""A model whose layers differ from those of its family's config: what `compress` left of it, to be trained further (`model: {from: RUN/compress}`)."""

from __future__ import annotations

from typing import Any

from tauon.compress.rebuild import replace_layers
from tauon.config import register
from tauon.models import Model, ModelConfig, from_record
from tauon.types import DataSpec

__all__ = ["CompressedConfig"]


@register("compressed")
class CompressedConfig(ModelConfig):
    """The model of a compressed run: an architecture and the layers of it that were factorised or made narrower. Not to be written by hand."""

    input_kind = ("tokens", "masked-tokens", "labelled-text", "chat", "pairs", "arrays", "series", "signals")

    model: dict[str, Any]
    """The architecture."""
    layers: tuple[dict[str, Any], ...] = ()
    """The layers that differ: name, kind and sizes."""

    def resolve(self, spec: DataSpec) -> CompressedConfig:
        """Return the same config: all sizes are known. Raises `RecipeError` if model and data do not fit."""
        from_record(dict(self.model)).resolve(spec)
        return self

    def build(self) -> Model:
        """Build the family's model, with the layers that differ."""
        model = from_record(dict(self.model)).build()
        replace_layers(model, list(self.layers))
        return model
