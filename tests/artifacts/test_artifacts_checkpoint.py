"""A checkpoint is whole or absent, and gives back every bit; the judge is the safetensors library."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoint_samples import groups, names
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tauon.artifacts import (
    WEIGHTS,
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    sha256_file,
)
from tauon.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


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


def test_using_a_model_reads_its_weights_only(tmp_path):
    checkpoint = save_checkpoint(tmp_path, 2, groups(), {})
    flip(checkpoint.path / "optim.safetensors", -1)
    assert load_checkpoint(checkpoint.path, verify=WEIGHTS).hash == checkpoint.hash
    with pytest.raises(CheckpointError, match=r"optim\.safetensors"):
        load_checkpoint(checkpoint.path)
    for name in ("model.safetensors", "state.json"):
        other = save_checkpoint(tmp_path, 3, groups(), {}).path
        flip(other / name, -3)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(other, verify=WEIGHTS)
    os.truncate(checkpoint.path / "optim.safetensors", 100)
    with pytest.raises(CheckpointError, match="has 100 bytes"):
        load_checkpoint(checkpoint.path, verify=WEIGHTS)


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
