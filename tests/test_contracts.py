"""Everything registered keeps its family's contract: a newcomer is enrolled here by its registration alone."""

from __future__ import annotations

import csv
import gzip
import importlib
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from task_references import REFERENCES
from tauon.config import parse, registered
from tauon.data import SourceConfig
from tauon.models import ModelConfig
from tauon.optim import OptimConfig, ScheduleConfig
from tauon.tasks import Task
from tauon.testing import check_model, check_optimizer, check_source, check_task
from tauon.types import Batch, DataSpec
from tones import tone, write_wav

importlib.import_module("tauon.recipe")  # registers every family

TEXT = DataSpec(vocab=31, seq_len=12)
LABELLED = DataSpec(vocab=31, seq_len=12, outputs=3, labels=("a", "b", "c"))
TABLE = DataSpec(input_shape=(7,), outputs=3, labels=("a", "b", "c"))
IMAGES = DataSpec(input_shape=(1, 8, 8), outputs=3, labels=("a", "b", "c"))
NUMBERS = DataSpec(input_shape=(7,), outputs=1)
MIXED = DataSpec(input_shape=(6,), outputs=3, labels=("a", "b", "c"), categories=(0, 4, 0, 3, 0, 2))
CODES = DataSpec(input_shape=(2,), outputs=1, categories=(5, 9))
SERIES = DataSpec(input_shape=(24, 3), outputs=3, labels=("a", "b", "c"), horizon=5)
FANS = DataSpec(input_shape=(24, 3), outputs=9, labels=("a", "b", "c"), horizon=5)
SPEECH = DataSpec(input_shape=(1600,), outputs=4, labels=("<blank>", " ", "a", "b"), sample_rate=8000)
SOUNDS = DataSpec(input_shape=(1600,), outputs=3, labels=("a", "b", "c"), sample_rate=8000)
COVARIATES = DataSpec(input_shape=(12, 5), outputs=2, labels=("a", "b"), horizon=4)

MODELS: dict[str, list[tuple[dict[str, Any], DataSpec]]] = {
    "gpt": [
        ({"layers": 2, "width": 16, "heads": 4}, TEXT),
        ({"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "mlp": "swiglu", "tied": True, "qk_norm": False}, TEXT),
    ],
    "llama": [({"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "rope_scaling": {"trained_for": 8}}, TEXT)],
    "mistral": [({"layers": 2, "width": 16, "heads": 4, "window": 5}, TEXT)],
    "qwen2": [({"layers": 2, "width": 16, "heads": 4, "tied": True}, TEXT)],
    "qwen3": [({"layers": 2, "width": 16, "heads": 4, "head_size": 6}, TEXT)],
    "bert": [
        ({"layers": 2, "width": 16, "heads": 4, "dropout": 0.0}, TEXT),
        ({"layers": 1, "width": 16, "heads": 4, "dropout": 0.0}, LABELLED),
    ],
    "gpt2": [({"layers": 2, "width": 16, "heads": 4}, TEXT)],
    "mlp": [
        ({"hidden": [16, 16]}, TABLE),
        ({"hidden": [16], "activation": "gelu"}, NUMBERS),
        ({}, IMAGES),
        ({"hidden": [16]}, MIXED),
        ({"hidden": [16], "embedding": 3}, CODES),
    ],
    "logistic": [({}, TABLE)],
    "linear": [({}, NUMBERS)],
    "resnet18": [({"width": 8}, IMAGES)],
    "resnet34": [({"width": 8, "norm": "group", "groups": 8}, IMAGES)],
    "resnet50": [({"width": 8, "stem": "small"}, IMAGES)],
    "resnet20": [({}, IMAGES), ({"norm": "group", "dropout": 0.1, "drop_path": 0.1}, IMAGES)],
    "resnet32": [({}, IMAGES)],
    "resnet56": [({}, IMAGES)],
    "vit": [({"patch": 4, "layers": 2, "width": 16, "heads": 2}, IMAGES)],
    "wide-and-deep": [({"hidden": [16]}, MIXED), ({"hidden": [16], "crosses": True}, CODES), ({}, TABLE)],
    "ft-transformer": [
        ({"layers": 2, "width": 16, "heads": 4, "attention_dropout": 0, "mlp_dropout": 0}, s) for s in (MIXED, CODES, TABLE)
    ],
    "cyclenet": [
        ({"cycle": 7}, DataSpec(input_shape=(24, 4), outputs=3, labels=("a", "b", "c"), horizon=5)),
        ({"cycle": 7, "hidden": 16}, DataSpec(input_shape=(24, 4), outputs=9, labels=("a", "b", "c"), horizon=5)),
    ],
    "dlinear": [({"kernel": 5}, SERIES), ({"kernel": 5, "individual": True, "revin": True}, SERIES), ({}, FANS)],
    "patchtst": [
        ({"layers": 2, "width": 16, "heads": 4, "mlp_width": 32, "patch": 6, "stride": 3, "dropout": 0}, s) for s in (SERIES, FANS)
    ],
    "lstm": [({"width": 24}, SERIES), ({"width": 24, "layers": 2, "revin": False}, FANS), ({"width": 24}, COVARIATES)],
    "gradient-boosting": [
        ({"rounds": 20, "leaves": 8}, TABLE),
        ({"rounds": 20, "leaves": 8}, NUMBERS),
        ({"rounds": 20, "leaves": 8}, MIXED),
    ],
    "tabm": [
        ({"members": 3, "width": 16}, TABLE),
        ({"members": 2, "width": 16, "bins": 0}, NUMBERS),
        ({"members": 3, "width": 16, "layers": 1}, MIXED),
        ({"members": 3, "width": 16}, CODES),
    ],
    "tfidf": [({"buckets": 997}, LABELLED), ({"buckets": 97, "ngrams": 1, "sublinear": False}, LABELLED)],
    "text-bag": [
        ({"dropout": 0, "number_dropout": 0, "buckets": 997}, LABELLED),
        ({"dropout": 0, "number_dropout": 0, "ngrams": 1}, LABELLED),
        ({"dropout": 0, "number_dropout": 0, "buckets": 997, "pooling": "attention"}, LABELLED),
    ],
    "speech-cnn": [({"channels": [8, 12], "mels": 12}, SOUNDS)],
    "conformer": [({"layers": 1, "width": 16, "heads": 2, "mels": 12, "kernel": 5}, SOUNDS)],
    "cnn": [({"channels": [8, 16]}, IMAGES), ({"channels": [8], "convs_per_stage": 2}, IMAGES)],
}


def spoken_words() -> Batch:
    """Recordings with transcripts of one to three characters."""
    g = torch.Generator().manual_seed(0)
    targets = torch.randint(1, 4, (12, 3), generator=g)
    for row in range(12):
        targets[row, row % 3 + 1 :] = -1
    return Batch(torch.randn(12, 1600, generator=g), targets, torch.ones(12), lengths=torch.full((12,), 1600))


def preferences() -> Batch:
    """Pairs of answers to a prompt of five tokens, with log-probabilities of a reference."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 31, (12, 2, 13), generator=g)
    tokens[:, 1, :6] = tokens[:, 0, :6]
    weights = torch.zeros(12, 2, 12)
    weights[:, :, 5:10] = 1
    segments = torch.zeros(12, 2, 12, dtype=torch.int32)
    segments[:, :, 10:] = -1
    return Batch(tokens[..., :-1], tokens[..., 1:], weights, segments, reference=torch.full((12, 2), -17.0))


def several_labels() -> Batch:
    """Rows with a 0 or 1 for each of three labels."""
    g = torch.Generator().manual_seed(0)
    return Batch(torch.randn(4, 7, generator=g), torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]]).float(), torch.ones(4))


TASKS: dict[str, list[tuple[Any, ...]]] = {
    "classification": [({}, {"kind": "mlp"}, TABLE), ({"label_smoothing": 0.1}, {"kind": "mlp"}, MIXED)],
    "ordinal": [({}, {"kind": "mlp"}, TABLE), ({"loss_kind": "rps"}, {"kind": "mlp"}, TABLE)],
    "multi-label": [({}, {"kind": "mlp"}, TABLE, several_labels())],
    "regression": [({}, {"kind": "mlp"}, NUMBERS), ({"loss_kind": "huber"}, {"kind": "linear"}, NUMBERS)],
    "quantile-regression": [({}, {"kind": "mlp"}, NUMBERS), ({"quantiles": [0.5]}, {"kind": "mlp"}, CODES)],
    "forecasting": [
        ({}, {"kind": "dlinear"}, SERIES),
        ({"loss_kind": "quantile"}, {"kind": "lstm"}, COVARIATES),
        ({"loss_kind": "huber", "delta": 0.5}, {"kind": "patchtst"}, SERIES),
    ],
    "language-modelling": [({}, {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}, TEXT)],
    "instruction-tuning": [({}, {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}, TEXT)],
    "dpo": [
        ({}, {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}, TEXT, preferences()),
        ({"beta": 0.5, "label_smoothing": 0.1}, {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "tied": True}, TEXT, preferences()),
    ],
    "text-classification": [
        ({}, {"kind": "text-bag", "buckets": 997}, LABELLED),
        ({"label_smoothing": 0.1}, {"kind": "bert", "layers": 1, "width": 16, "heads": 2}, LABELLED),
    ],
    "masked-language-modelling": [({}, {"kind": "bert", "layers": 1, "width": 16, "heads": 2}, TEXT)],
    "audio-classification": [({}, {"kind": "speech-cnn", "channels": [8, 12], "mels": 12}, SOUNDS)],
    "speech-recognition": [
        ({}, {"kind": "conformer", "layers": 1, "width": 16, "heads": 2, "mels": 12, "kernel": 5, "dropout": 0.0}, SPEECH, spoken_words())
    ],
}
OPTIMIZERS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"lr": 0.1}, {"lr": 0.2, "momentum": 0.0}, {"nesterov": True, "lr": 0.05, "weight_decay": 1e-4}],
    "adam": [{"lr": 0.05}],
    "adamw": [{"lr": 0.05, "weight_decay": 0.01}],
    "gd": [{"lr": 0.3}],
    "adagrad": [{"lr": 0.5}, {"lr": 0.5, "initial_sum": 0.1}],
    "rmsprop": [{"lr": 0.02}, {"lr": 0.005, "momentum": 0.9, "centered": True}],
    "adafactor": [{"lr": 0.1}],
    "lion": [{"lr": 0.02, "weight_decay": 0.0}],
    "soap": [{"lr": 0.05, "weight_decay": 0.0}, {"lr": 0.05, "weight_decay": 0.0, "largest": 5, "every": 3}],
    "schedule-free": [{"lr": 0.1, "weight_decay": 0.0}],
    "adamw-bc": [{"lr": 0.05}],
    "adamw8bit": [{"lr": 0.05, "weight_decay": 0.01}],
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
    for i in range(6):
        (folder / "texts" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "texts" / "ab"[i % 2] / f"{i}.txt").write_text(f"text {i}")
    (folder / "f.csv").write_text("date,a,b\n" + "".join(f"2020-01-{i + 1:02d},{i},{i * i}\n" for i in range(20)))
    for name in ("a_0", "a_1", "b_0"):
        write_wav(folder / "wav" / f"{name}.wav", tone(300, 0.02, 8000), 8000)
    (folder / "g.json").write_text(json.dumps([{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(12)]))
    (folder / "h.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}?", "chosen": f"{i}!", "rejected": "no"}) for i in range(12)))
    with tarfile.open(folder / "t.tar", "w") as tar:
        for i in range(6):
            tar.add(folder / "texts" / "ab"[i % 2] / f"{i}.txt", f"{i}.txt")
    table = pa.table({"text": [f"document {i}" for i in range(6)]})
    (folder / "arrow").mkdir()
    with pa.OSFile(str(folder / "arrow" / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / "arrow" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    np.savez(folder / "e.npz", x=images.astype(np.float32), y=labels.astype(np.int64))
    return {
        "text": [{"path": str(folder / "a.txt")}],
        "jsonl": [{"path": str(folder / "b.jsonl"), "text": "text"}],
        "csv": [{"path": str(folder / "c.csv"), "label": "y"}, {"path": str(folder / "c.csv"), "text": "x", "label": "y"}],
        "chat": [{"path": str(folder / "g.json")}],
        "pairs": [{"path": str(folder / "h.jsonl")}],
        "parquet": [{"path": str(folder / "d.parquet"), "text": "text"}],
        "idx": [{"images": str(folder / "images.idx.gz"), "labels": str(folder / "labels.idx.gz")}],
        "wav": [{"path": str(folder / "wav"), "pattern": "{label}_{take}"}],
        "npz": [{"path": str(folder / "e.npz"), "features": "x", "targets": "y"}],
        "folder": [{"path": str(folder / "signs")}, {"path": str(folder / "signs"), "size": 4, "colours": "rgb"}],
        "sklearn": [{"name": n} for n in ("iris", "diabetes", "digits")],
        "series": [{"path": str(folder / "f.csv")}, {"path": str(folder / "f.csv"), "targets": ["b"], "inputs": ["a"]}],
        "python-stdlib": [{"limit": 3}],
        "text-folder": [{"path": str(folder / "texts")}],
        "webdataset": [{"path": str(folder / "t.tar")}],
        "hf-disk": [{"path": str(folder / "arrow")}],
        "mixture": [
            {
                "sources": [
                    {"source": {"kind": "text", "path": str(folder / "a.txt")}},
                    {"source": {"kind": "jsonl", "path": str(folder / "b.jsonl"), "text": "text"}},
                ]
            }
        ],
    }


def test_every_registered_part_has_a_case_here() -> None:
    assert set(registered("model")) - {"checkpoint", "compressed"} == set(MODELS)  # they are whatever `from` holds
    assert set(registered("optim")) == set(OPTIMIZERS)
    assert set(registered("task")) == set(TASKS) == set(REFERENCES)


@pytest.mark.parametrize(("kind", "settings", "spec"), [(k, s, d) for k, cases in MODELS.items() for s, d in cases])
def test_model_contract(kind: str, settings: dict[str, Any], spec: DataSpec) -> None:
    config = parse(ModelConfig, {"kind": kind, **settings})
    check_model(config, spec, steps={"logistic": 600, "linear": 600}.get(kind, 40 if kind.startswith("resnet") else 200))


@pytest.mark.parametrize(("kind", "case"), [(k, case) for k, cases in TASKS.items() for case in cases])
def test_task_contract(kind: str, case: tuple[Any, ...]) -> None:
    settings, model, spec, *batch = case
    task = parse(Task, {"kind": kind, **settings})
    check_task(task, parse(ModelConfig, model), spec, *batch, reference=lambda net, rows: REFERENCES[kind](task, net, rows))


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
    after = factors[rise:]
    falls = [i for i, (a, b) in enumerate(itertools.pairwise(after)) if b > a]
    assert len(falls) <= (2 if kind == "cosine-restarts" else 0)  # it jumps back to the peak at each restart
    assert schedule.factor(0, 1) > 0
