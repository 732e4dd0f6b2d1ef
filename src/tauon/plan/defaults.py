"""The default recipe of a table, by its number of rows: what `recipe new` writes, and what `benchmarks/table_default.py` measures."""

from __future__ import annotations

from typing import Any

__all__ = ["table_defaults"]

_SEEN = 60_000
"""Rows that are seen in training, repeats counted, if that is between 5 and 20 passes."""


def table_defaults(rows: int, *, missing: bool = False) -> dict[str, Any]:
    """Return the sections `data` (how columns are read, without source and split), `model`, `optim` and `train` for a table of `rows` training rows.

    Few rows want strong dropout and a low rate; many want none, and finer bins. `missing`: whether numbers are missing in some rows.
    Measured on nine tables of 350 to 24,000 rows (docs/experiments.md).

    >>> table_defaults(800)["model"]
    {'kind': 'tabm', 'dropout': 0.3}
    >>> table_defaults(20_000)["train"]
    {'epochs': 5, 'batch': 128, 'checkpoint_every': 100000}
    """
    few, many = rows < 2000, rows >= 5000
    table = {"categories": "codes"} | ({"impute": "median", "indicators": True} if missing else {})
    model = {"kind": "tabm", "dropout": 0.3} if few else {"kind": "tabm", "members": 4, "bins": 32, "dropout": 0.0 if many else 0.1}
    optim: dict[str, Any] = {
        "kind": "adamw", "lr": 0.005 if few else 0.014, "weight_decay": 0.03, "betas": [0.9, 0.99], "clip_norm": None,
        "schedule": {"kind": "cosine", "warmup": "5%", "final": 0},
    }  # fmt: skip
    # It takes seconds: one checkpoint at the end, instead of ten that wait for the disk
    train = {"epochs": min(20, max(5, round(_SEEN / max(rows, 1)))), "batch": 64 if few else 128, "checkpoint_every": 100_000}
    return {"data": {"normalize": "quantile", "table": table}, "model": model, "optim": optim, "train": train}
