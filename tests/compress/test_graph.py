"""The int8 graph: close to the float model, and the same in ONNX Runtime."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compress_models import CONFIGS, batch_of, calibration, model_of, outputs, task_of

from tauon.compress import Int8, Int8Graph, compress_model
from tauon.compress.candidates import int8_sums_saturate
from tauon.compress.graph import GraphInt8
from tauon.runtimes import FORMATS, Program, Signature, trace
from tauon.runtimes.base import threads_for

pytestmark = pytest.mark.long

pytest.importorskip("torchao")
pytest.importorskip("onnxruntime")


@functools.cache
def quantised(kind: str) -> tuple[GraphInt8, Program]:
    """(the int8 graph, its program): traced once for all tests."""
    small = compress_model(
        model_of(kind), task_of(kind), calibration(kind), [Int8Graph(reduce_range=int8_sums_saturate())], config=CONFIGS[kind]
    ).model
    assert isinstance(small, GraphInt8)
    return small, small.program()


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("mlp", "onnx"),
        ("resnet", "onnx"),
        ("vit", "onnx"),
        ("gpt", "onnx"),
        ("mlp", "openvino"),
        ("resnet", "openvino"),
        ("vit", "openvino"),
    ],
)
def test_a_runtime_computes_what_the_torch_reference_computes(kind: str, runtime: str, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model, batch = model_of(kind), batch_of(kind, 64, seed=9)
    small, program = quantised(kind)
    FORMATS[runtime].write(program, tmp_path)
    served = FORMATS[runtime].load(tmp_path, program.signature)
    expected, got, real = outputs(kind, small, batch), outputs(kind, served, batch), outputs(kind, model, batch)
    step = 2 if int8_sums_saturate() else 1  # 7 bits: steps of activations are twice as wide, and so is one rounded the other way
    assert ((got - expected).norm() / expected.norm()).item() < 0.02 * step
    assert (got.argmax(-1) == expected.argmax(-1)).float().mean().item() >= 1 - 0.03 * step
    assert ((expected - real).norm() / real.norm()).item() < 0.1 * step


@pytest.mark.parametrize("kind", ["mlp", "gpt"])
def test_int8_by_row_is_the_same_in_onnx_runtime(kind: str, tmp_path: Path) -> None:
    model, batch = model_of(kind), batch_of(kind, 64, seed=9)
    small = compress_model(model, task_of(kind), None, [Int8()], config=CONFIGS[kind]).model
    program = trace(task_of(kind), small, batch)
    FORMATS["onnx"].write(program, tmp_path)
    served = FORMATS["onnx"].load(tmp_path, program.signature)
    expected, got = outputs(kind, small, batch), outputs(kind, served, batch)
    assert ((got - expected).norm() / expected.norm()).item() < 0.005
    assert (got.argmax(-1) == expected.argmax(-1)).float().mean().item() >= 0.99


def test_no_float_is_left_between_the_layers_of_a_resnet(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    FORMATS["onnx"].write(quantised("resnet")[1], tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    operations = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operations.count("QLinearConv") == 19 and operations.count("QLinearAdd") == 9 and operations.count("QGemm") == 1
    assert "Conv" not in operations and "Relu" not in operations and "Add" not in operations
    assert torch.get_default_dtype() == torch.float32


def test_small_programs_have_one_thread() -> None:
    assert quantised("mlp")[1].signature.products == 24 * 32 + 32 * 16 + 16 * 4
    signature = quantised("mlp")[1].signature
    assert threads_for(signature) == 1 and Signature.from_json(signature.to_json()) == signature
    assert threads_for(replace(signature, products=10**7)) == threads_for(replace(signature, products=0)) == torch.get_num_threads()
