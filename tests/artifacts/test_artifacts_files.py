"""Files are whole or absent, whatever happens while they are written; JSON keeps every value."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tauon.artifacts.files as files
from tauon.artifacts import atomic_write, folder_atomically, read_json, remove_leftovers, sha256_file, write_json
from tauon.errors import DataError, RunError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def full_disk(monkeypatch):
    """Every write stops half-way with ENOSPC, as a full disk does."""

    def write(fd, data):
        os.write(fd, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", write)


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    atomic_write(path, "one")
    atomic_write(path, "zwei ü")
    assert path.read_bytes() == "zwei ü".encode()
    assert names(tmp_path) == ["a.txt"]


def test_atomic_write_obeys_the_umask_and_follows_links(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    old = os.umask(0o027)
    try:
        atomic_write(link, b"x")
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert real.read_bytes() == b"x"
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, full_disk):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RunError, match=r"a\.json: cannot be written: No space left.*MiB free.*Free disk space"):
        atomic_write(path, "new" * 1000)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RunError, match=r"nowhere.*No such file"):
        atomic_write(tmp_path / "nowhere" / "a", "x")


def test_a_folder_appears_whole(tmp_path):
    with folder_atomically(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "a").read_text() == "1"


def test_a_failing_block_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_atomically(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        _ = 1 / 0
    assert names(tmp_path) == []


def test_no_room_in_the_block_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match="out: cannot be written"), folder_atomically(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with pytest.raises(RunError, match="exists already"), folder_atomically(tmp_path / "out"):
        pass
    assert names(tmp_path / "out") == ["old"]
    with folder_atomically(tmp_path / "out", replace=True) as folder:
        (folder / "new").write_text("2")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path):
    host = files._host()
    mine = files.temporary_path(tmp_path / "mine", "tmp")
    mine.mkdir()
    (tmp_path / f".tmp.{dead_process()}-5.{host}.0123abcd.step-000100").mkdir()
    (tmp_path / f".tmp.{os.getpid()}-5.{host}.0123abcd.file.json").write_text("another process had this number")
    (tmp_path / ".tmp.1-1.elsewhere.0123abcd.young").mkdir()
    old = tmp_path / ".tmp.1-1.elsewhere.0123abcd.old"
    old.mkdir()
    os.utime(old, (time.time() - 10 * 86400,) * 2)
    theirs = [tmp_path / name for name in (".a.file.of.the.user", ".tmp.of.the.user.file")]
    for path in theirs:
        path.write_text("")
        os.utime(path, (time.time() - 10 * 86400,) * 2)
    done = remove_leftovers(tmp_path)
    assert len(done) == 3
    assert names(tmp_path) == sorted([*(p.name for p in theirs), ".tmp.1-1.elsewhere.0123abcd.young", mine.name])


def test_a_replacement_that_was_cut_in_the_middle_is_undone(tmp_path):
    old = tmp_path / f".old.{dead_process()}-5.{files._host()}.0123abcd.step-000100"
    old.mkdir()
    (old / "a").write_text("the only copy")
    remove_leftovers(tmp_path)
    assert (tmp_path / "step-000100" / "a").read_text() == "the only copy"
    old.mkdir()  # cut one rename later: the new one is in place
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-000100"]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["NaN", "Infinity", "-Infinity", "\\NaN", "\\\\-Infinity", "nan", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def same(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=JSON_VALUES)
def test_json_gives_back_every_value(value):
    raw = files.json_bytes(value)

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    assert same(files.from_json(json.loads(raw, parse_constant=refuse)), value)


def test_numpy_and_torch_scalars_become_numbers(tmp_path):
    import numpy as np
    import torch

    write_json(tmp_path / "a.json", {"a": np.float32(0.5), "b": torch.tensor(3), "c": np.bool_(True), "d": (1, tmp_path)})
    assert read_json(tmp_path / "a.json") == {"a": 0.5, "b": 3, "c": True, "d": [1, str(tmp_path)]}


@pytest.mark.parametrize(
    ("value", "place"), [({"a": [1, {2}]}, r"a\[1\]: set"), ({"a": {1: 2}}, "a: key 1 is int"), (object(), "value: object")]
)
def test_what_json_does_not_know_is_named_with_its_place(tmp_path, value, place):
    with pytest.raises(TypeError, match=place):
        write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []


def test_reading_what_is_not_there_or_not_json_says_so(tmp_path):
    with pytest.raises(DataError, match=r"a\.json: cannot be read: No such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a": 1')
    with pytest.raises(DataError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_sha256_is_that_of_hashlib(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(bytes(range(256)) * 1000).hexdigest()
    with pytest.raises(DataError, match="cannot be read"):
        sha256_file(tmp_path / "b")
