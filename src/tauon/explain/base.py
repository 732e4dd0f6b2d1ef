"""What is explained (`Cases`), what an explanation is (`Attribution`), and the table of attribution methods (`METHODS`).

A method sees a model as a function of floats: `Cases.outputs(x, rows)`. Whether these floats are pixels, columns, embeddings of tokens or a
spectrogram is decided in `inputs.py`; a method never asks. It reads no data and draws nothing.

Shapes: N examples, M rows that are computed at once, E the shape of one example's numbers, F features (pixels over their channels, columns,
tokens, cells of a spectrogram), C outputs.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tauon.distributed import reshard
from tauon.errors import DataError, Problem, RecipeError

__all__ = [
    "METHODS",
    "Attribution",
    "Cases",
    "Link",
    "Method",
    "Work",
    "attribution_method",
    "gradients_of",
    "linked",
    "method_named",
    "scores_of",
    "untouched",
]

Link = Literal["softmax", "sigmoid", "identity"]
Progress = Callable[[int, int], None]


def linked(outputs: Tensor, link: Link) -> Tensor:
    """Return the probabilities of logits MC, or the outputs as they are."""
    return outputs.softmax(1) if link == "softmax" else outputs.sigmoid() if link == "sigmoid" else outputs


@dataclass(frozen=True)
class Cases:
    """Examples that are explained, and the output of the model that is explained for each."""

    model: nn.Module
    inputs: Tensor
    """N *E, float32: the numbers that outputs are attributed to."""
    outputs: Callable[[Tensor, Tensor], Tensor]
    """(x, M *E; rows, M int64: the example that each row of x is a version of) -> outputs MC, float32: logits or values."""
    targets: Tensor
    """Output that is explained, N (int64)."""
    baselines: Tensor
    """N *E or 1 *E: what stands for "absent"."""
    features: Tensor
    """Number of the feature that each number of an example belongs to, int64, of shape E or broadcastable to it."""
    grid: tuple[int, ...]
    """How features lie: (height, width) of an image, (steps, series), (frames, bands), (tokens,), (columns,). Their product is F."""
    kind: str = "array"
    """image, table, text, audio, series or array."""
    regions: Tensor | None = None
    """Region that each feature belongs to, F (int64), for methods that hide parts of the input; None: every feature is a region."""
    valid: Tensor | None = None
    """Which features exist, NF (bool), where examples are padded; None: all."""
    background: Tensor | None = None
    """Examples of the training data, R *E: what absent features are drawn from; None: `baselines`."""
    link: Link = "identity"
    """What makes probabilities of the outputs."""
    differentiable: bool = True
    """Whether the outputs have a gradient with respect to the inputs. Codes of categories have none."""

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def n_features(self) -> int:
        """Number of features of an example."""
        n = 1
        for size in self.grid:
            n *= size
        return n

    @property
    def region_of(self) -> Tensor:
        """Region of each feature, F (int64), numbered from 0."""
        return torch.arange(self.n_features, device=self.inputs.device) if self.regions is None else self.regions

    def answers(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the outputs of a copy of x, MC: a model that works in place on its input does not write x."""
        return self.outputs(x.clone(), rows)

    def score(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the output that is explained, M. `DataError` if it does not exist."""
        return self._explained(self.answers(x, rows), rows)

    def probability(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the probability of the explained output, M; the output itself for regression."""
        return self._explained(self.probabilities(self.answers(x, rows)), rows)

    def _explained(self, out_MC: Tensor, rows: Tensor) -> Tensor:
        targets = self.targets[rows]
        if len(rows) and not 0 <= int(targets.min()) <= int(targets.max()) < out_MC.shape[1]:
            raise DataError(
                f"target {int(targets.max())} of outputs 0 to {out_MC.shape[1] - 1} (least {int(targets.min())}): it does not exist"
            )
        return out_MC.gather(1, targets.unsqueeze(1)).squeeze(1)

    def baseline(self, rows: Tensor) -> Tensor:
        """Return the baselines of some examples, M *E."""
        return self.baselines.expand(len(rows), *self.baselines.shape[1:]) if len(self.baselines) == 1 else self.baselines[rows]

    def masked(self, keep: Tensor, rows: Tensor, fill: Tensor | None = None) -> Tensor:
        """Return the inputs with features replaced by the fill where `keep` is false.

        Args:
            keep: MF, bool.
            rows: M, int64.
            fill: M *E; None: the baselines.
        """
        shown = keep[:, self.features.expand(self.inputs.shape[1:])]
        return torch.where(shown, self.inputs[rows], self.baseline(rows) if fill is None else fill)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return outputs as a person reads them: probabilities where they are logits."""
        return linked(outputs, self.link)

    def per_feature(self, values: Tensor) -> Tensor:
        """Sum numbers N *E over each feature: NF."""
        flat = values.flatten(1)
        to = self.features.expand(self.inputs.shape[1:]).flatten().to(flat.device)
        return torch.zeros(len(flat), self.n_features, dtype=flat.dtype, device=flat.device).index_add_(1, to, flat)


@dataclass
class Attribution:
    """How much each feature of each example contributed to the explained output."""

    method: str
    values: Tensor
    """NF, float32."""
    scores: Tensor
    """The explained output of each example, N."""
    signed: bool = True
    """Whether a negative value argues against the output; otherwise values are sizes, or only what argues for it."""
    raw: Tensor | None = None
    """N *E: before the numbers of a feature were summed."""
    facts: dict[str, Tensor] = field(default_factory=dict)
    """Numbers about each example's explanation, N each: completeness_error, steps."""
    errors: Tensor | None = None
    """Standard error of each value, NF, of methods that sample."""
    coarse: Tensor | None = None
    """N and the positions of a layer, of methods that look at a layer: the map before it was enlarged to the features."""
    failed: Tensor | None = None
    """Examples whose explanation failed its own check, N (bool)."""
    note: str = ""
    """What a reader should know: the layer, the fill, the number of evaluations."""


@dataclass(frozen=True)
class Work:
    """How a method computes. `memory.py` chooses `at_once`."""

    at_once: int = 64
    """Most rows that go through the model together."""
    seed: int = 0
    """Of every random draw."""
    progress: Progress | None = None
    """Called with (rows done, rows in all)."""

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a new generator, always in the same state."""
        return torch.Generator(device=device).manual_seed(self.seed)

    def chunks(self, total: int) -> Iterator[slice]:
        """Yield slices of at most `at_once` of `total` rows, and report progress."""
        for start in range(0, total, self.at_once):
            yield slice(start, min(total, start + self.at_once))
            if self.progress is not None:
                self.progress(min(total, start + self.at_once), total)


@dataclass(frozen=True)
class Method:
    """One way to attribute an output to features."""

    name: str
    run: Callable[..., Attribution]
    """(cases, work, **options) -> Attribution."""
    title: str
    """As a person reads it: "Integrated gradients"."""
    needs: Literal["gradients", "outputs", "layer", "attention"]
    """gradients: with respect to the inputs; outputs: nothing but the outputs; layer: a module's activations; attention: attention weights."""
    source: str
    """Paper."""
    kinds: tuple[str, ...] = ()
    """Kinds of `Cases` that it can explain; empty: all."""
    requested_only: bool = False
    """Never chosen by default."""

    def why_not(self, cases: Cases) -> str:
        """Return why the method cannot explain these cases; "" if it can."""
        if self.needs == "gradients" and not cases.differentiable:
            return f"{self.name} needs gradients with respect to the inputs, and these are codes"
        if self.kinds and cases.kind not in self.kinds:
            return f"{self.name} explains {', '.join(self.kinds)}, and this is {cases.kind}"
        return ""


METHODS: dict[str, Method] = {}
"""Every attribution method by name."""


def attribution_method(
    name: str, title: str, *, needs: Literal["gradients", "outputs", "layer", "attention"], source: str, kinds: tuple[str, ...] = (),
    requested_only: bool = False,
) -> Callable[[Callable[..., Attribution]], Callable[..., Attribution]]:  # fmt: skip
    """Function decorator: add a method to `METHODS`, where it is not called for an empty batch. `ValueError` if the name is taken."""

    def enrol(run: Callable[..., Attribution]) -> Callable[..., Attribution]:
        if name in METHODS and METHODS[name].run.__qualname__ != run.__qualname__:
            raise ValueError(f"an attribution method {name!r} already exists")

        @functools.wraps(run)
        def run_unless_empty(cases: Cases, *args: Any, **options: Any) -> Attribution:
            if not len(cases):
                none = cases.inputs.new_zeros(0)
                return Attribution(name, none.view(0, 1).expand(0, cases.n_features), none)
            return run(cases, *args, **options)

        METHODS[name] = Method(name, run_unless_empty, title, needs, source, kinds, requested_only)
        return run

    return enrol


def method_named(name: str, key: str = "explain.methods") -> Method:
    """Return a method. `RecipeError` names the closest one if there is no such method."""
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise RecipeError([Problem(key, f"{name!r} is not an attribution method{hint} Available: {', '.join(sorted(METHODS))}.")])
    return METHODS[name]


# ---------------------------------------------------------------------------------------------- running the model


def scores_of(cases: Cases, x: Tensor, rows: Tensor, work: Work, *, probability: bool = False) -> Tensor:
    """Return the explained output (or its probability) of each row, M, a few rows at a time, without gradients."""
    score = cases.probability if probability else cases.score
    with torch.no_grad():
        return torch.cat([score(x[part], rows[part]).float() for part in work.chunks(len(rows))]) if len(rows) else x.new_zeros(0)


def gradients_of(cases: Cases, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (scores M, gradients of the scores with respect to x, M *E). All rows at once."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        scores = cases.score(x, rows)
        if not scores.requires_grad:
            raise DataError("the model's output has no gradient with respect to its inputs: use a method that needs outputs only")
        (grad,) = torch.autograd.grad(scores.sum(), x)
    return scores.detach(), grad


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients of weights inside; afterwards the model is as it was found.

    Restored are the mode of every module, `requires_grad` and `grad` of every parameter, hooks and instance attributes that were added to a
    module, buffers, and torch's random state. Weights are not written by any method. A model that is sharded over processes (FSDP2) is sharded
    again afterwards; every process has to explain the same examples, since its weights are gathered by all at once.
    """
    reshard(model)  # else parameters below could be gathered copies
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    hooks = [(d, dict(d)) for module in model.modules() for d in _hooks(module)]
    names = [(module, set(vars(module))) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            model.eval()
            for p, _, _ in parameters:
                p.requires_grad_(False)
            yield model
        finally:
            reshard(model)
            for module, training in modes:
                module.training = training
            for p, wanted, grad in parameters:
                p.requires_grad_(wanted)
                p.grad = grad
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
            for now, earlier in hooks:
                now.clear()
                now.update(earlier)
            for module, known in names:
                for name in set(vars(module)) - known:
                    delattr(module, name)


def _hooks(module: nn.Module) -> list[dict[Any, Any]]:
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
