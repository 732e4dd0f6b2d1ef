"""Reads a model's shard plan: how each parameter is split. Plain data; `tensor.py` applies it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

from tauon.errors import Problem, RecipeError

__all__ = ["BESIDE", "refuse_odd_shards", "shard_of"]

BESIDE: dict[str, dict[str, int | None]] = {
    "colwise": {"lora_a": None, "lora_b": 0, "magnitude": 0},
    "rowwise": {"lora_a": 1, "lora_b": None, "magnitude": None},
}
"""For a layer split like this: the dimension along which its adapter's parameters are split; None: replicated."""


def shard_of(name: str, plan: Mapping[str, str]) -> str:
    """How the plan splits a parameter: the first matching pattern; `replicate` if none matches."""
    return next((how for pattern, how in plan.items() if fnmatch.fnmatchcase(name, pattern)), "replicate")


def refuse_odd_shards(model: nn.Module, plan: Mapping[str, str], size: int, head_counts: Iterable[tuple[str, int]]) -> None:
    """Raise `RecipeError` if `size` processes cannot share this model's matrices; `head_counts`: counts that must divide, by name."""
    cut = [n for n, _ in model.named_parameters() if shard_of(n, plan) in ("colwise", "rowwise")]
    if not cut:
        raise RecipeError([Problem("parallel.tensor", f"is {size}, but this model's shard plan splits no matrix. Use replicate or shard.")])
    for what, count in head_counts:
        if count % size:
            raise RecipeError([Problem("parallel.tensor", f"is {size}, which does not divide the model's {count} {what}. Set a divisor.")])
    for name, p in model.named_parameters():
        how = shard_of(name, plan)
        dim = {"colwise": 0, "rowwise": 1}.get(how)
        leaf = name.rpartition(".")[2]
        if dim is not None and leaf in BESIDE[how]:
            dim = BESIDE[how][leaf]
        if dim is not None and p.ndim > dim and p.shape[dim] % size:
            raise RecipeError(
                [
                    Problem(
                        "parallel.tensor",
                        f"is {size}, which does not divide {name} with size {p.shape[dim]}. Set a divisor, or other sizes.",
                    )
                ]
            )
