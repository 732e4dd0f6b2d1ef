"""A package imports packages of lower levels only, and no file stands in a circle of files: imports at the top, imports inside functions and
imports for type checkers all count. Files, functions and classes stay small. `import tauon` stays cheap.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "tauon"

LEVELS = {
    "errors": 0, "types": 0, "config": 0, "artifacts": 0, "tracking": 0,
    "distributed": 1, "launch": 1, "metrics": 1,
    "data": 2, "models": 2, "optim": 2, "tasks": 2,
    "report": 3,
    "train": 4, "generate": 4, "evaluate": 4,
    "plan": 5, "runtimes": 5,
    "privacy": 6, "compress": 6,
    "explain": 7, "federated": 7, "export": 7, "tune": 7,
    "recipe": 8, "stages": 8,
    "pipeline": 9, "predict": 9, "starter": 9, "testing": 9,
    "serve": 10,
    "api": 11, "cli": 11,
    "__init__": 12, "__main__": 12,
}  # fmt: skip
TOGETHER = [{"errors", "types", "config", "artifacts", "tracking"}, {"recipe", "stages"}]
"""Packages of one level that may import each other."""
LOOSE = {"errors", "types", "recipe", "pipeline"}
"""Modules of `tauon` itself, beside `__init__` and `__main__`."""

LONGEST_FUNCTION, MOST_PARAMETERS, MOST_FIELDS, LONGEST_FILE = 60, 8, 20, 400
MANY_PARAMETERS: dict[str, str] = {}
"""Functions with more parameters, by place, and what asks for them. Commands of the command line are free: a parameter is an option."""

FILES = sorted(SRC.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
MODULES = {".".join(p.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


def package_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports_of(path: Path) -> dict[str, int]:
    """Module of ours to the line that imports it: at the top, inside a function, or for type checkers."""
    found: dict[str, int] = {}
    for node in ast.walk(TREES[path]):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "tauon":
            names = [f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name in MODULES]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import"
        found |= {name: getattr(node, "lineno", 0) for name in names if name in MODULES and MODULES[name] != path}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_imports_lower_levels_only(path: Path) -> None:
    own = package_of(path)
    assert own in LEVELS, f"{own} has no level: add it to LEVELS"
    for module, line in imports_of(path).items():
        other = "__init__" if module == "tauon" else module.split(".")[1]
        if module == "tauon":  # its version
            continue
        allied = other == own or any({own, other} <= group for group in TOGETHER)
        fine = allied or LEVELS.get(other, 99) < LEVELS[own]
        assert fine, f"{path.relative_to(SRC)}:{line} imports {other} (level {LEVELS.get(other)} >= {LEVELS[own]})"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of more than one node that reach each other (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in graph[node]:
            if other not in number:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in number:
            visit(node)
    return found


def test_no_circle_of_files() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    graph = {module: set(imports_of(path)) for module, path in MODULES.items()}
    assert circles(graph) == []


def test_few_loose_modules() -> None:
    assert {p.stem for p in SRC.glob("*.py")} - {"__init__", "__main__"} <= LOOSE and len(LOOSE) <= 4


def test_files_functions_and_classes_are_small() -> None:
    large = []
    for module, path in MODULES.items():
        lines = len(path.read_text().splitlines())
        if lines > LONGEST_FILE:
            large.append(f"{module}: {lines} lines")
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long = (node.end_lineno or 0) - node.lineno + 1
                if long > LONGEST_FUNCTION:
                    large.append(f"{module}.{node.name}: {long} lines")
                names = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] if a.arg not in ("self", "cls")]
                command = any("command" in ast.unparse(d) for d in node.decorator_list)
                if len(names) > MOST_PARAMETERS and not command and f"{module}.{node.name}" not in MANY_PARAMETERS:
                    large.append(f"{module}.{node.name}: {len(names)} parameters")
            if isinstance(node, ast.ClassDef):
                fields = sum(isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation) for line in node.body)
                if fields > MOST_FIELDS:
                    large.append(f"{module}.{node.name}: {fields} fields")
    assert large == []


def test_the_centre_knows_no_way_of_training_but_the_plain_one() -> None:
    for name in ("train", "engine", "context"):
        text = (SRC / "stages" / f"{name}.py").read_text().lower()
        assert not [word for word in ("private", "lowcommunication", "parameterserver") if word in text]


def test_import_tauon_loads_nothing_heavy() -> None:
    code = "import sys, tauon; print([m for m in ('torch', 'numpy', 'pydantic', 'rich', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_help_loads_neither_torch_nor_pydantic() -> None:
    code = "import sys\nfrom tauon.cli import main\ntry: main(['--help'])\nexcept SystemExit: print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]") and "run" in out


def test_one_process_does_not_pay_for_many() -> None:
    code = (
        "import sys, tauon.pipeline; print([m for m in ('torch.distributed.tensor', 'torch.distributed.fsdp', 'ray') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
