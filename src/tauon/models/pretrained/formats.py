"""Names of weights and sizes in published models, as plain data: Hugging Face's layouts of GPT-2, Llama, Mistral, Qwen 2 and 3, Arcee, Apertus,
BERT, ViT.

A table reads: our name -> theirs, `{i}` being the number of a block. `huggingface.py` reads and writes folders by these tables; nothing
here does anything. Layouts: https://github.com/huggingface/transformers, files configuration_*.py and modeling_*.py of each model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["CLASSIFIERS", "FAMILIES", "HEADS", "REQUIRED", "At", "Family", "Key"]


@dataclass(frozen=True)
class At:
    """Position of a weight in a Hugging Face tensor."""

    name: str
    transposed: bool = False
    """Theirs is inputs x outputs."""
    part: tuple[int, int] | None = None
    """(i, n): the i-th of n equal parts of their outputs."""
    shape: Literal["", "flat", "first"] = ""
    """`flat`: ours has all but their first dimension in one (a convolution as a matrix); `first`: theirs has one more, of size 1, in front."""


REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """A size of ours and the key of their config.json that holds it."""

    ours: str
    theirs: str
    default: Any = REQUIRED
    """What a config.json without the key means; `REQUIRED`: it must have it."""


@dataclass(frozen=True)
class Family:
    """One architecture."""

    kind: str
    """Ours."""
    model_type: str
    """Theirs."""
    architectures: tuple[str, ...]
    """The one that is written first: of a language model; then of a classifier; then others that can be read."""
    prefix: str
    """Before every name but the head's; a file of the model without its head may lack it."""
    keys: tuple[Key, ...]
    fixed: Mapping[str, tuple[Any, ...]]
    """Keys whose value must be one of these; the first is what a missing key means, and what is written."""
    names: Mapping[str, str | At]
    ignored: tuple[str, ...] = ()
    """Patterns of theirs that hold no weight: masks, tables."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of ours that make this architecture of our kind."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Ends of names in old files -> what they are called today."""


def _linear(ours: str, theirs: str, *, bias: bool = True) -> dict[str, str | At]:
    return {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in (("weight", "bias") if bias else ("weight",))}


def _conv1d(ours: str, theirs: str, part: tuple[int, int] | None = None) -> dict[str, str | At]:
    return {f"{ours}.weight": At(f"{theirs}.weight", True, part), f"{ours}.bias": At(f"{theirs}.bias", False, part)}


_GPT2_BLOCK = "transformer.h.{i}"
GPT2 = Family(
    kind="gpt2",
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "", "GPT2Model"),
    prefix="transformer.",
    keys=(
        Key("layers", "n_layer"), Key("width", "n_embd"), Key("heads", "n_head"), Key("vocab", "vocab_size"), Key("seq_len", "n_positions"),
        Key("dropout", "resid_pdrop", 0.1),
    ),
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False, True), "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    names={
        "embed.weight": "transformer.wte.weight",
        "positions.weight": "transformer.wpe.weight",
        **_linear("norm", "transformer.ln_f"),
        "head.weight": "lm_head.weight",
        **_linear("blocks.{i}.attention_norm", f"{_GPT2_BLOCK}.ln_1"),
        **_linear("blocks.{i}.mlp_norm", f"{_GPT2_BLOCK}.ln_2"),
        **{k: v for n, x in enumerate("qkv") for k, v in _conv1d(f"blocks.{{i}}.attention.{x}", f"{_GPT2_BLOCK}.attn.c_attn", (n, 3)).items()},
        **_conv1d("blocks.{i}.attention.out", f"{_GPT2_BLOCK}.attn.c_proj"),
        **_conv1d("blocks.{i}.mlp.up", f"{_GPT2_BLOCK}.mlp.c_fc"),
        **_conv1d("blocks.{i}.mlp.down", f"{_GPT2_BLOCK}.mlp.c_proj"),
    },
    ignored=("*.attn.bias", "*.attn.masked_bias"),
)  # fmt: skip

_BLOCK = "model.layers.{i}"
_LLAMA_KEYS = (
    Key("layers", "num_hidden_layers"), Key("width", "hidden_size"), Key("heads", "num_attention_heads"), Key("kv_heads", "num_key_value_heads", None),
    Key("mlp_width", "intermediate_size"), Key("vocab", "vocab_size"), Key("seq_len", "max_position_embeddings"),
    Key("norm_eps", "rms_norm_eps", 1e-6), Key("head_size", "head_dim", None), Key("tied", "tie_word_embeddings", False),
)  # fmt: skip
_LLAMA_NAMES: dict[str, str | At] = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "blocks.{i}.attention_norm.weight": f"{_BLOCK}.input_layernorm.weight",
    "blocks.{i}.mlp_norm.weight": f"{_BLOCK}.post_attention_layernorm.weight",
    **{k: v for x in "qkv" for k, v in _linear(f"blocks.{{i}}.attention.{x}", f"{_BLOCK}.self_attn.{x}_proj").items()},
    **_linear("blocks.{i}.attention.q_norm", f"{_BLOCK}.self_attn.q_norm", bias=False),
    **_linear("blocks.{i}.attention.k_norm", f"{_BLOCK}.self_attn.k_norm", bias=False),
    **_linear("blocks.{i}.attention.out", f"{_BLOCK}.self_attn.o_proj", bias=False),
    **{k: v for x in ("up", "gate", "down") for k, v in _linear(f"blocks.{{i}}.mlp.{x}", f"{_BLOCK}.mlp.{x}_proj", bias=False).items()},
}
_LLAMA_IGNORED = ("*.rotary_emb.inv_freq",)

LLAMA = Family(
    "llama", "llama", ("LlamaForCausalLM", "", "LlamaModel"), "model.", _LLAMA_KEYS,
    {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}, _LLAMA_NAMES, _LLAMA_IGNORED,
)  # fmt: skip
MISTRAL = Family(
    "mistral", "mistral", ("MistralForCausalLM", "", "MistralModel"), "model.", (*_LLAMA_KEYS, Key("window", "sliding_window", 4096)),
    {"hidden_act": ("silu",)}, _LLAMA_NAMES, _LLAMA_IGNORED,
)  # fmt: skip
QWEN2 = Family(
    "qwen2", "qwen2", ("Qwen2ForCausalLM", "", "Qwen2Model"), "model.", tuple(k for k in _LLAMA_KEYS if k.ours != "head_size"),
    {"hidden_act": ("silu",), "use_sliding_window": (False,)}, _LLAMA_NAMES, _LLAMA_IGNORED,
)  # fmt: skip
QWEN3 = Family(
    "qwen3", "qwen3", ("Qwen3ForCausalLM", "", "Qwen3Model"), "model.",
    (*(k for k in _LLAMA_KEYS if k.ours != "head_size"), Key("head_size", "head_dim", 128)),
    {"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,)}, _LLAMA_NAMES, _LLAMA_IGNORED,
)  # fmt: skip

_SQUARED = {"hidden_act": ("relu2",), "attention_bias": (False,)}
ARCEE = Family(
    "gpt", "arcee", ("ArceeForCausalLM", "", "ArceeModel"), "model.", _LLAMA_KEYS, {**_SQUARED, "mlp_bias": (False,)}, _LLAMA_NAMES,
    _LLAMA_IGNORED, {"mlp": "relu2", "qk_norm": False},
)  # fmt: skip
"""Llama with a squared ReLU."""
APERTUS = Family(
    "gpt", "apertus", ("ApertusForCausalLM", "", "ApertusModel"), "model.", _LLAMA_KEYS, _SQUARED, _LLAMA_NAMES | {
        "blocks.{i}.attention_norm.weight": f"{_BLOCK}.attention_layernorm.weight",
        "blocks.{i}.mlp_norm.weight": f"{_BLOCK}.feedforward_layernorm.weight",
    }, _LLAMA_IGNORED, {"mlp": "relu2", "qk_norm": True},
)  # fmt: skip
"""Arcee with QK-norm. The published Apertus has another activation (xIELU), which is refused."""

_LAYER = "bert.encoder.layer.{i}"
BERT = Family(
    kind="bert",
    model_type="bert",
    architectures=("BertForMaskedLM", "BertForSequenceClassification", "BertForPreTraining", "BertModel"),
    prefix="bert.",
    keys=(
        Key("layers", "num_hidden_layers"), Key("width", "hidden_size"), Key("heads", "num_attention_heads"), Key("mlp_width", "intermediate_size"),
        Key("vocab", "vocab_size"), Key("seq_len", "max_position_embeddings"), Key("types", "type_vocab_size", 2),
        Key("norm_eps", "layer_norm_eps", 1e-12), Key("dropout", "hidden_dropout_prob", 0.1),
    ),
    fixed={
        "hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,), "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    names={
        "embed.weight": "bert.embeddings.word_embeddings.weight",
        "positions.weight": "bert.embeddings.position_embeddings.weight",
        "types.weight": "bert.embeddings.token_type_embeddings.weight",
        **_linear("embed_norm", "bert.embeddings.LayerNorm"),
        **_linear("blocks.{i}.attention.q", f"{_LAYER}.attention.self.query"),
        **_linear("blocks.{i}.attention.k", f"{_LAYER}.attention.self.key"),
        **_linear("blocks.{i}.attention.v", f"{_LAYER}.attention.self.value"),
        **_linear("blocks.{i}.attention.out", f"{_LAYER}.attention.output.dense"),
        **_linear("blocks.{i}.attention_norm", f"{_LAYER}.attention.output.LayerNorm"),
        **_linear("blocks.{i}.mlp.up", f"{_LAYER}.intermediate.dense"),
        **_linear("blocks.{i}.mlp.down", f"{_LAYER}.output.dense"),
        **_linear("blocks.{i}.mlp_norm", f"{_LAYER}.output.LayerNorm"),
        **_linear("pooler", "bert.pooler.dense"),
        **_linear("transform", "cls.predictions.transform.dense"),
        **_linear("transform_norm", "cls.predictions.transform.LayerNorm"),
        "head.bias": "cls.predictions.bias",
    },
    ignored=("*.position_ids", "cls.predictions.decoder.*"),
    renamed={".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"},
)  # fmt: skip
_SEEN = "vit.encoder.layer.{i}"
VIT = Family(
    kind="vit",
    model_type="vit",
    architectures=("", "ViTForImageClassification", "ViTModel"),
    prefix="vit.",
    keys=(
        Key("layers", "num_hidden_layers", 12), Key("width", "hidden_size", 768), Key("heads", "num_attention_heads", 12),
        Key("mlp_width", "intermediate_size", 3072), Key("patch", "patch_size", 16), Key("dropout", "hidden_dropout_prob", 0.0),
    ),
    fixed={"hidden_act": ("gelu",), "qkv_bias": (True,), "layer_norm_eps": (1e-12,)},
    names={
        "patches.weight": At("vit.embeddings.patch_embeddings.projection.weight", shape="flat"),
        "patches.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "first.weight": At("vit.embeddings.cls_token", shape="first"),
        "positions.weight": At("vit.embeddings.position_embeddings", shape="first"),
        **_linear("blocks.{i}.attention_norm", f"{_SEEN}.layernorm_before"),
        **_linear("blocks.{i}.attention.q", f"{_SEEN}.attention.attention.query"),
        **_linear("blocks.{i}.attention.k", f"{_SEEN}.attention.attention.key"),
        **_linear("blocks.{i}.attention.v", f"{_SEEN}.attention.attention.value"),
        **_linear("blocks.{i}.attention.out", f"{_SEEN}.attention.output.dense"),
        **_linear("blocks.{i}.mlp_norm", f"{_SEEN}.layernorm_after"),
        **_linear("blocks.{i}.mlp.up", f"{_SEEN}.intermediate.dense"),
        **_linear("blocks.{i}.mlp.down", f"{_SEEN}.output.dense"),
        **_linear("norm", "vit.layernorm"),
        **_linear("head", "classifier"),
    },
)  # fmt: skip

HEADS = ("lm_head.", "cls.", "classifier.", "score.", "bert.pooler.", "pooler.", "vit.pooler.")
"""What the names of weights begin with that belong to one task: a model for another has no use for them."""
CLASSIFIERS = {"bert": _linear("head", "classifier"), "vit": _linear("head", "classifier")}
"""Names of the head of a classifier, by `model_type`."""

FAMILIES = {f.model_type: f for f in (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, ARCEE, APERTUS, BERT, VIT)}
"""By their `model_type`."""
