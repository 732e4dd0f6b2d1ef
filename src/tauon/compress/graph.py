"""Static int8 of a whole graph, by `torch.export` and torchao's PT2E: the way to ONNX Runtime, ExecuTorch and Inductor.

`quantise_graph` traces a model, observes the range of every tensor that becomes int8 and makes a `GraphInt8`, which is called like the model. What it
keeps is the model with int8 weights and the list of ranges: from these the graph is made again, the same bit by bit, when it is loaded.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tauon.compress.quantized.layers import Int8Conv2d, Int8Embedding, Int8Linear
from tauon.compress.rebuild import set_module
from tauon.errors import CheckpointError, DataError, MissingExtra
from tauon.runtimes import Program, Signature
from tauon.runtimes.program import LONGEST_BATCH, Traceable

__all__ = ["GraphInt8", "Range", "quantise_graph"]


@dataclass(frozen=True)
class Range:
    """How a tensor becomes uint8: round(x / scale) + zero, within 0 and `top`."""

    scale: float
    zero: int
    top: int = 255


class GraphInt8(nn.Module):
    """A graph of int8 operations. Tasks call it like the model; it has no gradient.

    In torch it computes on float32 values of the integers: exact enough to be the reference, but slow. `program` is for the runtime.
    """

    def __init__(
        self, weights: nn.Module, graph: nn.Module, signature: Signature, ranges: tuple[Range, ...], skip: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.weights = weights
        """The model with int8 weights."""
        self.signature, self.ranges, self.skip = signature, ranges, skip
        self.gives_logits = signature.logits
        object.__setattr__(self, "graph", graph)  # made from `weights`: not a part to be saved

    graph: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.graph(*[t.detach() for t in self.signature.tensors(args, kwargs)])

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, which the graph of a language model computed already."""
        return hidden

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.weights.state_dict(*args, **kwargs)

    def program(self) -> Program:
        """Return the graph as a program that other runtimes take."""
        example = _example(self.signature)
        longest = getattr(self.weights, "seq_len", None)
        return Program(_exported(self.graph, self.signature, example, longest), self.signature, example)

    def to_json(self) -> dict[str, Any]:
        """What `from_parts` needs beside the weights."""
        return {
            "signature": self.signature.to_json(),
            "ranges": [[r.scale, r.zero, r.top] for r in self.ranges],
            "skip": list(self.skip),
        }

    @classmethod
    def from_parts(cls, weights: nn.Module, about: dict[str, Any]) -> GraphInt8:
        """Make the graph again from the model with int8 weights and `to_json`."""
        signature = Signature.from_json(about["signature"])
        ranges = tuple(Range(float(s), int(z), int(t)) for s, z, t in about["ranges"])
        skip = tuple(map(str, about["skip"]))
        return cls(weights, _converted(weights, signature, ranges, skip), signature, ranges, skip)


def quantise_graph(
    weights: nn.Module, program: Program, inputs: Sequence[tuple[Tensor, ...]], *, reduce_range: bool = False, largest: bool = False,
    skip: tuple[str, ...] = (),
) -> GraphInt8:  # fmt: skip
    """Quantise a traced model.

    Args:
        weights: the model with int8 weights (`Int8WeightOnly`), batch norms folded; `skip`ped layers float.
        program: the trace of the model, for its signature.
        inputs: calibration data: the program's inputs.
        reduce_range: 7 bits for activations, for processors without VNNI.
        largest: the range of an activation is from its smallest to its largest value; else that of least error.
        skip: names of layers that stay float.

    Raises:
        DataError: the graph has nothing that can be quantised.
        MissingExtra: torchao is not installed.
    """
    prepared, layers = _prepared(weights, program.signature, skip, reduce_range=reduce_range, largest=largest)
    if not layers:
        raise DataError("int8_graph: the traced model has no convolution or linear layer that can be quantised")
    with torch.no_grad():
        for tensors in inputs:
            prepared(*tensors)
    ranges = []
    for _, observer in _activations(prepared):
        scale, zero = observer.calculate_qparams()
        ranges.append(Range(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), observer.quant_max))
    fixed = tuple(ranges)
    return GraphInt8(weights, _converted(weights, program.signature, fixed, skip), program.signature, fixed, skip)


def _activations(prepared: nn.Module) -> list[tuple[str, Any]]:
    """Observers of activations, each once, in the order of the graph."""
    found: dict[int, tuple[str, Any]] = {}
    for node in prepared.graph.nodes:  # type: ignore[union-attr]
        if node.op == "call_module":
            observer: Any = prepared.get_submodule(str(node.target))
            if getattr(observer, "dtype", None) == torch.uint8:
                found.setdefault(id(observer), (str(node.target), observer))
    return list(found.values())


@contextmanager
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _prepared(
    weights: nn.Module, signature: Signature, skip: tuple[str, ...], *, reduce_range: bool = False, largest: bool = True
) -> tuple[Any, list[str]]:
    """Return (the graph with observers, names of the layers that become int8)."""
    with _quiet():
        try:
            for name in ("torchao", "torch.utils._pytree"):  # what they log while they are imported is about GPUs and their own future
                logging.getLogger(name).setLevel(logging.ERROR)
            from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

            from tauon.compress.graph_quantizer import GraphQuantizer
        except ImportError as err:
            raise MissingExtra("static int8 of a graph", "compress") from err
        longest = getattr(weights, "seq_len", None)
        exported = _exported(_float_model(weights, signature), signature, _example(signature), longest).module(check_guards=False)
        quantizer = GraphQuantizer(reduce_range=reduce_range, largest=largest, skip=skip)
        prepared = prepare_pt2e(exported, quantizer)
    return prepared, quantizer.layers


def _converted(weights: nn.Module, signature: Signature, ranges: tuple[Range, ...], skip: tuple[str, ...]) -> nn.Module:
    """Return the int8 graph for given ranges of activations."""
    prepared, _ = _prepared(weights, signature, skip)
    with _quiet(), torch.no_grad():
        from torchao.quantization.pt2e import FixedQParamsObserver
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        prepared(*_example(signature))  # observers of weights
        observers = _activations(prepared)
        if len(observers) != len(ranges):
            raise CheckpointError(f"{len(ranges)} ranges for a graph with {len(observers)} quantised activations: compress the model again")
        fixed: dict[int, Any] = {}
        for (_, observer), r in zip(observers, ranges, strict=True):
            fixed[id(observer)] = FixedQParamsObserver(
                scale=r.scale, zero_point=r.zero, dtype=torch.uint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=r.top
            )
        for name, module in list(prepared.named_modules(remove_duplicate=False)):
            if id(module) in fixed:
                setattr(prepared, name, fixed[id(module)])
        converted: nn.Module = convert_pt2e(prepared)
    return converted


def _float_model(weights: nn.Module, signature: Signature) -> Traceable:
    """The model with float layers that have the values of the int8 weights."""
    model = copy.deepcopy(weights)
    with torch.no_grad():
        for name, layer in list(model.named_modules()):
            if isinstance(layer, Int8Linear):
                linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                set_module(model, name, _filled(linear, layer))
            elif isinstance(layer, Int8Conv2d):
                kernel: Any = layer.kernel_size
                how: Any = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
                conv = nn.Conv2d(layer.in_channels, layer.out_channels, kernel, bias=layer.bias is not None, **how)
                set_module(model, name, _filled(conv, layer))
            elif isinstance(layer, Int8Embedding):
                set_module(model, name, nn.Embedding.from_pretrained(layer.float_weight()))
    return Traceable(model.eval(), signature.inputs, dict(signature.fixed), signature.logits).eval()


def _filled(layer: Any, source: Any) -> nn.Module:
    layer.weight.copy_(source.float_weight())
    if source.bias is not None:
        layer.bias.copy_(source.bias)
    layer.requires_grad_(False)
    return layer  # type: ignore[no-any-return]


def _example(signature: Signature) -> tuple[Tensor, ...]:
    """Inputs of the right shape and type: tracing looks at nothing else."""
    sizes = {"batch": 2, "time": 8}
    return tuple(
        torch.zeros([sizes[d] if isinstance(d, str) else d for d in s.shape], dtype=getattr(torch, s.dtype)) for s in signature.inputs
    )


def _exported(module: nn.Module, signature: Signature, example: tuple[Tensor, ...], longest: int | None) -> ExportedProgram:
    """Trace a module. `longest`: the longest text that the model takes."""
    dims: dict[str, Any] = {"batch": Dim("batch", min=1, max=LONGEST_BATCH), "time": Dim("time", min=2, max=longest or 65536)}
    shapes = tuple({i: dims[d] for i, d in enumerate(s.shape) if isinstance(d, str)} for s in signature.inputs)
    star = isinstance(module, Traceable)  # its forward takes *tensors, a graph module's takes each
    with _quiet(), torch.no_grad():
        return torch.export.export(module, example, dynamic_shapes=(shapes,) if star else shapes, strict=False)
