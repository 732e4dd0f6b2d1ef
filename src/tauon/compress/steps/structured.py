"""`structured`: whole heads, hidden units, channels and blocks are removed, so that every runtime is faster.

Shapes: U units of a group, K inputs of the layer behind it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.compress.base import CompressStep, Phase, Subject
from tauon.compress.parts import Group, PartKind, groups_of, remove_units
from tauon.compress.statistics import input_moments
from tauon.config import Count, Fraction, register
from tauon.errors import DataError

__all__ = ["Structured"]


@register("structured")
class Structured(CompressStep):
    """Remove the units that matter least to the layer behind them: |x| |w| summed over their inputs to it on calibration data, |w| without.

    The weights behind linear layers are then fitted again, by least squares, so that they make up for what was removed.
    """

    phase: ClassVar[Phase] = "structured"

    remove: Fraction = Field(0.25, ge=0, lt=1)
    """Share of the units of each group (heads, hidden units, channels)."""
    what: tuple[PartKind, ...] = ("heads", "hidden", "channels")
    """Kinds of units to remove."""
    blocks: Count = Field(0, ge=0, le=1000)
    """Blocks to remove: those that change their input least on calibration data (ShortGPT, arXiv:2403.03853)."""
    refit: bool = True
    """Fit the layer behind removed units again, where there is calibration data."""

    @classmethod
    def zero(cls) -> Self:
        return cls(remove=0.0)

    def apply(self, subject: Subject) -> dict[str, Any]:
        removed_blocks = _remove_blocks(subject, self.blocks) if self.blocks else []
        if self.remove == 0:
            return {"blocks": removed_blocks, "groups": {}}
        groups = [g for g in groups_of(subject.model) if g.kind in self.what]
        if not groups:
            raise DataError(
                f"structured: {type(subject.model).__name__} has no {' or '.join(self.what)} that can be removed alone. Take low_rank or sparsity."
            )
        done: dict[str, list[int]] = {}
        moments: dict[str, Tensor] = {}
        if subject.calibration is not None:
            moments = input_moments(subject, [name for g in groups for name, _ in g.columns if _is_linear(subject.model, name)])
        for i, group in enumerate(groups):
            subject.progress("structured", i, len(groups))
            keep = self._kept(subject.model, group, moments)
            if self.refit:
                _refit(subject.model, group, keep, moments)
            remove_units(subject.model, group, keep)
            done[group.name] = [len(keep), group.units]
        _shrink_config(subject, groups, done)
        return {"blocks": removed_blocks, "groups": done}

    def _kept(self, model: nn.Module, group: Group, moments: dict[str, Tensor]) -> Tensor:
        """Numbers of the units that stay, ascending. `DataError` if none would."""
        left = group.units - round(self.remove * group.units)
        left -= left % group.multiple
        if left < 1:
            raise DataError(
                f"structured: nothing of {group.name} would be left ({group.units} {group.kind}). Lower remove={self.remove:g}."
            )
        score_GU = _scores(model, group, moments).view(group.multiple, -1)
        best = score_GU.topk(left // group.multiple, 1).indices
        start = torch.arange(group.multiple, device=best.device)[:, None] * score_GU.shape[1]
        return (best + start).flatten().sort().values


def _is_linear(model: nn.Module, name: str) -> bool:
    return type(model.get_submodule(name)) is nn.Linear


@torch.no_grad()
def _scores(model: nn.Module, group: Group, moments: dict[str, Tensor]) -> Tensor:
    score_U = torch.zeros(group.units)
    for name, size in group.columns:
        weight: Any = model.get_submodule(name).weight
        size_K = weight.detach().flatten(2).norm(dim=2).norm(dim=0) if weight.ndim > 2 else weight.detach().norm(dim=0)
        if name in moments:
            size_K = size_K * moments[name].diagonal().sqrt().float()
        score_U = score_U + size_K.square().view(group.units, size).sum(1)
    if not any(name in moments for name, _ in group.columns):
        for name, size in group.rows:
            produced: Any = model.get_submodule(name).weight
            score_U = score_U * produced.detach().flatten(1).norm(dim=1).square().view(group.units, size).sum(1)
        for name in group.norms:
            gain: Any = model.get_submodule(name).weight
            score_U = score_U * gain.detach().square()
    return score_U


@torch.no_grad()
def _refit(model: nn.Module, group: Group, keep_U: Tensor, moments: dict[str, Tensor]) -> None:
    """Change the columns that stay so that the layer's output on calibration data changes least: W_s + W_r H_rs H_ss^-1 (ridge)."""
    for name, size in group.columns:
        if name not in moments or len(keep_U) == group.units:
            continue
        layer: Any = model.get_submodule(name)
        H = moments[name]
        stays = (keep_U[:, None] * size + torch.arange(size)).flatten()
        goes = torch.ones(len(H), dtype=torch.bool)
        goes[stays] = False
        H_ss = H[stays][:, stays]
        H_ss = H_ss + torch.eye(len(stays), dtype=H.dtype) * (1e-3 * H.diagonal().mean() + 1e-12)
        more = layer.weight.double()[:, goes] @ torch.linalg.solve(H_ss, H[stays][:, goes]).t()
        layer.weight[:, stays] += more.to(layer.weight.dtype)


def _shrink_config(subject: Subject, groups: list[Group], done: dict[str, list[int]]) -> None:
    """Change the config's sizes to those of the smaller model, where they are the same in every layer."""
    config = subject.config
    if config is None:
        return
    fields = type(config).model_fields
    changes: dict[str, Any] = {}
    for kind, field in (("heads", "heads"), ("hidden", "mlp_width")):
        found = [(done[g.name], g) for g in groups if g.kind == kind and field in g.fields]
        if field not in fields or not found or len({tuple(sizes) for sizes, _ in found}) > 1:
            continue
        (left, before), _ = found[0]
        if field == "mlp_width":
            changes[field] = left
        elif "kv_heads" in fields and "head_size" in fields:
            heads: Any = config.raw_value("heads")
            width: Any = config.raw_value("width")
            changes |= {"heads": heads // before * left, "kv_heads": left, "head_size": config.raw_value("head_size") or width // heads}
    for field in ("hidden", "channels"):
        if field in fields:
            sizes = [done[g.name][0] for g in groups if field in g.fields]
            if len(sizes) == len(config.raw_value(field)):
                changes[field] = tuple(sizes)
    subject.config = config.model_copy(update=changes)


def _remove_blocks(subject: Subject, count: int) -> list[int]:
    """Remove the blocks that change the direction of their input least; return their numbers. `DataError` if the model has none to spare."""
    model: Any = subject.model
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or subject.config is None or "layers" not in type(subject.config).model_fields:
        raise DataError(f"structured: {type(model).__name__} has no list of equal blocks (or no config); set blocks: 0")
    if count >= len(blocks):
        raise DataError(f"structured: blocks={count} leaves nothing of {len(blocks)} blocks. Remove fewer.")
    change = [0.0] * len(blocks)
    handles = []
    for i, block in enumerate(blocks):

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any, i: int = i) -> None:
            change[i] += float((1 - F.cosine_similarity(args[0].float(), output.float(), dim=-1)).mean())

        handles.append(block.register_forward_hook(hook))
    try:
        subject.run()
    finally:
        for handle in handles:
            handle.remove()
    gone = sorted(range(len(blocks)), key=lambda i: change[i])[:count]
    model.blocks = nn.ModuleList(block for i, block in enumerate(blocks) if i not in gone)
    if hasattr(model, "depth"):
        model.depth = len(model.blocks)
    subject.config = subject.config.model_copy(update={"layers": len(model.blocks)})
    return sorted(gone)
