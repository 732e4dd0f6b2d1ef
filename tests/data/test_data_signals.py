"""Recordings: reading WAV files, names and transcripts, one length, augmentation, and what is refused."""

from __future__ import annotations

import io
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.config import parse
from tauon.data import BLANK, DataConfig, inputs_from_waves, prepare, read_wav
from tauon.data.augment import Draws
from tauon.data.signals import fitted
from tauon.errors import DataError, RecipeError
from tones import tone, write_wav


def recordings(folder: Path, n: int = 6, rate: int = 8000) -> Path:
    """n of each of two classes, as {label}_{speaker}_{take}.wav."""
    for label, frequency in (("low", 300), ("high", 1200)):
        for take in range(n):
            write_wav(folder / f"{label}_{'ab'[take % 2]}_{take}.wav", tone(frequency, 0.1 + 0.02 * take, rate), rate)
    return folder


def config(folder: Path, **more: Any) -> DataConfig:
    source = {"kind": "wav", "path": str(folder), "pattern": "{label}_{speaker}_{take}"} | more.pop("source", {})
    return parse(DataConfig, {"source": source} | more)


def prepared(folder: Path, **more: Any) -> Any:
    return prepare(config(folder, **more), seed=0, input_kind="signals")


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_width_of_sample_is_read(tmp_path: Path, width: int, channels: int) -> None:
    wanted = np.round(np.sin(np.arange(50) / 3) * 100) / 128
    whole = (wanted * 2 ** (8 * width - 1)).astype(np.int64)
    raw = b"".join((int(v) + (128 if width == 1 else 0)).to_bytes(width, "little", signed=width > 1) * channels for v in whole)
    path = tmp_path / "x.wav"
    with wave.open(str(path), "wb") as w:
        w.setnchannels(channels)
        w.setsampwidth(width)
        w.setframerate(11025)
        w.writeframes(raw)
    samples, rate = read_wav(path, "x")
    assert rate == 11025
    np.testing.assert_allclose(samples, wanted, atol=1e-6)


def test_names_say_class_and_who_is_held_out(tmp_path: Path) -> None:
    splits = prepared(recordings(tmp_path), source={"without": {"speaker": ["b"]}}, split={"validation": 0})
    assert splits.spec.labels == ("high", "low") and splits.spec.sample_rate == 8000 and len(splits.train) == 6
    whole = prepare(
        parse(DataConfig, {
            "source": {"kind": "wav", "path": str(tmp_path), "pattern": "{label}_{speaker}_{take}", "without": {"speaker": ["b"]}},
            "test": {"kind": "wav", "path": str(tmp_path), "pattern": "{label}_{speaker}_{take}", "only": {"speaker": ["b"]}},
        }), seed=0, input_kind="signals",
    )  # fmt: skip
    assert whole.test is not None and len(whole.test) == 6
    assert whole.test.facts["classes"] == {"high": 3, "low": 3}


def test_folders_are_classes_unless_told_otherwise(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for i in range(3):
            write_wav(tmp_path / label / f"{i}.wav", tone(200 + 300 * i, 0.05, 8000), 8000)
    splits = prepare(
        parse(DataConfig, {"source": {"kind": "wav", "path": str(tmp_path)}, "split": {"validation": 0}}), seed=0, input_kind="signals"
    )
    assert splits.spec.labels == ("cat", "dog")


def test_a_zip_is_its_folder(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        for p in folder.iterdir():
            z.write(p, f"recordings/{p.name}")
    a, b = prepared(folder, split={"validation": 0}), prepared(tmp_path / "z.zip", split={"validation": 0})
    one, two = a.train.batch(np.arange(12)), b.train.batch(np.arange(12))
    assert one.inputs.equal(two.inputs) and one.targets.equal(two.targets)


def test_short_recordings_are_padded_and_long_ones_lose_both_ends() -> None:
    inputs, lengths = fitted([np.ones(3, np.float32), np.arange(10, dtype=np.float32)], 4)
    assert inputs.tolist() == [[1, 1, 1, 0], [3, 4, 5, 6]] and lengths.tolist() == [3, 4]


def test_later_recordings_become_the_same_inputs(tmp_path: Path) -> None:
    splits = prepared(recordings(tmp_path), split={"validation": 0})
    batch = splits.train.batch(np.arange(3))
    names = sorted(p.name for p in tmp_path.iterdir())[:3]
    waves = [read_wav(tmp_path / n, n)[0] for n in names]
    inputs, lengths = inputs_from_waves(splits.preprocess, waves, 8000)
    assert np.array_equal(inputs, batch.inputs.numpy()) and batch.lengths is not None and lengths.tolist() == batch.lengths.tolist()
    with pytest.raises(DataError, match="sampling rate 16,000 Hz, but the model was trained on 8,000"):
        inputs_from_waves(splits.preprocess, waves, 16000)


def test_transcripts_become_characters(tmp_path: Path) -> None:
    recordings(tmp_path / "wav", 2)
    rows = ["file,text", "low_a_0.wav,up and down", "high_a_0.wav,down", "low_b_1.wav,up", "high_b_1.wav,and up"]
    (tmp_path / "said.csv").write_text("\n".join(rows))
    splits = prepared(tmp_path / "wav", source={"transcripts": str(tmp_path / "said.csv")}, split={"validation": 0})
    assert splits.spec.labels == (BLANK, " ", *"adnopuw")
    batch = splits.train.batch(np.arange(4))
    said = ["".join(splits.spec.labels[c] for c in row if c >= 0) for row in batch.targets.tolist()]
    assert said == ["up and down", "down", "up", "and up"]
    spelled = prepared(tmp_path / "wav", signal={"target": "transcript"}, split={"validation": 0})
    assert spelled.spec.labels == (BLANK, " ", *"ghilow")


@pytest.mark.parametrize("step", ["{kind: speed, by: 20%}", "gain", "{kind: shift-audio, seconds: 0.02}", "noise-audio"])
def test_augmentation_depends_on_epoch_and_example_alone(tmp_path: Path, step: str) -> None:
    from tauon.config import read_yaml

    splits = prepared(recordings(tmp_path), augment=[read_yaml(step)])
    train = splits.train
    whole, part = train.batch(np.arange(len(train)), epoch=1), train.batch(np.array([5, 2]), epoch=1)
    assert part.inputs[0].equal(whole.inputs[5]) and part.inputs[1].equal(whole.inputs[2])
    assert not train.batch(np.arange(4), epoch=2).inputs.equal(whole.inputs[:4])
    held = prepared(tmp_path).validation
    assert held.batch(np.arange(1)).inputs.equal(splits.validation.batch(np.arange(1)).inputs)


def test_speed_and_noise_are_as_much_as_was_asked_for() -> None:
    from tauon.data.audio_augment import AudioNoiseConfig, SpeedConfig

    wave_ = tone(440, 0.5, 8000)
    draws = Draws(0, 0, 0, np.arange(40))
    lengths = [len(w) / len(wave_) for w in SpeedConfig(by=0.2).play([wave_] * 40, 8000, draws)]
    assert 1 / 1.2 - 0.01 <= min(lengths) < 0.9 and 1.1 < max(lengths) <= 1 / 0.8 + 0.01
    noisy = AudioNoiseConfig(decibels=(20.0, 20.0)).play([wave_] * 5, 8000, Draws(0, 0, 0, np.arange(5)))
    for x in noisy:
        ratio = 10 * np.log10(np.mean(wave_**2) / np.mean((x - wave_) ** 2))
        assert ratio == pytest.approx(20, abs=0.5)


def broken(folder: Path, what: str) -> None:
    recordings(folder)
    if what == "cut":
        (folder / "low_a_0.wav").write_bytes((folder / "low_a_0.wav").read_bytes()[:200])
    elif what == "text":
        (folder / "low_a_0.wav").write_text("hello")
    elif what == "rate":
        write_wav(folder / "low_a_0.wav", tone(300, 0.1, 16000), 16000)
    elif what == "name":
        (folder / "low_a_0.wav").rename(folder / "odd.wav")
    elif what == "one class":
        for p in folder.glob("high*"):
            p.unlink()
    elif what == "empty":
        for p in folder.iterdir():
            p.unlink()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut", "low_a_0.wav: .*bytes of audio, but the header says"),
        ("text", "low_a_0.wav: not an audio file"),
        ("rate", r"sampling rate 16,000 Hz|sampling rate 8,000 Hz"),
        ("name", "odd.wav does not match data.source.pattern"),
        ("one class", "every training recording has the label 'low'"),
        ("empty", "has no recording"),
    ],
)
def test_bad_recordings_are_named(tmp_path: Path, what: str, said: str) -> None:
    broken(tmp_path, what)
    with pytest.raises(DataError, match=said):
        prepared(tmp_path)


def test_corrupt_recordings_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    broken(tmp_path, "cut")
    assert len(prepared(tmp_path, source={"on_corrupt": "skip"}, split={"validation": 0}).train) == 11


def test_a_speaker_that_is_not_there_is_named_with_those_who_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only.speaker: no file has 'c'. Values found: a, b"):
        prepared(recordings(tmp_path), source={"only": {"speaker": ["c"]}})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pattern": "{speaker}_{take}"}, "has no {label}"),
        ({"pattern": "plain"}, "is not a valid pattern"),
        ({"only": {"town": ["x"]}}, "is not a part of pattern"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        config(tmp_path, source=settings)


def test_a_transcript_with_a_letter_that_training_never_saw_is_named(tmp_path: Path) -> None:
    recordings(tmp_path / "wav", 2)
    (tmp_path / "a.csv").write_text("file,text\nlow_a_0.wav,up\nhigh_a_0.wav,down")
    (tmp_path / "b.csv").write_text("file,text\nlow_b_1.wav,over")
    wav = {"kind": "wav", "path": str(tmp_path / "wav"), "pattern": "{label}_{speaker}_{take}"}
    data = {
        "source": wav | {"transcripts": str(tmp_path / "a.csv")},
        "test": wav | {"transcripts": str(tmp_path / "b.csv")},
        "split": {"validation": 0},
    }
    with pytest.raises(DataError, match="low_b_1.wav: the test transcript has 'v'"):
        prepare(parse(DataConfig, data), seed=0, input_kind="signals")


def test_what_is_said_is_never_cut_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="speech at its end would be lost"):
        prepared(recordings(tmp_path), signal={"target": "transcript", "seconds": 0.05})


def test_the_public_recordings_have_their_official_split(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_DATA", str(mirror))
    splits = prepare(
        parse(DataConfig, {"source": {"kind": "public", "name": "fsdd"}, "split": {"validation": 0}}), seed=0, input_kind="signals"
    )
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (2700, 300) and splits.spec.labels[3] == "three" and splits.spec.sample_rate == 8000
    held = {"kind": "public", "name": "fsdd", "split": "all"}
    data = {"source": held | {"without": {"speaker": ["theo"]}}, "test": held | {"only": {"speaker": ["theo"]}}, "split": {"validation": 0}}
    apart = prepare(parse(DataConfig, data), seed=0, input_kind="signals")
    assert apart.test is not None and (len(apart.train), len(apart.test)) == (2500, 500)


def test_reading_from_bytes_is_reading_from_a_file(tmp_path: Path) -> None:
    write_wav(tmp_path / "x.wav", tone(300, 0.1, 8000), 8000)
    content = (tmp_path / "x.wav").read_bytes()
    assert np.array_equal(read_wav(content, "x")[0], read_wav(tmp_path / "x.wav", "x")[0]) and io.BytesIO(content).read() == content
