"""Compressed gradients for DDP, as communication hooks that count sent bytes.

    none        all-reduce in float32, DDP's default: 4 bytes per element
    bf16        all-reduce in bfloat16: 2 bytes; the sum is rounded too
    int8        codes with a scale per 256 elements, error feedback: 1.02 bytes, summed in float32
    powersgd    low-rank factors of each matrix (Vogels et al. 2019, arXiv:1905.13727), torch's own, with error feedback

Error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847): the compression error of a gradient is added to
the next one, so nothing is lost, only delayed. It is state of each rank, and saved for a resume: `register_hook` returns it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from tauon.distributed.config import MeshParallel
from tauon.distributed.int8 import BLOCK, from_int8, packed_size, to_int8
from tauon.distributed.traffic import Traffic

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

__all__ = ["Int8Gradients", "PowerSGD", "register_hook"]

EXACT_STEPS = 10
"""Steps before PowerSGD starts: early gradients change too fast to reuse factors."""


def register_hook(
    ddp: nn.Module, config: MeshParallel | str, traffic: Traffic, group: dist.ProcessGroup | None = None, *, rank: int = 4
) -> Int8Gradients | PowerSGD | None:
    """Compress the gradients of `ddp` (a `DistributedDataParallel`, or a module under `replicate`), and count bytes in `traffic`.

    Args:
        ddp: before its first backward pass.
        config: the recipe's section, or one of none, bf16, int8, powersgd.
        traffic: counter of sent bytes.
        group: the replicas; None: all processes.
        rank: of PowerSGD's factors, if `config` is a name.

    Returns:
        This rank's state, for `job.extra`; None if there is none.
    """
    name = config if isinstance(config, str) else config.compression
    if name == "powersgd" and not isinstance(config, str):
        rank = config.powersgd_rank
    group = group or dist.group.WORLD
    assert group is not None, "DDP has a process group"
    module: nn.Module = getattr(ddp, "module", ddp)
    kept: Int8Gradients | PowerSGD | None = None
    if name in ("none", "bf16"):
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        inner = default_hooks.allreduce_hook if name == "none" else default_hooks.bf16_compress_hook

        def hook(bucket: GradBucket) -> Future[Tensor]:
            traffic.add("all-reduce", bucket.buffer().numel() * (2 if name == "bf16" else bucket.buffer().element_size()))
            return inner(group, bucket)

    elif name in ("int8", "powersgd"):
        kept = Int8Gradients(module, traffic, group) if name == "int8" else PowerSGD(module, traffic, group, rank)
        hook = kept.hook
    else:
        raise ValueError(f"unknown compression {name!r}: expected none, bf16, int8 or powersgd")
    ddp.register_comm_hook(None, lambda _, bucket: hook(bucket))  # type: ignore[operator]
    return kept


class Int8Gradients:
    """Mean gradients by int8, in two phases, each with error feedback.

    Every block of 256 elements has an owner. All-to-all: each rank sends every owner its codes for the owner's blocks. The owner
    decodes, averages in float32, and encodes the mean; all-gather: the means go to all. Of N bytes of codes a rank sends
    N (W-1)/W in the first phase, and N/W in the second. Blocks start at each parameter, and owners alternate over the model's blocks,
    so that results do not depend on DDP's buckets, which change after the first step of a process.

    The second phase waits for the last bucket: otherwise ranks could start collectives in different orders.
    """

    def __init__(self, module: nn.Module, traffic: Traffic, group: dist.ProcessGroup) -> None:
        self.names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
        self.traffic, self.group = traffic, group
        self.errors: dict[str, Tensor] = {}
        """Error to be added to the next gradient, by parameter, flat."""
        self.first = dict(zip(self.names, itertools.accumulate((blocks_of(p.numel()) for p in self.names), initial=0), strict=False))
        """Index of each parameter's first block."""
        self.orders: dict[tuple[int, ...], tuple[Tensor, int]] = {}
        self.waiting: list[tuple[GradBucket, Tensor, int, Tensor, Tensor, Any, Future[Tensor]]] = []

    def hook(self, bucket: GradBucket) -> Future[Tensor]:
        """Phase one of this bucket; after the last bucket, phase two of all."""
        world = self.group.size()
        order_WK, blocks = self._order(bucket)
        x_JB = bucket.buffer().new_zeros(blocks, BLOCK, dtype=torch.float32)
        for (name, piece), g in zip(self._pieces(bucket, x_JB), bucket.gradients(), strict=True):
            piece.copy_(g.flatten())
            if name in self.errors:
                piece.add_(self.errors[name])
        x_WKB = x_JB[order_WK]
        own = x_WKB[0].numel()
        sent = torch.cat([to_int8(x_KB.flatten()) for x_KB in x_WKB])
        error_WKB = x_WKB - torch.stack([from_int8(part, own) for part in sent.chunk(world)]).view_as(x_WKB)
        received = torch.empty_like(sent)
        work = dist.all_to_all_single(received, sent, group=self.group, async_op=True)
        self.traffic.add("all-to-all", packed_size(own) * (world - 1))
        future: Future[Tensor] = Future() if sent.device.type == "cpu" else Future(devices=[sent.device])
        self.waiting.append((bucket, order_WK, blocks, error_WKB, received, work, future))
        if bucket.is_last():
            self._second_phase()
        return future

    def _second_phase(self) -> None:
        world, rank = self.group.size(), self.group.rank()
        going = []
        for _, _, _, error_WKB, received, work, _ in self.waiting:
            work.wait()
            own = error_WKB[0].numel()
            mean = torch.stack([from_int8(part, own) for part in received.chunk(world)]).sum(0) / world
            sent = to_int8(mean)
            # An error of the mean is `world` times as much of one rank's contribution to the next sum.
            error_WKB[rank].add_((mean - from_int8(sent, own)).view(-1, BLOCK), alpha=world)
            everyone = sent.new_empty(world * sent.numel())
            going.append((everyone, dist.all_gather_single(everyone, sent, group=self.group, async_op=True)))
            self.traffic.add("all-gather", sent.numel())
        for (bucket, order_WK, blocks, error_WKB, _, _, future), (everyone, work) in zip(self.waiting, going, strict=True):
            work.wait()
            own = error_WKB[0].numel()
            mean_JB, error_JB = (error_WKB.new_empty(blocks, BLOCK) for _ in range(2))
            mean_JB[order_WK] = torch.stack([from_int8(part, own) for part in everyone.chunk(world)]).view_as(error_WKB)
            error_JB[order_WK] = error_WKB.nan_to_num_(
                0.0, 0.0, 0.0
            )  # a non-finite gradient is skipped by all ranks, and must not be fed back
            for g, (_, piece) in zip(bucket.gradients(), self._pieces(bucket, mean_JB), strict=True):
                g.copy_(piece.view_as(g))
            self.errors |= dict(self._pieces(bucket, error_JB))
            future.set_result(bucket.buffer())
        self.waiting.clear()

    def _order(self, bucket: GradBucket) -> tuple[Tensor, int]:
        """(numbers of a bucket's blocks by their owners, W x K, how many blocks); padded with a block of zeros to the same
        number for each. Cached: on a GPU, computing it again would make the host wait for the backward pass at every bucket.
        """
        key = tuple(self.first[p] for p in bucket.parameters())
        if key not in self.orders:
            order = self._new_order(bucket)
            self.orders[key] = order.to(bucket.buffer().device), int(order.max()) + 1
        return self.orders[key]

    def _new_order(self, bucket: GradBucket) -> Tensor:
        world = self.group.size()
        numbers = torch.cat([self.first[p] + torch.arange(blocks_of(p.numel())) for p in bucket.parameters()])
        per_owner = torch.bincount(numbers % world, minlength=world).tolist()
        parts = torch.argsort(numbers % world, stable=True).split(per_owner)
        order = torch.full((world, max(per_owner)), len(numbers))
        for row, part in zip(order, parts, strict=True):
            row[: len(part)] = part
        return order

    def _pieces(self, bucket: GradBucket, x_JB: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, flat view) of each parameter's part of a bucket's blocks."""
        flat, start = x_JB.view(-1), 0
        for p in bucket.parameters():
            yield self.names[p], flat[start : start + p.numel()]
            start += blocks_of(p.numel()) * BLOCK

    def tensors(self) -> dict[str, Tensor]:
        """Errors of this rank, under the names `rank-<k>/...`."""
        return {f"rank-{self.group.rank()}/{name}": e for name, e in self.errors.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore this rank's errors from the tensors of all ranks; a new rank starts without errors."""
        self.errors = mine(tensors, self.group.rank(), next(iter(self.names)).device)


class PowerSGD:
    """Torch's PowerSGD: M ~ P Q^T of rank r per matrix, P and Q all-reduced; vectors, and matrices too small to gain, whole.

    Torch keeps errors and factors by bucket. Here they are saved by parameter, because DDP rebuilds its buckets after the first step
    of each process, so that a resume is exact.
    """

    def __init__(self, module: nn.Module, traffic: Traffic, group: dist.ProcessGroup, rank: int, exact_steps: int = EXACT_STEPS) -> None:
        self.names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
        self.traffic, self.group = traffic, group
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        self.torchs = powerSGD_hook.PowerSGDState(
            group, matrix_approximation_rank=rank, start_powerSGD_iter=exact_steps, compression_stats_logging_frequency=10**9
        )
        self.layout: dict[int, list[Tensor]] = {}
        self.held: dict[str, Tensor] = {}
        """`error/<name>` (flat) and `q/<name>`, of earlier buckets."""

    def hook(self, bucket: GradBucket) -> Future[Tensor]:
        """Torch's hook, counted, with the state of this bucket's parameters in place."""
        torchs, index, params = self.torchs, bucket.index(), bucket.parameters()
        if index in self.layout and [id(p) for p in self.layout[index]] != [id(p) for p in params]:
            self.held |= self._by_name()
            for by_bucket in (self.layout, torchs.error_dict, torchs.p_memory_dict, torchs.q_memory_dict):
                by_bucket.clear()
        if index not in self.layout:
            self.layout[index] = params
            self._put_in_place(index, params)
        before = torchs.total_numel_after_compression
        exact = torchs.iter < torchs.start_powerSGD_iter
        width = bucket.buffer().element_size()
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        result: Future[Tensor] = powerSGD_hook.powerSGD_hook(torchs, bucket)
        sent = bucket.buffer().numel() if exact else torchs.total_numel_after_compression - before
        self.traffic.add("all-reduce", sent * width)
        if bucket.buffer().device.type == "cpu":
            # Its collectives are started by callbacks. For two buckets at once their order could differ between ranks: gloo has no streams.
            result.wait()
        if not exact and not all(t.isfinite().all() for t in (torchs.error_dict[index], torchs.q_memory_dict[index])):
            torchs.error_dict[index].nan_to_num_(0.0, 0.0, 0.0)  # a gradient that is not finite is skipped by all; it must not come back
            if not torchs.q_memory_dict[index].isfinite().all():  # of a sum: the same on every rank
                del torchs.p_memory_dict[index], torchs.q_memory_dict[index]
        return result

    def _shape(self, p: Tensor) -> tuple[int, int, int] | None:
        """(rows, columns, rank) of a matrix to compress."""
        n, m = p.shape[0], p.numel() // p.shape[0]
        r = min(n, m, self.torchs.matrix_approximation_rank)
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        return (n, m, r) if powerSGD_hook._should_compress(n, m, r, self.torchs.min_compression_rate)[0] else None

    def _matrices(self, params: list[Tensor]) -> list[tuple[Tensor, tuple[int, int, int]]]:
        """Compressed parameters of a bucket, in torch's order of the factors: grouped by shape."""
        by_shape: dict[tuple[int, int, int], list[Tensor]] = {}
        for p in params:
            if (shape := self._shape(p)) is not None:
                by_shape.setdefault(shape, []).append(p)
        return [(p, shape) for shape, alike in by_shape.items() for p in alike]

    def _by_name(self) -> dict[str, Tensor]:
        held = dict(self.held)
        for index, params in self.layout.items():
            if index in self.torchs.error_dict:
                errors = self.torchs.error_dict[index].split([p.numel() for p in params])
                held |= {f"error/{self.names[p]}": e for p, e in zip(params, errors, strict=True)}
            if index in self.torchs.q_memory_dict:
                matrices = self._matrices(params)
                factors = self.torchs.q_memory_dict[index].split([m * r for _, (_, m, r) in matrices])
                held |= {f"q/{self.names[p]}": q for (p, _), q in zip(matrices, factors, strict=True)}
        return held

    def _put_in_place(self, index: int, params: list[Tensor]) -> None:
        errors = [self.held.get(f"error/{self.names[p]}") for p in params]
        if all(e is not None for e in errors):
            self.torchs.error_dict[index] = torch.cat([e for e in errors if e is not None])
        matrices = self._matrices(params)
        factors = [self.held.get(f"q/{self.names[p]}") for p, _ in matrices]
        if all(q is not None for q in factors):
            like = params[0].detach()
            self.torchs.q_memory_dict[index] = torch.cat([like.new_empty(0), *(q for q in factors if q is not None)])
            self.torchs.p_memory_dict[index] = like.new_empty(sum(n * r for _, (n, _, r) in matrices))

    def tensors(self) -> dict[str, Tensor]:
        """Errors and factors of this rank, under the names `rank-<k>/...`."""
        held = self._by_name() | {"iter": torch.tensor(self.torchs.iter)}
        return {f"rank-{self.group.rank()}/{name}": t for name, t in held.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore this rank's values from the tensors of all ranks. A new rank has no errors, and the factors of the others."""
        rank = self.group.rank()
        device = next(iter(self.names)).device
        held = mine(tensors, rank, device)
        if not held:
            first = min(int(name.partition("/")[0].removeprefix("rank-")) for name in tensors)
            others = mine(tensors, first, device)
            held = {k: torch.zeros_like(t) if k.startswith("error/") else t for k, t in others.items()}
        self.torchs.iter = int(held.pop("iter"))
        self.held = held
        for by_bucket in (self.layout, self.torchs.error_dict, self.torchs.p_memory_dict, self.torchs.q_memory_dict):
            by_bucket.clear()


def blocks_of(n: int) -> int:
    """Number of blocks for `n` elements."""
    return -(-n // BLOCK)


def mine(tensors: dict[str, Tensor], rank: int, device: torch.device) -> dict[str, Tensor]:
    """Copies of the tensors under `rank-<rank>/`, without this prefix."""
    head = f"rank-{rank}/"
    return {name.removeprefix(head): t.to(device, copy=True) for name, t in tensors.items() if name.startswith(head)}
