"""Recordings as people have them: many formats, what systems leave behind, damaged files by class, lists of transcripts from a spreadsheet."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.config import parse
from tauon.data import DataConfig, prepare, read_wav
from tauon.data.sources.transcripts import read_transcripts
from tauon.errors import DataError, MissingExtra
from tones import tone, write_wav

RATE = 8000


def recordings(folder: Path, takes: int = 3) -> Path:
    for i, label in enumerate(("high", "low", "middle")):
        for take in range(takes):
            write_wav(folder / label / f"{take}.wav", tone(200 + 100 * i + 10 * take, 0.05, RATE), RATE)
    return folder


def prepared(folder: Path, **source: Any) -> Any:
    data = {"source": {"kind": "wav", "path": str(folder), **source}, "split": {"validation": 0}}
    return prepare(parse(DataConfig, data), seed=0, input_kind="signals")


# ---------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("format_", "subtype", "within"),
    [
        ("WAV", "FLOAT", 0), ("WAV", "DOUBLE", 1e-7), ("WAVEX", "PCM_16", 2**-15), ("WAVEX", "PCM_24", 2**-22), ("WAVEX", "FLOAT", 0),
        ("WAV", "PCM_U8", 2**-7), ("WAV", "PCM_16", 2**-15), ("WAV", "PCM_24", 2**-22), ("WAV", "PCM_32", 1e-7), ("WAV", "ULAW", 0.05),
        ("FLAC", "PCM_16", 2**-15), ("AIFF", "PCM_16", 2**-15), ("OGG", "VORBIS", 0.1), ("MP3", "MPEG_LAYER_III", 0.2), ("RF64", "PCM_16", 2**-15),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_recordings_of_many_formats_give_the_samples_that_were_written(
    tmp_path: Path, format_: str, subtype: str, within: float, channels: int
) -> None:
    soundfile = pytest.importorskip("soundfile")
    wave = tone(440, 0.5, 16000)
    said = np.stack([wave, wave * 0.5], axis=1)[:, :channels]
    soundfile.write(tmp_path / "x.bin", said, 16000, format=format_, subtype=subtype)
    found, rate = read_wav(tmp_path / "x.bin", "x")
    assert rate == 16000 and found.dtype == np.float32 and abs(len(found) - len(wave)) <= 1200 * (format_ == "MP3")
    if format_ != "MP3":  # which delays
        np.testing.assert_allclose(found, said.mean(1), atol=within + 1e-7)


def test_files_that_need_soundfile_say_so_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "x.wav", tone(440, 0.1, RATE), RATE, subtype="FLOAT")
    write_wav(tmp_path / "pcm.wav", tone(440, 0.1, RATE), RATE)
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(MissingExtra, match=r"x.wav: reading anything but uncompressed PCM in WAV needs: pip install 'tauon\[audio\]'"):
        read_wav(tmp_path / "x.wav", "x.wav")
    assert read_wav(tmp_path / "pcm.wav", "pcm.wav")[1] == RATE


def test_damaged_recordings_are_named(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    for format_, subtype in (("WAVEX", "FLOAT"), ("FLAC", "PCM_16")):
        soundfile.write(tmp_path / "x", tone(440, 1, RATE), RATE, format=format_, subtype=subtype)
        whole = (tmp_path / "x").read_bytes()
        for cut in (len(whole) // 2, 20):
            with pytest.raises(DataError, match="take7: "):
                samples, _ = read_wav(whole[:cut], "take7")
                raise AssertionError(f"{format_} cut at {cut} gave {len(samples)} samples")
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0.5], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match="nan.wav: 1 of its samples are NaN or infinite"):
        read_wav(tmp_path / "nan.wav", "nan.wav")


def test_a_folder_may_hold_several_formats(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(recordings(tmp_path) / "low" / "9.flac", tone(300, 0.05, RATE), RATE)
    assert prepared(tmp_path).train.facts["classes"] == {"high": 3, "low": 4, "middle": 3}


# ---------------------------------------------------------------------------------------------- what else lies in a folder


@pytest.mark.parametrize("packed", [False, True])
def test_what_systems_leave_behind_is_skipped_and_counted(tmp_path: Path, packed: bool) -> None:
    place = recordings(tmp_path / "in")
    for name in ("low/._0.wav", "__MACOSX/low/._0.wav", "low/Thumbs.db", "low/notes.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"\x00\x05\x16\x07")
    if packed:
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
            for p in sorted(place.rglob("*")):
                z.write(p, p.relative_to(place).as_posix())
        place = tmp_path / "z.zip"
    made = prepared(place)
    assert made.train.facts["classes"] == {"high": 3, "low": 3, "middle": 3}
    assert made.facts["left_out"]["train"] == [
        "files made by the operating system (3): __MACOSX/low/._0.wav, low/._0.wav, low/Thumbs.db",
        "not recordings by their names (1): low/notes.txt",
    ]


def test_damaged_recordings_that_are_left_out_are_counted_by_class(tmp_path: Path) -> None:
    recordings(tmp_path, takes=4)
    for name in ("high/0.wav", "high/1.wav", "low/3.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
    with pytest.raises(DataError, match="high/0.wav: damaged WAV file"):
        prepared(tmp_path)
    made = prepared(tmp_path, on_corrupt="skip")
    assert made.train.facts["classes"] == {"high": 2, "low": 3, "middle": 4}
    assert made.facts["left_out"]["train"] == [
        "damaged recordings, class high (2): high/0.wav, high/1.wav",
        "damaged recordings, class low (1): low/3.wav",
    ]


def test_a_class_of_which_no_recording_is_whole_is_an_error(tmp_path: Path) -> None:
    recordings(tmp_path)
    for p in (tmp_path / "low").iterdir():
        p.write_bytes(p.read_bytes()[:30])
    with pytest.raises(DataError, match="class 'low' has 3 files but no readable recording among them.*The first: low/0.wav"):
        prepared(tmp_path, on_corrupt="skip")


def test_half_of_all_files_are_too_many_to_leave_out(tmp_path: Path) -> None:
    recordings(tmp_path, takes=2)
    for p in tmp_path.glob("*/0.wav"):
        p.write_bytes(b"RIFF")
    with pytest.raises(DataError, match="3 of 6 files are damaged recordings, too many to skip. The first: high/0.wav"):
        prepared(tmp_path, on_corrupt="skip")


# ---------------------------------------------------------------------------------------------- transcripts


def listed(tmp_path: Path, content: str, name: str = "said.csv", encoding: str = "utf-8", **how: Any) -> dict[str, str]:
    (tmp_path / name).write_bytes(content.encode(encoding))
    return read_transcripts(tmp_path / name, **how)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_transcripts_are_what_csv_says(tmp_path: Path, end: str) -> None:
    rows = [
        "\ufefffile,text,speaker",
        '0.wav,"hello\nworld",a',
        '1.wav,"he said ""no"", twice",b',
        "./sub\\2.wav,a\u2028b,c",
        "",
        "3.wav, plain ,",
    ]
    assert listed(tmp_path, end.join(rows)) == {
        "0.wav": "hello world", "1.wav": 'he said "no", twice', "sub/2.wav": "a b", "3.wav": "plain",
    }  # fmt: skip
    assert listed(tmp_path, "file\ttext\n0.wav\tone, two", "said.tsv") == {"0.wav": "one, two"}


def test_transcripts_are_what_json_says(tmp_path: Path) -> None:
    rows = [{"file": "0.wav", "text": "a\u2028b\u0085c"}, {"file": "1.wav", "text": "line\nbreak", "speaker": None}]
    content = "\ufeff" + "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n"
    assert listed(tmp_path, content, "said.jsonl") == {"0.wav": "a b c", "1.wav": "line break"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.jsonl", '{"file": "0.wav", "text": "a"}\n{"file": "1.wav", "text": null}', "line 2: has no text"),
        ("s.jsonl", '{"file": "0.wav"}', "line 1: has no text"),
        ("s.jsonl", '{"text": "a"}', "line 1: has no file"),
        ("s.jsonl", '{"file": "0.wav", "text": 5}', "line 1: text is 5, expected text in quotes"),
        ("s.jsonl", '{"file": "0.wav", "text": " "}', "line 1: text is empty"),
        ("s.jsonl", '["0.wav", "a"]', "line 1: a JSON list, expected an object"),
        ("s.jsonl", '{"file": "0.wav",', "line 1: not valid JSON"),
        ("s.jsonl", '{"file": "0.wav", "text": "a"}\n\n{"file": "./0.wav", "text": "b"}', "line 3: '0.wav' is listed a second time, first in line 1"),
        ("s.csv", "file,text\n0.wav,a\n0.wav,b", "line 3: '0.wav' is listed a second time, first in line 2"),
        ("s.csv", "file,text\n0.wav", "line 2: has no text"),
        ("s.csv", "file,text\n0.wav,", "line 2: text is empty"),
        ("s.csv", "file,text\n0.wav,one, two", "line 2: 3 cells, but the header has 2"),
        ("s.csv", "path,words\n0.wav,a", "columns are path, words, expected `file` and `text`"),
        ("s.csv", 'file,text\n0.wav,"a', "line 2: not valid CSV .unexpected end of data"),
        ("s.csv", "file,text\n", "the list is empty"),
        ("s.csv", "", "columns are none"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_refused_by_row(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        listed(tmp_path, content, name)


def test_transcripts_of_another_encoding_are_refused_or_read_as_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"said.csv: not utf-8 at byte 19 .*encoding: latin-1"):
        listed(tmp_path, "file,text\n0.wav,caf\u00e9 noir", encoding="latin-1")
    for name in ("latin-1", "utf-16"):
        (tmp_path / "l.csv").write_bytes("file,text\n0.wav,caf\u00e9".encode(name))
        assert read_transcripts(tmp_path / "l.csv", name) == {"0.wav": "caf\u00e9"}


def test_names_with_accents_match_whatever_system_wrote_them(tmp_path: Path) -> None:
    """macOS writes e and an accent (NFD), a spreadsheet one letter (NFC)."""
    for i, name in enumerate(("cafe\u0301.wav", "b.wav", "c.wav")):
        write_wav(tmp_path / "in" / name, tone(200 + 50 * i, 0.05, RATE), RATE)
    (tmp_path / "said.csv").write_text("file,text\ncaf\u00e9.wav,one\nb.wav,two\n", encoding="utf-8")
    made = prepared(tmp_path / "in", transcripts=str(tmp_path / "said.csv"))
    assert len(made.train) == 2
    assert made.facts["left_out"]["train"] == ["without a transcript (1): c.wav"]
