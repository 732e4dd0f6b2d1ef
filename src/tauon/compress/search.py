"""`search`: measure candidates on this machine and return the best that keeps the promise, or say why none does.

Quality first: a candidate whose drop (upper end) is too large leaves its most sensitive layers float, more and more of them. Then latency, all in
turns with the model itself, eager and compiled. What is returned is never larger and at no batch size slower than the better of both.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tauon.compress.base import Calibration, CompressStep, LayerStep, Progress, no_progress
from tauon.compress.candidates import Candidate, Target, candidates, compiled, serve
from tauon.compress.compress import Compressed, Heal, compress_model, model_bytes
from tauon.compress.measure import Cost, batch_of_size, call_of, measure
from tauon.compress.quality import Drop, Quality, paired_drop, quality_of
from tauon.compress.sensitivity import layer_sensitivity
from tauon.config import dump
from tauon.errors import DataError, TauonError
from tauon.models import ModelConfig
from tauon.runtimes.base import last_cause
from tauon.tasks import Task
from tauon.types import Dataset

__all__ = ["Point", "SearchResult", "SearchSettings", "search"]

NOISE = 1.03
"""Two medians of this ratio are equal: what turns do not remove of a busy machine."""


@dataclass(frozen=True)
class SearchSettings:
    """How the search measures."""

    target: Target = "cpu"
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    seconds: float = 2.0
    """Time for each batch size, shared by all models."""
    floats: tuple[int, ...] = (1, 2, 4)
    """Numbers of most sensitive layers that are left float, one after another, until the promise is kept."""
    confidence: float = 0.95
    seed: int = 0
    candidates: tuple[Candidate, ...] | None = None
    """What to try; None: what suits the model and the target."""
    compiled: bool = True
    """Whether torch.compile of the model is one of the two that must not be faster."""
    heal: Heal | None = None
    """Trains a candidate after each step but quantisation."""


@dataclass
class Point:
    """One measured candidate: what a Pareto plot draws."""

    name: str
    runtime: str
    steps: tuple[dict[str, Any], ...] = ()
    cost: Cost | None = None
    drop: Drop | None = None
    float_layers: tuple[str, ...] = ()
    keeps_promise: bool = False
    why_not: str = ""
    """Why it cannot be chosen; "": it can."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "runtime": self.runtime, "steps": list(self.steps), "cost": self.cost and self.cost.to_json(),
            "drop": self.drop and self.drop.to_json(), "float_layers": list(self.float_layers), "keeps_promise": self.keeps_promise,
            "why_not": self.why_not,
        }  # fmt: skip


@dataclass
class SearchResult:
    """Every point, and the best that can be chosen."""

    max_drop: float
    points: list[Point]
    """The model itself, eager and compiled, first."""
    best: Point | None
    reason: str
    """Why this one, or why none."""
    compressed: Compressed | None = None
    module: nn.Module | None = None
    """The best in its runtime; it lives in a folder that is gone: for another process, `serve` the compressed model again."""
    sensitivity: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "max_drop": self.max_drop, "points": [p.to_json() for p in self.points], "best": self.best and self.best.name,
            "reason": self.reason, "sensitivity": self.sensitivity,
        }  # fmt: skip


@dataclass
class _Search:
    """What all candidates share."""

    model: nn.Module
    config: ModelConfig | None
    task: Task
    calibration: Calibration
    dataset: Dataset
    max_drop: float
    settings: SearchSettings
    progress: Progress
    folder: Path
    before: Quality
    sensitivity: dict[str, float] = field(default_factory=dict)
    made: dict[str, Compressed] = field(default_factory=dict)

    def try_candidate(self, candidate: Candidate) -> tuple[Point, Compressed | None, nn.Module | None, int]:
        """Compress, move to the runtime and evaluate; with more and more float layers until the promise is kept."""
        point = Point(candidate.name, candidate.runtime)
        found: tuple[Compressed | None, nn.Module | None, int] = (None, None, 0)
        for i, count in enumerate((0, *self.settings.floats)):
            skip = self.most_sensitive(count) if count else ()
            steps = [s.model_copy(update={"skip": (*s.skip, *skip)}) if isinstance(s, LayerStep) else s for s in candidate.steps]
            if count and not any(isinstance(s, LayerStep) for s in candidate.steps):
                break
            try:
                small = self.compressed(steps)
                place = self.folder / f"{len(list(self.folder.iterdir()))}-{i}"
                module, size = serve(small, self.task, self.calibration.batches[0], candidate.runtime, place)
                after = quality_of(module, self.task, self.dataset)
                try_out(module, self.task, self.calibration, self.settings.batch_sizes)
            except Exception as err:  # a runtime's own types: it cannot be chosen, and the others can
                point.why_not = point.why_not or (str(err) if isinstance(err, TauonError) else last_cause(err))
                break
            point.drop = paired_drop(self.before, after, confidence=self.settings.confidence, seed=self.settings.seed)
            point.steps, point.float_layers, found = small.steps, skip, (small, module, size)
            point.keeps_promise = point.drop.keeps(self.max_drop)
            point.why_not = "" if point.keeps_promise else _too_much(point.drop, self.max_drop)
            if point.keeps_promise or point.drop.value > 20 * max(self.max_drop, 0.001):
                break
        return point, *found

    def compressed(self, steps: Sequence[CompressStep]) -> Compressed:
        """Return the result of these steps, which is made once for all runtimes."""
        key = json.dumps([dump(step) for step in steps], sort_keys=True)
        if key not in self.made:
            self.made[key] = compress_model(
                self.model, self.task, self.calibration, steps, config=self.config, heal=self.settings.heal, seed=self.settings.seed
            )
        return self.made[key]

    def most_sensitive(self, count: int) -> tuple[str, ...]:
        if not self.sensitivity:
            self.sensitivity = layer_sensitivity(self.model, self.task, self.calibration, progress=self.progress)
        return tuple(list(self.sensitivity)[:count])


def search(
    model: nn.Module, task: Task, calibration: Calibration, dataset: Dataset, *, max_drop: float = 0.01, config: ModelConfig | None = None,
    settings: SearchSettings | None = None, progress: Progress = no_progress,
) -> SearchResult:  # fmt: skip
    """Measure candidates, keep what keeps the promise, and choose the fastest (the geometric mean over batch sizes).

    Args:
        model: in any mode; it stays as it was.
        task: how it is called, and what quality is.
        calibration: examples of the training data.
        dataset: examples on which quality is measured: neither of training nor of the final test.
        max_drop: largest relative drop of quality, of its upper end.
        config: of the model, so that the result can be saved.
        settings: how to measure.
        progress: called with (what, done, total).

    Raises:
        DataError: no layer can be compressed, the target is not here, or quality cannot be measured.
    """
    settings = settings or SearchSettings()
    if not 0 <= max_drop < 1:
        raise DataError(f"max_drop is {max_drop:g}, expected a share from 0 to 1, 0.01 say")
    own = copy.deepcopy(model).eval()
    tries = candidates(own, target=settings.target)
    tries = tries if settings.candidates is None else list(settings.candidates)
    with tempfile.TemporaryDirectory(prefix="tauon-compress-") as folder, _many_compilations():
        before = quality_of(own, task, dataset, progress=progress)
        state = _Search(own, config, task, calibration, dataset, max_drop, settings, progress, Path(folder), before)
        models: dict[str, nn.Module] = {"eager": own}
        why_not = "not asked for"
        if settings.compiled:
            made, why_not = _compiled(own, task, calibration, settings, progress)
            models |= made
        sizes = dict.fromkeys(models, model_bytes(own))
        points = [Point(f"as trained, {name}", name, keeps_promise=True) for name in models]
        if settings.compiled and "compiled" not in models:
            points.append(Point("as trained, compiled", "compiled", keeps_promise=True, why_not=why_not))
        compressed: dict[str, Compressed] = {}
        for i, candidate in enumerate(tries):
            progress(candidate.name, i, len(tries))
            if candidate.after and candidate.after not in compressed:
                continue
            point, small, module, size = state.try_candidate(candidate)
            points.append(point)
            if small is not None and module is not None and point.keeps_promise:
                models[point.name], sizes[point.name], compressed[point.name] = module, size, small
        costs = measure(
            models, task, calibration.batches, sizes, batch_sizes=settings.batch_sizes, seconds=settings.seconds, progress=progress
        )
        for point in points:
            point.cost = costs.get(point.runtime if point.name.startswith("as trained") else point.name)
        best, reason = _choose(points, max_drop)
    chosen = best.name if best is not None else ""
    return SearchResult(max_drop, points, best, reason, compressed.get(chosen), models.get(chosen), state.sensitivity)


def try_out(module: nn.Module, task: Task, calibration: Calibration, sizes: Sequence[int]) -> None:
    """Run a model once at each batch size: what fails, fails before time is measured."""
    with torch.no_grad():
        for size in sizes:
            call_of(task, module, batch_of_size(calibration.batches, size))()


def _compiled(
    own: nn.Module, task: Task, calibration: Calibration, settings: SearchSettings, progress: Progress
) -> tuple[dict[str, nn.Module], str]:
    """Return the model under torch.compile, or why there is none: it needs a C++ compiler, and not every model can be compiled."""
    module = compiled(own)
    progress("compile", 0, 1)
    try:
        try_out(module, task, calibration, settings.batch_sizes)
    except Exception as err:  # many types; without it, eager alone is what must not be faster
        return {}, f"torch.compile failed: {last_cause(err)}"
    return {"compiled": module}, ""


def _many_compilations() -> Any:
    """Let torch.compile compile one family for several batch sizes and precisions: beyond its limit it would silently run eagerly."""
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=64)


def _too_much(drop: Drop, max_drop: float) -> str:
    return f"{drop.metric} may drop by {drop.high:.2%} ({drop.value:.2%}, upper end), promised {max_drop:.2%}"


def _choose(points: Sequence[Point], max_drop: float) -> tuple[Point | None, str]:
    """Return the fastest point that may be chosen, and the reason."""
    own = [p for p in points if p.name.startswith("as trained") and p.cost is not None]
    costs = [p.cost for p in own if p.cost is not None]
    fastest = {size: min(c.latency_ms[size] for c in costs) for size in costs[0].latency_ms}
    allowed = []
    for point in points:
        if point in own or point.why_not or point.cost is None:
            continue
        slower = [b for b, ms in point.cost.latency_ms.items() if ms > fastest[b] * NOISE]
        if point.cost.size_bytes > costs[0].size_bytes:
            point.why_not = f"larger than the model: {point.cost.size_bytes:,} bytes instead of {costs[0].size_bytes:,}"
        elif slower:
            shown = ", ".join(f"{b}: {point.cost.latency_ms[b]:.3f} ms instead of {fastest[b]:.3f} ms" for b in slower)
            point.why_not = f"slower than the model at batch {shown}"
        else:
            allowed.append(point)
    if not allowed:
        failed = [p for p in points if p.why_not]
        return None, "no candidate keeps the promise and is neither larger nor slower than the model:" + "".join(
            f"\n  {p.name}: {p.why_not}" for p in failed
        )
    best = min(allowed, key=lambda p: _mean_ratio(p, fastest))
    speed, size = 1 / _mean_ratio(best, fastest), (best.cost.size_bytes / costs[0].size_bytes if best.cost else 1.0)
    assert best.drop is not None
    against = "the better of eager and compiled" if len(own) > 1 else "the model in eager torch"
    return best, (
        f"{best.name}: {speed:.1f} times as fast as {against} (mean over batch sizes), {size:.2f} of the size, "
        f"{best.drop.metric} {best.drop.before:.4g} -> {best.drop.after:.4g}, upper end of the drop {best.drop.high:.2%} of at most {max_drop:.2%}"
    )


def _mean_ratio(point: Point, fastest: dict[int, float]) -> float:
    assert point.cost is not None
    logs = [math.log(ms / fastest[b]) for b, ms in point.cost.latency_ms.items()]
    return math.exp(sum(logs) / len(logs))
