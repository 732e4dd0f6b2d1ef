"""Every registered kind of data keeps the contract (`tauon.testing.check_data_kind`). A new one joins by an example in the table below;
one of another package calls `check_data_kind` in a test of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tauon.config import dump, json_schema, parse, register, registered
from tauon.data import ChosenRows, DataConfig, DataKind, Fitted, Parts, Request, SourceConfig, data_kinds, prepare, problems_for
from tauon.errors import RecipeError
from tauon.testing import DataExample, check_data_kind, check_source
from tauon.types import Batch, DataSpec
from tones import tone, write_wav

HELD_OUT = {"validation": 0.2, "test": 0.2}
WORDS = ["good", "bad", "fine", "poor", "warm", "cold", "new", "old", "kind", "rude"]


def _documents(dataset: Any) -> list[bytes]:
    return [ids.tobytes() for ids in getattr(dataset, "tokens", dataset).shards.documents()]


def _text(tmp: Path) -> Iterator[DataExample]:
    for name, start in (("a", 0), ("b", 100)):
        (tmp / name).mkdir()
        for i in range(24):
            (tmp / name / f"{i}.txt").write_text(f"document {start + i} " * 12)
    data = {"source": {"kind": "text", "path": str(tmp / "a")}, "tokenizer": "bytes", "seq_len": 16, "split": HELD_OUT}
    changes = {"tokenizer": "chars", "seq_len": 12, "mask_documents": False, "overlap": 0.5, "dedup": {"threshold": 0.1, "shingle": 1}}
    (tmp / "c").mkdir()
    for i in range(24):
        (tmp / "c" / f"{i}.txt").write_text(f"part {i} of pair {i // 2}, which says the same as the other: {i // 2}")
    pairs = {"source": {"kind": "text", "path": str(tmp / "c")}, "tokenizer": "bytes", "seq_len": 16, "split": HELD_OUT}
    pairs |= {"decontaminate": {"action": "none"}}
    drop = {"decontaminate": {"action": "drop", "ngram": 1, "share": 0.05}}
    yield DataExample(pairs, {"kind": "text", "path": str(tmp / "b")}, drop, units=_documents)
    yield DataExample(data, {"kind": "text", "path": str(tmp / "b")}, changes, units=_documents)


def _npz(tmp: Path, name: str, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    np.savez(tmp / f"{name}.npz", x=x, y=y)
    return {"kind": "npz", "path": str(tmp / f"{name}.npz"), "features": "x", "targets": "y"}


def _arrays(tmp: Path) -> Iterator[DataExample]:
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], [30, 20, 10])
    pictures = [_npz(tmp, name, rng.integers(0, 256, (60, 1, 16, 16)).astype(np.uint8), classes) for name in "ab"]
    changes = {
        "normalize": "standard", "augment": [{"kind": "flip"}], "scattering": {}, "mix": {"mixup": 0.2}, "sampling": "balanced",
        "class_weights": "balanced", "label_order": ["2", "0", "1"],
    }  # fmt: skip
    yield DataExample({"source": pictures[0], "split": HELD_OUT}, pictures[1], changes)
    twice = rng.integers(0, 256, (60, 1, 16, 16)).astype(np.uint8)[np.arange(60) // 2]
    copied = _npz(tmp, "twice", twice, classes)
    yield DataExample({"source": copied, "split": HELD_OUT}, pictures[1], {"decontaminate": {"action": "drop"}})
    yield DataExample({"source": pictures[0], "split": HELD_OUT, "sampling": "balanced", "augment": [{"kind": "shift"}]}, pictures[1], {})
    rows = [_npz(tmp, name, rng.normal(size=(60, 3)), rng.normal(10, 5, 60)) for name in "cd"]
    changes = {"bounds": {"bounds": {"*": [-3, 3], "y0": [-20, 40]}, "normalize": "bounds"}, "normalize_targets": "none"}
    yield DataExample({"source": rows[0], "split": HELD_OUT}, rows[1], changes, scale_targets=True)


def _csv(path: Path, lines: list[str]) -> dict[str, Any]:
    path.write_text("\n".join(lines))
    return {"kind": "csv", "path": str(path), "label": "y"}


def _tables(tmp: Path) -> Iterator[DataExample]:
    numbers = [_csv(tmp / f"{k}.csv", ["a,b,y", *(f"{i * k},{i * i},{'pqr'[i % 3]}" for i in range(60))]) for k in (1, 3)]
    changes: dict[str, Any] = {
        "normalize": "robust", "augment": [{"kind": "noise"}], "mix": {"mixup": 0.2}, "sampling": "balanced", "class_weights": "balanced",
        "label_order": ["r", "p", "q"],
    }  # fmt: skip
    yield DataExample({"source": numbers[0], "split": HELD_OUT}, numbers[1], changes)
    mixed = [_csv(tmp / f"m{k}.csv", ["a,town,y", *(f"{i * k},{'ABC'[i % 3]},{i * 2.5}" for i in range(60))]) for k in (1, 3)]
    changes = {
        "bounds": {"bounds": {"a": [0, 200], "y": [0, 300]}, "normalize": "bounds"}, "normalize_targets": "none", "table": {"categories": "onehot"},
    }  # fmt: skip
    yield DataExample({"source": mixed[0], "split": HELD_OUT, "table": {"categories": "codes"}}, mixed[1], changes, scale_targets=True)


def _series(tmp: Path) -> Iterator[DataExample]:
    rng, sources = np.random.default_rng(0), []
    for name in "ab":
        values = rng.normal(size=(200, 2))
        rows = [f"2020-01-01 {i // 60:02d}:{i % 60:02d}:00,{a:.3f},{b:.3f}" for i, (a, b) in enumerate(values)]
        (tmp / f"{name}.csv").write_text("date,a,b\n" + "\n".join(rows))
        sources.append({"kind": "series", "path": str(tmp / f"{name}.csv")})
    data = {"source": sources[0], "split": HELD_OUT, "window": {"context": 16, "horizon": 4}, "augment": [{"kind": "scaling"}]}
    changes = {"normalize": "robust", "augment": [{"kind": "jitter"}], "window": {"context": 12, "horizon": 4}}
    yield DataExample(data, sources[1], changes)


def _signals(tmp: Path) -> Iterator[DataExample]:
    for folder, base in (("a", 300), ("b", 500)):
        for i in range(40):
            write_wav(tmp / folder / f"{'xy'[i % 2]}_{i}.wav", tone(base + 10 * i, 0.02, 8000), 8000)
    sources = [{"kind": "wav", "path": str(tmp / f), "pattern": "{label}_{take}"} for f in "ab"]
    changes = {"augment": [{"kind": "gain"}], "signal": {"target": "transcript"}}
    yield DataExample({"source": sources[0], "split": HELD_OUT, "augment": [{"kind": "speed"}]}, sources[1], changes)


DROP = {"action": "drop", "ngram": 2, "share": 0.6}


def _labelled(tmp: Path) -> Iterator[DataExample]:
    rng, sources = np.random.default_rng(0), []
    for name in "ab":
        rows = [f"{' '.join(rng.choice(WORDS, 6))} {i},{'np'[i % 2]}" for i in range(60)]
        (tmp / f"{name}.csv").write_text("t,y\n" + "\n".join(rows))
        sources.append({"kind": "csv", "path": str(tmp / f"{name}.csv"), "label": "y", "text": "t"})
    data = {"source": sources[0], "split": HELD_OUT, "tokenizer": "bytes", "seq_len": 32, "augment": [{"kind": "drop-tokens"}]}
    yield DataExample(data, sources[1], {"tokenizer": "chars", "seq_len": 24, "augment": [{"kind": "mask-tokens"}], "decontaminate": DROP})


MARKERS = {"roles": {"user": {"before": "Q: ", "after": "\n"}, "assistant": {"before": "A: ", "after": "{end}"}}}


def _chat(tmp: Path) -> Iterator[DataExample]:
    for name, verb in (("a", "Count"), ("b", "Run")):
        rows = [{"instruction": f"{verb} to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 50)]
        (tmp / f"{name}.json").write_text(json.dumps(rows))
    sources = [{"kind": "chat", "path": str(tmp / f"{name}.json")} for name in "ab"]
    data = {"source": sources[0], "split": HELD_OUT, "tokenizer": "bytes", "seq_len": 200}
    yield DataExample(
        data,
        sources[1],
        {"tokenizer": "chars", "seq_len": 220, "chat": MARKERS, "decontaminate": {"action": "drop", "ngram": 3, "share": 0.1}},
    )


def _pairs(tmp: Path) -> Iterator[DataExample]:
    for name, mark in (("a", "?"), ("b", "!")):
        rows = [json.dumps({"prompt": f"{i}{mark}", "chosen": f"{i}.", "rejected": f"{i + 1} or so"}) for i in range(40)]
        (tmp / f"{name}.jsonl").write_text("\n".join(rows))
    sources = [{"kind": "pairs", "path": str(tmp / f"{name}.jsonl")} for name in "ab"]
    data = {"source": sources[0], "split": HELD_OUT, "tokenizer": "bytes", "seq_len": 128}
    yield DataExample(
        data,
        sources[1],
        {"tokenizer": "chars", "seq_len": 160, "chat": MARKERS, "decontaminate": {"action": "drop", "ngram": 1, "share": 0.2}},
    )


EXAMPLES: dict[str, Callable[[Path], Iterator[DataExample]]] = {
    "tokens": _text, "masked-tokens": _text, "arrays": _arrays, "table": _tables, "series": _series, "signals": _signals,
    "labelled-text": _labelled, "chat": _chat, "pairs": _pairs,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", sorted(registered("data_kind")))
def test_data_kind_contract(name: str, tmp_path: Path) -> None:
    assert name in EXAMPLES, f"data kind {name!r} has no example: add a function that yields a DataExample to EXAMPLES in {__file__}"
    here = tmp_path / "here"
    here.mkdir()
    check_data_kind(data_kinds()[name], *EXAMPLES[name](here))


# ---------------------------------------------------------------------------------------------- a kind that no file of Tauon knows


class Walks(SourceConfig):
    """Random walks of n steps, with the side on which each ends."""

    provides: ClassVar[str] = "walks"
    seed: int = 0
    n: int = 40

    def walks(self) -> list[list[int]]:
        rng = np.random.default_rng(self.seed)
        return [rng.choice([-1, 1], 9).tolist() for _ in range(self.n)]

    def hash_content(self, digest: Any) -> None:
        digest.update(repr(self.walks()).encode())


class WalkDataset:
    def __init__(self, walks: list[list[int]], scale: float) -> None:
        self.walks, self.scale = walks, scale
        self.spec = DataSpec(input_shape=(9,), outputs=2, labels=("left", "right"))
        self.facts: dict[str, Any] = {"walks": len(walks)}

    def __len__(self) -> int:
        return len(self.walks)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        x = torch.tensor([self.walks[i] for i in index], dtype=torch.float32).cumsum(1) / self.scale
        return Batch(x, (x[:, -1] > 0).long(), torch.ones(len(x)), None, torch.from_numpy(np.array(index)))


class WalksKind(DataKind[list[list[int]]]):
    """Walks, scaled by the longest way of the training part."""

    input_kind, output_kind, words = "walks", "walks", "random walks"
    reads = ("seq_len",)

    def read(self, source: SourceConfig, part: str, request: Request) -> list[list[int]]:
        assert isinstance(source, Walks)
        return source.walks()[: source.limit]

    def strata(self, data: list[list[int]]) -> np.ndarray:
        return np.array([int(sum(walk) > 0) for walk in data])

    def fit(self, parts: Parts[list[list[int]]], request: Request) -> Fitted:
        scale = float(request.config.seq_len or max(max(np.abs(np.cumsum(walk))) for walk in self.chosen(parts["train"])))
        datasets = {part: self.dataset(self.chosen(rows), scale) for part, rows in parts.items()}
        content = "".join(request.sources[p].fingerprint() for p in request.sources) + str({p: r.index.tolist() for p, r in parts.items()})
        return Fitted({**datasets}, content, [scale, request.seed], {"kind": "walks", "scale": scale})

    def chosen(self, rows: ChosenRows[list[list[int]]]) -> list[list[int]]:
        return [rows.data[i] for i in rows.index]

    def dataset(self, walks: list[list[int]], scale: float) -> WalkDataset:
        return WalkDataset(walks, scale)


WALKS = DataExample({"source": {"kind": "walks"}, "split": HELD_OUT}, {"kind": "walks", "seed": 1}, {"seq_len": 3})


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> type[DataKind[Any]]:
    """Both registered, for one test."""
    for base, member in ((SourceConfig, Walks), (DataKind, WalksKind)):
        monkeypatch.setattr(base, "_members", dict(base._members))
        register("walks")(member)
    return WalksKind


def test_a_kind_that_no_file_knows_is_prepared_checked_and_keeps_the_contract(walks: type[DataKind[Any]]) -> None:
    check_data_kind(walks, WALKS)
    check_source(parse(SourceConfig, {"kind": "walks"}))
    splits = prepare(parse(DataConfig, WALKS.data), seed=0, input_kind="walks")
    assert splits.facts["kind"] == "walks" and splits.facts["sources"]["train"]["kind"] == "walks"
    assert (len(splits.train), splits.facts["split"]["stratified"]) == (24, True)


def test_its_source_is_refused_by_other_tasks_in_its_own_words(walks: type[DataKind[Any]]) -> None:
    config = parse(DataConfig, {"source": {"kind": "walks"}})
    assert dict(problems_for(config, "arrays")) == {
        "source": "'walks' provides random walks, but the task needs features and targets; choose another source or another task"
    }
    other = parse(DataConfig, {"source": {"kind": "python-stdlib"}, "normalize": "standard"})
    assert dict(problems_for(other, "walks")) == {
        "source": "'python-stdlib' provides text, but the task needs random walks; choose another source or another task",
        "normalize": "is only for arrays and series, but the task needs walks; remove it",
    }


def test_a_kind_that_is_not_installed_is_an_error_that_names_the_nearest() -> None:
    config = parse(DataConfig, {"source": {"kind": "python-stdlib"}})
    with pytest.raises(
        RecipeError, match=r"needs 'signal', and no installed kind of data is that; did you mean 'signals'.*Available: tokens, arrays"
    ):
        prepare(config, seed=0, input_kind="signal")
    with pytest.raises(RecipeError, match=r"needs 'zzz', and no installed kind of data is that\. Available: tokens, arrays, series"):
        prepare(config, seed=0, input_kind="zzz")


def test_kinds_of_data_are_no_part_of_a_recipe() -> None:
    assert not [name for name in json_schema(DataConfig)["$defs"] if "data_kind" in name]


def test_the_section_is_flat_and_has_every_key_that_a_kind_reads() -> None:
    keys = {key for kind in data_kinds().values() for key in kind.reads}
    assert keys <= set(dump(parse(DataConfig, {"source": {"kind": "python-stdlib"}})))


def test_what_a_source_does_to_each_example_is_kept_for_predicting(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    for i in range(30):
        (tmp_path / "signs" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        image.new("L", (9 + i % 3, 8), 8 * i).save(tmp_path / "signs" / "ab"[i % 2] / f"{i}.png")
    pictures = {"kind": "folder", "path": str(tmp_path / "signs"), "size": 8, "fit": "pad"}
    kept = prepare(parse(DataConfig, {"source": pictures}), seed=0, input_kind="arrays").preprocess
    assert (kept["source"], kept["input_shape"]) == ({"fit": "pad"}, [1, 8, 8])
    kept = prepare(parse(DataConfig, {"source": pictures, "scattering": {}}), seed=0, input_kind="arrays").preprocess
    assert (kept["picture_shape"], kept["input_shape"]) == ([1, 8, 8], [81, 2, 2])
    (labelled, *_) = _labelled(tmp_path)
    kept = prepare(parse(DataConfig, labelled.data), seed=0, input_kind="labelled-text").preprocess
    assert kept["source"] == {"text": ["t"]}
    (tmp_path / "texts").mkdir()
    (text, *_) = _text(tmp_path / "texts")
    assert prepare(parse(DataConfig, text.data), seed=0, input_kind="masked-tokens").preprocess["seq_len"] == 16


# ---------------------------------------------------------------------------------------------- what the contract finds


class Overlapping(WalksKind):
    def split(self, whole: Mapping[Any, Any], request: Request) -> Any:
        parts, facts = super().split(whole, request)
        return parts | {"test": parts["validation"]}, facts


class Forgetful(WalksKind):
    def split(self, whole: Mapping[Any, Any], request: Request) -> Any:
        parts, facts = super().split(whole, request)
        return parts | {"train": ChosenRows(parts["train"].data, parts["train"].index[1:])}, facts


class Boastful(WalksKind):
    reads = ("seq_len", "overlap")


class Silent(WalksKind):
    reads = ()


class Sociable(WalksKind):
    """Scales each batch by what is in it."""

    def dataset(self, walks: list[list[int]], scale: float) -> WalkDataset:
        made = super().dataset(walks, scale)
        batch = made.batch
        made.batch = lambda index, epoch=0: (
            batch(index)
            if len(index) < 2
            else Batch(batch(index).inputs / 2, batch(index).targets, batch(index).weights, None, batch(index).index)
        )  # type: ignore[method-assign]
        return made


class Restless(WalksKind):
    """Changes examples in every epoch, and cannot leave that."""

    def dataset(self, walks: list[list[int]], scale: float) -> WalkDataset:
        made = super().dataset(walks, scale)
        batch = made.batch
        made.batch = lambda index, epoch=0: replace(batch(index), inputs=batch(index).inputs + epoch)  # type: ignore[method-assign]
        return made


class Secretive(WalksKind):
    def fit(self, parts: Any, request: Request) -> Fitted:
        made = super().fit(parts, request)
        made.preprocess = {"kind": "walks", "scale": np.float32(1)}
        return made


class Timeless(WalksKind):
    def fit(self, parts: Any, request: Request) -> Fitted:
        made = super().fit(parts, request)
        made.content = "always the same"
        return made


@pytest.mark.parametrize(
    ("kind", "example", "said"),
    [
        (Overlapping, WALKS, "in two parts"),
        (Forgetful, WALKS, "do not cover"),
        (Boastful, WALKS, r"says that it reads \['overlap'\]: give an example"),
        (
            Boastful,
            replace(WALKS, changes={"seq_len": 3, "overlap": 0.5}),
            "says that it reads overlap, which does not change the fingerprint",
        ),
        (Silent, WALKS, r"does not say that it reads \['seq_len'\]"),
        (Sociable, WALKS, "depends on what else is in its batch"),
        (Restless, WALKS, "inputs change from epoch to epoch though nothing is augmented"),
        (Secretive, WALKS, "not JSON serializable"),
        (Timeless, WALKS, "the same fingerprint"),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_a_broken_promise_is_found(
    walks: type[DataKind[Any]], kind: type[DataKind[Any]], example: DataExample, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DataKind._members, "walks", kind)
    monkeypatch.setattr(kind, "kind_", "walks")
    with pytest.raises((AssertionError, TypeError), match=said):
        check_data_kind(kind, example)
