"""No file of data/ imports in a circle: imports inside functions and for type checkers count, too."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import tauon.data

PACKAGE = Path(tauon.data.__file__).parent
FILES = {
    ".".join(["tauon", "data", *p.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Every file of data/ that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & FILES.keys()


def test_files_import_each_other_in_no_circle() -> None:
    try:
        order = [*TopologicalSorter({name: imports(path) - {name} for name, path in FILES.items()}).static_order()]
    except CycleError as err:
        raise AssertionError(f"a circle: {' <- '.join(err.args[1])}") from None
    assert len(order) == len(FILES) > 50


def test_files_import_from_where_a_name_is_defined() -> None:
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    assert {name: found for name, path in FILES.items() if name not in packages and (found := imports(path) & packages)} == {}
