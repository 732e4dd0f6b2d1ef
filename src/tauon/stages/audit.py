"""The audit stage: loads model, training and held-out examples of a run, attacks the model, writes `audit.json`.

The attacks and their statistics are in `privacy/audit`; this file supplies their inputs: examples, outputs of the model and of shadow models
(each an ordinary run inside `audit/`, which resumes like any run), and the record of canaries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.artifacts import Checkpoint, RunFolder, read_json, write_json
from tauon.config import parse
from tauon.data import ChosenExamples, DataSplits, HalfConfig, half_of, pool_of, without_augmentation
from tauon.errors import DataError, PrivacyError, RunError
from tauon.evaluate.tiles import predict_all
from tauon.privacy import copy_statistics
from tauon.privacy.accounting import Guarantee, trade_off
from tauon.privacy.audit import (
    Attack,
    AuditConfig,
    Canaries,
    Signals,
    TradeOff,
    Verdict,
    WithCanaries,
    attack_scores,
    canary_dataset,
    difficulty_calibrated,
    exposure,
    extract,
    judge,
    lira,
    noise_level,
    pairs_as_coins,
    points_curve,
    score_attack,
    statistic,
)
from tauon.recipe import Recipe, child_tree, load_recipe
from tauon.stages.context import Context, EventCallback
from tauon.stages.engine import do_stage, run_recipe
from tauon.stages.extensions.canaries import FOLDER, planted
from tauon.stages.load import load_model
from tauon.stages.report import write_report
from tauon.types import Dataset

__all__ = ["GuaranteeRefuted", "audit_run", "audit_stage"]

RECORD = "audit.json"
FORMAT = "tauon-audit-1"


class GuaranteeRefuted(PrivacyError):
    """An audit proved that the privacy guarantee is false."""


# ---------------------------------------------------------------------------------------------- the audit


@dataclass
class Examples:
    """The examples that are attacked: first members, then held-out ones."""

    dataset: Dataset
    members: int
    others: int
    rows: NDArray[np.int64]
    """Indices in the pool of all training and held-out examples."""
    pool: int
    held: str
    """Name of the held-out part."""
    random: bool
    """Whether each example was assigned to its part at random."""


def audit_stage(ctx: Context) -> dict[str, Any]:
    """Checkpoint -> `audit.json`. Raises `GuaranteeRefuted` if the audit refutes the guarantee, after writing the report with the evidence."""
    config = ctx.section("audit", AuditConfig)
    record = audit(ctx, config)
    if record["contradicts"]:
        write_report(ctx.run.folder, ctx.on_event)
        refuse_broken(ctx.run.folder, record)
    return {"checkpoint": record["checkpoint"], "summary": record["summary"]}


def audit_run(folder: Path, config: AuditConfig, *, on_event: EventCallback) -> dict[str, Any]:
    """Attack the run in `folder` with every attack that applies, even if it was audited before, and write the report.

    Args:
        folder: folder of a trained run.
        config: settings of the audit.
        on_event: called with each event.

    Returns:
        The record, `audit.json`.

    Raises:
        RunError: no such run, not trained, or its data changed.
        RecipeError: no data was held out.
        GuaranteeRefuted: the guarantee is false. Records and report are written first.
    """
    recipe = load_recipe(folder).with_section("audit", config)
    with RunFolder.open(folder) as run:
        ctx = Context(recipe, run, on_event)
        do_stage(ctx, "audit")
        write_report(folder, on_event)
    record: dict[str, Any] = read_json(run.folder / RECORD)
    return record


def audit(ctx: Context, config: AuditConfig) -> dict[str, Any]:
    """Run the attacks, write `audit.json` and return it."""
    recipe, run = ctx.recipe, ctx.run
    checkpoint = ctx.final_checkpoint
    ctx.refuse_changed_data()
    chosen = choose_examples(ctx.splits, config.examples, config.seed)
    signals = read_signals(ctx, checkpoint, chosen.dataset, "the model's outputs")
    scores = dict(attack_scores(signals))
    if config.shadows:
        scores |= shadow_attacks(recipe, run, ctx, chosen, signals, config.shadows, config.seed)
    promise = guarantee_of(run)
    delta = float(promise["delta"]) if promise else min(1e-5, 0.1 / max(1, len(ctx.splits.train)))
    groups = classes_of(ctx.splits, signals, chosen.members) if config.slices else {}
    attacks = [
        score_attack(name, description, s[: chosen.members], s[chosen.members :], confidence=config.confidence, delta=delta, groups=groups)
        for name, (description, s) in scores.items()
    ]
    record: dict[str, Any] = {
        "format": FORMAT, "time": time.time(), "seed": config.seed, "confidence": config.confidence, "checkpoint": checkpoint.hash,
        "guarantee": promise, "delta": delta, "shadows": config.shadows, "held_out": chosen.held, "random_split": chosen.random,
        "attacks": [a.to_json() for a in attacks],
    }  # fmt: skip
    canaries = planted(run.folder)
    two_proofs = canaries is not None and chosen.random  # Bonferroni: each test gets half of the error probability
    each = 1 - (1 - config.confidence) / 2 if two_proofs else config.confidence
    pairs = audit_pairs(scores, chosen, signals, promise, delta, each, config.seed)
    record["pairs"] = None if pairs is None else pairs.to_json()
    if canaries is not None:
        record["canaries"] = audit_canaries(ctx, checkpoint, canaries, promise, delta, each)
    record |= conclude(record, attacks)
    write_json(run.folder / RECORD, record)
    return record


def choose_examples(splits: DataSplits, most: int, seed: int) -> Examples:
    """Draw training and held-out examples, without augmentation. Canaries do not count as members."""
    train: Any = splits.train
    base = train.base if isinstance(train, WithCanaries) else train
    held_out, name = pool_of(splits)[1:]
    candidates = train.kept if isinstance(train, WithCanaries) else np.arange(len(base))
    rng = np.random.Generator(np.random.Philox(key=seed))
    members = np.sort(candidates[rng.permutation(len(candidates))[:most]])
    others = np.sort(rng.permutation(len(held_out))[:most])
    rows = np.concatenate([members, len(base) + others])
    facts = splits.facts.get("split", {})
    drawn = facts.get("by") == "row" and name not in facts.get("own_parts", ()) and splits.facts.get("kind") not in ("tokens", "series")
    dataset = ChosenExamples([without_augmentation(base), without_augmentation(held_out)], rows)
    return Examples(dataset, len(members), len(others), rows, len(base) + len(held_out), name, drawn)


def read_signals(ctx: Context, checkpoint: Checkpoint, dataset: Dataset, what: str) -> dict[str, NDArray[Any]]:
    """Return the outputs of a checkpoint's model for each example. `what`: description for the progress bar."""
    recipe = ctx.recipe
    model, precision = load_model(checkpoint, recipe, weights=recipe.evaluate.weights)
    tokenizer = ctx.splits.tokenizer
    decode = None if tokenizer is None else lambda ids: tokenizer.decode(np.asarray(ids))
    outputs, weights = predict_all(
        model, Signals(recipe.task, decode), dataset, batch=recipe.evaluate.batch, context=precision.context, device=precision.device,
        progress=lambda done, total: ctx.on_event("progress", what=what, done=done, total=total),
    )  # fmt: skip
    bad = int((~np.isfinite(outputs["loss"])).sum())
    if bad or not (weights > 0).all():
        raise DataError(
            f"{bad} of {len(weights)} examples have a loss that is not finite, and {int((weights <= 0).sum())} have weight zero. "
            "A model that diverged cannot be audited: use an earlier checkpoint, or train again with a lower optim.lr."
        )
    return outputs


def classes_of(
    splits: DataSplits, signals: Mapping[str, NDArray[Any]], members: int
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Return slices by class, largest first, at most 20; none if examples have no class."""
    if "group" not in signals:
        return {}
    labels, counts = np.unique(signals["group"][:members], return_counts=True)
    names = splits.spec.labels
    slices = {}
    for c in labels[np.argsort(-counts, kind="stable")][:20].tolist():
        mask = signals["group"] == c
        slices[names[c] if c < len(names) else str(c)] = (mask[:members], mask[members:])
    return slices


def shadow_attacks(
    recipe: Recipe, run: RunFolder, ctx: Context, chosen: Examples, signals: Mapping[str, NDArray[Any]], shadows: int, seed: int
) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Return the attacks that need shadow models; train those that do not exist yet."""
    target = statistic(dict(signals))
    reference, included = np.empty((len(target), shadows)), np.empty((len(target), shadows), bool)
    for k in range(shadows):
        ctx.on_event("note", message=f"shadow model {k + 1} of {shadows}")
        one = shadow_recipe(recipe, k, seed)
        copy_statistics(run.folder, run.folder / FOLDER / one.name, HalfConfig(number=k, seed=seed))
        done = run_recipe(one, run.folder / FOLDER / one.name, stages=("prepare", "train"), on_event=ctx.on_event)
        shadow = Context(one, done, ctx.on_event)
        outputs = read_signals(shadow, shadow.final_checkpoint, chosen.dataset, f"outputs of shadow model {k + 1}")
        reference[:, k] = statistic(outputs)
        included[:, k] = half_of(chosen.pool, HalfConfig(number=k, seed=seed))[chosen.rows]
    return {
        "difference": (
            f"loss minus its mean over {shadows // 2} shadow models trained without the example",
            difficulty_calibrated(target, reference, included),
        ),
        "lira_offline": (
            f"likelihood ratio, {shadows // 2} shadow models trained without the example (Carlini et al. 2022)",
            lira(target, reference, included, mode="offline"),
        ),
        "lira": (f"likelihood ratio, {shadows} shadow models (Carlini et al. 2022)", lira(target, reference, included, mode="online")),
    }  # fmt: skip


def shadow_recipe(recipe: Recipe, number: int, seed: int) -> Recipe:
    """Return the recipe of a shadow model, trained on a random half of the examples: no tracker, ledger or canaries, one process."""
    tree = child_tree(recipe, f"shadow-{number:03d}", ("prepare", "train"))
    tree["seed"] = recipe.seed + 1 + number
    tree["data"] = tree["data"] | {"half": {"number": number, "seed": seed}}
    if isinstance(tree.get("privacy"), dict):
        tree["privacy"] = {k: v for k, v in tree["privacy"].items() if k not in ("audit", "budget", "ledger")}
    return parse(Recipe, tree, f"the recipe of shadow model {number}")


def audit_pairs(
    scores: Mapping[str, tuple[str, NDArray[np.float64]]], chosen: Examples, signals: Mapping[str, NDArray[Any]],
    promise: Mapping[str, Any] | None, delta: float, confidence: float, seed: int,
) -> Verdict | None:  # fmt: skip
    """Test epsilon without canaries: each pair of a member and a held-out example is one coin flip. None if the split was not random."""
    if not chosen.random:
        return None
    groups = signals.get("group")
    inside, outside = (None, None) if groups is None else (groups[: chosen.members], groups[chosen.members :])
    a, b, coins = pairs_as_coins(chosen.members, chosen.others, seed=seed, member_groups=inside, other_groups=outside)
    if len(coins) < 2:
        return None
    differences = {name: s[a] - s[b] for name, (_, s) in scores.items()}
    claimed = None if promise is None else float(promise["epsilon"])
    # A coin replaces one example by another: one change under replace-one neighbours, two under zero-out neighbours (out, in again).
    change = 1 if promise is not None and str(promise.get("neighbouring", "")).startswith("replace") else 2
    return judge(differences, coins, delta=delta, claimed=claimed, confidence=confidence, examples=change)


def audit_canaries(
    ctx: Context, checkpoint: Checkpoint, canaries: Canaries, promise: Mapping[str, Any] | None, delta: float, confidence: float
) -> dict[str, Any]:
    """Return what the canaries prove."""
    found: dict[str, Any] = {"kind": canaries.kind, "planted": len(canaries), "included": int(canaries.included.sum())}
    included = canaries.included
    if canaries.kind == "gradient":
        state = checkpoint.tensors("canaries")
        scores = {name: state[key].numpy() for name, key in (("sum", "total"), ("change", "change"))}
        if promise is not None and "squares" in state:
            measured = noise_level(state["squares"].numpy(), int(state["looked"][0]), included, confidence=1 - (1 - confidence) / 5)
            found["noise"] = None if measured is None else measured.to_json()
    else:
        train: Any = ctx.splits.train
        base = train.base if isinstance(train, WithCanaries) else train
        one = base.batch(np.array([0]))
        dataset = canary_dataset(base, canaries, segments=one.segments is not None)
        signals = read_signals(ctx, checkpoint, dataset, "the model's outputs for canaries")
        scores = {"loss": statistic(signals)}
        if canaries.kind == "secret":
            found |= audit_secrets(ctx, checkpoint, canaries)
            once = np.array([s.repeats == 1 for s in canaries.secrets])  # the coin of a repeated secret changes several examples
            exposure = np.array([row["exposure"] for row in found["secrets"]])
            scores, included = {"loss": scores["loss"][once], "exposure": exposure[once]}, included[once]
    if len(included) >= 2:
        claimed, curve = (None, None) if promise is None else (float(promise["epsilon"]), claimed_curve(promise))
        found["verdict"] = judge(scores, included, delta=delta, claimed=claimed, curve=curve, confidence=confidence).to_json()
        best = found["verdict"]["statistic"]
        if 0 < included.sum() < len(included):
            s = scores[best]
            found["attack"] = score_attack(
                "canaries", f"canaries that are in the data, by their {best}", s[included], s[~included], confidence=confidence, delta=delta
            ).to_json()
    return found


def audit_secrets(ctx: Context, checkpoint: Checkpoint, canaries: Canaries) -> dict[str, Any]:
    """Return the exposure of each secret, inserted or not, and whether it can be extracted."""
    model, precision = load_model(checkpoint, ctx.recipe, weights=ctx.recipe.evaluate.weights)
    tokenizer, rows = ctx.splits.tokenizer, []
    for i, (secret, included) in enumerate(zip(canaries.secrets, canaries.included.tolist(), strict=True)):
        bits, how = exposure(model, tokenizer, secret, seed=i, context=precision.context)
        extracted = extract(model, tokenizer, secret, context=precision.context)
        rows.append(
            {
                "name": secret.prefix,
                "included": included,
                "repeats": secret.repeats,
                "exposure": bits,
                "most": math.log2(secret.candidates),
                "how": how,
            }
            | extracted
        )
        ctx.on_event("progress", what="exposure of secrets", done=i + 1, total=len(canaries))
    return {"secrets": rows, "extracted": sum(r["included"] and (r["greedy"] or r["beam"]) for r in rows)}


def guarantee_of(run: RunFolder) -> dict[str, Any] | None:
    """Return the run's privacy guarantee (`privacy.json`), or None if it has none."""
    path = run.folder / "privacy.json"
    if not path.exists():
        return None
    guarantee = read_json(path).get("guarantee")
    if not isinstance(guarantee, dict) or not {"epsilon", "delta"} <= set(guarantee):
        raise RunError(f"{path}: has no guarantee with epsilon and delta. Restore the file, or train again with --fresh.")
    return guarantee


def claimed_curve(promise: Mapping[str, Any]) -> TradeOff | None:
    """Compute the guarantee's trade-off curve from its releases: the few points stored in the record are only for plotting."""
    if not promise.get("releases"):
        return None
    guarantee = Guarantee.from_json(dict(promise))
    ends = np.geomspace(1e-8, 0.5, 400)
    alphas = np.unique(np.concatenate([[0.0], ends, 1 - ends, [1.0]]))
    return points_curve(
        alphas.tolist(), trade_off(guarantee.releases, alphas, accountant="rdp" if guarantee.accountant == "rdp" else "pld")
    )


def conclude(record: Mapping[str, Any], attacks: list[Attack]) -> dict[str, Any]:
    """Return the summary sentence, the lower bound on epsilon, and whether the guarantee is refuted."""
    verdicts = {
        "canaries": (record.get("canaries") or {}).get("verdict"),
        "pairs of a member and a held-out example": record.get("pairs"),
    }
    proofs: dict[str, dict[str, Any]] = {k: v for k, v in verdicts.items() if v is not None}
    promise, level = record["guarantee"], record["confidence"]
    bound = max((v["bound"]["epsilon"] for v in proofs.values()), default=None)
    broken = [k for k, v in proofs.items() if v["contradicts"]]
    best = max(attacks, key=lambda a: (a.rates[0].value, a.auc))
    rate = best.rates[0]
    attack = (
        f"the best attack ({best.name}) finds {rate.value:.2%} of members at a false positive rate of {rate.fpr:.1%}, AUC {best.auc:.3f}"
    )
    proven = (
        f"epsilon is at least {bound:.2f} at {level:.0%} confidence"
        if bound is not None
        else "no lower bound on epsilon without canaries or a random split"
    )
    noise = (record.get("canaries") or {}).get("noise") or {"contradicts": False}
    if noise["contradicts"]:
        verdict = (
            f"The audit refutes the guarantee: the noise in the updates is at most {noise['at_most']:.2f} of what was stated (epsilon "
            f"{promise['epsilon']:.3g} was claimed, and {proven})"
        )
    elif broken:
        verdict = (
            f"The audit refutes the guarantee: epsilon {promise['epsilon']:.3g} was claimed, and {proven} (by {' and by '.join(broken)})"
        )
    elif promise is not None:
        verdict = f"The audit does not contradict epsilon {promise['epsilon']:.3g}: {proven}"
    else:
        verdict = f"This run has no privacy guarantee; {proven}"
    return {"contradicts": bool(broken) or noise["contradicts"], "epsilon": bound, "summary": f"{verdict}; {attack}."}


def refuse_broken(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise `GuaranteeRefuted` if the record refutes the guarantee."""
    if record["contradicts"]:
        raise GuaranteeRefuted(f"{folder}: {record['summary']} Do not publish this model. {folder / RECORD} has the evidence.")
