"""What tuning on answers adds to a run: the reference that preferences are measured against, and answers to held-out questions as samples.

Knows nothing of training; `pipeline.py` calls it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tauon.config import dump
from tauon.data import DataConfig, DataSplits, Message, PairDataset, chat_prompt, with_reference
from tauon.generate import Sampling, generate
from tauon.models import GPT, ModelConfig, PretrainedModel, materialize
from tauon.plan import choose_device, choose_precision
from tauon.recipe import Recipe
from tauon.tasks import answer_log_probs
from tauon.train import Precision

__all__ = ["attach_reference", "sample_answers"]

_ROWS = 8
_ASKED = 2


def attach_reference(recipe: Recipe, data: DataConfig, model: ModelConfig, start: PretrainedModel | None, splits: DataSplits) -> None:
    """Give every pair the log-probabilities of its answers by the model that training starts from: computed once, kept in the cache.

    The model is whole in one process while that is done. Adapters to start from count as a part of it; new ones change nothing.
    """
    device, _ = choose_device(recipe.train.device)
    asked = recipe.train.precision
    made: list[tuple[Any, Precision]] = []

    def compute(part: PairDataset) -> np.ndarray[Any, Any]:
        if not made:
            net = materialize(model, seed=recipe.seed, device=device).eval()
            made.append((net, choose_precision(asked, device, net)[0]))
        net, precision = made[0]
        rows = []
        with torch.no_grad(), precision.context():
            for first in range(0, len(part), _ROWS):
                batch = part.batch(np.arange(first, min(first + _ROWS, len(part)))).to(device)
                rows.append(answer_log_probs(net, batch).float().cpu().numpy())
        return np.concatenate(rows)

    adapter = None if model.adapt is None else [dump(model.adapt), _files_of(model.adapt.from_)]
    with_reference(splits, data, [None if start is None else start.fingerprint, recipe.seed, adapter, asked, str(device)], compute)


def _files_of(folder: str | None) -> list[str]:
    """sha256 of the files of an adapter to start from."""
    found = [] if folder is None else sorted(p for p in Path(folder).expanduser().glob("adapter*") if p.is_file())
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in found]


def sample_answers(
    recipe: Recipe, splits: DataSplits, model: GPT, precision: Precision, dataset: Any, tell: Callable[..., None], max_tokens: int = 160
) -> list[dict[str, Any]]:
    """What the model answers to each prompt; without prompts, to the first questions of the part that it is measured on."""
    config, tokenizer = recipe.evaluate, splits.tokenizer
    assert tokenizer is not None
    asked = [(Message("user", p),) for p in config.prompts] or dataset.prompts(_ASKED)
    out: list[dict[str, Any]] = []
    how = Sampling(temperature=0.8, top_p=0.95, seed=recipe.seed)
    for messages in asked if config.samples else ():
        ids, end = chat_prompt(splits.preprocess, messages)
        for new in generate(
            model, ids, max_tokens=max_tokens, samples=config.samples, sampling=how, stop_id=end, context=precision.context
        ):
            said = "\n".join(m.content for m in messages if m.role != "system")
            out.append({"prompt": said, "text": tokenizer.decode(new), "temperature": 0.8, "top_p": 0.95})
            tell("sample", **out[-1])
    return out
