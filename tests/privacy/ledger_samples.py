"""A ledger of made-up data, a run, an owner: shared by the tests of the ledger."""

from __future__ import annotations

from pathlib import Path

from tauon.privacy.accounting import Release
from tauon.privacy.ledger import Ledger, Owner

DATA, OTHER = "a" * 64, "b" * 64
RUN = [Release(1.0, "poisson", 0.01, 500)]
OWNER = Owner("k" * 64, "t" * 64, "/runs/mine")
"""A training that goes on: its key is there."""


def opened(folder: Path) -> Ledger:
    made = Ledger(folder, DATA)
    made.open((3.0, 1e-5), examples=50_000, name="people")
    return made


def filled(ledger: Ledger) -> list[str]:
    for name in ("one", "two", "three"):
        ledger.settle(ledger.reserve(name, [Release(3.0, "poisson", 0.01, 10)]).number, [Release(3.0, "poisson", 0.01, 10)])
    return ledger.path.read_text().splitlines(keepends=True)
