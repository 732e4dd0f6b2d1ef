"""BERT: a transformer encoder (Devlin et al. 2018, arXiv:1810.04805). LayerNorm behind each part, learned positions, GELU, biases.

Two heads. Without classes: masked language modelling; forward returns hidden states after the head's transform, which the task
multiplies by `head.weight` where a token was hidden. With classes: the first position, pooled, gives logits.

Attention stays inside a segment; padding is the segment -1, which nothing else sees. Sentence pairs are not told apart: every token
is of type 0. Shapes: B batch, T time, D width, H heads, K head size, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.attention import attend_heads
from tauon.models.base import Model, Size, block_number
from tauon.models.families.gpt import TransformerConfig
from tauon.models.families.transformer import MLP, Attention, as_bias, positions_in_segments
from tauon.models.randomness import attention, dropout
from tauon.types import DataSpec

__all__ = ["BERT", "BERTConfig"]


@register("bert")
class BERTConfig(TransformerConfig):
    """BERT's encoder, with a head for hidden tokens, or for classes where the data has some. Defaults are BERT-base's."""

    input_kind = ("masked-tokens", "labelled-text")

    layers: Count = Field(12, ge=1, le=10_000)
    width: Size = 768
    heads: Size = 12
    mlp_width: Size | None = None
    """Hidden size of the MLP. Left out: 4 x width."""
    types: Size = 2
    """Token types that there are weights for; all tokens are of type 0."""
    norm_eps: float = Field(1e-12, gt=0, lt=1)
    """Added to the variance in every LayerNorm."""
    dropout: Fraction = Field(0.1, ge=0, lt=1)
    """Share of activations and of attention dropped in training."""
    outputs: Size | None = None
    """Classes. Left out: the data's; where it has none, the head is for hidden tokens."""

    def resolve(self, spec: DataSpec) -> Self:
        found = super().resolve(spec)
        if spec.outputs is None and self.outputs is not None:
            raise RecipeError([Problem("model.outputs", f"{self.outputs}, but this data has no classes. Leave it out.")])
        if self.outputs not in (None, spec.outputs):
            raise RecipeError([Problem("model.outputs", f"{self.outputs}, but the data has {spec.outputs}. Leave it out.")])
        return found.model_copy(update={"outputs": spec.outputs})

    def build(self) -> BERT:
        vocab, seq_len = self.sizes
        blocks = [
            EncoderBlock(self.width, self.heads, self.mlp_width or 4 * self.width, self.dropout, self.norm_eps) for _ in range(self.layers)
        ]
        return BERT(blocks, vocab, seq_len, self.width, self.types, self.norm_eps, self.dropout, self.outputs)


class EncoderAttention(Attention):
    """Self-attention in which every position sees every other that the mask allows."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, heads, bias=True, qk_norm=False)
        self.dropout = dropout

    def attend(
        self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, rotate: Any, mask: Tensor | None, cache: Any = None
    ) -> Tensor:  # fmt: skip
        q, k, v = q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        share = self.dropout if self.training else 0.0
        if share == 0:
            return attend_heads(q, k, v, mask, kernel=self.kernel).transpose(1, 2)
        return attention(q, k, v, attn_mask=mask, dropout_p=share).transpose(1, 2)


class EncoderBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.attention = EncoderAttention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, "gelu-exact", bias=True)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = dropout

    def forward(self, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
        x_BTD = self.attention_norm(x_BTD + dropout(self.attention(x_BTD, None, mask), self.dropout, self.training))
        out: Tensor = self.mlp_norm(x_BTD + dropout(self.mlp(x_BTD), self.dropout, self.training))
        return out


class BERT(Model):
    """Tokens BT -> logits BC of classes; without classes, hidden states BTD for `logits`."""

    shard_plan = {  # noqa: RUF012 - plain data, read only
        "embed.weight": "vocab",
        "*norm*": "replicate",
        "*.q.*": "colwise",
        "*.k.*": "colwise",
        "*.v.*": "colwise",
        "*.out.*": "rowwise",
        "*.up.*": "colwise",
        "*.down.*": "rowwise",
        "*": "replicate",
    }

    def __init__(
        self, blocks: list[EncoderBlock], vocab: int, seq_len: int, width: int, types: int, eps: float, dropout: float, outputs: int | None
    ) -> None:
        super().__init__()
        self.seq_len, self.depth, self.dropout, self.outputs = seq_len, len(blocks), dropout, outputs
        self.embed = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(seq_len, width)
        self.types = nn.Embedding(types, width)
        self.embed_norm = nn.LayerNorm(width, eps=eps)
        self.blocks = nn.ModuleList(blocks)
        if outputs is None:
            self.transform = nn.Linear(width, width)
            self.transform_norm = nn.LayerNorm(width, eps=eps)
            self.head = nn.Linear(width, vocab)
            self.head.weight = self.embed.weight
            self.modules_to_save = ("transform*", "head.bias")
        else:
            self.pooler = nn.Linear(width, width)
            self.head = nn.Linear(width, outputs)
            self.modules_to_save = ("pooler.*", "head.*")

    @property
    def layers(self) -> list[EncoderBlock]:
        """The blocks, in order."""
        return cast(list[EncoderBlock], list(self.blocks))

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Logits BC, or hidden states BTD. A position sees its own segment, nothing else; padding is segment -1."""
        T = tokens_BT.shape[1]
        if self.seq_len < T:
            raise ValueError(f"{T} tokens, the model takes at most seq_len={self.seq_len}")
        at = torch.arange(T, device=tokens_BT.device).expand_as(tokens_BT) if segments_BT is None else positions_in_segments(segments_BT)
        x_BTD = self.embed(tokens_BT) + self.positions(at) + self.types(torch.zeros_like(tokens_BT))
        x_BTD = dropout(self.embed_norm(x_BTD), self.dropout, self.training)
        mask = None if segments_BT is None else segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
        if mask is not None and mask.device.type == "cuda":
            mask = as_bias(mask, torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_BTD.dtype)
        for block in self.layers:
            x_BTD = block(x_BTD, mask)
        if self.outputs is None:
            out: Tensor = self.transform_norm(F.gelu(self.transform(x_BTD)))
            return out
        pooled_BD = dropout(torch.tanh(self.pooler(x_BTD[:, 0])), self.dropout, self.training)
        logits_BC: Tensor = self.head(pooled_BD)
        return logits_BC

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ...V of what each position hides, from hidden states ...D."""
        out: Tensor = self.head(hidden)
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Normal(0, 0.02), biases zero, norms one."""
        if p.ndim == 1:
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.ones_(p)
        else:
            nn.init.normal_(p, 0.0, 0.02, generator=g)

    def attentions(self) -> list[nn.Module]:
        # Classes are read at the first position, which only one of the processes that share a sequence has.
        return [block.attention for block in self.layers] if self.outputs is None else []

    def head_counts(self) -> list[tuple[str, int]]:
        return [("heads", self.layers[0].attention.heads)]

    def blocks_to_compile(self) -> list[nn.Module]:
        return list(self.layers)

    def layer_of(self, name: str) -> tuple[int, int]:
        return block_number(name, self.depth)

    def flops_per_example(self, spec: DataSpec) -> float:
        """(6 N + 12 L T D) T: N weights of the blocks, attention over the whole square; the head only where tokens are hidden (15%)."""
        T, D = spec.seq_len or self.seq_len, self.embed.embedding_dim
        N = sum(p.numel() for b in self.blocks for p in b.parameters() if p.ndim == 2)
        head = 0.15 * T * self.embed.weight.numel() if self.outputs is None else D * (D + self.outputs)
        return (6.0 * N + 12.0 * self.depth * T * D) * T + 6.0 * head

    def activations_per_example(self, spec: DataSpec) -> float:
        """24 D a layer and token, 8 D at the ends; logits of the hidden tokens."""
        T, D = spec.seq_len or self.seq_len, self.embed.embedding_dim
        logits = 0.15 * T * self.embed.num_embeddings * 2 if self.outputs is None else 0.0
        return T * D * (24.0 * self.depth + 8.0) + logits
