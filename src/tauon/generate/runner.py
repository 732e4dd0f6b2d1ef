"""One forward pass over the tokens of many texts: parts of prompts and single new tokens together, as rows of one batch.

Knows model, cache and positions; nothing of requests, sampling or order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from tauon.generate.exact_linear import ROWS, shared_copy, with_exact_rows
from tauon.generate.paged_cache import PagedCache, row_groups
from tauon.models import GPT

__all__ = ["ModelRunner", "Piece"]

_SHORT = 7
"""Texts of up to 2^7 positions are one group; longer ones are grouped by powers of two."""


@dataclass(frozen=True)
class Piece:
    """New tokens of one text."""

    table: int
    """Row of `ModelRunner.tables`."""
    start: int
    """Position of the first of them."""
    tokens: Sequence[int]


class ModelRunner:
    """A model with its cache. `exact`: a row's result does not depend on the rest of the batch."""

    def __init__(self, model: GPT, *, blocks: int, block_size: int, texts: int, exact: bool = True) -> None:
        """`texts`: most texts at once."""
        self.model: GPT
        self.model, self.exact = with_exact_rows(model) if exact else (shared_copy(model), False)
        device = model.embed.weight.device
        self.cache = PagedCache(model, blocks, block_size)
        self.tables = torch.zeros(texts, model.seq_len, dtype=torch.int64, device=device)
        """Place in the cache of each position of each text."""
        self.heads = model.layers[0].attention.heads

    def set_table(self, row: int, first: int, blocks: Sequence[int]) -> None:
        """Set the blocks of a text, from its block number `first`."""
        size = self.cache.block_size
        places = (torch.tensor(blocks)[:, None] * size + torch.arange(size)).reshape(-1)
        end = min((first + len(blocks)) * size, self.tables.shape[1])
        self.tables[row, first * size : end] = places[: end - first * size].to(self.tables.device)

    @torch.inference_mode()
    def logits(self, pieces: Sequence[Piece], wanted: Sequence[bool]) -> Tensor:
        """Write the keys and values of all pieces, and return the logits after each wanted piece, float32 on the CPU, in their order."""
        model, window = self.model, self.model.window
        order = sorted(range(len(pieces)), key=lambda i: (self._bucket(pieces[i]), i))
        counts = [len(pieces[i].tokens) for i in order]
        ends = torch.tensor(counts).cumsum(0).tolist()
        bounds = [
            e for j, e in enumerate(ends) if j + 1 == len(ends) or self._bucket(pieces[order[j]]) != self._bucket(pieces[order[j + 1]])
        ]
        N = ends[-1]
        padding = -N % ROWS
        tokens = torch.tensor([*chain.from_iterable(pieces[i].tokens for i in order), *[0] * padding])
        sequence = torch.tensor([t for i, c in zip(order, counts, strict=True) for t in (pieces[i].table,) * c])
        starts = (range(pieces[i].start, pieces[i].start + c) for i, c in zip(order, counts, strict=True))
        position = torch.tensor([*chain.from_iterable(starts), *[0] * padding])
        device = self.tables.device
        tokens, sequence, position = tokens.to(device), sequence.to(device), position.to(device)
        groups = row_groups(self.tables, sequence, position[:N], bounds, window)
        self.cache.start_step(self.tables[sequence, position[:N]], groups, self.heads)
        hidden = self._hidden(tokens, position)
        row_after = {i: e - 1 for i, e in zip(order, ends, strict=True)}
        last = [row_after[i] for i in range(len(pieces)) if wanted[i]]
        if not last:
            return torch.empty(0, model.embed.num_embeddings)
        picked = torch.tensor(last + last[:1] * (-len(last) % ROWS), device=device)
        return model.logits(hidden[picked])[: len(last)].float().cpu()

    def _hidden(self, tokens_N: Tensor, position_N: Tensor) -> Tensor:
        """Hidden states ND after the last norm."""
        model = self.model
        x_BTD = model.embed(tokens_N)[None]
        rotate = None
        if model.rope is not None:
            rotate = (model.cos_TK[position_N], model.sin_TK[position_N])
        elif model.positions is not None:
            x_BTD = x_BTD + model.positions(position_N)
        for i, block in enumerate(model.layers):
            x_BTD = block(x_BTD, rotate, None, (self.cache, i))
        hidden: Tensor = model.norm(x_BTD)[0]
        return hidden

    def _bucket(self, piece: Piece) -> int:
        end = piece.start + len(piece.tokens)
        return max(_SHORT, (min(end, self.model.window or end) - 1).bit_length())
