"""The recipe's section `parallel: {kind: parameter-server}`. Only settings."""

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
    """Servers have the weights and the optimizer; workers pull weights and push gradients. Processes are Ray actors (`tauon[ray]`).

    `sync` gives the result of one process. `async` and `ssp` apply each push at once, to weights that have changed since the pull.
    """

    workers: Count = Field(2, ge=1)
    """Number of processes that compute gradients."""
    servers: Count = Field(1, ge=1)
    """Number of processes that share the weights and optimizer state."""
    mode: Literal["sync", "async", "ssp"] = "sync"
    """`sync`: a step is the sum of all workers' shares of its batch. `async`: a step is the push of one worker with its own batch, applied
    at once. `ssp`: the same with bounded staleness (Ho et al. 2013)."""
    staleness: Count | None = Field(None, ge=0)
    """With `ssp`: maximum lead of the fastest worker over the slowest, in pushes. 0: all wait for each other after every push."""
    backup_workers: Count = Field(0, ge=0)
    """With `sync`: number of slowest workers that a step does not wait for; their gradients are dropped
    (Chen et al. 2016, arXiv:1604.00981)."""
    delay_compensation: float = Field(0.0, ge=0)
    """With `async` and `ssp`: lambda of the correction g + lambda g^2 (w - w_pulled) (Zheng et al. 2017, arXiv:1609.08326). 0: none."""
    every: Count = Field(1, ge=1)
    """With `outer`: local steps of a worker between pull and push (H)."""
    outer: OuterConfig | None = None
    """With `async` and `ssp`: asynchronous DiLoCo (Liu et al. 2024, arXiv:2401.09135). Each worker trains `every` steps with its own
    optimizer, and this outer optimizer applies the difference. `delayed-nesterov` is made for it. Default: servers run the recipe's optimizer."""
    push: CodecConfig = NoCodec()
    """Codec of the gradients that workers push."""
    pull: CodecConfig = NoCodec()
    """Codec of the weights that workers pull; servers keep fp32. Not `top-k`."""
    replicas: Count = Field(0, ge=0)
    """Copies of each shard on other servers, which apply the same pushes: a server may then die without loss. 0: the run goes back to its
    last checkpoint."""
    max_restarts: Count = Field(10, ge=0)
    """Maximum number of workers and servers to replace in a run. After that, the remaining workers do the work of those that died."""
    address: str | None = None
    """Address of a running Ray cluster, `host:port` or `auto`. Default: Ray is started on this machine, on loopback, for this run."""
    threads: Count | None = Field(None, ge=1)
    """Threads, and Ray CPUs, of each worker. Default: this machine's cores divided by the workers; one on a cluster."""
    timeout: Duration = Field(600.0, gt=0)
    """Seconds without an answer from any worker or server before the run ends with an error."""

    def problems(self) -> Iterator[tuple[str, str]]:
        mode, workers = self.raw_value("mode"), self.raw_value("workers")
        if self.raw_value("backup_workers") and mode != "sync":
            yield "backup_workers", f"is for mode=sync, but mode is {mode}. Remove it."
        elif self.raw_value("backup_workers") >= workers:
            yield (
                "backup_workers",
                f"{self.raw_value('backup_workers')} of {workers} workers leaves none. Set at most {workers - 1}.",
            )
        if mode == "ssp" and self.raw_value("staleness") is None:
            yield "staleness", "is missing: mode=ssp needs the maximum lead of the fastest worker, in pushes. 2 to 4 is usual."
        if mode != "ssp" and self.raw_value("staleness") is not None:
            yield "staleness", f"is for mode=ssp, but mode is {mode}. Remove it, or set mode=ssp."
        if mode == "sync" and self.raw_value("delay_compensation"):
            yield "delay_compensation", "is for the modes async and ssp: in sync nothing is delayed. Remove it."
        if self.raw_value("outer") is None and self.raw_value("every") > 1:
            yield (
                "every",
                f"{self.raw_value('every')} local steps need an outer optimizer. Set parallel.outer=delayed-nesterov, or remove every.",
            )
        if self.raw_value("outer") is not None and mode == "sync":
            yield "outer", "is for the modes async and ssp. For synchronous DiLoCo set parallel.kind=diloco."
        if self.raw_value("outer") is not None and self.raw_value("delay_compensation"):
            yield "delay_compensation", "corrects gradients, but with outer no gradients are pushed. Remove it."
        if self.raw_value("pull").feedback:
            yield (
                "pull",
                f"{self.raw_value('pull').kind_} sends only part of a vector, but workers need complete weights. Set none, bf16 or int8.",
            )
        if self.raw_value("replicas") >= self.raw_value("servers"):
            yield (
                "replicas",
                f"{self.raw_value('replicas')} copies need as many additional servers, but there are {self.raw_value('servers')} in total. Raise servers.",
            )
        address = self.raw_value("address")
        if address is not None and address.startswith("ray://"):
            yield (
                "address",
                "ray:// (Ray Client) copies every tensor twice. Run this command on a machine of the cluster, with address=auto.",
            )
