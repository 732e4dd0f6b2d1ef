"""Layers with quantised weights, which replace those of torch one by one: plain buffers, no kernels of their own, any device.

`Int8Linear`   int8 weights by output; activations int8 by row (`dynamic`) or with one range (`static`); or none (`weight-only`).
`Int8Conv2d`   int8 weights by output channel, activations with one range; computed in float32 on the integers' values.
`Int8Embedding`, `Int4Linear`   weights only.

Each has `spec()`, the JSON from which `empty` makes it again without weights (`LAYERS`): a file needs to hold numbers only.

They have no `weight`: tasks that would multiply by a language model's head themselves let it compute its logits, as a server does.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.compress.quantized.fbgemm import PackedInt8, fbgemm_is_exact
from tauon.compress.quantized.numbers import (
    dequantize_groups,
    int_matmul,
    pack_int4,
    quantize_channels,
    quantize_groups,
    row_scales,
    unpack_int4,
)

__all__ = ["Activations", "Int4Linear", "Int8Conv2d", "Int8Embedding", "Int8Linear"]

Activations = Literal["dynamic", "static", "weight-only"]


class Int8Linear(nn.Module):
    """x -> x W^T + b with W in int8.

    dynamic: each row of x is divided by its largest absolute value, rounded to int8, multiplied as integers (exactly) and scaled back, so that its
    result does not depend on the rows beside it. static: all are divided by `input_scale`, and clipped. weight-only: W is made float.

    On a CPU that FBGEMM computes exactly on, the weights are packed for it at the first call, and exist twice from then on.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, activations: Activations = "dynamic", smooth: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.activations = inputs, outputs, activations
        self.weight_q: Tensor
        self.scale_N: Tensor
        self.bias: Tensor | None
        self.input_scale: Tensor | None
        self.smooth_K: Tensor | None
        self.register_buffer("weight_q", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale_N", torch.ones(outputs))
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)
        self.register_buffer("input_scale", torch.ones(()) if activations == "static" else None)
        self.register_buffer("smooth_K", torch.ones(inputs) if smooth else None)
        self._packed: PackedInt8 | None = None

    @classmethod
    def quantize(
        cls, linear: nn.Linear, activations: Activations = "dynamic", *, input_scale: float | None = None, smooth_K: Tensor | None = None
    ) -> Self:
        """Return the int8 layer of a linear one.

        Args:
            linear: the layer; it stays as it is.
            activations: how activations are rounded.
            input_scale: of static activations: the largest absolute value / 127.
            smooth_K: inputs are divided by it, weights multiplied (SmoothQuant, arXiv:2211.10438).
        """
        N, K = linear.weight.shape
        layer = cls(K, N, bias=linear.bias is not None, activations=activations, smooth=smooth_K is not None)
        weight = linear.weight.detach().float()
        if smooth_K is not None:
            weight = weight * smooth_K
            layer.smooth_K = smooth_K.clone()
        layer.weight_q, layer.scale_N = quantize_channels(weight)
        if linear.bias is not None:
            layer.bias = linear.bias.detach().float().clone()
        if input_scale is not None:
            layer.input_scale = torch.tensor(input_scale)
        return layer.to(linear.weight.device)

    def float_weight(self) -> Tensor:
        """The weights as float32, NK."""
        w = self.weight_q.float() * self.scale_N[:, None]
        return w if self.smooth_K is None else w / self.smooth_K

    def forward(self, x: Tensor) -> Tensor:
        if self.activations == "weight-only":
            return F.linear(x, self.float_weight().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        rows = x.reshape(-1, self.in_features).float()
        if self.smooth_K is not None:
            rows = rows / self.smooth_K
        scale = row_scales(rows) if self.input_scale is None else self.input_scale
        packed = self._for_fbgemm()
        if packed is not None:
            y_MN = packed.multiply(rows / scale)
        elif self.input_scale is None:
            y_MN = int_matmul((rows / scale).round_().to(torch.int8), self.weight_q) * self.scale_N
        else:
            y_MN = int_matmul((rows / scale).round_().clamp_(-128, 127).to(torch.int8), self.weight_q) * self.scale_N
        y_MN = y_MN * scale if self.bias is None else torch.addcmul(self.bias, y_MN, scale.expand(rows.shape[0], 1))
        return y_MN.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def _for_fbgemm(self) -> PackedInt8 | None:
        """Return the packed weights; None where FBGEMM does not compute this product, or the layer is being traced."""
        if self.weight_q.device.type != "cpu" or torch.compiler.is_compiling() or torch.compiler.is_exporting() or not fbgemm_is_exact():
            return None
        packed = self._packed
        if packed is None or not packed.is_of(self.weight_q, self.scale_N):
            self._packed = packed = PackedInt8(self.weight_q, self.scale_N)
        return packed

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # a copy packs its own

    def spec(self) -> dict[str, Any]:
        return {
            "inputs": self.in_features, "outputs": self.out_features, "bias": self.bias is not None, "activations": self.activations,
            "smooth": self.smooth_K is not None,
        }  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.activations}"


class Int4Linear(nn.Module):
    """x -> x W^T + b with W in int4, one scale for each `group` of inputs, two numbers to a byte. Activations stay float."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, group: int = 32, smooth: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group = inputs, outputs, group
        self.packed: Tensor
        self.scale_NG: Tensor
        self.bias: Tensor | None
        self.smooth_K: Tensor | None
        self.register_buffer("packed", torch.zeros(outputs, (inputs + 1) // 2, dtype=torch.uint8))
        self.register_buffer("scale_NG", torch.ones(outputs, -(-inputs // group), dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)
        self.register_buffer("smooth_K", torch.ones(inputs) if smooth else None)

    @classmethod
    def quantize(
        cls, linear: nn.Linear, group: int = 32, *, integers: tuple[Tensor, Tensor] | None = None, smooth_K: Tensor | None = None
    ) -> Self:
        """Return the int4 layer of a linear one: of its weights rounded to nearest, or of `integers` (q NK, scale NG) from GPTQ or AWQ."""
        N, K = linear.weight.shape
        layer = cls(K, N, bias=linear.bias is not None, group=group, smooth=smooth_K is not None)
        weight = linear.weight.detach().float()
        q, scale = integers if integers is not None else quantize_groups(weight if smooth_K is None else weight * smooth_K, group)
        layer.packed, layer.scale_NG = pack_int4(q), scale.to(torch.float16)
        if smooth_K is not None:
            layer.smooth_K = smooth_K.clone()
        if linear.bias is not None:
            layer.bias = linear.bias.detach().float().clone()
        return layer.to(linear.weight.device)

    def float_weight(self) -> Tensor:
        """The weights as float32, NK."""
        w = dequantize_groups(unpack_int4(self.packed, self.in_features), self.scale_NG.float(), self.group)
        return w if self.smooth_K is None else w / self.smooth_K

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.float_weight().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def spec(self) -> dict[str, Any]:
        return {
            "inputs": self.in_features, "outputs": self.out_features, "bias": self.bias is not None, "group": self.group,
            "smooth": self.smooth_K is not None,
        }  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, group={self.group}"


class Int8Embedding(nn.Module):
    """Rows of int8 with one scale each."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, width
        self.weight_q: Tensor
        self.scale_N: Tensor
        self.register_buffer("weight_q", torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("scale_N", torch.ones(rows))

    @classmethod
    def quantize(cls, embedding: nn.Embedding) -> Self:
        """Return the int8 table of a table."""
        layer = cls(*embedding.weight.shape)
        layer.weight_q, layer.scale_N = quantize_channels(embedding.weight)
        return layer.to(embedding.weight.device)

    def float_weight(self) -> Tensor:
        """The table as float32."""
        return self.weight_q.float() * self.scale_N[:, None]

    def forward(self, index: Tensor) -> Tensor:
        return self.weight_q[index].float() * self.scale_N[index].unsqueeze(-1)

    def spec(self) -> dict[str, Any]:
        return {"rows": self.num_embeddings, "width": self.embedding_dim}


class Int8Conv2d(nn.Module):
    """A convolution with int8 weights by output channel and int8 activations of one range (`static`), or float ones (`weight-only`).

    The products are those of the integers' float32 values: what ONNX Runtime and Inductor compute in int8, up to rounding.
    """

    def __init__(self, channels: tuple[int, int], kernel: tuple[int, int], *, bias: bool, activations: Activations, **how: Any) -> None:
        """`channels`: (in, out); `how`: stride, padding, dilation, groups, as of `nn.Conv2d`."""
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size, self.activations = *channels, kernel, activations
        self.stride, self.padding = tuple(how.get("stride", (1, 1))), tuple(how.get("padding", (0, 0)))
        self.dilation, self.groups = tuple(how.get("dilation", (1, 1))), int(how.get("groups", 1))
        self.weight_q: Tensor
        self.scale_N: Tensor
        self.bias: Tensor | None
        self.input_scale: Tensor | None
        self.register_buffer("weight_q", torch.zeros(channels[1], channels[0] // self.groups, *kernel, dtype=torch.int8))
        self.register_buffer("scale_N", torch.ones(channels[1]))
        self.register_buffer("bias", torch.zeros(channels[1]) if bias else None)
        self.register_buffer("input_scale", torch.ones(()) if activations == "static" else None)

    @classmethod
    def quantize(cls, conv: nn.Conv2d, activations: Activations, *, input_scale: float | None = None) -> Self:
        """Return the int8 layer of a convolution; `input_scale`: the largest absolute value of its inputs / 127."""
        how: Any = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups}
        kernel: Any = conv.kernel_size
        layer = cls((conv.in_channels, conv.out_channels), kernel, bias=conv.bias is not None, activations=activations, **how)
        layer.weight_q, layer.scale_N = quantize_channels(conv.weight)
        if conv.bias is not None:
            layer.bias = conv.bias.detach().float().clone()
        if input_scale is not None:
            layer.input_scale = torch.tensor(input_scale)
        return layer.to(conv.weight.device)

    def float_weight(self) -> Tensor:
        """The weights as float32."""
        return self.weight_q.float() * self.scale_N.view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_scale is not None:
            x = (x / self.input_scale).round().clamp(-127, 127) * self.input_scale
        return F.conv2d(x, self.float_weight().to(x.dtype), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def spec(self) -> dict[str, Any]:
        return {
            "channels": [self.in_channels, self.out_channels], "kernel": list(self.kernel_size), "bias": self.bias is not None,
            "activations": self.activations, "stride": list(self.stride), "padding": list(self.padding), "dilation": list(self.dilation),
            "groups": self.groups,
        }  # fmt: skip
