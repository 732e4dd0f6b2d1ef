"""A room imports rooms of lower levels only; rooms on one level never import each other. `import tauon` stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "tauon"

LEVELS = {
    "errors": 0, "types": 0, "units": 0, "yaml_text": 0, "config": 0, "artifacts": 0, "tracking": 0,
    "distributed": 1, "report": 1,
    "data": 2, "models": 2, "optim": 2, "tasks": 2,
    "train": 3, "generate": 3,
    "plan": 4, "privacy": 4, "evaluate": 4, "explain": 4, "compress": 4,
    "federated": 5, "export": 5, "tune": 5,
    "serve": 6, "launch": 6,
    "recipe": 7, "answers": 7, "watch": 7, "folds": 7, "pipeline": 7, "context": 7, "training": 7, "check": 7, "starter": 7, "auditing": 7, "privacy_cost": 7, "private_training": 7,
    "cli": 8, "testing": 8, "__main__": 9,
}  # fmt: skip
TOGETHER = [
    {"errors", "types", "units", "yaml_text", "config", "artifacts", "tracking"},
    {"recipe", "answers", "watch", "folds", "pipeline", "context", "training", "check", "starter", "auditing", "privacy_cost", "private_training"},
]  # fmt: skip
"""Rooms of one level that may import each other: the nouns of level 0, and the files of the pipeline."""


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> list[tuple[str, int]]:
    """(room, line) of each import of ours, inside functions too; those for type checkers only do not count."""
    type_only = {
        id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) for n in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        names = []
        if id(node) in type_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"tauon.{a.name}" for a in node.names] if node.module == "tauon" else [node.module]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found += [(n.split(".")[1], node.lineno) for n in names if n.startswith("tauon.") and not n.startswith("tauon.__")]
    return found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_imports_lower_levels_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in LEVELS, f"{room} has no level: add it to LEVELS"
    for other, line in imported_rooms(ast.parse(path.read_text())):
        allied = other == room or any({room, other} <= group for group in TOGETHER)
        fine = allied or LEVELS.get(other, 99) < LEVELS[room]
        assert fine, f"{path.relative_to(SRC)}:{line} imports {other} (level {LEVELS.get(other)} >= {LEVELS[room]})"


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
