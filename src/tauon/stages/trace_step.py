"""What a training step of a run was trained on, as positions in the stream of tokens: computed again from recipe and step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tauon.artifacts import read_json
from tauon.data import Loader, MaskedDataset, TokenDataset, prepare
from tauon.errors import DataError, RunError
from tauon.recipe import load_recipe

__all__ = ["places_of_step"]


def places_of_step(folder: Path, step: int, row: int | None = None) -> list[int]:
    """Return, for each row of the batch of a step, the first position of each document in it. `row`: only this row."""
    recipe = load_recipe(str(folder))
    plan = (read_json(folder / "manifest.json").get("training") or {}).get("plan") or {}
    if recipe.train.batch_warmup is not None or recipe.privacy is not None:
        raise RunError(f"{folder}: a step with train.batch_warmup or privacy cannot be traced; trace a token or a text")
    train = prepare(recipe.data, seed=recipe.seed, input_kind=recipe.task.input_kind).train
    tokens = train.tokens if isinstance(train, MaskedDataset) else train
    if not isinstance(tokens, TokenDataset):
        raise DataError(f"{folder}: only steps over running text can be traced")
    batch = recipe.train.batch
    loader = Loader(train, batch=batch, seed=recipe.seed)
    if plan:  # a mixture's weights may change at a share of the steps
        loader.set_total(int(plan["steps"]))
    if row is not None and row >= batch:
        raise DataError(f"row {row} does not exist: a batch has rows 0 to {batch - 1}")
    epochs, windows = loader.examples_at(step)
    places: list[int] = []
    for r in range(batch) if row is None else [row]:
        start = int(tokens.starts_of(windows[r : r + 1], int(epochs[r]))[0])
        first, last = tokens.shards.document_at(np.array([start, start + tokens.seq_len - 1])).tolist()
        places += [start, *tokens.shards.starts[first + 1 : last + 1].tolist()]
    return places
