"""Pipeline parallelism: stages of a model on different processes, microbatches in flight; torch's schedules.

`1f1b` (Narayanan et al. 2019, PipeDream-Flush), `gpipe` (Huang et al. 2019, arXiv:1811.06965), `interleaved-1f1b` (Narayanan et
al. 2021, arXiv:2104.04473: two stages per process), `zero-bubble` (Qi et al. 2023, arXiv:2401.10241: two stages per process, and
the backward pass of weights fills the bubbles). Independent of tasks: a loss is a function of the last stage's output and row indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauon.distributed.config import MeshParallel
from tauon.distributed.mesh import Mesh
from tauon.errors import Problem, RecipeError

__all__ = ["PipelineStages", "cut_blocks", "pieces_of_batch", "refuse_odd_stages", "stages_of"]

PER_PROCESS = {"1f1b": 1, "gpipe": 1, "interleaved-1f1b": 2, "zero-bubble": 2}


def stages_of(config: MeshParallel, mesh: Mesh) -> list[int]:
    """Indices of this process's stages."""
    return [mesh.at["pipeline"] + i * mesh.layout.pipeline for i in range(PER_PROCESS[config.schedule])]


def cut_blocks(depth: int, stages: int) -> list[tuple[int, int]]:
    """[first, last) block of each stage: as even as possible; longer ones not at the ends, which also have the embedding and the head."""
    base, more = divmod(depth, stages)
    sizes = [base] * stages
    order = [*range(1, stages - 1), 0, stages - 1] if stages > 1 else [0]
    for i in order[:more]:
        sizes[i] += 1
    ends = [sum(sizes[: i + 1]) for i in range(stages)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def refuse_odd_stages(config: MeshParallel, depth: int) -> None:
    """Raise `RecipeError` if there are more stages than blocks."""
    if depth == 0:
        raise RecipeError(
            [Problem("parallel.pipeline", f"is {config.pipeline}, but this model has no blocks to split. Use replicate or shard.")]
        )
    total = config.pipeline * PER_PROCESS[config.schedule]
    if depth < total:
        each = "" if total == config.pipeline else f" ({PER_PROCESS[config.schedule]} per process with schedule {config.schedule})"
        raise RecipeError(
            [
                Problem(
                    "parallel.pipeline",
                    f"needs {total} stages{each}, but the model has only {depth} layers. Use fewer stages, or more layers.",
                )
            ]
        )


def pieces_of_batch(config: MeshParallel, rows: int) -> int:
    """Number of microbatches for a process's `rows`: the one asked for, or two per stage, or the nearest valid number.

    Raises `RecipeError` if no number is valid.
    """
    two = PER_PROCESS[config.schedule] > 1

    def will_do(n: int) -> bool:
        if two:
            return rows % n == 0 and n % config.pipeline == 0
        return rows % n == 0 and (n >= config.pipeline or config.schedule == "gpipe")

    asked = config.stage_microbatches
    if asked is not None and rows % asked:
        message = f"is {asked}, which does not divide the {rows} examples of a process. Set a divisor."
        raise RecipeError([Problem("parallel.stage_microbatches", message)])
    wanted = 2 * config.pipeline
    order = [asked] if asked is not None else [*range(min(rows, wanted), 0, -1), *range(wanted + 1, rows + 1)]
    found = next((n for n in order if will_do(n)), None)
    if found is None:
        input_kind = f"a multiple of {config.pipeline}" if two else f"at least {config.pipeline}"
        got = f"{asked}" if asked is not None else f"{rows} examples, which do not divide into such a number"
        field = "parallel.stage_microbatches" if asked is not None else "train.batch"
        raise RecipeError(
            [Problem(field, f"schedule {config.schedule} on {config.pipeline} stages needs {input_kind} microbatches per process, but "
                     f"got {got}. Set e.g. {2 * config.pipeline}, or another parallel.schedule.")]
        )  # fmt: skip
    return found


class PipelineStages:
    """The stages of one process, and their schedules: one for training, one for evaluation."""

    def __init__(self, config: MeshParallel, mesh: Mesh, parts: Sequence[nn.Module], device: torch.device) -> None:
        self.config, self.mesh, self.parts, self.device = config, mesh, list(parts), device
        self.total = mesh.layout.pipeline * PER_PROCESS[config.schedule]
        self.numbers = stages_of(config, mesh)
        self._schedules: dict[Any, Any] = {}
        self._loss: Callable[[Tensor, Tensor], Tensor] | None = None

    def run(
        self, inputs: Tensor, extra: dict[str, Tensor], rows: int, pieces: int, loss: Callable[[Tensor, Tensor], Tensor], *, backward: bool
    ) -> Tensor:
        """Run forward (and backward) over the batch; return the sum of the microbatches' losses on the last stage's process, zero elsewhere.

        Args:
            inputs: input of the first stage, `rows` first.
            rows: examples of this process.
            extra: keyword arguments of every stage, `rows` first.
            pieces: number of microbatches, a divisor of `rows`.
            loss: (last stage's output, indices of its rows) -> scalar; gradients are of the sum.
            backward: whether to compute gradients.
        """
        self._loss = loss
        key = (rows, tuple(inputs.shape[1:]), pieces, backward, tuple(sorted(extra)))
        if key not in self._schedules:  # a schedule has buffers of fixed shape: one schedule per batch shape
            self._schedules[key] = self._build(pieces)
        schedule = self._schedules[key]
        first, last = 0 in self.numbers, self.total - 1 in self.numbers
        losses: list[Tensor] = []
        args = (inputs,) if first else ()
        given: dict[str, Any] = dict(extra)
        if last:
            # On the CPU: the loss reads them on the host, which would sync with a GPU in each microbatch.
            given |= {"target": torch.arange(rows), "losses": losses}
        if backward:
            schedule.step(*args, **given)
        else:
            schedule.eval(*args, **given)
        return torch.stack([x.detach() for x in losses]).sum() if losses else torch.zeros((), device=self.device)

    def _build(self, pieces: int) -> Any:
        from torch.distributed import pipelining

        group = self.mesh.group("pipeline")
        stages = [
            pipelining.PipelineStage(part, number, self.total, self.device, group=group)
            for part, number in zip(self.parts, self.numbers, strict=True)
        ]

        def loss(output: Tensor, rows: Tensor) -> Tensor:
            assert self._loss is not None
            return self._loss(output, rows)

        kinds = {
            "1f1b": pipelining.Schedule1F1B,
            "gpipe": pipelining.ScheduleGPipe,
            "interleaved-1f1b": pipelining.ScheduleInterleaved1F1B,
            "zero-bubble": pipelining.ScheduleInterleavedZeroBubble,
        }
        kind: Any = kinds[self.config.schedule]
        what = stages if PER_PROCESS[self.config.schedule] > 1 else stages[0]
        return kind(what, n_microbatches=pieces, loss_fn=loss, scale_grads=False)
