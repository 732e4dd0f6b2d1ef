"""Batch norm's running statistics through the machinery: resume, averages, skipped steps, recomputation; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import load_checkpoint, read_json
from tauon.config import parse
from tauon.distributed import Layout, ParallelConfig, refuse_layout
from tauon.errors import RecipeError
from tauon.models import ModelConfig, materialize
from tauon.optim import OptimConfig
from tauon.plan import Plan
from tauon.tasks import Classification
from tauon.testing import tiny_batch
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job, train_step
from tauon.train.local_sgd import local_steps
from tauon.train.parameter_server import use_parameter_server
from tauon.types import Batch, DataSpec
from toy import Tauon, table_recipe

SPEC = DataSpec(input_shape=(1, 8, 8), outputs=3)


class Batches:
    def __init__(self, poisoned: tuple[int, ...] = ()) -> None:
        self.poisoned = poisoned

    def batch_at(self, step: int) -> Batch:
        batch = tiny_batch(SPEC, rows=8, seed=step)
        if step in self.poisoned:
            batch.inputs[0, 0, 0, 0] = float("nan")
        return batch


def job(poisoned: tuple[int, ...] = (), **train: Any) -> TrainJob:
    config = TrainConfig(steps=10, batch=8, **train)
    plan = Plan(10, torch.device("cpu"), "fp32", False, 8, 1, 1, 1)
    model = parse(ModelConfig, {"kind": "resnet20"}).resolve(SPEC)
    optim = parse(OptimConfig, {"kind": "sgd", "lr": 0.05})
    made = build_job(JobConfig(model, optim, config, Classification(), SPEC, 0), Batches(poisoned), plan)
    made.model.train()
    return made


def steps(made: TrainJob, *numbers: int) -> dict[str, torch.Tensor]:
    for n in numbers:
        made.step = n
        train_step(made, made.loader.batch_at(n))
    return {k: v.clone() for k, v in made.model.state_dict().items()}


def test_a_skipped_step_leaves_no_mark_on_running_statistics() -> None:
    clean, poisoned = steps(job(), 0, 2), steps(job((1,)), 0, 1, 2)
    assert all(torch.equal(clean[k], poisoned[k]) for k in clean)
    assert all(torch.isfinite(v).all() for v in poisoned.values())


def test_averaged_weights_come_with_averaged_statistics() -> None:
    made = job(ema=0.5)
    seen = []
    for n in range(3):
        steps(made, n)
        seen.append({k: v.clone() for k, v in made.model.state_dict().items()})
    name = "layer3.2.bn2.running_mean"
    start = torch.zeros_like(seen[0][name])
    wanted = start
    for n in range(3):
        d = min(0.5, (1 + n) / (10 + n))
        wanted = d * wanted + (1 - d) * seen[n][name]
    assert made.ema is not None
    torch.testing.assert_close(made.ema.shadow[name], wanted)
    own = {k: v.clone() for k, v in made.model.state_dict().items()}
    with made.ema.swapped_in():
        assert torch.equal(made.model.state_dict()[name], made.ema.shadow[name])
    assert all(torch.equal(v, made.model.state_dict()[k]) for k, v in own.items())


def test_recomputing_activations_does_not_count_a_batch_twice() -> None:
    plain, recomputed = steps(job(), 0, 1), steps(job(activation_checkpointing=True), 0, 1)
    assert all(torch.equal(plain[k], recomputed[k]) for k in plain)


def images(folder: Path, rows: int = 96) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = (rng.integers(0, 120, (rows, 1, 8, 8)) + 40 * y[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "pictures.npz", x=x, y=y)
    return {"kind": "npz", "path": str(folder / "pictures.npz")}


@pytest.mark.parametrize("ema", [None, 0.8])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, ema: float | None) -> None:
    from tauon.cli.main import cli
    from tauon.stages import training_record as watch

    class Stopped(BaseException):
        pass

    monkeypatch.chdir(tmp_path)
    recipe = table_recipe(
        tmp_path, name="pictures", data={"source": images(tmp_path), "normalize": "standard", "augment": ["flip", {"kind": "crop", "padding": 1}]},
        model={"kind": "resnet20", "drop_path": 0.2, "dropout": 0.1}, optim={"kind": "sgd", "lr": 0.05},
        train={"steps": 6, "batch": 12, "checkpoint_every": 2, "validate_every": 3, **({"ema": ema} if ema else {})},
    )  # fmt: skip
    tauon = Tauon(capsys)
    ended = tauon("run", recipe, "name=whole")
    assert ended.code == 0, ended.err
    save = watch.TrainingRecord.save

    def stop(self: Any, job: Any) -> None:
        save(self, job)
        if job.step == 4:
            self.writer.wait()
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(watch.TrainingRecord, "save", stop)
        with pytest.raises(Stopped):
            cli.main(["train", str(recipe)], standalone_mode=False)
    ended = tauon("run", recipe)
    assert ended.code == 0 and "resuming at step 4" in ended.out, ended
    for group in ("model", "optim", *(["ema"] if ema else [])):
        a, b = (Path(f"runs/{n}/checkpoints/step-000006/{group}.safetensors").read_bytes() for n in ("whole", "pictures"))
        assert a == b
    a, b = (read_json(Path(f"runs/{n}/evaluation.json"))["metrics"] for n in ("whole", "pictures"))
    assert a == b
    kept = load_checkpoint(Path("runs/pictures/checkpoints/step-000006"))
    assert "bn1.running_var" in kept.tensors("model")
    assert ("bn1.running_var" in kept.tensors("ema")) if ema else "ema" not in kept.groups()
    derived = {d["path"]: d["value"] for d in read_json(Path("runs/pictures/derived.json"))}
    assert derived["model.statistics"] == "of 12 examples"
    assert Path("runs/pictures/examples.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in Path("runs/pictures/report.html").read_text()


def test_what_cannot_keep_running_statistics_is_refused() -> None:
    for parallel in ({"kind": "local-sgd"}, {"kind": "diloco", "every": 2}):
        with pytest.raises(RecipeError, match=r"parallel.kind: .* does not support running statistics.*model.norm=group"):
            local_steps(job(), parse(ParallelConfig, parallel))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="parameter-server does not support running statistics"):
        optim = parse(OptimConfig, {"kind": "sgd"})
        use_parameter_server(job(), parse(ParallelConfig, {"kind": "parameter-server"}), optim, None)  # type: ignore[arg-type]


def test_layouts_that_would_count_fillers_or_cut_nothing_are_refused() -> None:
    model = materialize(parse(ModelConfig, {"kind": "resnet20"}).resolve(SPEC), seed=0)
    mesh = parse(ParallelConfig, {"kind": "mesh", "replicate": 3})
    with pytest.raises(RecipeError, match=r"train.batch: is 8, which does not divide by 3 processes.*Set 6, or model.norm=group"):
        refuse_layout(model, Layout(replicate=3), mesh, batch=8, seq_len=None)
    refuse_layout(model, Layout(replicate=2), mesh, batch=8, seq_len=None)
    for layout, says in ((Layout(tensor=2), "splits no matrix"), (Layout(context=2), "no attention"), (Layout(pipeline=2), "")):
        if layout.pipeline == 1:
            with pytest.raises(RecipeError, match=says):
                refuse_layout(model, layout, mesh, batch=8, seq_len=None)
    with pytest.raises(RecipeError, match="cannot be split into pipeline stages"):
        model.keep_stages([(0, 4)])


def test_compiling_what_recomputes_with_batch_norm_is_refused() -> None:
    from tauon.train.precision import apply_checkpointing_and_compile

    model = materialize(parse(ModelConfig, {"kind": "resnet20"}).resolve(SPEC), seed=0)
    with pytest.raises(RecipeError, match="train.compile: cannot be combined with train.activation_checkpointing"):
        apply_checkpointing_and_compile(model, checkpointing=True, compiled=True)
