"""Every measure of `benchmarks.gpu_switches` in toy sizes on a CPU; its document masks against attention one document at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks import gpu_switches
from benchmarks.gpu_switches import Bench, Found

ROOT = Path(__file__).parents[1]
COMPILING = ("compile", "graphs")


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    gpu_switches.main(["--dry", *arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_every_measure_prints_one_line_with_the_default_and_the_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in gpu_switches.MEASURES if name not in COMPILING]
    _, *found, last = lines(capsys, "--only", *names)
    assert [f["measure"] for f in found] == names
    for f in found:
        assert f["default"] in f["values"] or f["errors"], f
        assert f["fastest"] is None or f["values"][f["fastest"]] == min(v for k, v in f["values"].items() if k != f.get("not the same"))
    by_name = {f["measure"]: f for f in found}
    assert {"varlen", "flex"} == set(by_name["attention"]["errors"]), "need a GPU, and stop nothing"
    assert "sdpa, masked" in by_name["attention"]["values"]
    assert by_name["private"]["of_plain"] > 0
    assert {"bf16", "fp8, one scale", "fp8, rows"} <= set(by_name["fp8"]["values"]) | set(by_name["fp8"]["errors"])
    assert {"claim", "ours", "peer", "ratio", "floor", "unit"} <= set(last)


@pytest.mark.slow
def test_compiled_ways_run_too(capsys: pytest.CaptureFixture[str]) -> None:
    _, compiled, graphs, _ = lines(capsys, "--only", *COMPILING)
    assert set(compiled["values"]) == {"none", "block by block", "whole model"}
    assert set(graphs["values"]) == {"block by block", "reduce-overhead"}


def test_a_choice_or_a_measure_that_fails_stops_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def choices(b: Bench) -> Found:
        found = Found("good")
        found.try_("bad", lambda: 1 / 0)
        found.try_("good", lambda: 2.0)
        return found

    def broken(b: Bench) -> Found:
        raise RuntimeError("CUDA error: no memory\nand more")

    monkeypatch.setattr(gpu_switches, "MEASURES", {"broken": broken, "choices": choices})
    _, first, second, last = lines(capsys)
    assert first["errors"] == {"all": "RuntimeError: CUDA error: no memory"}
    assert second["values"] == {"good": 2.0} and second["errors"] == {"bad": "ZeroDivisionError: division by zero"}
    assert last["default_over_fastest"] == {"choices": 1.0}


def test_after_the_time_given_nothing_is_begun(capsys: pytest.CaptureFixture[str]) -> None:
    _, *found, _ = lines(capsys, "--seconds", "-1")
    assert [f["measure"] for f in found] == list(gpu_switches.MEASURES)
    assert all("left_out" in f for f in found)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("way", ["varlen", "flex"])
def test_packed_documents_are_those_of_attention_one_document_at_a_time(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 24, 3, 8, generator=g) for _ in range(3))
    segments_BT = torch.tensor([[0] * 5 + [1] * 12 + [2] * 7, [0] * 24])
    want = torch.zeros(2, 24, 3, 8)
    for row in range(2):
        for document in segments_BT[row].unique():
            at = segments_BT[row] == document
            of_one = F.scaled_dot_product_attention(*(t[row, at].transpose(0, 1) for t in (q, k, v)), is_causal=True)
            want[row, at] = of_one.transpose(0, 1)

    def by_document(q: Any, k: Any, v: Any, ends: Any, ends_k: Any, longest: int, longest_k: int, *, window_size: tuple[int, int]) -> Any:
        """`varlen_attn` by its documentation: sequences of lengths `ends.diff()`, causal."""
        assert window_size == (-1, 0) and torch.equal(ends, ends_k) and longest == longest_k == int(ends.diff().max())
        parts = []
        for i, j in zip(ends.tolist(), ends.tolist()[1:], strict=False):
            parts.append(F.scaled_dot_product_attention(*(t[i:j].transpose(0, 1) for t in (q, k, v)), is_causal=True).transpose(0, 1))
        return torch.cat(parts)

    if way == "varlen":
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_document)
        found = gpu_switches.varlen([q, k, v], segments_BT)()
    else:
        found = gpu_switches.flex(Bench(torch.device("cpu"), gpu_switches.TOY, 1), [q, k, v], segments_BT)()
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: it would be measured")
def test_without_a_gpu_it_refuses_in_one_sentence() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_switches"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "benchmarks.gpu_switches measures one CUDA device, and torch finds none here; --dry runs its code on a CPU.\n"
