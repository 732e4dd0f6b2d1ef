"""Load what is served: a run, a checkpoint or a bundle, ready and warmed up."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from tauon.artifacts import WEIGHTS, RunFolder, find_checkpoint, load_checkpoint
from tauon.distributed import release_openmp_threads
from tauon.errors import DataError, TauonError
from tauon.predict import Predictor
from tauon.recipe import load_recipe
from tauon.serve.drift import Drift, Reference
from tauon.serve.metrics import Metrics
from tauon.serve.rollout import Rollout
from tauon.serve.served import Served
from tauon.serve.settings import ServeSettings
from tauon.serve.state import ServerState
from tauon.stages.compressed import is_compressed, open_compressed_run
from tauon.stages.context import Context, null_callback

__all__ = ["load_language_model", "load_served", "open_server"]


def open_server(place: Path, settings: ServeSettings) -> ServerState:
    """Load a run, a checkpoint or a bundle.

    Raises:
        TauonError: the folder holds no model that can be served.
    """
    state = ServerState(settings, Metrics(), place)
    if is_language_model(place):
        from tauon.serve.language import ServedLanguage

        state.language = ServedLanguage(load_language_model(place), settings, state.metrics)
        return state

    def tell(kind: str, message: str) -> None:
        state.metrics.swaps.labels(kind).inc()
        state.events.append({"kind": kind, "message": message})

    served = load_served(place, settings)
    state.predictors = Rollout(served, tell=tell)
    batcher = state.batcher(served)
    for rows, seconds in served.warm_up().items():
        batcher.speed.add(rows, seconds)
    release_openmp_threads()  # requests are computed in another thread
    return state


def load_served(place: Path, settings: ServeSettings) -> Served:
    """Load a predictor."""
    predictor = Predictor.open(place)
    served = Served(predictor, name_of(place), version_of(place), place)
    if settings.drift:
        threading.Thread(target=_add_drift, args=(served,), name="drift", daemon=True).start()
    release_openmp_threads()
    return served


def name_of(place: Path) -> str:
    """Return the name that clients see: the run's."""
    place = place.resolve()
    if place.parent.name in ("checkpoints", "export"):
        place = place.parents[1]
    elif place.name == "compress":
        place = place.parent
    return f"{place.parent.name}-{place.name}" if place.name.startswith("fold-") else place.name


def version_of(place: Path) -> str:
    """Return the first digits of the hash of the weights."""
    bundle = place / "bundle.json"
    if bundle.is_file():
        import hashlib

        return hashlib.sha256(bundle.read_bytes()).hexdigest()[:12]
    if is_compressed(place):
        import hashlib

        return hashlib.sha256((place / "model" / "compressed.json").read_bytes()).hexdigest()[:12]
    return find_checkpoint(place).hash[:12]


def _add_drift(served: Served) -> None:
    """Compute the training data's bins beside the server's start; a server without its data has no drift figures."""
    with contextlib.suppress(TauonError, OSError, KeyError, ValueError):
        folder = run_of(served.place)
        ctx = Context(load_recipe(folder), RunFolder.read(folder), null_callback)
        if ctx.recipe.privacy is not None:  # exact shares of training data are not covered by the guarantee
            return
        preprocess = served.predictor.trained.preprocess
        names = preprocess.get("features") or preprocess.get("columns") or ()
        names = list(names) if isinstance(names, list | tuple) else []
        served.drift = Drift(Reference.of(ctx.splits.train, names), names)


def is_language_model(place: Path) -> bool:
    """Return whether the folder's model continues texts."""
    folder = run_of(place)
    if not (folder / "recipe.yaml").is_file():
        return False
    return load_recipe(folder).task.input_kind in ("tokens", "chat", "pairs") and not (place / "bundle.json").is_file()


def load_language_model(place: Path) -> Any:
    """Return the `TextGenerator` of a run or a checkpoint: model, tokenizer, chat template."""
    from tauon.stages.generate import TextGenerator

    if not is_language_model(place):
        raise DataError(f"{place} is not a language model")
    folder = run_of(place)
    ctx = Context(load_recipe(folder), RunFolder.read(folder), null_callback)
    if is_compressed(place):
        writer = TextGenerator(ctx, model=open_compressed_run(place).model)
        writer.version = version_of(place)
        return writer
    return TextGenerator(ctx, load_checkpoint(place, verify=WEIGHTS) if folder != place else None)


def run_of(place: Path) -> Path:
    """Return the folder of the run that a checkpoint or a compressed model belongs to; otherwise the folder itself."""
    whole = place.resolve()
    if whole.parent.name == "checkpoints":
        return whole.parents[1]
    return whole.parent if is_compressed(place) else place
