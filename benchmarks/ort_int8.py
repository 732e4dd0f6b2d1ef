"""Our int8 ONNX against ONNX Runtime in float32 and against its own `quantize_static`, in ONNX Runtime, at M = 1, 8 and 64 rows, in turns of
a few calls, the first of which is not counted: a server runs one model again and again, and its weights stay in the cache if they fit.

Two models. An MLP 512-2048-2048-2048-512 with ReLU, as wide as the linear layers of a 30M GPT, with random weights and standard normal inputs. And the
published CIFAR ResNet-20 on test images. Only time is compared; the relative error of each against float32 is printed. The peer: `quantize_static` of the
float32 file, QDQ, per channel, with the same calibration data; as it is by default (signed activations), and with unsigned ones, which are ours, too.

    python -m benchmarks.ort_int8 [--seconds 3]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._resnet import images, resnet20
from tauon.compress import Calibration, GraphInt8, Int8Graph, compress_model
from tauon.compress.measure import medians
from tauon.models import MLPConfig, materialize
from tauon.runtimes import FORMATS, trace
from tauon.runtimes.onnx import onnx_session
from tauon.tasks import Classification
from tauon.types import Batch, DataSpec

FLOORS = (3.0, 1.5)
WIDTHS = (2048, 2048, 2048)
INPUTS = 512


def mlp() -> tuple[Any, Any, list[Batch]]:
    """(model, config, batches)."""
    spec = DataSpec(input_shape=(INPUTS,), outputs=INPUTS, labels=tuple(map(str, range(INPUTS))))
    config = MLPConfig(hidden=WIDTHS).resolve(spec)
    model, g = materialize(config, seed=0), torch.Generator().manual_seed(0)
    last: Any = model.get_submodule(f"layers.{len(WIDTHS)}")  # starts at zero
    with torch.no_grad():
        last.weight.copy_(torch.randn(last.weight.shape, generator=g) / WIDTHS[-1] ** 0.5)
    return model.eval(), config, [Batch(torch.randn(64, INPUTS, generator=g), torch.arange(64), torch.ones(64)) for _ in range(4)]


def convolutions() -> tuple[Any, Any, list[Batch]]:
    """(model, config, batches)."""
    model, _ = resnet20()
    x, y = images(256)
    return model, None, [Batch(x[i : i + 64], y[i : i + 64], torch.ones(64)) for i in range(0, 256, 64)]


def files(folder: Path, model: Any, config: Any, batches: list[Batch]) -> dict[str, Path]:
    """Write every variant; return the files."""
    program = trace(Classification(), model, batches[0])
    small = compress_model(model, Classification(), Calibration(tuple(batches)), [Int8Graph()], config=config).model
    assert isinstance(small, GraphInt8)
    found = {}
    for name, made in (("fp32", program), ("ours", small.program())):
        (folder / name).mkdir()
        FORMATS["onnx"].write(made, folder / name)
        found[name] = folder / name / "model.onnx"
    return found | {f"quantize_static {kind}": peer(folder, found["fp32"], batches, kind) for kind in ("signed", "unsigned")}


def peer(folder: Path, source: Path, batches: list[Batch], kind: str) -> Path:
    """ONNX Runtime's own static quantisation."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter([{"inputs": b.inputs.numpy()} for b in batches])

        def get_next(self) -> Any:
            return next(self.rows, None)

    quant_pre_process(str(source), str(folder / "pre.onnx"), skip_symbolic_shape=True)
    activations = QuantType.QInt8 if kind == "signed" else QuantType.QUInt8
    quantize_static(str(folder / "pre.onnx"), str(folder / f"{kind}.onnx"), Reader(), per_channel=True, activation_type=activations)
    return folder / f"{kind}.onnx"


def compared(make: Any, seconds: float) -> dict[int, dict[str, Any]]:
    """Milliseconds of each variant, by number of rows."""
    model, config, batches = make()
    with tempfile.TemporaryDirectory() as name:
        sessions = {k: onnx_session(f) for k, f in files(Path(name), model, config, batches).items()}
    rows = {}
    for m in (1, 8, 64):
        x = batches[0].inputs[:m].contiguous().numpy()
        inputs = {k: {s.get_inputs()[0].name: x} for k, s in sessions.items()}
        outputs = {k: s.run(None, inputs[k])[0] for k, s in sessions.items()}
        calls = {k: partial(session.run, None, inputs[k]) for k, session in sessions.items()}
        ms = medians(calls, seconds)
        errors = {k: round(float(np.linalg.norm(o - outputs["fp32"]) / np.linalg.norm(outputs["fp32"])), 4) for k, o in outputs.items()}
        ratios = {k: v / ms["ours"] for k, v in ms.items()}
        rows[m] = {"ms": ms, "against_fp32": ratios["fp32"], "against_quantize_static": ratios["quantize_static signed"]}
        rows[m]["against_quantize_static_unsigned"] = ratios["quantize_static unsigned"]
        print(make.__name__, m, {k: round(v, 3) for k, v in ms.items()}, "relative errors", errors, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number of rows")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    found = {make.__name__: compared(make, args.seconds) for make in (mlp, convolutions)}
    rows = found["mlp"]
    worst = min(rows, key=lambda m: rows[m]["against_fp32"])
    line = {
        "claim": "ort_int8",
        "ours": rows[worst]["ms"]["ours"],
        "peer": rows[worst]["ms"]["fp32"],
        "ratio": round(rows[worst]["against_fp32"], 2),
    }
    line |= {"floor": FLOORS[0], "unit": "ms", "M": worst, "floor_own": FLOORS[1]}
    for key in ("against_fp32", "against_quantize_static", "against_quantize_static_unsigned"):
        line[key] = {name: {m: round(r[key], 2) for m, r in by_rows.items()} for name, by_rows in found.items()}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
