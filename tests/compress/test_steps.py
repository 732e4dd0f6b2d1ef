"""Every registered compression step: strength zero changes nothing, the model given is left as found, and the result survives saving."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_models import CONFIGS, batch_of, calibration, model_of, outputs, task_of
from torch import nn

from tauon.compress import Calibration, compress_model, load_compressed, open_compressed, save_compressed
from tauon.config import registered
from tauon.errors import ChecksumError, DataError, TauonError
from tauon.testing import check_compressor
from tauon.types import Batch

STEPS: dict[str, Any] = dict(registered("compression"))


OTHERS = ("gpt2", "vit", "resnet")
"""Models beside those of the contract."""


@pytest.mark.parametrize("kind", STEPS)
def test_every_step_keeps_the_contract(kind: str) -> None:
    graph = kind == "int8_graph"  # takes seconds to trace; test_graph.py has other models
    check_compressor(STEPS[kind](), models=("table",) if graph else ("table", "image", "text"))


class Forgetful(STEPS["magnitude"]):  # type: ignore[misc]
    """Leaves something behind."""

    def apply(self, subject: Any) -> dict[str, Any]:
        subject.model.register_forward_hook(lambda *_: None)
        return dict(super().apply(subject))


class Random(STEPS["magnitude"]):  # type: ignore[misc]
    """Ignores its seed."""

    def apply(self, subject: Any) -> dict[str, Any]:
        facts = dict(super().apply(subject))
        if self.sparsity:
            with torch.no_grad():
                for p in subject.model.parameters():
                    p.mul_(1 + torch.rand((), generator=torch.Generator().manual_seed(time.perf_counter_ns())))
        return facts


@pytest.mark.parametrize(("step", "why"), [(Forgetful(), "hooks were left"), (Random(), "the same seed")])
def test_the_contract_notices_what_breaks_it(step: Any, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        check_compressor(step, models=("table",))


@pytest.mark.parametrize("model_kind", OTHERS)
@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind != "int8_graph"])
def test_a_step_is_the_same_after_loading(kind: str, model_kind: str, tmp_path: Path) -> None:
    model, batch = model_of(model_kind), batch_of(model_kind)
    try:
        small = compress_model(model, task_of(model_kind), calibration(model_kind), [STEPS[kind]()], config=CONFIGS[model_kind])
    except DataError as err:
        pytest.skip(f"refused: {err}")
    save_compressed(tmp_path / "x", small)
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"model.safetensors", "compressed.json"}
    assert abs((tmp_path / "x" / "model.safetensors").stat().st_size - small.size_bytes) < 64
    loaded = load_compressed(tmp_path / "x")
    assert torch.equal(outputs(model_kind, loaded, batch), outputs(model_kind, small.model, batch))


def test_damage_is_noticed(tmp_path: Path) -> None:
    save_compressed(tmp_path / "x", compress_model(model_of("mlp"), task_of("mlp"), None, [STEPS["int8"]()], config=CONFIGS["mlp"]))
    assert open_compressed(tmp_path / "x").steps[0]["kind"] == "int8"
    file = tmp_path / "x" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ChecksumError, match="SHA-256"):
        load_compressed(tmp_path / "x")


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        Calibration(())
    one = Batch(torch.randn(4, 24), torch.zeros(4, dtype=torch.int64), torch.ones(4))
    with pytest.raises(DataError, match="class 0"):
        compress_model(model_of("mlp"), task_of("mlp"), Calibration((one,)), [STEPS["int8"]()])
    broken = model_of("mlp")
    with torch.no_grad():
        broken.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"NaN.*layers\.0\.weight"):
        compress_model(broken, task_of("mlp"), None, [STEPS["int8"]()])
    with pytest.raises(DataError, match="give calibration data"):
        compress_model(model_of("mlp"), task_of("mlp"), None, [STEPS["int8"](activations="static")])
    with pytest.raises(DataError, match="made of LSTM"):
        compress_model(nn.LSTM(3, 4), task_of("mlp"), None, [STEPS["int8"]()])


def test_steps_compose_in_the_stated_order_and_survive_saving(tmp_path: Path) -> None:
    names = ["int8", "wanda", "low_rank", "structured"]
    small = compress_model(model_of("gpt"), task_of("gpt"), calibration("gpt"), [STEPS[n]() for n in names], config=CONFIGS["gpt"])
    assert [f["kind"] for f in small.facts] == names[::-1]
    save_compressed(tmp_path / "x", small)
    batch = batch_of("gpt")
    assert torch.equal(outputs("gpt", load_compressed(tmp_path / "x"), batch), outputs("gpt", small.model, batch))
    assert small.size_bytes < 0.27 * sum(p.numel() * 4 for p in model_of("gpt").parameters())


def test_a_record_that_was_changed_is_refused(tmp_path: Path) -> None:
    save_compressed(tmp_path / "x", compress_model(model_of("mlp"), task_of("mlp"), None, [STEPS["int8"]()], config=CONFIGS["mlp"]))
    record = tmp_path / "x" / "compressed.json"
    text = record.read_text()
    changes: list[tuple[str, object]] = [("kind", "system"), ("inputs", 25), ("name", "layers.9"), ("name", "../x"), ("outputs", "a lot")]
    for key, value in changes:
        about = json.loads(text)
        about["layers"][0][key] = value
        record.write_text(json.dumps(about))
        with pytest.raises(TauonError):
            load_compressed(tmp_path / "x")
    for key in ("layers", "model", "sha256", "tied"):
        record.write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != key}))
        with pytest.raises(TauonError):
            load_compressed(tmp_path / "x")
