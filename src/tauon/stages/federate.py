"""The federate stage: what the trained model is worth to each site -> `federate.json`; simulated sites also alone, and all data in one place."""

from __future__ import annotations

from typing import Any

import torch

from tauon.artifacts import read_json, write_json
from tauon.data import Loader
from tauon.errors import RunError
from tauon.evaluate import evaluate
from tauon.federated.config import FederateConfig
from tauon.federated.report import verdict
from tauon.federated.simulation import SimulatedSites
from tauon.federated.simulation.compare import train_alone
from tauon.stages.context import Context
from tauon.stages.evaluate import scored_task
from tauon.stages.extensions.federation import SITES, deal, rounds_of, site_job, splits_of
from tauon.stages.load import load_model
from tauon.tracking import read_events, timeline
from tauon.train import JobSettings, TrainJob

__all__ = ["federate_stage"]


def federate_stage(ctx: Context) -> dict[str, Any]:
    """Collect rounds and sites from the records; compare, where the sites are simulated here."""
    config = ctx.section("federate", FederateConfig)
    sites = ctx.run.folder / SITES
    if not sites.is_file():
        raise RunError(f"{ctx.run.folder} has no {SITES}: it was not trained with `federate`. Train it again with --fresh.")
    found: dict[str, Any] = {"rounds": rounds_taken(ctx)} | read_json(sites)
    simulate = config.simulate
    if simulate is not None and simulate.compare and simulate.sites <= 20 and splits_of(ctx.splits) is not None:
        if config.strategy.keep(first_job(ctx).model):
            message = f"no comparison: with {config.strategy.kind_} batch norm stays at the sites, and this run's model has the one that it began with"
            ctx.on_event("note", message=message)
        else:
            found["comparison"] = compare(ctx, config)
            ctx.on_event("note", message=verdict(found["comparison"])[0])
    write_json(ctx.run.folder / "federate.json", found)
    return {"rounds": len(found["rounds"])}


def rounds_taken(ctx: Context) -> list[dict[str, Any]]:
    """Return the rounds of the event log, without those that were repeated after a kill."""
    log = timeline(read_events(ctx.run.events_path))
    rounds = {e["round"]: e for e in log if e["kind"] == "federated_round"}
    return [{k: v for k, v in e.items() if k not in ("kind", "time")} for _, e in sorted(rounds.items())]


def compare(ctx: Context, config: FederateConfig) -> dict[str, Any]:
    """Return the test metrics of the federated model, of each site's own, and of one model on all data."""
    assert config.simulate is not None
    dataset, recipe = splits_of(ctx.splits), ctx.recipe
    assert dataset is not None
    parts, rounds = deal(ctx.splits.train, config.simulate, recipe.seed), rounds_of(config, ctx)
    sites = SimulatedSites(first_job(ctx), ctx.splits.train, parts, batch=ctx.train.batch, strategy=config.strategy)
    loaders = {name: sites.loader(i) for i, name in enumerate(sites.names)}
    loaders["pooled"] = Loader(ctx.splits.train, batch=ctx.train.batch, seed=recipe.seed)
    start = first_job(ctx)

    def metrics(model: torch.nn.Module, device: torch.device) -> dict[str, Any]:
        result = evaluate(model, scored_task(recipe.task, dataset), dataset, recipe.evaluate, seed=recipe.seed, split="test", device=device)
        return {"primary": result.primary, "metrics": {n: m.to_json() for n, m in result.metrics.items()}}

    found: dict[str, Any] = {}
    for name, loader in loaders.items():
        what = "all data in one place" if name == "pooled" else f"{name} alone"

        def progress(done: int, total: int, what: str = what) -> None:
            ctx.on_event("progress", what=what, done=done, total=total)

        found[name] = train_alone(start, loader, rounds, recipe.optim.schedule, lambda job: metrics(job.model, job.policy.device), progress)
        loader.close()
    model, precision = load_model(ctx.final_checkpoint, recipe, weights=recipe.evaluate.weights)
    return {
        "federated": metrics(model, torch.device(precision.device)), "pooled": found.pop("pooled"), "alone": found,
        "examples": {name: len(rows) for name, rows in zip(sites.names, parts, strict=True)},
    }  # fmt: skip


def first_job(ctx: Context) -> TrainJob:
    """Return the run's job at step 0, as sites train it."""
    plan = ctx.run.manifest()["training"]["plan"]
    device = torch.device(plan["device"])
    settings = JobSettings(
        steps=plan["steps"], device=device, precision=plan["precision"], compile=plan["compile"], microbatch=plan["microbatch"],
        attention=plan["attention"],
    )  # fmt: skip
    return site_job(ctx, settings)
