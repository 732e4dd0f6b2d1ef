"""Tensor and sequence parallelism: a model's shard plan (plain data) applied with DTensor.

Megatron-LM's scheme (Shoeybi et al. 2019, arXiv:1909.08053): outputs of column-wise layers stay split, and the next row-wise
layer sums its partial results. Modules with column-wise layers gather their input once for all of them. With sequence parallelism
(Korthikanti et al. 2022, arXiv:2205.05198) the activations between them are split along the sequence. The embedding and the head
are split along the vocabulary; sizes that do not divide are split unevenly, without padding.

Independent of model families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from tauon.distributed.shards import BESIDE, shard_of
from tauon.errors import Problem, RecipeError

__all__ = ["apply_tensor"]


def apply_tensor(model: nn.Module, plan: Mapping[str, str], mesh: DeviceMesh, *, runs: list[list[nn.Module]], sequence: bool) -> None:
    """Split the model's matrices over `mesh` (one dimension), in place; every parameter becomes a DTensor.

    `runs`: consecutive blocks, one list per pipeline stage. With `sequence`, activations between the matrices of a block are split
    along dimension 1 (time), which must divide.
    """
    tied = _tied(model)
    between = Shard(1) if sequence else Replicate()
    styles: dict[str, ParallelStyle] = {}
    parents: set[str] = set()
    inside = {id(m) for blocks in runs for block in blocks for m in block.modules()}
    for name, module in model.named_modules():
        own = [f"{name}.{leaf}" if name else leaf for leaf, _ in module.named_parameters(recurse=False)]
        if not own:
            continue
        how = shard_of(own[0], plan)
        if how == "colwise":
            styles[name] = _Columns()
            parents.add(name.rpartition(".")[0])
        elif how == "rowwise":
            styles[name] = _Rows(output_layouts=between)
        elif how == "vocab":
            styles[name] = RowwiseParallel(input_layouts=Replicate()) if isinstance(module, nn.Embedding) else ColwiseParallel()
        elif how == "per-head":
            styles[name] = _Whole(Shard(2))  # B T H K: each process has its own heads, the weight's gradient is a sum over them
        else:
            styles[name] = _Whole(between if id(module) in inside else Replicate(), own_memory=id(module) not in inside)
    if not styles:
        return
    parallelize_module(model, mesh, styles)
    for name in parents:
        _gather_input(model.get_submodule(name), mesh, between)
    for blocks in runs if sequence else []:
        if blocks:
            _cut_sequence(blocks, mesh)
    for name, first in tied.items():  # each was split separately
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))


def _beside(module: nn.Module, how: str, mesh: DeviceMesh) -> None:
    """Split the parameters of an adapter by its layer's plan."""
    for leaf, dim in BESIDE[how].items():
        p = getattr(module, leaf, None)
        if p is not None:
            place = Replicate() if dim is None else Shard(dim)
            cut = distribute_tensor(p.detach(), mesh, [place], src_data_rank=None)
            setattr(module, leaf, nn.Parameter(cut, requires_grad=p.requires_grad))


class _Columns(ColwiseParallel):
    """Column-wise, its adapter with it."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        for leaf in ("weight", "bias"):
            p = getattr(module, leaf, None)
            if p is not None:
                cut = distribute_tensor(p.detach(), device_mesh, [Shard(0)], src_data_rank=None)
                setattr(module, leaf, nn.Parameter(cut, requires_grad=p.requires_grad))
        _beside(module, "colwise", device_mesh)


class _Rows(RowwiseParallel):
    """Row-wise, its adapter with it."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        for leaf, place in (("weight", Shard(1)), ("bias", Replicate())):
            p = getattr(module, leaf, None)
            if p is not None:
                cut = distribute_tensor(p.detach(), device_mesh, [place], src_data_rank=None)
                setattr(module, leaf, nn.Parameter(cut, requires_grad=p.requires_grad))
        _beside(module, "rowwise", device_mesh)


class _Whole(ParallelStyle):
    """Style of a module with replicated weights, applied to inputs that may be split."""

    def __init__(self, layout: Any, own_memory: bool = False) -> None:
        super().__init__()
        self.layout, self.own_memory = layout, own_memory

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for leaf, p in list(module.named_parameters(recurse=False)):
            whole = distribute_tensor(p.detach(), device_mesh, [Replicate()], src_data_rank=None)
            setattr(module, leaf, nn.Parameter(whole, requires_grad=p.requires_grad))

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = args[0]
            if isinstance(x, DTensor):
                return args
            return (DTensor.from_local(x, device_mesh, [self.layout], run_check=False), *args[1:])

        def after(_: nn.Module, args: Any, out: Any) -> Any:
            if not isinstance(out, DTensor):
                return out
            mine = out.to_local()
            return mine.clone() if self.own_memory else mine  # FSDP2 warns of a root that returns a view

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        return module


def _gather_input(module: nn.Module, mesh: DeviceMesh, layout: Any) -> None:
    """Style that gathers the input of column-wise layers once, and sums (or scatters) its gradient once."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = DTensor.from_local(args[0], mesh, [layout], run_check=False)
        return (x.redistribute(placements=[Replicate()]), *args[1:])

    module.register_forward_pre_hook(before)


def _cut_sequence(blocks: list[nn.Module], mesh: DeviceMesh) -> None:
    """Style that splits hidden states BTD along T from the first block's input to the last block's output."""

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        if x.shape[1] % mesh.size():
            raise RecipeError(
                [
                    Problem(
                        "parallel.sequence_parallel",
                        f"{x.shape[1]} positions do not divide evenly over {mesh.size()} processes. Change data.seq_len or parallel.tensor.",
                    )
                ]
            )
        whole = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        return (whole.redistribute(placements=[Shard(1)]).to_local(), *args[1:])

    def leave(_: nn.Module, args: Any, out: Tensor) -> Tensor:
        return DTensor.from_local(out, mesh, [Shard(1)], run_check=False).redistribute(placements=[Replicate()]).to_local()

    blocks[0].register_forward_pre_hook(enter)
    blocks[-1].register_forward_hook(leave)


def _tied(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if first.setdefault(id(p), name) != name}
