"""Gradients of single examples, for all trainable parameters of a model, in one backward pass.

The layer rules of `tauon.privacy.clipped` give each parameter's gradient as terms: `Outer` (activation times output gradient, not multiplied),
`Rows` (vectors for rows of a table) or `Dense`. Batch norms, which private training refuses, run in evaluation mode here, where no example sees
another: theirs is the output's gradient times the normalised input. A layer that mixes examples is refused by name.

Shapes: B examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.models.norm import BatchNorm
from tauon.privacy.clipped import ClippedSum, Dense, Term
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["ExampleGradients", "Terms", "Value", "loss_value", "margin_value", "on_device_of", "untouched", "weights_hash"]

Terms = dict[str, list[Term]]
"""Parameter name -> the terms whose sum is each example's gradient."""
Value = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) -> one number for each example, B."""
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, BatchNorm)


def loss_value(task: Task) -> Value:
    """Return the loss of an example, divided by its weight; 0 for an example of weight 0 (padding)."""

    def value(model: nn.Module, batch: Batch) -> Tensor:
        loss_B, weight_B = task.losses(model, batch)
        return torch.where(weight_B > 0, loss_B / weight_B.clamp(min=1e-30), 0.0)

    return value


def margin_value(model: nn.Module, batch: Batch) -> Tensor:
    """Return log(p / (1 - p)), p the probability of the correct class: the output function of TRAK (Park et al. 2023, section 3.2).

    For models whose output is logits BC, with class indices as targets. Raises `RecipeError` for others.
    """
    logits_BC = model(batch.inputs).float()
    if logits_BC.ndim != 2 or batch.targets.ndim != 1 or batch.targets.is_floating_point():
        raise RecipeError(
            f"the margin of the correct class needs logits (examples, classes) and class indices; got {tuple(logits_BC.shape)} and "
            f"{tuple(batch.targets.shape)}. Use tracin or ekfac, whose output function is the loss."
        )
    right_B = logits_BC.gather(1, batch.targets[:, None])[:, 0]
    others_BC = logits_BC.scatter(1, batch.targets[:, None], -torch.inf)
    margin_B: Tensor = (right_B - others_BC.logsumexp(1)) * (batch.weights > 0)
    return margin_B


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers with their names, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode; then restore the mode, `requires_grad` and `.grad` of everything, and the random state."""
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for m, training in modes:
            m.training = training
        for p, wants, grad in flags:
            p.requires_grad_(wants)
            p.grad = grad


def on_device_of(model: nn.Module, batch: Batch) -> Batch:
    """Return the batch where the model is."""
    device = next(model.parameters()).device
    return batch if batch.inputs.device == device else batch.to(device)


class ExampleGradients:
    """The gradient of a value of each example, by parameter.

    >>> from tauon.testing import tiny_job
    >>> job = tiny_job(steps=1)
    >>> with ExampleGradients(job.model).of(loss_value(job.task), job.loader.batch_at(0)) as terms:
    ...     {name: tuple(terms[name][0].dense().shape) for name in terms}
    {'layers.0.weight': (8, 2, 3), 'layers.0.bias': (8, 2)}
    """

    def __init__(self, model: nn.Module, parameters: Sequence[str] = ("*",)) -> None:
        """`parameters`: patterns of parameter names; only trainable parameters count.

        Raises `RecipeError` if none matches.
        """
        self.model = model
        self.names = [n for n, p in model.named_parameters() if p.requires_grad and any(fnmatchcase(n, q) for q in parameters)]
        if not self.names:
            every = [n for n, _ in model.named_parameters()]
            raise RecipeError(
                f"no trainable parameter matches {', '.join(parameters)}. The model has {', '.join(every[:6])}{', ...' if len(every) > 6 else ''}."
            )

    @contextmanager
    def of(self, value: Value, batch: Batch) -> Iterator[Terms]:
        """Yield the terms of each parameter; a parameter that the value does not use is missing. They are valid inside the context.

        The model is left as it was. Raises `RecipeError` naming a layer whose gradient for single examples is not known.
        """
        chosen, batch = set(self.names), on_device_of(self.model, batch)
        with untouched(self.model):
            for name, p in self.model.named_parameters():
                p.requires_grad_(name in chosen)
                p.grad = None
            norms = _NormHooks(self.model)
            only_norms = all(not p.requires_grad for p in self.model.parameters())
            clipped = None if only_norms else ClippedSum(self.model)
            try:
                with torch.enable_grad():
                    terms = norms.terms_of(value, batch, clipped)
                with torch.no_grad():
                    yield terms
            finally:
                if clipped is not None:
                    clipped.detach()


class _NormHooks:
    """Gradients of the weights and biases of batch norms, by hooks; they are frozen for `ClippedSum`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers: dict[str, nn.Module] = {}
        self.wanted: set[str] = set()
        for prefix, module in model.named_modules():
            if isinstance(module, BATCH_NORMS):
                for leaf, p in module.named_parameters(recurse=False):
                    if p.requires_grad:
                        self.wanted.add(f"{prefix}.{leaf}" if prefix else leaf)
                        self.layers[prefix] = module
                        p.requires_grad_(False)

    def terms_of(self, value: Value, batch: Batch, clipped: ClippedSum | None) -> Terms:
        """Run forward and backward; return the terms of all parameters."""
        each: Terms = {}
        handles = [layer.register_forward_hook(self._hook(prefix, each)) for prefix, layer in self.layers.items()]
        try:
            if clipped is None:
                value_B = value(self.model, _with_gradient(batch))
                if value_B.requires_grad:
                    value_B.sum().backward()
                return each
            with clipped.recording(len(batch)):
                value_B = value(self.model, batch)
                if value_B.shape != (len(batch),):
                    raise RecipeError(f"expected one value for each of {len(batch)} examples, got {tuple(value_B.shape)}.")
                value_B.sum().backward()
        finally:
            for handle in handles:
                handle.remove()
        return {name: list(terms) for name, terms in clipped.record.terms.items()} | each

    def _hook(self, prefix: str, each: Terms) -> Callable[..., None]:
        def hook(layer: Any, args: tuple[Any, ...], y: Tensor) -> None:
            x, version = args[0], args[0]._version

            def done(g: Tensor) -> None:
                assert x._version == version, f"the input of {prefix} was changed in place"
                xhat = torch.nn.functional.batch_norm(x.detach(), layer.running_mean, layer.running_var, None, None, False, 0.0, layer.eps)
                for leaf, product in (("weight", g * xhat), ("bias", g)):
                    name = f"{prefix}.{leaf}" if prefix else leaf
                    if name in self.wanted:
                        each.setdefault(name, []).append(Dense.of(product.flatten(2).sum(2) if product.ndim > 2 else product))

            if y.requires_grad:
                y.register_hook(done)

        return hook


def _with_gradient(batch: Batch) -> Batch:
    """Inputs that require a gradient, so that there is a backward pass through layers without trainable parameters."""
    if not batch.inputs.is_floating_point():
        raise RecipeError("only batch norms were chosen, behind a lookup of tokens. Choose the embedding or a linear layer too.")
    return replace(batch, inputs=batch.inputs.detach().clone().requires_grad_())
