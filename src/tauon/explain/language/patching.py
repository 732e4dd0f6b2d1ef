"""Activation patching: which activations carry the difference between two prompts (Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022,
arXiv:2202.05262; Zhang & Nanda 2024, arXiv:2309.16042).

Two prompts of equal length lead to two answers. One activation of the first (the residual stream after a layer, at one position) is put into the
run of the second; how far the answer moves back is the effect of that place: 0 nothing, 1 all of it.
Shapes: T tokens, L + 1 places in depth (embedding, then each block), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.explain.base import Work, untouched
from tauon.explain.language.lens import blocks_of, residuals

__all__ = ["Patching", "patch_activations"]


@dataclass(frozen=True)
class Patching:
    """The effect of each patched activation."""

    effect: Tensor
    """(L + 1) T: share of the difference that comes back; may leave 0 to 1."""
    answers: tuple[int, int]
    """The tokens whose logits are compared: of the first prompt, of the second."""
    difference: tuple[float, float]
    """logit(first answer) - logit(second answer), after the first prompt and after the second."""
    note: str = (
        "share of the difference of both answers' logits that comes back when one activation of the first prompt is put into the second"
    )

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, rounded to 4 digits."""
        rows = [[float(f"{v:.4g}") for v in row] for row in self.effect.tolist()]
        return {"effect": rows, "answers": list(self.answers), "difference": list(self.difference), "note": self.note}


def patch_activations(
    model: Any, first_T: Tensor, second_T: Tensor, *, answers: tuple[int, int] | None = None, work: Work | None = None
) -> Patching:
    """Patch the residual stream of the first prompt into the run of the second, one layer and position at a time.

    Args:
        model: a language model of `tauon.models`.
        first_T: token ids of the prompt whose answer should come back.
        second_T: token ids of the other prompt, of the same length.
        answers: the tokens whose logits are compared; None: the most probable next token of each prompt.
        work: how to compute.

    Raises:
        DataError: prompts of different lengths, or prompts between which the model sees no difference.
    """
    if first_T.shape != second_T.shape or first_T.ndim != 1 or not len(first_T):
        raise DataError(f"the prompts have {len(first_T)} and {len(second_T)} tokens, and patching needs the same number of tokens in both")
    work = work or Work()
    with untouched(model), torch.no_grad():
        with residuals(model) as kept:
            logits = torch.stack([model.logits(model(tokens.unsqueeze(0))[0, -1]).float() for tokens in (first_T, second_T)])
        clean, corrupted = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        a, b = answers or (int(logits[0].argmax()), int(logits[1].argmax()))
        before, after = float(logits[0, a] - logits[0, b]), float(logits[1, a] - logits[1, b])
        if a == b or abs(before - after) < 1e-6:
            raise DataError(
                "the model gives both prompts the same answer, so there is no difference to trace. Choose prompts with different answers."
            )
        T = len(first_T)
        rows = []
        for depth in range(len(clean)):
            for part in work.chunks(T):
                rows.append(
                    _patched(model, second_T, depth, torch.arange(part.start, part.stop), clean[depth][0], corrupted[depth][0])[:, [a, b]]
                )
        found = torch.cat(rows).view(len(clean), T, 2).cpu()
    effect = (found[..., 0] - found[..., 1] - after) / (before - after)
    return Patching(effect, (a, b), (before, after))


def _patched(model: Any, tokens_T: Tensor, depth: int, positions_M: Tensor, clean_TD: Tensor, corrupted_TD: Tensor) -> Tensor:
    """Return the last logits MV of the second prompt with one position each taken from the first, at one depth."""
    blocks = blocks_of(model)
    M = len(positions_M)
    state = corrupted_TD.expand(M, -1, -1).clone()
    rows = torch.arange(M, device=state.device)
    state[rows, positions_M.to(state.device)] = clean_TD[positions_M.to(state.device)]
    hook: Callable[..., Any]
    if depth == 0:

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            return (state, *inputs[1:])

        handle = blocks[0].register_forward_pre_hook(hook)
    else:

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            return state

        handle = blocks[depth - 1].register_forward_hook(hook)
    try:
        out: Tensor = model.logits(model(tokens_T.expand(M, -1))[:, -1]).float()
    finally:
        handle.remove()
    return out
