"""The writer of checkpoints: which ones it keeps, a full disk, errors in the background, and a kill -9."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from checkpoint_samples import groups, names, steps

import tauon.artifacts.tensor_file as tensor_file
from tauon.artifacts import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tauon.errors import CheckpointError


@pytest.mark.parametrize("background", [False, True])
def test_keeps_the_newest_every_nth_and_the_protected(tmp_path, background):
    with CheckpointWriter(tmp_path, keep_last=2, keep_every=300, background=background) as writer:
        for step in range(100, 1100, 100):
            writer.save(step, groups(step), {})
            if step == 400:
                writer.protect(400)
            if step == 500:
                writer.protect(500)
            if step == 700:
                writer.release(500)
    assert steps(tmp_path) == [300, 400, 600, 900, 1000]
    assert names(tmp_path) == [f"step-{s:06d}" for s in ()] + ["protected.json"] + [f"step-{s:06d}" for s in steps(tmp_path)]


def test_steps_that_are_kept_by_number_survive_pruning_and_a_release(tmp_path):
    with CheckpointWriter(tmp_path, keep_last=1, keep_steps=(2, 5)) as writer:
        for step in range(1, 9):
            writer.save(step, groups(step), {})
            if step == 5:
                writer.protect(5)  # the best so far
            if step == 7:
                writer.release(5)
    assert steps(tmp_path) == [2, 5, 8]


def test_a_later_writer_knows_what_is_protected(tmp_path):
    with CheckpointWriter(tmp_path, keep_last=1) as writer:
        writer.save(1, {}, {})
        writer.protect(1)
    with CheckpointWriter(tmp_path, keep_last=1) as writer:
        writer.save(2, {}, {})
        writer.save(3, {}, {})
    assert steps(tmp_path) == [1, 3]


def test_keep_last_none_keeps_all_and_zero_is_refused(tmp_path):
    with CheckpointWriter(tmp_path, keep_last=None) as writer:
        for step in range(4):
            writer.save(step, {}, {})
    assert steps(tmp_path) == [0, 1, 2, 3]
    for bad in ({"keep_last": 0}, {"keep_every": 0}):
        with pytest.raises(CheckpointError, match="expected 1 or more"):
            CheckpointWriter(tmp_path, **bad)


def test_torn_and_later_checkpoints_do_not_push_whole_ones_out(tmp_path):
    with CheckpointWriter(tmp_path, keep_last=2) as writer:
        writer.save(100, groups(), {})
        writer.save(200, groups(), {})
    (tmp_path / "step-000250").mkdir()  # torn
    save_checkpoint(tmp_path, 900, groups(), {})  # of an attempt that went on from elsewhere
    with CheckpointWriter(tmp_path, keep_last=2) as writer:
        writer.save(300, groups(), {})
    assert steps(tmp_path) == [200, 250, 300, 900]


def test_each_checkpoint_names_the_one_before_as_its_parent(tmp_path):
    seen: list[Checkpoint] = []
    with CheckpointWriter(tmp_path, keep_last=None, parent="origin", on_saved=seen.append) as writer:
        for step in (1, 2, 3):
            writer.save(step, groups(step), {})
    assert [c.step for c in seen] == [1, 2, 3]
    assert [c.parent for c in seen] == ["origin", seen[0].hash, seen[1].hash]
    assert [load_checkpoint(c.path).hash for c in seen] == [c.hash for c in seen]


def test_the_copy_is_of_the_moment_of_save(tmp_path, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    write_all = tensor_file.write_all

    def slow(fd, data):
        started.set()
        assert go_on.wait(20)
        write_all(fd, data)

    monkeypatch.setattr(tensor_file, "write_all", slow)
    given_ = groups(1.0)
    state = {"list": [1]}
    with CheckpointWriter(tmp_path) as writer:
        begin = time.monotonic()
        writer.save(1, given_, state)
        assert started.wait(20)
        assert time.monotonic() - begin < 10  # did not wait for the write, which waits for us
        given_["model"]["w"].fill_(7)
        state["list"].append(2)
        assert steps(tmp_path) == []
        go_on.set()
    saved = load_checkpoint(tmp_path / "step-000001")
    assert saved.tensors("model")["w"].eq(1).all()
    assert saved.state == {"list": [1]}


def test_shapes_may_change_between_saves(tmp_path):
    with CheckpointWriter(tmp_path, keep_last=None) as writer:
        for step, size in enumerate((5, 50, 3, 0, 7)):
            writer.save(step, {"g": {"x": torch.full((size,), float(size))}}, {})
    for step, size in enumerate((5, 50, 3, 0, 7)):
        assert load_checkpoint(tmp_path / f"step-{step:06d}").tensors("g")["x"].tolist() == [float(size)] * size


# ---------------------------------------------------------------------------------------------- a full disk


def no_space(fd, data):
    os.write(fd, bytes(data)[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


def save_and_wait(writer: CheckpointWriter, step: int, given_: dict[str, dict[str, torch.Tensor]]) -> None:
    writer.save(step, given_, {})
    writer.wait()


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_told_once_and_the_last_whole_checkpoint_stays(tmp_path, monkeypatch, background):
    writer = CheckpointWriter(tmp_path, keep_last=1, background=background)
    writer.save(1, groups(1.0), {})
    writer.wait()
    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "write_all", no_space)
        with pytest.raises(CheckpointError, match=r"step-000002: cannot be written: No space left.*Free disk space"):
            save_and_wait(writer, 2, groups(2.0))
    assert names(tmp_path) == ["step-000001"]
    assert latest_checkpoint(tmp_path).tensors("model")["w"].eq(1).all()
    writer.save(3, groups(3.0), {})  # told once; training goes on
    writer.close()
    assert steps(tmp_path) == [3]


def test_an_error_in_the_background_is_raised_by_the_next_save_or_by_close(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "write_all", no_space)
    writer = CheckpointWriter(tmp_path)
    writer.save(1, groups(), {})
    with pytest.raises(CheckpointError, match="step-000001"):
        writer.save(2, groups(), {})
    writer.save(3, groups(), {})
    with pytest.raises(CheckpointError, match="step-000003"):
        writer.close()
    writer.close()
    with pytest.raises(ZeroDivisionError) as caught, CheckpointWriter(tmp_path) as writer:
        writer.save(4, groups(), {})
        _ = 1 / 0
    assert "step-000004" in caught.value.__notes__[0]


def test_a_failing_callback_is_told_and_the_checkpoint_is_there(tmp_path):
    def broken(_):
        raise KeyError("oops")

    writer = CheckpointWriter(tmp_path, on_saved=broken)
    writer.save(1, {}, {})
    with pytest.raises(CheckpointError, match="after saving: KeyError: 'oops'"):
        writer.close()
    assert latest_checkpoint(tmp_path).step == 1


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.strip()}")
    try:
        with CheckpointWriter(disk, keep_last=1) as writer:
            writer.save(1, groups(1.0), {})
            writer.wait()
            writer.save(2, {"model": {"w": torch.zeros(400_000)}}, {})
            with pytest.raises(CheckpointError, match=r"No space left on device \(0\.\d+ MiB|No space left on device \(1\.0 MiB"):
                writer.wait()
            assert names(disk) == ["step-000001"]
            assert latest_checkpoint(disk).tensors("model")["w"].eq(1).all()
            writer.save(3, groups(3.0), {})
        assert steps(disk) == [3]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------------------------------- kill -9

SAVERS = """
import os, sys, torch
from tauon.artifacts import CheckpointWriter, latest_checkpoint
folder = sys.argv[1]
for _ in sys.stdin:  # torch is imported once; each line starts a process that saves until it is killed
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        print("gone", flush=True)
        continue
    last = latest_checkpoint(folder)
    step = last.step - 1 if last else 0  # the newest is written once more: a replacement can be cut too
    print(os.getpid(), flush=True)
    with CheckpointWriter(folder, keep_last=2, parent=last.hash if last else None) as writer:
        while True:
            step += 1
            given = {"model": {"w": torch.full((300_000,), float(step))}, "optim": {"m": torch.full((5,), -float(step))}}
            writer.save(step, given, {"step": step})
"""


def test_kill_9_at_ten_random_moments_always_leaves_a_whole_checkpoint(tmp_path):
    draw = random.Random(1)
    reached = 0
    savers = subprocess.Popen([sys.executable, "-c", SAVERS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(10):
        savers.stdin.write("go\n")
        savers.stdin.flush()
        pid = int(savers.stdout.readline())
        deadline = time.monotonic() + 60
        while max(steps(tmp_path), default=0) <= reached and time.monotonic() < deadline:
            time.sleep(0.005)  # however slow the machine is: each attempt gets somewhere
        time.sleep(draw.uniform(0.0, 0.2))
        os.kill(pid, signal.SIGKILL)
        assert savers.stdout.readline() == "gone\n"
        heard: list[str] = []
        found = latest_checkpoint(tmp_path, warn=heard.append)
        assert heard == []  # a kill tears nothing: what was not finished was never under its own name
        assert found is not None
        assert found.step > reached
        assert found.state == {"step": found.step}
        assert found.tensors("model")["w"].eq(found.step).all()
        assert found.tensors("optim")["m"].eq(-found.step).all()
        assert all(not name.startswith(".") for name in names(tmp_path))
        reached = found.step
    savers.communicate()
    assert savers.returncode == 0
