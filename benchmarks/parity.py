"""What was trained is what is served: logits of one text from the trained model, its merged adapters, its exports and the server; predictions of
each kind of data over HTTP against `tauon predict`.

Small runs are trained first (those of the tests of serving). Differences are relative to the largest logit, or to the largest value of a column;
float32. Greedy texts and predicted classes must be equal.

    trained      the checkpoint, loaded as `tauon evaluate` loads it
    merged       a run with LoRA adapters, merged into the weights: against the model with adapters
    exported     `export huggingface`, read by transformers; `export onnx`, run by ONNX Runtime
    served       log-probabilities of `/v1/completions`, a token of prompt and answer each, against the log-softmax of the trained model

    python -m benchmarks.parity      needs the extras bench, onnx and serve
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests/serve")]

FLOOR = 1e-4
TEXT = "the cat sat on the mat. the dog"


def relative(a: Any, b: Any) -> float:
    return float((a - b).abs().max() / b.abs().max())


def client_of(place: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):
        from fastapi.testclient import TestClient

    from tauon.serve import ServeSettings, build_app, open_server

    return TestClient(build_app(open_server(place, ServeSettings(drift=False))))


def logits_of(place: Path, ids: list[int]) -> Any:
    import torch

    from tauon.artifacts import find_checkpoint
    from tauon.recipe import load_recipe
    from tauon.stages.load import load_model

    folder = place.parents[1] if place.parent.name == "checkpoints" else place
    model, _ = load_model(find_checkpoint(place), load_recipe(folder))
    with torch.inference_mode():
        return model.logits(model(torch.tensor([ids])))[0].float()


def language(folder: Path) -> dict[str, float]:
    """Relative differences of logits, and the number of texts that differ."""
    import torch
    import worlds

    from tauon.artifacts import RunFolder, find_checkpoint
    from tauon.export.bundle import open_bundle
    from tauon.generate import Sampling
    from tauon.recipe import load_recipe
    from tauon.stages.context import Context, null_callback
    from tauon.stages.export import export_run
    from tauon.stages.generate import TextGenerator

    run = worlds.language()
    writer = TextGenerator(Context(load_recipe(run), RunFolder.read(run), null_callback))
    ids = writer.begin(TEXT, plain=True)[0]
    trained = logits_of(run, ids)
    found: dict[str, float] = {}

    export_run(run, ["huggingface", "onnx"])
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(run / "export/huggingface").eval()
    with torch.inference_mode():
        found["exported, transformers"] = relative(theirs(torch.tensor([ids])).logits[0].float(), trained)
        batch = torch.tensor([ids])
        program = open_bundle(run / "export/onnx").load()
        given = (batch, torch.zeros_like(batch)) if len(program.signature.inputs) > 1 else (batch,)
        found["exported, ONNX Runtime"] = relative(program(*given)[0].float(), trained)

    (text,) = writer.write(TEXT, max_tokens=30, sampling=Sampling(temperature=0))
    greedy = theirs.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()
    with client_of(run) as client:
        body = {"model": run.name, "prompt": TEXT, "max_tokens": 30, "temperature": 0, "logprobs": 0}
        choice = client.post("/v1/completions", json=body).json()["choices"][0]
    answer = writer.tokenizer.encode(choice["text"]).tolist()
    rows = torch.log_softmax(logits_of(run, [*ids, *answer])[len(ids) - 1 : -1], -1)
    told = torch.stack([row[token] for row, token in zip(rows, answer, strict=True)])
    served = torch.tensor(choice["logprobs"]["token_logprobs"][: len(answer)])
    found["served"] = relative(served, told) if told.abs().max() > 1e-3 else float((served - told).abs().max())
    found["texts that differ"] = float((choice["text"] != text) + (writer.tokenizer.decode(greedy)[: len(text)] != text))
    return found | merged(folder, run, ids, find_checkpoint(run).path)


def merged(folder: Path, base: Path, ids: list[int], _: Path) -> dict[str, float]:
    """A run with adapters on the base, and the same merged."""
    import worlds

    from tauon.config import parse
    from tauon.export.weights import merge_adapter
    from tauon.pipeline import run
    from tauon.recipe import Recipe

    recipe = {
        "name": "adapters", "data": {"source": {"kind": "chat", "path": str(worlds.world() / "chat.jsonl")}, "seq_len": 64},
        "task": "instruction-tuning", "model": {"from": str(base)}, "adapt": {"kind": "lora", "rank": 4},
        "optim": {"kind": "adam", "lr": 0.01}, "train": worlds.TRAIN,
    }  # fmt: skip
    worlds.run_of("chat")  # writes the conversations
    adapted = run(parse(Recipe, recipe), root=folder / "runs", stages=("prepare", "train")).folder
    whole = merge_adapter(adapted, folder / "merged")
    import torch

    from tauon.artifacts import find_checkpoint
    from tauon.models import from_record, materialize

    checkpoint = find_checkpoint(whole)
    model = materialize(from_record(checkpoint.state["model"]), seed=0, weights=dict(checkpoint.lazy("model"))).eval()
    with torch.inference_mode():
        return {"merged": relative(model.logits(model(torch.tensor([ids])))[0].float(), logits_of(adapted, ids))}


def predictions(folder: Path, kind: str) -> tuple[float, int, int]:
    """(largest relative difference of a number, words that differ, rows) of HTTP against `tauon predict`."""
    import worlds

    from tauon.predict import predict_file

    path, content_type = worlds.raw(kind)
    run = worlds.run_of(kind)
    path = worlds.raw(kind)[0]
    predict_file(run, path, folder / f"{kind}.csv")
    with (folder / f"{kind}.csv").open(newline="") as f:
        told = list(csv.DictReader(f))
    with client_of(run) as client:
        answer = client.post("/predict", content=path.read_bytes(), headers={"content-type": content_type}).json()["predictions"]
    assert len(answer) == len(told)
    largest, differ = 0.0, 0
    for name, first in answer[0].items():
        if isinstance(first, float):
            scale = max(abs(float(t[name])) for t in told) or 1.0
            largest = max(largest, *(abs(a[name] - float(t[name])) / scale for a, t in zip(answer, told, strict=True)))
        else:
            differ += sum(str(a[name]) != t[name] for a, t in zip(answer, told, strict=True))
    return largest, differ, len(answer)


def main() -> None:
    warnings.filterwarnings("ignore")
    import worlds

    with tempfile.TemporaryDirectory() as name:
        found = language(Path(name))
        mismatches = int(found.pop("texts that differ"))
        for kind in worlds.KINDS:
            worlds.run_of(kind)
            largest, differ, rows = predictions(Path(name), kind)
            found[f"predicted, {kind}"] = largest
            mismatches += differ
            print(f"{kind}: {rows} rows, {differ} words differ, numbers by {largest:.1e}")
    for name, value in found.items():
        print(f"{name}: {value:.1e}")
    worst = max(found.values())
    result: dict[str, Any] = {"claim": "parity", "ours": float(f"{worst:.2e}"), "peer": FLOOR, "ratio": round(FLOOR / max(worst, 1e-12), 1)}
    result |= {"floor": 1, "unit": "largest relative difference", "mismatches": mismatches, "floor_mismatches": 0}
    print(json.dumps(result | {"each": {k: float(f"{v:.1e}") for k, v in found.items()}}))


if __name__ == "__main__":
    main()
