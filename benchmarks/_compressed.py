"""The four models of the benchmarks of compression, with calibration data and held-out examples: `chest-xray`, `mnist-mlp`, CIFAR ResNet-20, 30M GPT.

ResNet-20 is the published one. The others are trained from their recipes: a finished run in `TAUON_RUNS` (a folder of runs) is used as it is, any other
is trained for a few minutes into `runs/benchmarks`, and kept.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._resnet import images, resnet20
from tauon.compress import Calibration, calibration_from
from tauon.types import Batch, DataSpec

MODELS = ("chest-xray", "mnist-mlp", "resnet20", "gpt-30m")
SHORT = {
    "chest-xray": ["train.epochs=6"],
    "mnist-mlp": ["train.epochs=8", "data.augment=[]"],
    "gpt-30m": [
        "name=gpt-30m", "model={kind: gpt, layers: 8, width: 512, heads: 8}", "data.seq_len=64", "data.overlap=0%",
        "train={steps: 80, batch: 8, validate_every: 80, validate_examples: 16}",
        "optim={kind: adamw, lr: 1e-3, schedule: {kind: cosine, warmup: 5%}}",
    ],
}  # fmt: skip
RECIPE = {"chest-xray": "chest-xray", "mnist-mlp": "mnist-mlp", "gpt-30m": "wikitext2-gpt"}


@dataclass
class Trained:
    """A model, ready to be compressed."""

    name: str
    model: Any
    config: Any
    task: Any
    calibration: Calibration
    held_out: Any
    """Examples that neither training nor calibration saw."""


class Rows:
    """Pictures and labels as a data set."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, spec: DataSpec) -> None:
        self.x, self.y, self.spec = x, y, spec
        self.facts: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index: Any, *, epoch: int = 0) -> Batch:
        rows = torch.as_tensor(index)
        return Batch(self.x[rows], self.y[rows], torch.ones(len(rows)), index=rows)


def trained(name: str) -> Trained:
    """Return one of `MODELS`."""
    if name == "resnet20":
        return _resnet()
    from tauon.artifacts import RunFolder
    from tauon.data import prepare
    from tauon.models import from_record
    from tauon.recipe import load_recipe
    from tauon.stages.context import Context, null_callback
    from tauon.stages.load import load_model

    folder = _run(name)
    recipe = load_recipe(folder, [])
    checkpoint = Context(recipe, RunFolder.read(folder), null_callback).final_checkpoint
    model, _ = load_model(checkpoint, recipe)
    config = from_record(checkpoint.state["model"])
    splits = prepare(recipe.data, seed=recipe.seed, input_kind=recipe.task.input_kind)
    plain = splits.train.without_augmentation() if hasattr(splits.train, "without_augmentation") else splits.train
    held_out = splits.test or splits.validation
    examples = 64 if name == "gpt-30m" else 256
    return Trained(
        name, model, config, recipe.task, calibration_from(plain, examples=examples), _first(held_out, 256 if name == "gpt-30m" else 10_000)
    )


class _Part:
    """The first examples of a data set."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset, self.count, self.spec, self.facts = dataset, min(count, len(dataset)), dataset.spec, dataset.facts

    def __len__(self) -> int:
        return self.count

    def batch(self, index: Any, *, epoch: int = 0) -> Batch:
        found: Batch = self.dataset.batch(index, epoch=epoch)
        return found


def _first(dataset: Any, count: int) -> Any:
    return dataset if len(dataset) <= count else _Part(dataset, count)


def _run(name: str) -> Path:
    given = Path(os.environ.get("TAUON_RUNS", "")) / name
    if os.environ.get("TAUON_RUNS") and (given / "recipe.yaml").is_file():
        return given
    import tauon

    root = Path(__file__).parents[1] / "runs" / "benchmarks"
    run = tauon.run(RECIPE[name], *SHORT[name], root=root, stages=("prepare", "train"))
    return Path(run.folder)


def _resnet() -> Trained:
    from tauon.models import from_record
    from tauon.tasks import Classification

    model, spec = resnet20()
    x, y = images(2000)
    config = from_record({"kind": "resnet20"}).resolve(spec)
    calibration = calibration_from(Rows(x[:256], y[:256], spec), examples=256)
    return Trained("resnet20", model, config, Classification(), calibration, Rows(x[256:], y[256:], spec))
