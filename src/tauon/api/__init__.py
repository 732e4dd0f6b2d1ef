"""Tauon from Python: run a recipe, open a run, and look at it, also in a notebook. `import tauon` offers all of it."""

from tauon.api.runs import Run, open_run, run

__all__ = ["Run", "open_run", "run"]
