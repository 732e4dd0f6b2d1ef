"""Settings of training: length, batches, precision, checkpoints, safety. `loop.py` and `step.py` use them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.config import Config, Count, Duration, Fraction

__all__ = ["EarlyStopping", "TrainConfig"]


class EarlyStopping(Config):
    """Stop when the validation loss has not fallen for some time, and keep the best checkpoint."""

    patience: Count = Field(5, ge=1)
    """Validations without improvement before training stops."""
    min_delta: float = Field(0.0, ge=0)
    """Smallest decrease of the validation loss that counts as an improvement."""


class WarmUp(Config):
    """A size that grows linearly during the first steps."""

    start: Count = Field(ge=1)
    """Size at the first step."""
    steps: Count = Field(ge=1)
    """Steps until the full size is reached."""


class StepsConfig(Config):
    """Number and size of steps."""

    steps: Count | None = Field(None, ge=1)
    """Optimizer steps. Set exactly one of steps, epochs, tokens, time."""
    epochs: float | None = Field(None, gt=0, le=1e9)
    """Passes over the training data."""
    tokens: Count | None = Field(None, ge=1)
    """Tokens to train on (100M); text only."""
    time: Duration | None = Field(None, gt=0, le=1e9)
    """Wall time that the steps should take (2h). A step is measured at the start; the number of steps is recorded and kept on resume."""
    batch: Count = Field(64, ge=1, le=2**31)
    """Examples in one optimizer step, all ranks together."""
    batch_warmup: WarmUp | None = None
    """Grow the batch from `start` examples to `batch` over the first `steps` steps (arXiv:1711.00489). Left out: full batch from the start."""
    seq_len_warmup: WarmUp | None = None
    """Text only: truncate examples to `start` tokens at first, growing to `data.seq_len` (arXiv:2108.06084). Left out: full length."""
    microbatch: Count | None = Field(None, ge=1)
    """Examples in one forward and backward pass. Left out: the whole batch, or the most that fits in memory."""


class ComputeConfig(StepsConfig):
    """Frozen parameters, device, precision, compilation."""

    freeze: tuple[str, ...] = ()
    """Parameters that do not train, by name: ["embed.*", "blocks.0.*"]."""
    device: str = "auto"
    """`auto`: the accelerator of this process (each process its own), else the CPU; or a torch device: cuda:1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: matrix products in bfloat16, weights and sums in fp32. `auto`: on a GPU bf16 if it has it; on a CPU the
    faster of both, measured."""
    compile: Literal["auto"] | bool = "auto"
    """Compile block by block with torch.compile. `auto`: if it saves more time than it takes; on a CPU this is measured."""
    attention: Literal["auto", "fused", "products"] = "auto"
    """`fused`: torch's kernel; `products`: batched matrix products, on a CPU, for at most 1,024 positions. `auto`: on a CPU
    the faster of both, measured; else `fused`."""
    activation_checkpointing: bool = False
    """Keep only each block's input and recompute the rest in the backward pass: less memory, a third more time."""
    ema: Fraction | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights (0.999), which is then evaluated. Left out: no average."""


class TrainConfig(ComputeConfig):
    """The training run."""

    validate_every: Count | None = Field(None, ge=1)
    """Steps between validations. Left out: ten in a run."""
    validate_examples: Count | None = Field(None, ge=1)
    """Number of validation examples to use. Left out: all."""
    checkpoint_every: Count | None = Field(None, ge=1)
    """Steps between checkpoints. Left out: ten in a run, at most 1,000 steps apart."""
    keep_last: Count = Field(2, ge=1)
    """Newest checkpoints to keep."""
    keep_every: Count | None = Field(None, ge=1)
    """Keep every checkpoint whose step is a multiple of this. Left out: none."""
    keep_early: Count = Field(0, ge=0, le=20)
    """Checkpoints of early training to write and keep, before the model memorises examples: 3 to 5 let `explain` find mislabelled ones. They are
    spread at equal ratios from a fifth of L to L; L is 30% of the steps, or 5 passes over the data if that is earlier."""
    early_stopping: EarlyStopping | None = None
    """Left out: train to the end."""
    spike_factor: float | None = Field(None, gt=1)
    """Skip a step whose gradient norm is more than this times the running mean. Left out: only NaN and infinity are skipped."""
    watch_layers: Count | None = Field(None, ge=1)
    """Steps between measurements of every layer (norms of gradient and weights, size of the update) for log and report, with a warning if
    a gradient vanishes or explodes. Left out: as often as validation."""
    max_bad_steps: Count = Field(10, ge=1)
    """Skipped steps in a row before training stops with an error."""

    def problems(self) -> Iterator[tuple[str, str]]:
        given = [k for k in ("steps", "epochs", "tokens", "time") if self.raw_value(k) is not None]
        if len(given) != 1:
            yield (
                (given[1] if given else "steps"),
                f"set exactly one of train.steps, epochs, tokens, time; got {' and '.join(given) or 'none'}",
            )
        micro, batch = self.raw_value("microbatch"), self.raw_value("batch")
        if micro is not None and (micro > batch or batch % micro):
            yield "microbatch", f"{micro} does not divide batch {batch}. Use a divisor, for example {largest_divisor(batch, micro)}."
        if (warmup := self.raw_value("batch_warmup")) is not None and warmup.raw_value("start") >= batch:
            yield "batch_warmup.start", f"{warmup.raw_value('start')} is not below batch {batch}. Start lower, or remove batch_warmup."


def largest_divisor(n: int, at_most: int) -> int:
    """Return the largest divisor of n that is at most `at_most` (at least 1)."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return max(d for d in [*small, *(n // d for d in small)] if d <= max(1, at_most))
