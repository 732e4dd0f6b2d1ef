"""A small job that trains at once: for tests of hooks and wrappers, and for examples."""

from __future__ import annotations

from tauon.models import LogisticConfig
from tauon.optim import SGDConfig
from tauon.plan import make_plan
from tauon.tasks import Classification
from tauon.testing.contracts import tiny_batch
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job
from tauon.types import Batch, DataSpec

__all__ = ["tiny_job"]


class _SameBatch:
    """The same 8 rows at every step."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec

    def batch_at(self, step: int) -> Batch:
        return tiny_batch(self.spec, rows=8)


def tiny_job(steps: int) -> TrainJob:
    """Return a job at step 0: logistic regression on 8 rows of 3 numbers, by SGD, on the CPU.

    >>> tiny_job(steps=3).policy.total_steps
    3
    """
    spec = DataSpec(input_shape=(3,), outputs=2, labels=("a", "b"))
    settings = TrainConfig(steps=steps, batch=8, device="cpu", precision="fp32", compile=False)
    config = JobConfig(LogisticConfig().resolve(spec), SGDConfig(lr=0.1), settings, Classification(), spec, seed=0)
    return build_job(config, _SameBatch(spec), make_plan(config, examples=8))
