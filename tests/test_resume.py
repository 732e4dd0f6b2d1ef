"""Resume is exact: kill -9 at any moment, run the same command again, and the final weights are those of the run that was
never killed, bit for bit. Also SIGTERM and Ctrl-C, which save first.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

RECIPE = """
name: {name}
seed: 3
data:
  source: {{kind: text, path: {text}}}
  tokenizer: bytes
  seq_len: 32
task: language-modelling
model: {{kind: gpt, layers: 2, width: 32, heads: 2, dropout: 0.1}}
optim: {{kind: muon, schedule: {{kind: cosine, warmup: 10}}}}
train: {{steps: {steps}, batch: 8, microbatch: 4, precision: {precision}, compile: {compile}, ema: 0.9, checkpoint_every: 7, validate_every: 20,
  validate_examples: 4, early_stopping: {{patience: 100}}}}
"""


def command(folder: Path, *more: str) -> list[str]:
    code = "from tauon.cli import main; main()"
    return [sys.executable, "-c", code, "train", str(folder / "recipe.yaml"), "--root", str(folder / "runs"), "--json", *more]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = random.Random(0).choices(
        ["the", "a", "heavy", "lepton", "decays", "quickly", "into", "lighter", "ones", "and", "neutrinos", "\n"], k=6000
    )
    (tmp_path / "text.txt").write_text(" ".join(words))
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def write(folder: Path, name: str, *, steps: int = 250, precision: str = "fp32", compile: str = "false") -> None:
    text = RECIPE.format(name=name, text=folder / "text.txt", steps=steps, precision=precision, compile=compile)
    (folder / "recipe.yaml").write_text(text)


def final_files(folder: Path, name: str, steps: int) -> dict[str, bytes]:
    last = folder / "runs" / name / "checkpoints" / f"step-{steps:06d}"
    return {p.name: p.read_bytes() for p in sorted(last.iterdir()) if p.name not in ("manifest.json",)}


def kill_often(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Start the same command again and again, each time killed at a random moment of its work; (kills that hit, steps resumed from)."""
    rng = random.Random(seed)
    hits = resumed = 0
    while hits < kills:
        process = subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        left = None  # steps to let pass before the kill, once training has begun
        for line in process.stdout:
            kind = json.loads(line)["kind"]
            resumed += kind == "resume"
            if kind == "training":
                left = rng.randint(0, 45)
            left = left - 1 if left is not None and kind == "step" else left
            if left is not None and left <= 0:
                break
        if left is None or left > 0:  # it came to its end
            assert process.wait(600) == 0, process.stderr.read() if process.stderr else ""
            break
        time.sleep(rng.uniform(0.0, 0.05))  # anywhere inside a step, or inside the writing of a checkpoint
        process.send_signal(signal.SIGKILL)
        hits += process.wait(600) == -signal.SIGKILL
        process.stdout.close()
        if process.stderr:
            process.stderr.close()
    return hits, resumed


def finish(folder: Path) -> None:
    done = subprocess.run(command(folder), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr


def check_exact(folder: Path, kills: int, **settings: str) -> None:
    steps = 25 * kills + 60  # more than all kills together let pass, on the whole
    write(folder, "whole", steps=steps, **settings)
    finish(folder)
    write(folder, "killed", steps=steps, **settings)
    hits, resumed = kill_often(folder, kills, seed=kills)
    finish(folder)
    assert hits >= kills * 3 // 4  # most moments fell inside the work
    assert resumed >= hits // 3  # and not all of them before the first checkpoint
    whole, killed = final_files(folder, "whole", steps), final_files(folder, "killed", steps)
    assert sorted(whole) == sorted(killed)
    assert {"model.safetensors", "optim.safetensors", "ema.safetensors", "state.json"} <= set(whole)
    for name in whole:
        assert whole[name] == killed[name], f"{name} differs"


@pytest.mark.timeout(1800)
def test_killed_at_random_moments_the_weights_are_bit_for_bit_those_of_the_undisturbed_run(place: Path) -> None:
    check_exact(place, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_20_random_moments_the_weights_are_bit_for_bit_those_of_the_undisturbed_run(place: Path) -> None:
    check_exact(place, 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_in_bf16(place: Path) -> None:
    check_exact(place, 4, precision="bf16")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_compiled_block_by_block(place: Path) -> None:
    check_exact(place, 4, compile="true")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_first_and_the_same_command_goes_on(place: Path, number: signal.Signals) -> None:
    write(place, "whole", steps=150)
    finish(place)
    write(place, "stopped", steps=150)
    process = subprocess.Popen(command(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        event = json.loads(line)
        if event["kind"] == "step" and event["step"] == 3:
            os.kill(process.pid, number)
        seen = event.get("step", seen)
    assert process.stderr is not None
    message = process.stderr.read()
    assert process.wait(600) == 130
    assert "saved at step" in message
    step = int(message.split("saved at step ")[1].split()[0])
    assert 3 <= step < 150
    assert (place / "runs/stopped/checkpoints" / f"step-{step:06d}" / "manifest.json").exists()
    process.stdout.close()
    process.stderr.close()
    finish(place)
    assert final_files(place, "whole", 150) == final_files(place, "stopped", 150)


def test_a_run_that_an_earlier_version_began_is_the_same_recipe(place: Path) -> None:
    """That version did not know some keys, which have their default today: it is done, it goes on; another value is another recipe."""
    import tauon.recipe
    import tauon.stages.context
    from tauon.config import dump
    from tauon.errors import RunError
    from tauon.pipeline import run

    def earlier(tree: object) -> object:
        found = dump(tree)  # type: ignore[arg-type]
        if "data" in found:
            del found["data"]["chat"]["date"], found["data"]["source"]["encoding"], found["train"]["freeze"]
        return found

    write(place, "old", steps=14)
    recipe = tauon.recipe.load_recipe(place / "recipe.yaml")
    told: list[tuple[str, str]] = []

    def on_event(kind: str, /, **facts: object) -> None:
        if kind == "stage":
            told.append((str(facts["name"]), str(facts["state"])))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tauon.stages.context, "dump", earlier)
        patch.setattr(tauon.recipe, "dump", earlier)
        done = run(recipe, root=place / "runs", stages=("prepare", "train"))
    before = final_files(place, "old", 14)
    for _ in range(2):
        told.clear()
        run(recipe, root=place / "runs", stages=("prepare", "train"), on_event=on_event)
        assert told == [("prepare", "done before"), ("train", "done before")]
    shutil.rmtree(done.checkpoints / "step-000014")
    (done.folder / "stages.json").unlink()
    run(recipe, root=place / "runs", stages=("prepare", "train"))
    assert final_files(place, "old", 14) == before
    with pytest.raises(RunError, match="another recipe .*encoding"):
        run(
            tauon.recipe.load_recipe(place / "recipe.yaml", ["data.source.encoding=latin-1"]),
            root=place / "runs",
            stages=("prepare", "train"),
        )
