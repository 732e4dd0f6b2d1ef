"""`parallelize`: from a plain model on the meta device to the sharded model of this process. The order is fixed:
tensor (and sequence), context; then, after the caller has added activation checkpointing and compiled, data parallelism.

Uses only the interface of `tauon.models.Model`: shard plan, blocks, attentions, head counts.
"""

from __future__ import annotations

from typing import Any

from tauon.distributed.config import MeshParallel, ParallelConfig
from tauon.distributed.context import cut_positions, exchange_heads, refuse_odd_heads
from tauon.distributed.mesh import Layout, Mesh
from tauon.distributed.pipeline_parallel import pieces_of_batch, refuse_odd_stages
from tauon.distributed.shards import refuse_odd_shards
from tauon.distributed.statistics import needs_batch_statistics
from tauon.errors import Problem, RecipeError

__all__ = ["parallelize", "refuse_layout"]


def refuse_layout(
    model: Any, layout: Layout, config: ParallelConfig, *, batch: int, seq_len: int | None, microbatch: int | None = None
) -> None:
    """Raise `RecipeError` if this model or batch cannot be divided like this. Uses no process group: the same on every rank."""
    if batch < layout.data:
        raise RecipeError(
            [Problem("train.batch", f"is {batch}, but there are {layout.data} data-parallel processes, and each needs an example. "
                     f"Set at least {layout.data}, or use fewer processes.")]
        )  # fmt: skip
    if batch % layout.data and needs_batch_statistics(model):
        message = (
            f"is {batch}, which does not divide by {layout.data} processes, and batch norm would count the padding. "
            f"Set {batch - batch % layout.data}, or model.norm=group."
        )
        raise RecipeError([Problem("train.batch", message)])
    if layout.pipeline > 1 and isinstance(config, MeshParallel):
        refuse_odd_stages(config, len(model.blocks_to_compile()))
        if microbatch is not None:
            message = f"is {microbatch}, but a pipeline splits the batch itself. Remove it, and set parallel.stage_microbatches, the number of microbatches."
            raise RecipeError([Problem("train.microbatch", message)])
        pieces_of_batch(config, -(-batch // layout.data))
    if layout.tensor > 1:
        if any(getattr(module, "will_round", False) for module in model.modules()):
            message = (
                f"is {layout.tensor}, but the blocks of adapt.quantize cannot be split. Use replicate or shard, or remove parallel.tensor."
            )
            raise RecipeError([Problem("parallel.tensor", message)])
        refuse_odd_shards(model, model.shard_plan, layout.tensor, model.head_counts())
    if layout.context > 1:
        if not model.attentions() or seq_len is None:
            raise RecipeError(
                [
                    Problem(
                        "parallel.context", f"is {layout.context}, but this model has no attention over a sequence. Use replicate or shard."
                    )
                ]
            )
        refuse_odd_heads(dict(model.head_counts())["heads"], seq_len, layout.context, layout.tensor)


def parallelize(model: Any, mesh: Mesh, *, parts: list[Any] | None = None, sequence: bool = False) -> None:
    """Cut the model's matrices and sequences over the processes of `mesh`, in place.

    Args:
        model: on the meta device.
        mesh: this process's place in the layout. One process changes nothing.
        parts: the pipeline stages of `model` that this process has.
        sequence: cut activations along the sequence between the matrices, too.

    Raises:
        RecipeError: a layer that the model's plan does not say how to cut.

    >>> from tauon.distributed import Layout, Mesh
    >>> from tauon.models import LogisticConfig
    >>> from tauon.types import DataSpec
    >>> model = LogisticConfig().resolve(DataSpec(input_shape=(3,), outputs=2)).build_on_meta()
    >>> parallelize(model, Mesh(Layout()))
    >>> sum(p.numel() for p in model.parameters())
    8
    """
    runs = [part.blocks_to_compile() for part in parts or [model]]
    tensor = mesh.along("tensor")
    if tensor is not None:
        from tauon.distributed.tensor import apply_tensor  # imports DTensor, which takes a second

        apply_tensor(model, model.shard_plan, tensor, runs=runs, sequence=sequence)
    group = mesh.group("context")
    if group is not None:
        for i, (part, blocks) in enumerate(zip(parts or [model], runs, strict=True)):
            if i == 0 and mesh.at["pipeline"] == 0:
                cut_positions(blocks[0], group)
            else:
                part.slices = mesh.layout.context  # its inputs are slices
        exchange_heads(model.attentions(), group)
