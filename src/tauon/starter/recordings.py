"""Recordings in a folder or a zip; the class is the folder, or part of the file name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tauon.data import is_recording
from tauon.data.sources.audio_file import AUDIO_SUFFIXES
from tauon.data.sources.name_parts import parts_of_names
from tauon.errors import DataError
from tauon.starter.draft import FEWEST_GROUPS, Asked, Draft, held_out, training
from tauon.starter.names import groups_in_names, part_of_pattern, refuse_people_as_classes

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


def recordings(place: Path, asked: Asked) -> Draft:
    """Draft for recordings with classes."""
    names = _names(place)
    folders = {n.split("/")[-2] for n in names if "/" in n}
    if asked.label in (None, "folder"):
        refuse_people_as_classes(place, [n.split("/")[-2] for n in names if "/" in n], asked)
        if len(folders) < 2:
            example = names[0].rsplit("/", 1)[-1]
            raise DataError(
                f"{place}: all recordings are in one folder, so the class must be part of their names. Set the pattern, for {example!r} probably: "
                f"--label '{_guess_pattern(example)}'"
            )
        pattern = "{label}/{name}"
    else:
        pattern = str(asked.label)
    source: dict[str, Any] = {"kind": "wav", "path": str(place), "pattern": pattern}
    named, groups, said = _groups(place, names, pattern)
    source |= named
    made = Draft(asked.name, f"What is each of {len(names):,} recordings? From {place.name}", examples=len(names))
    split, sentence = held_out(len(names), groups=groups, what=source.get("group", ""))
    augment: list[Any] = [{"kind": "speed", "by": "10%"}, "gain", "shift-audio", "noise-audio"]
    made.set(
        "data",
        {"source": source, "split": split, "augment": augment},
        *said,
        sentence,
        "Speed, loudness, beginning and noise are drawn again each epoch.",
    )
    made.set("task", "audio-classification")
    made.set(
        "model",
        {"kind": "speech-cnn", "dropout": "10%"},
        "A small convolutional network over log-mel frames; conformer for longer recordings.",
    )
    made.set("optim", {"kind": "adamw", "lr": 0.002, "schedule": {"kind": "cosine", "final": 0}})
    train, reasons = training(len(names), batch=32, seen=60_000, most=80)
    made.set("train", train, *reasons)
    return made


def _groups(place: Path, names: list[str], pattern: str) -> tuple[dict[str, Any], int, list[str]]:
    """Return (`pattern` and `group` of the source, number of groups, reasons)."""
    part = part_of_pattern(pattern)
    if part is not None:
        values = [p[part] for p in parts_of_names(names, pattern, str(place), AUDIO_SUFFIXES).values()]
        distinct = len({*values})
        if distinct >= FEWEST_GROUPS and distinct < len(values):
            return {"group": part}, distinct, []
        return {}, 0, [
            f"There are only {distinct} values of {{{part}}} ({', '.join(sorted({*values})[:4])}), too few to hold some out: figures hold for these alone. "
            f"To test on one of them: without: {{{part}: [...]}} here, and data.test with only: {{{part}: [...]}}."
        ]  # fmt: skip
    if pattern != "{label}/{name}":
        return {}, 0, []
    found = groups_in_names(names)
    if found is None:
        return {}, 0, []
    inside = found.pattern.replace("{group}", "{speaker}")
    said = (
        f"File names share a part, {found.example!r} for example: probably a speaker or a session, whose recordings belong together (group). "
        "If it is neither, remove group."
    )
    return {"pattern": "{label}/" + inside, "group": "speaker"}, found.groups, [said]


def _guess_pattern(example: str) -> str:
    pieces = re.split(r"([_-])", example.rsplit(".", 1)[0])
    named = ["label", "speaker", "take", *(f"part{i}" for i in range(9))]
    return "".join(p if p in "_-" else f"{{{named[i // 2]}}}" for i, p in enumerate(pieces))
