"""Run folders made up for tests, as the other rooms would leave them: real evaluations of simulated predictions."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np

from tauon.data.grid import png
from tauon.evaluate.evaluation import Evaluation
from tauon.metrics.classification import classification
from tauon.metrics.language import language_modelling
from tauon.metrics.regression import regression

HOW = {"confidence": 0.95, "resamples": 200, "seed": 7}
START = 1_753_000_000.0


def spelt(value):
    """A float as the log spells it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def write(folder: Path, name: str, value) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def write_events(folder: Path, events) -> None:
    write(folder, "events.jsonl", "".join(json.dumps({"time": START} | {k: spelt(v) for k, v in e.items()}) + "\n" for e in events))


def step_events(n, *, seed=0, top=9.0, bottom=3.2, tokens=4096, every=1, first=1):
    rng = np.random.default_rng(seed)
    for i in range(first, n + 1, every):
        x = i / n
        yield {
            "kind": "step",
            "time": START + 0.11 * i,
            "step": i,
            "loss": bottom + (top - bottom) * math.exp(-9 * x) + 0.08 * float(rng.normal()),
            "lr": 3e-4 * min(1, i / (0.05 * n)) * 0.5 * (1 + math.cos(math.pi * x)),
            "grad_norm": float(np.exp(0.3 * rng.normal())) * (1 + 4 * math.exp(-20 * x)),
            "examples_per_s": 300 + 8 * float(rng.normal()),
            "tokens_per_s": 38_000 + 900 * float(rng.normal()),
            "tflops": 0.52 + 0.01 * float(rng.normal()),
            "memory_mb": 1900 + 40 * min(1, 5 * x),
            "examples": i * 16,
            "tokens": i * tokens,
        }


MANIFEST = {
    "tauon": "0.1.0",
    "seed": 7,
    "environment": {
        "python": "3.11.13",
        "platform": "Linux 6.1 x86_64",
        "cpu": "A processor",
        "cores": 2,
        "memory": 8 * 2**30,
        "flags": ["avx2", "amx_bf16"],
        "libraries": {"torch": "2.13.0", "numpy": "2.4.6"},
        "git": {"commit": "45d3df9" + "0" * 33, "dirty": False},
    },
    "data": {"train": {"sha256": "ab" * 32}, "validation": {"sha256": "cd" * 32}},
    "lineage": {"parents": [], "checkpoint": "ef" * 32},
    "timing": {"prepare": 3.21, "train": 221.4, "evaluate": 5.0},
}


def language_model(folder: Path, steps=2000) -> Path:
    write(
        folder,
        "recipe.yaml",
        "name: stories-gpt\nseed: 7\ntask: language-modelling\nmodel: {kind: gpt, layers: 6, width: 384}\n"
        f"data:\n  source: {{kind: text, path: corpus/*.txt}}\n  seq_len: 256\ntrain: {{steps: {steps}, batch: 16}}\n",
    )
    write(
        folder,
        "derived.json",
        [
            {"path": "train.precision", "value": "bf16", "source": "the processor has AMX (amx_bf16)"},
            {"path": "model.parameters", "value": 13_773_696, "source": "counted after building"},
            {"path": "optim.schedule.warmup", "value": 100, "source": "5% of 2,000 steps"},
        ],
    )
    write(folder, "manifest.json", MANIFEST)
    write(
        folder,
        "data.json",
        {
            "source": {"kind": "text", "files": 112, "bytes": 8_402_113},
            "tokenizer": {"kind": "byte-level BPE", "vocabulary": 8192, "sha256": "12" * 32},
            "splits": {
                "train": {"documents": 1010, "tokens": 2_102_391, "bytes": 7_561_902},
                "validation": {"documents": 112, "tokens": 233_101, "bytes": 840_211},
            },
        },
    )
    events = []
    for e in step_events(steps):
        events.append(e)
        if e["step"] % (steps // 10) == 0:
            loss = 3.3 + 5.8 * math.exp(-9 * e["step"] / steps)
            events.append(
                {"kind": "validate", "time": e["time"], "step": e["step"], "loss": loss, "bits_per_byte": loss / math.log(2) / 3.6}
            )
        if e["step"] in (int(steps * 0.3), int(steps * 0.52)):
            events.append({"kind": "skip", "time": e["time"], "step": e["step"], "reason": "gradient norm 812.4 is 40 times the median"})
        if e["step"] == int(steps * 0.6):
            events.append({"kind": "resume", "time": e["time"] + 3000, "step": e["step"]})
    write_events(folder, events)
    rng = np.random.default_rng(1)
    n, tokens = 400, 256
    nll = tokens * (3.3 + 0.2 * rng.normal(size=n))
    size = rng.integers(850, 990, n)
    facts = {"words": int(size.sum() / 5.8), "bytes": int(size.sum())}
    found = language_modelling(nll, np.full(n, tokens), size, facts, **HOW)
    e = Evaluation(family="language-modelling", split="validation", n=n, **HOW, **found)
    write(folder, "evaluation.json", e.to_json())
    write(
        folder,
        "samples.json",
        [
            {
                "prompt": "def read_lines(path):",
                "text": "\n    with open(path) as f:\n        return [line.rstrip() for line in f]\n",
                "temperature": 0.8,
            },
            {"prompt": "class Stack:", "text": "class Stack:\n    def __init__(self):\n        self.items = []\n", "temperature": 0.0},
        ],
    )
    return folder


def data_findings(folder: Path) -> None:
    """Findings with long paths, long words, four images side by side."""
    grey = np.random.default_rng(0).integers(0, 256, (128, 520, 1)).astype(np.uint8)
    places = [f"/home/steward/projects/a_rather_long_name_of_a_folder/without_blanks_{k}.json.gz, item {k}" for k in range(4)]
    example = {"rows": [0, 1], "places": places, "text": "0" * 230 + "\nnormal words", "note": "labelled x, looks like y"}
    pictured = example | {"image": base64.b64encode(png(grey)).decode()}
    finding = {
        "check": "leaks",
        "severity": "bad",
        "message": "4 leak. Remove them",
        "examples": [example, pictured],
        "count": 2,
        "facts": {},
    }
    write(folder, "quality.json", {"kind": "images", "records": {"train": 9}, "findings": [finding, finding], "asked": ["Equal records"]})


def classifier(folder: Path, classes=10, n=4000, skill=3.0) -> Path:
    rng = np.random.default_rng(3)
    write(
        folder,
        "recipe.yaml",
        "name: digits-mlp\nseed: 1\ntask: classification\nmodel: {kind: mlp, hidden: [128, 128]}\ntrain: {epochs: 10}\n",
    )
    write(folder, "manifest.json", MANIFEST)
    write(
        folder,
        "data.json",
        {
            "source": {"kind": "idx", "path": "mnist", "licence": "CC BY-SA 3.0", "address": "https://example.org/mnist"},
            "features": 784,
            "classes": {str(c): int(600 + 40 * rng.normal()) for c in range(classes)},
            "splits": {"train": 6000, "test": n},
        },
    )
    write(folder, "derived.json", [{"path": "model.parameters", "value": 118_282, "source": "counted after building"}])
    events = []
    for e in step_events(900, top=2.3, bottom=0.08, tokens=0):
        events.append({k: v for k, v in e.items() if k not in ("tokens", "tokens_per_s")} | {"loss": max(e["loss"], 0.001)})
        if e["step"] % 90 == 0:
            events.append(
                {
                    "kind": "validate",
                    "time": e["time"],
                    "step": e["step"],
                    "loss": 0.1 + 2 * math.exp(-e["step"] / 120),
                    "accuracy": 0.975 - math.exp(-e["step"] / 150),
                }
            )
    write_events(folder, events)
    t = rng.integers(0, classes, n)
    z = rng.normal(size=(n, classes))
    z[np.arange(n), t] += skill
    z[t == 4, min(9, classes - 1)] += 1.5
    p = np.exp(1.6 * z)
    p /= p.sum(1, keepdims=True)
    found = classification(p.astype(np.float32), t, tuple(str(c) for c in range(classes)), **HOW)
    write(
        folder, "evaluation.json", Evaluation(family="classification", split="test", n=n, counts={"examples": n}, **HOW, **found).to_json()
    )
    data_findings(folder)
    return folder


def regressor(folder: Path, targets=1) -> Path:
    rng = np.random.default_rng(4)
    write(folder, "recipe.yaml", "name: diabetes-linear\ntask: regression\nmodel: linear\n")
    write_events(
        folder,
        [{k: v for k, v in e.items() if k not in ("tokens", "tokens_per_s", "tflops")} for e in step_events(25, top=5000.0, bottom=3.0)],
    )
    t = rng.normal(size=(120, targets)) * 77 + 152
    p = t + rng.normal(size=t.shape) * 54
    found = regression(p, t, tuple(f"target {k}" for k in range(targets)), **HOW)
    write(folder, "evaluation.json", Evaluation(family="regression", split="test", n=120, **HOW, **found).to_json())
    rows = [{"fold": k, "metrics": {"r2": 0.4 + 0.03 * k, "rmse": {"value": 55.0 - k, "low": None, "high": None}}} for k in range(5)]
    write(folder, "folds.json", {"folds": rows, "mean": {"r2": 0.46, "rmse": 53.0}, "std": {"r2": 0.047, "rmse": 1.58}})
    return folder


HOSTILE = "</title></style></script><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&\x00\u202e\ud800"


def hostile(folder: Path) -> Path:
    """Markup wherever a record can hold text."""
    bad = HOSTILE
    write(
        folder,
        "recipe.yaml",
        'name: "<script>alert(1)</script>"\ntask: "<b onmouseover=alert(2)>"\n# ' + bad.replace("\x00", "").replace("\ud800", "") + "\n",
    )
    write(folder, "derived.json", [{"path": bad, "value": bad, "source": bad}, {"path": bad, "value": {bad: [bad]}, "source": None}])
    write(
        folder, "manifest.json", {"environment": {bad: bad, "cpu": [bad]}, bad: {bad: [{bad: bad}, {bad: 1}]}, "classes": {bad: 3, "b": 4}}
    )
    write(folder, "data.json", {bad: bad, "splits": {bad: {bad: 1}, "x": {bad: 2}}, "class_balance": {bad: 10, "ok": 20}})
    events = [
        *step_events(40),
        {"kind": "warning", "message": bad},
        {"kind": "skip", "step": 3, "reason": bad},
        {"kind": "validate", "step": 20, "loss": 3, bad: 1.0},
        {"kind": "validate", "step": 40, "loss": 2, bad: 2.0},
        {"kind": "interrupted", "step": 40, "reason": bad},
    ]
    write_events(folder, events)
    metric = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "method": bad, "about": bad, "better": bad, "reason": bad}
    write(
        folder,
        "evaluation.json",
        {
            "family": bad,
            "split": bad,
            "n": 9,
            "primary": bad,
            "metrics": {bad: metric, "accuracy": metric},
            "notes": [bad],
            "confusion": {"labels": [bad, "b", "c"], "counts": [[1, 2, 0], [0, 3, 0], [1, 0, 2]]},
            "per_class": [{"label": bad, bad: metric, "support": 3}],
            "calibration": {
                "bins": [{"low": 0, "high": 0.1, "n": 3, "confidence": 0.05, "accuracy": 0.5, "accuracy_low": 0.1, "accuracy_high": 0.9}]
            },
        },
    )
    write(folder, "samples.json", [{"prompt": bad, "text": bad, bad: bad}])
    write(folder, "folds.json", {"folds": [{"fold": bad, "metrics": {bad: 1}}], "mean": {bad: 1}})
    return folder
