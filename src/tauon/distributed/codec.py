"""Codecs: a flat fp32 vector as fewer bytes, and back. What a worker pushes and what it pulls may each go through one.

`none` is the identity; `bf16` keeps the upper half of each number, rounded to nearest even; `int8` keeps each number as a multiple of its
block's largest magnitude / 127 (QSGD's idea, Alistarh et al. 2017, arXiv:1610.02132, with rounding to nearest); `top-k` sends the k entries
that are largest and keeps the rest for later (error feedback: Stich et al. 2018, arXiv:1809.07599; Karimireddy et al. 2019,
arXiv:1901.09847).

Knows nothing of layers, steps or networks: arrays in, arrays out. NaN and infinity come out as NaN or infinity somewhere in the vector
(of its block, for int8), so that whoever watches for them sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Count, Fraction, Registered, register

__all__ = ["CodecConfig", "Feedback", "Floats", "Int8", "NoCodec", "Payload", "TopK", "TruncatedFloats", "payload_bytes"]

Floats = NDArray[np.float32]
Payload = list[NDArray[Any]]
"""What goes over the network for one vector: a few arrays, whose meaning the codec knows."""


def payload_bytes(payload: Payload) -> int:
    """Bytes that a payload takes on the way (without the few that say how long each array is)."""
    return sum(int(part.nbytes) for part in payload)


class CodecConfig(Registered, family="codec", default="none"):
    """How numbers are written on their way between workers and servers."""

    feedback: ClassVar[bool] = False
    """What one push leaves out is kept, and added to the next: without it such a codec would lose it for good."""

    def encode(self, x: Floats) -> Payload:
        """`x`, N numbers, as a payload."""
        raise NotImplementedError

    def decode(self, payload: Payload, size: int) -> Floats:
        """The `size` numbers that a payload stands for. Perhaps a view of it that must not be written to."""
        raise NotImplementedError


@register("none")
class NoCodec(CodecConfig):
    """As they are: 4 bytes a number, bit for bit."""

    def encode(self, x: Floats) -> Payload:
        return [x]

    def decode(self, payload: Payload, size: int) -> Floats:
        return payload[0]


@register("bf16")
class TruncatedFloats(CodecConfig):
    """bfloat16: 2 bytes a number, 8 bits of precision, the range of fp32."""

    def encode(self, x: Floats) -> Payload:
        return [torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy()]

    def decode(self, payload: Payload, size: int) -> Floats:
        wide = payload[0].view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)


@register("int8")
class Int8(CodecConfig):
    """A signed byte a number and one fp32 scale a block: the error is at most half a step, the block's largest magnitude / 254."""

    block: Count = Field(256, ge=1, le=2**20)
    """Numbers that share a scale."""

    def encode(self, x: Floats) -> Payload:
        whole = len(x) // self.block * self.block
        scales, codes = [], np.empty(len(x), np.int8)
        for start, stop in ((0, whole), (whole, len(x))):
            if start == stop:
                continue
            rows = torch.from_numpy(x[start:stop]).view(-1, self.block if stop == whole else stop - start)
            scale = rows.abs().amax(1, keepdim=True) / 127
            units = rows / torch.where(scale > 0, scale, 1.0)
            # what is not finite makes its block's scale so, and with it every number of the block
            torch.from_numpy(codes[start:stop]).view(rows.shape).copy_(torch.nan_to_num(units, nan=1.0).round_())
            scales.append(scale.flatten())
        return [codes, torch.cat(scales).numpy() if scales else np.empty(0, np.float32)]

    def decode(self, payload: Payload, size: int) -> Floats:
        codes, scales = payload
        out = codes.astype(np.float32)
        whole = size // self.block * self.block
        full = out[:whole].reshape(-1, self.block)
        with np.errstate(invalid="ignore"):  # 0 times infinity: NaN is what it should be
            full *= scales[: len(full), None]
            out[whole:] *= scales[-1] if size > whole else 1.0
        return out


@register("top-k")
class TopK(CodecConfig):
    """The entries of largest magnitude: 8 bytes each, place and value. What is not sent is added to the next push."""

    feedback = True

    k: Fraction | Count = Field(0.01, gt=0)
    """How many of a shard's entries are sent: a share of them if below 1 (1%), else a number."""

    def problems(self) -> Iterator[tuple[str, str]]:
        k = self.raw_value("k")
        if isinstance(k, float) and k >= 1 and (k == 1 or not k.is_integer()):
            yield "k", f"{k:g} is neither a share below 100% nor a whole number of entries. Write it like 1%, or like 1000."

    def count(self, size: int) -> int:
        """Entries sent of `size`: at least one."""
        return min(size, max(1, round(self.k * size) if self.k < 1 else int(self.k)))

    def encode(self, x: Floats) -> Payload:
        values = torch.from_numpy(x)
        # NaN counts as largest, so it is sent; sorted places, so that the server walks its memory in order
        places = values.abs().topk(self.count(len(x)), sorted=False).indices.sort().values
        return [places.to(torch.int32).numpy(), values[places].numpy()]

    def decode(self, payload: Payload, size: int) -> Floats:
        places, values = payload
        out = np.zeros(size, np.float32)
        out[places] = values
        return out


class Feedback:
    """Error feedback of one sender: what earlier pushes left out joins the next. What was sent, plus what is kept, is what was given."""

    def __init__(self, codec: CodecConfig, sizes: Sequence[int]) -> None:
        self.codec = codec
        self.kept: list[Floats] = [np.zeros(n, np.float32) for n in sizes] if codec.feedback else []

    def encode(self, shard: int, x: Floats) -> Payload:
        """The payload of `x`, a shard's vector, which is written over."""
        if not self.codec.feedback:
            return self.codec.encode(x)
        kept = self.kept[shard]
        x += kept
        payload = self.codec.encode(x)
        with np.errstate(invalid="ignore"):
            np.subtract(x, self.codec.decode(payload, len(x)), out=kept)
        if not np.isfinite(kept).all():  # a step that will be skipped must not spoil those that follow
            kept[~np.isfinite(kept)] = 0
        return payload
