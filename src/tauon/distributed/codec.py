"""Codecs that compress a flat fp32 vector, for what a worker pushes and pulls.

`none` is the identity; `bf16` keeps the upper half of each number, rounded to nearest even; `int8` keeps each number as a multiple of its
block's largest magnitude / 127 (QSGD's idea, Alistarh et al. 2017, arXiv:1610.02132, with rounding to nearest); `top-k` sends the k largest entries
and adds the rest to the next push (error feedback: Stich et al. 2018, arXiv:1809.07599; Karimireddy et al. 2019,
arXiv:1901.09847).

Independent of layers, steps and networks: arrays in, arrays out. NaN and infinity come out as NaN or infinity somewhere in the vector
(in its block, for int8), so that checks for them still work.
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
"""Payload of one vector: a few arrays in the codec's format."""


def payload_bytes(payload: Payload) -> int:
    """Bytes of a payload (without the array lengths)."""
    return sum(int(part.nbytes) for part in payload)


class CodecConfig(Registered, family="codec", default="none"):
    """Compression of vectors between workers and servers."""

    feedback: ClassVar[bool] = False
    """Whether the codec needs error feedback: what a push leaves out is added to the next one."""

    def encode(self, x: Floats) -> Payload:
        """Encode `x` (N)."""
        raise NotImplementedError

    def decode(self, payload: Payload, size: int) -> Floats:
        """Decode `size` numbers. May return a read-only view of the payload."""
        raise NotImplementedError


@register("none")
class NoCodec(CodecConfig):
    """No compression: 4 bytes per number, exact."""

    def encode(self, x: Floats) -> Payload:
        return [x]

    def decode(self, payload: Payload, size: int) -> Floats:
        return payload[0]


@register("bf16")
class TruncatedFloats(CodecConfig):
    """bfloat16: 2 bytes per number, 8 bits of precision, the range of fp32."""

    def encode(self, x: Floats) -> Payload:
        return [torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy()]

    def decode(self, payload: Payload, size: int) -> Floats:
        wide = payload[0].view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)


@register("int8")
class Int8(CodecConfig):
    """One signed byte per number and one fp32 scale per block: the error is at most half a step, the block's largest magnitude / 254."""

    block: Count = Field(256, ge=1, le=2**20)
    """Numbers per scale."""

    def encode(self, x: Floats) -> Payload:
        whole = len(x) // self.block * self.block
        scales, codes = [], np.empty(len(x), np.int8)
        for start, stop in ((0, whole), (whole, len(x))):
            if start == stop:
                continue
            rows = torch.from_numpy(x[start:stop]).view(-1, self.block if stop == whole else stop - start)
            scale = rows.abs().amax(1, keepdim=True) / 127
            units = rows / torch.where(scale > 0, scale, 1.0)
            # a non-finite number makes the scale of its block non-finite, and so the whole block
            torch.from_numpy(codes[start:stop]).view(rows.shape).copy_(torch.nan_to_num(units, nan=1.0).round_())
            scales.append(scale.flatten())
        return [codes, torch.cat(scales).numpy() if scales else np.empty(0, np.float32)]

    def decode(self, payload: Payload, size: int) -> Floats:
        codes, scales = payload
        out = codes.astype(np.float32)
        whole = size // self.block * self.block
        full = out[:whole].reshape(-1, self.block)
        with np.errstate(invalid="ignore"):  # 0 times infinity: NaN is correct
            full *= scales[: len(full), None]
            out[whole:] *= scales[-1] if size > whole else 1.0
        return out


@register("top-k")
class TopK(CodecConfig):
    """The entries of largest magnitude: 8 bytes each, index and value. The rest is added to the next push."""

    feedback = True

    k: Fraction | Count = Field(0.01, gt=0)
    """Entries of a shard to send: a share if below 1 (1%), otherwise a count."""

    def problems(self) -> Iterator[tuple[str, str]]:
        k = self.raw_value("k")
        if isinstance(k, float) and k >= 1 and (k == 1 or not k.is_integer()):
            yield "k", f"is {k:g}: expected a share below 100% or a whole number of entries, e.g. 1% or 1000."

    def count(self, size: int) -> int:
        """Number of entries to send of `size`: at least one."""
        return min(size, max(1, round(self.k * size) if self.k < 1 else int(self.k)))

    def encode(self, x: Floats) -> Payload:
        values = torch.from_numpy(x)
        # NaN counts as largest, so it is sent; sorted indices, for sequential memory access on the server
        places = values.abs().topk(self.count(len(x)), sorted=False).indices.sort().values
        return [places.to(torch.int32).numpy(), values[places].numpy()]

    def decode(self, payload: Payload, size: int) -> Floats:
        places, values = payload
        out = np.zeros(size, np.float32)
        out[places] = values
        return out


class Feedback:
    """Error feedback of one sender: what earlier pushes left out is added to the next. Sent plus kept values equal the input."""

    def __init__(self, codec: CodecConfig, sizes: Sequence[int]) -> None:
        self.codec = codec
        self.kept: list[Floats] = [np.zeros(n, np.float32) for n in sizes] if codec.feedback else []

    def encode(self, shard: int, x: Floats) -> Payload:
        """Encode `x`, the vector of a shard, which is overwritten."""
        if not self.codec.feedback:
            return self.codec.encode(x)
        kept = self.kept[shard]
        x += kept
        payload = self.codec.encode(x)
        with np.errstate(invalid="ignore"):
            np.subtract(x, self.codec.decode(payload, len(x)), out=kept)
        if not np.isfinite(kept).all():  # a step that will be skipped must not affect later ones
            kept[~np.isfinite(kept)] = 0
        return payload
