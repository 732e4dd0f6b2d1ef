"""What every model family shares: its config, its shard plan as plain data, and initial weights that are a pure
function of (seed, parameter name), so that every layout and every order of building starts from the same numbers.

Knows no family. A model is plain single-device code; precision, compile and parallelism are applied from outside.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Registered, dump, parse
from tauon.distributed.pieces import fill, is_dtensor
from tauon.errors import CheckpointError, Problem, RecipeError
from tauon.models.adapters import AdaptConfig, AdaptedLinear, init_adapter, is_adapter, saved_weights
from tauon.models.nf4 import Rounded
from tauon.types import DataSpec

__all__ = [
    "Model",
    "ModelConfig",
    "Shard",
    "Size",
    "block_number",
    "from_record",
    "load_weights",
    "materialize",
    "parameter_count",
    "refuse_misfits",
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

    own_head: tuple[str, ...] = ()
    """Parameters (patterns) that belong to one set of classes or targets: started anew for others, and trained beside adapters."""

    def linear_layers(self) -> dict[str, nn.Linear]:
        """By name, the linear layers that an adapter may be put beside: those of the blocks, or else all but the head."""
        blocks = {id(m) for block in self.blocks_to_compile() for m in block.modules()}
        found = {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear) and (not blocks or id(m) in blocks)}
        return {n: m for n, m in found.items() if not any(fnmatch.fnmatchcase(f"{n}.weight", p) for p in self.own_head)}

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

    needs: ClassVar[str | tuple[str, ...]] = "arrays"
    """What its inputs are (`Task.needs`); several where it takes any of them."""
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

    def published(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Weights by our names, from a published file of weights of this family, where those have other ones."""
        return tensors

    def resolve(self, spec: DataSpec) -> Self:
        """The same config with every `auto` filled in from the data. Raises `RecipeError` where they cannot fit."""
        return self

    @classmethod
    def random_fields(cls) -> tuple[str, ...]:
        """Fields by which training draws at random inside the model (dropout, dropped paths): 0 switches each off."""
        return tuple(k for k in cls.model_fields if k.endswith("dropout") or k == "drop_path")

    def bare(self) -> Model:
        """The module on the meta device, with its adapters: shapes without memory. Raises `RecipeError` for sizes that cannot be."""
        with torch.device("meta"):
            try:
                model = self.build()
            except RuntimeError as err:  # a size that overflows 63 bits
                raise RecipeError([Problem("model", f"cannot be built ({str(err).splitlines()[0]}). Take smaller sizes.")]) from None
            if self.adapt is not None:
                self.adapt.dress(model, model.linear_layers(), model.own_head)
        return model

    def build(self) -> Model:
        """The module, on the current default device, weights not initialised (see `materialize`)."""
        raise NotImplementedError


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/init/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def materialize(
    config: ModelConfig, *, seed: int, device: torch.device | str = "cpu", dress: Callable[[Model], None] | None = None,
    weights: Mapping[str, Any] | None = None, half: bool = False,
) -> Model:  # fmt: skip
    """Build on the meta device, allocate on `device`, and fill: with the weights that it starts from, else drawn from (seed, name).

    Args:
        config: a resolved config.
        seed: of what is drawn.
        device: where the parameters live.
        dress: called with the model on the meta device: parallelism cuts it there, and each process then allocates and keeps its own
            part of the same numbers.
        weights: tensors by name, or what reads them from a file (`Checkpoint.lazy`). Left out: those of `config.from_`.
        half: keep frozen matrices that have an adapter in bfloat16, for matrix products that round to it anyway.
    """
    model = config.bare()
    if weights is None:
        from tauon.models.start import starting_weights

        weights = starting_weights(config, model)
    if half:
        _halve(model)
    rounded = config.adapt is not None and config.adapt.quantize == "nf4"
    if rounded:
        for layer in model.modules():
            if isinstance(layer, AdaptedLinear):
                layer.round_weight()
    if dress is not None:
        dress(model)
    tied = _tied(model)
    model.to_empty(device=device)  # gives each name a tensor of its own
    for name, first in tied.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in weights:
                _take(p, weights[name])
                continue
            start = torch.empty(p.shape, dtype=p.dtype)  # drawn on the CPU: the same numbers for every device
            if is_adapter(name):
                beside = weights.get(f"{name.rpartition('.')[0]}.weight") if name.endswith("magnitude") else None
                beside = Rounded(beside) if beside is not None and rounded else beside
                init_adapter(name, start, _generator(seed, name), None if beside is None else _whole(beside))
            else:
                model.init_parameter(name, start, _generator(seed, name))
            fill(p, start)
        for b in model.buffers():
            b.zero_()
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        if isinstance(module, Model):
            module.init_buffers()
        if isinstance(module, AdaptedLinear) and module.rounded:
            module.fill_rounded(_whole(weights[f"{names[module]}.weight"]))
    kept = model.state_dict()
    with torch.no_grad():
        for name, b in model.named_buffers():
            if name in kept and name in weights:
                fill(b, weights[name])
    return model


def _take(p: nn.Parameter, source: Any) -> None:
    """Copy this process's part of `source` into `p`. What does not train and lies in a file as it is wanted is mapped, not copied."""
    if not p.requires_grad and p.device.type == "cpu" and not is_dtensor(p) and not isinstance(source, Tensor):
        whole = source.read()
        if whole.dtype == p.dtype:
            p.data = whole
            return
        source = whole
    fill(p, source)


def _whole(source: Any) -> Tensor:
    whole: Tensor = source if isinstance(source, Tensor) else source.read()
    return whole


def _halve(model: Model) -> None:
    """Frozen matrices with a LoRA adapter, on the meta device, in bfloat16."""
    for name, p in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        layer = model.get_submodule(owner)
        if leaf == "weight" and isinstance(layer, AdaptedLinear) and layer.magnitude is None and not p.requires_grad:
            layer.weight = nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False)


def _tied(model: nn.Module) -> dict[str, str]:
    """Name of each parameter that is another's tensor -> the first name of it."""
    first: dict[int, str] = {}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if first.setdefault(id(p), name) != name}


def from_record(record: dict[str, object]) -> ModelConfig:
    """The config back from what a checkpoint recorded (`dump(config)`)."""
    return parse(ModelConfig, record, "checkpoint")


def load_weights(model: nn.Module, tensors: Mapping[str, Any], *, where: str = "checkpoint", partial: bool = False) -> None:
    """Copy tensors into the model by name. Missing, left-over or mis-shaped weights are a `CheckpointError` that lists them.

    `tensors`: tensors, or what reads them from a file when asked (`Checkpoint.lazy`): of a sharded model, each process reads its part.
    Of a model with adapters, those, and what trains beside them: the frozen base is not in a checkpoint.
    `partial`: the model is one stage of a pipeline, and the others' weights are no left-overs.
    """
    refuse_misfits(model, tensors, where=where, partial=partial)
    with torch.no_grad():
        for k, t in saved_weights(model).items():
            fill(t, tensors[k])


def refuse_misfits(model: nn.Module, tensors: Mapping[str, Any], *, where: str = "checkpoint", partial: bool = False) -> None:
    """`CheckpointError` that lists weights which the model has and `tensors` has not, the other way round, or in another shape."""
    own = saved_weights(model)
    wrong = [f"missing {k} {tuple(v.shape)}" for k, v in own.items() if k not in tensors]
    wrong += [f"left over {k} {tuple(v.shape)}" for k, v in tensors.items() if k not in own and not partial]
    wrong += [
        f"{k} has shape {tuple(v.shape)}, the model's is {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and tuple(v.shape) != tuple(own[k].shape)
    ]
    if wrong:
        more = f" (and {len(wrong) - 8} more)" if len(wrong) > 8 else ""
        raise CheckpointError(
            f"{where} is of another architecture: " + "; ".join(wrong[:8]) + more + ". Use the recipe it was trained with."
        )


def parameter_count(model: nn.Module) -> int:
    """Number of distinct parameters (a tied weight counts once)."""
    return sum(p.numel() for p in model.parameters())


def record(config: ModelConfig) -> dict[str, object]:
    """What a checkpoint keeps of a config."""
    return dump(config)
