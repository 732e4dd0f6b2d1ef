"""Audio files in a folder or a zip; labels from folders or file names, or transcripts from a list.

One file is read in `audio_file.py`. All files must have one sampling rate: nothing is resampled silently.
Damaged files are an error, or are skipped and counted per class.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import register
from tauon.data.files import refuse_bomb
from tauon.data.sources.audio_file import AUDIO_SUFFIXES, read_wav
from tauon.data.sources.base import Kind, Signals, SourceConfig
from tauon.data.sources.left_out import SkippedFiles, refuse_vanished
from tauon.data.sources.name_parts import name_matcher, parts_of_names, wrong_group
from tauon.data.sources.system_files import is_system_file
from tauon.data.sources.transcripts import read_transcripts
from tauon.data.spelling import nfc
from tauon.data.text_files import wrong_encoding
from tauon.errors import DataError

__all__ = ["WavConfig", "chosen", "is_recording", "labelled", "named_parts", "read_wav", "wav_files"]

Choice = dict[str, tuple[str, ...]]


@register("wav")
class WavConfig(SourceConfig):
    """A folder (or zip) of WAV files, and with `pip install 'tauon[audio]'` of FLAC, OGG, MP3 and AIFF."""

    path: str
    """Folder, or zip file."""
    pattern: str = "{label}/{name}"
    """Pattern of the file names below `path`, without suffix: each {part} is a piece of the name; {label} is the class.
    `{label}_{speaker}_{take}` reads 3_theo_12.wav."""
    only: Choice = Field(default_factory=dict)
    """Keep files whose part of the name is one of these: `{speaker: [theo]}`."""
    without: Choice = Field(default_factory=dict)
    """Leave files out whose part of the name is one of these."""
    transcripts: str | None = None
    """CSV, TSV or JSONL list of transcripts: columns `file` (relative to `path`) and `text`. Then there are no classes."""
    encoding: str = "utf-8"
    """Encoding of the list of transcripts, read strictly: an invalid byte is an error with its position."""
    group: str | None = None
    """Part of the pattern that belongs together, a speaker: all recordings of one are in the same part. Default: no groups."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What to do with a file that is not a complete recording. skip: leave it out and count it, per class; if half of the files, or all of a
    class, are damaged, it is an error anyway."""

    later: ClassVar[tuple[str, ...]] = ("encoding", "group")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from wrong_encoding(self.raw_value("encoding"))
        if self.raw_value("encoding") != "utf-8" and self.raw_value("transcripts") is None:
            yield "encoding", "has no effect without transcripts, whose encoding it is. Remove it."
        try:
            names = set(re.findall(r"\{(\w+)\}", self.raw_value("pattern")))
            matcher(self.raw_value("pattern"))
        except (ValueError, re.error) as err:
            yield "pattern", f"{self.raw_value('pattern')!r} is not a valid pattern ({err}). Write it like {{label}}_{{speaker}}_{{take}}."
            return
        if self.raw_value("transcripts") is None and "label" not in names:
            yield (
                "pattern",
                f"{self.raw_value('pattern')!r} has no {{label}}. Mark the part of the name that is the class, or set transcripts.",
            )
        yield from wrong_group(self.raw_value("group"), self.raw_value("pattern"))
        for key in ("only", "without"):
            for part in self.raw_value(key):
                if part not in names:
                    yield f"{key}.{part}", f"is not a part of pattern {self.raw_value('pattern')!r}. Its parts: {', '.join(sorted(names))}."

    def output_kind(self) -> Kind:
        return "signals"

    def reads(self) -> list[Path]:
        root = Path(self.path)
        waves = [root] if root.is_file() else [p for p in wav_files(root).values() if isinstance(p, Path)]
        return [*waves, *([Path(self.transcripts)] if self.transcripts is not None else [])]

    def signals(self) -> Signals:
        files, left_out = _found(self.path)
        skip = self.on_corrupt == "skip"
        if self.transcripts is None:
            return self._grouped(labelled(files, self.path, self.pattern, self.only, self.without, skip=skip, left_out=left_out))
        said = read_transcripts(Path(self.transcripts), self.encoding)
        named = {nfc(n): held for n, held in files.items()}
        missing = [name for name in said if name not in named]
        if missing:
            raise DataError(
                f"{self.transcripts}: lists {missing[0]!r}, which is not in {self.path} ({len(missing)} files are missing). Add the files, or remove their rows"
            )
        waves, rate, names, corrupt = read_all({n: named[n] for n in said}, skip)
        left_out.add("damaged recordings", corrupt).add("without a transcript", [n for n in named if n not in said])
        return self._grouped(Signals(waves, rate, names, transcripts=[said[n] for n in names], left_out=left_out.lines()))

    def _grouped(self, found: Signals) -> Signals:
        if self.group is None:
            return found
        parts, group = named_parts([*found.names], self.pattern, self.path), self.group
        return replace(found, groups=[parts[name][group] for name in found.names])


def labelled(
    files: Mapping[str, bytes | Path], where: str, pattern: str, only: Choice, without: Choice, *, skip: bool = False,
    label_names: Mapping[str, str] | None = None, left_out: SkippedFiles | None = None,
) -> Signals:  # fmt: skip
    """Return files whose names contain their class. `label_names`: names of the labels, if the file names have codes. `left_out`: files skipped so far."""
    parts = chosen(named_parts(list(files), pattern, where), only, without, where)
    waves, rate, names, corrupt = read_all({n: files[n] for n in parts}, skip)
    labels = sorted({part["label"] for part in parts.values()})
    number = {label: i for i, label in enumerate(labels)}
    before, targets = (np.array([number[parts[n]["label"]] for n in some], np.int64) for some in (parts, names))
    shown = tuple((label_names or {}).get(label, label) for label in labels)
    refuse_vanished(shown, before, targets, where, "no readable recording", corrupt[0] if corrupt else "")
    left_out = left_out or SkippedFiles()
    for label in labels:
        damaged = [n for n in corrupt if parts[n]["label"] == label]
        left_out.add(f"damaged recordings, class {label}", damaged)
    return Signals(waves, rate, names, targets, shown, left_out=left_out.lines())


def wav_files(place: str | Path) -> dict[str, bytes | Path]:
    """Return relative name (with /) of each recording -> its path, or its bytes in a zip; sorted by name."""
    return _found(place)[0]


def _found(place: str | Path) -> tuple[dict[str, bytes | Path], SkippedFiles]:
    """Return (`wav_files`, the other files)."""
    root = Path(place).expanduser()
    if root.is_file():
        try:
            with zipfile.ZipFile(root) as z:
                inside = sorted(n for n in z.namelist() if not n.endswith("/"))
                refuse_bomb(root, sum(z.getinfo(n).file_size for n in inside if is_recording(n)), root.stat().st_size)
                found: dict[str, bytes | Path] = {n: z.read(n) for n in inside if is_recording(n)}
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as err:  # RuntimeError: it has a password
            raise DataError(f"{root}: damaged zip file ({err}). Set data.source.path to a folder of recordings, or a zip of one") from None
    elif root.is_dir():
        paths = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
        inside = list(paths)
        found = {n: p for n, p in paths.items() if is_recording(n)}
    else:
        raise DataError(f"{root}: no such folder or zip file. Check data.source.path")
    if not found:
        raise DataError(f"{root}: has no recording ({', '.join(AUDIO_SUFFIXES[:5])}, ...). Check data.source.path")
    others = [n for n in inside if n not in found]
    left_out = SkippedFiles().add("files made by the operating system", [n for n in others if is_system_file(n)])
    return found, left_out.add("not recordings by their names", [n for n in others if not is_system_file(n)])


def is_recording(name: str) -> bool:
    """Return whether a name, relative to the data folder, is that of a recording."""
    return name.lower().endswith(AUDIO_SUFFIXES) and not is_system_file(name)


def matcher(pattern: str) -> re.Pattern[str]:
    """Return a regular expression for names of this pattern; it is matched with the last part of the path, in any folder."""
    return name_matcher(pattern, AUDIO_SUFFIXES)


def named_parts(names: list[str], pattern: str, where: str) -> dict[str, dict[str, str]]:
    """Return the parts of each name. Raises `DataError` if a name does not match the pattern."""
    return parts_of_names(names, pattern, where, AUDIO_SUFFIXES)


def chosen(parts: dict[str, dict[str, str]], only: Choice, without: Choice, where: str) -> dict[str, dict[str, str]]:
    """Return the entries that `only` and `without` keep."""
    kept = {
        n: p for n, p in parts.items() if all(p[k] in v for k, v in only.items()) and not any(p[k] in v for k, v in without.items())
    }  # fmt: skip
    for name, values in (("only", only), ("without", without)):
        for part, wanted in values.items():
            odd = [v for v in wanted if all(p[part] != v for p in parts.values())]
            if odd:
                there = ", ".join(sorted({p[part] for p in parts.values()})[:12])
                raise DataError(f"{where}: {name}.{part}: no file has {odd[0]!r}. Values found: {there}")
    if not kept:
        raise DataError(f"{where}: no file is left after data.source.only and data.source.without. Relax one of them")
    return kept


def read_all(files: Mapping[str, bytes | Path], skip: bool) -> tuple[list[NDArray[np.float32]], int, list[str], list[str]]:
    """Return (waves, rate, names, names of damaged files). `DataError` for a file with another sampling rate than the first."""
    waves: list[NDArray[np.float32]] = []
    names: list[str] = []
    rate = 0
    corrupt: list[str] = []
    first = ""
    for name, held in files.items():
        try:
            samples, its = read_wav(held, name)
        except DataError as err:
            if not skip:
                raise
            corrupt.append(name)
            first = first or str(err)
            continue
        if rate and its != rate:
            raise DataError(
                f"{name}: sampling rate {its:,} Hz, but {names[0]} has {rate:,} Hz. All files must have one rate: convert them, for example "
                f"ffmpeg -i in.wav -ar {rate} out.wav"
            )
        rate = its
        waves.append(samples)
        names.append(name)
    if 2 * len(corrupt) >= len(files):
        raise DataError(f"{len(corrupt):,} of {len(files):,} files are damaged recordings, too many to skip. The first: {first}")
    return waves, rate, names, corrupt
