"""A checkpoint is whole or absent, and gives back every bit; the judges are the safetensors library and a kill -9."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tauon.artifacts.tensor_file as tensor_file
from tauon.artifacts import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    sha256_file,
    steps_in,
)
from tauon.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def steps(folder: Path) -> list[int]:
    return [step for step, _ in steps_in(folder)]


def groups(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((4, 3), value), "b": torch.arange(3)}, "optim": {"m": torch.full((4, 3), -value)}}


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    count = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    raw = torch.frombuffer(bytearray(draw(st.binary(min_size=count, max_size=count)) or b"\0"), dtype=torch.uint8)[:count].clone()
    if dtype is torch.bool:
        raw %= 2
    tensor = raw.view(dtype).reshape(shape)
    if len(shape) > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, -1)  # not contiguous
    return tensor


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(given_=st.dictionaries(st.text(max_size=8).filter(lambda s: s != "__metadata__"), tensors(), max_size=6))
@pytest.mark.parametrize("background", [False, True])
def test_any_tensors_come_back_bit_for_bit(tmp_path_factory, given_, background):
    folder = tmp_path_factory.mktemp("ckpt")
    with CheckpointWriter(folder, background=background) as writer:
        writer.save(3, {"g": given_}, {})
    checkpoint = load_checkpoint(folder / "step-000003")
    for got in (checkpoint.tensors("g"), safetensors.torch.load((checkpoint.path / "g.safetensors").read_bytes())):
        for name, tensor in given_.items():
            if name in got:
                assert (got[name].dtype, got[name].shape, bits(got[name])) == (tensor.dtype, tensor.shape, bits(tensor))
    assert set(checkpoint.tensors("g")) == set(given_)
    shutil.rmtree(folder)


def test_the_file_is_that_of_the_safetensors_library(tmp_path):
    given_ = {"b": torch.randn(3, 5), "a": torch.randn(2).bfloat16(), "c": torch.arange(4), "d": torch.tensor(True)}
    save_checkpoint(tmp_path, 1, {"model": given_}, {})
    ours = (tmp_path / "step-000001" / "model.safetensors").read_bytes()
    theirs = safetensors.torch.save(given_, metadata={"format": "pt"})

    def parsed(raw: bytes):
        size = int.from_bytes(raw[:8], "little")
        return json.loads(raw[8 : 8 + size]), raw[8 + size :]

    assert parsed(ours) == parsed(theirs)


def test_state_step_parent_and_groups_come_back(tmp_path):
    state = {"loss": float("nan"), "best": float("inf"), "data": {"epoch": 2, "position": 2**60}, "text": "Infinity", "none": None}
    first = save_checkpoint(tmp_path, 5, groups(), state)
    second = save_checkpoint(tmp_path, 7, groups(2.0), {}, parent=first.hash)
    again = load_checkpoint(first.path)
    assert math.isnan(again.state.pop("loss"))
    state.pop("loss")
    assert again.state == state
    assert (again.step, again.parent, again.groups(), again.hash) == (5, None, ("model", "optim"), first.hash)
    assert load_checkpoint(second.path).parent == first.hash
    assert first.path.name == "step-000005"


def test_the_manifest_holds_each_files_checksum_and_is_itself_checked(tmp_path):
    checkpoint = save_checkpoint(tmp_path, 5, groups(), {"a": 1})
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"model.safetensors", "optim.safetensors", "state.json"}
    for name, entry in manifest["files"].items():
        raw = (checkpoint.path / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    assert names(checkpoint.path) == sorted([*manifest["files"], "manifest.json"])


def test_the_same_content_has_the_same_hash_and_other_content_another(tmp_path):
    a, b, c = (save_checkpoint(tmp_path / str(i), 5, groups(v), {}) for i, v in enumerate([1.0, 1.0, 2.0]))
    assert a.hash == b.hash != c.hash
    assert save_checkpoint(tmp_path / "p", 5, groups(), {}, parent=c.hash).hash != a.hash


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    shared = torch.randn(100, 100)
    overlapping = shared[:50]  # shares memory, but is another tensor: stored by itself
    given_ = {"embed": shared, "head": shared, "part": overlapping, "t": shared.t()}
    checkpoint = save_checkpoint(tmp_path, 1, {"model": given_}, {})
    file = checkpoint.path / "model.safetensors"
    assert 100_000 < file.stat().st_size < 102_000  # embed, t, part
    got = checkpoint.tensors("model")
    assert got["head"] is got["embed"]
    assert all(torch.equal(got[k], given_[k]) for k in given_)
    with safetensors.safe_open(file, "pt") as opened:  # what safetensors.torch.save_model writes
        assert opened.metadata() == {"format": "pt", "head": "embed"}


def test_a_tied_model_loads_with_the_safetensors_library(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

    model, other = Tied(), Tied()
    checkpoint = save_checkpoint(tmp_path, 1, {"model": model.state_dict()}, {})
    safetensors.torch.load_model(other, checkpoint.path / "model.safetensors")
    assert torch.equal(other.head.weight, model.embed.weight)


def test_adamw_goes_on_bit_for_bit(tmp_path):
    def train(model, optimizer, count):
        for i in range(count):
            generator = torch.Generator().manual_seed(i)
            model(torch.randn(8, 5, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh():
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = fresh()
    train(model, optimizer, 3)
    moments = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    with CheckpointWriter(tmp_path) as writer:
        writer.save(3, {"model": model.state_dict(), "optim": moments}, {})
        train(model, optimizer, 3)  # changes the tensors while they are being written
    saved = latest_checkpoint(tmp_path)
    other, second = fresh()
    other.load_state_dict(saved.tensors("model"))
    state: dict = {0: {}, 1: {}}
    for name, tensor in saved.tensors("optim").items():
        state[int(name[0])][name[2:]] = tensor
    second.load_state_dict({"state": state, "param_groups": second.state_dict()["param_groups"]})
    train(other, second, 3)
    assert bits(other.weight) == bits(model.weight)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"g": {"x": 3}}, "group 'g', tensor 'x': got int.*Put plain values into `state`"),
        ({"g": {"x": torch.empty(2, device="meta")}}, "meta cannot be saved"),
        ({"g": {"x": torch.eye(2).to_sparse()}}, "sparse_coo"),
        ({"g": {"x": torch.zeros(2, dtype=torch.complex128)}}, "complex128"),
        ({"g": {"__metadata__": torch.zeros(2)}}, "Rename it"),
        ({"../g": {}}, "'../g': the name is used as a file name"),
        ({"": {}}, "the name is used as a file name"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, bad, message):
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path, 1, bad, {})
    with CheckpointWriter(tmp_path) as writer, pytest.raises(CheckpointError, match=message):
        writer.save(1, bad, {})
    assert names(tmp_path) == []


def test_state_that_is_no_json_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"state: rng\.torch: Tensor cannot be stored as JSON"):
        save_checkpoint(tmp_path, 1, {}, {"rng": {"torch": torch.zeros(3)}})


# ---------------------------------------------------------------------------------------------- damage


def test_each_kind_of_damage_is_found_and_skipped(tmp_path):
    save_checkpoint(tmp_path, 1, groups(), {})
    damages = {
        "flipped": lambda p: flip(p / "model.safetensors", -3),
        "cut": lambda p: os.truncate(p / "optim.safetensors", 100),
        "grown": lambda p: (p / "state.json").write_bytes((p / "state.json").read_bytes() + b" "),
        "gone": lambda p: (p / "optim.safetensors").unlink(),
        "manifest gone": lambda p: (p / "manifest.json").unlink(),
        "manifest cut": lambda p: os.truncate(p / "manifest.json", 50),
        "manifest empty": lambda p: os.truncate(p / "manifest.json", 0),
        "other format": lambda p: (p / "manifest.json").write_text('{"format": "other"}'),
        "list": lambda p: (p / "manifest.json").write_text("[]"),
    }
    for damage in damages.values():
        damage(save_checkpoint(tmp_path, 2, groups(), {}).path)
        heard: list[str] = []
        found = latest_checkpoint(tmp_path, warn=heard.append)
        assert found is not None
        assert found.step == 1
        assert len(heard) == 1
        assert "step-000002" in heard[0]
        with pytest.raises(CheckpointError, match="step-000002"):
            load_checkpoint(tmp_path / "step-000002")


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def loaded_or_error(path: Path) -> Checkpoint | str:
    try:
        return load_checkpoint(path)
    except CheckpointError as err:
        return str(err)


def test_a_flipped_byte_anywhere_is_found_or_harmless(tmp_path):
    whole = save_checkpoint(tmp_path, 2, groups(), {"a": 1})
    draw = random.Random(0)
    for name in names(whole.path):
        path = whole.path / name
        original = path.read_bytes()
        for at in draw.sample(range(len(original)), min(150, len(original))):
            raw = bytearray(original)
            raw[at] ^= 1 << draw.randrange(8)
            path.write_bytes(raw)
            found = loaded_or_error(whole.path)
            if isinstance(found, str):
                assert name in found
            else:  # a blank in the manifest
                assert (found.hash, found.state, found.manifest) == (whole.hash, whole.state, whole.manifest)
        path.write_bytes(original)


def test_the_checksum_error_says_got_and_expected(tmp_path):
    checkpoint = save_checkpoint(tmp_path, 2, groups(), {})
    expected = sha256_file(checkpoint.path / "model.safetensors")
    flip(checkpoint.path / "model.safetensors", -1)
    got = sha256_file(checkpoint.path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: SHA-256 is {got}, expected {expected}.*earlier checkpoint"):
        load_checkpoint(checkpoint.path)
    assert load_checkpoint(checkpoint.path, verify=False).step == 2


def test_a_manifest_that_points_out_of_the_folder_is_refused(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "c", 2, groups(), {})
    (tmp_path / "c" / "secret.safetensors").write_bytes(b"")
    manifest = dict(checkpoint.manifest)
    manifest["files"] = manifest["files"] | {"../secret.safetensors": {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}}
    from tauon.artifacts.checkpoint import _digest

    manifest["sha256"] = _digest(manifest)
    (checkpoint.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="expected plain names"):
        load_checkpoint(checkpoint.path)


def test_no_checkpoint_is_none_and_a_wrong_path_an_error(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "step-000009").write_text("a file")
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere")
    checkpoint = save_checkpoint(tmp_path, 1, groups(), {})
    with pytest.raises(CheckpointError, match=r"no group 'ema'\. Available: model, optim"):
        checkpoint.tensors("ema")


def test_without_a_listener_a_torn_checkpoint_is_a_python_warning(tmp_path):
    (tmp_path / "step-000003").mkdir()
    with pytest.warns(RuntimeWarning, match="step-000003: no manifest"):
        assert latest_checkpoint(tmp_path) is None


def test_a_step_of_seven_digits_sorts_after_one_of_six(tmp_path):
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, step, {}, {})
    assert latest_checkpoint(tmp_path).step == 1_000_000


# ---------------------------------------------------------------------------------------------- the writer


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
