"""What every model family shares: its config, its shard plan as plain data, and how each weight starts (`materialize.py` does it).

Knows no family. A model is plain single-device code; precision, compile and parallelism are applied from outside.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Registered, dump, parse
from tauon.errors import Problem, RecipeError
from tauon.models.adapters import AdaptConfig
from tauon.types import DataSpec

__all__ = [
    "Model",
    "ModelConfig",
    "Shard",
    "Size",
    "block_number",
    "from_record",
    "parameter_count",
    "record",
]

Shard = Literal["colwise", "rowwise", "vocab", "replicate", "per-head"]
"""How tensor parallelism may cut a weight (out, in): its rows, its columns, its vocabulary rows, or not at all; `per-head`: not
at all, but it is applied to each attention head (B T H K), and heads are cut."""


Size = Annotated[Count, Field(ge=1, le=2**28)]
"""A width, a number of channels, of features, of token ids. The bound keeps numbers of parameters within 63 bits."""


class Model(nn.Module):
    """A plain module that also says how its weights start and how they may be sharded."""

    shard_plan: ClassVar[dict[str, Shard]] = {}
    """Parameter name pattern (fnmatch) to `Shard`, first match wins. Names every parameter."""

    compiling_pays: ClassVar[bool] = True
    """Whether compiling the blocks one by one gains anything; `train.compile: auto` asks."""

    slices: int = 1
    """Processes that share each sequence: the hidden states which a later stage of a pipeline is given are one slice of as many."""

    modules_to_save: tuple[str, ...] = ()
    """Parameters (patterns) that belong to one set of classes or targets: started anew for others, and trained beside adapters."""

    def linear_layers(self) -> dict[str, nn.Linear]:
        """By name, the linear layers that an adapter may be put beside: those of the blocks, or else all but the head."""
        blocks = {id(m) for block in self.blocks_to_compile() for m in block.modules()}
        found = {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear) and (not blocks or id(m) in blocks)}
        return {n: m for n, m in found.items() if not any(fnmatch.fnmatchcase(f"{n}.weight", p) for p in self.modules_to_save)}

    def layer_of(self, name: str) -> tuple[int, int]:
        """(layer, number of layers) of a parameter: 0 before the blocks, 1 for the first, the last behind them. (0, 0): no blocks."""
        return 0, 0

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Fill `p` in place from generator `g`. Default: torch's own rule for a linear or convolution layer, U(-1/sqrt(fan_in), +)."""
        if p.ndim < 2:
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.ones_(p)
        else:
            bound = 1 / (p[0].numel() ** 0.5)
            nn.init.uniform_(p, -bound, bound, generator=g)

    def init_buffers(self) -> None:
        """Fill buffers that are not parameters (position tables, say) after the model left the meta device."""

    def attentions(self) -> list[nn.Module]:
        """Modules whose method `attend(q_BTHK, k_BTGK, v_BTGK, ...) -> BTHK` is all that mixes positions. Empty: sequences cannot be shared."""
        return []

    def head_counts(self) -> list[tuple[str, int]]:
        """(name, number) of what tensor parallelism must divide evenly, beside the sides of matrices."""
        return []

    def keep_stages(self, stages: list[tuple[int, int]]) -> list[Model]:
        """Keep only what the pipeline stages [first block, last block) need, in place, names unchanged; a module for each stage.

        A stage maps the tokens, or the hidden states of the one before it, to hidden states. Raises `RecipeError` where this
        model cannot be cut into stages.
        """
        raise RecipeError([Problem("parallel.pipeline", "this model cannot be cut into stages. Take replicate or shard.")])

    def blocks_to_compile(self) -> list[nn.Module]:
        """The repeated blocks, in order: what is compiled and checkpointed one by one. Empty: the model is too small to care."""
        return []

    def flops_per_example(self, spec: DataSpec) -> float:
        """Model FLOPs of forward and backward for one example: 6 for each weight that multiplies, attention added."""
        return 6.0 * sum(p.numel() for p in self.parameters() if p.ndim >= 2)

    def activations_per_example(self, spec: DataSpec) -> float:
        """About how many numbers the forward pass keeps for the backward pass, for one example: what decides the microbatch."""
        return 4.0 * sum(p.shape[0] for p in self.parameters() if p.ndim == 2)


def block_number(name: str, depth: int) -> tuple[int, int]:
    """`Model.layer_of` for a model of embeddings (or patches), `depth` blocks called `blocks.<i>`, and what comes behind them."""
    first, _, rest = name.partition(".")
    if first == "blocks":
        return int(rest.partition(".")[0]) + 1, depth + 2
    return (0 if first in ("embed", "positions", "types", "embed_norm", "patches", "first") else depth + 1), depth + 2


class ModelConfig(Registered, family="model"):
    """A model family and its sizes."""

    input_kind: ClassVar[str | tuple[str, ...]] = "arrays"
    """What its inputs are (`Task.input_kind`); several where it takes any of them."""
    reads_codes: ClassVar[bool] = False
    """Arrays: whether it embeds columns of codes (`DataSpec.categories`). Others would multiply them, and are refused such data."""

    from_: str | None = Field(None, alias="from")
    """Start from a trained model: a run, a checkpoint, a Hugging Face folder, or a name on its hub (org/name, org/name@revision).
    Sizes are the checkpoint's."""
    adapt: AdaptConfig | None = None
    """Adapters beside frozen weights. In a recipe it is a section of its own: `adapt`."""

    @classmethod
    def _choose(cls, data: Any) -> Registered:
        if isinstance(data, Mapping) and "from" in data and "kind" not in data:
            data = {"kind": "checkpoint", **data}
        return super()._choose(data)

    def convert_state_dict(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Weights by our names, from a published file of weights of this family, where those have other ones."""
        return tensors

    def resolve(self, spec: DataSpec) -> Self:
        """The same config with every `auto` filled in from the data. Raises `RecipeError` where they cannot fit."""
        return self

    @classmethod
    def random_fields(cls) -> tuple[str, ...]:
        """Fields by which training draws at random inside the model (dropout, dropped paths): 0 switches each off."""
        return tuple(k for k in cls.model_fields if k.endswith("dropout") or k == "drop_path")

    def build_on_meta(self) -> Model:
        """The module on the meta device, with its adapters: shapes without memory. Raises `RecipeError` for sizes that cannot be."""
        with torch.device("meta"):
            try:
                model = self.build()
            except RuntimeError as err:  # a size that overflows 63 bits
                raise RecipeError([Problem("model", f"cannot be built ({str(err).splitlines()[0]}). Take smaller sizes.")]) from None
            if self.adapt is not None:
                self.adapt.inject_adapters(model, model.linear_layers(), model.modules_to_save)
        return model

    def build(self) -> Model:
        """The module, on the current default device, weights not initialised (see `materialize`)."""
        raise NotImplementedError


def from_record(record: dict[str, object]) -> ModelConfig:
    """The config back from what a checkpoint recorded (`dump(config)`)."""
    return parse(ModelConfig, record, "checkpoint")


def parameter_count(model: nn.Module) -> int:
    """Number of distinct parameters (a tied weight counts once)."""
    return sum(p.numel() for p in model.parameters())


def record(config: ModelConfig) -> dict[str, object]:
    """What a checkpoint keeps of a config."""
    return dump(config)
