"""Recordings in WAV files: a folder of them, or a zip; labels from folders or names, or transcripts from a list.

Reads uncompressed PCM of 8, 16, 24 or 32 bits with the standard library; several channels are averaged. All files must share one
sampling rate: nothing is resampled behind your back.
"""

from __future__ import annotations

import csv
import io
import json
import re
import wave
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import register
from tauon.data.files import read_bytes
from tauon.data.sources.base import Kind, Signals, SourceConfig
from tauon.errors import DataError

__all__ = ["WavConfig", "chosen", "labelled", "named_parts", "read_wav", "wav_files"]

Choice = dict[str, tuple[str, ...]]


@register("wav")
class WavConfig(SourceConfig):
    """A folder (or zip) of WAV files."""

    path: str
    """Folder, or zip file."""
    pattern: str = "{label}/{name}"
    """How files are called, from `path`, without `.wav`: each {part} is a piece of the name; {label} is the class.
    `{label}_{speaker}_{take}` reads 3_theo_12.wav."""
    only: Choice = Field(default_factory=dict)
    """Take files whose part of the name is one of these: `{speaker: [theo]}`."""
    without: Choice = Field(default_factory=dict)
    """Leave files out whose part of the name is one of these."""
    transcripts: str | None = None
    """CSV or JSONL list of what is said: columns `file` (from `path`) and `text`. Then there are no classes."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What to do with a file that is no whole WAV: stop, or leave it out and say how many."""

    def problems(self) -> Iterator[tuple[str, str]]:
        try:
            names = set(re.findall(r"\{(\w+)\}", self.peek("pattern")))
            matcher(self.peek("pattern"))
        except (ValueError, re.error) as err:
            yield "pattern", f"{self.peek('pattern')!r} cannot be read ({err}). Write it like {{label}}_{{speaker}}_{{take}}."
            return
        if self.peek("transcripts") is None and "label" not in names:
            yield "pattern", f"{self.peek('pattern')!r} has no {{label}}. Say which part of the name is the class, or give transcripts."
        for key in ("only", "without"):
            for part in self.peek(key):
                if part not in names:
                    yield f"{key}.{part}", f"no part of pattern {self.peek('pattern')!r}. There are: {', '.join(sorted(names))}."

    def gives(self) -> Kind:
        return "signals"

    def reads(self) -> list[Path]:
        root = Path(self.path)
        waves = [root] if root.is_file() else [p for p in wav_files(root).values() if isinstance(p, Path)]
        return [*waves, *([Path(self.transcripts)] if self.transcripts is not None else [])]

    def signals(self) -> Signals:
        files = wav_files(self.path)
        skip = self.on_corrupt == "skip"
        if self.transcripts is not None:
            said = read_transcripts(Path(self.transcripts))
            missing = [name for name in said if name not in files]
            if missing:
                raise DataError(f"{self.transcripts}: lists {missing[0]!r}, which is not in {self.path} ({len(missing)} such)")
            waves, rate, names = read_all({n: files[n] for n in said}, skip)
            return Signals(waves, rate, names, transcripts=[said[n] for n in names])
        return labelled(files, self.path, self.pattern, self.only, self.without, skip=skip)


def labelled(
    files: Mapping[str, bytes | Path], where: str, pattern: str, only: Choice, without: Choice, *, skip: bool = False,
    label_names: Mapping[str, str] | None = None,
) -> Signals:  # fmt: skip
    """Files whose names say their class. `label_names`: what to call each label, where the name has a code."""
    parts = chosen(named_parts(list(files), pattern, where), only, without, where)
    waves, rate, names = read_all({n: files[n] for n in parts}, skip)
    labels = sorted({parts[n]["label"] for n in names})
    number = {label: i for i, label in enumerate(labels)}
    targets = np.array([number[parts[n]["label"]] for n in names], np.int64)
    return Signals(waves, rate, names, targets, tuple((label_names or {}).get(label, label) for label in labels))


def wav_files(place: str | Path) -> dict[str, bytes | Path]:
    """Relative name (with /) of each WAV file -> its path, or its bytes in a zip; in order of names."""
    root = Path(place)
    if root.is_file():
        try:
            with zipfile.ZipFile(root) as z:
                found: dict[str, bytes | Path] = {n: z.read(n) for n in sorted(z.namelist()) if n.lower().endswith(".wav")}
        except (zipfile.BadZipFile, OSError, EOFError) as err:
            raise DataError(f"{root}: not a whole zip file ({err}). Give a folder of WAV files, or a zip of one") from None
    elif root.is_dir():
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() == ".wav" and p.is_file())
        found = {p.relative_to(root).as_posix(): p for p in paths}
    else:
        raise DataError(f"{root}: no such folder or zip file. Check data.source.path")
    if not found:
        raise DataError(f"{root}: holds no .wav file. Convert others first, for example: ffmpeg -i in.mp3 out.wav")
    return found


def matcher(pattern: str) -> re.Pattern[str]:
    """A regular expression for names like the pattern; the last part of the path decides, whatever folders stand before."""
    pieces = re.split(r"\{(\w+)\}", pattern)
    if len(pieces) == 1:
        raise ValueError("no {part}")
    text = "".join(re.escape(p) if i % 2 == 0 else f"(?P<{p}>[^/]+?)" for i, p in enumerate(pieces))
    return re.compile(rf"(?:.*/)?{text}\.wav", re.IGNORECASE)


def named_parts(names: list[str], pattern: str, where: str) -> dict[str, dict[str, str]]:
    """The parts of each name. Raises `DataError` for a name that does not fit the pattern."""
    expression = matcher(pattern)
    found = {}
    for name in names:
        match = expression.fullmatch(name)
        if match is None:
            raise DataError(f"{where}: {name} does not fit data.source.pattern {pattern!r}. Change the pattern, or move the file away")
        found[name] = match.groupdict()
    return found


def chosen(parts: dict[str, dict[str, str]], only: Choice, without: Choice, where: str) -> dict[str, dict[str, str]]:
    """Those that `only` and `without` leave."""
    kept = {
        n: p for n, p in parts.items() if all(p[k] in v for k, v in only.items()) and not any(p[k] in v for k, v in without.items())
    }  # fmt: skip
    for name, values in (("only", only), ("without", without)):
        for part, wanted in values.items():
            odd = [v for v in wanted if all(p[part] != v for p in parts.values())]
            if odd:
                there = ", ".join(sorted({p[part] for p in parts.values()})[:12])
                raise DataError(f"{where}: {name}.{part}: no file has {odd[0]!r}. There are: {there}")
    if not kept:
        raise DataError(f"{where}: no file is left after `only` and `without`")
    return kept


def read_all(files: Mapping[str, bytes | Path], skip: bool) -> tuple[list[NDArray[np.float32]], int, list[str]]:
    """(waves, rate, names): files of another sampling rate than the first are a `DataError` that names both."""
    waves: list[NDArray[np.float32]] = []
    names: list[str] = []
    rate = 0
    corrupt: list[str] = []
    for name, held in files.items():
        try:
            samples, its = read_wav(held, name)
        except DataError:
            if not skip:
                raise
            corrupt.append(name)
            continue
        if rate and its != rate:
            raise DataError(
                f"{name}: {its:,} samples a second, and {names[0]} has {rate:,}. All must have one rate: convert them, for example "
                f"ffmpeg -i in.wav -ar {rate} out.wav"
            )
        rate = its
        waves.append(samples)
        names.append(name)
    if not waves:
        raise DataError(f"none of {len(files)} files is a whole WAV file; the first: {next(iter(files), '')}")
    return waves, rate, names


def read_wav(held: bytes | Path, name: str) -> tuple[NDArray[np.float32], int]:
    """(samples in [-1, 1], samples a second). Raises `DataError` for what is no whole, uncompressed WAV."""
    content = held if isinstance(held, bytes) else read_bytes(held)
    try:
        with wave.open(io.BytesIO(content)) as w:
            width, channels, rate, n = w.getsampwidth(), w.getnchannels(), w.getframerate(), w.getnframes()
            raw = w.readframes(n)
    except (wave.Error, EOFError, RuntimeError, ValueError) as err:
        raise DataError(f"{name}: not a whole PCM WAV file ({err}). Repair it, move it away, or set data.source.on_corrupt: skip") from None
    if len(raw) < n * width * channels or not n:
        raise DataError(f"{name}: {len(raw):,} bytes of sound, its header says {n * width * channels:,}. Repair it, or on_corrupt: skip")
    if width == 3:
        bytes_N3 = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        values: NDArray[Any] = ((bytes_N3[:, 0] << 8 | bytes_N3[:, 1] << 16 | bytes_N3[:, 2] << 24) >> 8) / np.float32(2**23)
    elif width == 1:
        values = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    else:
        values = np.frombuffer(raw, {2: "<i2", 4: "<i4"}[width]).astype(np.float32) / np.float32(2 ** (8 * width - 1))
    return values.reshape(-1, channels).mean(1).astype(np.float32), rate


def read_transcripts(path: Path) -> dict[str, str]:
    """File name -> text, of a CSV with columns `file` and `text`, or of JSONL objects with these keys."""
    text = read_bytes(path).decode("utf-8-sig")
    try:
        rows = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else list(csv.DictReader(text.splitlines()))
        )
        said = {str(r["file"]): str(r["text"]).strip() for r in rows}
    except (KeyError, TypeError, ValueError) as err:
        raise DataError(f"{path}: each row needs `file` and `text` ({type(err).__name__}: {err})") from None
    empty = next((n for n, t in said.items() if not t), None)
    if empty is not None or not said:
        raise DataError(f"{path}: " + (f"{empty!r} has no text" if empty else "lists nothing"))
    return said
