"""The recipe's `parallel: {kind: parameter-server}`: who holds the weights, who computes, and who waits for whom. Only numbers and choices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.config import Count, Duration, register
from tauon.distributed.codec import CodecConfig, NoCodec
from tauon.distributed.config import ParallelConfig
from tauon.distributed.outer import OuterConfig

__all__ = ["ParameterServer"]


@register("parameter-server")
class ParameterServer(ParallelConfig):
    """Servers hold the weights and the optimizer; workers pull weights and push gradients. Processes are Ray's actors (`tauon[ray]`).

    `sync` computes what one process computes. `async` and `ssp` apply each push as it comes, to weights that have moved on meanwhile.
    """

    workers: Count = Field(2, ge=1)
    """Processes that compute gradients."""
    servers: Count = Field(1, ge=1)
    """Processes over which weights and optimizer state are spread."""
    mode: Literal["sync", "async", "ssp"] = "sync"
    """`sync`: a step is the sum of all workers' shares of its batch. `async`: a step is the push of one worker, which had a whole batch, applied
    as it comes. `ssp`: the same with bounded staleness (Ho et al. 2013)."""
    staleness: Count | None = Field(None, ge=0)
    """With `ssp`: how many clocks, of one push a worker each, the fastest may be ahead of the slowest. 0: all wait at the end of every clock."""
    backup_workers: Count = Field(0, ge=0)
    """With `sync`: so many of the workers' shares are not waited for; they are dropped, and their examples not learned from in this step
    (Chen et al. 2016, arXiv:1604.00981)."""
    delay_compensation: float = Field(0.0, ge=0)
    """With `async` and `ssp`: lambda of the correction g + lambda g^2 (w - w_pulled) (Zheng et al. 2017, arXiv:1609.08326). 0: none."""
    every: Count = Field(1, ge=1)
    """With `outer`: steps that a worker takes on its own between pull and push (H)."""
    outer: OuterConfig | None = None
    """With `async` and `ssp`: asynchronous DiLoCo (Liu et al. 2024, arXiv:2401.09135). Each worker trains `every` steps with an optimizer of its
    own, and this one acts on what it did. `delayed-nesterov` is made for it. Left out: servers run the recipe's optimizer."""
    push: CodecConfig = NoCodec()
    """How gradients are written on their way to the servers."""
    pull: CodecConfig = NoCodec()
    """How weights are written on their way to the workers; the servers keep them in full. Not `top-k`."""
    replicas: Count = Field(0, ge=0)
    """Copies of each shard on other servers, kept equal by applying the same pushes: a server may then die without loss. 0: the run goes back
    to its last checkpoint."""
    max_restarts: Count = Field(10, ge=0)
    """Workers and servers that are replaced in one run when they die. After that, workers that are left do the work of those that died."""
    address: str | None = None
    """Of a running Ray cluster, `host:port` or `auto`. Left out: Ray is started on this machine, on loopback, for this run."""
    threads: Count | None = Field(None, ge=1)
    """Threads, and Ray CPUs, of each worker. Left out: this machine's cores shared by the workers; one on a cluster."""
    timeout: Duration = Field(600.0, gt=0)
    """How long nothing may come from any worker or server before the run ends with an error."""

    def problems(self) -> Iterator[tuple[str, str]]:
        mode, workers = self.raw_value("mode"), self.raw_value("workers")
        if self.raw_value("backup_workers") and mode != "sync":
            yield "backup_workers", f"is for mode sync, and mode is {mode}, where nobody waits for the slowest. Drop it."
        elif self.raw_value("backup_workers") >= workers:
            yield (
                "backup_workers",
                f"{self.raw_value('backup_workers')} of {workers} workers leaves none to wait for. Take at most {workers - 1}.",
            )
        if mode == "ssp" and self.raw_value("staleness") is None:
            yield "staleness", "missing: with mode ssp, say by how many clocks workers may be apart. 2 to 4 is usual."
        if mode != "ssp" and self.raw_value("staleness") is not None:
            yield "staleness", f"is for mode ssp, and mode is {mode}. Drop it, or take mode=ssp."
        if mode == "sync" and self.raw_value("delay_compensation"):
            yield "delay_compensation", "is for modes async and ssp: in sync nothing is delayed. Drop it."
        if self.raw_value("outer") is None and self.raw_value("every") > 1:
            yield (
                "every",
                f"{self.raw_value('every')} steps on its own need an outer optimizer for what comes of them. Set outer=delayed-nesterov, or drop it.",
            )
        if self.raw_value("outer") is not None and mode == "sync":
            yield "outer", "is for modes async and ssp. Synchronous DiLoCo is parallel.kind=diloco."
        if self.raw_value("outer") is not None and self.raw_value("delay_compensation"):
            yield "delay_compensation", "corrects gradients, and with outer none is pushed. Drop it."
        if self.raw_value("pull").feedback:
            yield "pull", f"{self.raw_value('pull').kind_} sends part of a vector, and weights are needed whole. Take none, bf16 or int8."
        if self.raw_value("replicas") >= self.raw_value("servers"):
            yield (
                "replicas",
                f"{self.raw_value('replicas')} copies need as many further servers, and there are {self.raw_value('servers')} in all. Raise servers.",
            )
        address = self.raw_value("address")
        if address is not None and address.startswith("ray://"):
            yield (
                "address",
                "ray:// (Ray Client) copies every tensor twice. Run this command on a machine of the cluster, with address=auto.",
            )
