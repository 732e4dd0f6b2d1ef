"""Augmentation multiplicity: several views of an example in a step, averaged before clipping; one example counts as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.config import parse
from tauon.data import DataConfig, prepare
from tauon.errors import RecipeError
from tauon.pipeline import run
from tauon.privacy import PrivateLoader, SamplingScheme
from tauon.recipe import Recipe, load_recipe
from toy import merged, write


def recipe(folder: Path, **sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "views", "seed": 3,
        "data": {"source": {"kind": "sklearn", "name": "digits", "limit": 300}, "split": {"test": "20%", "validation": 0}, "augment": [{"kind": "noise", "std": 0.5}]},
        "task": "classification", "model": {"kind": "mlp", "hidden": [8]}, "optim": {"kind": "sgd", "lr": 0.5, "schedule": "constant"},
        "train": {"steps": 3, "batch": 40, "checkpoint_every": 3, "compile": False, "precision": "fp32"},
        "privacy": {"noise_multiplier": 1.0, "delta": 1e-5, "generator": "seeded", "views": 4},
        "evaluate": {"resamples": 100},
    }  # fmt: skip
    return load_recipe(write(folder / "recipe.yaml", merged(base, sections)))


def test_rows_of_an_example_lie_together_and_are_augmented_each_by_itself() -> None:
    config = {"source": {"kind": "sklearn", "name": "digits", "limit": 200}, "augment": [{"kind": "noise", "std": 0.5}]}
    data = prepare(parse(DataConfig, config), seed=3, input_kind="arrays").train
    one, many = (PrivateLoader(data, batch=30, scheme=SamplingScheme("poisson", b"k" * 32, views=k)) for k in (1, 4))
    for step in range(3):
        single, several = one.batch_at(step), many.batch_at(step)
        assert several.index is not None and single.index is not None
        assert torch.equal(several.index.view(-1, 4), single.index[:, None].expand(-1, 4)) and torch.equal(
            several.targets.view(-1, 4)[:, 0], single.targets
        )
        rows = several.inputs.view(-1, 4, *several.inputs.shape[1:])
        assert all(not torch.equal(rows[:, i], rows[:, j]) for i in range(4) for j in range(i))
        assert torch.equal(several.weights.view(-1, 4), single.weights[:, None].expand(-1, 4))
    assert many.rate(0) == one.rate(0)  # of examples, not of rows: what the accountant counts


@pytest.mark.parametrize("microbatch", [10, 40])
def test_a_step_is_the_mean_of_views_clipped_example_by_example(microbatch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a loop over single examples; the noise is taken out, to see what it hides."""
    from tauon.artifacts import latest_checkpoint
    from tauon.models import materialize
    from tauon.privacy import seeded_key
    from tauon.stages.context import Context

    monkeypatch.setattr("tauon.privacy.private.noise_like", lambda p, name, draw: torch.zeros_like(p))
    found = recipe(tmp_path, train={"steps": 1, "checkpoint_every": 1, "microbatch": microbatch})
    done = run(found, root=tmp_path / "runs", stages=("prepare", "train"))
    checkpoint = latest_checkpoint(done.checkpoints)
    assert checkpoint is not None
    after = checkpoint.tensors("model")
    context = Context(found, done, lambda *_, **__: None)
    loader = PrivateLoader(context.splits.train, batch=40, scheme=SamplingScheme("poisson", seeded_key(3), views=4))
    batch, model = loader.batch_at(0), materialize(context.model, seed=3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    total = {n: torch.zeros_like(p) for n, p in before.items()}
    for i in range(0, len(batch), 4):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.inputs[i : i + 4]), batch.targets[i : i + 4]).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        for n, g in grads.items():
            total[n] += g * min(1.0, 1.0 / float(norm))
    for n in total:
        assert torch.allclose(after[n], before[n] - 0.5 * total[n] / 40, atol=1e-5), n


def test_views_without_augmentation_or_without_a_promise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="repeats each example in a step without augmentation"):
        recipe(tmp_path, data={"augment": []})
    with pytest.raises(RecipeError, match="neither target_epsilon nor noise_multiplier"):
        recipe(tmp_path, privacy={"noise_multiplier": None, "delta": None, "generator": None, "audit": {"canaries": 5}})
