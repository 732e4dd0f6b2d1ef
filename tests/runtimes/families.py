"""A tiny model of every shipped family, written in every format and compared: the cells of the table in docs/formats.md.

python tests/runtimes/families.py onnx openvino            # measures these formats and writes formats.json and docs/formats.md
python tests/runtimes/families.py --missing 100 aoti       # only what is not there yet, for at most 100 seconds
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tauon.artifacts import save_checkpoint
from tauon.config import dump, parse
from tauon.errors import TauonError
from tauon.export import export_weights
from tauon.models import ModelConfig, materialize
from tauon.runtimes import FORMATS, Program, agreement, trace
from tauon.tasks import Task
from tauon.types import Batch, DataSpec

importlib.import_module("tauon.recipe")

MEASURED = Path(__file__).with_name("formats.json")
PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
PROGRAMS, WEIGHTS = tuple(FORMATS), ("huggingface", "gguf")

TEXT = DataSpec(vocab=31, seq_len=12)
LABELLED = DataSpec(vocab=31, seq_len=12, outputs=3, labels=("a", "b", "c"))
TABLE = DataSpec(input_shape=(7,), outputs=3, labels=("a", "b", "c"))
NUMBERS = DataSpec(input_shape=(7,), outputs=1)
MIXED = DataSpec(input_shape=(6,), outputs=3, labels=("a", "b", "c"), categories=(0, 4, 0, 3, 0, 2))
IMAGES = DataSpec(input_shape=(1, 8, 8), outputs=3, labels=("a", "b", "c"))
SERIES = DataSpec(input_shape=(24, 3), outputs=3, labels=("a", "b", "c"), horizon=5)
CALENDAR = DataSpec(input_shape=(24, 4), outputs=3, labels=("a", "b", "c"), horizon=5)
SPEECH = DataSpec(input_shape=(1600,), outputs=4, labels=("<blank>", " ", "a", "b"), sample_rate=8000)
SOUNDS = DataSpec(input_shape=(1600,), outputs=3, labels=("a", "b", "c"), sample_rate=8000)
SMALL = {"layers": 1, "width": 16, "heads": 2}

CASES: dict[str, tuple[dict[str, Any], DataSpec, str]] = {
    "mlp": ({"hidden": [16]}, TABLE, "classification"),
    "mlp, categories": ({"kind": "mlp", "hidden": [16]}, MIXED, "classification"),
    "logistic": ({}, TABLE, "classification"),
    "linear": ({}, NUMBERS, "regression"),
    "wide-and-deep": ({"hidden": [16], "crosses": True}, MIXED, "classification"),
    "ft-transformer": (SMALL | {"attention_dropout": 0, "mlp_dropout": 0}, MIXED, "classification"),
    "tabm": ({"members": 3, "width": 16}, MIXED, "classification"),
    "gradient-boosting": ({"rounds": 5, "leaves": 8}, MIXED, "classification"),
    "cnn": ({"channels": [8]}, IMAGES, "classification"),
    "resnet18": ({"width": 8}, IMAGES, "classification"),
    "resnet34": ({"width": 8}, IMAGES, "classification"),
    "resnet50": ({"width": 8}, IMAGES, "classification"),
    "resnet20": ({}, IMAGES, "classification"),
    "resnet32": ({}, IMAGES, "classification"),
    "resnet56": ({}, IMAGES, "classification"),
    "vit": (SMALL | {"patch": 4}, IMAGES, "classification"),
    "dlinear": ({"kernel": 5}, SERIES, "forecasting"),
    "cyclenet": ({"cycle": 7, "hidden": 8}, CALENDAR, "forecasting"),
    "patchtst": (SMALL | {"mlp_width": 32, "patch": 6, "stride": 3, "dropout": 0}, SERIES, "forecasting"),
    "lstm": ({"width": 8}, SERIES, "forecasting"),
    "speech-cnn": ({"channels": [8, 12], "mels": 12}, SOUNDS, "audio-classification"),
    "conformer": (SMALL | {"mels": 12, "kernel": 5}, SOUNDS, "audio-classification"),
    "conformer, transcripts": ({"kind": "conformer", **SMALL, "mels": 12, "kernel": 5}, SPEECH, "speech-recognition"),
    "text-bag": ({"buckets": 997, "pooling": "attention"}, LABELLED, "text-classification"),
    "tfidf": ({"buckets": 997}, LABELLED, "text-classification"),
    "bert": (SMALL, LABELLED, "text-classification"),
    "bert, masked": ({"kind": "bert", **SMALL}, TEXT, "masked-language-modelling"),
    "gpt": (SMALL, TEXT, "language-modelling"),
    "gpt2": (SMALL, TEXT, "language-modelling"),
    "llama": (SMALL | {"kv_heads": 1, "rope_scaling": {"trained_for": 8}}, TEXT, "language-modelling"),
    "mistral": (SMALL | {"window": 5}, TEXT, "language-modelling"),
    "qwen2": (SMALL | {"tied": True}, TEXT, "language-modelling"),
    "qwen3": (SMALL | {"head_size": 6}, TEXT, "language-modelling"),
}


def config_of(name: str) -> ModelConfig:
    settings, spec, _ = CASES[name]
    return parse(ModelConfig, {"kind": name, **settings}).resolve(spec)


def model_of(name: str) -> Any:
    """A model whose every weight matters: nothing is at the zeros that it starts with."""
    model, g = materialize(config_of(name), seed=0).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


def batch_of(name: str, n: int = 6, length: int | None = None) -> Batch:
    """Random examples of the family's kind, with padding."""
    _, spec, task = CASES[name]
    g, ones = torch.Generator().manual_seed(n), torch.ones(n)
    if spec.vocab:
        T = length or spec.seq_len or 1
        x = torch.randint(1, spec.vocab, (n, T), generator=g)
        if task != "text-classification":
            return Batch(x, x, torch.ones(n, T))
        segments = torch.where(torch.arange(T) < T - torch.arange(n)[:, None] % 4, 0, -1).int()
        return Batch(x, torch.zeros(n, dtype=torch.int64), ones, segments)
    x = torch.randn(n, *(spec.input_shape or ()), generator=g)
    for i, c in enumerate(spec.categories):
        x[:, i] = torch.randint(0, c, (n,), generator=g) if c else x[:, i]
    targets = (
        torch.zeros(n, spec.horizon, 3) if spec.horizon else torch.zeros(n, 1) if spec.outputs == 1 else torch.zeros(n, dtype=torch.int64)
    )
    if spec.sample_rate:
        lengths = torch.randint(800, 1601, (n,), generator=g)
        return Batch(x, torch.zeros(n, 1, dtype=torch.int64) if task == "speech-recognition" else targets, ones, lengths=lengths)
    return Batch(x, targets, ones)


def traced(name: str) -> tuple[Any, Task, Program]:
    task, model = parse(Task, {"kind": CASES[name][2]}), model_of(name)
    return model, task, trace(task, model, batch_of(name))


def measure(name: str, form: str) -> dict[str, Any]:
    """Write one family in one format: {"error", "argmax"}, or {"refused"}."""
    try:
        with tempfile.TemporaryDirectory() as place:
            if form in WEIGHTS:
                model = model_of(name)
                saved = save_checkpoint(Path(place) / "c", 0, {"model": dict(model.state_dict())}, {"model": dump(config_of(name))})
                found = export_weights(saved.path, Path(place) / "out", format=form)["verification"]
                return {"error": found["relative"], "argmax": found["argmax"]}
            model, task, program = traced(name)
            FORMATS[form].write(program, Path(place))
            module = FORMATS[form].load(Path(place), program.signature)
            batches = [batch_of(name), batch_of(name, 1), batch_of(name, 3), batch_of(name, 70)]
            if CASES[name][1].vocab and "time" in program.signature.inputs[0].shape:
                batches += (
                    [batch_of(name, 2, 7), batch_of(name, 2, 3)]
                    if CASES[name][2] != "masked-language-modelling"
                    else [batch_of(name, 2, 7)]
                )
            figures = agreement(task, model, module, batches)
            problem = figures.problem(relative=1e-4)
            return {"refused": f"differs: {problem}"} if problem else {"error": figures.relative, "argmax": figures.argmax}
    except TauonError as err:
        return {"refused": str(err)}


def page(measured: dict[str, dict[str, Any]]) -> str:
    """The page: a row for each family, a column for each format, and the reasons of refusals below."""
    forms = (*PROGRAMS, *WEIGHTS)
    reasons: dict[str, int] = {}
    lines = [
        "# Formats and families", "",
        "Every shipped model family in every format of `tauon export`, as tests measure it on tiny models: written, loaded in the real runtime, and "
        "compared on batches of 1, 3, 6 and 70 rows, with padding and other lengths. A number is the largest difference of an output, relative to the "
        "largest output (float32 has 1.2e-07); `-` is refused, for the reason below. GGUF is read back with the `gguf` package and computed with "
        "from the file's own tensors; llama.cpp itself is not run. How to export: [Exporting](exporting.md).", "",
        f"| family | {' | '.join(forms)} |", f"|---|{'---|' * len(forms)}",
    ]  # fmt: skip
    for name in CASES:
        cells = []
        for form in forms:
            found = measured.get(name, {}).get(form)
            if found is None:
                cells.append("not measured")
            elif "refused" in found:
                reason = re.sub(r"^model \S+ has", "the model has", found["refused"])
                cells.append(f"- [{reasons.setdefault(reason, len(reasons) + 1)}]")
            else:
                cells.append(f"{found['error']:.0e}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## Refusals", ""] + [f"{i}. {text}" for text, i in reasons.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    missing = arguments[:1] == ["--missing"]
    seconds = float(arguments[1]) if missing else 1e9
    measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    began = time.time()
    for form in arguments[2:] if missing else arguments:
        for name in CASES:
            if time.time() - began > seconds or (missing and form in measured.get(name, {})):
                continue
            measured.setdefault(name, {})[form] = measure(name, form)
            print(form, name, measured[name][form], f"{time.time() - began:.0f} s", flush=True)
            MEASURED.write_text(json.dumps(measured, indent=1) + "\n")
    PAGE.write_text(page(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
