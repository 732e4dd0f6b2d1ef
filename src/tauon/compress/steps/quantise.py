"""Steps that store weights in fewer bits: `int8`, `int8_weight_only`, `int4_weight_only`, `bf16`. They come last, and nothing trains after them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from tauon.compress.base import LayerStep, Phase, Subject
from tauon.compress.fold import fold_batch_norms
from tauon.compress.quantized.half import Bf16Conv2d, Bf16Embedding, Bf16Linear
from tauon.compress.quantized.layers import Int8Conv2d, Int8Embedding, Int8Linear
from tauon.compress.rebuild import set_module
from tauon.compress.statistics import input_ranges, smoothing_scales
from tauon.config import Fraction, register
from tauon.errors import DataError

__all__ = ["Bf16", "Int8", "Int8WeightOnly", "layer_facts"]


class _Quantisation(LayerStep):
    phase: ClassVar[Phase] = "quantisation"
    heals: ClassVar[bool] = False


@register("int8")
class Int8(_Quantisation):
    """Weights int8, one scale for each output channel; activations int8. Linear layers, convolutions (static) and embeddings (weights alone).

    Batch norms behind convolutions are folded into them first.
    """

    activations: Literal["dynamic", "static"] = "dynamic"
    """`dynamic`: each row has its own scale, without calibration (linear layers; convolutions are always static). `static`: one range for each
    layer, observed on calibration data."""
    smooth: Fraction | None = Field(None, ge=0, le=1)
    """SmoothQuant (arXiv:2211.10438): how much of the outliers of activations moves into the weights, 0.5 say. Left out: none."""
    percentile: float = Field(100.0, gt=90, le=100)
    """static: the percentile of absolute activations that becomes the range; 100: the largest."""
    embeddings: bool = True
    """Quantise tables of embeddings, too."""

    def apply(self, subject: Subject) -> dict[str, Any]:
        model = subject.model
        folded = fold_batch_norms(model) if self.only else []
        linears = dict(self.chosen(model, (nn.Linear,)))
        convs = dict(self.chosen(model, (nn.Conv2d,)))
        tables = dict(self.chosen(model, (nn.Embedding,))) if self.embeddings else {}
        observed: dict[str, float] = {}
        observe = convs | (linears if self.activations == "static" else {})
        if observe:
            observed = input_ranges(subject, list(observe), self.percentile)
        smooth = smoothing_scales(subject, list(linears), self.smooth) if self.smooth is not None and linears else {}
        static = self.activations == "static"
        if static and smooth:
            observed |= input_ranges(subject, list(linears), self.percentile, divisors=smooth)
        shared: dict[int, tuple[Tensor, Tensor]] = {}
        for name, linear in linears.items():
            scale = observed.get(name) if static else None
            if static and scale is None:
                continue  # the forward pass reads its weight only
            layer = Int8Linear.quantize(
                linear, self.activations, input_scale=None if scale is None else scale / 127, smooth_K=smooth.get(name)
            )
            _share(shared, linear.weight, layer)
            set_module(model, name, layer)
        for name, conv in convs.items():
            set_module(model, name, Int8Conv2d.quantize(conv, "static", input_scale=observed[name] / 127))
        for name, table in tables.items():
            rows = Int8Embedding.quantize(table)
            _share(shared, table.weight, rows)
            set_module(model, name, rows)
        done = [*linears, *convs, *tables]
        return layer_facts(self, subject, done) | {"activations": self.activations, "folded": folded, "smoothed": sorted(smooth)}


@register("int8_weight_only")
class Int8WeightOnly(_Quantisation):
    """Weights int8, one scale for each output channel; activations stay float. A quarter of the size; rarely faster."""

    def apply(self, subject: Subject) -> dict[str, Any]:
        model = subject.model
        if self.only:
            fold_batch_norms(model)
        done, shared = [], dict[int, tuple[Tensor, Tensor]]()
        for name, module in self.chosen(model, (nn.Linear, nn.Conv2d, nn.Embedding)):
            layer: nn.Module
            if isinstance(module, nn.Linear):
                layer = Int8Linear.quantize(module, "weight-only")
            elif isinstance(module, nn.Conv2d):
                layer = Int8Conv2d.quantize(module, "weight-only")
            else:
                layer = Int8Embedding.quantize(module)
            _share(shared, module.weight, layer)
            set_module(model, name, layer)
            done.append(name)
        return layer_facts(self, subject, done)


@register("bf16")
class Bf16(_Quantisation):
    """Weights and products in bfloat16: half of the size, about three significant digits."""

    def apply(self, subject: Subject) -> dict[str, Any]:
        done, shared = [], dict[int, nn.Parameter]()
        for name, module in self.chosen(subject.model, (nn.Linear, nn.Conv2d, nn.Embedding)):
            kind: Any = {nn.Linear: Bf16Linear, nn.Conv2d: Bf16Conv2d, nn.Embedding: Bf16Embedding}[type(module)]
            layer = kind.of(module)
            layer.weight = shared.setdefault(id(module.weight), layer.weight)
            set_module(subject.model, name, layer)
            done.append(name)
        return layer_facts(self, subject, done)


def _share(shared: dict[int, tuple[Tensor, Tensor]], weight: Tensor, layer: Any) -> None:
    """Let layers of one tied weight have one tensor of integers."""
    if getattr(layer, "smooth_K", None) is not None:
        return
    layer.weight_q, layer.scale_N = shared.setdefault(id(weight), (layer.weight_q, layer.scale_N))


def layer_facts(step: LayerStep, subject: Subject, done: list[str]) -> dict[str, Any]:
    """Facts of a step; `DataError` names what the model is made of if no layer could be quantised."""
    if not done and step.only:
        kinds = sorted({type(m).__name__ for m in subject.model.modules() if any(True for _ in m.parameters(recurse=False))})
        raise DataError(
            f"{step.kind_}: no layer can be quantised. It treats Linear, Conv2d and Embedding; the model is made of {', '.join(kinds) or 'nothing'}"
        )
    kept = [n for n, m in subject.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding | nn.LSTM) and n not in done]
    return {"layers": done, "float_layers": [n for n in kept if n.rpartition(".")[0] not in done]}
