"""From WAV files to a report: classes of tones, and CTC that spells what it hears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tauon.artifacts import RunFolder, read_json
from tauon.errors import RecipeError
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tones import tone, write_wav

FREQUENCIES = {"do": 300, "re": 700, "mi": 1500}


def recipe(folder: Path, **sections: Any) -> Path:
    for label, frequency in FREQUENCIES.items():
        for take in range(12):
            write_wav(
                folder / "wav" / f"{label}_{take}.wav", tone(frequency * (1 + 0.01 * (take % 5)), 0.1 + 0.01 * take, 8000, take), 8000
            )
    model = sections.pop("model", {})
    base: dict[str, Any] = {
        "name": "tones", "data": {"source": {"kind": "wav", "path": str(folder / "wav"), "pattern": "{label}_{take}"}, "split": {"test": 0.2}},
        "task": "audio-classification", "model": model if "kind" in model else {"kind": "speech-cnn", "channels": [8, 12], "mels": 16} | model,
        "optim": {"kind": "adamw", "lr": 1e-2}, "train": {"steps": 30, "batch": 8, "precision": "fp32", "compile": False, "checkpoint_every": 10},
        "evaluate": {"resamples": 100},
    }  # fmt: skip
    path = folder / "tones.yaml"
    path.write_text(yaml.safe_dump({k: v | sections.get(k, {}) if isinstance(v, dict) else sections.get(k, v) for k, v in base.items()}))
    return path


def go(path: Path, *more: str, **options: Any) -> RunFolder:
    return run(load_recipe(path, more), root=path.parent / "runs", **options)


def test_tones_are_told_apart_and_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    path = recipe(tmp_path, data={"augment": ["gain", {"kind": "speed", "by": 0.02}]}, model={"freq_masks": 1, "time_masks": 1})
    done = go(path)
    assert read_json(done.folder / "evaluation.json")["metrics"]["accuracy"]["value"] >= 0.8
    assert "audio" in (done.folder / "report.html").read_text()

    def stop(kind: str, **facts: Any) -> None:
        if kind == "checkpoint" and facts["step"] == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(path, "name=again", on_event=stop)
    again = go(path, "name=again")
    last = "step-000030/model.safetensors"
    assert (again.checkpoints / last).read_bytes() == (done.checkpoints / last).read_bytes()


def test_ctc_spells_what_it_hears(tmp_path: Path) -> None:
    path = recipe(
        tmp_path, task="speech-recognition", data={"signal": {"target": "transcript"}},
        model={"kind": "conformer", "layers": 1, "width": 32, "heads": 2, "mels": 16, "kernel": 5}, train={"steps": 120}, optim={"lr": 4e-3},
    )  # fmt: skip
    figures = read_json(go(path).folder / "evaluation.json")
    assert figures["primary"] == "word_error_rate" and figures["metrics"]["character_error_rate"]["value"] <= 0.2
    assert any("Real-time factor" in note for note in figures["notes"])


@pytest.mark.parametrize(
    ("task", "target", "said"),
    [
        ("audio-classification", "transcript", "audio-classification needs classes"),
        ("speech-recognition", "class", "speech-recognition needs transcripts"),
        ("classification", "auto", "provides recordings, but the task needs features and targets"),
    ],
)
def test_a_task_that_does_not_fit_the_recordings_is_refused(tmp_path: Path, task: str, target: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        go(recipe(tmp_path, task=task, data={"signal": {"target": target}}))
