"""`tauon check`: does a parallel layout compute the same as one process, on the user's own recipe?

One process takes the first steps of the recipe and saves what it computed: layer outputs of a few rows, losses, gradients,
weights. Then the processes of the layout take the same steps, and each compares its own shards. Nothing is gathered.

Differences are relative, and allowed up to what rounding explains: with u the unit round-off of the precision
(2^-24 for fp32, 2^-8 for bf16), c = 32 for fp32 and 8 for bf16 (whose products are summed in fp32), and L the number of layers,
    outputs, losses   c u sqrt(L + 1)         of the largest element
    gradients         the same, times 4       of the largest element of the parameter's gradient
    updates           4 s + 4 c u sqrt(L + 1) of the norm of the update, where s is how much the optimizer amplifies rounding:
                                              the reference repeats its steps with gradients perturbed by that much (`sensitivity`)
The 0.1% of an update's elements that differ most are ignored: for a gradient no larger than rounding, Adam may step in either direction.
Optimizers amplify rounding differently: SGD not at all, Adam divides by the size of a gradient, and Muon, which iterates in bf16, turns
1e-7 in a gradient into 1e-2 of an update. Matrices that start at zero start small instead, because zeros would hide earlier gradients.
Random draws of the model in training (dropout, masks) are switched off: they differ between layouts. Data augmentation stays on: it
depends only on the example.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauon.artifacts import Checkpoint, load_checkpoint, save_checkpoint
from tauon.config import dump
from tauon.data import Loader
from tauon.distributed import (
    Layout,
    Mesh,
    MeshParallel,
    World,
    choose_layout,
    counted,
    fill,
    local_part,
    local_slices,
    refuse_layout,
    reshard,
)
from tauon.distributed.pieces import first_holder
from tauon.errors import Problem, RecipeError
from tauon.models import ModelConfig, from_record, parameter_count
from tauon.plan import Plan, available_memory, choose_device, choose_precision
from tauon.recipe import Recipe
from tauon.stages.context import Context, EventCallback
from tauon.stages.layout import choose_mesh, refuse_cut_pairs
from tauon.train import JobConfig, TrainJob, build_job, sensitivity, square_of_most, step_seed, train_step
from tauon.types import Batch

__all__ = ["Finding", "compare", "first_divergent", "reference", "scaled_down"]

UNIT = {"fp32": 2.0**-24, "bf16": 2.0**-8}
_DRAWS = 2
"""Draws of perturbed gradients, to measure how much the optimizer amplifies rounding."""


@dataclass(frozen=True)
class Finding:
    """Result of one comparison."""

    what: str
    """output | loss | gradient | update."""
    name: str
    """Name of the layer, the step or the parameter."""
    absolute: float
    """Largest difference of any element."""
    relative: float
    allowed: float

    @property
    def fine(self) -> bool:
        return self.relative <= self.allowed

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"fine": self.fine}


def scaled_down(recipe: Recipe, wanted: int | None, here: int) -> tuple[Recipe, int, str]:
    """Return (recipe, processes, what was changed): the recipe's layout with every dimension at most 2, on at most `here` processes."""
    parallel = recipe.parallel
    if not isinstance(parallel, MeshParallel):
        if parallel.kind_ != "auto":
            raise RecipeError([Problem("parallel.kind", f"{parallel.kind_} cannot be checked: its processes do not take each step together. "
                                       "Check a mesh (auto, or replicate, shard, context, tensor, pipeline).")])  # fmt: skip
        n = min(wanted or here, here)
        return recipe, n, "" if wanted in (None, n) else f"{n} processes instead of {wanted}"
    if parallel.raw_value("compression") != "none":
        message = (
            f"{parallel.raw_value('compression')} rounds gradients on purpose, so they would differ. Check with parallel.compression=none."
        )
        raise RecipeError([Problem("parallel.compression", message)])
    requested = {k: parallel.raw_value(k) or 1 for k in ("pipeline", "tensor", "context", "shard", "replicate")}
    if math.prod(requested.values()) <= here:
        return recipe, wanted or math.prod(requested.values()), ""
    scaled, left = {}, here
    for name, size in requested.items():  # the hardest to get right first
        scaled[name] = 2 if size > 1 and left >= 2 else 1
        left //= scaled[name]
    dropped = [k for k, n in requested.items() if n > 1 and scaled[k] == 1]
    note = f"checking {Layout(**scaled)} instead of {Layout(**requested)}" + (
        f"; {' and '.join(dropped)} not checked: raise --processes to include it" if dropped else ""
    )
    return recipe.model_copy(update={"parallel": parallel.model_copy(update=scaled)}), math.prod(scaled.values()), note


def reference(recipe: Recipe, folder: Path, *, steps: int, processes: int, on_event: EventCallback) -> Checkpoint:
    """Take `steps` steps in this process and save what `compare` needs in `folder`."""
    ctx = Context(recipe, None, on_event)
    model, changed = deterministic_small_model(recipe, ctx, processes)
    if changed:
        on_event("note", message=changed)
    if recipe.privacy is not None:
        on_event("note", message="privacy is left out of the check: the plain step is compared")
    train, seq_len = ctx.train, ctx.splits.spec.seq_len
    layout, _ = choose_layout(recipe.parallel, processes)  # refuse an impossible layout before any work
    refuse_cut_pairs(recipe.task, layout)
    refuse_layout(
        model.build_on_meta(), layout, recipe.parallel, batch=train.batch, seq_len=seq_len, microbatch=train.raw_value("microbatch")
    )
    job, loader = _job(recipe, ctx, model, Mesh(Layout()), steps)
    with torch.no_grad():
        start = {name: p.clone() for name, p in job.model.named_parameters()}
    rows, share = _rows(recipe, ctx.train.batch, layout.data), -(-train.batch // layout.data)
    picked = [r for rank in range(layout.data) for r in range(rank * share, min(rank * share + rows, train.batch))]
    batch = loader.batch_at(0)
    few = _pick(batch, picked).to(job.policy.device)
    outputs = _outputs(job, few)
    losses, gradients = _take(job, loader, steps)
    weights = {name: p.detach() for name, p in job.model.named_parameters()}
    groups = {"outputs": outputs, "gradients": gradients, "start": start, "weights": weights}
    noise = _tight(job.policy.precision.name, model)
    sensitivities = [
        sensitivity(lambda: _job(recipe, ctx, model, Mesh(Layout()), steps), steps, start, weights, noise, draw) for draw in range(_DRAWS)
    ]
    state = {
        "losses": losses,
        "order": list(outputs),
        "model": dump(model),
        "precision": job.policy.precision.name,
        "steps": steps,
        "rows": picked,
        "sensitivity": {name: max(one[name] for one in sensitivities) for name in sensitivities[0]},
    }
    return save_checkpoint(folder, 0, groups, state)


def compare(recipe: Recipe, folder: Path, world: World, *, on_event: EventCallback) -> tuple[list[Finding], dict[str, int], str]:
    """Collective: take the same steps on the recipe's layout; return (findings, bytes sent per step by kind, layout), equal on all ranks."""
    saved = load_checkpoint(folder / "step-000000", verify=False)
    ctx = Context(recipe, None, on_event, world)
    model = from_record(saved.state["model"])
    mesh, _ = choose_mesh(model, ctx.train, recipe.parallel, ctx.splits.spec, world)
    job, loader = _job(recipe, ctx, model, mesh, saved.state["steps"])
    tight = _tight(saved.state["precision"], model)

    share = -(-ctx.train.batch // mesh.layout.data)
    first = mesh.data_rank * share
    own_rows = [i for i, row in enumerate(saved.state["rows"]) if first <= row < first + share]
    few = _pick(loader.batch_at(0), [saved.state["rows"][i] - first for i in own_rows]).to(job.policy.device)
    parts: list[dict[str, Any]] = []
    lazy = saved.lazy("outputs")
    for name, got in _outputs(job, few).items():
        want = lazy[name][(slice(own_rows[0], own_rows[-1] + 1),)]
        parts.append(_part("output", name, got, _my_positions(got, want, mesh)))
    with counted() as sent:
        losses, gradients = _take(job, loader, saved.state["steps"], sent)
    reshard(job.model)
    for name, g in gradients.items():
        parts.append(_part("gradient", name, local_part(g), saved.lazy("gradients")[name][local_slices(g)]))
    weights, start = saved.lazy("weights"), saved.lazy("start")
    for name, p in job.model.named_parameters():
        if first_holder(p):
            where = local_slices(p)
            old = start[name][where]
            parts.append(_part("update", name, local_part(p.detach()) - old, weights[name][where] - old))
    loose = {name: 4 * s + 4 * tight for name, s in saved.state["sensitivity"].items()}
    findings = _together(world.gather(parts), tight, loose, saved.state["order"])
    for i, (loss, want) in enumerate(zip(losses, saved.state["losses"], strict=True)):
        off = abs(loss - want)
        findings.append(Finding("loss", f"step {i + 1}", off, off / max(abs(want), 1e-12), tight if i == 0 else tight * 4))
    return findings, dict(sent), str(mesh.layout)


def _tight(precision: str, model: ModelConfig) -> float:
    """Relative difference that rounding explains: c u sqrt(L + 1)."""
    depth = max(1, len(model.build_on_meta().blocks_to_compile()))
    return (32 if precision == "fp32" else 8) * UNIT[precision] * math.sqrt(depth + 1)


def first_divergent(findings: list[Finding]) -> Finding | None:
    """Return the first output in forward order that differs, or else the first loss, gradient or update; None if none differs."""
    for what in ("output", "loss", "gradient", "update"):
        first = next((f for f in findings if f.what == what and not f.fine), None)
        if first is not None:
            return first
    return None


# ---------------------------------------------------------------------------------------------- the steps


def deterministic_small_model(recipe: Recipe, ctx: Context, processes: int) -> tuple[ModelConfig, str]:
    """Return the model without dropout, with fewer layers if all copies of it with optimizer do not fit in memory, and what was changed."""
    model = ctx.model
    changes = []
    off: dict[str, Any] = {k: 0 for k in model.random_fields() if model.raw_value(k)}
    if off:
        changes.append(f"{' and '.join(off)} off")
    if model.adapt is not None:
        off["adapt"] = model.adapt.model_copy(update={"dropout": 0.0})
    model = model.model_copy(update=off)
    free = available_memory(choose_device(recipe.train.device)[0])
    needed = parameter_count(model.build_on_meta()) * 4.0 * 8 * (processes + 1)
    if free is not None and needed > free and "layers" in type(model).model_fields and model.from_ is None:
        stages = 2 * (recipe.parallel.raw_value("pipeline") if isinstance(recipe.parallel, MeshParallel) else 1)
        if stages < model.raw_value("layers"):
            copies = f"{processes + 1} copies of the whole model do not fit in memory"
            changes.append(f"{stages} layers instead of {model.raw_value('layers')}: {copies}")
            model = model.model_copy(update={"layers": stages})
    return model, "for the check: " + ", ".join(changes) if changes else ""


def _job(recipe: Recipe, ctx: Context, model: ModelConfig, mesh: Mesh, steps: int) -> tuple[TrainJob, Loader]:
    spec = ctx.splits.spec
    device, _ = choose_device(recipe.train.device)
    precision, _ = choose_precision(recipe.train.precision, device, model.build_on_meta())
    loader = Loader(ctx.splits.train, batch=ctx.train.batch, seed=recipe.seed, rank=mesh.data_rank, world=mesh.layout.data)
    share = -(-ctx.train.batch // mesh.layout.data)
    plan = Plan(steps, device, precision.name, False, min(share, recipe.train.microbatch or share), 1, 1, torch.get_num_threads())
    job = build_job(
        JobConfig(model, recipe.optim, ctx.train, recipe.task, spec, recipe.seed), loader, plan, mesh=mesh, parallel=recipe.parallel
    )
    init_zero_params(job)
    job.model.train()
    return job, loader


@torch.no_grad()
def init_zero_params(job: TrainJob) -> None:
    """Give matrices that are all zero (an output head) small values by (seed, name): zeros would hide every gradient before them."""
    for name, p in job.model.named_parameters():
        zero = torch.tensor(float(local_part(p).count_nonzero()))
        if job.mesh.world.size > 1:
            job.mesh.sum(zero, "replicate", "shard", "context", "tensor")
        if p.ndim >= 2 and zero.item() == 0:
            g = torch.Generator().manual_seed(step_seed(job.policy.seed, 0, sum(name.encode())))
            fill(p, torch.randn(p.shape, generator=g) * 0.02)


def _take(job: TrainJob, loader: Loader, steps: int, sent: Any = None) -> tuple[list[float], dict[str, Tensor]]:
    """Take `steps` steps; return (losses, gradients of the first step)."""
    gradients: dict[str, Tensor] = {}
    functions = job.functions

    def keep(job: TrainJob) -> None:
        functions.exchange(job)
        if job.step == 0:
            for name, p in job.model.named_parameters():
                if p.grad is not None:
                    gradients[name] = p.grad.detach().clone()

    job.functions = replace(functions, exchange=keep)
    losses: list[float] = []
    for step in range(steps):
        if sent is not None:
            sent.clear()  # report the last step: the first one also exchanges shapes
        losses.append(float(train_step(job, loader.batch_at(step).to(job.policy.device))["loss"]))
    job.functions = functions
    return losses, gradients


def _outputs(job: TrainJob, batch: Batch) -> dict[str, Tensor]:
    """Return each layer's output for a few rows by name, in forward order; if sharded, this process's shard."""
    names = {id(m): n for n, m in job.model.named_modules()}
    blocks = job.model.blocks_to_compile()  # type: ignore[operator]
    layers = blocks or [m for m in job.model.modules() if next(m.parameters(recurse=False), None) is not None]
    seen: dict[str, list[Tensor]] = {}

    def hook(layer: nn.Module, _: Any, out: Tensor) -> None:
        seen.setdefault(names[id(layer)], []).append(local_part(out).detach().float().cpu())

    handles = [layer.register_forward_hook(hook) for layer in layers]
    job.model.eval()
    try:
        with torch.no_grad():
            job.functions.score(job, batch)
    finally:
        for handle in handles:
            handle.remove()
        job.model.train()
        reshard(job.model)
    # In its first pass a pipeline runs a stage once more to infer shapes: the rows that count come last.
    if job.task.input_kind == "pairs":  # an example is two rows
        return {name: torch.cat(parts)[-2 * len(batch) :].unflatten(0, (len(batch), 2)) for name, parts in seen.items()}
    return {name: torch.cat(parts)[-len(batch) :] for name, parts in seen.items()}


def _pick(batch: Batch, rows: list[int]) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{k: v[rows] for k, v in values.items() if v is not None})


def _rows(recipe: Recipe, batch: int, data: int) -> int:
    """Rows of each data-parallel process whose layer outputs are compared."""
    parallel, share = recipe.parallel, -(-batch // data)
    if isinstance(parallel, MeshParallel) and parallel.raw_value("pipeline") > 1:
        return int(parallel.raw_value("stage_microbatches") or min(share, 2 * parallel.raw_value("pipeline")))
    return min(share, 2)


def _my_positions(got: Tensor, want: Tensor, mesh: Mesh) -> Tensor:
    """Return this process's slice of the full sequences: by context, then by tensor (sequence parallelism)."""
    if got.shape == want.shape or got.ndim < 2:
        return want
    ways = want.shape[1] // got.shape[1]
    turn = mesh.at["context"] if ways == mesh.layout.context else mesh.at["tensor"]
    if ways == mesh.layout.context * mesh.layout.tensor and mesh.layout.context > 1 and mesh.layout.tensor > 1:
        turn = mesh.at["context"] * mesh.layout.tensor + mesh.at["tensor"]
    return want.chunk(ways, dim=1)[turn]


# ---------------------------------------------------------------------------------------------- the comparison


def _part(what: str, name: str, got: Tensor, want: Tensor) -> dict[str, Any]:
    """Compare one process's shard: largest difference and value, and sums of squares."""
    got, want = got.detach().float().cpu(), want.float()
    if not got.numel():
        return {"what": what, "name": name, "absolute": 0.0, "largest": 0.0, "square": 0.0, "of": 0.0}
    off = (got - want).double()
    return {
        "what": what, "name": name, "absolute": _finite(off.abs().max().item()), "largest": want.abs().max().item(),
        "square": square_of_most(off), "of": want.double().square().sum().item(),
    }  # fmt: skip


def _finite(x: float) -> float:
    """JSON has no infinity: replace what is not finite by a huge number."""
    return x if math.isfinite(x) else 1e300


def _together(parts: list[list[dict[str, Any]]], tight: float, loose: dict[str, float], order: list[str]) -> list[Finding]:
    """Merge the comparisons of all shards: outputs in forward order, then gradients, then updates. `loose`: allowed for updates."""
    merged: dict[tuple[str, str], dict[str, float]] = {}
    for part in (part for rank in parts for part in rank):
        whole = merged.setdefault((part["what"], part["name"]), {"absolute": 0.0, "largest": 0.0, "square": 0.0, "of": 0.0})
        for key in ("absolute", "largest"):
            whole[key] = max(whole[key], part[key])
        for key in ("square", "of"):
            whole[key] += part[key]
    overall = max((w["largest"] for (what, _), w in merged.items() if what == "gradient"), default=0.0)
    findings: list[Finding] = []
    idle: set[str] = set()
    for (what, name), w in merged.items():
        if what == "update":
            continue
        scale = w["largest"]
        if what == "gradient" and scale < 1e-6 * overall:
            idle.add(name)  # its true gradient is zero (the bias of a key, say), so its value is rounding
            scale = overall
        findings.append(Finding(what, name, w["absolute"], w["absolute"] / max(scale, 1e-30), tight if what == "output" else 4 * tight))
    for (what, name), w in merged.items():
        if what == "update" and name not in idle:
            findings.append(
                Finding(what, name, w["absolute"], math.sqrt(w["square"] / max(w["of"], 1e-60)) if w["square"] else 0.0, loose[name])
            )
    place = {name: i for i, name in enumerate(order)}
    return sorted(
        findings, key=lambda f: (("output", "gradient", "update").index(f.what), place.get(f.name, 0) if f.what == "output" else 0)
    )
