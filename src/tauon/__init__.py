"""Tauon trains large models on data that must be protected, explains what they learned, and makes them small enough to ship.

    import tauon

    run = tauon.run("quickstart", "train.steps=200")      # a recipe, and settings to change: the same as `tauon run quickstart train.steps=200`
    run.metrics["perplexity"]                             # value and interval
    run = tauon.open_run("runs/quickstart")               # later, or elsewhere
    run.generate("def ")

Names are imported when they are used, so that `import tauon` costs nothing; `__init__.pyi` tells type checkers what they are.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Recipe", "Run", "__version__", "load_recipe", "open_run", "run"]

_PLACES = {"Recipe": "tauon.recipe", "Run": "tauon.api", "load_recipe": "tauon.recipe", "open_run": "tauon.api", "run": "tauon.api"}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'tauon' has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
