"""The file of a run's key: whole or absent, for its owner alone, for one training; thrown away whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.artifacts import RunFolder, read_json
from tauon.errors import RunError
from tauon.privacy.keys import Key, bind_key, discard_key, key_hash, read_key, run_key
from tauon.testing.processes import run_processes
from toy import table_recipe


def test_a_key_says_what_it_is_for(tmp_path: Path) -> None:
    key = run_key(tmp_path)
    assert key.unused and key.training is None and len(key.secret) == 32 and key.place == os.path.realpath(tmp_path)
    assert run_key(tmp_path) == key and not run_key(tmp_path).unused
    bound = bind_key(tmp_path, key, "training", "how", 0)
    assert read_key(tmp_path) == bound and bound.training == "training" and bound.secret == key.secret
    assert (tmp_path / "privacy.key").stat().st_mode & 0o777 == 0o600
    assert key.secret.hex() not in repr(bound) and key.hash not in (key.secret.hex(), "") and key.hash == key_hash(key.secret)


def test_what_steps_were_computed_with_is_known_of_each(tmp_path: Path) -> None:
    key = run_key(tmp_path)
    for step, how in ((0, "a"), (4, "a"), (10, "b"), (20, "c")):
        key = bind_key(tmp_path, key, "t", how, step)
    assert key.how == ((0, "a"), (10, "b"), (20, "c"))
    assert [key.ways(*x) for x in ((0, 10), (0, 11), (9, 10), (10, 20), (10, 30), (5, 5), (7, 3))] == [
        {"a"}, {"a", "b"}, {"a"}, {"b"}, {"b", "c"}, set(), set()
    ]  # fmt: skip
    assert bind_key(tmp_path, key, "t", "d", 10).how == ((0, "a"), (10, "d"))
    assert Key(bytes(32)).ways(0, 3) == {""} and Key(bytes(32), how=((5, "a"),)).ways(3, 9) == {"", "a"}


def test_a_key_of_an_earlier_version_is_read_and_bound(tmp_path: Path) -> None:
    path = tmp_path / "privacy.key"
    path.touch(0o600)
    path.write_bytes(bytes(range(32)))
    key = run_key(tmp_path, goes_on=True)
    assert key.secret == bytes(range(32)) and key.training is None and not key.unused
    bind_key(tmp_path, key, "t", "a", 10)
    assert read_key(tmp_path).secret == bytes(range(32)) and read_key(tmp_path).training == "t"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"x" * 31, b'{"format": "tauon-key-1", "key": "00"}', b"\xff" * 40])
def test_what_is_no_key_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "privacy.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"is not a key file of this version.*--fresh"):
        run_key(tmp_path)


def test_a_key_is_made_and_thrown_away_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails at whatever write: the file is the old one, the new one, or not there, and never other bytes under its name."""
    (tmp_path / "run").mkdir()
    names = ("write", "fsync", "replace", "rename", "unlink")
    for at in range(1, 30):
        count = 0

        def failing(whole: Any, at: int = at) -> Any:
            def call(*args: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count == at:
                    raise OSError(28, "No space left on device")
                return whole(*args, **more)

            return call

        seen = []
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                key = run_key(tmp_path / "run")
                seen.append(key)
                seen.append(bind_key(tmp_path / "run", key, "t", "a", 0))
                discard_key(tmp_path / "run")
            except RunError:
                pass
        if (tmp_path / "run/privacy.key").exists():
            found = read_key(tmp_path / "run")
            assert not seen or found.secret == seen[0].secret
        discard_key(tmp_path / "run")
        assert list((tmp_path / "run").iterdir()) == []
        if count < at:
            assert at > 8
            return
    pytest.fail("more writes than were tried")


# ------------------------------------------------------------------------------------------------ several processes


def heard_by(path: str, root: str, roots: list[str], stale: str = "") -> tuple[str, bool, int]:
    """(how a private run ended, whether its key was in any message, how many there were). `stale`: a key that it does not use."""
    import torch.distributed as dist

    from tauon.distributed import World
    from tauon.pipeline import run
    from tauon.recipe import load_recipe

    torch.set_num_threads(1)
    messages, keys = [], set()
    whole = World.gather

    def gather(self: World, value: Any) -> list[Any]:
        found = whole(self, value)
        messages.append(repr(found))
        return found

    World.gather = gather  # type: ignore[method-assign]

    def on_event(kind: str, **facts: Any) -> None:
        if kind == "step":
            keys.add(read_json(Path(root) / "table/privacy.key")["key"])

    said = "done"
    try:
        run(load_recipe(path), root=roots[dist.get_rank()], stages=("prepare", "train"), on_event=on_event)
    except RunError as err:
        said = str(err)
    if dist.get_rank() == 0 and said == "done":
        assert len(keys) == 1 and stale not in keys
    return said, any(k in m or str(bytes.fromhex(k)) in m for k in keys for m in messages), len(messages)


@pytest.mark.slow
@pytest.mark.distributed
def test_no_process_tells_another_the_key(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    path = table_recipe(tmp_path / "recipes", privacy={"noise_multiplier": 2.0, "delta": 1e-3}, train={"steps": 3, "checkpoint_every": 3})
    shared = str(tmp_path / "shared")
    (tmp_path / "shared/table").mkdir(parents=True)
    (tmp_path / "shared/table/events.jsonl").touch()  # an earlier start, of which nothing came: all of them take the new key
    bind_key(tmp_path / "shared/table", run_key(tmp_path / "shared/table"), "another training", "how", 0)
    stale = read_key(tmp_path / "shared/table").secret.hex()
    found = run_processes(heard_by, 2, 400, str(path), shared, [shared, shared], stale)
    assert [f[:2] for f in found] == [("done", False)] * 2 and found[0][2] > 5
    assert RunFolder.read(tmp_path / "shared/table").stage("train") is not None and not list((tmp_path / "shared").rglob("*privacy.key"))
    apart = run_processes(heard_by, 2, 400, str(path), str(tmp_path / "a"), [str(tmp_path / "a"), str(tmp_path / "b")])
    assert all("privacy.key is missing: every process must see the run's folder" in said for said, *_ in apart)
