"""`int4_weight_only`: linear layers with weights in int4, a scale for each group of inputs. Activations stay float."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from tauon.compress.base import LayerStep, Phase, Subject
from tauon.compress.gptq import awq_scales, gptq_round, output_error
from tauon.compress.quantized.layers import Int4Linear, Int8Embedding
from tauon.compress.rebuild import set_module
from tauon.compress.statistics import input_moments
from tauon.compress.steps.quantise import layer_facts
from tauon.config import Count, register

__all__ = ["Int4WeightOnly"]


@register("int4_weight_only")
class Int4WeightOnly(LayerStep):
    """About an eighth of the size of the linear layers. For size: no kernel of the processor reads int4, so that it is slower in torch."""

    phase: ClassVar[Phase] = "quantisation"
    heals: ClassVar[bool] = False

    method: Literal["rtn", "gptq", "awq"] = "rtn"
    """`rtn`: round to nearest; `gptq` (arXiv:2210.17323) and `awq` (arXiv:2306.00978) look at calibration data."""
    group: Count = Field(32, ge=2, le=4096)
    """Inputs that share a scale."""
    embeddings: bool = True
    """Quantise tables of embeddings to int8, too."""

    def apply(self, subject: Subject) -> dict[str, Any]:
        layers = dict(self.chosen(subject.model, (nn.Linear,)))
        moments: dict[str, Tensor] = {}
        if self.method != "rtn" and layers:
            moments = input_moments(subject, list(layers))
        errors = {}
        for i, (name, linear) in enumerate(layers.items()):
            subject.progress(f"int4 {self.method}", i, len(layers))
            weight, H = linear.weight.detach().float(), moments.get(name)
            integers, smooth = None, None
            if H is not None and self.method == "gptq":
                integers = gptq_round(weight, H, self.group)
            elif H is not None and self.method == "awq":
                smooth = awq_scales(weight, H, self.group)
            layer = Int4Linear.quantize(linear, self.group, integers=integers, smooth_K=smooth)
            if H is not None:
                errors[name] = output_error(weight, layer.float_weight(), H)
            set_module(subject.model, name, layer)
        tables = dict(self.chosen(subject.model, (nn.Embedding,))) if self.embeddings else {}
        for name, table in tables.items():
            set_module(subject.model, name, Int8Embedding.quantize(table))
        return layer_facts(self, subject, [*layers, *tables]) | {"method": self.method, "output_errors": errors}
