"""Logit lens: the next token as it stands after each layer (nostalgebraist 2020): the model's last norm and head on the residual stream.

Early layers often say nothing readable; where the final token takes over shows how deep the model had to compute for it.
Shapes: T tokens, L layers, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.explain.base import untouched

__all__ = ["LensRow", "blocks_of", "logit_lens", "residuals"]


@dataclass(frozen=True)
class LensRow:
    """What one layer would say."""

    layer: str
    """embedding, block 0, block 1, ..., output."""
    tokens: tuple[int, ...]
    """Most probable next tokens, best first."""
    probabilities: tuple[float, ...]
    final: float
    """Probability of the token that the model says in the end."""
    rank: int
    """Rank of that token, 1 for the best."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def blocks_of(model: Any) -> list[nn.Module]:
    """Return the blocks of a language model. `DataError` for another kind of model."""
    blocks = list(getattr(model, "layers", []) or [])
    if not blocks or not callable(getattr(model, "logits", None)) or getattr(model, "embed", None) is None:
        raise DataError(f"{type(model).__name__} is not a language model with blocks and a head: the logit lens and patching do not apply")
    return blocks


@contextmanager
def residuals(model: Any) -> Iterator[list[Tensor]]:
    """Collect, while a forward pass runs inside, the embedding and the output of each block: L + 1 tensors BTD."""
    kept: list[Tensor] = []
    blocks = blocks_of(model)

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        kept.append(output.detach())

    def keep_first(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.append(inputs[0].detach())

    handles = [blocks[0].register_forward_pre_hook(keep_first), *(block.register_forward_hook(keep) for block in blocks)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def logit_lens(model: Any, tokens_T: Tensor, *, position: int = -1, best: int = 3) -> list[LensRow]:
    """Return what each layer would say after the token at `position`; the last row is the model's answer.

    Args:
        model: a language model of `tauon.models`.
        tokens_T: token ids (int64).
        position: after which token.
        best: number of tokens for each layer.

    Raises:
        DataError: not a language model.
    """
    with untouched(model), torch.no_grad(), residuals(model) as kept:
        out = model(tokens_T.unsqueeze(0))[0, position]
        final = model.logits(out).float().softmax(-1)
        said = int(final.argmax())
        norm = model.norm if model.norm is not None else nn.Identity()
        states = [norm(hidden[0, position]) for hidden in kept]
        names = ["embedding", *(f"block {i}" for i in range(len(states) - 1))]
        rows = [_row(name, model.logits(state).float().softmax(-1), said, best) for name, state in zip(names, states, strict=True)]
    return [*rows[:-1], _row("output", final, said, best)] if rows else []


def _row(layer: str, probabilities_V: Tensor, said: int, best: int) -> LensRow:
    top = probabilities_V.topk(min(best, len(probabilities_V)))
    rank = int((probabilities_V > probabilities_V[said]).sum()) + 1
    return LensRow(layer, tuple(top.indices.tolist()), tuple(float(p) for p in top.values), float(probabilities_V[said]), rank)
