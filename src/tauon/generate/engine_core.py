"""The engine without threads: one step plans, runs the model, chooses a token for each answer, and puts it into its stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from tauon.errors import CheckpointError
from tauon.generate.blocks import BlockPool
from tauon.generate.choose import choose
from tauon.generate.engine_config import EngineConfig
from tauon.generate.request import FinishReason
from tauon.generate.runner import ModelRunner, Piece
from tauon.generate.scheduler import Scheduler
from tauon.generate.sequence import SequenceState

__all__ = ["EngineCore"]


class EngineCore:
    """Answers, their blocks and the model. Used by one thread."""

    def __init__(
        self, runner: ModelRunner, blocks: int, config: EngineConfig, texts: Sequence[bytes], on_end: Callable[[SequenceState], None]
    ) -> None:
        """`texts`: of each token; `on_end`: called once for each answer that ended."""
        self.config, self.blocks = config, blocks
        self.scheduler = Scheduler(runner, BlockPool(blocks), config)
        self._texts, self._on_end = texts, on_end

    def add(self, sequences: Iterable[SequenceState]) -> None:
        """Let answers wait."""
        self.scheduler.waiting.extend(sequences)

    def all_sequences(self) -> list[SequenceState]:
        """Return the answers that have not ended."""
        own = [*self.scheduler.waiting, *self.scheduler.running]
        return own + [twin for s in own for twin in s.twins]

    def step(self) -> int:
        """Run the model once. Returns how many tokens were written."""
        work = self.scheduler.plan()
        if not work:
            return 0
        pieces = [Piece(w.sequence.table, w.sequence.computed, w.sequence.tokens[w.sequence.computed :][: w.tokens]) for w in work]
        completes = [w.completes for w in work]
        logits_NV = self.scheduler.runner.logits(pieces, completes)
        self.scheduler.advance(work)
        ready = [w.sequence for w, complete in zip(work, completes, strict=True) if complete]
        sequences: list[SequenceState] = []
        rows: list[int] = []
        for row, (s, finite) in enumerate(zip(ready, logits_NV.isfinite().all(1).tolist(), strict=True)):
            if not finite:
                self.fail(s, CheckpointError("the model's logits are not finite: training diverged. Serve an earlier checkpoint."))
                continue
            together = [s, *self._start_twins(s)]
            sequences += together
            rows += [row] * len(together)
        self._write(sequences, logits_NV if rows == list(range(len(ready))) else logits_NV[rows])
        return len(sequences)

    def end(self, s: SequenceState, reason: FinishReason) -> None:
        """End an answer, and with it those that wait for its prompt."""
        for one in (s, *s.twins):
            one.end(reason)
            self._leave(one)
        s.twins = []

    def fail(self, s: SequenceState, error: Exception) -> None:
        """End an answer with an error."""
        s.stream.error = error
        self.end(s, "error")

    def fail_running(self, error: Exception) -> None:
        """End all running answers with an error, and forget what is in the cache: a step did not finish."""
        for s in list(self.scheduler.running) or list(self.scheduler.waiting)[:1]:
            self.fail(s, error)
        self.scheduler.pool.forget()

    def end_cancelled(self) -> None:
        """End the answers whose streams were cancelled."""
        for s in self.all_sequences():
            if s.stream.is_cancelled and not s.done:
                self.end(s, "cancelled")

    def change_runner(self, runner: ModelRunner) -> None:
        """Continue with another model: all that is in the cache is computed again."""
        old = self.scheduler
        for s in reversed(list(old.running)):
            old.leave(s)
            old.waiting.appendleft(s)
        self.scheduler = Scheduler(runner, BlockPool(self.blocks), self.config)
        self.scheduler.waiting, self.scheduler.preemptions = old.waiting, old.preemptions

    def _start_twins(self, s: SequenceState) -> list[SequenceState]:
        """Return the other answers to the prompt that `s` has just read, as far as they can start now; the others wait."""
        twins, s.twins = s.twins, []
        return [twin for twin in twins if self.scheduler.fork(s, twin)]

    def _write(self, sequences: list[SequenceState], logits_NV: Tensor) -> None:
        try:
            chosen = choose(logits_NV, [s.draw for s in sequences])
        except ValueError:
            chosen = []  # one of them cannot continue: find out which, and let the others
            for row, s in enumerate(list(sequences)):
                try:
                    chosen += choose(logits_NV[row : row + 1], [s.draw])
                except ValueError as err:
                    self.fail(s, err)
            sequences = [s for s in sequences if not s.done]
        for s, one in zip(sequences, chosen, strict=True):
            try:
                s.add(one, self._texts[one.token] if one.token < len(self._texts) else b"")
            except Exception as err:
                self.fail(s, err)
            if s.done:
                self._leave(s)

    def _leave(self, s: SequenceState) -> None:
        if s.has_left:
            return
        s.has_left = True
        if s.table < 0 and s in self.scheduler.waiting:
            self.scheduler.waiting.remove(s)
        self.scheduler.leave(s)
        self._on_end(s)
