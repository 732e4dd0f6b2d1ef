"""What a room offers is what its `__all__` says, and everything it says is there."""

from __future__ import annotations

import importlib
import pkgutil
import types

import pytest

import tauon

MODULES = sorted(m.name for m in pkgutil.walk_packages(tauon.__path__, "tauon."))


@pytest.mark.parametrize("name", MODULES)
def test_all_names_exist_once_and_in_order(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    assert names is not None, f"{name} has no __all__"
    assert len(set(names)) == len(names)
    for n in names:
        assert hasattr(module, n), f"{name}.__all__ names {n}, which is not there"


@pytest.mark.parametrize("name", [m for m in MODULES if hasattr(importlib.import_module(m), "__path__")])
def test_public_names_of_a_room_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    bare = [
        n
        for n in module.__all__
        if isinstance(getattr(module, n), type | types.FunctionType) and not (getattr(module, n).__doc__ or "").strip()
    ]
    assert not bare, f"{name}: no docstring on {bare}"
