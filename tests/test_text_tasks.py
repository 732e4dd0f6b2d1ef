"""Texts with labels, conversations, preferences: whole runs at toy size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import RunFolder, latest_checkpoint, load_checkpoint, read_json
from tauon.config import parse
from tauon.errors import RecipeError, TrainingError
from tauon.export import merge_adapter
from tauon.pipeline import run
from tauon.recipe import Recipe
from tauon.stages.context import Context
from tauon.stages.load import load_model
from tauon.tracking import read_events
from toy import words

GPT = {"kind": "gpt", "layers": 2, "width": 32, "heads": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small trained model `base`, conversations, preferences and texts with labels."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "text.txt").write_text(words(1500))
    chat = [{"instruction": f"Double {i % 7}.", "input": "", "output": f"It is {2 * (i % 7)}."} for i in range(60)]
    (folder / "chat.json").write_text(json.dumps(chat))
    pairs = [{"prompt": f"Is {i} fine?", "chosen": "yes, it is", "rejected": "no, never"} for i in range(40)]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    good, bad = ("a lovely film", "great fun", "fine work"), ("a dull film", "no fun", "poor work")
    rows = [{"text": f"{(good if i % 2 else bad)[i % 3]} number {i}", "label": "good" if i % 2 else "bad"} for i in range(120)]
    (folder / "films.jsonl").write_text("\n".join(map(json.dumps, rows)))
    go(
        folder,
        "base",
        data={"source": {"kind": "text", "path": str(folder / "text.txt")}, "tokenizer": {"kind": "bpe", "vocab": 280}},
        model=GPT,
    )
    return folder


def recipe(folder: Path, name: str, **sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": name, "data": {"seq_len": 160, "cache": str(folder / "cache")}, "task": "language-modelling",
        "model": {"from": str(folder / "runs/base")}, "optim": {"lr": 0.01},
        "train": {"steps": 8, "batch": 4, "checkpoint_every": 4, "precision": "fp32", "compile": False}, "evaluate": {"resamples": 100},
    }  # fmt: skip
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and key != "model" else value
    return parse(Recipe, base)


def go(folder: Path, name: str, *, stages: tuple[Any, ...] = ("prepare", "train"), **sections: Any) -> RunFolder:
    return run(recipe(folder, name, **sections), root=folder / "runs", stages=stages)


def chat(folder: Path, name: str, **sections: Any) -> RunFolder:
    data = {"source": {"kind": "chat", "path": str(folder / "chat.json")}, "split": {"validation": "20%"}} | sections.pop("data", {})
    return go(folder, name, data=data, task="instruction-tuning", **sections)


def dpo(folder: Path, name: str, **sections: Any) -> RunFolder:
    data = {"source": {"kind": "pairs", "path": str(folder / "pairs.json")}, "split": {"validation": "20%"}}
    task = sections.pop("task", {"kind": "dpo"})
    return go(folder, name, data=data, task=task, **sections)


def weights(done: RunFolder) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(done.checkpoints)
    assert found is not None
    return found.tensors("model")


ALL = ("prepare", "train", "evaluate", "report")


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "text-bag", "buckets": 997},
        {"kind": "text-bag", "buckets": 997, "pooling": "attention"},
        {"kind": "bert", "layers": 1, "width": 32, "heads": 2, "dropout": 0.0},
    ],
)
def test_texts_are_sorted_into_their_classes(world: Path, model: dict[str, Any]) -> None:
    name = f"films-{model['kind']}-{model.get('pooling', '')}"
    data = {
        "source": {"kind": "jsonl", "path": str(world / "films.jsonl"), "text": "text", "label": "label"}, "tokenizer": {"kind": "bpe", "vocab": 300},
        "seq_len": 24, "split": {"validation": "10%", "test": "20%"}, "augment": [{"kind": "drop-tokens", "share": "10%"}],
    }  # fmt: skip
    done = go(
        world,
        name,
        stages=ALL,
        data=data,
        task="text-classification",
        model=model,
        train={"steps": 40, "batch": 16},
        optim={"lr": 0.003 if model["kind"] == "bert" else 0.01},
    )
    found = read_json(done.folder / "evaluation.json")
    assert found["metrics"]["accuracy"]["value"] >= 0.95
    assert (done.folder / "report.html").exists()


def test_a_classifier_starts_from_a_model_of_hidden_tokens(world: Path) -> None:
    bert = {"kind": "bert", "layers": 1, "width": 32, "heads": 2}
    text = {"source": {"kind": "text", "path": str(world / "text.txt")}, "tokenizer": {"kind": "bpe", "vocab": 280}, "seq_len": 24}
    go(world, "hidden", data=text, task="masked-language-modelling", model=bert)
    data = {"source": {"kind": "jsonl", "path": str(world / "films.jsonl"), "text": "text", "label": "label"}, "seq_len": 24}
    done = go(world, "from-hidden", data=data, task="text-classification", model={"from": str(world / "runs/hidden")})
    a, b = weights(RunFolder.open(world / "runs/hidden")), weights(done)
    assert a["embed.weight"].shape == b["embed.weight"].shape  # one more id for the mask in both
    assert b["head.weight"].shape == (2, 32)


def test_instruction_tuning_lowers_the_loss_of_held_out_answers(world: Path) -> None:
    done = chat(world, "answers", stages=ALL, train={"steps": 20, "validate_every": 5}, evaluate={"samples": 1})
    losses = [e["loss"] for e in read_events(done.folder / "events.jsonl") if e["kind"] == "validate"]
    assert losses[-1] < 0.8 * losses[0]
    checked = [e["mask"] for e in read_events(done.folder / "events.jsonl") if e["kind"] == "checked" and "mask" in e]
    assert len(checked) == 1
    assert "nothing else" in checked[0]
    samples = read_json(done.folder / "samples.json")
    assert samples[0]["prompt"].startswith("Double")
    assert read_json(done.folder / "evaluation.json")["primary"] == "bits_per_byte"


def test_a_merged_model_answers_as_the_unmerged_one(world: Path, tmp_path: Path) -> None:
    done = chat(world, "apart", adapt={"kind": "lora", "rank": 4})
    merged = merge_adapter(done.folder, tmp_path / "merged")
    data = {"source": {"kind": "chat", "path": str(world / "chat.json")}}
    tree = recipe(world, "apart", data=data, task="instruction-tuning")
    apart, _ = load_model(latest_checkpoint(done.checkpoints), tree)  # type: ignore[arg-type]
    together, _ = load_model(load_checkpoint(merged), tree)
    ids = torch.arange(40)[None] % 280
    with torch.no_grad():
        torch.testing.assert_close(together.logits(together(ids)), apart.logits(apart(ids)), rtol=0, atol=1e-5)


def test_a_mask_that_covers_the_question_is_found_before_the_first_step(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.data import ChatDataset

    right = ChatDataset.batch

    def shifted(self: ChatDataset, index: np.ndarray, *, epoch: int = 0) -> Any:
        from dataclasses import replace

        batch = right(self, index, epoch=epoch)
        return replace(batch, weights=batch.weights.roll(-1, 1))  # off by one: the classic

    monkeypatch.setattr(ChatDataset, "batch", shifted)
    with pytest.raises(TrainingError, match="the loss covers"):
        chat(world, "shifted")


def test_dpo_raises_margin_and_accuracy_on_held_out_pairs_and_logs_both(world: Path) -> None:
    done = dpo(world, "prefer", stages=ALL, train={"steps": 16, "validate_every": 4}, optim={"lr": 0.003}, evaluate={"samples": 1})
    seen = [e for e in read_events(done.folder / "events.jsonl") if e["kind"] == "validate"]
    assert seen[-1]["reward_margin"] > seen[0]["reward_margin"] > 0
    assert seen[-1]["reward_accuracy"] >= 0.9
    found = read_json(done.folder / "evaluation.json")["metrics"]
    assert found["reward_margin"]["value"] == pytest.approx(seen[-1]["reward_margin"], rel=1e-3)
    assert found["reward_accuracy"]["value"] == pytest.approx(seen[-1]["reward_accuracy"])
    assert "reward_margin" in (done.folder / "report.html").read_text().replace(" ", "_").lower()


def test_the_reference_is_the_model_that_training_starts_from(world: Path) -> None:
    """At the first step nothing moved yet: the loss is log 2, with adapters and without; the reference comes from the cache after that."""
    whole = dpo(world, "whole")
    adapted = dpo(world, "adapted", adapt={"kind": "lora", "rank": 2})
    for done in (whole, adapted):
        first = next(e for e in read_events(done.folder / "events.jsonl") if e["kind"] == "step")
        assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    tree = recipe(
        world, "whole", data={"source": {"kind": "pairs", "path": str(world / "pairs.json")}, "split": {"validation": "20%"}}, task="dpo"
    )
    with RunFolder.open(world / "runs/whole") as record:
        splits = [Context(tree, record, lambda *_, **__: None).splits for _ in range(2)]
        folder = Path(splits[0].facts["reference"]["folder"])
        before = (folder / "train.npy").stat().st_mtime_ns
        shutil.rmtree(folder)
        splits.append(Context(tree, record, lambda *_, **__: None).splits)
    assert (folder / "train.npy").stat().st_mtime_ns > before
    found = [d.train.reference for d in splits]  # type: ignore[attr-defined]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_dpo_goes_on_bit_for_bit_after_a_stop(world: Path) -> None:
    straight = dpo(world, "straight", adapt={"kind": "lora", "rank": 2})
    stopped = dpo(world, "stopped", adapt={"kind": "lora", "rank": 2})
    shutil.rmtree(stopped.checkpoints / "step-000008")
    (stopped.folder / "stages.json").unlink()
    resumed = dpo(world, "stopped", adapt={"kind": "lora", "rank": 2})
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name])


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": GPT}, "model.from: is missing"),
        ({"model": {"from": "x"}, "parallel": {"kind": "parameter-server"}}, "no reference model"),
        ({"model": {"from": "x"}, "task": "text-classification"}, "provides preferences, but the task needs texts with labels"),
        ({"model": {"from": "x"}, "train": {"tokens": 100, "steps": None}}, "train.tokens"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_opened(world: Path, sections: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        dpo(world, "refused", **sections)


def test_a_tokenizer_of_another_vocabulary_is_refused(world: Path) -> None:
    with pytest.raises(RecipeError, match="is not the tokenizer of"):
        chat(world, "strange", data={"tokenizer": "bytes"})
