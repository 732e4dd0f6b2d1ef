"""Pictures a second of Tauon's training loop against Lightning's: ResNet-20, batch 128, random crops and flips, SGD.

Ours is what the recipe `cifar10-resnet` does at `precision: auto`, with its loader, its event log and its meter. The peer is the same
network from plain torch modules in a LightningModule under `Trainer`, its data from a DataLoader over PIL pictures with torchvision's crop,
flip, ToTensor and Normalize (their algorithms, written out: torchvision is not installed beside torch here), in fp32 and in bf16: the faster
counts. Each peer has a process of its own, because what we set in ours (how malloc keeps freed memory) would help it too; they take turns with
ours, step by step. Compared are medians of the processor time of all threads, with the clock beside it.

`auto` is what the plan measures as the faster here.
The last line holds all pairs: `ratio` is the default against the peer's best, `ratio_ours_bf16` and `ratio_ours_fp32` ours in that type against
the peer's best, `ratio_bf16` bf16 against bf16, `ratio_fp32` fp32 against fp32.

    python -m benchmarks.image_step [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._turns import Peer, Seconds, now, serve, since

BATCH = 128


def pictures(rows: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Noise in ten colours: bytes (N, H, W, C)."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, rows)
    return (rng.integers(0, 128, (rows, 32, 32, 3)) + (y * 12)[:, None, None, None]).astype(np.uint8), y


class Ours:
    """Tauon's own loop, a step at a time."""

    def __init__(self, precision: str, folder: Path) -> None:
        from tauon.config import parse
        from tauon.data import Loader, prepare
        from tauon.plan import Work, make_plan
        from tauon.recipe import Recipe
        from tauon.tracking import EventLog
        from tauon.train import JobConfig, Meter, build_job

        x, y = pictures()
        np.savez(folder / "pictures.npz", x=x, y=y)
        r = parse(
            Recipe,
            {
                "name": "image-step",
                "data": {
                    "source": {"kind": "npz", "path": str(folder / "pictures.npz")}, "split": {"validation": 0},
                    "normalize": "standard", "augment": [{"kind": "crop", "padding": 4}, "flip"],
                },
                "task": "classification",
                "model": "resnet20",
                "optim": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
                "train": {"steps": 100_000, "batch": BATCH, "precision": precision},
            },
        )  # fmt: skip
        splits = prepare(r.data, seed=0, input_kind="arrays")
        loader, config = Loader(splits.train, batch=BATCH, seed=0), r.model.resolve(splits.spec)
        self.plan = make_plan(JobConfig(config, r.optim, r.train, r.task, splits.spec, 0), examples=len(splits.train), work=Work(loader))
        self.job = build_job(JobConfig(config, r.optim, r.train, r.task, splits.spec, 0), loader, self.plan)
        self.meter, self.events = Meter(self.plan.flops_per_example), EventLog(folder / f"{precision}.jsonl")
        self.times: list[Seconds] = []

    def step(self) -> None:
        from tauon.train import STOP, train

        def log(job: Any, info: Any) -> str | None:
            self.events.log("step", step=info.step, **info.metrics)
            return STOP

        start = now()
        train(self.job, hooks=[self.meter, log])
        self.times.append(since(start))
        self.job.notes.clear()


def network() -> Any:
    """ResNet-20 as usually written (He et al. 2015, section 4.2, option A)."""
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inside: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.stride, self.more = stride, width - inside

        def forward(self, x: Any) -> Any:
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.more:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
            return F.relu(out + x)

    layers: list[Any] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inside = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for b in range(3):
            layers.append(Block(inside, width, stride if b == 0 else 1))
            inside = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def peer(folder: Path, precision: str, steps: int, between: Callable[[Seconds], None]) -> None:
    """Lightning's Trainer; `between` gets the time of each step, and its own does not count."""
    import lightning
    import torch
    import torch.nn.functional as F
    from PIL import Image, ImageOps

    x, y = pictures()
    mean, std = (np.float32(f(x / 255, axis=(0, 1, 2))) for f in (np.mean, np.std))

    class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(y)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            p = ImageOps.expand(Image.fromarray(x[i]), 4)
            left, top = random.randint(0, 8), random.randint(0, 8)
            p = p.crop((left, top, left + 32, top + 32))
            if random.random() < 0.5:
                p = p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = (np.asarray(p, np.float32) / 255 - mean) / std
            return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), int(y[i])

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, _: int) -> Any:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    class Clock(lightning.Callback):
        def __init__(self) -> None:
            self.start = now()

        def on_train_start(self, *_: Any) -> None:
            self.start = now()

        def on_train_batch_end(self, *_: Any) -> None:
            between(since(self.start))  # with the batch's loading, which comes before it
            self.start = now()

    trainer = lightning.Trainer(
        max_steps=steps, precision=precision, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,  # type: ignore[arg-type]
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Clock()], default_root_dir=str(folder), max_epochs=-1,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(Pictures(), batch_size=BATCH, shuffle=True, drop_last=True))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 counted steps of each instead of 15")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all alike; the cores of this machine")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)

    import torch

    torch.set_num_threads(args.threads)
    if args.peer is not None:
        with tempfile.TemporaryDirectory() as name:
            serve(lambda between: peer(Path(name), args.peer, args.steps, between))
        return
    warm, counted = 2, 5 if args.quick else 15
    peers = {p: Peer("image_step", how, warm + counted + 2, args.threads) for p, how in (("bf16", "bf16-mixed"), ("fp32", "32-true"))}
    for one in peers.values():
        one.wait()  # the first, while nothing else is measured
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = {"auto": Ours("auto", folder)}
        chosen = ours["auto"].plan.precision
        ours |= {p: Ours(p, folder) for p in ("bf16", "fp32") if p != chosen}
        print(f"precision auto is {chosen} here, compiled {ours['auto'].plan.compile}", flush=True)
        for _ in range(warm + counted):
            for one in peers.values():
                one.go()
                one.wait()
            for own in ours.values():
                own.step()
    for one in peers.values():
        one.close()
    times = {f"peer_{p}": one.times[warm + 1 :] for p, one in peers.items()} | {f"ours_{p}": own.times[warm:] for p, own in ours.items()}
    times.setdefault(f"ours_{chosen}", times["ours_auto"])
    cpu = {n: statistics.median(c for _, c in t) for n, t in times.items()}
    clock = {n: statistics.median(c for c, _ in t) for n, t in times.items()}
    for n in times:
        print(f"{n}: {BATCH / cpu[n] * args.threads:,.0f} pictures/s by processor time; step {cpu[n]:.3f} s, by the clock {clock[n]:.3f} s")
    print(f"{args.threads} threads; torch {torch.__version__}; AMX {torch.cpu._is_amx_tile_supported()}; load {os.getloadavg()[0]:.1f}")
    best = min(("peer_bf16", "peer_fp32"), key=lambda n: cpu[n])
    result: dict[str, Any] = {"claim": "image_step", "ours": round(BATCH / cpu["ours_auto"]), "peer": round(BATCH / cpu[best])}
    result |= {"ratio": round(cpu[best] / cpu["ours_auto"], 2), "floor": 1.3, "unit": "pictures/s of processor time"}
    result |= {f"ratio_ours_{p}": round(cpu[best] / cpu[f"ours_{p}"], 2) for p in ("bf16", "fp32")}
    result |= {f"ratio_{p}": round(cpu[f"peer_{p}"] / cpu[f"ours_{p}"], 2) for p in ("bf16", "fp32")}
    result |= {"ratio_clock": round(clock[best] / clock["ours_auto"], 2), "auto": chosen, "best_peer": best.removeprefix("peer_")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
