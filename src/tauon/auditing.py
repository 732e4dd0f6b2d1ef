"""The audit of a run: its model, its training and its held-out examples back from recipe and checkpoint, attacked; `audit.json`.

Sits beside `pipeline.py`. The attacks and what they prove are in `privacy/audit`; here they are given what they need: the examples, the
outputs of the model and of reference models (each an ordinary run below `audit/`, so that it resumes as any run does), the canaries' record.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tauon.artifacts import Checkpoint, Run, read_json, write_json
from tauon.config import dump, parse
from tauon.data import ChosenExamples, DataSplits, HalfConfig, half_of, plain, pool_of
from tauon.errors import DataError, PrivacyError, RunError
from tauon.evaluate.tiles import predict_all
from tauon.privacy import copy_statistics
from tauon.privacy.accounting import Guarantee, trade_off
from tauon.privacy.audit import (
    Attack,
    Canaries,
    CanaryConfig,
    Signals,
    TradeOff,
    Verdict,
    WithCanaries,
    attack_scores,
    canary_dataset,
    canary_key,
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
    with_canaries,
)
from tauon.recipe import Recipe, load_recipe
from tauon.types import Dataset

if TYPE_CHECKING:
    from tauon.context import Context, Tell

__all__ = ["audit_run", "plant", "planted"]

FOLDER, CANARIES, RECORD = "audit", "canaries.json", "audit.json"
FORMAT = "tauon-audit-1"


# ---------------------------------------------------------------------------------------------- planting, before training


def plant(splits: DataSplits, config: CanaryConfig, folder: Path) -> DataSplits:
    """The splits with canaries in the training part. What was drawn lies in the run's folder, for its owner alone, and is the
    same when the run goes on; it is in no checkpoint.
    """
    path = folder / FOLDER / CANARIES
    before = Canaries.from_json(read_json(path)) if path.exists() else None
    key, absent = (canary_key(config), "zeroed") if before is None else (before.key, before.absent)
    train, found = with_canaries(splits.train, config, key=key, absent=absent)  # type: ignore[arg-type]
    if before is not None and before.to_json() != found.to_json():
        raise RunError(f"{path}: other canaries than the recipe plants. Start over with --fresh, or give another name (name=...).")
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, found.to_json())
        os.chmod(path, 0o600)
    said = {"kind": config.kind, "coins": len(found)}
    fingerprint = hashlib.sha256(f"{splits.fingerprint}/canaries/{hashlib.sha256(found.key).hexdigest()}".encode()).hexdigest()
    return replace(splits, train=train, facts=splits.facts | {"canaries": said}, fingerprint=fingerprint)


def planted(folder: Path) -> Canaries | None:
    """The canaries of a run; None where there are none."""
    path = folder / FOLDER / CANARIES
    return Canaries.from_json(read_json(path)) if path.exists() else None


# ---------------------------------------------------------------------------------------------- the audit


@dataclass
class Examples:
    """What the attacks are about: some members, then some others."""

    dataset: Dataset
    members: int
    others: int
    rows: NDArray[np.int64]
    """Their numbers in the pool of all training and held-out examples."""
    pool: int
    held: str
    """Name of the held-out part."""
    random: bool
    """Whether the split was drawn at random, example by example."""


def audit_run(
    folder: Path, *, tell: Tell, shadows: int = 0, examples: int = 10_000, confidence: float = 0.95, seed: int = 0, slices: bool = True
) -> dict[str, Any]:
    """Attack the run in `folder` every way that applies, write `audit.json` into it, and return the record.

    Args:
        folder: of a trained run.
        tell: told of progress.
        shadows: reference models, an even number; trained by the same recipe where they are not there yet.
        examples: members, and held-out examples, that are looked at: at most so many of each, drawn by `seed`.
        confidence: of intervals, bounds, and of a refutation.
        seed: of what is drawn here, and of the reference models' halves.
        slices: look at each class by itself, too.

    Raises:
        RunError: no such run, not trained, or its data changed.
        RecipeError: nothing was held out.
    """
    from tauon.context import Context

    recipe = load_recipe(folder)
    with Run.open(folder) as run:
        ctx = Context(recipe, run, tell)
        checkpoint = ctx.final_checkpoint
        ctx.refuse_changed_data()
        chosen = choose_examples(ctx.splits, examples, seed)
        signals = read_signals(ctx, checkpoint, chosen.dataset, "the model's answers")
        scores = dict(attack_scores(signals))
        if shadows:
            scores |= with_references(recipe, run, ctx, chosen, signals, shadows, seed)
        promise = guarantee_of(run)
        delta = float(promise["delta"]) if promise else min(1e-5, 0.1 / max(1, len(ctx.splits.train)))
        groups = classes_of(ctx.splits, signals, chosen.members) if slices else {}
        attacks = [
            score_attack(name, about, s[: chosen.members], s[chosen.members :], confidence=confidence, delta=delta, groups=groups)
            for name, (about, s) in scores.items()
        ]
        record: dict[str, Any] = {
            "format": FORMAT, "time": time.time(), "seed": seed, "confidence": confidence, "checkpoint": checkpoint.hash, "guarantee": promise,
            "delta": delta, "shadows": shadows, "held_out": chosen.held, "random_split": chosen.random,
            "attacks": [a.to_json() for a in attacks],
        }  # fmt: skip
        canaries = planted(run.folder)
        each = 1 - (1 - confidence) / 2 if canaries is not None and chosen.random else confidence  # two proofs, two chances to be unlucky
        pairs = audit_pairs(scores, chosen, signals, promise, delta, each, seed)
        record["pairs"] = None if pairs is None else pairs.to_json()
        if canaries is not None:
            record["canaries"] = audit_canaries(ctx, checkpoint, canaries, promise, delta, each)
        record |= conclude(record, attacks)
        write_json(run.folder / RECORD, record)
    return record


def choose_examples(splits: DataSplits, most: int, seed: int) -> Examples:
    """Some training examples and some held-out ones, as they are, without augmentation; canaries are no members."""
    train: Any = splits.train
    base = train.base if isinstance(train, WithCanaries) else train
    held, name = pool_of(splits)[1:]
    kept = train.kept if isinstance(train, WithCanaries) else np.arange(len(base))
    rng = np.random.Generator(np.random.Philox(key=seed))
    mine = np.sort(kept[rng.permutation(len(kept))[:most]])
    theirs = np.sort(rng.permutation(len(held))[:most])
    rows = np.concatenate([mine, len(base) + theirs])
    facts = splits.facts.get("split", {})
    drawn = facts.get("by") == "row" and name not in facts.get("own_parts", ()) and splits.facts.get("kind") not in ("tokens", "series")
    return Examples(ChosenExamples([plain(base), plain(held)], rows), len(mine), len(theirs), rows, len(base) + len(held), name, drawn)


def read_signals(ctx: Context, checkpoint: Checkpoint, dataset: Dataset, what: str) -> dict[str, NDArray[Any]]:
    """What the model of a checkpoint says of each example."""
    from tauon.pipeline import load_model

    recipe = ctx.recipe
    model, precision = load_model(checkpoint, recipe, weights=recipe.evaluate.weights)
    tokenizer = ctx.splits.tokenizer
    decode = None if tokenizer is None else lambda ids: tokenizer.decode(np.asarray(ids))
    found, weights = predict_all(
        model, Signals(recipe.task, decode), dataset, batch=recipe.evaluate.batch, context=precision.context, device=precision.device,
        progress=lambda done, total: ctx.tell("progress", what=what, done=done, total=total),
    )  # fmt: skip
    bad = int((~np.isfinite(found["loss"])).sum())
    if bad or not (weights > 0).all():
        raise DataError(
            f"{bad} of {len(weights)} examples have a loss that is not finite, and {int((weights <= 0).sum())} have no weight. "
            "A model that diverged cannot be audited: use an earlier checkpoint, or train anew"
        )
    return found


def classes_of(
    splits: DataSplits, signals: Mapping[str, NDArray[Any]], members: int
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Slices by class, at most 20 of them, the largest first; none where examples have no class."""
    if "group" not in signals:
        return {}
    labels, counts = np.unique(signals["group"][:members], return_counts=True)
    names = splits.spec.labels
    found = {}
    for c in labels[np.argsort(-counts, kind="stable")][:20].tolist():
        mask = signals["group"] == c
        found[names[c] if c < len(names) else str(c)] = (mask[:members], mask[members:])
    return found


def with_references(
    recipe: Recipe, run: Run, ctx: Context, chosen: Examples, signals: Mapping[str, NDArray[Any]], shadows: int, seed: int
) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """The attacks that need reference models, which are trained where they are not there yet."""
    from tauon.context import Context
    from tauon.pipeline import run as pipeline

    target = statistic(dict(signals))
    reference, included = np.empty((len(target), shadows)), np.empty((len(target), shadows), bool)
    for k in range(shadows):
        ctx.tell("note", message=f"reference model {k + 1} of {shadows}")
        one = shadow_recipe(recipe, k, seed)
        copy_statistics(run.folder, run.folder / FOLDER / one.name, HalfConfig(number=k, seed=seed))
        done = pipeline(one, root=run.folder / FOLDER, stages=("prepare", "train"), tell=ctx.tell)
        theirs = Context(one, done, ctx.tell)
        answers = read_signals(theirs, theirs.final_checkpoint, chosen.dataset, f"answers of reference model {k + 1}")
        reference[:, k] = statistic(answers)
        included[:, k] = half_of(chosen.pool, HalfConfig(number=k, seed=seed))[chosen.rows]
    return {
        "difference": (f"loss less its mean over {shadows // 2} reference models without the example", difficulty_calibrated(target, reference, included)),
        "lira_offline": (
            f"likelihood ratio, {shadows // 2} reference models without the example (Carlini et al. 2022)",
            lira(target, reference, included, mode="offline"),
        ),
        "lira": (f"likelihood ratio, {shadows} reference models (Carlini et al. 2022)", lira(target, reference, included, mode="online")),
    }  # fmt: skip


def is_reference_model(recipe: Recipe, folder: Path) -> bool:
    """Whether `folder` is where an audit trains a reference model, and `recipe` that of one."""
    return recipe.data.half is not None and folder.parent.name == FOLDER and (folder.parent.parent / "recipe.yaml").is_file()


def shadow_recipe(recipe: Recipe, number: int, seed: int) -> Recipe:
    """The same recipe for a random half of the examples. It is for the attacker's eyes: no tracker, no ledger, no canaries, one process."""
    whole = dump(recipe)
    whole |= {
        "name": f"shadow-{number:03d}",
        "seed": recipe.seed + 1 + number,
        "stages": ["prepare", "train"],
        "track": [],
        "launch": "here",
    }
    whole["data"] = whole["data"] | {"half": {"number": number, "seed": seed}}
    if isinstance(whole.get("privacy"), dict):
        whole["privacy"] = {k: v for k, v in whole["privacy"].items() if k not in ("audit", "budget", "ledger")}
    whole["evaluate"] = {}
    return parse(Recipe, whole, f"the recipe of reference model {number}")


def audit_pairs(
    scores: Mapping[str, tuple[str, NDArray[np.float64]]], chosen: Examples, signals: Mapping[str, NDArray[Any]],
    promise: Mapping[str, Any] | None, delta: float, confidence: float, seed: int,
) -> Verdict | None:  # fmt: skip
    """What the split itself proves, without any canary: pairs of a member and a held-out example are coins. None where it was not random."""
    if not chosen.random:
        return None
    groups = signals.get("group")
    inside, outside = (None, None) if groups is None else (groups[: chosen.members], groups[chosen.members :])
    a, b, coins = pairs_as_coins(chosen.members, chosen.others, seed=seed, member_groups=inside, other_groups=outside)
    if len(coins) < 2:
        return None
    whole = {name: s[a] - s[b] for name, (_, s) in scores.items()}
    claimed = None if promise is None else float(promise["epsilon"])
    # A coin replaces one example by another: one change where the promise is for that, two (zeroed out, filled in again) where it is for zeroing out.
    change = 1 if promise is not None and str(promise.get("neighbouring", "")).startswith("replace") else 2
    return judge(whole, coins, delta=delta, claimed=claimed, confidence=confidence, examples=change)


def audit_canaries(
    ctx: Context, checkpoint: Checkpoint, canaries: Canaries, promise: Mapping[str, Any] | None, delta: float, confidence: float
) -> dict[str, Any]:
    """What the canaries prove."""
    found: dict[str, Any] = {"kind": canaries.kind, "planted": len(canaries), "included": int(canaries.included.sum())}
    included = canaries.included
    if canaries.kind == "gradient":
        state = checkpoint.tensors("canaries")
        scores = {name: state[key].numpy() for name, key in (("sum", "total"), ("change", "change"))}
        if promise is not None and "squares" in state:
            seen = noise_level(state["squares"].numpy(), int(state["looked"][0]), included, confidence=1 - (1 - confidence) / 5)
            found["noise"] = None if seen is None else seen.to_json()
    else:
        train: Any = ctx.splits.train
        base = train.base if isinstance(train, WithCanaries) else train
        one = base.batch(np.array([0]))
        dataset = canary_dataset(base, canaries, segments=one.segments is not None)
        signals = read_signals(ctx, checkpoint, dataset, "the model's answers to canaries")
        scores = {"loss": statistic(signals)}
        if canaries.kind == "secret":
            found |= audit_secrets(ctx, checkpoint, canaries)
            once = np.array([s.repeats == 1 for s in canaries.secrets])  # of the others a coin changes several examples
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
    """Exposure of each secret, planted or not, and whether the model tells it."""
    from tauon.pipeline import load_model

    model, precision = load_model(checkpoint, ctx.recipe, weights=ctx.recipe.evaluate.weights)
    tokenizer, rows = ctx.splits.tokenizer, []
    for i, (secret, there) in enumerate(zip(canaries.secrets, canaries.included.tolist(), strict=True)):
        bits, how = exposure(model, tokenizer, secret, seed=i, context=precision.context)
        told = extract(model, tokenizer, secret, context=precision.context)
        rows.append(
            {
                "name": secret.prefix,
                "included": there,
                "repeats": secret.repeats,
                "exposure": bits,
                "most": math.log2(secret.candidates),
                "how": how,
            }
            | told
        )
        ctx.tell("progress", what="exposure of secrets", done=i + 1, total=len(canaries))
    return {"secrets": rows, "extracted": sum(r["included"] and (r["greedy"] or r["beam"]) for r in rows)}


def guarantee_of(run: Run) -> dict[str, Any] | None:
    """What the run promised (`privacy.json`), or None."""
    path = run.folder / "privacy.json"
    if not path.exists():
        return None
    found = read_json(path).get("guarantee")
    if not isinstance(found, dict) or not {"epsilon", "delta"} <= set(found):
        raise RunError(f"{path}: holds no guarantee with epsilon and delta. Restore it, or train anew.")
    return found


def claimed_curve(promise: Mapping[str, Any]) -> TradeOff | None:
    """The guarantee's trade-off curve, worked out anew from what was released: the few points that it keeps are for drawing."""
    if not promise.get("releases"):
        return None
    whole = Guarantee.from_json(dict(promise))
    ends = np.geomspace(1e-8, 0.5, 400)
    alphas = np.unique(np.concatenate([[0.0], ends, 1 - ends, [1.0]]))
    return points_curve(alphas.tolist(), trade_off(whole.releases, alphas, accountant="rdp" if whole.accountant == "rdp" else "pld"))


def conclude(record: Mapping[str, Any], attacks: list[Attack]) -> dict[str, Any]:
    """The sentence that a reader needs, and whether the guarantee is refuted."""
    found = {
        "canaries": (record.get("canaries") or {}).get("verdict"),
        "pairs of a member and a held-out example": record.get("pairs"),
    }
    proofs: dict[str, dict[str, Any]] = {k: v for k, v in found.items() if v is not None}
    promise, level = record["guarantee"], record["confidence"]
    bound = max((v["bound"]["epsilon"] for v in proofs.values()), default=None)
    broken = [k for k, v in proofs.items() if v["contradicts"]]
    best = max(attacks, key=lambda a: (a.rates[0].value, a.auc))
    rate = best.rates[0]
    seen = f"the best attack ({best.name}) finds {rate.value:.2%} of members at {rate.fpr:.1%} false positives, area {best.auc:.3f}"
    proven = (
        f"epsilon is at least {bound:.2f} at {level:.0%} confidence" if bound is not None else "nothing is proven of epsilon without coins"
    )
    noise = (record.get("canaries") or {}).get("noise") or {"contradicts": False}
    if noise["contradicts"]:
        said = (
            f"The audit refutes the guarantee: the noise in the updates is at most {noise['at_most']:.2f} of what was stated (epsilon "
            f"{promise['epsilon']:.3g} was claimed, and {proven})"
        )
    elif broken:
        said = f"The audit refutes the guarantee: epsilon {promise['epsilon']:.3g} was claimed, and {proven} (by {' and by '.join(broken)})"
    elif promise is not None:
        said = f"The audit does not contradict epsilon {promise['epsilon']:.3g}: {proven}"
    else:
        said = f"Nothing was promised; {proven}"
    return {"contradicts": bool(broken) or noise["contradicts"], "epsilon": bound, "summary": f"{said}; {seen}."}


def refuse_broken(folder: Path, record: Mapping[str, Any]) -> None:
    """`PrivacyError` where the audit refutes the guarantee."""
    if record["contradicts"]:
        raise PrivacyError(f"{folder}: {record['summary']} Do not publish this model. {folder / RECORD} has the evidence.")
