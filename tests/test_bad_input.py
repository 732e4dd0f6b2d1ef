"""Bad recipes, folders, disks and signals end in one clear error: what was got, what was expected, what to do; nothing half-written, no traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import RunFolder, latest_checkpoint, steps_in
from tauon.tasks import LanguageModelling
from tauon.tracking import read_events
from toy import Ended, Tauon, contents, nothing_half_written, refused, stop_after, table_recipe, text_recipe, words

RECIPE, DATA, CHECKPOINT, RUN, TRAINING = 2, 3, 4, 5, 6


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("train.stpes=5", ["train.stpes", "did you mean 'steps'"]),
        ("model.kind=gtp", ["model", "'gtp'", "did you mean 'gpt'"]),
        ("train.steps=many", ["train.steps", "'many'", "64k"]),
        ("train.steps=-5", ["train.steps", "-5"]),
        ("train.time=5 parsec", ["train.time", "'parsec'"]),
        ("model.heads=3", ["model.heads", "3 heads do not divide width 16"]),
        ("stages=[evaluate,train]", ["stages", "not a valid order"]),
        ("train.microbatch=3", ["train.microbatch", "does not divide batch 4"]),
        ("train.device=tpu9000", ["train.device", "'tpu9000'", "auto or cpu"]),
        ("train.device=meta", ["train.device", "'meta'", "auto or cpu"]),
        ("model.seq_len=8", ["data.seq_len", "16 is longer than the model's 8"]),
        ("model.vocab=100", ["model.vocab", "100 is less than the tokenizer's 257"]),
        ("train.batch=2G", ["train.batch", "GiB are free", "would fit"]),
        ("model.width=200M", ["train.batch", "not even one example fits"]),
        ("evaluate.split=test", ["evaluate.split", "no test part", "data.split.test=10%"]),
        ("nonsense", ["'nonsense' is not an assignment"]),
    ],
)
def test_settings_that_cannot_work(tauon: Tauon, tmp_path: Path, assignment: str, says: list[str]) -> None:
    recipe = text_recipe(tmp_path)
    refused(tauon("run", recipe, assignment), RECIPE, *says)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "expected keys and values"),
        ("a: [", "not valid YAML"),
        ("name: a\nname: b\n", "'name' occurs twice at line 2"),
        ("- 1\n", "got list"),
    ],
)
def test_files_that_are_no_recipe(tauon: Tauon, tmp_path: Path, data: str, says: str) -> None:
    (tmp_path / "bad.yaml").write_text(data)
    refused(tauon("run", "bad.yaml"), RECIPE, "bad.yaml", says)
    assert not Path("runs").exists()


def test_a_folder_that_is_no_run_and_a_recipe_that_is_not_there(tauon: Tauon, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for verb in ("run", "train", "evaluate", "report", "generate"):
        refused(tauon(verb, "empty"), RECIPE, "empty is not a run: it has no recipe.yaml")
    refused(tauon("run", "quikstart"), RECIPE, "'quikstart'", "quickstart")
    refused(tauon("generate", "nowhere"), RECIPE, "'nowhere' does not exist")
    assert not Path("runs").exists()


def test_evaluate_and_report_before_train_make_no_folder(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    for verb in ("evaluate", "report"):
        refused(tauon(verb, recipe), RUN, "runs/toy", "has no run yet", "Train it first: tauon train")
        assert not Path("runs").exists()
    assert tauon("run", text_recipe(tmp_path / "p", stages=["prepare"], optim=None, evaluate=None)).code == 0
    refused(tauon("evaluate", recipe), RUN, "has no checkpoint yet", "tauon train /", "runs/toy")


def test_fresh_and_resume_exclude_each_other(tauon: Tauon, tmp_path: Path) -> None:
    refused(tauon("run", text_recipe(tmp_path), "--fresh", "--resume"), RECIPE, "--fresh and --resume exclude each other")


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"optim": {"schedule": {"kind": "wsd", "warmup": 100, "final": 0.5}}}, "optim.schedule.final"),
        ({"optim": {"schedule": {"kind": "cosine", "warmup": 12, "final": 0.5}}}, "optim.schedule.final"),
    ],
)
def test_a_key_that_nothing_reads_is_an_error_before_the_first_step(
    tauon: Tauon, tmp_path: Path, sections: dict[str, Any], key: str
) -> None:
    recipe = text_recipe(tmp_path, train={"checkpoint_every": 1}, **sections)
    refused(tauon("train", recipe), RECIPE, key, "nothing in stage train reads it", "Remove it")
    assert not steps_in(Path("runs/toy/checkpoints")) and "step" not in [e["kind"] for e in read_events(Path("runs/toy/events.jsonl"))]
    refused(tauon("recipe", "check", recipe, "--data"), RECIPE, key, "nothing in stage train reads it")
    assert tauon("train", recipe, f"{key}={0 if 'wsd' in str(sections) else 0.1}").code == 0  # its default: as if not set


def test_a_learning_rate_of_a_part_that_is_not_there_is_a_key_that_nothing_reads(tauon: Tauon, tmp_path: Path) -> None:
    recipe = table_recipe(tmp_path, model="logistic", optim={"kind": "muon", "lr": 0.5})  # no inner matrix: all is AdamW's
    refused(tauon("train", recipe), RECIPE, "optim.lr", "nothing in stage train reads it")


def test_a_batch_larger_than_the_data_set_goes_through_it_more_than_once(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, n_words=60, data={"split": {"validation": 0}}, train={"validate_every": None, "validate_examples": None})
    assert tauon("train", recipe, "train.batch=500").code == 0
    assert tauon("train", table_recipe(tmp_path / "t"), "train.batch=1000").code == 0


def test_every_key_of_a_long_recipe_is_read(tauon: Tauon, tmp_path: Path) -> None:
    train = {
        "microbatch": 2,
        "keep_every": 4,
        "keep_last": 1,
        "spike_factor": 5.0,
        "ema": 0.9,
        "max_bad_steps": 3,
        "activation_checkpointing": True,
    }
    train |= {"early_stopping": {"patience": 9, "min_delta": 0.1}, "device": "cpu"}
    optim = {
        "kind": "muon",
        "momentum": 0.9,
        "adamw_lr": 1e-3,
        "betas": [0.7, 0.9],
        "eps": 1e-9,
        "weight_decay": 0.1,
        "clip_norm": 2.0,
        "clip_value": 1.0,
    }
    optim |= {"schedule": {"kind": "wsd", "warmup": "10%", "decay": 0.5, "final": 0.1}}
    model = {
        "kv_heads": 1,
        "mlp": "swiglu",
        "mlp_width": 24,
        "qk_norm": False,
        "rope_base": 500.0,
        "tied": True,
        "dropout": 0.1,
        "vocab": 300,
        "seq_len": 32,
    }
    evaluate = {"split": "validation", "batch": 3, "confidence": "90%", "weights": "raw"}
    ended = tauon(
        "run",
        text_recipe(
            tmp_path, train=train, optim=optim, model=model, evaluate=evaluate, task={"kind": "language-modelling", "z_loss": 1e-4}
        ),
    )
    assert ended.code == 0, ended


def test_a_root_that_is_a_file(tauon: Tauon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tauon("run", text_recipe(tmp_path), "--root", "file"), RUN, "file", "cannot be written")


# ------------------------------------------------------------------------------------------------ the run's folder


def test_another_recipe_in_the_same_folder_is_refused_and_nothing_is_touched(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    assert tauon("run", recipe).code == 0
    before = contents(Path("runs/toy"))
    ended = tauon("run", recipe, "optim.lr=0.5", "model.layers=2")
    refused(ended, RUN, "another recipe", "model.layers: 1 -> 2", "optim.lr: 0.01 -> 0.5", "name=...", "--fresh")
    assert contents(Path("runs/toy")) == before
    assert tauon("run", recipe, "optim.lr=0.5", "--fresh").code == 0
    assert contents(Path("runs/toy.1")) == before


def test_folds_and_single_runs_do_not_overwrite_one_another(tauon: Tauon, tmp_path: Path) -> None:
    folded = table_recipe(tmp_path / "a", data={"split": {"folds": 2, "validation": 0}}, train={"validate_every": None})
    single = table_recipe(tmp_path / "b")
    assert tauon("run", folded).code == 0
    before = contents(Path("runs/table"))
    refused(tauon("run", single), RUN, "folds of a cross-validation", "--fresh")
    refused(tauon("run", folded, "data.split.fold=1"), RUN, "folds of a cross-validation")
    refused(tauon("run", folded, "optim.lr=0.5"), RUN, "another recipe", "optim.lr")
    refused(tauon("run", folded, "data.split.folds=3"), RUN, "another recipe", "folds: 2 -> 3")
    assert contents(Path("runs/table")) == before
    assert tauon("run", single, "--fresh").code == 0
    assert contents(Path("runs/table.1")) == before
    before = contents(Path("runs/table"))
    refused(tauon("run", folded), RUN, "another recipe", "data.split.folds")
    assert contents(Path("runs/table")) == before


def test_two_processes_cannot_write_one_folder(tauon: Tauon, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    with RunFolder.open("runs/toy"):
        code = "from tauon.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code, "run", str(recipe)], capture_output=True, text=True, timeout=600)
        refused(Ended(done.returncode, done.stdout, done.stderr), RUN, "runs/toy", f"process {os.getpid()} on", "name=...")
        assert [p.name for p in Path("runs/toy").iterdir()] == [".lock"]


@pytest.mark.parametrize("moment", ["train", "evaluate"])
def test_data_that_changed_since_the_run_began(tauon: Tauon, tmp_path: Path, moment: str) -> None:
    recipe = text_recipe(tmp_path)
    if moment == "train":
        stop_after(tauon, recipe, step=8)
    else:
        assert tauon("train", recipe).code == 0
    before = contents(Path("runs/toy/checkpoints"))
    (tmp_path / "text.txt").write_text(words(1500, seed=1))
    refused(tauon(moment, recipe), RUN, "the data changed since this run began", "--fresh", "name=...")
    assert contents(Path("runs/toy/checkpoints")) == before
    (tmp_path / "text.txt").write_text(words(1500))
    assert tauon(moment, recipe).code == 0


def test_generating_from_a_run_that_writes_no_text(tauon: Tauon, tmp_path: Path) -> None:
    assert tauon("train", table_recipe(tmp_path)).code == 0
    refused(tauon("generate", "runs/table"), RUN, "runs/table trained a mlp", "cannot generate text")


# ------------------------------------------------------------------------------------------------ disk full


class FullDisk:
    """`os.write` that finds no room in a folder named `checkpoints` from the n-th write on."""

    def __init__(self, n: int) -> None:
        self.left, self.real = n, os.write

    def __call__(self, fd: int, data: Any) -> int:
        if "/checkpoints/" in os.readlink(f"/proc/self/fd/{fd}"):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = memoryview(data)[: max(1, len(data) // 2)]  # a nearly full disk takes a part
        return self.real(fd, data)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("n", [0, 60, 130])
def test_a_full_disk_ends_training_keeps_what_is_whole_and_the_same_command_goes_on(
    tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    recipe = text_recipe(tmp_path)
    assert tauon("train", recipe, "name=whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", FullDisk(n))
        ended = tauon("train", recipe)
    refused(ended, CHECKPOINT, "cannot be written", "No space left on device", "Free disk space")
    done = [step for step, _ in steps_in(Path("runs/toy/checkpoints"))]
    assert len(done) < 2 or max(done) < 12
    assert "train" not in json.loads(Path("runs/toy/stages.json").read_text())
    assert tauon("train", recipe).code == 0
    for group in ("model", "optim"):
        a, b = (Path(f"runs/{name}/checkpoints/step-000012/{group}.safetensors").read_bytes() for name in ("whole", "toy"))
        assert a == b


# ------------------------------------------------------------------------------------------------ memory


def test_a_microbatch_that_does_not_fit_names_one_that_does(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.plan import memory

    recipe = text_recipe(tmp_path)
    monkeypatch.setattr(memory, "available_memory", lambda device: 3_000_000)
    ended = tauon("train", recipe, "train.batch=96", "train.microbatch=96")
    refused(ended, RECIPE, "train.microbatch", "96 does not fit", "GiB free")
    fits = int(ended.err.split("microbatch=")[1].split()[0])
    assert 1 <= fits < 96 and 96 % fits == 0
    assert tauon("train", recipe, "train.batch=96", f"train.microbatch={fits}").code == 0
    assert tauon("train", recipe, "train.batch=96", "name=derived").code == 0
    derived = {d["path"]: d for d in json.loads(Path("runs/derived/derived.json").read_text())}
    assert derived["train.microbatch"]["value"] == fits and "divisor of 96" in derived["train.microbatch"]["source"]
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    refused(tauon("train", recipe, "name=tiny"), RECIPE, "train.batch", "not even one example fits", "smaller model")


def test_running_out_of_memory_names_a_smaller_microbatch(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(LanguageModelling, "loss", no_memory)
    refused(tauon("train", text_recipe(tmp_path)), TRAINING, "out of memory at step 1 with microbatch 4", "train.microbatch=2")


# ------------------------------------------------------------------------------------------------ training that goes wrong


@pytest.mark.parametrize("cause", ["learning rate", "data"])
def test_losses_that_are_not_finite_are_skipped_logged_and_end_training(tauon: Tauon, tmp_path: Path, cause: str) -> None:
    if cause == "learning rate":
        recipe = text_recipe(
            tmp_path, optim={"kind": "sgd", "lr": 1e30}, train={"max_bad_steps": 3, "checkpoint_every": 1, "validate_every": 12}
        )
        name = "toy"
    else:
        x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) * 1e38
        np.savez(tmp_path / "a.npz", x=x, y=x[:, 0])
        source = {"kind": "npz", "path": str(tmp_path / "a.npz"), "features": "x", "targets": "y"}
        recipe = table_recipe(
            tmp_path, data={"source": source, "normalize": "none"}, task="regression", model={"kind": "linear"}, train={"max_bad_steps": 3}
        )
        name = "table"
    ended = tauon("train", recipe)
    refused(ended, TRAINING, "3 steps in a row were skipped", "not finite", "optim.lr")
    skipped = [e for e in read_events(Path(f"runs/{name}/events.jsonl")) if e["kind"] == "skip"]
    ends = [e for e in read_events(Path(f"runs/{name}/events.jsonl")) if e["kind"] == "interrupted"]
    assert len(skipped) == 2 and all("not finite" in e["reason"] for e in skipped)
    assert len(ends) == 1 and "3 steps in a row" in ends[0]["reason"]
    newest = latest_checkpoint(Path(f"runs/{name}/checkpoints"))
    if newest is not None:  # what was kept is not poisoned by the steps that were skipped
        assert all(torch.isfinite(t).all() for t in newest.tensors("model").values())


# ------------------------------------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize("where", ["tokenise", "verify", "evaluate", "sample", "report"])
def test_ctrl_c_leaves_nothing_half_written_and_the_same_command_goes_on(
    tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from tauon.data.shards import Shards, ShardWriter
    from tauon.stages import report, samples

    target: tuple[Any, str] = {
        "tokenise": (ShardWriter, "finish"),
        "verify": (Shards, "verify"),
        "evaluate": (LanguageModelling, "predict"),
        "sample": (samples, "generate"),
        "report": (report, "render"),
    }[where]  # fmt: skip

    def ctrl_c(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    recipe = text_recipe(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*target, ctrl_c)
        ended = tauon("run", recipe)
    refused(ended, 130, "the same command resumes")
    nothing_half_written(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tmp-*"))
    for path in Path("runs/toy").glob("*.json"):
        json.loads(path.read_text())
    ended = tauon("run", recipe)
    assert ended.code == 0, ended
    assert {"evaluation.json", "samples.json", "report.html"} <= {p.name for p in Path("runs/toy").iterdir()}
