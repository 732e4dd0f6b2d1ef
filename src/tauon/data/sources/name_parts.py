"""File names with parts: `{label}_{speaker}_{take}` reads 3_theo_12.wav. Shared by recordings and images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tauon.errors import DataError

__all__ = ["name_matcher", "parts_of_names", "wrong_group", "wrong_pattern"]


def name_matcher(pattern: str, suffixes: Sequence[str]) -> re.Pattern[str]:
    """Return a regular expression for names of this pattern; it is matched with the last part of the path, in any folder."""
    pieces = re.split(r"\{(\w+)\}", pattern)
    if len(pieces) == 1:
        raise ValueError("no {part}")
    text = "".join(re.escape(p) if i % 2 == 0 else f"(?P<{p}>[^/]+?)" for i, p in enumerate(pieces))
    endings = "|".join(re.escape(suffix) for suffix in suffixes)
    return re.compile(rf"(?:.*/)?{text}(?:{endings})", re.IGNORECASE)


def parts_of_names(names: Sequence[str], pattern: str, where: str, suffixes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the parts of each name. Raises `DataError` if a name does not match the pattern."""
    expression = name_matcher(pattern, suffixes)
    found = {}
    for name in names:
        match = expression.fullmatch(name)
        if match is None:
            raise DataError(
                f"{where}: {name} does not match data.source.pattern {pattern!r}. Change the pattern, or move the file out of the folder"
            )
        found[name] = match.groupdict()
    return found


def wrong_pattern(pattern: str, suffixes: Sequence[str], *, labelled: bool) -> Iterator[tuple[str, str]]:
    """Yield problems of a setting `pattern`; `labelled`: whether it must have the class."""
    try:
        name_matcher(pattern, suffixes)
    except (ValueError, re.error) as err:
        yield "pattern", f"{pattern!r} is not a valid pattern ({err}). Write it like {{label}}_{{speaker}}_{{take}}."
        return
    if labelled and "label" not in re.findall(r"\{(\w+)\}", pattern):
        yield "pattern", f"{pattern!r} has no {{label}}. Mark the part of the name that is the class."


def wrong_group(group: str | None, pattern: str | None) -> Iterator[tuple[str, str]]:
    """Yield problems of a setting `group`, a part of the pattern."""
    if group is None:
        return
    names = re.findall(r"\{(\w+)\}", pattern or "")
    if group == "label":
        yield "group", "is the label, so that all examples of a class would be in one part; name another part of the pattern"
    elif group not in names:
        parts = ", ".join(n for n in names if n != "label")
        needs = f"Its parts: {parts}." if parts else "Set one with that part: {label}/{speaker}_{take}."
        yield "group", f"{group!r} is not a part of pattern {pattern!r}. {needs}"
