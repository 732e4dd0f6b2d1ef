"""`int8_graph`: static int8 of the traced graph, for ONNX Runtime: activations stay int8 from layer to layer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from tauon.compress.base import LayerStep, Phase, Subject
from tauon.compress.fold import fold_batch_norms
from tauon.compress.graph import quantise_graph
from tauon.compress.quantized.layers import Int8Conv2d, Int8Linear
from tauon.compress.rebuild import set_module
from tauon.compress.steps.quantise import layer_facts
from tauon.config import register
from tauon.runtimes import trace
from tauon.runtimes.program import recorded_call

__all__ = ["Int8Graph"]


@register("int8_graph")
class Int8Graph(LayerStep):
    """Weights int8 by output channel, activations uint8 with one observed range each, residual additions and ReLU in int8, too.

    The fastest of all where the runtime is ONNX Runtime; in torch it only imitates int8.
    """

    phase: ClassVar[Phase] = "quantisation"
    heals: ClassVar[bool] = False
    needs_calibration: ClassVar[bool] = True

    reduce_range: bool = False
    """7 bits for activations: for processors without VNNI, whose sums of two products saturate at 16 bits."""
    largest: bool = False
    """The range of an activation is from its smallest to its largest value; false: the one of least squared error."""

    def apply(self, subject: Subject) -> dict[str, Any]:
        model = subject.model
        if not self.only:
            return {"layers": []}
        batches = subject.batches()
        program = trace(subject.task, model, batches[0])
        inputs = []
        for batch in batches:
            call = recorded_call(subject.task, model, batch)
            inputs.append(tuple(program.signature.tensors(call.args, call.kwargs)))
        folded = fold_batch_norms(model)
        done = []
        for name, layer in self.chosen(model, (nn.Linear, nn.Conv2d)):
            small: nn.Module = (
                Int8Linear.quantize(layer, "weight-only") if isinstance(layer, nn.Linear) else Int8Conv2d.quantize(layer, "weight-only")
            )
            set_module(model, name, small)
            done.append(name)
        skip = tuple(n for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d))
        facts = layer_facts(self, subject, done)
        subject.model = quantise_graph(model, program, inputs, reduce_range=self.reduce_range, largest=self.largest, skip=skip)
        return facts | {"folded": folded, "activations": len(subject.model.ranges), "runtime": "onnx"}
