"""Which tensors of a graph become int8 (torchao's PT2E `Quantizer`): inputs of convolutions, linear layers and additions, and what flows
between them, so that a runtime finds int8 on both sides of each and keeps no float between them.

torch's own quantizers leave one input of a residual addition in float (Inductor fuses it) or use signed zero points behind a ReLU (XNNPACK), and
ONNX Runtime then computes half of a ResNet in float. Activations here are uint8; behind a ReLU zero is the integer 0, so that the ReLU vanishes.

Needs torchao; imported by `pt2e.py` when it is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer, SharedQuantizationSpec

__all__ = ["GraphQuantizer"]

aten = torch.ops.aten
_PRODUCTS = {aten.conv2d.default, aten.conv1d.default, aten.linear.default}
_ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}
_RELUS = {aten.relu.default, aten.relu_.default}
_SAME_RANGE = {
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.pad.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
}  # fmt: skip


class GraphQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a graph for static int8."""

    def __init__(self, *, reduce_range: bool = False, largest: bool = True, skip: tuple[str, ...] = ()) -> None:
        """
        Args:
            reduce_range: 7 bits for activations: for processors that add pairs of products in 16 bits.
            largest: the range is the smallest and largest value; else that of least error (a histogram).
            skip: names of layers (as in the model) that stay float.
        """
        super().__init__()
        top = 127 if reduce_range else 255
        observer: Any = (MinMaxObserver if largest else HistogramObserver).with_args(eps=2**-20)
        self.activation = QuantizationSpec(torch.uint8, observer, 0, top, torch.per_tensor_affine)
        self.weight = QuantizationSpec(
            torch.int8, PerChannelMinMaxObserver.with_args(eps=2**-20), -127, 127, torch.per_channel_symmetric, ch_axis=0
        )
        self.skip = skip
        self.layers: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target in _PRODUCTS:
                self._product(node)
            elif node.target in _ADDITIONS:
                self._addition(node)
        for node in model.graph.nodes:  # in order: a range passes through what keeps it
            if node.op == "call_function" and node.target in _SAME_RANGE and _is_quantised(node.args[0]):
                self._same_range(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Any graph will do."""

    def _product(self, node: Node) -> None:
        name = layer_name(node)
        if name in self.skip:
            return
        self.layers.append(name)
        x, weight = node.args[0], node.args[1]
        _annotate(node, {x: self.activation, weight: self.weight}, None)
        if node.target is not aten.linear.default or _only_relu(node) is not None:
            self._output(node)

    def _addition(self, node: Node) -> None:
        inputs = [a for a in node.args[:2] if isinstance(a, Node)]
        if len(inputs) == 2 and all(_reaches_convolution(a) for a in inputs):
            _annotate(node, dict.fromkeys(inputs, self.activation), None)
            self._output(node)

    def _output(self, node: Node) -> None:
        """Quantise what a node gives, behind its ReLU if that is all that reads it."""
        relu = _only_relu(node)
        if relu is None:
            node.meta["quantization_annotation"].output_qspec = self.activation
        else:
            _annotate(relu, {}, self.activation)

    def _same_range(self, node: Node) -> None:
        source = node.args[0]
        shared = SharedQuantizationSpec((source, node))
        _annotate(node, {source: self.activation}, shared)


def layer_name(node: Node) -> str:
    """Return the name of the module whose weight the node reads, as in the model that was traced."""
    weight = node.args[1]
    target = str(weight.target) if isinstance(weight, Node) else ""
    return target.removeprefix("model.").removesuffix(".weight")


def _annotate(node: Node, inputs: dict[Any, Any], output: Any) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)


def _only_relu(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in _RELUS else None


def _is_quantised(node: Any) -> bool:
    found = node.meta.get("quantization_annotation") if isinstance(node, Node) else None
    return found is not None and found.output_qspec is not None


def _reaches_convolution(node: Node) -> bool:
    """Whether the value comes from a convolution by way of additions, ReLUs and poolings alone."""
    while node.op == "call_function" and node.target in _RELUS | _SAME_RANGE:
        first = node.args[0]
        assert isinstance(first, Node)
        node = first
    return node.op == "call_function" and (
        node.target in (aten.conv2d.default, aten.conv1d.default)
        or (node.target in _ADDITIONS and node.meta.get("quantization_annotation") is not None)
    )
