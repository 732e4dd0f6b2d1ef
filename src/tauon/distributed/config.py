"""How the work is divided: the `parallel` section of a recipe. Only numbers and choices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.config import Count, Registered, register

__all__ = ["AutoParallel", "MeshParallel", "ParallelConfig"]


class ParallelConfig(Registered, family="parallel", default="mesh"):
    """How training is divided among processes. What is computed does not depend on it, unless a kind says so."""


@register("auto")
class AutoParallel(ParallelConfig):
    """Every process a replica (DDP) where the model fits one device beside its optimizer; else sharded over all (FSDP2)."""


@register("mesh")
class MeshParallel(ParallelConfig):
    """One device mesh; the sizes multiply to the number of processes. One of `replicate` and `shard` may be left out: it takes the rest."""

    replicate: Count | None = Field(None, ge=1)
    """Groups that hold the same weights and all-reduce gradients (DDP, or the outer part of hybrid sharding)."""
    shard: Count | None = Field(None, ge=1)
    """Processes over which weights, gradients and optimizer state are cut (FSDP2)."""
    context: Count = Field(1, ge=1)
    """Processes that share each sequence (Ulysses: all-to-all between sequence and heads, arXiv:2309.14509)."""
    tensor: Count = Field(1, ge=1)
    """Processes that share each matrix (Megatron-LM, arXiv:1909.08053), as the model's shard plan says."""
    pipeline: Count = Field(1, ge=1)
    """Stages that share the layers."""
    reshard_after_forward: Literal["auto"] | bool = "auto"
    """With `shard`: free gathered weights after forward and gather them again for backward (less memory, half as much communication again).
    auto: where the whole weights would take more than a tenth of the free memory."""
    sequence_parallel: bool = False
    """With `tensor`: norms and residuals cut along the sequence between the matrices (arXiv:2205.05198): less memory."""
    schedule: Literal["1f1b", "gpipe", "interleaved-1f1b", "zero-bubble"] = "1f1b"
    """With `pipeline`: order of forward and backward passes."""
    stage_microbatches: Count | None = Field(None, ge=1)
    """With `pipeline`: pieces that a batch is cut into. Left out: two a stage, or what the batch divides into."""
    compression: Literal["none", "bf16", "int8", "powersgd"] = "none"
    """With `replicate` alone: how gradients travel. bf16 halves the bytes, int8 quarters them (what it takes from a gradient is added to
    the next), powersgd sends factors of low rank. Results differ slightly from those of one process."""
    powersgd_rank: Count = Field(4, ge=1)
    """With compression powersgd: rank of the factors. More is nearer and sends more."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("sequence_parallel") and self.raw_value("tensor") == 1:
            yield "sequence_parallel", "needs tensor above 1. Set tensor, or drop it."
        if self.raw_value("pipeline") == 1 and self.raw_value("stage_microbatches") is not None:
            yield "stage_microbatches", "needs pipeline above 1. Set pipeline, or drop it."
        if self.raw_value("compression") != "none":
            above = [k for k in ("shard", "context", "tensor", "pipeline") if (self.raw_value(k) or 1) > 1]
            if above:
                yield (
                    "compression",
                    f"{self.raw_value('compression')} is of DDP's gradients, and {above[0]} is above 1. Use replicate alone, or none.",
                )
        if self.raw_value("compression") != "powersgd" and self.raw_value("powersgd_rank") != 4:
            yield (
                "powersgd_rank",
                f"is of compression powersgd, got {self.raw_value('compression')}. Set compression: powersgd, or drop it.",
            )
