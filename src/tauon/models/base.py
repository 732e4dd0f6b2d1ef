"""Base classes of all model families: config, shard plan as plain data, and initialisation of weights (`materialize.py` runs it).

Does not depend on any family. A model is plain single-device code; precision, compile and parallelism are applied from outside.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tauon.config import Count, Registered, dump, parse
from tauon.errors import Problem, RecipeError
from tauon.models.adapters import AdaptConfig
from tauon.types import Batch, DataSpec

__all__ = [
    "Fitted",
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
"""How tensor parallelism may shard a weight (out, in): its rows, its columns, its vocabulary rows, or not at all; `per-head`: not
at all, but it is applied to each attention head (B T H K), and heads are sharded."""


Size = Annotated[Count, Field(ge=1, le=2**28)]
"""A width, a number of channels, of features, of token ids. The bound keeps numbers of parameters within 63 bits."""


class Model(nn.Module):
    """A plain module that also defines how its weights are initialised and sharded."""

    shard_plan: ClassVar[dict[str, Shard]] = {}
    """Parameter name pattern (fnmatch) to `Shard`, first match wins. Names every parameter."""

    compiling_pays: ClassVar[bool] = True
    """Whether compiling the blocks one by one is faster; read by `train.compile: auto`."""

    slices: int = 1
    """Number of processes that share each sequence: a later pipeline stage gets hidden states of one of as many slices."""

    modules_to_save: tuple[str, ...] = ()
    """Patterns of parameters that belong to one set of classes or targets: initialised again for others, and trained with adapters."""

    def linear_layers(self) -> dict[str, nn.Linear]:
        """Return the linear layers that may get an adapter, by name: those of the blocks, or else all except the head."""
        blocks = {id(m) for block in self.blocks_to_compile() for m in block.modules()}
        found = {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear) and (not blocks or id(m) in blocks)}
        return {n: m for n, m in found.items() if not any(fnmatch.fnmatchcase(f"{n}.weight", p) for p in self.modules_to_save)}

    def layer_of(self, name: str) -> tuple[int, int]:
        """Return (layer, number of layers) of a parameter: 0 before the blocks, 1 for the first block, last after them. (0, 0): no blocks."""
        return 0, 0

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Fill `p` in place from generator `g`. Default: torch's own rule for a linear or convolution layer, U(-1/sqrt(fan_in), +)."""
        if p.ndim < 2:
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.ones_(p)
        else:
            bound = 1 / (p[0].numel() ** 0.5)
            nn.init.uniform_(p, -bound, bound, generator=g)

    def init_buffers(self) -> None:
        """Fill buffers (position tables, for example) after the model left the meta device."""

    def attentions(self) -> list[nn.Module]:
        """Return the modules whose method `attend(q_BTHK, k_BTGK, v_BTGK, ...) -> BTHK` alone mixes positions. Empty: no context parallelism."""
        return []

    def head_counts(self) -> list[tuple[str, int]]:
        """Return (name, number) of everything that tensor parallelism must divide evenly, besides matrix sizes."""
        return []

    def keep_stages(self, stages: list[tuple[int, int]]) -> list[Model]:
        """Keep only the parts that the pipeline stages [first block, last block) need, in place, names unchanged; return a module per stage.

        A stage maps the tokens, or the hidden states of the stage before it, to hidden states. Raises `RecipeError` if this
        model cannot be split into stages.
        """
        raise RecipeError([Problem("parallel.pipeline", "this model cannot be split into pipeline stages. Use replicate or shard.")])

    def blocks_to_compile(self) -> list[nn.Module]:
        """Return the repeated blocks in order, which are compiled and checkpointed one by one. Empty: the model is too small."""
        return []

    def map_layer(self) -> str | None:
        """Return the name of the layer whose activations are a coarse map of the input, the last before positions are mixed or averaged
        (Grad-CAM). None: the model has none, or it is not known.
        """
        return None

    def flops_per_example(self, spec: DataSpec) -> float:
        """Return the model FLOPs of forward and backward for one example: 6 per weight in matrix products, plus attention."""
        return 6.0 * sum(p.numel() for p in self.parameters() if p.ndim >= 2)

    def activations_per_example(self, spec: DataSpec) -> float:
        """Return about how many numbers the forward pass keeps for the backward pass per example; used to choose the microbatch."""
        return 4.0 * sum(p.shape[0] for p in self.parameters() if p.ndim == 2)


class _NoInitialisation(TorchFunctionMode):
    """Skips random initialisation. On the meta device it does nothing, but imports torch's compiler, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def block_number(name: str, depth: int) -> tuple[int, int]:
    """`Model.layer_of` for a model of embeddings (or patches), `depth` blocks called `blocks.<i>`, and what comes behind them."""
    first, _, rest = name.partition(".")
    if first == "blocks":
        return int(rest.partition(".")[0]) + 1, depth + 2
    return (0 if first in ("embed", "positions", "types", "embed_norm", "patches", "first") else depth + 1), depth + 2


@dataclass(frozen=True)
class Fitted:
    """A model that was fitted as a whole."""

    tensors: Mapping[str, Tensor]
    """Its weights and buffers by name, as `load_weights` takes them."""
    losses: list[float] = field(default_factory=list)
    """Training loss of each round, if it is known."""
    note: str = ""
    """What came out, in a few words."""


class ModelConfig(Registered, family="model"):
    """A model family and its sizes."""

    input_kind: ClassVar[str | tuple[str, ...]] = "arrays"
    """Kind of its inputs (`Task.input_kind`); several if it accepts any of them."""
    reads_codes: ClassVar[bool] = False
    """Whether it embeds columns of category codes (`DataSpec.categories`). Other models would treat codes as numbers, and are refused."""

    fits_whole: ClassVar[bool] = False
    """Whether `fit` finds the weights from all examples at once, instead of gradient steps: the optimizer is then not used."""

    from_: str | None = Field(None, alias="from")
    """Start from a pretrained model: a run, a checkpoint, a Hugging Face folder, or a name on the hub (org/name, org/name@revision).
    Sizes come from the checkpoint."""
    adapt: AdaptConfig | None = None
    """Adapters for frozen weights. In a recipe this is the separate section `adapt`."""

    @classmethod
    def _choose(cls, data: Any) -> Registered:
        if isinstance(data, Mapping) and "from" in data and "kind" not in data:
            data = {"kind": "checkpoint", **data}
        return super()._choose(data)

    def convert_state_dict(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rename the weights of a published file of this family to our names."""
        return tensors

    def resolve(self, spec: DataSpec) -> Self:
        """Return the config with every `auto` filled in from the data. Raises `RecipeError` if model and data do not fit."""
        return self

    @classmethod
    def random_fields(cls) -> tuple[str, ...]:
        """Return the fields of random draws in the model during training (dropout, drop path): 0 switches each off."""
        return tuple(k for k in cls.model_fields if k.endswith("dropout") or k == "drop_path")

    def fit(
        self, train: Batch, validation: Batch | None, *, family: str, seed: int, progress: Callable[[str, int, int], None] | None = None
    ) -> Fitted:
        """Find the weights from all examples at once, if `fits_whole`. `family`: the task's. Raises `RecipeError` for one that it cannot learn."""
        raise NotImplementedError

    def build_on_meta(self) -> Model:
        """Build the module with its adapters on the meta device: shapes without memory. Raises `RecipeError` for impossible sizes."""
        with torch.device("meta"), _NoInitialisation():
            try:
                model = self.build()
            except RuntimeError as err:  # a size that overflows 63 bits
                raise RecipeError([Problem("model", f"cannot be built ({str(err).splitlines()[0]}). Use smaller sizes.")]) from None
            if self.adapt is not None:
                self.adapt.inject_adapters(model, model.linear_layers(), model.modules_to_save)
        return model

    def build(self) -> Model:
        """Build the module on the default device, without initialising weights (see `materialize`)."""
        raise NotImplementedError


def from_record(record: dict[str, object]) -> ModelConfig:
    """Return the config from a checkpoint's record (`dump(config)`)."""
    return parse(ModelConfig, record, "checkpoint")


def parameter_count(model: nn.Module) -> int:
    """Return the number of distinct parameters (a tied weight counts once)."""
    return sum(p.numel() for p in model.parameters())


def record(config: ModelConfig) -> dict[str, object]:
    """Return a config as a checkpoint stores it."""
    return dump(config)
