"""Recordings in a folder or a zip; the class is the folder, or part of the file name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tauon.data import is_recording
from tauon.errors import DataError
from tauon.starter.draft import Draft, held_out, training

__all__ = ["is_recordings", "recordings"]


def _names(place: Path) -> list[str]:
    if place.is_file():
        import zipfile

        try:
            with zipfile.ZipFile(place) as z:
                return sorted(n for n in z.namelist() if is_recording(n))
        except zipfile.BadZipFile:
            return []
    names = (p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
    return sorted(n for n in names if is_recording(n))


def is_recordings(place: Path) -> bool:
    return bool((place.is_dir() or place.suffix.lower() == ".zip") and _names(place))


def recordings(place: Path, label: str | None, name: str) -> Draft:
    names = _names(place)
    folders = {n.split("/")[-2] for n in names if "/" in n}
    if label in (None, "folder"):
        if label is None and len(folders) < 2:
            example = names[0].rsplit("/", 1)[-1]
            raise DataError(
                f"{place}: all recordings are in one folder, so the class must be part of their names. Set the pattern, for {example!r} probably: "
                f"--label-from '{_guess_pattern(example)}'"
            )
        pattern = "{label}/{name}"
    else:
        pattern = label
    source = {"kind": "wav", "path": str(place), "pattern": pattern}
    made = Draft(name, f"What is each of {len(names):,} recordings? From {place.name}")
    split, sentence = held_out(len(names))
    augment: list[Any] = [{"kind": "speed", "by": "10%"}, "gain", "shift-audio", "noise-audio"]
    parts = [p for p in re.findall(r"\{(\w+)\}", pattern) if p not in ("label", "name")]
    more = (
        [f"To test on unseen speakers: without: {{{parts[0]}: [...]}} here, and data.test with only: {{{parts[0]}: [...]}}."]
        if parts
        else []
    )
    made.set(
        "data",
        {"source": source, "split": split, "augment": augment},
        sentence,
        "Speed, loudness, beginning and noise are drawn again each epoch.",
        *more,
    )
    made.set("task", "audio-classification")
    made.set(
        "model",
        {"kind": "speech-cnn", "dropout": "10%"},
        "A small convolutional network over log-mel frames; conformer for longer recordings.",
    )
    made.set("optim", {"kind": "adamw", "lr": 0.002, "schedule": {"kind": "cosine", "final": 0}})
    train, sentence = training(len(names), batch=32, seen=60_000)
    made.set("train", train, sentence)
    return made


def _guess_pattern(example: str) -> str:
    pieces = re.split(r"([_-])", example.rsplit(".", 1)[0])
    named = ["label", "speaker", "take", *(f"part{i}" for i in range(9))]
    return "".join(p if p in "_-" else f"{{{named[i // 2]}}}" for i, p in enumerate(pieces))
