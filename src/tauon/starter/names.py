"""Groups in file names: theo_3_12.wav and theo_4_01.wav are of one speaker, 00012_00003.png and 00012_00004.png of one track."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tauon.errors import DataError
from tauon.starter.draft import FEWEST_GROUPS, Asked

__all__ = ["NameGroups", "groups_in_names", "part_of_pattern", "refuse_people_as_classes"]

_APART = re.compile(r"([_-]|(?<=\d)\.(?=\d)|\.)")
_GROUP_PARTS = (
    "speaker", "patient", "subject", "person", "participant", "user", "author", "writer", "singer", "actor", "session", "track", "video", "clip",
    "animal", "bird", "individual", "customer", "group", "site", "recording", "file", "source",
)  # fmt: skip
"""Parts of a pattern that name what belongs together, the most telling first."""


@dataclass(frozen=True)
class NameGroups:
    """Files whose names share a part."""

    pattern: str
    """Of the file name without suffix: {group}_{part1}."""
    groups: int
    example: str


def part_of_pattern(pattern: str) -> str | None:
    """Return the part of a pattern that belongs together by its name, or None."""
    parts = re.findall(r"\{(\w+)\}", pattern)
    return next((name for name in _GROUP_PARTS if name in parts), None)


def groups_in_names(names: Sequence[str]) -> NameGroups | None:
    """Return what belongs together by a repeated part of the file names, or None.

    All names must have equally many parts, separated by _ - or points. A part is a group if it has at least five values, most values occur in
    two files or more, and the rest of the name tells the files of a group apart. The first such part is taken: people put the larger thing first.

    >>> groups_in_names([f"{track:02d}_{frame:02d}.png" for track in range(9) for frame in range(5)]).pattern
    '{group}_{part1}'
    >>> groups_in_names([f"img_{i:03d}.png" for i in range(40)])
    """
    stems = [_stem(n) for n in names]
    cut = [_APART.split(s) for s in stems]
    if len(cut) < 2 * FEWEST_GROUPS or len({tuple(pieces[1::2]) for pieces in cut}) != 1 or len(cut[0]) < 3:
        return None
    columns = list(zip(*(pieces[::2] for pieces in cut), strict=True))
    if not all(all(values) for values in columns):
        return None
    for at, values in enumerate(columns):
        counts = Counter(values)
        repeated = sum(n for n in counts.values() if n > 1)
        if (
            len(counts) >= FEWEST_GROUPS
            and repeated >= 0.8 * len(values)
            and 2 * len(counts) <= len(values)
            and not _is_counter(columns, at)
        ):
            pattern = "".join(piece if i % 2 else ("{group}" if i // 2 == at else f"{{part{i // 2}}}") for i, piece in enumerate(cut[0]))
            return NameGroups(pattern, len(counts), max(counts, key=lambda v: (counts[v], v)))
    return None


def refuse_people_as_classes(place: Path, folders: Sequence[str], asked: Asked) -> None:
    """Raise `DataError` if folders are named as people (speaker_03, patient12), unless folders were said to be the classes."""
    names = {*folders}
    if asked.label is not None or len(names) < 2:
        return
    if all(
        re.fullmatch(r"(?i)(speaker|spk|patient|subject|subj|sub|person|participant|user|actor|singer)[-_ ]?\w*\d+", name) for name in names
    ):
        example = min(names)
        raise DataError(
            f"{place}: folders are named as people ({example}). If they are the classes, say --label folder; if the class is in the file names, "
            f"give the pattern: --label '{{speaker}}/{{label}}_{{take}}'"
        )


def _is_counter(columns: Sequence[tuple[str, ...]], at: int) -> bool:
    """Return whether a part numbers the files within another part that comes later: label_0, label_1, ..."""
    later = columns[at + 1 :]
    return not later or all(len({*other}) == 1 for other in later)


def _stem(name: str) -> str:
    base = name.rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[0] if "." in base else base
