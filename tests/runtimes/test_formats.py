"""Every format computes what the model computes, for every family, or refuses with a reason: docs/formats.md says which, and is checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import CASES, MEASURED, PAGE, PROGRAMS, WEIGHTS, batch_of, measure, model_of, page, traced

from tauon.config import parse, registered
from tauon.errors import DataError
from tauon.runtimes import FORMATS, Agreement, RuntimeModule, Signature, TensorSpec, agreement, trace
from tauon.tasks import Task
from tauon.types import Batch

pytestmark = pytest.mark.long

MEASUREMENTS = json.loads(MEASURED.read_text())
NEEDS = {
    "onnx": "onnxscript",
    "openvino": "openvino",
    "executorch": "executorch",
    "aoti": "torch",
    "huggingface": "transformers",
    "gguf": "gguf",
}
SLOW = {"executorch", "aoti"}
"""Formats that take 10 to 60 seconds a family: the page says `not measured` of a new family until `python tests/runtimes/families.py` was run."""
QUICK = [("mlp", "onnx"), ("lstm", "openvino"), ("mlp", "executorch"), ("llama", "gguf"), ("gpt", "gguf"), ("dlinear", "huggingface")]


def test_the_page_is_what_was_measured_and_has_every_family_and_format() -> None:
    assert PAGE.read_text() == page(MEASUREMENTS), "write it again: python tests/runtimes/families.py --missing 0"
    assert {name.partition(",")[0] for name in CASES} == set(registered("model")) - {"checkpoint", "compressed"}
    assert all({*MEASUREMENTS[name]} >= {*PROGRAMS, *WEIGHTS} - SLOW for name in CASES)


@pytest.mark.parametrize(("name", "form"), QUICK)
def test_a_cell_of_the_page_is_true(name: str, form: str) -> None:
    pytest.importorskip(NEEDS[form], reason=f"{NEEDS[form]} is not installed")
    now = measure(name, form)
    assert now.keys() == MEASUREMENTS[name].get(form, now).keys(), now
    if "error" in now:
        assert now["error"] < 1e-4 and now["argmax"] in (None, 1.0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("form", [*PROGRAMS, *WEIGHTS])
def test_every_cell_of_the_page_is_true(form: str) -> None:
    pytest.importorskip(NEEDS[form], reason=f"{NEEDS[form]} is not installed")
    for name in CASES:
        now = measure(name, form)
        assert now.keys() == MEASUREMENTS[name].get(form, now).keys(), (name, now)


# ---------------------------------------------------------------------------------------------- tracing


def test_tracing_leaves_the_model_and_the_generator_alone() -> None:
    model, task = model_of("gpt"), parse(Task, {"kind": "language-modelling"})
    model.train()
    weights, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    trace(task, model, batch_of("gpt"))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "dlinear",
        "lstm",
        "text-bag",
        "mistral",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("patchtst", "ft-transformer", "conformer", "bert")),
    ],
)
def test_batches_and_texts_of_any_size_are_one_program(name: str) -> None:
    model, task, program = traced(name)
    assert all(spec.shape[0] == "batch" for spec in program.signature.inputs)
    assert program.signature.limits("batch") == (1, 65536)
    if CASES[name][1].vocab:
        assert all(spec.shape[1] == "time" for spec in program.signature.inputs)
    run = program.exported.module(check_guards=False)  # as other runtimes run it: a guard of text-bag's offsets asks for two texts
    module = RuntimeModule(program.signature, lambda tensors: [run(*tensors)], runtime="torch")
    batches = [batch_of(name, n) for n in (1, 2, 9)] + ([batch_of(name, 2, n) for n in (2, 5, 12)] if CASES[name][1].vocab else [])
    assert agreement(task, model, module, batches).problem(relative=1e-5) == ""


def test_a_signature_survives_json() -> None:
    for name in ("text-bag", "conformer, transcripts", "gpt"):
        signature = traced(name)[2].signature
        assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


def test_a_call_that_the_program_does_not_take_is_refused() -> None:
    signature = Signature(
        (TensorSpec("inputs", "int64", ("batch", "time")),), (TensorSpec("output", "float32", ("batch", 3)),), (("frames", True),), ranges=(("time", 2, 8),)
    )  # fmt: skip
    x = torch.zeros(2, 4, dtype=torch.int64)
    assert signature.tensors((x,), {"frames": True}) == [x]
    for args, kwargs, message in (
        ((), {}, "needs 'inputs'"),
        ((x, x), {}, "also gives argument 1"),
        ((x,), {"frames": False}, "also gives argument 'frames'"),
        ((x[0],), {}, "has shape"),
        ((x.repeat(1, 3),), {}, "12 tokens, but the exported model takes at most 8"),
    ):
        with pytest.raises(DataError, match=message):
            signature.tensors(args, kwargs)


def test_texts_that_are_too_short_are_padded_and_outputs_cut() -> None:
    specs = (TensorSpec("inputs", "int64", ("batch", "time"), 0), TensorSpec("segments", "int32", ("batch", "time"), 1))
    signature = Signature(specs, (TensorSpec("logits", "float32", ("batch", "time", 1)),), ranges=(("batch", 1, 9), ("time", 4, 9)))
    seen = []

    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append([t.tolist() for t in tensors])
        return [tensors[0][..., None].float()]

    out = RuntimeModule(signature, run, runtime="none", most_rows=1)(torch.tensor([[5, 6], [7, 8]]), torch.zeros(2, 2, dtype=torch.int32))
    assert out.flatten().tolist() == [5, 6, 7, 8]
    assert seen == [[[[5, 6, 0, 0]], [[0, 0, -1, -1]]], [[[7, 8, 0, 0]], [[0, 0, -1, -1]]]]


def test_a_model_that_branches_on_its_numbers_is_refused_with_a_reason() -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] if x.sum() > 0 else x[:, 3:6]

    with pytest.raises(DataError, match=r"torch.export cannot trace Branches: .*--to huggingface"):
        trace(parse(Task, {"kind": "classification"}), Branches(), batch_of("mlp"))


def test_an_operation_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")

    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x[:, :3])

    task = parse(Task, {"kind": "classification"})
    with pytest.raises(DataError, match="cannot be written as ONNX.*bessel_j0"):
        FORMATS["onnx"].write(trace(task, Odd(), batch_of("mlp")), tmp_path)


def test_agreement_sees_what_differs_and_not_the_padding() -> None:
    task, batch = parse(Task, {"kind": "text-classification"}), batch_of("bert", 4)

    class Scores(torch.nn.Module):
        def __init__(self, add: float) -> None:
            super().__init__()
            self.add = add

        def forward(self, tokens: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
            padding = self.add * (segments < 0).float()[..., None]
            return torch.nn.functional.one_hot(tokens % 3, 3).float() + padding

    found = agreement(task, Scores(0), Scores(5), [batch])
    assert (found.absolute, found.argmax) == (0, 1)
    wrong = agreement(task, Scores(0), Scores(5), [replace(batch, segments=torch.full_like(batch.segments, -1))])  # type: ignore[type-var]
    assert wrong.examples == 4
    assert Agreement(9, (9,), 0.5, 0, 0).problem() and Agreement(9, (9,), 1, 1, float("nan")).problem()
    assert "whole numbers" in Agreement(9, (9,), 1, 0, 0, whole=False).problem()
    assert not Agreement(9, (9,), None, 1e-6, 1e-6).problem()


def test_a_batch_of_one_is_traced_with_a_dynamic_batch() -> None:
    model, task = model_of("mlp"), parse(Task, {"kind": "classification"})
    one: Batch = batch_of("mlp", 1)
    assert trace(task, model, one).signature.inputs[0].shape == ("batch", 7)
