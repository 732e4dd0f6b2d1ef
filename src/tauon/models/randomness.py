"""Random draws inside a model: dropout, drop path, masks. Models use these functions instead of torch's.

Outside `keyed_rows` they are torch's own calls, bit for bit. Inside, which private training opens around each loss, a draw of an example is a
function of the example's seed, of the call, and of the place of the number inside the example: not of where the example stands in the batch,
nor of which others are there. So one example more or less leaves the masks of all others as they are, and clipping bounds all that it changes.

The bits are two rounds of SplitMix64's finaliser (Steele, Lea & Flood 2014) over (seed, call, place). They are no cipher and need not be: the
guarantee holds for any masks, known ones too, as long as one example's do not depend on another's. The number of the call comes from torch's
generator of the CPU, which activation checkpointing puts back before it computes again, so that both times the masks are the same.

Shape legend: B examples; x is (rows, ...) with rows = B, or a multiple of it whose rows of one example lie side by side (heads, columns).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.errors import RecipeError

__all__ = [
    "KeyedDropout",
    "Rows",
    "attention",
    "dropout",
    "first_row_alone",
    "key_layers",
    "keyed_rows",
    "part_of_rows",
    "seeds_of_rows",
    "uniform_rows",
]

GAMMA, M1, M2 = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""SplitMix64's constants as signed numbers: 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB."""
LANES = 2**16
"""Values of the 16 bits that decide about one number of an activation: a share dropped is rounded to so many parts."""


@dataclass
class Rows:
    """State of the draws inside `keyed_rows`."""

    seeds_B: Tensor | None
    """Seed of each example that the model gets; None: the examples are unknown, and every draw is refused."""
    call_seed: int = 0
    accelerator: Tensor | None = None
    """Initial state of the accelerator's generator."""
    calls: int = 0
    """Number of draws from the CPU's generator."""

    def refuse_others(self) -> None:
        """Raise `RecipeError`, after the forward pass, if anything was drawn other than through this file."""
        if self.accelerator is not None:
            assert self.seeds_B is not None
            moved = not torch.equal(self.accelerator, torch.cuda.get_rng_state(self.seeds_B.device))
        else:
            moved = False
        if moved or not torch.equal(torch.get_rng_state(), _state_after(self.call_seed, self.calls)):
            raise RecipeError(
                "the model or the task draws random numbers itself (F.dropout, torch.rand, attention with dropout). Such draws depend on the position "
                "in the batch: one more example changes those of the others, so clipping does not bound its influence. Use dropout, attention and "
                "uniform_rows of tauon.models.randomness instead of torch's, or set it to 0."
            )


_KEYED = False
"""Whether draws are keyed: what compiled code is guarded by."""
_rows: Rows | None = None
"""Of the process and not of a thread: the backward pass of an accelerator computes again in a thread of its own."""


# ---------------------------------------------------------------------------------------------- what models call


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Like `F.dropout(x, p, training)`: elements become 0 with probability `p`, the rest is scaled by 1 / (1 - p)."""
    if not _KEYED:
        return F.dropout(x, p, training)
    if not training or p == 0 or not x.numel():
        return x
    return x * 0 if p == 1 else _dropout(x, p)


def attention(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """Like `F.scaled_dot_product_attention`. Keyed dropout computes the probabilities explicitly: fused kernels do not accept masks."""
    if not _KEYED or dropout_p == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    seen = scores.softmax(-1)
    return dropout(seen.to(v.dtype), dropout_p) @ v


def uniform_rows(count: int, device: torch.device) -> Tensor:
    """Return (count) uniform numbers in [0, 1), float32, one for each row, like `torch.rand(count)`."""
    return _uniform(count, device) if _KEYED else torch.rand(count, device=device)


class KeyedDropout(nn.Dropout):
    """`nn.Dropout` whose draws can be keyed."""

    def forward(self, input: Tensor) -> Tensor:
        """Like torch's dropout."""
        return dropout(input, self.p, self.training)


def key_layers(model: nn.Module) -> None:
    """Make torch's dropout layers in `model` draw through this file; nothing changes outside `keyed_rows`.

    Raises `RecipeError` that names each layer whose own draws cannot be replaced.
    """
    wrong = []
    for name, layer in model.named_modules():
        if type(layer) is nn.Dropout:
            layer.__class__ = KeyedDropout
        elif said := _draws_itself(layer):
            wrong.append(f"{name or type(layer).__name__} is a {type(layer).__name__} with {said}")
    if wrong:
        raise RecipeError(
            f"{'; '.join(wrong)}: torch draws its mask by the position in the batch, so one more example changes the masks of the others, which "
            "a private step cannot allow. Set it to 0, and use nn.Dropout, or dropout of tauon.models.randomness, after the layer."
        )


def _draws_itself(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.modules.dropout._DropoutNd) and not isinstance(layer, KeyedDropout) and layer.p > 0:
        return f"p={layer.p:g}"
    if isinstance(layer, nn.RNNBase) and layer.dropout > 0 and layer.num_layers > 1:
        return f"dropout={layer.dropout:g}"
    if isinstance(layer, nn.MultiheadAttention) and layer.dropout > 0:
        return f"dropout={layer.dropout:g}"
    return f"lower={layer.lower:g}, upper={layer.upper:g}" if isinstance(layer, nn.RReLU) else None


# ---------------------------------------------------------------------------------------------- what private training opens


@contextmanager
def keyed_rows(seeds_B: Tensor | None, call_seed: int) -> Iterator[Rows]:
    """Inside, draws are functions of `seeds_B` (int64, one for each example that the model is given). Sets torch's generators to `call_seed`,
    from which calls get their numbers: with one seed for all microbatches of a step, an example's draws do not depend on which it is in.

    Forward and backward pass belong inside: activation checkpointing computes again in the second.
    """
    _keep_out_of_compiled_code()
    torch.manual_seed(call_seed)
    on_gpu = seeds_B is not None and seeds_B.is_cuda
    rows = Rows(seeds_B, call_seed, torch.cuda.get_rng_state(seeds_B.device) if on_gpu and seeds_B is not None else None)
    with _as(rows):
        yield rows


@contextmanager
def _as(rows: Rows | None) -> Iterator[None]:
    global _KEYED, _rows
    was = _KEYED, _rows
    _KEYED, _rows = rows is not None, rows
    try:
        yield
    finally:
        _KEYED, _rows = was


def seeds_of_rows() -> Tensor | None:
    """Return the seeds of the examples that the model gets now; None if draws are not keyed, or nothing may be drawn."""
    return None if _rows is None else _rows.seeds_B


@contextmanager
def first_row_alone() -> Iterator[None]:
    """Inside the context, the model gets only the first example."""
    with _as(None if _rows is None else Rows(None if _rows.seeds_B is None else _rows.seeds_B[:1])):
        yield


@contextmanager
def part_of_rows(seeds: Tensor | None) -> Iterator[None]:
    """Inside the context, a layer gets only the examples of `seeds`: a part of the batch, under vmap. None: unchanged."""
    if seeds is None or _rows is None:
        yield
        return
    whole, part = _rows, Rows(seeds, calls=_rows.calls)
    with _as(part):
        yield
    whole.calls = part.calls


def _state_after(seed: int, calls: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(calls):
        _next(generator)
    return generator.get_state()


def _next(generator: torch.Generator | None = None) -> Tensor:
    return torch.randint(2**62, (), generator=generator)


# ---------------------------------------------------------------------------------------------- the draws


def _dropout(x: Tensor, p: float) -> Tensor:
    h_B = _call()
    rows, B = len(x), len(h_B)
    if rows % B or not B:
        raise RecipeError(
            f"dropout of {rows} rows for {B} examples: it is unknown which rows belong to which example, and each example needs its own mask. "
            "Keep the batch in the first dimension of the input of dropout."
        )
    each = x.numel() // B
    least = min(max(1, round(p * LANES)), LANES - 1)
    bits = _mixed(h_B[:, None] ^ _places(-(-each // 4), x.device))
    dropped = (bits.view(torch.int16)[:, :each] < least - LANES // 2).view(x.shape)
    return x.masked_fill(dropped, 0) * (LANES / (LANES - least))


def _uniform(count: int, device: torch.device) -> Tensor:
    h_B = _call()
    if count % len(h_B):
        raise RecipeError(
            f"{count} draws for {len(h_B)} examples: it is unknown which belong to which example. Draw one for each example of the batch."
        )
    bits = _mixed(h_B[:, None] ^ _places(count // len(h_B), h_B.device))
    return ((bits >> 40) & 0xFFFFFF).float().mul_(2**-24).view(count).to(device)


def _keep_out_of_compiled_code() -> None:
    """Exclude keyed draws from compilation. At first use, not at import: torch's compiler takes seconds to load."""
    global _dropout, _uniform
    if not hasattr(_dropout, "_torchdynamo_disable"):
        _dropout, _uniform = torch.compiler.disable(_dropout), torch.compiler.disable(_uniform)


def _call() -> Tensor:
    """Return (B) a number for each example, different at each call."""
    assert _rows is not None
    if _rows.seeds_B is None:
        raise RecipeError(
            "the model draws random numbers, but the batch does not say which examples its rows are, and each example needs its own draws. Set "
            "Batch.draws or Batch.index (a PrivateLoader does), or set dropout to 0."
        )
    _rows.calls += 1
    return _mixed(_mixed(_rows.seeds_B) ^ _next())


def _places(count: int, device: torch.device) -> Tensor:
    return _mixed(torch.arange(1, count + 1, device=device) * GAMMA)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on signed numbers: products wrap around, shifts fill up with zeros."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)).mul_(M1)
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)).mul_(M2)
    return z ^ ((z >> 31) & 0x1FFFFFFFF)
