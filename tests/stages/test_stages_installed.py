"""`may_be_installed` never misses what `importlib.metadata` finds, wherever the package lies."""

from __future__ import annotations

import sys
import zipfile
from importlib.metadata import DistributionFinder, entry_points
from pathlib import Path
from typing import Any

import pytest

from tauon.stages.installed import may_be_installed

GROUP = "tauon.made-up-for-this-test"
METADATA = "Metadata-Version: 2.1\nName: toy\nVersion: 1\n"
POINTS = f"[console_scripts]\ntoy = toy:main\n\n[{GROUP}]\ntoy = toy:STAGE\n"


@pytest.mark.parametrize("kind", ["dist-info", "egg-info", "DIST-INFO", "egg", "zip"])
def test_what_is_installed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert not may_be_installed(GROUP) and not entry_points(group=GROUP)
    place = tmp_path / "toy.egg" if kind == "egg" else tmp_path
    info = place / (
        "EGG-INFO" if kind == "egg" else "toy-1.egg-info" if kind == "egg-info" else f"toy-1.{kind.replace('zip', 'dist-info')}"
    )
    info.mkdir(parents=True)
    (info / ("METADATA" if "egg" not in kind else "PKG-INFO")).write_text(METADATA)
    (info / "entry_points.txt").write_text(POINTS)
    if kind == "zip":
        place = tmp_path / "toy.whl"
        with zipfile.ZipFile(place, "w") as archive:
            for path in info.iterdir():
                archive.write(path, f"{info.name}/{path.name}")
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    assert [p.value for p in entry_points(group=GROUP)] == ["toy:STAGE"]
    assert may_be_installed(GROUP)


def test_a_finder_of_another_package_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder(DistributionFinder):
        def find_distributions(self, context: Any = None) -> list[Any]:
            return []

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert may_be_installed(GROUP)


def test_packages_without_entry_points_and_missing_folders_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy-1.dist-info").mkdir()
    (tmp_path / "old-1.egg-info").write_text(METADATA)  # a file, as distutils wrote it
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(tmp_path / "none")])
    assert not may_be_installed(GROUP)
