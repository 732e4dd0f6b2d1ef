"""Linear datamodelling score of EK-FAC influence against TRAK of the same models: do the scores predict what retraining on half of the data does?

MNIST, the first 5,000 training and 500 test pictures; a perceptron 784-128-64-10 trained by SGD with momentum .9, rate .03 falling to 0,
batches of 64, weight decay .001, 10 epochs. Ground truth: two models for each of 50 random halves of the training data, and their mean loss on each
test picture. Each method gets 10 models trained on all 5,000; first one alone (the mean over the 10 is given too), then all ten.

EK-FAC: damping is 0.1 x each layer's mean eigenvalue, the library's default, fixed before any score was seen. TRAK: 512 dense random projections for
each model, which is better for it than the library's two-sided default. Both are compared with the loss of the retrained models, and with their margin,
TRAK's own output; the lower ratio counts.

The 110 models train at once, with batched matrix products. The ceiling is what a perfect prediction would reach, from the agreement of the two
retrainings on each half.

    python -m benchmarks.influence_lds [--quick] [--models 10]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import pairwise
from typing import Any

FLOOR_ONE, FLOOR_ALL, FLOOR_RATIO = 0.25, 0.35, 1.2
SIZES = (784, 128, 64, 10)
SUBSETS, RETRAININGS, EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 50, 2, 10, 64, 0.03, 0.9, 1e-3


def mnist(split: str, count: int) -> Any:
    """(pictures, standardised, flat; labels) as the recipe's data source reads them."""
    import numpy as np
    import torch

    from benchmarks._mnist import read

    x, y = read(split, count)
    return (torch.from_numpy(x.astype(np.float32)).flatten(1) / 255 - 0.1307) / 0.3081, torch.from_numpy(y.astype(np.int64))


def train_many(x: Any, y: Any, subsets: Any, seed: int) -> list[Any]:
    """Train a perceptron on each of the subsets (M, n), all at once; returns weights (M, in, out) and biases (M, 1, out) in turn."""
    import torch

    M, n = subsets.shape
    g = torch.Generator().manual_seed(seed)
    weights = []
    for a, b in pairwise(SIZES):
        weights += [torch.randn(M, a, b, generator=g) * (2 / a) ** 0.5, torch.zeros(M, 1, b)]
    weights = [w.requires_grad_() for w in weights]
    velocity = [torch.zeros_like(w) for w in weights]
    steps, done = EPOCHS * (n // BATCH), 0
    for _ in range(EPOCHS):
        order = torch.stack([s[torch.randperm(n, generator=g)] for s in subsets])
        for k in range(n // BATCH):
            rows = order[:, k * BATCH : (k + 1) * BATCH]
            loss = torch.nn.functional.cross_entropy(forward(weights, x[rows]).flatten(0, 1), y[rows].flatten(), reduction="sum") / BATCH
            rate, done = RATE * (1 - done / steps), done + 1
            with torch.no_grad():
                for w, v, grad in zip(weights, velocity, torch.autograd.grad(loss, weights), strict=True):
                    v.mul_(MOMENTUM).add_(grad).add_(w, alpha=DECAY)
                    w.sub_(v, alpha=rate)
    return [w.detach() for w in weights]


def forward(weights: list[Any], x: Any) -> Any:
    """Logits (M, B, 10) of pictures (M, B, 784)."""
    import torch

    for k in range(0, len(weights), 2):
        x = torch.baddbmm(weights[k + 1], x, weights[k])
        x = torch.relu(x) if k + 2 < len(weights) else x
    return x


def model_of(weights: list[Any], m: int) -> Any:
    """One of them as Tauon's own perceptron."""
    import torch

    from tauon.models.families.mlp import Perceptron

    model = Perceptron(SIZES)
    with torch.no_grad():
        for k, layer in enumerate(model.layers):
            layer.weight.copy_(weights[2 * k][m].t())  # type: ignore[operator, union-attr]
            layer.bias.copy_(weights[2 * k + 1][m, 0])  # type: ignore[operator, union-attr]
    return model


def scores_of(method: Any, model: Any, train: Any, queries: Any) -> Any:
    """(queries, examples), of one model, in memory."""
    import torch

    from tauon.explain.influence.encoder import batches, products
    from tauon.tasks.arrays import Classification

    encoder = method.fit([model], Classification(), train)
    rows, asked = (torch.cat([encoder.encode(b) for b in batches(d, 1000)]) for d in (train, queries))
    scores = products(asked, rows, encoder.blocks)
    return scores * torch.cat([encoder.importance(b) for b in batches(train, 1000)]) if encoder.weighted else scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 models instead of 10")
    parser.add_argument("--models", type=int, default=10, help="models that each method gets")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    import numpy as np
    import torch

    from benchmarks._mnist import Rows
    from tauon.explain.influence import EkFac, Trak, lds

    torch.set_num_threads(args.threads)
    count = 2 if args.quick else args.models
    start = time.perf_counter()
    x, y = mnist("train", 5000)
    xq, yq = mnist("test", 500)
    g = torch.Generator().manual_seed(1)
    halves = torch.stack([torch.randperm(5000, generator=g)[:2500] for _ in range(SUBSETS)])
    retrained = train_many(x, y, halves.repeat(RETRAININGS, 1), seed=2)
    full = train_many(x, y, torch.arange(5000).repeat(count, 1), seed=3)
    logits = forward(retrained, xq.expand(SUBSETS * RETRAININGS, -1, -1))
    right = logits.log_softmax(-1).gather(2, yq.expand(len(logits), -1)[..., None])[..., 0]
    margin = right - torch.log(-torch.expm1(right.double().clamp(max=-1e-9)))
    truth, margins = (v.double().view(RETRAININGS, SUBSETS, -1).numpy() for v in (right, margin))
    accuracy = float((logits.argmax(-1) == yq).float().mean())
    members = torch.zeros(SUBSETS, 5000).scatter_(1, halves, 1).bool().numpy()
    print(
        f"{len(halves) * RETRAININGS + count} models trained in {time.perf_counter() - start:.0f} s; accuracy of the halves {accuracy:.3f}",
        flush=True,
    )

    train, queries = Rows(x, y), Rows(xq, yq)
    found: dict[str, list[Any]] = {"ekfac": [], "trak": []}
    methods = {"ekfac": EkFac(), "trak": Trak(columns=512, dense=True, batch=1000)}
    for m in range(count):
        model = model_of(full, m)
        for name, method in methods.items():
            found[name].append(scores_of(method, model, train, queries).numpy())
        alone = {name: lds(scores[-1], members, truth, resamples=0).value for name, scores in found.items()}
        print(f"model {m}: " + ", ".join(f"{k} {v:.3f}" for k, v in alone.items()) + f", {time.perf_counter() - start:.0f} s", flush=True)
    together = {name: lds(np.mean(scores, 0), members, truth) for name, scores in found.items()}
    one = {name: float(np.mean([lds(s, members, truth, resamples=0).value for s in scores])) for name, scores in found.items()}
    of_margin = {name: lds(np.mean(scores, 0), members, margins, resamples=0).value for name, scores in found.items()}
    ours, peer = together["ekfac"], together["trak"].value
    ratio = min(ours.value / peer, of_margin["ekfac"] / of_margin["trak"])
    for name, result in together.items():
        print(f"{name}: one model {one[name]:.3f}, {count} models {result.value:.3f} (95% {result.low:.3f} to {result.high:.3f})")
    print(f"ceiling {ours.ceiling:.3f}: two models retrained on the same half agree to {ours.agreement:.3f}")
    print(
        json.dumps(
            {
                "claim": "influence_lds", "ours": round(ours.value, 3), "peer": round(peer, 3), "ratio": round(ratio, 2), "floor": FLOOR_RATIO,
                "unit": "linear datamodelling score", "floor_ours": FLOOR_ALL, "ours_one_model": round(one["ekfac"], 3), "floor_one_model": FLOOR_ONE,
                "ours_margin": round(of_margin["ekfac"], 3), "peer_margin": round(of_margin["trak"], 3),
                "peer_one_model": round(one["trak"], 3), "ratio_one_model": round(one["ekfac"] / one["trak"], 2), "models": count,
                "interval": [round(ours.low, 3), round(ours.high, 3)], "ceiling": round(ours.ceiling or 0, 3), "agreement": round(ours.agreement or 0, 3),
                "seconds": round(time.perf_counter() - start),
            }
        )
    )  # fmt: skip
    if not args.quick and (ours.value < FLOOR_ALL or one["ekfac"] < FLOOR_ONE):
        raise SystemExit("EK-FAC is below its own floor")


if __name__ == "__main__":
    main()
