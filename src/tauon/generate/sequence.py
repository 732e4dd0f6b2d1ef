"""One answer while it is being written: its tokens, its place in the cache, and what decides the next token."""

from __future__ import annotations

from dataclasses import dataclass, field

from tauon.generate.choose import Chosen, Draw
from tauon.generate.request import FinishReason, Token
from tauon.generate.stream import Stream
from tauon.generate.text_output import TextOutput

__all__ = ["SequenceState"]


@dataclass(eq=False)
class SequenceState:
    """An answer and its state."""

    stream: Stream
    index: int
    """Number of the answer in its request."""
    draw: Draw
    limit: int
    """Most tokens, the prompt included."""
    end_ids: frozenset[int]
    """Tokens that end the answer."""
    output: TextOutput
    twins: list[SequenceState] = field(default_factory=list)
    """Other answers to the same prompt, which start when it has been read."""
    tokens: list[int] = field(default_factory=list)
    """Prompt and answer."""
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks that are known to the pool."""
    table: int = -1
    """Row of the runner's tables; -1: not running."""
    done: bool = False
    has_left: bool = False
    """Whether its blocks were released after the end."""

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.draw.prompt)

    @property
    def pending(self) -> int:
        """Tokens that the model has not read yet."""
        return len(self.tokens) - self.computed

    def add(self, chosen: Chosen, text: bytes) -> None:
        """Continue with a token, and put it into the stream."""
        token, draw = chosen.token, self.draw
        ends = token in self.end_ids
        draw.answer.append(token)
        self.tokens.append(token)
        if draw.constraint is not None and not ends:
            draw.constraint.add(token)
        complete = draw.constraint is not None and not ends and draw.constraint.ended
        full = len(self.tokens) >= self.limit
        shown = self.output.add(b"" if ends else text, last=ends or complete or full)
        stopped = self.output.stopped_by
        reason: FinishReason | None = "stop" if ends or complete or stopped else "length" if full else None
        why = stopped if stopped is not None else token if token in draw.params.stop_token_ids else None
        self.done = reason is not None
        self.stream.put(Token(self.index, token, shown, chosen.logprob, chosen.top, reason, why if reason == "stop" else None))

    def end(self, reason: FinishReason) -> None:
        """End the answer without a token: cancelled, or failed."""
        if not self.done:
            self.done = True
            self.stream.put(Token(self.index, None, self.output.add(b"", last=True), finish_reason=reason))
