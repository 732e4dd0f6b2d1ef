"""Files that unpack to far more than they are: refused with the bound, before the memory is full."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tauon.config import parse
from tauon.data import files
from tauon.data.files import VARIABLE, most_unpacked, read_bytes
from tauon.data.sources import SourceConfig
from tauon.data.sources.audio_file import read_wav
from tauon.data.sources.wav import wav_files
from tauon.data.text_files import text_lines
from tauon.errors import DataError

MIB = 2**20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that a test can reach quickly."""
    monkeypatch.setattr(files, "ALWAYS", 4 * MIB)


def packed_gz(path: Path) -> Path:
    with gzip.open(path, "wb") as file:
        for _ in range(64):
            file.write(bytes(MIB))
    return path


def packed_zst(path: Path) -> Path:
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    path.write_bytes(zstandard.ZstdCompressor(level=1).compress(bytes(64 * MIB)))
    return path


def lines_of(path: Path) -> None:
    for _ in text_lines(path):
        pass


@pytest.mark.parametrize("read", [read_bytes, lines_of])
@pytest.mark.parametrize("pack", [packed_gz, packed_zst])
def test_a_bomb_is_refused_with_its_bound_before_memory_is_full(
    pack: Callable[[Path], Path], read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = pack(tmp_path / "bomb")
    bound = most_unpacked(path.stat().st_size)
    assert bound < 16 * MIB
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"{path.name}: .* decompress to more than {bound:,}: .*{VARIABLE}"):
            read(path)
        # what was unpacked so far, once more as a buffer that grows; of zstd one piece of 4 KiB packed beside it
        assert tracemalloc.get_traced_memory()[1] < 4 * bound + (128 * MIB if pack is packed_zst else 0)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [packed_gz, packed_zst])
def test_the_bound_can_be_moved_by_who_knows_the_file(
    pack: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "large")
    monkeypatch.setenv(VARIABLE, str(64 * MIB))
    assert len(read_bytes(path)) == 64 * MIB
    monkeypatch.setenv(VARIABLE, str(64 * MIB - 1))
    with pytest.raises(DataError, match="decompress to more than"):
        read_bytes(path)
    for odd in ("", "64GiB", "-1", "0"):
        monkeypatch.setenv(VARIABLE, odd)
        with pytest.raises(DataError, match=f"{VARIABLE} is '{odd}', expected a number of bytes"):
            read_bytes(path)


def test_what_packs_as_data_does_is_read(tmp_path: Path) -> None:
    """Zeros of 4 MiB, and several frames one behind the other."""
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    content = bytes(4 * MIB)
    for name, raw in {
        "a.gz": gzip.compress(content[: 2 * MIB]) * 2,
        "b.zst": zstandard.ZstdCompressor().compress(content[: 2 * MIB]) + zstandard.ZstdCompressor().compress(content[2 * MIB :]),
    }.items():
        (tmp_path / name).write_bytes(raw)
        assert read_bytes(tmp_path / name) == content
    many = b"".join(zstandard.ZstdCompressor().compress(b"%d," % i) for i in range(3000))  # frames that end within and across pieces
    (tmp_path / "c.zst").write_bytes(many)
    assert read_bytes(tmp_path / "c.zst") == b"".join(b"%d," % i for i in range(3000))
    (tmp_path / "d.zst").write_bytes(many[:-3])
    with pytest.raises(DataError, match="truncated zstd"):
        read_bytes(tmp_path / "d.zst")


def test_a_zip_of_recordings_that_is_a_bomb_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sound.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for i in range(8):
            z.writestr(f"dog/{i}.wav", bytes(2 * MIB))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("was unpacked"))
    with pytest.raises(DataError, match=r"sound\.zip: .* decompress to more than 4,194,304"):
        wav_files(path)


def test_an_archive_of_arrays_that_is_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x_train=np.zeros((4, 2**20)), y_train=np.zeros(4, np.int64))
    source = parse(SourceConfig, {"kind": "npz", "path": str(path)})
    with pytest.raises(DataError, match=r"a\.npz: .* decompress to more than 4,194,304"):
        source.arrays()


def test_an_array_whose_header_asks_for_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 1)})
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x_train.npy", held.getvalue() + bytes(32))
        labels = io.BytesIO()
        np.save(labels, np.zeros(4, np.int64))
        z.writestr("y_train.npy", labels.getvalue())
    with pytest.raises(
        DataError, match=r"array 'x_train' cannot be read: damaged \(its header asks for 8,796,093,022,208 bytes, but it has"
    ):
        parse(SourceConfig, {"kind": "npz", "path": str(path)}).arrays()


def test_a_recording_whose_header_says_more_than_there_is_takes_no_memory() -> None:
    held = io.BytesIO()
    with wave.open(held, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(8000)
        w.writeframes(bytes(1000))
    raw = bytearray(held.getvalue())
    raw[40:44] = (2**32 - 2).to_bytes(4, "little")  # bytes of sound, as the header says
    tracemalloc.start()
    with pytest.raises(DataError, match="the header says 4,294,967,294"):
        read_wav(bytes(raw), "long.wav")
    assert tracemalloc.get_traced_memory()[1] < MIB
    tracemalloc.stop()


def test_a_packed_recording_that_is_a_bomb_is_refused() -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    held = io.BytesIO()
    soundfile.write(held, np.zeros(32 * MIB, np.float32), 8000, format="FLAC")
    with pytest.raises(DataError, match=r"quiet\.flac: .* decompress to more than"):
        read_wav(held.getvalue(), "quiet.flac")


def test_zstd_is_read_a_piece_at_a_time_whatever_its_frames(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    from tauon.data.files import open_bytes

    random = Random(0)
    path = tmp_path / "frames.zst"
    for _ in range(40):
        parts = [bytes(random.choices(b"ab\n", k=random.choice([0, 1, 5, 4096, 9000]))) for _ in range(random.randint(1, 4))]
        packed = b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)
        path.write_bytes(packed)
        with open_bytes(path) as file:
            assert b"".join(file) == b"".join(parts)
            assert file.raw.stream.fileobj.tell() == len(packed)  # type: ignore[attr-defined]  # progress is counted there
    path.write_bytes(zstandard.ZstdCompressor(level=1).compress(random.randbytes(8 * MIB)))
    tracemalloc.start()
    try:
        with open_bytes(path) as file:
            assert len(file.read(100)) == 100
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
