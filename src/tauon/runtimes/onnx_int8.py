"""What torch's exporter leaves out of an int8 ONNX graph, so that ONNX Runtime keeps every product in int8.

A bias becomes int32 with its own DequantizeLinear (scale: that of the input times those of the weights). A transposed int8 weight is stored transposed.
Both change no number beyond rounding to the bias's scale, the one in which an int8 product is summed.

Shapes: N outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tauon.errors import MissingExtra
from tauon.runtimes.program import Program

__all__ = ["has_integers", "integer_products", "repair_int8"]


def has_integers(program: Program) -> bool:
    """Return whether the traced graph quantises anything."""
    return any("dequantize" in str(node.target) for node in program.exported.graph.nodes)


def integer_products(program: Program) -> dict[Any, Any] | None:
    """Return what the exporter needs to write products of int8 matrices (`Int8Linear`) as MatMulInteger; None if there are none."""
    products = [node.target for node in program.exported.graph.nodes if str(node.target) == "tauon.int_matmul.default"]
    if not products:
        return None
    try:
        from onnxscript import INT8, INT32, opset20
    except ImportError as err:
        raise MissingExtra("writing ONNX", "onnx") from err

    def int_matmul(a: INT8, b: INT8) -> INT32:
        return opset20.MatMulInteger(a, opset20.Transpose(b, perm=[1, 0]))

    int_matmul.__annotations__ = {"a": INT8, "b": INT8, "return": INT32}
    return {products[0]: int_matmul}


def repair_int8(file: Path) -> dict[str, int]:
    """Rewrite an ONNX file in place; return how many biases and weights were changed."""
    try:
        import onnx
    except ImportError as err:
        raise MissingExtra("writing ONNX", "onnx") from err
    model = onnx.load(file)
    graph = _Graph(model.graph)
    weights = sum(graph.store_transposed(node) for node in list(model.graph.node) if node.op_type == "Transpose")
    biases = sum(graph.quantise_bias(node) for node in list(model.graph.node) if node.op_type in ("Conv", "Gemm"))
    graph.drop_unused()
    for described in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):  # notes of the exporter
        described.ClearField("metadata_props")
        described.ClearField("doc_string")
    del model.graph.value_info[:]
    onnx.save(model, file)
    return {"biases": biases, "weights": weights}


class _Graph:
    """An ONNX graph with its constants and producers by name."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.constants = {i.name: i for i in graph.initializer}
        self.producer = {output: node for node in graph.node for output in node.output}

    def value(self, name: str) -> np.ndarray | None:
        """Return the value of a constant; None if it is computed."""
        from onnx import numpy_helper

        tensor: Any = self.constants.get(name)
        node = self.producer.get(name)
        if tensor is None and node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def add(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def insert_before(self, node: Any, new: Any) -> None:
        at = next(i for i, n in enumerate(self.graph.node) if n is node or n.output == node.output)
        self.graph.node.insert(at, new)
        self.producer |= dict.fromkeys(new.output, new)

    def dequantised(self, name: str) -> Any:
        """Return the DequantizeLinear that gives this value, or None."""
        node = self.producer.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def quantise_bias(self, node: Any) -> bool:
        """Give the bias of an int8 product its own integers; whether that was done."""
        from onnx import helper

        if len(node.input) < 3 or not node.input[2]:
            return False
        of_input, of_weight, bias = self.dequantised(node.input[0]), self.dequantised(node.input[1]), self.value(node.input[2])
        if of_input is None or of_weight is None or bias is None or bias.dtype != np.float32:
            return False
        input_scale, weight_scale = self.value(of_input.input[1]), self.value(of_weight.input[1])
        if input_scale is None or weight_scale is None:
            return False
        scale_N = np.broadcast_to((input_scale.astype(np.float64) * weight_scale).astype(np.float32).reshape(-1), bias.shape)
        integers = np.clip(np.rint(bias / scale_N.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        at = f"{node.output[0]}_bias"
        inputs = [self.add(f"{at}_{k}", v) for k, v in (("int", integers), ("scale", scale_N), ("zero", np.zeros_like(integers)))]
        self.insert_before(node, helper.make_node("DequantizeLinear", inputs, [at], name=at, axis=0))
        node.input[2] = at
        return True

    def store_transposed(self, node: Any) -> bool:
        """Transpose the integers of a weight instead of its floats; whether that was done."""
        from onnx import helper

        source = self.dequantised(node.input[0])
        if source is None or len(source.input) < 3:
            return False
        weight, scale, zero = (self.value(name) for name in source.input)
        axis = next((a.i for a in source.attribute if a.name == "axis"), 1)
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
        if weight is None or scale is None or zero is None or weight.ndim != 2 or order != [1, 0]:
            return False
        at = f"{node.output[0]}_t"
        inputs = [self.add(f"{at}_int", weight.T), *source.input[1:]]
        new = helper.make_node("DequantizeLinear", inputs, [at], name=at, axis=1 - axis % 2)
        self.insert_before(node, new)
        for reader in self.graph.node:
            for i, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[i] = at
        return True

    def drop_unused(self) -> None:
        """Remove nodes and constants that nothing reads."""
        while True:
            read = {name for node in self.graph.node for name in node.input} | {o.name for o in self.graph.output}
            unread = [node for node in self.graph.node if not any(o in read for o in node.output)]
            for node in unread:
                self.graph.node.remove(node)
            if not unread:
                break
        for tensor in [i for i in self.graph.initializer if i.name not in read]:
            self.graph.initializer.remove(tensor)
