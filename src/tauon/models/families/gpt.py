"""GPT: a causal transformer (Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019) in two layouts.

`gpt`   RMSNorm before each part, rotary positions (RoPE, arXiv:2104.09864), QK-norm (arXiv:2302.05442), grouped-query
        attention (arXiv:2305.13245), SwiGLU (arXiv:2002.05202) or squared ReLU (arXiv:2109.08668). `llama`, `mistral`, `qwen2`
        and `qwen3` are the same with what those families chose: their published weights load (`formats.py`).
`gpt2`  LayerNorm, learned positions, GELU (tanh), biases, tied head, as GPT-2 has them.

Forward returns the last hidden states, not logits: the task multiplies by `head.weight` chunk by chunk, so that the
logits never exist whole. Does not know about loss, sampling or sharding.

Shapes: B batch, T time, D width, H heads, G key-value heads, K head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, ModelConfig, Size, block_number
from tauon.models.families.transformer import (
    MLP,
    Attention,
    Block,
    RMSNorm,
    RopeScaling,
    as_bias,
    document_mask,
    positions_in_segments,
    rope_frequencies,
    window_mask,
)
from tauon.models.kv_cache import KVCache
from tauon.types import DataSpec

__all__ = ["GPT", "GPT2Config", "GPTConfig", "LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config"]


class TransformerConfig(ModelConfig):
    """Sizes that both layouts share."""

    input_kind: ClassVar[str | tuple[str, ...]] = ("tokens", "chat", "pairs")

    layers: Count = Field(6, ge=1, le=10_000)
    """Number of blocks."""
    width: Size = 384
    """Size of the residual stream, D."""
    heads: Size = 6
    """Query heads, H."""
    vocab: Size | None = None
    """Token ids, V. Left out: the tokenizer's."""
    seq_len: Size | None = None
    """Longest sequence in tokens. Left out: the data's."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of activations dropped after attention and after the MLP, in training."""

    def problems(self) -> Iterator[tuple[str, str]]:
        width, heads = self.raw_value("width"), self.raw_value("heads")
        if width % heads and self.__dict__.get("head_size") is None:
            yield "heads", f"{heads} heads do not divide width {width}. Take a divisor of {width}."

    def resolve(self, spec: DataSpec) -> Self:
        wrong = []
        if spec.vocab is None or spec.seq_len is None:
            wrong.append(
                Problem(
                    "model.kind", f"{self.kind_} reads tokens, and this data has none. Set task: language-modelling, or take another model."
                )
            )
        else:
            if self.vocab is not None and self.vocab < spec.vocab:
                wrong.append(
                    Problem(
                        "model.vocab", f"{self.vocab} is less than the tokenizer's {spec.vocab} ids. Leave it out, or set {spec.vocab}."
                    )
                )
            if self.seq_len is not None and self.seq_len < spec.seq_len:
                wrong.append(
                    Problem(
                        "data.seq_len", f"{spec.seq_len} is longer than the model's {self.seq_len}. Shorten it, or raise model.seq_len."
                    )
                )
        if wrong:
            raise RecipeError(wrong)
        return self.model_copy(update={"vocab": self.vocab or spec.vocab, "seq_len": self.seq_len or spec.seq_len})

    @property
    def sizes(self) -> tuple[int, int]:
        """(vocab, seq_len), once resolved."""
        if self.vocab is None or self.seq_len is None:
            raise RecipeError(
                [Problem("model", "vocab and seq_len are not known yet: resolve the config against the data first, or set both.")]
            )
        return self.vocab, self.seq_len


@register("gpt")
class GPTConfig(TransformerConfig):
    """A modern GPT: RMSNorm, RoPE, QK-norm, grouped-query attention, no biases."""

    kv_heads: Size | None = None
    """Key-value heads, G (grouped-query attention). Left out: as many as heads."""
    head_size: Size | None = None
    """Dimensions of a head, K. Left out: width / heads."""
    mlp: Literal["swiglu", "relu2"] = "relu2"
    """`swiglu`: gated, three matrices; `relu2`: squared ReLU, two."""
    mlp_width: Size | None = None
    """Hidden size of the MLP. Left out: 4 x width, or 8/3 x width rounded up to 64 for `swiglu` (the same number of weights)."""
    qk_norm: bool = True
    """RMS-normalise queries and keys in each head: keeps attention logits bounded in bf16."""
    qkv_bias: bool = False
    """Biases of queries, keys and values."""
    norm_eps: float = Field(1e-6, gt=0, lt=1)
    """Added to the mean square in every RMSNorm."""
    rope_base: float = Field(10_000.0, gt=1)
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Slower frequencies for longer sequences than those first trained on. Left out: none."""
    window: Size | None = None
    """A position sees this many positions, itself included (sliding window). Left out: all before it."""
    tied: bool = False
    """Use the embedding as the output head, too."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        width, heads, kv, size = self.raw_value("width"), self.raw_value("heads"), self.raw_value("kv_heads"), self.raw_value("head_size")
        if kv is not None and heads % kv:
            yield "kv_heads", f"{kv} key-value heads do not divide {heads} heads. Take a divisor of {heads}."
        if size is not None and size % 2:
            yield "head_size", f"{size} is odd; rotary positions need an even head size."
        if size is None and width % heads == 0 and (width // heads) % 2:
            yield "heads", f"width {width} / heads {heads} = {width // heads} is odd; rotary positions need an even head size."

    def build(self) -> GPT:
        hidden = self.mlp_width or (4 * self.width if self.mlp == "relu2" else -(-8 * self.width // 3 // 64) * 64)
        vocab, seq_len = self.sizes
        size, eps = self.head_size or self.width // self.heads, self.norm_eps
        blocks = [
            Block(
                norms=(RMSNorm(self.width, eps), RMSNorm(self.width, eps)),
                attention=Attention(
                    self.width, self.heads, self.kv_heads or self.heads, bias=self.qkv_bias, qk_norm=self.qk_norm, head_size=size,
                    out_bias=False, eps=eps,
                ),
                mlp=MLP(self.width, hidden, self.mlp, bias=False),
                dropout=self.dropout,
            )
            for _ in range(self.layers)
        ]  # fmt: skip
        return GPT(
            blocks, RMSNorm(self.width, eps), vocab, seq_len, self.width, tied=self.tied, rope=(size, self.rope_base, self.rope_scaling),
            window=self.window,
        )  # fmt: skip


class _PublishedShape(GPTConfig):
    mlp: Literal["swiglu", "relu2"] = "swiglu"
    qk_norm: bool = False


@register("llama")
class LlamaConfig(_PublishedShape):
    """GPT as in Llama 1 to 3 (arXiv:2302.13971, 2407.21783): SwiGLU, no QK-norm."""

    norm_eps: float = Field(1e-5, gt=0, lt=1)


@register("mistral")
class MistralConfig(_PublishedShape):
    """GPT as in Mistral 7B (arXiv:2310.06825): as Llama, with a sliding window where `window` is set."""

    norm_eps: float = Field(1e-5, gt=0, lt=1)


@register("qwen2")
class Qwen2Config(_PublishedShape):
    """GPT as in Qwen 2 and 2.5 (arXiv:2407.10671): as Llama, with biases of queries, keys and values."""

    qkv_bias: bool = True
    rope_base: float = Field(1_000_000.0, gt=1)


@register("qwen3")
class Qwen3Config(_PublishedShape):
    """GPT as in Qwen 3 (arXiv:2505.09388): as Llama, with QK-norm, and heads of a size of their own."""

    qk_norm: bool = True
    rope_base: float = Field(1_000_000.0, gt=1)


@register("gpt2")
class GPT2Config(TransformerConfig):
    """GPT-2's layout: LayerNorm, learned positions, GELU, biases, tied head. Defaults are GPT-2 small's."""

    layers: Count = Field(12, ge=1, le=10_000)
    width: Size = 768
    heads: Size = 12

    def build(self) -> GPT:
        vocab, seq_len = self.sizes
        blocks = [
            Block(
                norms=(nn.LayerNorm(self.width), nn.LayerNorm(self.width)),
                attention=Attention(self.width, self.heads, self.heads, bias=True, qk_norm=False),
                mlp=MLP(self.width, 4 * self.width, "gelu", bias=True),
                dropout=self.dropout,
            )
            for _ in range(self.layers)
        ]
        return GPT(blocks, nn.LayerNorm(self.width), vocab, seq_len, self.width, tied=True, rope=None)


class GPT(Model):
    """Tokens BT -> last hidden states BTD; `logits` multiplies by the head."""

    shard_plan = {  # noqa: RUF012 - plain data, read only
        "embed.weight": "vocab",
        "head.weight": "vocab",
        "positions.weight": "replicate",
        "*.q_norm.*": "per-head",
        "*.k_norm.*": "per-head",
        "*norm*": "replicate",
        "*.q.*": "colwise",
        "*.k.*": "colwise",
        "*.v.*": "colwise",
        "*.out.*": "rowwise",
        "*.up.*": "colwise",
        "*.gate.*": "colwise",
        "*.down.*": "rowwise",
    }

    def __init__(
        self, blocks: list[Block], norm: nn.Module, vocab: int, seq_len: int, width: int, *, tied: bool,
        rope: tuple[int, float, RopeScaling | None] | None, window: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.seq_len, self.rope, self.depth, self.tied, self.window = seq_len, rope, len(blocks), tied, window
        self.embed = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(seq_len, width) if rope is None else None
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        if rope is not None:
            size = rope[0] // 2
            self.cos_TK: Tensor
            self.sin_TK: Tensor
            self.register_buffer("cos_TK", torch.empty(seq_len, size), persistent=False)
            self.register_buffer("sin_TK", torch.empty(seq_len, size), persistent=False)

    @property
    def layers(self) -> list[Block]:
        """The blocks, in order; of a pipeline's process, those that it keeps."""
        return cast(list[Block], list(self.blocks.children()))

    def keep_stages(self, stages: list[tuple[int, int]]) -> list[Model]:
        if self.tied:
            raise RecipeError(
                [Problem("parallel.pipeline", "the embedding is also the output head, but they are in different stages. "
                         "Set model.tied=false (gpt), or use replicate or shard.")]
            )  # fmt: skip
        all_blocks = list(self.blocks)
        kept = sorted({i for start, stop in stages for i in range(start, stop)})
        self.blocks = nn.ModuleDict({str(i): all_blocks[i] for i in kept})  # type: ignore[assignment]
        parts: list[Model] = [self._part(all_blocks, start, stop) for start, stop in stages]
        for name, stays in (("embed", 0 in (s for s, _ in stages)), ("positions", 0 in (s for s, _ in stages))):
            if not stays:
                setattr(self, name, None)
        if all(stop != self.depth for _, stop in stages):
            self.norm, self.head = None, None  # type: ignore[assignment]
        return parts

    def _part(self, blocks: list[nn.Module], start: int, stop: int) -> GPT:
        """A model over some of this one's modules, which it shares."""
        part = object.__new__(type(self))
        nn.Module.__init__(part)
        part.seq_len, part.rope, part.depth, part.tied, part.window = self.seq_len, self.rope, self.depth, self.tied, self.window
        part.embed = self.embed if start == 0 else None  # type: ignore[assignment]
        part.positions = self.positions if start == 0 else None
        part.blocks = nn.ModuleList(blocks[start:stop])
        last = stop == self.depth
        part.norm, part.head = (self.norm, self.head) if last else (None, None)  # type: ignore[assignment]
        part._buffers = self._buffers  # the same tables, also after they left the meta device
        part._non_persistent_buffers_set = self._non_persistent_buffers_set
        return part

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states BTD after the last norm. Position t sees positions <= t of its own segment, nothing else.

        With a `cache`, `tokens_BT` continue what the cache holds (`segments_BT` must be None).
        """
        start = cache.length if cache is not None else 0
        T = tokens_BT.shape[1] * (self.slices if self.embed is None else 1)
        if start + T > self.seq_len:
            raise ValueError(f"{start + T} tokens, the model takes at most seq_len={self.seq_len}")
        x_BTD = tokens_BT if self.embed is None else self.embed(tokens_BT)  # a later stage of a pipeline continues hidden states
        rotate = None
        if self.rope is not None:
            rotate = (self.cos_TK[start : start + T], self.sin_TK[start : start + T])
        elif self.positions is not None:
            at = torch.arange(start, start + T, device=tokens_BT.device)
            x_BTD = x_BTD + self.positions(at if segments_BT is None else positions_in_segments(segments_BT))
        mask = None if segments_BT is None else document_mask(segments_BT)
        if self.window is not None and start + T > self.window:
            near = window_mask(T, start + T, self.window, tokens_BT.device)
            mask = near if mask is None else mask & near
        if mask is not None and mask.device.type == "cuda":
            mask = as_bias(mask, torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_BTD.dtype)
        for i, block in enumerate(self.layers):
            x_BTD = block(x_BTD, rotate, mask) if cache is None else block(x_BTD, rotate, mask, (cache, i))
        out: Tensor = x_BTD if self.norm is None else self.norm(x_BTD)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits ...V from hidden states ...D."""
        out: Tensor = self.head(hidden)
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Normal(0, 0.02) for embeddings; for matrices U with variance 1/fan_in, those that write to the residual stream
        scaled by 1/sqrt(2 layers) (GPT-2); an untied head starts at zero, so that the first loss is log V.
        """
        if p.ndim == 1:
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.ones_(p)
        elif name in ("embed.weight", "positions.weight"):
            nn.init.normal_(p, 0.0, 0.02 if self.tied or self.rope is None else 1.0, generator=g)
        elif name == "head.weight":
            nn.init.zeros_(p)
        else:
            std = p.shape[1] ** -0.5
            if name.endswith(("out.weight", "down.weight")):
                std /= math.sqrt(2 * self.depth)
            nn.init.uniform_(p, -(3**0.5) * std, 3**0.5 * std, generator=g)

    def init_buffers(self) -> None:
        if self.rope is not None:
            angle_TK = torch.arange(self.seq_len, dtype=torch.float64)[:, None] * rope_frequencies(*self.rope)
            self.cos_TK.copy_(angle_TK.cos())
            self.sin_TK.copy_(angle_TK.sin())

    def attentions(self) -> list[nn.Module]:
        return [block.attention for block in self.layers]

    def head_counts(self) -> list[tuple[str, int]]:
        first = self.layers[0].attention
        return [("heads", first.heads), ("key-value heads", first.kv_heads)]

    def blocks_to_compile(self) -> list[nn.Module]:
        return list(self.layers)

    def layer_of(self, name: str) -> tuple[int, int]:
        return block_number(name, self.depth)

    def flops_per_example(self, spec: DataSpec) -> float:
        """(6 N + 6 L T D) T: N weights that multiply (embeddings left out, the head counted), causal attention at half the square."""
        T = spec.seq_len or self.seq_len
        N = sum(p.numel() for b in self.blocks for p in b.parameters() if p.ndim == 2) + self.head.weight.numel()
        L, D = len(self.blocks), self.embed.embedding_dim
        return (6.0 * N + 6.0 * L * T * D) * T

    def activations_per_example(self, spec: DataSpec) -> float:
        """24 D a layer and token (norms, q k v and their rotated copies, attention, the MLP's hidden three times), 8 D at the ends."""
        T = spec.seq_len or self.seq_len
        return T * self.embed.embedding_dim * (24.0 * len(self.blocks) + 8.0)
