"""A shipped recipe's job in this process, without a run's folder: for benchmarks that compare models by their validation loss."""

from __future__ import annotations

from typing import Any

import numpy as np


class Shipped:
    """Data and settings of a shipped recipe, with some keys replaced."""

    def __init__(self, name: str, steps: int, **changes: Any) -> None:
        """`changes`: `model__width=64` for `model.width=64`."""
        from tauon.data import prepare
        from tauon.recipe import load_recipe

        given = [f"{k.replace('__', '.')}={v}" for k, v in changes.items()]
        lengths = {"tokens": "null", "epochs": "null", "steps": steps}
        self.recipe = load_recipe(name, [*(f"train.{k}={v}" for k, v in lengths.items()), *given])
        self.splits: Any = prepare(self.recipe.data, seed=self.recipe.seed, input_kind=self.recipe.task.input_kind)

    def job(self, *, seed: int) -> Any:
        """A job at step 0; the order of examples and the initial weights follow from `seed`."""
        from tauon.data import Loader
        from tauon.models import resolved
        from tauon.plan import make_plan
        from tauon.train import JobConfig, build_job

        recipe, splits = self.recipe, self.splits
        loader = Loader(splits.train, batch=recipe.train.batch, seed=seed)
        config = JobConfig(resolved(recipe.model, splits.spec), recipe.optim, recipe.train, recipe.task, splits.spec, seed)
        return build_job(config, loader, make_plan(config, examples=len(splits.train)))

    def float_copy(self, job: Any) -> Any:
        """The job's weights in a plain model, in evaluation mode."""
        from tauon.models import materialize, resolved

        weights = {name: t.detach().clone() for name, t in job.model.state_dict().items()}
        return materialize(resolved(self.recipe.model, self.splits.spec), seed=0, weights=weights).eval()

    def loss(self, model: Any, examples: int | None = None) -> float:
        """Mean validation loss, nats a token."""
        import torch

        data = self.splits.validation
        n = min(len(data), examples or len(data))
        total = weight = 0.0
        with torch.no_grad():
            for start in range(0, n, 64):
                loss_B, weight_B = self.recipe.task.losses(model, data.batch(np.arange(start, min(n, start + 64))))
                total, weight = total + float(loss_B.double().sum()), weight + float(weight_B.double().sum())
        return total / weight
