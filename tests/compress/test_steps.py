"""Every registered compression step: strength zero changes nothing, the model given is left as found, and the result survives saving."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_models import CONFIGS, batch_of, calibration, model_of, outputs, task_of
from torch import nn

from tauon.compress import Calibration, compress_model, load_compressed, open_compressed, save_compressed
from tauon.config import registered
from tauon.errors import ChecksumError, DataError, TauonError
from tauon.types import Batch

STEPS: dict[str, Any] = dict(registered("compression"))


@pytest.mark.parametrize("model_kind", CONFIGS)
@pytest.mark.parametrize("kind", STEPS)
def test_strength_zero_changes_no_output(kind: str, model_kind: str) -> None:
    model, batch = model_of(model_kind), batch_of(model_kind)
    step = STEPS[kind].zero()
    same = compress_model(model, task_of(model_kind), calibration(model_kind), [step], config=CONFIGS[model_kind]).model
    assert torch.equal(outputs(model_kind, same, batch), outputs(model_kind, model, batch))


@pytest.mark.parametrize("model_kind", CONFIGS)
@pytest.mark.parametrize("kind", STEPS)
def test_a_step_leaves_the_given_model_and_its_result_is_the_same_after_loading(kind: str, model_kind: str, tmp_path: Path) -> None:
    if kind == "int8_graph" and model_kind not in ("mlp", "resnet"):
        pytest.skip("a graph takes seconds to trace; test_graph.py has the others")
    model, batch = model_of(model_kind).train(), batch_of(model_kind)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    try:
        small = compress_model(model, task_of(model_kind), calibration(model_kind), [STEPS[kind]()], config=CONFIGS[model_kind])
    except DataError as err:
        pytest.skip(f"refused: {err}")
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in [*model.modules(), *small.model.modules()])
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
