"""Shared by all tests: a cache of their own, the mirror of real data where there is one, small models and data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: see cli/main.py
if "PYTEST_XDIST_WORKER" in os.environ:  # beside another worker, more threads than one each only wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data goes to a temporary folder, never to the user's."""
    before = os.environ.get("TAUON_CACHE")
    os.environ["TAUON_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        os.environ.pop("TAUON_CACHE")
    else:
        os.environ["TAUON_CACHE"] = before


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The mirror of real data: TAUON_DATA, or `../shared/data` beside the checkout. Skips where there is none."""
    for place in (os.environ.get("TAUON_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if place and (Path(place) / "README.md").is_file():
            return Path(place)
    pytest.skip("no mirror of real data: set TAUON_DATA to one")
