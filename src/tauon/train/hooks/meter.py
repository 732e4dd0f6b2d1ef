"""Speed of training: throughput, model TFLOP/s, memory, time left. A hook that adds metrics for the hooks after it."""

from __future__ import annotations

import resource
import sys
from collections import deque

import torch

from tauon.train.step import TrainJob
from tauon.types import StepInfo

__all__ = ["Meter", "memory_mb"]


class Meter:
    """Adds examples_per_s, tokens_per_s, tflops, memory_mb, eta_s, averaged over the last `window` steps.

    tflops is *model* TFLOP/s: the operations of the mathematical model (`Model.flops_per_example`: 6 for each weight that
    multiplies, attention at half its square), not those that recomputation adds.
    """

    def __init__(self, flops_per_example: float, window: int = 20) -> None:
        self.flops = flops_per_example
        self.recent: deque[tuple[float, int, int]] = deque(maxlen=window)
        self.last: tuple[int, int] | None = None

    def __call__(self, job: TrainJob, info: StepInfo) -> None:
        before, self.last = self.last, (info.examples, info.tokens)
        if before is None:  # the first step warms up; steps before a resume were not done by this process
            return
        self.recent.append((info.metrics["seconds"], info.examples - before[0], info.tokens - before[1]))
        recent = list(self.recent)
        seconds = sum(r[0] for r in recent) or 1e-9
        examples = sum(r[1] for r in recent) / seconds
        info.metrics["examples_per_s"] = examples
        if info.tokens:
            info.metrics["tokens_per_s"] = sum(r[2] for r in recent) / seconds
        info.metrics["tflops"] = examples * self.flops / 1e12
        info.metrics["memory_mb"] = memory_mb(job.policy.device)
        info.metrics["eta_s"] = (info.total_steps - info.step) * seconds / len(recent)


def memory_mb(device: torch.device) -> float:
    """Return the peak memory in MB (10**6 bytes): of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
