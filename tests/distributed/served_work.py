"""Small jobs for the tests of the parameter server, which its workers build by themselves: found by name in their processes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from tauon.models import GPTConfig, MLPConfig
from tauon.optim import OptimConfig
from tauon.plan import Plan
from tauon.tasks import Classification, LanguageModelling
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job
from tauon.types import Batch, DataSpec

SEQ, VOCAB = 12, 64


@dataclass(frozen=True)
class Rows:
    """Rows of random batches: a function of the step. Token weights vary if `uneven`."""

    kind: str
    batch: int
    share: int = 0
    shares: int = 1
    uneven: bool = False
    seconds: float = 0.0

    def batch_at(self, step: int) -> Batch:
        time.sleep(self.seconds)
        g = torch.Generator().manual_seed(step)
        n = self.batch // self.shares
        if self.kind == "gpt":
            ids = torch.randint(0, VOCAB, (self.batch, SEQ + 1), generator=g)
            weights = torch.ones(self.batch, SEQ)
            if self.uneven:
                weights = (torch.rand(self.batch, SEQ, generator=g) > 0.4).float()
            whole = Batch(ids[:, :-1], ids[:, 1:], weights)
        else:
            x = torch.randn(self.batch, 10, generator=g)
            whole = Batch(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), torch.ones(self.batch))
        return whole.rows(self.share * n, (self.share + 1) * n)


@dataclass(frozen=True)
class ToyWork:
    """A GPT or an MLP on random rows."""

    kind: str
    optim: OptimConfig
    steps: int = 10
    batch: int = 8
    microbatch: int = 4
    uneven: bool = False
    dropout: float = 0.0
    slow: tuple[float, ...] = ()
    """Seconds that each worker sleeps a batch."""
    breaks: str = ""
    worker: int = -1

    def job(self, worker: int) -> TrainJob:
        torch.use_deterministic_algorithms(False)
        if self.breaks:
            raise RuntimeError(self.breaks)
        object.__setattr__(self, "worker", worker)
        model: Any = (
            GPTConfig(layers=2, width=16, heads=2, vocab=VOCAB, seq_len=SEQ, dropout=self.dropout)
            if self.kind == "gpt"
            else MLPConfig(hidden=(16,), inputs=10, outputs=3)
        )
        task: Any = LanguageModelling() if self.kind == "gpt" else Classification()
        spec = DataSpec(vocab=VOCAB, seq_len=SEQ) if self.kind == "gpt" else DataSpec(input_shape=(10,), outputs=3)
        plan = Plan(self.steps, torch.device("cpu"), "fp32", False, self.microbatch, 1, 1, 1)
        config = TrainConfig(steps=self.steps, batch=self.batch, precision="fp32", compile=False)
        return build_job(JobConfig(model, self.optim, config, task, spec, 5), self.source(0, 1), plan)

    def source(self, share: int, shares: int) -> Rows:
        seconds = self.slow[self.worker] if 0 <= self.worker < len(self.slow) else 0.0
        return Rows(self.kind, self.batch, share, shares, self.uneven, seconds)

    def alone(self) -> TrainJob:
        """The job of one process, to compare with."""
        return replace(self, slow=()).job(-1)
