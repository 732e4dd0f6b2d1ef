"""Knowledge distillation: a student learns from its task and from a larger teacher's outputs (Hinton, Vinyals & Dean 2015, arXiv:1503.02531),
and, if asked, from its hidden states (FitNets, Romero et al. 2015, arXiv:1412.6550).

The job's task is wrapped: its `loss`, which only training calls, becomes the mixture; everything else (validation, predictions, metrics) stays the task's own.
The teacher sees the same microbatch as the student, in the same precision, without gradients, and draws nothing at random.

Shapes: B batch, T time, D width of the student, E of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tauon.compress.training.soft import FAMILIES, divergence, linear_distillation
from tauon.distributed import reshard
from tauon.errors import Problem, RecipeError
from tauon.tasks import LanguageModelling, MaskedLanguageModelling, Task
from tauon.train import TrainJob
from tauon.types import Batch

__all__ = ["DistilledTask", "FeatureMatch", "distilled"]

_LR = 1e-3
"""Peak learning rate of the projections of hidden states, by Adam."""


def distilled(
    job: TrainJob, teacher: nn.Module, *, temperature: float = 2.0, weight: float = 0.5, features: Mapping[str, str] | None = None,
    feature_weight: float = 1.0,
) -> TrainJob:  # fmt: skip
    """Return the same job, whose loss is (1 - weight) task + weight T^2 KL(teacher || student), plus the difference of hidden states.

    Args:
        job: each process must have whole examples and whole layers.
        teacher: trained, on the job's device; it is frozen and put into evaluation mode. Called as the task calls the student.
        temperature: T, for classes and tokens; numbers are compared by their squared difference.
        weight: share of the divergence. 0, without features: the plain job, bit for bit.
        features: module of the student to module of the teacher whose hidden states are compared.
        feature_weight: weight of their mean squared difference.

    Raises:
        RecipeError: the task has no outputs to compare, a module does not exist, or the layout splits layers or examples.
    """
    task, layout = job.task, job.mesh.layout
    if layout.tensor > 1 or layout.pipeline > 1 or layout.context > 1:
        raise RecipeError(
            [Problem("distil", "needs whole layers and sequences in each process. Use parallel.replicate or parallel.shard.")]
        )
    if task.family not in FAMILIES:
        raise RecipeError([Problem("distil", f"does not work with task {task.kind_}. It works with {', '.join(FAMILIES)}.")])
    teacher.requires_grad_(False).eval()
    match = None
    if features:
        match = FeatureMatch(job, teacher, features, feature_weight)
        match.connect(job)
    if weight or match is not None:
        job.task = cast(Task, DistilledTask(task, teacher, temperature, weight, match))
    return job


class _Called:
    """The student, which remembers how the task called it and what it returned."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}
        self.output: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.arguments, self.options = arguments, options
        self.output = self.model(*arguments, **options)
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class DistilledTask:
    """A task whose training loss includes the divergence from a teacher."""

    def __init__(self, task: Task, teacher: nn.Module, temperature: float, weight: float, match: FeatureMatch | None) -> None:
        self.task, self.teacher, self.temperature, self.share, self.match = task, teacher, temperature, weight, match

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (sum of mixed losses, sum of weights), fp32 scalars."""
        task = self.task
        if self.match is not None:
            self.match.begin()
        if isinstance(task, LanguageModelling) and not task.z_loss:  # one pass over the student's logits for both parts
            student, teacher = model(batch.inputs, batch.segments), self._outputs((batch.inputs, batch.segments), {})
            total, weights = self._tokens(model, (student, teacher), batch, hard=1 - self.share), batch.weights.sum()
        else:
            called = _Called(model)
            total, weights = task.loss(cast(nn.Module, called), batch)
            student, teacher = called.output, self._outputs(called.arguments, called.options)
            total = (1 - self.share) * total + self._divergence(model, (student, teacher), batch)
        if self.match is not None:
            total = total + self.match.loss(batch)
        return total, weights

    @torch.no_grad()
    def _outputs(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return self.teacher(*arguments, **options)

    def _divergence(self, model: nn.Module, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        if isinstance(self.task, LanguageModelling | MaskedLanguageModelling):
            return self._tokens(model, outputs, batch, hard=0.0)
        loss_B = divergence(self.task.family, *outputs, self.temperature)
        return self.share * (loss_B * batch.weights).sum()

    def _tokens(self, model: nn.Module, outputs: tuple[Tensor, Tensor], batch: Batch, *, hard: float) -> Tensor:
        """The divergence at tokens of weight above zero, with `hard` times the cross-entropy."""
        heads: list[Any] = [model.head, self.teacher.head]
        if heads[0].weight.shape[0] != heads[1].weight.shape[0]:
            message = f"has {heads[1].weight.shape[0]:,} token ids, the student {heads[0].weight.shape[0]:,}. Both need the same tokenizer."
            raise RecipeError([Problem("distil.teacher", message)])
        where = batch.weights > 0 if isinstance(self.task, MaskedLanguageModelling) else None
        flat = [h.flatten(0, 1) if where is None else h[where] for h in outputs]
        targets, weights = ((t.flatten() if where is None else t[where]) for t in (batch.targets, batch.weights))
        pairs = [_with_bias(h, head) for h, head in zip(flat, heads, strict=True)]
        return linear_distillation(
            *pairs[0], pairs[1], targets, weights, weight=self.share, temperature=self.temperature, hard=hard,
        )  # fmt: skip


def _with_bias(hidden_ND: Tensor, head: Any) -> tuple[Tensor, Tensor]:
    """Return hidden states in autocast's dtype, and the head; a bias becomes one more column, whose input is one."""
    device = hidden_ND.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype(device))
    if head.bias is None:
        return hidden_ND, head.weight
    return torch.cat([hidden_ND, hidden_ND.new_ones(len(hidden_ND), 1)], 1), torch.cat([head.weight, head.bias[:, None]], 1)


class FeatureMatch:
    """mean over a hidden state's width of (P h_student - h_teacher)^2, summed over pairs of modules; P is trained by its own Adam.

    P belongs to no checkpoint of the model; it is in the job's `extra` state, for a resume.
    """

    def __init__(self, job: TrainJob, teacher: nn.Module, features: Mapping[str, str], weight: float) -> None:
        self.features, self.weight, self.device = dict(features), weight, job.policy.device
        self.seen: dict[str, Tensor] = {}
        self.listening = False
        for i, (mine, theirs) in enumerate(self.features.items()):
            self._listen(job.model, mine, f"student {i}", "student")
            self._listen(teacher, theirs, f"teacher {i}", "teacher")
        self._measure(job, teacher)
        sizes = [(self.seen[f"student {i}"].shape, self.seen[f"teacher {i}"].shape) for i in range(len(self.features))]
        for (mine, theirs), (a, b) in zip(self.features.items(), sizes, strict=True):
            if a[:-1] != b[:-1]:
                message = f"{mine} has shape {tuple(a[1:])}, the teacher's {theirs} {tuple(b[1:])}: only the width may differ."
                raise RecipeError([Problem("distil.features", message)])
        with torch.random.fork_rng([]):
            torch.manual_seed(job.policy.seed)
            self.projections = nn.ModuleList(nn.Linear(a[-1], b[-1], bias=False) for a, b in sizes).to(self.device)
        self.optimizer = torch.optim.Adam(self.projections.parameters(), lr=_LR)
        self.seen.clear()

    def _listen(self, model: nn.Module, name: str, key: str, whose: str) -> None:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            names = ", ".join([n for n, _ in model.named_modules() if n][:12])
            raise RecipeError([Problem("distil.features", f"the {whose} has no module {name!r}. It has: {names}, ...")]) from None

        def hook(_: nn.Module, arguments: Any, output: Any) -> None:
            if self.listening:
                hidden = output[0] if isinstance(output, tuple) else output
                self.seen[key] = hidden.movedim(1, -1) if hidden.ndim == 4 else hidden  # channels of pictures last

        module.register_forward_hook(hook)

    def _measure(self, job: TrainJob, teacher: nn.Module) -> None:
        """Run both on one row, for the shapes."""
        row = job.loader.batch_at(job.step).rows(0, 1).to(job.policy.device)
        was_training = job.model.training
        job.model.eval()
        self.begin()
        called = _Called(job.model)
        with torch.no_grad(), job.policy.precision.context():
            job.task.losses(cast(nn.Module, called), row)
            teacher(*called.arguments, **called.options)
        self.listening = False
        reshard(job.model)
        job.model.train(was_training)
        missing = [pair for i, pair in enumerate(self.features.items()) if not {f"student {i}", f"teacher {i}"} <= self.seen.keys()]
        if missing:
            raise RecipeError([Problem("distil.features", f"{missing[0][0]} or {missing[0][1]} takes no part in the forward pass")])

    def begin(self) -> None:
        """Keep the hidden states of the forward passes that follow, until `loss`."""
        self.seen.clear()
        self.listening = True

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum over the batch, weighted like the task's loss."""
        self.listening = False
        total = torch.zeros((), device=self.device)
        for i, projection in enumerate(self.projections):
            student, teacher = self.seen.pop(f"student {i}"), self.seen.pop(f"teacher {i}").detach()
            error = (projection(student.float()) - teacher.float()).square().mean(-1)
            if batch.weights.shape != error.shape:
                error = error.flatten(1).mean(1)
                weights = batch.weights if batch.weights.ndim == 1 else batch.weights.sum(1)
            else:
                weights = batch.weights
            total = total + (error * weights).sum()
        return self.weight * total

    def connect(self, job: TrainJob) -> None:
        """Train the projections in the job's steps, and save them for a resume."""
        make, exchange, update = job.functions.make, job.functions.exchange, job.functions.update

        def making(job: TrainJob, batch: Batch) -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            return make(job, batch)

        def exchanging(job: TrainJob) -> None:
            exchange(job)
            for p in self.projections.parameters():
                if p.grad is not None and job.mesh.reduce_size > 1:
                    p.grad.copy_(job.mesh.sum(p.grad, "replicate", "shard") / job.mesh.reduce_size)

        def updating(job: TrainJob) -> None:
            update(job)
            group = job.optimizer.param_groups[0]
            self.optimizer.param_groups[0]["lr"] = _LR * group["lr"] / group["peak_lr"]
            self.optimizer.step()

        job.functions = replace(job.functions, make=making, exchange=exchanging, update=updating)
        job.extra["distil"] = self

    def tensors(self) -> dict[str, Tensor]:
        """Return projections and their optimizer's state, by name."""
        found: dict[str, Tensor] = {}
        for i, p in enumerate(self.projections.parameters()):
            state = self.optimizer.state.get(p) or {k: torch.zeros_like(p) for k in ("exp_avg", "exp_avg_sq")} | {"step": torch.zeros(())}
            found |= {f"{i}.weight": p.detach()} | {f"{i}.{k}": v for k, v in state.items()}
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `tensors`."""
        for i, p in enumerate(self.projections.parameters()):
            p.copy_(tensors[f"{i}.weight"])
            self.optimizer.state[p] = {k: tensors[f"{i}.{k}"].clone() for k in ("step", "exp_avg", "exp_avg_sq")}
