"""What fits: memory of weights, optimizer and batches, and the microbatch that follows."""

from __future__ import annotations

import math

import torch

from tauon.distributed import AutoParallel, Layout, MeshParallel, ParallelConfig, needs_batch_statistics, pieces_of_batch
from tauon.errors import Problem, RecipeError
from tauon.models import AdaptedLinear, Model, ModelConfig, parameter_count
from tauon.plan.context import BY_THIS_RUN, Decision, PlanContext
from tauon.train import TrainConfig, largest_divisor, trainable
from tauon.types import DataSpec

__all__ = [
    "available_memory",
    "batch_statistics",
    "batch_that_fits",
    "fits_whole",
    "microbatch",
    "reshard_after_forward",
    "weights_are_few",
]


def available_memory(device: torch.device) -> int | None:
    """Bytes that could be allocated now; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as f:
            line = next(line for line in f if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None


def batch_that_fits(
    config: TrainConfig, bytes_per_example: float, fixed_bytes: float, device: torch.device, input_bytes: int = 0, neighbours: int = 1
) -> tuple[int, str]:
    """(microbatch, reason). Raises `RecipeError` where not even one example fits, or the one asked for does not.

    `input_bytes`: of one example as it is read; the whole batch of them is in memory at once. `neighbours`: processes that share
    this memory.
    """
    free = available_memory(device)
    if free is None:
        return config.microbatch or config.batch, "the whole batch" if config.microbatch is None else "asked for"
    free //= neighbours
    room = 0.9 * free - fixed_bytes
    if room > 0 and config.batch * input_bytes > room / 2:
        fits = max(1, int(room / 2 // input_bytes))
        size = f"{config.batch * input_bytes / 2**30:,.1f} GiB, and {max(0.0, room) / 2**30:.1f} GiB are free beside weights and optimizer"
        raise RecipeError([Problem("train.batch", f"{config.batch:,} examples take {size}. train.batch={fits} would fit.")])
    room -= config.batch * input_bytes
    most = int(room // max(1.0, bytes_per_example))
    gib = 2**30
    facts = f"about {fixed_bytes / gib:.1f} GiB for weights and optimizer and {bytes_per_example / gib:.3f} GiB an example, {free / gib:.1f} GiB free"
    if most < 1:
        raise RecipeError(
            [
                Problem(
                    "train.batch",
                    f"not even one example fits: {facts}. Take a smaller model, shorter sequences, or activation_checkpointing.",
                )
            ]
        )
    if config.microbatch is not None:
        if config.microbatch > most:
            fits = largest_divisor(config.batch, most)
            raise RecipeError([Problem("train.microbatch", f"{config.microbatch} does not fit: {facts}. microbatch={fits} would.")])
        return config.microbatch, "asked for"
    if config.batch <= most:
        return config.batch, "the whole batch fits"
    fits = largest_divisor(config.batch, most)
    return fits, f"the largest divisor of {config.batch} that fits ({facts})"


def memory_copies(config: TrainConfig) -> int:
    """Copies of the weights that training holds: themselves, gradients, two moments, the checkpoint's snapshot; and the average."""
    return 5 if config.ema is None else 6


def weight_bytes(bare: Model, config: TrainConfig) -> float:
    """Bytes of weights and of what training holds for each that trains."""
    small = {id(m.weight) for m in bare.modules() if isinstance(m, AdaptedLinear) and m.will_round}
    held = sum(p.numel() * (0.5625 if id(p) in small else 4.0) for p in bare.parameters())
    return held + 4.0 * trainable(bare) * (memory_copies(config) - 1)


def fits_whole(model: ModelConfig, config: TrainConfig, device: torch.device, processes: int) -> bool:
    """Whether weights and optimizer fit, whole, what each of `processes` on this machine has; half is left to activations."""
    free = available_memory(device)
    if free is None:
        return True
    return weight_bytes(model.build_on_meta(), config) < 0.5 * free / (processes if device.type == "cpu" else 1)


def weights_are_few(model: ModelConfig, device: torch.device, layout: Layout, processes: int) -> bool:
    """Whether a process may keep the whole of its stage's weights gathered from forward to backward: a tenth of what memory is free."""
    free = available_memory(device)
    if free is None:
        return False
    whole = parameter_count(model.build_on_meta()) * 4.0 / (layout.tensor * layout.pipeline)
    return whole < 0.1 * free / (processes if device.type == "cpu" else 1)


def bytes_of_an_example(spec: DataSpec) -> int:
    """Of a `Batch`, as the loader makes it: inputs, targets, weights, segments and index."""
    if spec.seq_len is not None:
        return spec.seq_len * (8 + 8 + 4 + 4) + 8
    return 4 * math.prod(spec.input_shape or (1,)) + 8 + 4 + 8


def microbatch(ctx: PlanContext) -> Decision:
    """The largest share of a process's batch that fits its memory; in a pipeline of stages, the whole batch, which is sent through in pieces."""
    config, layout = ctx.config.train, ctx.layout
    width = 2 if ctx.decided["train.precision"] == "bf16" else 4
    per_example = ctx.model.activations_per_example(ctx.config.spec) * width / (layout.context * layout.pipeline)
    fixed = weight_bytes(ctx.model, config) / (layout.shard * layout.tensor * layout.pipeline)
    share = config if layout.data == 1 else config.model_copy(update={"batch": -(-config.batch // layout.data)})
    rows, why = batch_that_fits(share, per_example, fixed, ctx.device, bytes_of_an_example(ctx.config.spec), neighbours=ctx.neighbours)
    if ctx.kept.get("microbatch"):
        rows, why = ctx.kept["microbatch"], BY_THIS_RUN
    if layout.pipeline > 1 and isinstance(ctx.parallel, MeshParallel):
        pieces = pieces_of_batch(ctx.parallel, share.batch)
        why = f"a batch goes through the {layout.pipeline} stages in {pieces} pieces"
        return Decision(share.batch, why, shown=share.batch // pieces)
    return Decision(rows, why)


def batch_statistics(ctx: PlanContext) -> Decision | None:
    """Of how many examples batch norm takes its statistics."""
    if not needs_batch_statistics(ctx.model):
        return None
    if ctx.layout.data > 1 and ctx.config.train.raw_value("batch_warmup") is not None:
        message = "batches that grow do not divide among processes, and batch norm would count what fills them up. Drop it, or take model.norm=group."
        raise RecipeError([Problem("train.batch_warmup", message)])
    rows = ctx.decided["train.microbatch"] * ctx.layout.data
    return Decision(f"of {rows} examples", "batch norm counts over a microbatch, on all processes together")


def reshard_after_forward(ctx: PlanContext) -> Decision | None:
    """Whether gathered weights are freed between forward and backward. Collective."""
    if ctx.layout.shard == 1 or not asks_nothing(ctx.parallel):
        return None
    world = ctx.mesh.world
    few = all(world.gather(weights_are_few(ctx.config.model, ctx.device, ctx.layout, world.local_size)))
    size = "take less than a tenth of the free memory" if few else "would take over a tenth of the free memory"
    return Decision(not few, f"the whole weights {size}")


def asks_nothing(parallel: ParallelConfig | None) -> bool:
    """Whether the recipe leaves `reshard_after_forward` open."""
    return isinstance(parallel, AutoParallel | MeshParallel | None) and getattr(parallel, "reshard_after_forward", "auto") == "auto"
