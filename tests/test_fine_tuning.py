"""A run that starts from a trained model: whole, frozen in part, or with adapters; it goes on, is measured, merged and exported."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.artifacts import RunFolder, latest_checkpoint, load_checkpoint
from tauon.config import parse
from tauon.errors import CheckpointError, RecipeError, RunError, TauonError, TrainingError
from tauon.export import export_checkpoint, merge_adapter
from tauon.models import open_model_folder
from tauon.pipeline import run
from tauon.recipe import Recipe, load_recipe
from tauon.stages.check import reference
from tauon.stages.context import null_callback
from tauon.stages.load import load_model
from tauon.tracking import read_events
from toy import Tauon, words

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

LLAMA = {"kind": "llama", "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "mlp_width": 24}
LORA = {"kind": "lora", "rank": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run `base` (BPE), the same exported, and texts."""
    folder = tmp_path_factory.mktemp("fine")
    (folder / "text.txt").write_text(words(1500))
    (folder / "other.txt").write_text(words(1500, seed=9).replace("lepton", "meson") + "\n")
    go(folder, "base", data={"tokenizer": {"kind": "bpe", "vocab": 280}}, model=LLAMA, train={"steps": 20})
    export_checkpoint(folder / "runs/base", folder / "hf", format="huggingface")
    return folder


def recipe(folder: Path, name: str, **sections: Any) -> Recipe:
    text = "text.txt" if name == "base" else "other.txt"
    base: dict[str, Any] = {
        "name": name,
        "data": {"source": {"kind": "text", "path": str(folder / text)}, "seq_len": 16, "cache": str(folder / "cache")},
        "task": "language-modelling",
        "model": {"from": str(folder / "runs/base")},
        "optim": {"lr": 0.01},
        "train": {"steps": 8, "batch": 4, "checkpoint_every": 4, "validate_examples": 4, "precision": "fp32", "compile": False},
        "evaluate": {"samples": 0, "resamples": 100},
    }
    if "task" in sections:
        base["evaluate"] = {"resamples": 100}
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and "kind" not in value and "from" not in value else value
    return parse(Recipe, base)


def go(folder: Path, name: str, *, stages: tuple[Any, ...] = ("prepare", "train"), fresh: bool = False, **sections: Any) -> RunFolder:
    return run(recipe(folder, name, **sections), root=folder / "runs", stages=stages, fresh=fresh)


def weights(done: RunFolder) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(done.checkpoints)
    assert found is not None
    return found.tensors("model")


# ------------------------------------------------------------------------------------------------ starting


def test_a_run_starts_from_the_weights_and_the_tokenizer_of_another(world: Path) -> None:
    done = go(world, "further", train={"steps": 1}, optim={"lr": 1e-12, "weight_decay": 0.0})
    start = open_model_folder(str(world / "runs/base")).tensors
    for name, t in weights(done).items():
        torch.testing.assert_close(t, start[name].read(), rtol=0, atol=1e-7)
    settings = {d["path"]: d for d in json.loads((done.folder / "derived.json").read_text())}
    assert settings["model"]["value"] == "llama"
    base = latest_checkpoint(world / "runs/base/checkpoints")
    newest = latest_checkpoint(done.checkpoints)
    assert base is not None and newest is not None
    assert newest.state["preprocess"]["tokenizer"] == base.state["preprocess"]["tokenizer"]
    assert newest.state["base"]["fingerprint"] == base.hash


def test_a_folder_of_hugging_face_gives_the_same_run_as_the_run_it_came_from(world: Path) -> None:
    one = go(world, "from-run", adapt=LORA)
    two = go(world, "from-folder", adapt=LORA, model={"from": str(world / "hf")})
    for name, t in weights(one).items():
        torch.testing.assert_close(weights(two)[name], t, rtol=0, atol=1e-6)


def test_a_checkpoint_of_the_run_will_do_too(world: Path) -> None:
    at = sorted((world / "runs/base/checkpoints").iterdir())[-1]
    assert open_model_folder(str(at)).fingerprint == open_model_folder(str(world / "runs/base")).fingerprint


@pytest.mark.parametrize(
    ("sections", "error", "says"),
    [
        ({"model": {"from": "nowhere"}}, CheckpointError, "there is no folder nowhere"),
        ({"model": {"kind": "gpt", "layers": 1}, "adapt": LORA}, RecipeError, "adapt: needs model.from"),
        ({"data": {"tokenizer": "bytes"}}, RecipeError, "data.tokenizer: is not the tokenizer of"),
        ({"adapt": {"kind": "lora", "target": ["c_attn"]}}, RecipeError, "names no linear layer"),
        ({"train": {"freeze": ["nothing.*"]}}, RecipeError, "train.freeze: 'nothing.*' matches no parameter"),
        ({"train": {"freeze": ["*"]}}, RecipeError, "freezes all parameters"),
        ({"optim": {"lr_scale": {"nothing": 2.0}}}, RecipeError, "optim.lr_scale: 'nothing' matches no trainable parameter"),
        ({"optim": {"lr_scale": {"*": 0.0}}}, RecipeError, "expected a number above 0"),
        ({"data": {"seq_len": 32}}, RecipeError, "data.seq_len: 32 is longer than the model's 16"),
    ],
)
def test_what_cannot_start_says_so(world: Path, sections: dict[str, Any], error: type[TauonError], says: str) -> None:
    with pytest.raises(error) as caught:
        go(world, "refused", **sections)
    assert says in str(caught.value)


def test_a_longer_sequence_is_taken_where_positions_are_rotary(world: Path) -> None:
    done = go(world, "longer", data={"seq_len": 32}, model={"from": str(world / "runs/base"), "seq_len": 32}, train={"steps": 1})
    found = latest_checkpoint(done.checkpoints)
    assert found is not None and found.state["model"]["seq_len"] == 32


def test_a_base_that_changed_is_noticed(world: Path) -> None:
    shutil.copytree(world / "runs/base", world / "runs/moving")
    go(world, "watched", adapt=LORA, model={"from": str(world / "runs/moving")})
    go(world, "tuned", train={"steps": 2})
    (world / "runs/watched/stages.json").unlink()  # as if it had been stopped
    shutil.rmtree(world / "runs/moving")
    shutil.copytree(world / "runs/tuned", world / "runs/moving")
    with pytest.raises(RunError, match="changed since this run began"):
        go(world, "watched", adapt=LORA, model={"from": str(world / "runs/moving")})
    checkpoint = latest_checkpoint(world / "runs/watched/checkpoints")
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match="has adapters for another base"):
        load_model(checkpoint, recipe(world, "watched", adapt=LORA))


# ------------------------------------------------------------------------------------------------ what trains


def test_adapters_alone_train_and_are_saved_with_their_state_alone(world: Path) -> None:
    done = go(world, "lora", stages=("prepare", "train", "evaluate"), adapt=LORA)
    found = latest_checkpoint(done.checkpoints)
    assert found is not None
    held, optim = found.tensors("model"), found.tensors("optim")
    assert all(name.endswith(("lora_a", "lora_b")) for name in held) and len(held) == 2 * 7 * 2
    assert {name.rpartition("/")[0] for name in optim} == set(held)
    events = [e for e in read_events(done.events_path) if e["kind"] == "checked"]
    assert any(e.get("moved") == len(held) and e.get("frozen") == 21 for e in events), events
    settings = {d["path"]: d["value"] for d in json.loads((done.folder / "derived.json").read_text())}
    assert settings["train.trainable"] == sum(t.numel() for t in held.values())


def test_it_goes_on_bit_for_bit_after_a_stop(world: Path) -> None:
    adapt = {"kind": "dora", "rank": 2, "dropout": 0.2, "also": ["*norm*"]}
    whole = weights(go(world, "at-once", adapt=adapt, train={"ema": 0.9}))
    done = go(world, "in-two", adapt=adapt, train={"ema": 0.9})
    shutil.rmtree(done.checkpoints / "step-000008")
    (done.folder / "stages.json").unlink()
    again = weights(go(world, "in-two", adapt=adapt, train={"ema": 0.9}))
    assert all(torch.equal(again[name], t) for name, t in whole.items())


def test_frozen_parameters_stay_and_the_rest_moves(world: Path) -> None:
    done = go(
        world, "frozen", train={"freeze": ["embed.*", "blocks.0.*"]}, optim={"lr": 0.01, "layer_decay": 0.5, "lr_scale": {"head.*": 4.0}}
    )
    start = open_model_folder(str(world / "runs/base")).tensors
    moved = {n for n, t in weights(done).items() if not torch.equal(t, start[n].read())}
    assert moved == {n for n in weights(done) if not n.startswith(("embed.", "blocks.0."))}
    found = latest_checkpoint(done.checkpoints)
    assert found is not None and not any(n.startswith(("embed.", "blocks.0.")) for n in found.tensors("optim"))


def test_a_model_that_leaks_is_found_before_it_trains(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.models.families import gpt

    (world / "docs").mkdir()
    for i in range(60):
        (world / f"docs/{i}.txt").write_text(words(12, seed=i))
    data = {"source": {"kind": "text", "path": str(world / "docs")}}
    done = go(world, "tight", data=data, adapt=LORA, train={"steps": 1})
    said = next(e["packing"] for e in read_events(done.events_path) if "packing" in e)
    assert "belong to other documents" in said
    monkeypatch.setattr(gpt, "document_mask", lambda s: torch.ones(len(s), 1, s.shape[1], s.shape[1], dtype=torch.bool).tril())
    with pytest.raises(TrainingError, match="packing leaks"):
        go(world, "leaky", data=data, adapt=LORA, train={"steps": 1})


def test_a_parameter_that_should_move_and_does_not_is_found(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.train import build, step

    def cut(job: Any) -> None:
        step.optimizer_update(job)
        with torch.no_grad():
            job.model.blocks[0].attention.q.weight.add_(1e-3)

    made = build.TrainJob
    monkeypatch.setattr(build, "TrainJob", lambda **kw: made(**kw, functions=step.StepFunctions(update=cut)))
    with pytest.raises(TrainingError, match=r"blocks.0.attention.q.weight is frozen, but it changed"):
        go(world, "odd", adapt=LORA)


# ------------------------------------------------------------------------------------------------ afterwards


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merged_exported_and_apart_give_the_same_answers(world: Path, tmp_path: Path, kind: str) -> None:
    done = go(world, f"tuned-{kind}", adapt={"kind": kind, "rank": 2}, train={"ema": 0.8})
    found = latest_checkpoint(done.checkpoints)
    assert found is not None
    apart, _ = load_model(found, recipe(world, "x", adapt={"kind": kind}))
    ids = torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = apart.logits(apart(ids))

    merged = merge_adapter(done.folder, tmp_path / "merged")
    whole, _ = load_model(load_checkpoint(merged), recipe(world, "x"))
    with torch.no_grad():
        torch.testing.assert_close(whole.logits(whole(ids)), want, rtol=0, atol=1e-5)
    assert open_model_folder(str(tmp_path / "merged")).config.kind_ == "llama"

    export_checkpoint(done.folder, tmp_path / "hf", format="huggingface")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, want, rtol=0, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(tokenizer("the heavy lepton")["input_ids"]) > 1

    export_checkpoint(done.folder, tmp_path / "peft", format="peft")
    both = merge_adapter(tmp_path / "peft", tmp_path / "again", base=world / "runs/base")
    back, _ = load_model(load_checkpoint(both), recipe(world, "x"))
    with torch.no_grad():
        torch.testing.assert_close(back.logits(back(ids)), want, rtol=0, atol=1e-5)


def test_qlora_runs_goes_on_and_merges(world: Path, tmp_path: Path) -> None:
    adapt = {"kind": "lora", "rank": 2, "quantize": "nf4"}
    done = go(world, "qlora", stages=("prepare", "train", "evaluate"), adapt=adapt)
    found = latest_checkpoint(done.checkpoints)
    assert found is not None
    apart, _ = load_model(found, recipe(world, "x", adapt=adapt))
    whole, _ = load_model(load_checkpoint(merge_adapter(done.folder, tmp_path / "merged")), recipe(world, "x"))
    ids = torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(whole.logits(whole(ids)), apart.logits(apart(ids)), rtol=0, atol=1e-5)
    tree = recipe(world, "x", adapt=adapt, parallel={"kind": "mesh", "tensor": 2})
    with pytest.raises(RecipeError, match=r"parallel.tensor: is 2, but the blocks of adapt.quantize"):
        reference(tree, tmp_path, steps=1, processes=2, on_event=null_callback)


def test_a_run_with_adapters_is_itself_a_start(world: Path) -> None:
    first = go(world, "first", adapt=LORA)
    second = go(world, "second", model={"from": str(first.folder)}, adapt=LORA, train={"steps": 1})
    found = latest_checkpoint(second.checkpoints)
    assert found is not None
    load_model(found, recipe(world, "second", adapt=LORA))


def test_the_verbs_refuse_in_words(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tauon = Tauon(capsys)
    base = world / "runs/base"
    for args, code, says in (
        (("export", base, "--to", "peft", "--out", tmp_path / "x"), 3, "has no adapters"),
        (("adapter", "merge", base, "--to", tmp_path / "x"), 4, "nothing to merge"),
        (("export", base, "--to", "huggingface", "--out", world / "hf"), 5, "exists already"),
        (("export", world / "cache", "--to", "huggingface", "--out", tmp_path / "x"), 5, "is not a run"),
    ):
        ended = tauon(*args)
        assert ended.code == code and says in ended.err, ended
        assert not (tmp_path / "x").exists()
    ended = tauon("export", base, "--to", "huggingface", "--out", tmp_path / "x")
    assert ended.code == 0 and (tmp_path / "x" / "model.safetensors").is_file()


def test_bert_learns_hidden_tokens_and_starts_from_itself(world: Path) -> None:
    bert = {"kind": "bert", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
    task = {"task": "masked-language-modelling"}
    done = run(
        parse(Recipe, {
            "name": "bert", "data": {"source": {"kind": "text", "path": str(world / "text.txt")}, "tokenizer": "bytes", "seq_len": 16,
                                     "cache": str(world / "cache")},
            "model": bert, "optim": {"lr": 0.01}, "train": {"steps": 30, "batch": 8}, "evaluate": {"resamples": 100}, **task,
        }), root=world / "runs",
    )  # fmt: skip
    record = json.loads((done.folder / "evaluation.json").read_text())
    assert record["primary"] == "accuracy" and record["metrics"]["loss"]["value"] < 4.5
    found = latest_checkpoint(done.checkpoints)
    assert found is not None and found.state["model"]["vocab"] == 258 and found.state["preprocess"]["mask_token"] == 257
    again = go(world, "bert-lora", model={"from": str(done.folder)}, adapt=LORA, task="masked-language-modelling", train={"steps": 2})
    assert any(n.startswith("transform.") for n in weights(again))
    with pytest.raises(RecipeError, match="cannot learn language-modelling"):
        go(world, "bert-lm", model={"from": str(done.folder)})


@pytest.mark.parametrize("optim", ["soap", "muon", "schedule-free", "lion", "sgd"])
def test_adapters_learn_with_every_kind_of_optimizer(world: Path, optim: str) -> None:
    done = go(world, f"with-{optim}", adapt=LORA, train={"steps": 3}, optim={"kind": optim, "lr": 0.01, "lr_scale": {"blocks.0.*": 0.5}})
    seen = next(e for e in read_events(done.events_path) if e["kind"] == "checked" and "moved" in e)
    assert seen["moved"] + len(seen["still"]) == 28
    assert not [e for e in read_events(done.events_path) if "vanishing" in str(e)]


def test_every_kind_of_base_is_refused_a_task_that_it_does_not_know(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "iris.yaml").write_text(
        f"""{{name: iris, data: {{source: {{kind: sklearn, name: iris}}}}, task: classification, model: {{from: {world / "runs/base"}}},
        train: {{steps: 1}}}}"""
    )
    ended = Tauon(capsys)("run", world / "iris.yaml", "--root", world / "runs")
    assert ended.code == 2 and "is a llama" in ended.err, ended


def test_the_learning_rate_range_of_adapters_is_tested_as_of_any_model(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tauon.recipe import to_yaml

    (world / "range.yaml").write_text(to_yaml(recipe(world, "range", adapt=LORA)))
    ended = Tauon(capsys)("tune", world / "range.yaml", "--lr-range", "--steps", "12", "--root", world / "runs")
    assert ended.code == 0 and "optim.lr=" in ended.out, ended


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_on_fine_tuning_works_from_its_first_line_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first recipe, on notes at home and a small quickstart run; then each command that it shows, as it is shown."""
    page = (Path(__file__).parents[1] / "docs" / "fine-tuning.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/notes/more").mkdir(parents=True)
    for i in range(12):
        (tmp_path / "home/notes" / ("more" if i % 2 else "") / f"{i}.md").write_text(words(200, seed=i))
    small = ["train.time=null", "train.steps=3", "train.batch=2", "data.source.limit=12", "data.tokenizer.vocab=300", "model.layers=1"]
    small += ["model.width=16", "evaluate.samples=0", "evaluate.resamples=100", "train.validate_examples=4"]
    run(load_recipe("quickstart", small), root=tmp_path / "runs", stages=("prepare", "train"))
    recipe_shown = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "notes.yaml").write_text(recipe_shown)
    tauon = Tauon(capsys)
    code, _, err = tauon("run", "notes.yaml", "evaluate.resamples=100")
    assert code == 0, err
    shown = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line, comments=True)[1:] for block in shown for line in block.splitlines() if line.startswith("tauon ")]
    assert len(commands) == 4
    for words_ in [*commands, ["export", "runs/quickstart", "--to", "huggingface", "--out", "quickstart-hf"]]:
        code, _, err = tauon(*words_)
        assert code == 0, err
    for folder, of in (("notes-hf", "notes-lora"), ("quickstart-hf", "quickstart")):
        checkpoint = latest_checkpoint(tmp_path / "runs" / of / "checkpoints")
        assert checkpoint is not None
        mine, _ = load_model(checkpoint, load_recipe(tmp_path / "runs" / of))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = transformers.AutoTokenizer.from_pretrained(folder)("a heavy lepton", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids).logits, mine.logits(mine(ids)), rtol=0, atol=1e-4)
    merged, again = (open_model_folder(name) for name in ("notes-merged", "again"))
    assert all((t.read() - again.tensors[n].read()).abs().max() < 1e-6 for n, t in merged.tensors.items())
