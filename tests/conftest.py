"""Shared by all tests: a cache of their own, the mirror of real data where there is one, small models and data."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: see cli/main.py
if "PYTEST_XDIST_WORKER" in os.environ:  # beside another worker, more threads than one each only wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """What collecting made stays until the end: no garbage collection has to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data and the ledgers of what fixtures train go to temporary folders, never to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAUON_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TAUON_LEDGER", str(tmp_path_factory.mktemp("ledger")))
        yield


@pytest.fixture(autouse=True)
def ledgers(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Folder of the ledgers, one for each test and never the user's; made by the first that is opened."""
    place = tmp_path_factory.getbasetemp() / "ledgers" / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAUON_LEDGER", str(place))
        yield place


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The mirror of real data: TAUON_DATA, or `../shared/data` beside the checkout. Skips where there is none."""
    for place in (os.environ.get("TAUON_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if place and (Path(place) / "README.md").is_file():
            return Path(place)
    pytest.skip("no mirror of real data: set TAUON_DATA to one")
