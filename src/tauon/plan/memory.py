"""Memory of weights, optimizer and batches, and the microbatch that fits."""

from __future__ import annotations

import math

import torch

from tauon.distributed import AutoParallel, Layout, MeshParallel, ParallelConfig, needs_batch_statistics, pieces_of_batch
from tauon.errors import Problem, RecipeError
from tauon.models import AdaptedLinear, Model, ModelConfig, parameter_count
from tauon.plan.context import BY_THIS_RUN, Decision, PlanContext
from tauon.plan.machine import available_memory
from tauon.train import TrainConfig, largest_divisor, trainable
from tauon.types import DataSpec

__all__ = [
    "batch_statistics",
    "batch_that_fits",
    "fits_whole",
    "microbatch",
    "reshard_after_forward",
    "weights_are_few",
]


def batch_that_fits(
    config: TrainConfig, bytes_per_example: float, fixed_bytes: float, device: torch.device, input_bytes: int = 0, neighbours: int = 1
) -> tuple[int, str]:
    """Return (microbatch, reason). Raises `RecipeError` if not even one example fits, or if the requested microbatch does not.

    `input_bytes`: size of one example as read; the whole batch is in memory at once. `neighbours`: processes that share this memory.
    """
    free = available_memory(device)
    if free is None:
        return config.microbatch or config.batch, "the whole batch" if config.microbatch is None else "asked for"
    free //= neighbours
    space = 0.9 * free - fixed_bytes
    if space > 0 and config.batch * input_bytes > space / 2:
        fits = max(1, int(space / 2 // input_bytes))
        size = f"{config.batch * input_bytes / 2**30:,.1f} GiB; {max(0.0, space) / 2**30:.1f} GiB are free after weights and optimizer"
        raise RecipeError([Problem("train.batch", f"{config.batch:,} examples take {size}. train.batch={fits} would fit.")])
    space -= config.batch * input_bytes
    most = int(space // max(1.0, bytes_per_example))
    gib = 2**30
    facts = (
        f"about {fixed_bytes / gib:.1f} GiB for weights and optimizer, {bytes_per_example / gib:.3f} GiB per example, "
        f"{free / gib:.1f} GiB free"
    )
    if most < 1:
        raise RecipeError(
            [
                Problem(
                    "train.batch",
                    f"not even one example fits in memory: {facts}. Use a smaller model, shorter sequences, or "
                    "train.activation_checkpointing=true.",
                )
            ]
        )
    if config.microbatch is not None:
        if config.microbatch > most:
            fits = largest_divisor(config.batch, most)
            raise RecipeError(
                [Problem("train.microbatch", f"{config.microbatch} does not fit in memory: {facts}. train.microbatch={fits} would fit.")]
            )
        return config.microbatch, "asked for"
    if config.batch <= most:
        return config.batch, "the whole batch fits"
    fits = largest_divisor(config.batch, most)
    return fits, f"the largest divisor of {config.batch} that fits ({facts})"


def memory_copies(config: TrainConfig) -> int:
    """Return how many copies of the weights training needs: weights, gradients, two moments, checkpoint snapshot, and the EMA."""
    return 5 if config.ema is None else 6


def weight_bytes(model: Model, config: TrainConfig) -> float:
    """Return the bytes of the weights, with gradients, optimizer state and copies of those that train."""
    quantized = {id(m.weight) for m in model.modules() if isinstance(m, AdaptedLinear) and m.will_round}
    weights = sum(p.numel() * (0.5625 if id(p) in quantized else 4.0) for p in model.parameters())
    return weights + 4.0 * trainable(model) * (memory_copies(config) - 1)


def fits_whole(model: ModelConfig, config: TrainConfig, device: torch.device, processes: int) -> bool:
    """Return whether unsharded weights and optimizer fit in half of the memory of each of the `processes` on this machine."""
    free = available_memory(device)
    if free is None:
        return True
    return weight_bytes(model.build_on_meta(), config) < 0.5 * free / (processes if device.type == "cpu" else 1)


def weights_are_few(model: ModelConfig, device: torch.device, layout: Layout, processes: int) -> bool:
    """Return whether the gathered weights of a pipeline stage take less than a tenth of the free memory."""
    free = available_memory(device)
    if free is None:
        return False
    whole = parameter_count(model.build_on_meta()) * 4.0 / (layout.tensor * layout.pipeline)
    return whole < 0.1 * free / (processes if device.type == "cpu" else 1)


def bytes_of_an_example(spec: DataSpec) -> int:
    """Return the bytes of one example in a `Batch`: inputs, targets, weights, segments and index."""
    if spec.seq_len is not None:
        return spec.seq_len * (8 + 8 + 4 + 4) + 8
    return 4 * math.prod(spec.input_shape or (1,)) + 8 + 4 + 8


def microbatch(ctx: PlanContext) -> Decision:
    """Decide the microbatch: the largest divisor of the process's batch that fits in memory; with a pipeline, the whole batch."""
    config, layout = ctx.config.train, ctx.layout
    width = 2 if ctx.decided["train.precision"] == "bf16" else 4
    per_example = ctx.model.activations_per_example(ctx.config.spec) * width / (layout.context * layout.pipeline)
    fixed = weight_bytes(ctx.model, config) / (layout.shard * layout.tensor * layout.pipeline)
    share = config if layout.data == 1 else config.model_copy(update={"batch": -(-config.batch // layout.data)})
    rows, reason = batch_that_fits(share, per_example, fixed, ctx.device, bytes_of_an_example(ctx.config.spec), neighbours=ctx.neighbours)
    if ctx.still_valid.get("microbatch"):
        rows, reason = ctx.still_valid["microbatch"], BY_THIS_RUN
    if layout.pipeline > 1 and isinstance(ctx.parallel, MeshParallel):
        pieces = pieces_of_batch(ctx.parallel, share.batch)
        reason = f"a batch passes the {layout.pipeline} pipeline stages in {pieces} microbatches"
        return Decision(share.batch, reason, shown=share.batch // pieces)
    return Decision(rows, reason)


def batch_statistics(ctx: PlanContext) -> Decision | None:
    """Report how many examples batch norm takes its statistics from."""
    if not needs_batch_statistics(ctx.model):
        return None
    if ctx.layout.data > 1 and ctx.config.train.raw_value("batch_warmup") is not None:
        message = (
            "growing batches do not divide evenly among processes, and batch norm would count the padding. "
            "Remove train.batch_warmup, or use model.norm=group."
        )
        raise RecipeError([Problem("train.batch_warmup", message)])
    rows = ctx.decided["train.microbatch"] * ctx.layout.data
    return Decision(f"of {rows} examples", "batch norm uses one microbatch of all processes together")


def reshard_after_forward(ctx: PlanContext) -> Decision | None:
    """Decide whether gathered weights are freed between forward and backward. Collective."""
    if ctx.layout.shard == 1 or not leaves_reshard_open(ctx.parallel):
        return None
    world = ctx.mesh.world
    few = all(world.gather(weights_are_few(ctx.config.model, ctx.device, ctx.layout, world.local_size)))
    size = "take less than a tenth of the free memory" if few else "would take over a tenth of the free memory"
    return Decision(not few, f"the gathered weights {size}")


def leaves_reshard_open(parallel: ParallelConfig | None) -> bool:
    """Return whether the recipe leaves `reshard_after_forward` open."""
    return isinstance(parallel, AutoParallel | MeshParallel | None) and getattr(parallel, "reshard_after_forward", "auto") == "auto"
