"""Contract of a compression step: strength zero changes nothing, the model given stays as it was found, and the result is the same again after saving.
Public, as the others in `contracts.py`.

    from tauon.testing import check_compressor
    def test_my_step(): check_compressor(MyStep())
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauon.compress import Calibration, Compressed, CompressStep, compress_model, load_compressed, model_bytes, save_compressed
from tauon.errors import DataError
from tauon.models import CNNConfig, GPTConfig, MLPConfig, ModelConfig, materialize
from tauon.tasks import Classification, LanguageModelling, Task
from tauon.types import Batch, DataSpec

__all__ = ["check_compressor"]

Case = tuple[str, ModelConfig, Task, Batch]


def check_compressor(
    step: CompressStep, *, models: tuple[str, ...] = ("table", "image", "text"), treats: tuple[str, ...] = ("table",)
) -> None:
    """Assert that a step keeps the contract, on a small perceptron, a convolution network and a language model with random weights.

    Args:
        step: the step, with settings that are not zero.
        models: the models to try: table, image, text.
        treats: those that it has to change; others it may refuse with `DataError`.

    Raises:
        AssertionError: names the promise that broke.
    """
    for name, config, task, batch in _cases():
        if name in models:
            _check(step, name, config, task, batch, name in treats)
    _check_refusals(step)


def _check(step: CompressStep, name: str, config: ModelConfig, task: Task, batch: Batch, must: bool) -> None:
    model, data = _random(config), Calibration((batch,))
    expected = _outputs(task, model, batch)
    zero = compress_model(model, task, data, [type(step).zero()], config=config)
    assert torch.equal(_outputs(task, zero.model, batch), expected), f"{name}: strength zero changes the outputs"
    model.train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    small, refusal = None, ""
    try:
        small = compress_model(model, task, data, [step], config=config, seed=1)
    except DataError as err:
        refusal = str(err)
    assert model.training, f"{name}: the mode of the given model changed"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), f"{name}: the given model's weights changed"
    assert torch.equal(random, torch.get_rng_state()), f"{name}: the state of torch's random numbers changed"
    if small is None:
        assert not must, f"{name}: refused ({refusal})"
        assert len(refusal) > 20, f"{name}: refused without a reason"
        return
    assert all(p.requires_grad for p in model.parameters()), f"{name}: the given model's gradients were switched off"
    hooked = [m for m in [*model.modules(), *small.model.modules()] if m._forward_pre_hooks or m._forward_hooks]
    assert not hooked, f"{name}: hooks were left behind"
    json.dumps(small.to_json(), allow_nan=False)
    assert model_bytes(small.model) == small.size_bytes
    found = _outputs(task, small.model, batch)
    assert bool(torch.isfinite(found).all()), f"{name}: the compressed model's outputs are not finite"
    again = compress_model(model, task, data, [step], config=config, seed=1)
    assert torch.equal(_outputs(task, again.model, batch), found), f"{name}: the same seed gives another model"
    _check_saved(name, task, small, batch, found)


def _check_saved(name: str, task: Task, small: Compressed, batch: Batch, found: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_compressed(Path(folder) / "small", small)
        loaded = load_compressed(Path(folder) / "small")
    assert torch.equal(_outputs(task, loaded, batch), found), f"{name}: the saved model has other outputs"
    tensors, kept = loaded.state_dict(), small.model.state_dict()
    same = tensors.keys() == kept.keys() and all(torch.equal(t, kept[k]) for k, t in tensors.items())
    assert same, f"{name}: the saved model has other weights"


def _check_refusals(step: CompressStep) -> None:
    _, config, task, batch = _cases()[0]
    broken = _random(config)
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = float("nan")
    refusals: list[tuple[str, nn.Module, Calibration | None]] = [("weights that are not finite", broken, Calibration((batch,)))]
    if step.needs_calibration:
        refusals.append(("no calibration data", _random(config), None))
    for what, model, data in refusals:
        try:
            compress_model(model, task, data, [step], config=config)
        except DataError:
            continue
        raise AssertionError(f"{what}: was not refused")


def _cases() -> list[Case]:
    g = torch.Generator().manual_seed(0)
    labels = ("a", "b", "c", "d")
    classes, ones = torch.arange(16) % 4, torch.ones(16)
    tokens = torch.randint(50, (8, 17), generator=g)
    table, image = DataSpec(input_shape=(24,), outputs=4, labels=labels), DataSpec(input_shape=(3, 16, 16), outputs=4, labels=labels)
    text = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(8, 16))
    gpt = GPTConfig(layers=2, width=32, heads=4, kv_heads=2, mlp="swiglu", mlp_width=48).resolve(DataSpec(vocab=50, seq_len=16))
    return [
        ("table", MLPConfig(hidden=(32, 16)).resolve(table), Classification(), Batch(torch.randn(16, 24, generator=g), classes, ones)),
        (
            "image",
            CNNConfig(channels=(16, 32)).resolve(image),
            Classification(),
            Batch(torch.randn(16, 3, 16, 16, generator=g), classes, ones),
        ),
        ("text", gpt, LanguageModelling(), text),
    ]


def _random(config: ModelConfig) -> nn.Module:
    """A model of which no weight is zero: initial zeros would hide errors."""
    model, g = materialize(config, seed=0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / (p[0].numel() if p.ndim > 1 else 4) ** 0.5 + (p.ndim == 1))
    return model.eval()


def _outputs(task: Task, model: Any, batch: Batch) -> Tensor:
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            out: Tensor = model(batch.inputs)
            return model.logits(out) if task.reads_hidden_states else out
    finally:
        model.train(mode)
