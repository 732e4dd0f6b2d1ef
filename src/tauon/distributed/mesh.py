"""The device mesh: five dimensions whose product is the world size.

Dimensions from outermost (slowest network) to innermost: pipeline, replicate, shard, context, tensor. Data is split over
replicate x shard; gradients are reduced over replicate x shard x context. A world of one is also a mesh, without a process group.
`parallelize` applies it to a model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tauon.distributed.config import AutoParallel, MeshParallel, ParallelConfig
from tauon.distributed.timeouts import meeting
from tauon.distributed.world import World
from tauon.errors import Problem, RecipeError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["DIMENSIONS", "Layout", "Mesh", "choose_layout"]

DIMENSIONS = ("pipeline", "replicate", "shard", "context", "tensor")


@dataclass(frozen=True)
class Layout:
    """Number of processes along each dimension."""

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def world(self) -> int:
        return self.pipeline * self.replicate * self.shard * self.context * self.tensor

    @property
    def data(self) -> int:
        """Processes that read different examples."""
        return self.replicate * self.shard

    @property
    def only_replicas(self) -> bool:
        """Plain DDP, or one process."""
        return self.world == self.replicate

    def __str__(self) -> str:
        found = " x ".join(f"{name} {size}" for name, size in asdict(self).items() if size > 1)
        return found or "one process"

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def choose_layout(config: ParallelConfig, world: int, *, fits: bool = True) -> tuple[Layout, str]:
    """(layout, reason) for `world` processes. `fits`: whether weights and optimizer fit on one device.

    Raises `RecipeError` if the product of the sizes is not the world size.
    """
    if not isinstance(config, MeshParallel):
        if isinstance(config, AutoParallel) and not fits and world > 1:
            return Layout(shard=world), f"weights and optimizer do not fit on one device: sharded over all {world} (FSDP2)"
        if isinstance(config, AutoParallel) and world > 1:
            return Layout(replicate=world), f"the model fits on one device: {world} replicas (DDP)"
        return Layout(replicate=world), "one process" if world == 1 else f"{config.kind_}: {world} replicas with local steps"
    others = config.context * config.tensor * config.pipeline
    if config.replicate is not None and config.shard is not None:
        replicate, shard = config.replicate, config.shard
    elif config.shard is not None:
        shard, replicate = config.shard, max(1, world // (others * config.shard))
    else:
        replicate, shard = config.replicate or max(1, world // others), 1
        if config.replicate is not None:
            shard = max(1, world // (others * replicate))
    layout = Layout(config.pipeline, replicate, shard, config.context, config.tensor)
    if layout.world != world:
        given = " x ".join(f"{name} {size}" for name, size in layout.to_json().items() if size > 1) or "all of size 1"
        raise RecipeError(
            [Problem("parallel", f"{given} needs {layout.world} processes, but {world} {'is' if world == 1 else 'are'} running. "
                     f"Start {layout.world} (--on local:{layout.world}), or change the sizes.")]
        )  # fmt: skip
    return layout, "asked for"


class Mesh:
    """Position of one process in a layout, and its process groups."""

    def __init__(self, layout: Layout, world: World | None = None, device: str = "cpu") -> None:
        self.layout, self.world, self.device_type = layout, world or World(), device
        at: dict[str, int] = {}
        rest = self.world.rank
        for name in reversed(DIMENSIONS):
            size = getattr(layout, name)
            at[name], rest = rest % size, rest // size
        self.at = at
        """Coordinate along each dimension."""

    @property
    def data_rank(self) -> int:
        """Index of this process's slice of each batch, of `layout.data`."""
        return self.at["replicate"] * self.layout.shard + self.at["shard"]

    @property
    def draws(self) -> int:
        """Stream index of this process's random draws (dropout). Shared only by processes with the same activations (tensor); otherwise
        slices of one sequence, and pipeline stages, would drop the same positions.
        """
        return (self.at["pipeline"] * self.layout.context + self.at["context"]) * self.layout.data + self.data_rank

    @property
    def reduce_size(self) -> int:
        """Processes over which gradients are averaged."""
        return self.layout.data * self.layout.context

    @property
    def replicas_only(self) -> bool:
        """Whether every process has the complete model."""
        return self.layout.world == self.layout.replicate * self.layout.context

    @property
    def last_stage(self) -> bool:
        return self.at["pipeline"] == self.layout.pipeline - 1

    @cached_property
    def devices(self) -> DeviceMesh:
        """Torch's mesh of the dimensions above one. Collective when first read."""
        from torch.distributed.device_mesh import init_device_mesh

        names = [n for n in DIMENSIONS if getattr(self.layout, n) > 1]
        with meeting(f"rank {self.world.rank} of {self.world.size}"):
            whole = init_device_mesh(self.device_type, tuple(getattr(self.layout, n) for n in names), mesh_dim_names=tuple(names))
        return whole

    def along(self, *names: str) -> DeviceMesh | None:
        """One-dimensional mesh over these dimensions; None if all have size 1."""
        wide = tuple(n for n in DIMENSIONS if n in names and getattr(self.layout, n) > 1)
        if not wide:
            return None
        if len(wide) == 1:
            return self.devices[wide[0]]
        key = "_".join(wide)
        if key not in self._flat:
            with meeting(f"rank {self.world.rank} of {self.world.size}"):
                self._flat[key] = self.devices[wide]._flatten(key)
        found: DeviceMesh = self._flat[key]
        return found

    @cached_property
    def _flat(self) -> dict[str, Any]:
        return {}

    def hybrid(self) -> DeviceMesh:
        """The two-dimensional mesh of hybrid sharding: replicate, then shard (with context)."""
        from torch.distributed.device_mesh import DeviceMesh

        inner = self.along("shard", "context")
        assert inner is not None
        if self.layout.context == 1:
            return self.devices["replicate", "shard"]
        joined: DeviceMesh = DeviceMesh._concatenate([self.devices["replicate"], inner])
        return joined

    def group(self, *names: str) -> ProcessGroup | None:
        """Process group of these dimensions; None if it has only this process."""
        found = self.along(*names)
        return None if found is None else found.get_group()

    def sum(self, value: Tensor, *names: str) -> Tensor:
        """All-reduce (sum) `value` over these dimensions, in place; every rank gets the same bits."""
        group = self.group(*names)
        if group is not None:
            import torch.distributed as dist

            dist.all_reduce(value, group=group)
        return value
