"""The recipe's section `parallel`. Only settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.config import Count, Registered, register

__all__ = ["AutoParallel", "MeshParallel", "ParallelConfig"]


class ParallelConfig(Registered, family="parallel", default="mesh"):
    """Distribution of training over processes. Results do not depend on it, unless a kind says so."""


@register("auto")
class AutoParallel(ParallelConfig):
    """Replicas (DDP) if the model and its optimizer fit on one device; otherwise sharded over all processes (FSDP2)."""


@register("mesh")
class MeshParallel(ParallelConfig):
    """One device mesh; the sizes multiply to the number of processes. `replicate` or `shard` may be omitted, and is then derived."""

    replicate: Count | None = Field(None, ge=1)
    """Groups with the same weights that all-reduce gradients (DDP, or the outer part of hybrid sharding)."""
    shard: Count | None = Field(None, ge=1)
    """Processes over which weights, gradients and optimizer state are sharded (FSDP2)."""
    context: Count = Field(1, ge=1)
    """Processes that share each sequence (Ulysses: all-to-all between sequence and heads, arXiv:2309.14509)."""
    tensor: Count = Field(1, ge=1)
    """Processes that share each matrix (Megatron-LM, arXiv:1909.08053), as the model's shard plan says."""
    pipeline: Count = Field(1, ge=1)
    """Pipeline stages."""
    reshard_after_forward: Literal["auto"] | bool = "auto"
    """With `shard`: free gathered weights after forward and gather them again for backward (less memory, half as much communication again).
    auto: if the complete weights would take more than a tenth of the free memory."""
    sequence_parallel: bool = False
    """With `tensor`: norms and residuals are split along the sequence (arXiv:2205.05198): less memory."""
    schedule: Literal["1f1b", "gpipe", "interleaved-1f1b", "zero-bubble"] = "1f1b"
    """With `pipeline`: order of forward and backward passes."""
    stage_microbatches: Count | None = Field(None, ge=1)
    """With `pipeline`: number of microbatches per batch. Default: two per stage, or what divides the batch."""
    compression: Literal["none", "bf16", "int8", "powersgd"] = "none"
    """With `replicate` alone: gradient compression. bf16 halves the bytes, int8 quarters them (with error feedback), powersgd sends
    low-rank factors. Results differ slightly from those of one process."""
    powersgd_rank: Count = Field(4, ge=1)
    """With compression powersgd: rank of the factors. A higher rank is more accurate and sends more."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("sequence_parallel") and self.raw_value("tensor") == 1:
            yield "sequence_parallel", "needs parallel.tensor above 1. Set it, or remove sequence_parallel."
        if self.raw_value("pipeline") == 1 and self.raw_value("stage_microbatches") is not None:
            yield "stage_microbatches", "needs parallel.pipeline above 1. Set it, or remove stage_microbatches."
        if self.raw_value("compression") != "none":
            above = [k for k in ("shard", "context", "tensor", "pipeline") if (self.raw_value(k) or 1) > 1]
            if above:
                yield (
                    "compression",
                    f"{self.raw_value('compression')} works only with DDP, but {above[0]} is above 1. Use replicate only, or set none.",
                )
        if self.raw_value("compression") != "powersgd" and self.raw_value("powersgd_rank") != 4:
            yield (
                "powersgd_rank",
                f"is for compression=powersgd, got {self.raw_value('compression')}. Set compression=powersgd, or remove it.",
            )
