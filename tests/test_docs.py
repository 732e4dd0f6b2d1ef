"""What README and docs say is so: links lead somewhere, recipes parse, commands exist, snippets run, the reference is up to date,
both READMEs have the same parts. Quotations of source files are checked by the build (`make docs`).
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import tauon
from tauon.cli.main import cli, verbs
from tauon.config import Config, parse, read_yaml, registered
from tauon.data import DataConfig, SourceConfig
from tauon.errors import RecipeError
from tauon.launch import choose
from tauon.recipe import Recipe, load_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)])
MODULES = sorted(m.name for m in pkgutil.walk_packages(tauon.__path__, "tauon."))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks and code."""
    return re.sub(r"`[^`\n]*`", lambda m: "x" * len(m[0]), FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """What `#...` may point to: headings, as GitHub and MyST spell them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).replace("`", "")).strip().lower().replace(" ", "-")
        for h in heads
    }


def block_cases(*languages: str) -> list[Any]:
    return [pytest.param(p, b, id=f"{name_of(p)}-{i}") for p in PAGES for i, b in enumerate(blocks(p, *languages))]


# ---------------------------------------------------------------------------------------------- links, pictures, pages


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_is_seen(page: Path) -> None:
    """Else the tests below would look at the text between the blocks."""
    text = page.read_text()
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert file.is_relative_to(ROOT), f"{target} leaves the project"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}: no such heading"


@pytest.mark.parametrize("page", [p for p in PAGES if p.is_relative_to(ROOT / "docs")], ids=name_of)
def test_every_page_is_in_a_table_of_contents(page: Path) -> None:
    name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
    trees = "\n".join("\n".join(blocks(ROOT / "docs" / p, "{toctree}")) for p in ("index.md", "decisions/index.md"))
    numbered = re.fullmatch(r"decisions/\d{3}-[\w-]+", name)
    assert name == "index" or numbered or name in trees.splitlines()


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 150_000, picture


def test_decisions_are_numbered_without_gaps_and_short() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [p.name[:3] for p in pages] == [f"{i + 1:03d}" for i in range(len(pages))]
    for p in pages:
        text = p.read_text()
        assert text.startswith(f"# {p.name[:3]} ")
        assert len(text.splitlines()) <= 20, f"{p.name} is longer than a decision needs"


def test_both_readmes_have_the_same_parts() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"

    def parts(page: Path) -> dict[str, Any]:
        text = page.read_text()
        links = [t for t in LINK.findall(text) if t not in ("README.md", "README.zh-CN.md")]
        return {
            "levels of headings": [len(h) for h in re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)],
            "recipes and commands": [
                (lang, [re.sub(r"\s+#.*", "", line) for line in body.splitlines()]) for lang, body in FENCE.findall(text)
            ],
            "links": sorted(links),
            "rows of tables": len(re.findall(r"^\|", text, re.MULTILINE)),
            "items": len(re.findall(r"^- ", text, re.MULTILINE)),
            "comments": re.findall(r"<!--.*?-->", text),
        }

    a, b = parts(english), parts(chinese)
    for what in a:
        assert a[what] == b[what], what
    assert len(re.findall(r"[\u4e00-\u9fff]", chinese.read_text())) > 800


# ---------------------------------------------------------------------------------------------- recipes


BASES = [
    {"name": "shown", "data": {"source": "python-stdlib"}, "task": "language-modelling", "model": "gpt", "train": {"steps": 1}},
    {
        "name": "shown",
        "data": {"source": {"kind": "sklearn", "name": "iris"}},
        "task": "classification",
        "model": "mlp",
        "train": {"steps": 1},
    },
]
"""What a shown part of a recipe is put into."""


@pytest.mark.parametrize(("page", "block"), block_cases("yaml"))
def test_recipes_shown_are_valid(page: Path, block: str) -> None:
    data = read_yaml(block)
    if set(data) <= set(DataConfig.model_fields):
        parse(DataConfig, data)
        return
    assert set(data) <= set(Recipe.model_fields), "neither a recipe, nor a part of one, nor a data section"
    wrong = []
    for base in BASES:
        try:
            parse(Recipe, base | data)
            return
        except RecipeError as err:
            wrong.append(str(err))
    pytest.fail("\n".join(wrong))


@pytest.mark.parametrize("family", ["model", "optim", "schedule", "task", "source", "tokenizer", "augment", "tracker"])
def test_every_part_that_comes_along_is_in_the_reference(family: str) -> None:
    text = (ROOT / "docs" / "reference" / "recipe.md").read_text()
    ours = [k for k, m in registered(family).items() if m.__module__.startswith("tauon.")]
    assert ours
    assert [k for k in ours if f"#### {family}: `{k}`" not in text] == []


@pytest.mark.parametrize(("page", "family"), [("models", "model"), ("optimizers", "optim"), ("optimizers", "schedule")])
def test_every_part_that_comes_along_is_on_its_page(page: str, family: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert [k for k, m in registered(family).items() if m.__module__.startswith("tauon.") and f"| `{k}` |" not in text] == []


def test_usual_learning_rates_are_as_the_page_says() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", (ROOT / "docs" / "optimizers.md").read_text(), re.MULTILINE))
    ours: dict[str, Any] = {k: m for k, m in registered("optim").items() if m.__module__.startswith("tauon.")}
    assert {k: float(v) for k, v in rows.items()} == {k: m.default_lr for k, m in ours.items()}


@pytest.mark.parametrize("family", ["source", "tokenizer", "augment"])
def test_every_part_of_data_that_comes_along_is_on_its_page(family: str) -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    assert [k for k, m in registered(family).items() if m.__module__.startswith("tauon.") and f"`{k}`" not in text] == []


def test_every_kind_of_data_is_explained() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    input_kind = {n for m in registered("task").values() for n in [getattr(m, "input_kind", "")]} - {"tokens", "masked-tokens"}
    assert [n for n in sorted(input_kind | {"text"}) if f"**{n}**" not in text] == []


def test_every_section_and_family_is_on_the_page_of_recipes() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    rows = {k for row in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE) for k in re.findall(r"`(\w+)`", row)}
    assert set(Recipe.model_fields) <= rows
    kinds = page.split("## Kinds")[1].split("##")[0]
    assert [f for f in reference().FAMILIES if f"`{'track' if f == 'tracker' else f}`" not in kinds and f not in ("codec", "outer")] == []


def test_rooms_and_their_levels_are_those_that_the_test_of_layers_knows() -> None:
    from test_layers import LEVELS, SRC

    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = {
        room: int(level)
        for level, rooms in re.findall(r"^\| (\d+) \| ([^|]*) \|", text, re.MULTILINE)
        for room in re.findall(r"`(\w+)`", rooms)
    }
    there = {p.name.removesuffix(".py") for p in SRC.iterdir() if not p.name.startswith(("_", ".")) and (p.suffix == ".py" or p.is_dir())}
    assert rows == {room: LEVELS[room] for room in there}
    planned = text.split("### Planned")[1].split("##")[0]
    assert set(re.findall(r"`(\w+)`", planned)) == set(LEVELS) - there - {"__main__", "__init__"}


def test_both_readmes_name_the_same_code_and_every_extra() -> None:
    import tomllib

    english, chinese = ((ROOT / page).read_text() for page in ("README.md", "README.zh-CN.md"))
    codes = [sorted(re.findall(r"`([^`\n]+)`", FENCE.sub("", text))) for text in (english, chinese)]
    assert codes[0] == codes[1]
    numbers = [
        [sorted(re.findall(r"\d+\.\d+|\d+%", row)) for row in text.splitlines() if row.startswith("| `")] for text in (english, chinese)
    ]
    assert numbers[0] == numbers[1]
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]) - {"docs", "bench", "dev"}
    assert {e for e in extras if f"`{e}`" not in english} == set()


def test_defaults_in_the_reference_are_those_of_the_classes() -> None:
    """Read back as YAML, each default that is shown builds what the class has by itself."""
    generator = reference()
    for family in generator.FAMILIES:
        for member in registered(family).values():
            for name, info in member.model_fields.items():
                shown = generator.show_default(member, name)
                value = None if info.is_required() else info.get_default(call_default_factory=True)
                if not shown.startswith("`") or isinstance(value, (str, bool)):
                    continue
                read = read_yaml(shown.strip("`"))
                if hasattr(value, "kind_"):
                    assert parse(info.annotation, {"kind": read} if isinstance(read, str) else read) == value, (member, name, shown)
                elif isinstance(value, tuple):
                    assert tuple(read) == value, (member, name, shown)


def test_no_help_shows_its_own_markup() -> None:
    from click.testing import CliRunner

    def all_of(command: click.Command, words: list[str]) -> Iterator[list[str]]:
        yield words
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                below = command.get_command(click.Context(command), name)
                assert below is not None
                yield from all_of(below, [*words, name])

    for words in all_of(cli, []):
        out = CliRunner().invoke(cli, [*words, "--help"]).output
        assert "\\b" not in out and "\b" not in out, words


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    generator = reference()
    assert generator.PAGE.read_text() == generator.render(), "run: python docs/generate_reference.py"


def test_every_key_says_what_it_is() -> None:
    """Nobody should have to read the source to learn what a key means."""
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (ROOT / "docs" / "reference" / "recipe.md").read_text(), re.MULTILINE)
    assert len(rows) > 100
    assert [key for key, meaning in rows if not meaning.strip()] == []


# ---------------------------------------------------------------------------------------------- commands


def commands(page: Path) -> Iterator[str]:
    """Each `tauon ...` that a page shows: lines of shell blocks, with or without a prompt, what a unit of systemd starts, and code in the text."""
    for body in blocks(page, "bash", "console", "sh"):
        yield from re.findall(r"^\s*(?:\$ )?(tauon .*?)\s*$", body, re.MULTILINE)
    for body in blocks(page, "ini"):
        yield from re.findall(r"^ExecStart=\S*/(tauon .*)$", body, re.MULTILINE)
    text = FENCE.sub("", page.read_text())
    yield from (code for code in re.findall(r"`(tauon [^`]+)`", text) if "VERB" not in code)


def leaf(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words name, and the words behind its name."""
    command: click.Command = cli
    above = click.Context(cli, **cli.context_settings)  # as on the command line: a command remembers the help option of its first context
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(above, words[0])
        if found is None and (default := getattr(command, "default", None)) is not None:
            return command.commands[default], words
        assert found is not None, f"no verb {words[0]!r}"
        command, words = found, words[1:]
    return command, words


SHOWN = sorted({(name_of(p), c) for p in PAGES for c in commands(p)})


@pytest.mark.parametrize(("page", "command"), SHOWN)
def test_commands_shown_exist(page: str, command: str) -> None:
    words = shlex.split(command.partition(" > ")[0], comments=True)[1:]
    words = [w for w in words if w not in ("...]", "...", "|")]
    verb, rest = leaf(words)
    verb.make_parser(click.Context(verb, **cli.context_settings)).parse_args(list(rest))  # raises on an option that is not there
    if isinstance(verb, click.Group):  # `tauon runs` alone, or `tauon --help`
        return
    values = [w for w in rest if re.match(r"[a-z][\w.]*=", w)]
    if "--on" in rest:
        values = [*choose(rest[rest.index("--on") + 1]), *values]
    recipe = next((Path(w).name for w in rest if Path(w).name in shipped_recipes()), None)
    if values and "..." not in command:
        load_recipe(recipe or "quickstart", values)


def test_every_verb_is_shown_in_the_readme() -> None:
    shown = {c.split()[1] for c in commands(ROOT / "README.md")}
    assert set(verbs()) <= shown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_shown_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = re.findall(r"^make ([a-z][\w-]*)", "\n".join(blocks(page, "bash")), re.MULTILINE)
    shown += re.findall(r"`make ([a-z][\w-]*)`", page.read_text())
    assert set(shown) <= targets


def test_extras_shown_exist() -> None:
    import tomllib

    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    shown = {e for p in PAGES for e in re.findall(r"tauon\[(\w+)\]'", p.read_text())}
    assert shown
    assert shown <= extras


def test_exit_codes_are_those_of_the_errors() -> None:
    from tauon import errors

    rows = {int(c) for c in re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE)}
    codes = {getattr(errors, n).exit_code for n in errors.__all__ if hasattr(getattr(errors, n), "exit_code")}
    assert rows == codes | {0}


# ---------------------------------------------------------------------------------------------- Python


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/quickstart` and `runs/first`: small, trained, evaluated, reported."""
    from tauon.pipeline import run

    folder = tmp_path_factory.mktemp("shown")
    small = ["train.time=null", "train.steps=3", "train.batch=2", "data.source.limit=12", "data.tokenizer.vocab=300", "data.seq_len=16"]
    small += [
        "model.layers=1",
        "model.width=16",
        "model.heads=2",
        "evaluate.samples=0",
        "evaluate.resamples=100",
        "train.validate_examples=4",
    ]
    run(load_recipe("quickstart", small), root=folder / "runs")
    shutil.copytree(folder / "runs" / "quickstart", folder / "runs" / "first")
    shutil.copy(shipped_recipes()["quickstart"], folder / "quickstart.yaml")
    return folder


def given(page: str) -> dict[str, Any]:
    """Names that a page's snippets take for granted."""
    if page != "docs/evaluation.md":
        return {}
    import numpy as np
    import torch

    from tauon.evaluate import EvaluateConfig, evaluate
    from tauon.models import LogisticConfig, materialize
    from tauon.tasks import Classification
    from tauon.testing import tiny_batch
    from tauon.types import DataSpec

    spec = DataSpec(input_shape=(3,), outputs=2, labels=("a", "b"))
    whole = tiny_batch(spec, rows=40)

    class Held:
        facts: dict[str, Any] = {}  # noqa: RUF012

        def __init__(self) -> None:
            self.spec = spec

        def __len__(self) -> int:
            return 40

        def batch(self, index: np.ndarray, *, epoch: int = 0) -> Any:
            rows = torch.from_numpy(index)
            return type(whole)(whole.inputs[rows], whole.targets[rows], whole.weights[rows])

    model, task = materialize(LogisticConfig().resolve(spec), seed=0), Classification()
    return {"model": model, "task": task, "dataset": Held(), "other": evaluate(model, task, Held(), EvaluateConfig(), seed=8, split="test")}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_python_shown_runs(page: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page run in order, as one program."""
    monkeypatch.chdir(finished_run)
    real = tauon.run

    def brief(recipe: Any, *assignments: str, **options: Any) -> Any:
        """The same call, with a small model for a few steps."""
        small = [
            "train.steps=3",
            "train.batch=4",
            "train.compile=false",
            "model.layers=1",
            "data.source.limit=20",
            "evaluate.samples=1",
        ]
        return real(recipe, *(a for a in assignments if not a.startswith("train.")), "train.time=null", *small, **options)

    monkeypatch.setattr(tauon, "run", brief)
    members: dict[str, type[Config]] = dict(SourceConfig._members)
    space: dict[str, Any] = {"__name__": "shown"} | given(name_of(page))
    try:
        for block in blocks(page, "python"):
            exec(compile(block, name_of(page), "exec"), space)  # our own page
    finally:
        SourceConfig._members.clear()
        SourceConfig._members.update(members)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples_in_docstrings() -> None:
    """The test above would be empty without."""
    finder = doctest.DocTestFinder()
    count = sum(len(t.examples) for n in MODULES for t in finder.find(importlib.import_module(n)))
    assert count >= 10


def test_example_recipes_say_what_they_are() -> None:
    recipes = [*(ROOT / "examples").rglob("*.yaml"), *shipped_recipes().values()]
    assert [r for r in recipes if not re.match(r"# \w.{10,}\n", r.read_text())] == []


VERBS_OF_PACKAGES = {
    "artifacts": "save_checkpoint", "config": "parse", "data": "prepare", "distributed": "parallelize", "evaluate": "evaluate", "export": "export_checkpoint",
    "generate": "generate", "models": "materialize", "plan": "make_plan", "predict": "predict_rows", "privacy.audit": "score_attack", "report": "render",
    "runtimes": "trace", "starter": "draft", "train": "train", "tune": "lr_range", "api": "run",
}  # fmt: skip


@pytest.mark.parametrize(("package", "verb"), VERBS_OF_PACKAGES.items())
def test_the_verb_of_a_package_says_what_it_takes_what_it_raises_and_shows_an_example(package: str, verb: str) -> None:
    said = getattr(importlib.import_module(f"tauon.{package}"), verb).__doc__ or ""
    for part in ("Args:", "Raises:", ">>> "):
        assert part in said, f"tauon.{package}.{verb} has no {part}"
