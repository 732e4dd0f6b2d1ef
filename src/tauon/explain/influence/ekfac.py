"""EK-FAC influence functions (Grosse et al. 2023, arXiv:2308.03296; George et al. 2018, arXiv:1806.03884).

    score(q, i) = 1/N * grad L_q^T (F + damping)^-1 grad L_i,      N training examples

F, the Fisher matrix, layer by layer in the basis of the Kronecker factors A = E[a a^T] and S = E[g g^T], with its diagonal there measured (the
"eigenvalue correction"), all with labels sampled from the model (`labels`). Damping is a share of each layer's mean eigenvalue: chosen
without looking at a score. Linear layers and convolutions only; other parameters are left out, and named.

Rows are kept in that basis, divided by the root of eigenvalue + damping, so that a score is a plain inner product. Of all coordinates those with the
largest share eigenvalue / (eigenvalue + damping) are kept, and the kept part of the sum of these shares is stated.

Shapes: B examples, T positions, I inputs (and 1 for the bias), O outputs, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.explain.influence.encoder import Block, Progress, batches
from tauon.explain.influence.factors import LayerFactors, Pair
from tauon.explain.influence.gradients import loss_value
from tauon.explain.influence.labels import sample_labels
from tauon.explain.influence.tracin import left_out
from tauon.tasks import Task
from tauon.types import Batch, Dataset

__all__ = ["EkFac", "EkFacEncoder", "EkFacLayer"]

MEANING = (
    "Positive: without this training example the query's loss would be higher (it helped); negative: lower. The size estimates that change, to "
    "first order, in the loss's unit; trust the order more than the size."
)


@dataclass(frozen=True)
class EkFac:
    """Settings of EK-FAC influence; several models of the same data are averaged."""

    damping: float = 0.1
    """Share of each layer's mean eigenvalue that is added to every eigenvalue (Grosse et al., section 3)."""
    columns: int | None = 8192
    """Coordinates kept for each model. None: all, as many as parameters."""
    fit_examples: int | None = None
    """Training examples that the factors are computed from, evenly spread over the data. None: all."""
    samples: int = 4
    """Labels sampled for each of them. A confident model seldom draws any but its first choice, and few draws leave the eigenvalues noisy: one label
    instead of four cost up to a sixth of the linear datamodelling score (benchmarks/influence_lds.py)."""
    layers: tuple[str, ...] = ("*",)
    """Patterns of layer names."""
    batch: int = 256
    """Examples in one pass."""
    seed: int = 0
    """Of the sampled labels."""
    kind = "ekfac"

    def fit(self, models: Sequence[nn.Module], task: Task, data: Dataset, progress: Progress | None = None) -> EkFacEncoder:
        """Two passes over the data for each model: factors, then eigenvalues."""
        if self.samples < 1:
            raise RecipeError(f"samples {self.samples}: the Fisher matrix needs at least one label for each example.")
        if self.damping <= 0:
            raise RecipeError(f"damping {self.damping}: must be above 0, or directions that no example moves would dominate.")
        count = len(data) if self.fit_examples is None else min(len(data), self.fit_examples)
        index = np.linspace(0, len(data) - 1, count).astype(np.int64)
        done, total = 0, 2 * len(models) * count * self.samples

        def tick(n: int) -> None:
            nonlocal done
            done += n
            if progress is not None:
                progress(done, total)

        fitted = [_Fit(self, m, task).run(data, index, tick) for m in models]
        return EkFacEncoder(self, models, task, fitted, len(data))

    def restore(self, models: Sequence[nn.Module], task: Task, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EkFacEncoder:
        """See `Method`."""
        fitted = [{name: EkFacLayer.read(f"{m}.{name}", tensors) for name in facts["layers_used"]} for m in range(len(models))]
        return EkFacEncoder(self, models, task, fitted, facts["examples"], kept=facts["kept_share"])


@dataclass
class EkFacLayer:
    """One layer's basis and eigenvalues, and which coordinates are kept."""

    inputs_II: Tensor
    """Eigenvectors of A, in columns."""
    outputs_OO: Tensor
    """Eigenvectors of S, in columns."""
    eigenvalues_OI: Tensor
    """Mean squares of the gradients in this basis."""
    damping: float = 0.0
    index_K: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Kept coordinates, numbered as in `eigenvalues_OI` flattened."""

    def on(self, device: torch.device) -> EkFacLayer:
        """Return the layer on `device`."""
        tensors = (self.inputs_II, self.outputs_OO, self.eigenvalues_OI, self.index_K)
        a, g, values, index = (t.to(device) for t in tensors)  # copies only from another device
        return EkFacLayer(a, g, values, self.damping, index)

    def rotated(self, pair: Pair) -> Tensor:
        """Return BOI, the gradients in the basis."""
        return torch.bmm((pair[1] @ self.outputs_OO).mT, pair[0] @ self.inputs_II)

    def kept(self, pairs: Sequence[Pair]) -> Tensor:
        """Return BK: the kept coordinates, divided by the root of eigenvalue + damping."""
        inside = self.inputs_II.shape[1]
        rows, columns = self.index_K // inside, self.index_K % inside
        total: Tensor | None = None
        for a, g in pairs:
            if a.shape[1] == 1:
                each = (g[:, 0] @ self.outputs_OO)[:, rows] * (a[:, 0] @ self.inputs_II)[:, columns]
            else:
                step = max(1, 2**24 // self.eigenvalues_OI.numel())
                parts = (self.rotated((a[s : s + step], g[s : s + step])).flatten(1)[:, self.index_K] for s in range(0, len(a), step))
                each = torch.cat(list(parts))
            total = each if total is None else total + each
        assert total is not None
        return total * (self.eigenvalues_OI.flatten()[self.index_K] + self.damping).rsqrt()

    def write(self, prefix: str) -> dict[str, Tensor]:
        """For `EkFacEncoder.tensors`."""
        named = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        return {f"{prefix}.{k}": v for k, v in named.items()} | {f"{prefix}.damping": torch.tensor(self.damping, dtype=torch.float64)}

    @classmethod
    def read(cls, prefix: str, tensors: Mapping[str, Tensor]) -> EkFacLayer:
        """The inverse of `write`."""
        names = ("inputs_II", "outputs_OO", "eigenvalues_OI", "index_K")
        found = {n: tensors[f"{prefix}.{n}"] for n in names}
        return cls(found["inputs_II"], found["outputs_OO"], found["eigenvalues_OI"], float(tensors[f"{prefix}.damping"]), found["index_K"])


class _Fit:
    """Factors and eigenvalues of one model."""

    def __init__(self, config: EkFac, model: nn.Module, task: Task) -> None:
        self.config, self.model, self.task = config, model, task
        self.factors = LayerFactors(model, config.layers)

    def passes(self, data: Dataset, index: np.ndarray, tick: Any) -> Any:
        draws = torch.Generator().manual_seed(self.config.seed)
        for batch in batches(data, self.config.batch, index):
            for _ in range(self.config.samples):
                yield self.factors.of(loss_value(self.task), sample_labels(self.model, self.task, batch, draws))
                tick(len(batch))

    def run(self, data: Dataset, index: np.ndarray, tick: Any) -> dict[str, EkFacLayer]:
        sums: dict[str, list[Tensor]] = {}
        for pairs in self.passes(data, index, tick):
            for name, calls in pairs.items():
                for call in calls:
                    grams = [x.flatten(0, 1).t() @ x.flatten(0, 1) for x in call]
                    sums[name] = [s + g for s, g in zip(sums[name], grams, strict=True)] if name in sums else grams
        layers = {}
        for name, (of_a, of_g) in sums.items():
            a_II, g_OO = (torch.linalg.eigh(m.double() / m.diagonal().sum().clamp(min=1e-30))[1].float().contiguous() for m in (of_a, of_g))
            layers[name] = EkFacLayer(a_II, g_OO, torch.zeros(len(g_OO), len(a_II), device=a_II.device))
        for pairs in self.passes(data, index, tick):
            for name, calls in pairs.items():
                _add_squares(layers[name], calls)
        for layer in layers.values():
            layer.eigenvalues_OI /= len(index) * self.config.samples
            layer.damping = self.config.damping * float(layer.eigenvalues_OI.mean())
        unmoved = [n for n, layer in layers.items() if layer.damping == 0]
        layers = {n: layer for n, layer in layers.items() if n not in unmoved}
        if not layers:
            raise RecipeError("all gradients of the loss are zero with labels sampled from the model: there is nothing to invert.")
        _choose(layers, self.config.columns)
        return layers


def _add_squares(layer: EkFacLayer, calls: Sequence[Pair]) -> None:
    """Add the squares of each example's gradient in the basis, summed over examples."""
    if len(calls) == 1 and calls[0][0].shape[1] == 1:  # (g_o a_i)^2 = g_o^2 a_i^2
        a, g = calls[0]
        layer.eigenvalues_OI += (g[:, 0] @ layer.outputs_OO).square().t() @ (a[:, 0] @ layer.inputs_II).square()
        return
    step = max(1, 2**24 // layer.eigenvalues_OI.numel())
    for s in range(0, len(calls[0][0]), step):
        each = sum(layer.rotated((a[s : s + step], g[s : s + step])) for a, g in calls)
        assert isinstance(each, Tensor)
        layer.eigenvalues_OI += each.square().sum(0)


def _choose(layers: Mapping[str, EkFacLayer], columns: int | None) -> None:
    """Keep the coordinates with the largest eigenvalue / (eigenvalue + damping), over all layers."""
    shares = {name: (x.eigenvalues_OI / (x.eigenvalues_OI + x.damping)).flatten() for name, x in layers.items()}
    together = torch.cat(list(shares.values()))
    count = len(together) if columns is None else min(columns, len(together))
    chosen = torch.zeros(len(together), dtype=torch.bool, device=together.device)
    chosen[together.topk(count).indices] = True
    for (name, share), part in zip(shares.items(), chosen.split([len(s) for s in shares.values()]), strict=True):
        layers[name].index_K = part.nonzero()[:, 0]
        assert len(share) == len(part)


class EkFacEncoder:
    """Rows: for each model, the kept coordinates of every layer."""

    weighted = False

    def __init__(
        self, config: EkFac, models: Sequence[nn.Module], task: Task, fitted: list[dict[str, EkFacLayer]], examples: int,
        *, kept: list[float] | None = None,
    ) -> None:  # fmt: skip
        self.task, self.fitted = task, fitted
        self.scale = 1 / math.sqrt(examples * len(models))
        self.factors = [LayerFactors(m, config.layers) for m in models]
        self.columns = sum(len(layer.index_K) for layers in fitted for layer in layers.values())
        self.blocks = [Block(0, self.columns)]
        used = list(fitted[0])
        modules = dict(models[0].named_modules())
        names = [f"{n}.{leaf}" if n else leaf for n in used for leaf, _ in modules[n].named_parameters(recurse=False)]
        self.facts: dict[str, Any] = {
            "method": "ekfac", "meaning": MEANING, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
            "examples": examples, "layers_used": used, "left_out": left_out(models[0], names),
            "damping_of_layers": [{n: layer.damping for n, layer in layers.items()} for layers in fitted],
            "kept_share": kept or [_kept_share(layers) for layers in fitted],
        }  # fmt: skip

    def encode(self, batch: Batch) -> Tensor:
        """See `Encoder`."""
        rows: list[Tensor] = []
        for factors, layers in zip(self.factors, self.fitted, strict=True):
            pairs = factors.of(loss_value(self.task), batch)
            for name, layer in layers.items():
                found = pairs.get(name)
                if found is None:
                    rows.append(torch.zeros(len(batch), len(layer.index_K)))
                else:
                    rows.append(layer.on(found[0][0].device).kept(found).cpu())
        return torch.cat(rows, 1) * self.scale

    def importance(self, batch: Batch) -> Tensor:
        """See `Encoder`."""
        return torch.ones(len(batch))

    def tensors(self) -> dict[str, Tensor]:
        """See `Encoder`."""
        found: dict[str, Tensor] = {}
        for m, layers in enumerate(self.fitted):
            for name, layer in layers.items():
                found |= layer.write(f"{m}.{name}")
        return found


def _kept_share(layers: Mapping[str, EkFacLayer]) -> float:
    shares = {n: (x.eigenvalues_OI / (x.eigenvalues_OI + x.damping)).flatten() for n, x in layers.items()}
    return float(sum(s[layers[n].index_K].sum() for n, s in shares.items()) / sum(s.sum() for s in shares.values()))
