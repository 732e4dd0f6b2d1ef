"""Every command that README, documentation, help and recipe headers show runs, on the recipe that it names, at toy size.

What is shown is taken word for word; settings that make it small are put behind. Commands that need a cluster are run with --dry-run; each such
change has its reason in `CHANGED`. What takes seconds is marked slow.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from tauon.cli.main import cli
from tauon.recipe import load_recipe, shipped_recipes
from tauon.report.baselines import verdict_line
from tauon.report.text import escape
from test_docs import PAGES, ROOT, commands, leaf, name_of
from tones import tone, write_wav
from toy import Ended, Tauon, merged, table_recipe, words

pytestmark = pytest.mark.long

# ---------------------------------------------------------------------------------------------- what is shown


def from_help() -> Iterator[tuple[str, str]]:
    """Lines of help that begin with `tauon`."""

    def below(command: click.Command, path: list[str]) -> Iterator[list[str]]:
        yield path
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from below(found, [*path, name])

    for path in below(cli, []):
        text = CliRunner().invoke(cli, [*path, "--help"], prog_name="tauon").output
        for line in re.findall(r"^ +(tauon .*)$", text, re.MULTILINE):
            yield "tauon " + " ".join([*path, "--help"]), re.split(r" {2,}", line)[0]


def from_headers() -> Iterator[tuple[str, str]]:
    """Comments of recipes."""
    for path in shipped_recipes().values():
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                yield from ((f"recipes/{path.name}", c.rstrip(".")) for c in re.findall(r"tauon [a-z]+(?:(?! && |\. ).)*", line))


def plain(command: str) -> str:
    """Without its comment; what stands for something is what it stands for."""
    command = re.split(r"\s+# ?", command)[0].strip()
    command = command.replace(" [a.b=c ...]", "").replace(" ...", "").replace("runs/NAME", "RUN").replace("RECIPE-or-RUN", "RUN")
    meant = {
        "RECIPE": "quickstart",
        "RUN RUN": "runs/quickstart runs/longer",
        "DATASET": "mnist-private",
        "FILE-OR-FOLDER": "patients.csv",
        "FILE": "made.csv",
        "FOLDER": "made",
        "FORMAT": "huggingface",
        "DATA": "patients.csv",
        "SOURCE": "patients.csv",
    }
    if command.startswith("tauon quality"):  # runs/mine is private here, and its records are not shown
        command = command.replace("runs/mine", "runs/quickstart").replace("KEY=VALUE", "checks=[drift]")
    for word, what in meant.items():
        command = re.sub(rf"\b{word}\b", what, command)
    run = (
        "runs/patients"
        if "predict" in command
        else "runs/mine"
        if re.search(r"privacy|audit", command)
        else "runs/notes-lora"
        if "adapter" in command
        else "runs/quickstart"
    )
    return re.sub(r"\bRUN\b", "runs/killed" if "settle" in command else run, command)


SHOWN: dict[str, str] = {}
"""Command -> where it is shown first."""
for _where, _command in [*((name_of(p), c) for p in PAGES for c in commands(p)), *from_help(), *from_headers()]:
    if "VERB" not in _command:
        SHOWN.setdefault(plain(_command), _where)

NEEDS = {
    "recipe new --from patients.csv": "--label-from died",
    "data report patients.csv": "--label died",
    "recipe new --from calls/": "--label-from folder",
    "privacy epsilon": "--noise 1 --rate 0.01 --steps 10",
    "privacy spend": "--epsilon 0.1",
}
"""What a command that is shown without its options needs besides."""
CHANGED: list[tuple[str, str, str]] = [
    (r"--on (slurm|k8s)", "--dry-run", "there is no cluster"),
    (r"launch\.address=", "--dry-run", "there is no cluster"),
    (r"--on (local:8|ray:4)", "--dry-run", "more processes than small machines have cores"),
    (r"--shadows 16", "--shadows 2 --examples 20", "two reference models instead of 16"),
    (r"tauon audit", "--examples 20", "twenty examples instead of thousands"),
    (r"--lr-range", "--steps 10", "ten steps"),
]
"""(pattern, words put behind, why)."""
TOY: dict[str, list[str]] = {
    "quickstart": ["train.time=null", "train.steps=2", "train.batch=2", "data.source.limit=12", "data.tokenizer.vocab=300", "data.seq_len=64",
                   "model.width=16", "model.heads=2", "evaluate.samples=1", "evaluate.resamples=100", "train.validate_examples=4"],
    "wikitext2-gpt": ["train.tokens=null", "train.steps=2", "data.source.limit=20", "data.tokenizer.vocab=300", "model.width=16", "model.heads=2"],
    "instruct-lora": ["data.source.limit=40"], "instruct-lora-private": ["data.source.limit=200", "train.batch=8", "train.microbatch=4"],
    "prefer-dpo": ["data.source.limit=20"],
    "energy-forecast": ["data.source.limit=1200"],
    "traffic-signs": ["data.split.test=20%", "train.batch=8"],
    "speech-digits": ["data.source.limit=null", "train.batch=16"],  # the first recordings are all of one digit
    "breast-cancer": ["train.steps=2", "train.batch=64"],
    "shakespeare-char": ["model.width=16", "train.batch=2"], "shakespeare-char-long": ["model.width=24", "train.batch=2"],
}  # fmt: skip
"""Settings that make a shipped recipe small. Others: two steps on 200 rows."""
_FEW = ["train.epochs=null", "train.steps=3", "evaluate.resamples=100"]
_SMALL_GPT = ["model.width=16", "model.heads=2", "model.layers=1", "data.seq_len=32", "evaluate.samples=1"]
OWN_DATA: dict[str, list[str]] = {
    "tauon run patients.csv --label died": _FEW, "tauon run load.csv": _FEW, "tauon run notes/": [*_FEW, *_SMALL_GPT],
    "tauon run reviews.csv": _FEW, "tauon run chats.jsonl --model runs/base": _FEW, "tauon run images/": _FEW, "tauon run calls/": _FEW,
    "tauon run prefer.jsonl --model runs/base": _FEW,
}  # fmt: skip
"""One command from a file or a folder to a report with a baseline, and what makes it small: one for each of eight kinds of data."""
DOWNLOADS = {"cifar10-resnet50"}
"""Not in the mirror of real data."""


def small(recipe: str) -> list[str]:
    """Assignments that make a recipe, shipped or of the world below, small."""
    if recipe not in shipped_recipes():
        return []
    tree: dict[str, Any] = yaml.safe_load(shipped_recipes()[recipe].read_text())
    own = TOY.get(recipe, [])
    found = [*own, "evaluate.resamples=100"]
    source = tree["data"]["source"]
    if isinstance(source, dict) and source["kind"] == "public" and not any(a.startswith("data.source.limit") for a in own):
        found.append("data.source.limit=200")
    if not any(a.startswith("train.steps") for a in own):
        found += [f"train.{k}=null" for k in ("time", "epochs", "tokens") if k in tree["train"]] + ["train.steps=2"]
    if not any(a.startswith("train.batch") for a in own):
        found.append(f"train.batch={min(64, tree['train']['batch'])}")
    return found


# ---------------------------------------------------------------------------------------------- the folder that commands take for granted


def make_files(folder: Path) -> None:
    """The data that examples speak of."""
    image = pytest.importorskip("PIL.Image")
    for place, n in (("images", 40), ("GTSRB/Final_Training/Images", 60)):
        for i in range(n):
            path = folder / place / f"{i % 2:05d}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8)).save(path)
    for i in range(40):
        write_wav(folder / "calls" / ("yes", "no")[i % 2] / f"{i}.wav", tone(300 + 300 * (i % 2), 0.2, 8000, seed=i), 8000)
    rows = "".join(f"{20 + i * 7 % 60},{i * 5 % 11 / 10},{'yes' if i % 3 else 'no'}\n" for i in range(80))
    (folder / "patients.csv").write_text("age,dose,died\n" + rows)
    (folder / "keys.txt").write_text("a-key\n")
    hours = "".join(f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00,{np.sin(i / 4):.3f}\n" for i in range(600))
    (folder / "load.csv").write_text("date,load\n" + hours)
    (folder / "notes.jsonl").write_text("".join(f'{{"text": "{words(60, i).replace(chr(10), " ")}"}}\n' for i in range(40)))
    chats = "".join(f'{{"instruction": "{words(4, i).split(chr(10))[0]} ?", "output": "answer {i}"}}\n' for i in range(40))
    (folder / "chats.jsonl").write_text(chats)
    reviews = "".join(f"{words(6, i).replace(chr(10), ' ')} {('splendid', 'dreadful')[i % 2]},{('pos', 'neg')[i % 2]}\n" for i in range(80))
    (folder / "reviews.csv").write_text("text,sentiment\n" + reviews)
    pairs = ({"prompt": f"{i} ?", "chosen": "the heavy lepton " * (1 + i % 3), "rejected": "a neutrino " * (1 + i % 2)} for i in range(40))
    (folder / "prefer.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "notes").mkdir()
    for i in range(12):
        (folder / "notes" / f"{i}.md").write_text(words(80, i))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs and files that commands speak of."""
    from tauon.pipeline import run

    folder = tmp_path_factory.mktemp("world")
    make_files(folder)
    runs, quick = folder / "runs", small("quickstart")
    run(load_recipe("quickstart", quick), root=runs)
    for name in ("longer", "deeper", "first.1", "base"):
        shutil.copytree(runs / "quickstart", runs / name)
    for name in ("mine.yaml", "big.yaml"):
        tree = yaml.safe_load(load_yaml("quickstart", [] if name == "big.yaml" else quick))  # big.yaml is checked: at its own size
        (folder / name).write_text(yaml.safe_dump(merged(tree, {"name": name.removesuffix(".yaml") + "-recipe"}), sort_keys=False))
    answers = {
        "name": "answers", "data": {"source": {"kind": "chat", "path": str(folder / "chats.jsonl")}, "seq_len": 64}, "task": "instruction-tuning",
        "model": {"kind": "checkpoint", "from": str(runs / "quickstart")}, "optim": {"kind": "adamw", "lr": 1e-3}, "train": {"steps": 2, "batch": 2},
    }  # fmt: skip
    (folder / "answers.yaml").write_text(yaml.safe_dump(answers))
    run(load_recipe(folder / "answers.yaml"), root=runs, stages=("prepare", "train"))
    private = {"target_epsilon": 4, "delta": 1e-3, "budget": {"epsilon": 20, "delta": 1e-3}}
    mine = table_recipe(folder / "t", name="mine", train={"steps": 4, "validate_every": None}, privacy=private)
    run(load_recipe(mine), root=runs)
    for_prediction(folder)
    killed = load_recipe(mine, ["name=killed", "privacy.target_epsilon=2"])
    with pytest.raises(KeyboardInterrupt):
        run(killed, root=runs, stages=("prepare", "train"), on_event=stop_at(2))
    return folder


def for_prediction(folder: Path) -> None:
    """Runs whose models read the files of this folder."""
    from tauon.pipeline import run

    few = {"train": {"steps": 2, "batch": 4}, "evaluate": {"resamples": 100}, "optim": {"kind": "adamw", "lr": 1e-3}}
    recipes: dict[str, dict[str, Any]] = {
        "patients": {"data": {"source": {"kind": "csv", "path": str(folder / "patients.csv"), "label": "died"}}, "task": "classification",
                     "model": {"kind": "mlp", "hidden": [8]}},
        "photos": {"data": {"source": {"kind": "folder", "path": str(folder / "images")}}, "task": "classification",
                   "model": {"kind": "cnn", "channels": [8]}},
        "load": {"data": {"source": {"kind": "series", "path": str(folder / "load.csv")}}, "task": "forecasting", "model": "dlinear"},
    }  # fmt: skip
    for name, tree in recipes.items():
        path = folder / f"trained-{name}.yaml"  # `tauon recipe new` writes NAME.yaml
        path.write_text(yaml.safe_dump({"name": name} | tree | few))
        run(load_recipe(path), root=folder / "runs")
    cancer = ["data.split.folds=null", "data.split.test=20%", *small("breast-cancer")]
    run(load_recipe("breast-cancer", cancer), root=folder / "runs", stages=("prepare", "train"))
    make_compressed(folder / "runs" / "patients")


def make_compressed(folder: Path) -> None:
    """What `tauon compress` leaves, without a search: so few rows prove no promise."""
    from tauon.artifacts import RunFolder, write_json
    from tauon.compress import Int8WeightOnly, compress_model, save_compressed
    from tauon.models import from_record
    from tauon.stages.context import Context, null_callback
    from tauon.stages.load import load_model

    recipe = load_recipe(folder)
    checkpoint = Context(recipe, RunFolder.read(folder), null_callback).final_checkpoint
    model, _ = load_model(checkpoint, recipe)
    made = compress_model(model.float(), recipe.task, None, [Int8WeightOnly()], config=from_record(checkpoint.state["model"]))
    (folder / "compress").mkdir()
    save_compressed(folder / "compress" / "model", made)
    write_json(
        folder / "compress" / "compress.json", {"checkpoint": checkpoint.hash, "runtime": "eager", "points": [], "best": "int8 weights"}
    )


def load_yaml(name: str, assignments: list[str]) -> str:
    from tauon.recipe import to_yaml

    return to_yaml(load_recipe(name, assignments))


def stop_at(step: int) -> Any:
    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "step" and facts["step"] == step:
            raise KeyboardInterrupt

    return on_event


@pytest.fixture(scope="module")
def bases(world: Path, mirror: Path) -> Path:
    """The world with the trained models that fine-tuning recipes start from."""
    from tauon.pipeline import run

    with pytest.MonkeyPatch.context() as m:
        m.setenv("TAUON_DATA", str(mirror))
        m.chdir(world)
        for name in ("wikitext2-gpt", "instruct-lora"):
            run(load_recipe(name, small(name)), root=world / "runs", stages=("prepare", "train"))
    return world


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str]) -> Tauon:
    return Tauon(capsys)


def recipe_in(command: str) -> str | None:
    """The shipped recipe that a command works on."""
    return next((w for w in shlex.split(command) if w in shipped_recipes()), None)


def arguments(command: str) -> list[str]:
    """The words behind `tauon`: as shown, and what makes it small."""
    said = shlex.split(command)[1:]
    extra = [
        w
        for start, more in NEEDS.items()
        if " ".join(said) == start or (" ".join(said).startswith(start) and start.endswith("/"))
        for w in shlex.split(more)
    ]
    verb = leaf(list(said))[0]
    rest = leaf(list(said))[1]
    if any(p.required for p in verb.params) and not extra and not [w for w in rest if not w.startswith("-")]:
        return [*said, "--help"]  # a verb is mentioned, without what it works on
    if isinstance(verb, click.Group):
        return [*said, "--help"] if "--help" not in said else said
    parties = (["federate", "serve"], ["federate", "join"], ["federate", "spec"], ["federate", "merge"])
    if said[:2] in parties or said[1:3] in (["keys", "pin"], ["keys", "show"]):
        return [*said, "--help"]  # they need each other, and each other's files: tests/federated plays them
    options = {o for p in verb.params for o in p.opts}
    for pattern, more, _ in CHANGED:
        if re.search(pattern, command) and more.split()[0] in options - {*said}:
            extra += shlex.split(more)
    recipe = recipe_in(command)
    takes = {p.name for p in verb.params}
    if command in OWN_DATA:
        return [*said, *OWN_DATA[command]]
    if said[0] == "check":
        return [*said, *extra]  # at its own size: what rounding explains is measured, and too little of it in a model of 16 columns
    if recipe is not None and "assignments" in takes and said[:2] not in (["recipe", "show"], ["recipe", "check"]):
        given = {w.partition("=")[0] for w in said if "=" in w}
        extra += [a for a in small(recipe) if a.partition("=")[0] not in given or a.startswith("train.time")]
    return [*said, *extra]


def slow(command: str) -> bool:
    """Whether it takes seconds: other processes, data of the mirror, several trainings."""
    verb, named, words = shlex.split(command)[1], recipe_in(command), arguments(command.split(" > ")[0].split(" | ")[0])
    if "--help" in words or "--dry-run" in words:
        return False
    if verb == "check" or re.search(r"--on (local|ray)|--shadows|instruct-lora|prefer-dpo", command):
        return True
    if verb == "compress" or command.startswith("tauon explain runs/quickstart"):
        return True
    if command in OWN_DATA:
        return command in SLOW_DATA
    if verb in ("run", "train", "tune"):
        return command not in ("tauon run quickstart", "tauon run quickstart --json > progress.jsonl") and named != "traffic-signs"
    return False


SLOW_DATA = {"tauon run notes/", "tauon run chats.jsonl --model runs/base", "tauon run prefer.jsonl --model runs/base"}
CASES = [
    pytest.param(c, id=c, marks=[pytest.mark.slow, pytest.mark.timeout(600)] if slow(c) else []) for c in sorted(SHOWN)
]  # fmt: skip


@pytest.mark.parametrize("command", CASES)
def test_every_command_shown_runs(
    command: str, world: Path, tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    named = recipe_in(command)
    if (
        named is not None
        and named != "quickstart"
        and named != "breast-cancer"
        and shlex.split(command)[1] in ("run", "train", "tune", "check", "federate", "data")
    ):
        if named in DOWNLOADS:
            pytest.skip("its data is not in the mirror")
        if named != "traffic-signs":
            monkeypatch.setenv("TAUON_DATA", str(request.getfixturevalue("mirror")))
    if re.search("instruct-lora|prefer-dpo", command):
        request.getfixturevalue("bases")
    shutil.copytree(world, tmp_path / "world", symlinks=True)
    if "runs/killed" in command:  # a copy does not settle what its original reserved; one that was moved does
        shutil.rmtree(world / "runs/killed")
    monkeypatch.chdir(tmp_path / "world")
    ended = Ended(0, "", "")
    for part in command.split(" | "):
        shown, _, target = part.partition(" > ")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ended.out.encode())))
        if "notes-" in shown:
            tune_notes(tauon)
        if "merge notes-adapter" in shown:
            expect_success(tauon("export", "runs/notes-lora", "--to", "peft", "--out", "notes-adapter"))
        if "export/onnx" in shown:
            expect_success(tauon("export", "runs/patients", "--to", "onnx"))
        if shown in OWN_DATA:
            shutil.rmtree(Path("runs") / name_of_data(shown), ignore_errors=True)
        for name in re.findall(r"name=(\S+)", shown):  # the run that the world has already has other settings
            shutil.rmtree(Path("runs") / name, ignore_errors=True)
        ended = (
            served(arguments(shown))
            if shown.startswith("tauon serve ") and "--help" not in arguments(shown)
            else alone(arguments(shown))
            if "parameter-server" in shown
            else tauon(*arguments(shown))
        )
        if ended.code == 8 and "this machine has" in ended.err:
            continue  # fewer cores than the example asks for
        expect_success(ended)
        if shown in OWN_DATA:
            expect_baseline(Path("runs") / name_of_data(shown), ended)
        if target:
            Path(target).write_text(ended.out)


def served(arguments: list[str]) -> Ended:
    """A server, on a free port, until it has answered `/healthz`; then it is stopped as by Ctrl-C."""
    import signal
    import urllib.request

    words = [w for i, w in enumerate(arguments) if w != "--port" and (i == 0 or arguments[i - 1] != "--port")]
    process = subprocess.Popen(
        [sys.executable, "-m", "tauon", *words, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"on (http://\S+)", line)
    if found:
        url = found[1].replace("0.0.0.0", "127.0.0.1")
        with urllib.request.urlopen(f"{url}/healthz", timeout=60) as response:
            assert response.status == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, line + out, err)


def alone(words: list[str]) -> Ended:
    """In a process of its own: a Ray that is started here outlives the command in this process."""
    done = subprocess.run([sys.executable, "-c", "from tauon.cli import main; main()", *words], capture_output=True, text=True)
    return Ended(done.returncode, done.stdout, done.stderr)


def expect_success(ended: Ended) -> None:
    assert ended.code == 0, ended


def name_of_data(command: str) -> str:
    return Path(shlex.split(command)[2]).stem


def expect_baseline(folder: Path, ended: Ended) -> None:
    """The recipe lies there; a baseline was measured; the terminal and the report say how the model stands against it."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert Path(f"{folder.name}.yaml").is_file() and evaluation["baselines"]
    found = verdict_line(evaluation)
    assert found is not None and found[1] in ended.out
    assert f'<p class="status {found[0]}">{escape(found[1], 600)}</p>' in (folder / "report.html").read_text()


def test_eight_kinds_of_data_have_one_command_in_getting_started() -> None:
    shown = {plain(command) for command in commands(ROOT / "docs/getting-started.md")}
    assert len(OWN_DATA) == 8 and {*OWN_DATA} <= shown
    assert len(SLOW_DATA) < 4 and {*OWN_DATA} >= SLOW_DATA


def tune_notes(tauon: Tauon) -> None:
    """The recipe of docs/fine-tuning.md, whose run its commands go on with."""
    page = (ROOT / "docs" / "fine-tuning.md").read_text()
    (block,) = [b for b in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "name: notes-lora" in b]
    tree = yaml.safe_load(block)
    tree = merged(tree, {"data": {"source": {"path": "notes"}, "seq_len": 64}}) | {"train": {"steps": 2, "batch": 2}}
    Path("notes-lora.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    ended = tauon("train", "notes-lora.yaml")
    assert ended.code == 0, ended


def test_nothing_that_is_shown_is_left_out() -> None:
    """The patterns above would find nothing in a page that is written otherwise."""
    assert len(SHOWN) > 90
    places = set(SHOWN.values())
    assert {
        "README.md",
        "docs/launch.md",
        "tauon --help",
        "tauon recipe new --help",
        "recipes/prefer-dpo.yaml",
        "recipes/traffic-signs.yaml",
    } <= places
    assert all(re.search(pattern, "\n".join(SHOWN)) for pattern, _, _ in CHANGED)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_settings_in_headers_are_valid(name: str) -> None:
    head = [line for line in shipped_recipes()[name].read_text().splitlines() if line.startswith("#") and "tauon" not in line]
    for line in head:
        found = re.findall(r"[a-z]+(?:\.[a-z_]+)+=(?:\{(?:[^{}]|\{[^{}]*\})*\}|\S+)", line)
        if found:
            load_recipe(name, found)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - DOWNLOADS))
def test_two_processes_compute_on_every_shipped_recipe_what_one_does(
    name: str, bases: Path, mirror: Path, tauon: Tauon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAUON_DATA", str(mirror))
    monkeypatch.chdir(bases)
    more = ["data.source.path=GTSRB/Final_Training/Images"] if name == "traffic-signs" else []
    toy = [] if name == "quickstart" else small(name)
    ended = tauon("check", name, "--on", "local:2", *more, *toy)
    assert ended.code == 0 and "computes the same as one process" in ended.out, ended
    if name == "prefer-dpo":
        ended = tauon("check", name, "--on", "local:2", "parallel.tensor=2", *small(name))
        assert ended.code == 2 and "reads pairs of rows" in ended.err
