"""Everything registered keeps its family's contract: a newcomer is enrolled here by its registration alone."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.config import parse, registered
from tauon.data import SourceConfig
from tauon.models import ModelConfig
from tauon.optim import OptimConfig, ScheduleConfig
from tauon.testing import check_model, check_optimizer, check_source
from tauon.types import DataSpec

importlib.import_module("tauon.recipe")  # registers every family

TEXT = DataSpec(vocab=31, seq_len=12)
TABLE = DataSpec(input_shape=(7,), outputs=3, labels=("a", "b", "c"))
IMAGES = DataSpec(input_shape=(1, 8, 8), outputs=3, labels=("a", "b", "c"))
NUMBERS = DataSpec(input_shape=(7,), outputs=1)

MODELS: dict[str, list[tuple[dict[str, Any], DataSpec]]] = {
    "gpt": [
        ({"layers": 2, "width": 16, "heads": 4}, TEXT),
        ({"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "mlp": "swiglu", "tied": True, "qk_norm": False}, TEXT),
    ],
    "gpt2": [({"layers": 2, "width": 16, "heads": 4}, TEXT)],
    "mlp": [({"hidden": [16, 16]}, TABLE), ({"hidden": [16], "activation": "gelu"}, NUMBERS), ({}, IMAGES)],
    "logistic": [({}, TABLE)],
    "linear": [({}, NUMBERS)],
    "resnet18": [({"width": 8}, IMAGES)],
    "resnet34": [({"width": 8, "norm": "group", "groups": 8}, IMAGES)],
    "resnet50": [({"width": 8, "stem": "small"}, IMAGES)],
    "resnet20": [({}, IMAGES), ({"norm": "group", "dropout": 0.1, "drop_path": 0.1}, IMAGES)],
    "resnet32": [({}, IMAGES)],
    "resnet56": [({}, IMAGES)],
    "vit": [({"patch": 4, "layers": 2, "width": 16, "heads": 2}, IMAGES)],
    "cnn": [({"channels": [8, 16]}, IMAGES), ({"channels": [8], "convs_per_stage": 2}, IMAGES)],
}
OPTIMIZERS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"lr": 0.1}, {"lr": 0.2, "momentum": 0.0}, {"nesterov": True, "lr": 0.05, "weight_decay": 1e-4}],
    "adam": [{"lr": 0.05}],
    "adamw": [{"lr": 0.05, "weight_decay": 0.01}],
    "muon": [{"lr": 0.05, "adamw_lr": 0.05, "schedule": {"kind": "wsd"}}],
}


def sources(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """A working config of every registered source, over files made here."""
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": f"row {i}", "x": i, "y": i % 2}) for i in range(6)))
    with (folder / "c.csv").open("w", newline="") as f:
        csv.writer(f).writerows([["x", "z", "y"], *[[i, i * i, "ab"[i % 2]] for i in range(6)]])
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", "two"], "x": [1.0, 2.0]}), folder / "d.parquet")
    images, labels = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2), np.arange(6, dtype=np.uint8) % 3
    for name, array in (("images", images), ("labels", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
        (folder / f"{name}.idx.gz").write_bytes(gzip.compress(head + array.tobytes()))
    from PIL import Image

    for i in range(6):
        (folder / "signs" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), 40 * i).save(folder / "signs" / "ab"[i % 2] / f"{i}.png")
    np.savez(folder / "e.npz", x=images.astype(np.float32), y=labels.astype(np.int64))
    return {
        "text": [{"path": str(folder / "a.txt")}],
        "jsonl": [{"path": str(folder / "b.jsonl"), "text": "text"}],
        "csv": [{"path": str(folder / "c.csv"), "label": "y"}],
        "parquet": [{"path": str(folder / "d.parquet"), "text": "text"}],
        "idx": [{"images": str(folder / "images.idx.gz"), "labels": str(folder / "labels.idx.gz")}],
        "npz": [{"path": str(folder / "e.npz"), "features": "x", "targets": "y"}],
        "folder": [{"path": str(folder / "signs")}, {"path": str(folder / "signs"), "size": 4, "colours": "rgb"}],
        "sklearn": [{"name": n} for n in ("iris", "diabetes", "digits")],
        "python-stdlib": [{"limit": 3}],
    }


def test_every_registered_part_has_a_case_here() -> None:
    assert set(registered("model")) == set(MODELS)
    assert set(registered("optim")) == set(OPTIMIZERS)


@pytest.mark.parametrize(("kind", "settings", "spec"), [(k, s, d) for k, cases in MODELS.items() for s, d in cases])
def test_model_contract(kind: str, settings: dict[str, Any], spec: DataSpec) -> None:
    config = parse(ModelConfig, {"kind": kind, **settings})
    check_model(config, spec, steps={"logistic": 600, "linear": 600}.get(kind, 40 if kind.startswith("resnet") else 200))


@pytest.mark.parametrize(("kind", "settings"), [(k, s) for k, cases in OPTIMIZERS.items() for s in cases])
def test_optimizer_contract(kind: str, settings: dict[str, Any]) -> None:
    check_optimizer(parse(OptimConfig, {"kind": kind, **settings}))


@pytest.mark.parametrize("kind", sorted(set(registered("source")) - {"public"}))
def test_source_contract(kind: str, tmp_path: Path) -> None:
    cases = sources(tmp_path)
    assert kind in cases, f"source {kind} has no case here"
    for settings in cases[kind]:
        check_source(parse(SourceConfig, {"kind": kind, **settings}))


@pytest.mark.parametrize("kind", sorted(registered("schedule")))
@pytest.mark.parametrize("warmup", [0, 0.1, 7])
def test_schedule_contract(kind: str, warmup: float) -> None:
    schedule = parse(ScheduleConfig, {"kind": kind, "warmup": warmup})
    total = 100
    factors = [schedule.factor(i, total) for i in range(total)]
    assert all(0 < f <= 1 for f in factors)
    rise = schedule.warmup_steps(total)
    assert factors[:rise] == sorted(factors[:rise])
    assert max(factors) == pytest.approx(1.0, abs=0.01)
    assert factors[rise:] == sorted(factors[rise:], reverse=True)
    assert schedule.factor(0, 1) > 0
