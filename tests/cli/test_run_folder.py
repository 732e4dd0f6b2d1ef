"""The folder that a verb is given is the run: set aside by --fresh, copied, renamed, linked, of folds. No other folder is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tauon.artifacts import find_checkpoint
from tauon.recipe import load_recipe
from toy import Tauon, contents, table_recipe, text_recipe

FOLDERS = ("toy.1", "copy", "my run (copy)", "linked")
"""Set aside by --fresh; copied; copied under a name that no recipe can have; a link to a renamed one."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/`: seed 0 set aside as toy.1, seed 1 as toy, and copies of the first."""
    from tauon.pipeline import run

    folder = tmp_path_factory.mktemp("folders")
    recipe = text_recipe(folder)
    for seed in (0, 1):
        run(load_recipe(recipe, [f"seed={seed}"]), root=folder / "runs", fresh=seed > 0)
    for name in ("copy", "my run (copy)", "renamed"):
        shutil.copytree(folder / "runs" / "toy.1", folder / "runs" / name)
    (folder / "runs" / "linked").symlink_to("renamed")
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str]) -> Tauon:
    return Tauon(capsys)


def others(given: Path) -> Iterator[Path]:
    return (p for p in Path("runs").iterdir() if p.is_dir() and p.resolve() != given.resolve())


def undo(folder: Path, record: str, stage: str) -> None:
    """As if the stage had not been done."""
    path = folder / record
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    stages = json.loads((folder / "stages.json").read_text())
    del stages[stage]
    (folder / "stages.json").write_text(json.dumps(stages))


def seed_of(folder: Path) -> int:
    return load_recipe(folder).seed


VERBS = [
    ("run", "evaluation.json"),
    ("train", "checkpoints/step-000012"),
    ("evaluate", "evaluation.json"),
    ("report", "report.html"),
    ("tune --lr-range --steps 10", ""),
    ("run --dry-run", ""),
    ("recipe show", ""),
    ("recipe check", ""),
    ("generate -n 3", ""),
    ("audit --examples 10", ""),
    ("export --to huggingface --out out", ""),
    ("runs compare runs/toy", ""),
    ("privacy ledger", ""),
]
"""Each verb that takes a run, and the record that is removed first, so that it has something to do."""


@pytest.mark.parametrize(
    ("name", "verb", "removed"),
    [(FOLDERS[2], *v) for v in VERBS] + [(f, *v) for f in FOLDERS if f != FOLDERS[2] for v in VERBS if v[0] in ("evaluate", "report")],
)
def test_every_verb_takes_the_folder_that_it_is_given(tauon: Tauon, place: Path, name: str, verb: str, removed: str) -> None:
    given = Path("runs") / name
    if removed:
        undo(given, removed, {"evaluation.json": "evaluate", "report.html": "report"}.get(removed, "train"))
    before = {p: contents(p) for p in others(given)}
    ended = tauon(*verb.split(), given)
    refused = {"export": "relu2", "privacy": "without privacy"}.get(verb.split()[0])
    assert ended.code == 0 or (refused and refused in ended.err), ended
    assert {p: contents(p) for p in others(given)} == before
    assert seed_of(given) == 0 and (given / removed).exists()
    made = {p.name for p in place.iterdir()} | {p.name for p in Path("runs").iterdir()}
    page = {f"{given.resolve().name}.lr-range.html"} if verb.startswith("tune") else set()
    assert made - {"runs", *FOLDERS, "toy", "renamed", "out"} == page


@pytest.mark.parametrize("name", FOLDERS[1:3])
def test_what_is_done_is_not_done_again_in_another_folder(tauon: Tauon, place: Path, name: str) -> None:
    ended = tauon("run", Path("runs") / name)
    assert ended.code == 0 and ended.out.count("done before") == 4
    given = find_checkpoint(Path("runs") / name).hash
    assert given == find_checkpoint(place / "runs" / "toy.1").hash != find_checkpoint(place / "runs" / "toy").hash


@pytest.mark.parametrize("name", FOLDERS[:2])
def test_another_setting_of_a_given_folder_overwrites_nothing(tauon: Tauon, place: Path, name: str) -> None:
    before = {p: contents(p) for p in Path("runs").iterdir()}
    ended = tauon("run", Path("runs") / name, "train.steps=13")
    assert ended.code == 5 and "holds the training of another recipe" in ended.err
    assert {p: contents(p) for p in Path("runs").iterdir()} == before
    assert tauon("train", Path("runs") / name, "train.steps=4", "name=other").code == 0
    assert {p: contents(p) for p in Path("runs").iterdir() if p.name != "other"} == before
    assert seed_of(Path("runs/other")) == 0


@pytest.mark.parametrize("name", FOLDERS[2:])
def test_a_given_folder_goes_on_and_starts_over_in_its_place(tauon: Tauon, place: Path, name: str) -> None:
    given = Path("runs") / name
    whole = find_checkpoint(given)
    undo(given, "checkpoints/step-000012", "train")
    before = {p: contents(p) for p in others(given)}
    ended = tauon("train", given)
    assert ended.code == 0 and "resuming at step 8" in ended.out and find_checkpoint(given).hash == whole.hash
    real = given.resolve()
    ended = tauon("train", given, "--fresh")
    assert ended.code == 0 and f"{real.name}.1" in ended.out.replace("\n", "")
    assert {p: contents(p) for p in others(given) if p.name not in (f"{real.name}.1", "toy.1.1")} == before


@pytest.mark.parametrize("name", ["copy", "toy.1"])
def test_a_given_folder_can_be_trained_by_several_processes(tauon: Tauon, place: Path, name: str) -> None:
    before = {p: contents(p) for p in others(Path("runs") / name)}
    shown = tauon("train", Path("runs") / name, "--on", "slurm:2", "--dry-run").out
    assert f"runs/{name}/logs" in shown and "runs/toy/" not in shown
    assert {p: contents(p) for p in others(Path("runs") / name)} == before
    ended = tauon("train", "runs/my run (copy)", "--on", "local:2")
    assert ended.code == 2 and "Rename the folder" in ended.err


def test_a_copied_run_of_folds_keeps_to_itself(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = table_recipe(tmp_path, data={"split": {"folds": 2, "validation": 0}}, train={"validate_every": None, "steps": 4})
    assert tauon("run", recipe).code == 0
    shutil.copytree("runs/table", "runs/copy")
    before = contents(Path("runs/table"))
    for verb in ("run", "evaluate", "report"):
        assert tauon(verb, "runs/copy").code == 0
        assert tauon(verb, "runs/copy/fold-1").code == 0
    assert contents(Path("runs/table")) == before and {p.name for p in Path("runs").iterdir()} == {"table", "copy"}


def test_the_cost_of_privacy_is_that_of_the_folder_given(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    private = {"target_epsilon": 8, "delta": 1e-3}
    assert tauon("run", table_recipe(tmp_path, privacy=private, train={"steps": 4, "validate_every": None})).code == 0
    for name in ("copy", "my run (copy)"):
        shutil.copytree("runs/table", f"runs/{name}")
        before = {p: contents(p) for p in others(Path("runs") / name)}
        assert tauon("privacy", "cost", f"runs/{name}").code == 0
        assert {p: contents(p) for p in others(Path("runs") / name)} == before
        assert "accuracy" in json.loads(Path(f"runs/{name}/privacy_cost.json").read_text())


def test_what_was_never_trained_says_how_to(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = text_recipe(tmp_path / "my recipes")
    ended = tauon("evaluate", recipe, "--root", "my runs")
    assert ended.code == 5
    said = ended.err.split("Train it first: ")[1].strip()
    assert said == f"tauon train '{recipe}' --root 'my runs'"


def test_a_folder_of_a_newer_format_says_which_version_reads_it(tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = text_recipe(tmp_path)
    assert tauon("train", recipe, "--quiet").code == 0
    manifest = tmp_path / "runs/toy/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99, "tauon": "7.1.0"}))
    for verb in (("train", recipe), ("evaluate", recipe), ("generate", tmp_path / "runs/toy"), ("audit", tmp_path / "runs/toy")):
        ended = tauon(*verb)
        assert ended.code == 5 and "written by Tauon 7.1.0 in format 99" in ended.err and "reads formats up to 1" in ended.err, ended
    assert tauon("runs", "list").code == 0
