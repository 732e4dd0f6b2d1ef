"""Accuracy of the recipe `cifar10-private` against Opacus on the same pictures, with the same model, settings, noise and steps, in one run.

Ours is the recipe as shipped, through `tauon.pipeline.run`. Opacus gets the same pictures (`prepare`), the same model with the same first weights,
the same optimizer, clipping norm, expected batch and number of steps, the noise multiplier that the recipe was calibrated to, Poisson
sampling, and the same moving average of the weights. Both are measured on the 2,000 test pictures. The standard error of one accuracy is 1.1
points, that of the difference of two about 1.5; the noise of each is its own. Ours must not be below, to within that error.

    python -m benchmarks.cifar10_private [--quick] [--seeds 7 8]          needs the bench extra (opacus)
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any


def opacus_accuracy(recipe: Any, *, noise_multiplier: float, steps: int, physical: int = 128) -> float:
    """Test accuracy of the averaged weights, as Opacus trains them."""
    import numpy as np
    import torch
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from torch.nn import functional as F

    from tauon.data import prepare
    from tauon.models import materialize
    from tauon.train import EMA

    splits = prepare(recipe.data, seed=recipe.seed, input_kind="arrays")
    assert splits.test is not None
    train, test = (part.batch(np.arange(len(part))) for part in (splits.train, splits.test))
    model = materialize(recipe.model.resolve(splits.spec), seed=recipe.seed)
    average = EMA(model, recipe.train.ema)
    wrapped = GradSampleModule(model)
    inner = torch.optim.SGD(wrapped.parameters(), lr=recipe.optim.lr, momentum=recipe.optim.momentum)
    batch, norm = recipe.train.batch, recipe.privacy.clipping.norm
    draws = torch.Generator().manual_seed(recipe.seed)
    optimizer = DPOptimizer(
        inner, noise_multiplier=noise_multiplier, max_grad_norm=norm, expected_batch_size=batch,
        generator=torch.Generator().manual_seed(recipe.seed + 1),
    )  # fmt: skip
    wrapped.train()
    for step in range(steps):
        rows = torch.nonzero(torch.rand(len(train), generator=draws) < batch / len(train))[:, 0]
        pieces = rows.split(physical)
        for i, piece in enumerate(pieces):
            optimizer.signal_skip_step(do_skip=i < len(pieces) - 1)
            F.cross_entropy(wrapped(train.inputs[piece]), train.targets[piece]).backward()
            optimizer.step()
            optimizer.zero_grad()
        average.update(step)
    wrapped.eval()
    with average.swapped_in(), torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(test.inputs.split(500), test.targets.split(500), strict=True))
    return right / len(test)


def accuracies(seed: int, *assignments: str) -> tuple[float, float, float]:
    """(ours, Opacus's, epsilon of both)."""
    from tauon.pipeline import run
    from tauon.recipe import load_recipe

    recipe = load_recipe("cifar10-private", [f"seed={seed}", *assignments])
    with tempfile.TemporaryDirectory() as folder:
        done = run(recipe, root=folder).folder
        promise = json.loads((Path(done) / "privacy.json").read_text())
        ours = json.loads((Path(done) / "evaluation.json").read_text())["metrics"]["accuracy"]["value"]
    peer = opacus_accuracy(
        load_recipe("cifar10-private", [f"seed={seed}", *assignments]), noise_multiplier=promise["noise_multiplier"], steps=promise["steps"]
    )
    return ours, peer, promise["guarantee"]["epsilon"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the steps: shows that it runs, and nothing of accuracy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7], help="of the recipe, and of Opacus's draws")
    args = parser.parse_args()

    import opacus

    warnings.filterwarnings("ignore")
    found = []
    for seed in args.seeds[:1] if args.quick else args.seeds:
        began = time.perf_counter()
        found.append(accuracies(seed, *(["train.epochs=1"] if args.quick else [])))
        ours, peer, epsilon = found[-1]
        print(
            f"seed {seed}: ours {ours:.4f}, Opacus {opacus.__version__} {peer:.4f}, epsilon {epsilon:.3f}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    a, b = (sum(f[i] for f in found) / len(found) for i in (0, 1))
    error = math.sqrt((a * (1 - a) + b * (1 - b)) / 2000 / len(found))
    line = {"claim": "cifar10_private", "ours": a, "peer": b, "ratio": a / b, "floor": (b - error) / b, "unit": "accuracy"}
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}))


if __name__ == "__main__":
    main()
