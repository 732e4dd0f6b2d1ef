"""The logical step of private training: forward, backward, clipping, noise, AdamW; plain, ours and Opacus 1.6 in one process, taking turns.

Opacus gets a model of the same shape made of torch's own layers (RMSNorm for ours), logits whole, as it needs them. Each of its modes that runs
(hooks: per-example gradients; ghost: fast gradient clipping with ghost norms, two backward passes) is tried, and its best counts.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Step = Callable[[], None]


@dataclass
class Case:
    """What is trained."""

    model: Any
    task: Any
    batch: Any
    kind: str
    """text or images."""


def case_of(name: str) -> Case:
    """The four models of the claims."""
    import torch

    from tauon.models import materialize
    from tauon.models.adapters import LoraConfig
    from tauon.models.families.cnn import CNNConfig
    from tauon.models.families.gpt import GPTConfig
    from tauon.tasks import Classification, LanguageModelling
    from tauon.testing import tiny_batch
    from tauon.types import DataSpec

    torch.manual_seed(0)
    if name == "cnn":
        spec = DataSpec(input_shape=(3, 32, 32), outputs=10)
        images = CNNConfig(channels=(32, 64, 128), convs_per_stage=2)
        return Case(materialize(images.resolve(spec), seed=0), Classification(), tiny_batch(spec, 64), "images")
    spec = DataSpec(vocab=4096 if name == "lora" else 2048, seq_len=256 if name == "lora" else 128)
    config, rows = {
        "lm": (GPTConfig(layers=4, width=256, heads=4), 64),
        "wide": (GPTConfig(layers=2, width=1024, heads=8), 16),
        "lora": (GPTConfig(layers=8, width=512, heads=8).model_copy(update={"adapt": LoraConfig(rank=16)}), 8),
    }[name]
    model = materialize(config.resolve(spec), seed=0, weights={})
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad or not p.any():  # a frozen head of zeros would leave no gradient at all
                p.add_(torch.randn_like(p) * 0.02)
    return Case(model, LanguageModelling(), tiny_batch(spec, rows), "text")


def trained(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def plain_step(case: Case) -> Step:
    """As `train.step.plain_gradients` and the optimizer."""
    import torch

    params = trained(case.model)
    optimizer = torch.optim.AdamW(params, lr=1e-4)

    def step() -> None:
        total, weight = case.task.loss(case.model, case.batch)
        (total / weight).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(case: Case) -> Step:
    """Book-keeping, flat clipping, noise as a run draws it (ChaCha20)."""
    from functools import partial
    from itertools import count

    import torch

    from tauon.config import parse
    from tauon.privacy.clipped import ClippedSum, ClippingConfig
    from tauon.privacy.noise import Constant, NoisePlan, NoiseSource
    from tauon.privacy.private import noise_like

    params = trained(case.model)
    named = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(params, lr=1e-4)
    clipped, mode = ClippedSum(case.model), parse(ClippingConfig, {"kind": "flat"})
    noise, source, steps = NoisePlan(Constant(), 1.0, 10**6), NoiseSource(os.urandom(32), secret=True), count()

    def step() -> None:
        with clipped.recording():
            total, _ = case.task.loss(case.model, case.batch)
            total.backward()
        clipped.add(mode.factors(clipped.squared_norms(), {}))
        clipped.forget()
        draw = partial(noise.draw, source, next(steps))
        for name, p in named.items():
            p.grad.add_(noise_like(p, name, draw)).mul_(1 / len(case.batch))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peers_model(case: Case) -> Any:
    """The same shape in torch's own layers, with logits as its output."""
    import torch
    from torch import nn

    from tauon.models.adapters import AdaptedLinear
    from tauon.models.families.transformer import RMSNorm

    class Lora(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.base = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None).requires_grad_(False)
            self.down = nn.Linear(layer.in_features, len(layer.lora_a), bias=False)
            self.up = nn.Linear(len(layer.lora_a), layer.out_features, bias=False)
            self.scale = layer.scale

        def forward(self, x: Any) -> Any:
            return self.base(x) + self.up(self.down(x)) * self.scale

    class Logits(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            y = self.inner(x)
            return self.inner.head(y) if case.kind == "text" else y

    model = copy.deepcopy(case.model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RMSNorm):
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.eps)
                norm.weight.requires_grad_(child.weight.requires_grad)
                setattr(parent, name, norm)
            elif isinstance(child, AdaptedLinear):
                setattr(parent, name, Lora(child))
    torch.manual_seed(0)
    return Logits(model)


def opacus_step(case: Case, mode: str) -> Step:
    """Opacus in one of its modes."""
    import torch
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from torch import nn

    model, x, y = peers_model(case), case.batch.inputs.contiguous(), case.batch.targets
    inner = torch.optim.AdamW(trained(model), lr=1e-4)
    criterion = nn.CrossEntropyLoss()
    how: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": len(x)}
    if mode == "hooks":
        wrapped = GradSampleModule(model)
        optimizer = DPOptimizer(inner, **how)
        loss: Any = criterion
    else:
        wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, use_ghost_clipping=mode == "ghost")
        optimizer = DPOptimizerFastGradientClipping(inner, **how)
        loss = DPLossFastGradientClipping(wrapped, optimizer, criterion)

    def step() -> None:
        out = wrapped(x)
        if case.kind == "text":
            more = {} if mode == "hooks" else {"shape": out.shape}
            found = loss(out.flatten(0, 1), y.flatten(), **more)
        else:
            found = loss(out, y)
        found.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


MODES = ("hooks", "ghost", "fast")


def compared(name: str, rounds: int, *, peer: bool = True) -> dict[str, Any]:
    """Seconds of a step: {who: (median, processor seconds)}, turns taken; the peer in the mode in which it is fastest."""
    warnings.filterwarnings("ignore")
    case = case_of(name)
    steps: dict[str, Step] = {"plain": plain_step(case), "ours": our_step(case)}
    if peer:
        tried = {}
        for mode in MODES:
            try:
                step = opacus_step(case, mode)
                step()
                tried[mode] = (min(timed(step)[1] for _ in range(2)), step)  # processor time: the clock's depends on the neighbours
            except Exception as err:  # a mode that does not know the model
                print(f"opacus {mode}: does not run ({str(err).splitlines()[0][:100]})")
        best = min(tried, key=lambda m: tried[m][0])
        print("opacus, processor time of a step: " + ", ".join(f"{m} {t:.3f} s" for m, (t, _) in tried.items()) + f"; {best} counts")
        steps["opacus"] = tried[best][1]
        del tried
    for step in steps.values():
        step()
    times: dict[str, list[tuple[float, float]]] = {who: [] for who in steps}
    for _ in range(rounds):
        for who, step in steps.items():
            times[who].append(timed(step))
    found = {who: (statistics.median(t for t, _ in both), statistics.median(c for _, c in both)) for who, both in times.items()}
    for who, both in times.items():
        print(
            f"{who}: step {found[who][0]:.3f} s ({min(t for t, _ in both):.3f} to {max(t for t, _ in both):.3f}), processor {found[who][1]:.3f} s"
        )
    return found


def timed(step: Step) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def claim(name: str, case: str, *, ceiling: float, floor: float | None, doc: str) -> None:
    """Measure, print, and end with the line of JSON. `ratio` is Opacus's time by ours; without a peer, plain's time by ours.

    `of_plain` is our step's time as a multiple of the plain step's, to be at most `ceiling`.
    """
    import argparse

    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 15")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the cores of this machine")
    args = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import torch

    torch.set_num_threads(args.threads)
    found = compared(case, 5 if args.quick else 15, peer=floor is not None)
    other = "opacus" if floor is not None else "plain"
    ours, peer = found["ours"], found[other]
    print(
        f"{args.threads} threads; torch {torch.__version__}; fp32; AMX {torch.cpu._is_amx_tile_supported()}; load {os.getloadavg()[0]:.1f}"
    )
    result = {"claim": name, "ours": round(ours[0], 4), "peer": round(peer[0], 4), "ratio": round(peer[0] / ours[0], 2)}
    result |= {"floor": floor if floor is not None else round(1 / ceiling, 2), "unit": "s/step"}
    result |= {"of_plain": round(ours[0] / found["plain"][0], 3), "of_plain_ceiling": ceiling}
    result |= {"of_plain_cpu": round(ours[1] / found["plain"][1], 3), "ratio_cpu": round(peer[1] / ours[1], 2)}
    print(json.dumps(result))
