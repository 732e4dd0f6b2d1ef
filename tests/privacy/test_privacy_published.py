"""What a private run's checkpoints hold: nothing that was computed from examples without noise, but what is listed and named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import load_checkpoint, read_json
from tauon.config import parse
from tauon.data import DataConfig, prepare
from tauon.errors import CheckpointError, Interrupted
from tauon.pipeline import run
from tauon.privacy.published import GROUPS, STATE, fitted_without_noise, leaves, origin_of, split
from tauon.recipe import load_recipe
from toy import Tauon, contents, merged, table_recipe, text_recipe

PRIVATE = {"target_epsilon": 4.0, "delta": 1e-3, "generator": "seeded"}
EARLY = {"validate_every": 2, "checkpoint_every": 2, "early_stopping": {"patience": 50}, "keep_last": 20, "ema": 0.9, "watch_layers": 2}


def csv_recipe(folder: Path, *, flip: int | None = None, **sections: Any) -> Path:
    """A table with words, gaps and numbers. `flip`: the row whose numbers and label are other ones."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    x, word = draws.normal(size=(240, 2)), draws.integers(0, 3, 240)
    label = (x[:, 0] + 0.3 * word > 0.3).astype(int)
    if flip is not None:
        x[flip], label[flip] = -x[flip] * 3, 1 - label[flip]
    gap = np.arange(240) % 40 == 3
    rows = [
        f"{'' if g else f'{a:.4f}'},{b:.4f},{['red', 'green', 'blue'][w]},{y}" for (a, b), g, w, y in zip(x, gap, word, label, strict=True)
    ]
    (folder / "people.csv").write_text("a,b,colour,y\n" + "\n".join(rows) + "\n")
    data = {
        "source": {"kind": "csv", "path": str(folder / "people.csv"), "label": "y"}, "normalize": "bounds", "bounds": {"*": [-4, 4]},
        "table": {"impute": "constant"}, "split": {"validation": "10%", "test": "10%"},
    }  # fmt: skip
    base = {"data": data, "model": {"kind": "wide-and-deep", "hidden": [8]}, "privacy": PRIVATE, "train": EARLY}
    return table_recipe(folder, **merged(base, sections))


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str]) -> Tauon:
    return Tauon(capsys)


RUNS: dict[str, dict[str, Any]] = {
    "table": {},
    "statistics, adaptive clipping": {
        "data": {"normalize": "standard"}, "privacy": {"statistics": {}, "clipping": {"kind": "adaptive", "norm": 1.0}},
    },
    "plateau": {"optim": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": {"kind": "plateau", "patience": 1}}},
    "noise that looks": {"privacy": {"noise": {"kind": "validation-loss", "every": 2}}},
    "canaries": {"privacy": {"audit": {"kind": "gradient", "canaries": 10, "seed": 1}}},
}  # fmt: skip


def folders(path: Path) -> list[Path]:
    found = sorted(path.glob("checkpoints/step-*"))
    assert len(found) > 2
    return found


def check_every_byte(folder: Path) -> None:
    """Every file of a checkpoint, every key, every tensor is on the list, and there is nothing between them."""
    parameters = set(load_checkpoint(folder).tensors("model"))
    for file in folder.iterdir():
        if file.name == "manifest.json":
            assert set(read_json(file)) == {"format", "step", "parent", "files", "aliases", "sha256"}  # hashes of what is listed here
        elif file.name == "state.json":
            for path, value in leaves(read_json(file)):
                field = origin_of(path)
                assert value in ({}, []) or field is not None, (path, value)
                assert field is None or not field.why.startswith("always") or not value, (path, value)
        else:
            group = origin_of(file.name.removesuffix(".safetensors"), GROUPS)
            assert group is not None, file
            raw = file.read_bytes()
            (length,) = struct.unpack("<Q", raw[:8])
            header = json.loads(raw[8 : 8 + length])
            assert header.pop("__metadata__", {"format": "pt"}) == {"format": "pt"}
            spans = sorted(t["data_offsets"] for t in header.values())
            ends = [0, *(end for _, end in spans)]
            assert [start for start, _ in spans] == ends[:-1] and 8 + length + ends[-1] == len(raw)
            own = {"clipping": {"norm"}, "canaries": {"total", "change", "last", "steps", "squares", "looked"}}.get(group.path, parameters)
            assert {name.rpartition("/")[0] or name for name in header} <= own | {"__metadata__"}, file


@pytest.mark.parametrize("kind", [*RUNS, "text"])
def test_every_byte_of_a_private_checkpoint_is_on_the_list(kind: str, tmp_path: Path) -> None:
    path = text_recipe(tmp_path, privacy=PRIVATE, train=EARLY) if kind == "text" else csv_recipe(tmp_path, **RUNS[kind])
    folder = run(load_recipe(path), root=tmp_path / "runs", stages=("prepare", "train")).folder
    for each in folders(folder):
        check_every_byte(each)
    if kind == "table":
        said = read_json(folder / "privacy.json")["guarantee"]["not_covered"]
        assert any("the categories of colour" in line and "the imputed values of a" in line for line in said)


def chat_data(folder: Path) -> dict[str, Any]:
    rows = [{"messages": [{"role": "user", "content": f"how much is {i}"}, {"role": "assistant", "content": str(i)}]} for i in range(20)]
    (folder / "chat.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return {"source": {"kind": "chat", "path": str(folder / "chat.jsonl")}, "tokenizer": "bytes"}


def labelled_data(folder: Path) -> dict[str, Any]:
    (folder / "said.csv").write_text("text,label\n" + "\n".join(f"word {i} of many,{'ab'[i % 2]}" for i in range(40)))
    return {"source": {"kind": "csv", "path": str(folder / "said.csv"), "label": "label", "text": "text"}, "tokenizer": "bytes"}


def series_data(folder: Path) -> dict[str, Any]:
    hours = np.datetime64("2024-01-01T00") + np.arange(300)
    (folder / "load.csv").write_text("date,load\n" + "\n".join(f"{h},{i % 24}.5" for i, h in enumerate(hours)))
    return {"source": {"kind": "series", "path": str(folder / "load.csv")}, "window": {"context": 24, "horizon": 6, "calendar": ["hour"]}}


def pictures_data(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    np.savez(folder / "x.npz", x=rng.integers(0, 4000, (40, 1, 6, 6)).astype(np.uint16), y=rng.integers(0, 2, 40))
    return {"source": {"kind": "npz", "path": str(folder / "x.npz")}}


@pytest.mark.parametrize(
    ("make", "input_kind"), [(chat_data, "chat"), (labelled_data, "labelled-text"), (series_data, "series"), (pictures_data, "arrays")]
)
def test_what_every_kind_of_data_keeps_is_on_the_list(make: Any, input_kind: str, tmp_path: Path) -> None:
    config = parse(DataConfig, make(tmp_path) | {"cache": str(tmp_path / "cache")})
    preprocess = split({"preprocess": prepare(config, seed=0, input_kind=input_kind).preprocess})[0]["preprocess"]
    assert not [p for p, v in leaves({"preprocess": preprocess}) if origin_of(p) is None and v not in ({}, [], ())]
    assert not any("this kind of data" in said for said in fitted_without_noise(preprocess))
    assert "fields of this kind of data: own_counts" in fitted_without_noise(preprocess | {"own_counts": [3, 4]})


def test_the_list_says_of_each_place_where_it_comes_from_and_why() -> None:
    assert len({f.path for f in STATE}) == len(STATE) and all(f.why for f in (*STATE, *GROUPS))
    assert origin_of("notes.best.loss") is None and origin_of("notes.since_best") is None and origin_of("class_counts.0") is None
    public, internal = split({"step": 1, "class_counts": [3, 4], "notes": {"best": {"loss": 0.5}, "privacy": {"best": 1.0}}})
    assert public == {"step": 1, "notes": {"privacy": {"best": 1.0}}}
    assert internal == {"class_counts": [3, 4], "notes": {"best": {"loss": 0.5}}}


@pytest.mark.parametrize("kind", RUNS)
def test_another_person_changes_nothing_but_what_had_noise(kind: str, tmp_path: Path) -> None:
    """The same key, the same steps, one row of training other: of all that is not a tensor, only what the list calls noised may differ."""
    states, promises = [], []
    for at, flip in enumerate((None, 17)):
        place = tmp_path / str(at)
        path = csv_recipe(place, flip=flip, **RUNS[kind])
        folder = run(load_recipe(path), root=place / "runs", stages=("prepare", "train")).folder
        states.append([dict(leaves(read_json(f / "state.json"))) for f in folders(folder)])
        promises.append(read_json(folder / "privacy.json"))
    assert promises[0] == promises[1] or kind == "noise that looks"  # which counts what it decided by noisy answers
    assert any(a != b for a, b in zip(*states, strict=True))  # the noised norms do: so the row was one of training's
    for a, b in zip(*states, strict=True):
        assert a.keys() == b.keys()
        for path, value in a.items():
            field = origin_of(path)
            assert value == b[path] or (field is not None and field.origin == "noised") or path.startswith("preprocess.normalize"), path


def test_of_an_export_nothing_but_the_weights_knows_the_data(tauon: Tauon, tmp_path: Path) -> None:
    """Two texts of one length, under one key."""
    made = []
    for name in ("a", "b"):
        place = tmp_path / name
        path = text_recipe(place, privacy=PRIVATE, train={"steps": 4})
        if name == "b":
            text = (place / "text.txt").read_text()
            (place / "text.txt").write_text(text.replace("heavy", "light"))
        folder = run(load_recipe(path), root=place / "runs", stages=("prepare", "train")).folder
        ended = tauon("export", folder, "--to", "huggingface", "--out", place / "out")
        assert ended.code == 0, ended
        made.append(contents(place / "out"))
    assert made[0].keys() == made[1].keys() and made[0]["model.safetensors"] != made[1]["model.safetensors"]
    for name, raw in made[0].items():
        if name.endswith(".safetensors"):
            (length,) = struct.unpack("<Q", raw[:8])
            assert raw[: 8 + length] == made[1][name][: 8 + length] and len(raw) == len(made[1][name])
        else:
            assert raw == made[1][name], name


def test_early_stopping_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best loss is in no checkpoint, and a resume knows it all the same: bit for bit as one run."""
    path = csv_recipe(tmp_path, train={"steps": 12, "early_stopping": {"patience": 2}}, optim={"lr": 0.3})
    whole = run(load_recipe(path, ["name=whole"]), root=tmp_path / "runs", stages=("prepare", "train")).folder

    def stopped(job: Any) -> str | None:
        return "SIGTERM" if job.step == 5 else None

    with monkeypatch.context() as patch:
        patch.setattr("tauon.train.StopSignal.heard", lambda self, job: stopped(job))
        with pytest.raises(Interrupted):
            run(load_recipe(path, ["name=parts"]), root=tmp_path / "runs", stages=("prepare", "train"))
    parts = run(load_recipe(path, ["name=parts"]), root=tmp_path / "runs", stages=("prepare", "train")).folder
    assert {k: v for k, v in contents(parts / "checkpoints").items() if "manifest" not in k and "step-000005" not in k} == {
        k: v for k, v in contents(whole / "checkpoints").items() if "manifest" not in k
    }
    assert read_json(parts / "manifest.json")["checkpoint"]["step"] == read_json(whole / "manifest.json")["checkpoint"]["step"]
    left = {p.stem for p in (parts / "internal").glob("*.json")}
    assert left and (parts / "internal").stat().st_mode & 0o077 == 0
    assert "do not publish this file" in read_json(next((parts / "internal").glob("*.json")))["warning"]


def test_without_what_it_has_seen_early_stopping_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_recipe(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tauon.train.StopSignal.heard", lambda self, job: "SIGTERM" if job.step == 5 else None)
        with pytest.raises(Interrupted):
            run(load_recipe(path), root=tmp_path / "runs", stages=("prepare", "train"))
    (tmp_path / "runs/table/internal/step-000005.json").unlink()
    with pytest.raises(CheckpointError, match="has the validation losses for early stopping"):
        run(load_recipe(path), root=tmp_path / "runs", stages=("prepare", "train"))


def test_examples_are_counted_as_expected_not_as_drawn(tmp_path: Path) -> None:
    folder = run(load_recipe(csv_recipe(tmp_path)), root=tmp_path / "runs", stages=("prepare", "train")).folder
    assert [read_json(f / "state.json")["examples"] for f in folders(folder)] == [16 * s for s in (2, 4, 6, 8, 10, 12)]


def test_a_row_that_overflows_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss and its gradient are no numbers. A skipped step, or weights that are none, would say that it is there."""
    from dataclasses import replace

    from tauon.privacy import run as private_run

    rng, protect = np.random.default_rng(0), private_run.protect
    x = rng.normal(size=(80, 3)).astype(np.float32)
    x[5] = 3e38
    np.savez(tmp_path / "x.npz", x=x, y=rng.integers(0, 2, 80))

    class Nothing:
        """The row's data set to nothing."""

        def __init__(self, dataset: Any) -> None:
            self.dataset, self.spec = dataset, dataset.spec

        def __len__(self) -> int:
            return len(self.dataset)

        def batch(self, index: Any, *, epoch: int = 0) -> Any:
            found = self.dataset.batch(index, epoch=epoch)
            odd = (found.inputs.abs() > 1e30).any(1)
            return replace(found, inputs=found.inputs.masked_fill(odd[:, None], 0), weights=found.weights.masked_fill(odd, 0))

    weights = []
    for name in ("there", "nothing"):
        recipe = table_recipe(
            tmp_path, name=name, privacy=PRIVATE, train={"steps": 8, "validate_every": None, "batch": 40},
            data={"source": {"kind": "npz", "path": str(tmp_path / "x.npz")}, "normalize": "none", "split": {"validation": 0, "test": 0}},
        )  # fmt: skip
        if name == "nothing":
            monkeypatch.setattr(private_run, "protect", lambda *a: replace(found := protect(*a), dataset=Nothing(found.dataset)))
        done = run(load_recipe(recipe), root=tmp_path / "runs", stages=("prepare", "train"))
        checkpoint = load_checkpoint(done.checkpoints / "step-000008")
        assert checkpoint.state["health"]["skipped"] == 0
        weights.append(checkpoint.tensors("model"))
    for key, there in weights[0].items():
        assert torch.isfinite(there).all()
        torch.testing.assert_close(there, weights[1][key], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_skips_no_private_step(tmp_path: Path) -> None:
    """Whether one example's loss overflows must not decide whether the weights move."""
    from tauon.train.health import GradientHealth

    health = GradientHealth(None, 3)
    assert health.check(1, float("inf"), 1.0) is not None
    health.by_loss = False
    assert health.check(2, float("nan"), 1.0) is None and health.check(3, 1.0, float("inf")) is not None
    assert torch.isfinite(torch.tensor(health.mean))
