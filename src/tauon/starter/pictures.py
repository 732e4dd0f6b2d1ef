"""A folder of images, one subfolder per class, or with the class in the file names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tauon.data import PICTURE_SUFFIXES
from tauon.data.sources.class_folders import class_folders, part_of, visible
from tauon.data.sources.system_files import is_system_file
from tauon.errors import DataError
from tauon.starter.draft import FEWEST_GROUPS, Asked, Draft, held_out, suffixes, training
from tauon.starter.names import NameGroups, groups_in_names, part_of_pattern, refuse_people_as_classes

__all__ = ["is_pictures", "pictures"]


def is_pictures(place: Path) -> bool:
    found = suffixes(place) if place.is_dir() else Counter()
    most = sum(found[s] for s in PICTURE_SUFFIXES)
    return most > sum(found.values()) / 2 or (most >= 10 and not any(found[s] for s in (".wav", ".flac", ".mp3", ".txt", ".md")))


def pictures(place: Path, asked: Asked) -> Draft:
    """Draft for images in folders."""
    pattern, level = None, "top"
    base = _unwrapped(place)
    train = part_of(base, "train") or base
    files = _images(train)
    if asked.label not in (None, "folder", "subfolder"):
        if "{label}" not in asked.label:
            raise DataError(
                f"the label of images is their folder, or part of their names: expected --label folder, subfolder, or a pattern like "
                f"{{label}}_{{number}}, got {asked.label!r}"
            )
        pattern = asked.label
    elif asked.label == "subfolder":
        level = "leaf"
    refuse_people_as_classes(place, [p.relative_to(train).parts[0] for p in files if len(p.relative_to(train).parts) > 1], asked)
    labels, why = _labels(train, files, pattern, level, asked)
    counts = Counter(labels)
    if len(counts) < 2:
        raise DataError(
            f"{train}: expected at least two subfolders of images, one per class, found {', '.join(counts) or 'none'}{_pattern_hint(files)}"
        )
    size, why_size = _side(_sides(files))
    made = Draft(
        asked.name, f"Which of {len(counts)} classes is on an image? {len(files):,} images below {place.name}/", examples=len(files)
    )
    source: dict[str, Any] = {"kind": "folder", "path": str(base), "size": size}
    if level != "top":
        source["level"] = level
    named, groups, said = _groups(train, files, labels, pattern, level)
    source |= named
    why += [*said, why_size]
    data: dict[str, Any] = {"source": source}
    sentence = "The parts are the folders beside train."
    if train == base or (part_of(base, "test") is None and part_of(base, "validation") is None):
        data["split"], sentence = held_out(len(files), groups=groups, what=source.get("group", ""))
    why.append(sentence)
    data["normalize"] = "standard"
    data["augment"] = [
        {"kind": "affine", "degrees": 10, "scale": "10%", "translate": "5%"},
        {"kind": "colour", "brightness": 0.2, "contrast": 0.2},
    ]
    why.append("Small turns, sizes and lights are drawn again each epoch. Add `flip` if a mirrored image has the same class.")
    if max(counts.values()) > 1.5 * min(counts.values()):
        data["class_weights"] = "balanced"
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        why.append(f"Classes differ in number ({few}: {counts[few]:,}, {many}: {counts[many]:,}): rare ones weigh as much in all.")
    made.set("data", data, *why)
    made.set("task", "classification")
    model: Any = "resnet20" if size <= 64 else {"kind": "resnet18", "stem": "imagenet"}
    said_model = (
        "A small residual network."
        if size <= 64
        else "ResNet-18. With few images, fine-tuning a trained model is better: model: {from: ...}."
    )
    made.set("model", model, said_model)
    made.set("optim", {"kind": "adamw", "lr": 0.003, "schedule": {"kind": "cosine", "warmup": "5%"}})
    train_section, reasons = training(len(files), batch=64, seen=40_000, most=60)
    made.set("train", train_section, *reasons)
    return made


def _unwrapped(place: Path) -> Path:
    """Return the folder that has the classes: below folders that hold nothing but one other."""
    base = place
    while True:
        inside = class_folders(base)
        if len(inside) != 1 or _images(base, deep=False) or not class_folders(inside[0]):
            return base
        base = inside[0]


def _images(folder: Path, *, deep: bool = True) -> list[Path]:
    found = sorted(folder.rglob("*")) if deep else visible(folder)
    return [p for p in found if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file() and not is_system_file(p.relative_to(folder))]


def _labels(train: Path, files: list[Path], pattern: str | None, level: str, asked: Asked) -> tuple[list[str], list[str]]:
    """Return (class of each file, reasons). Asks whether classes are folders or subfolders, if both are possible."""
    if pattern is not None:
        from tauon.data.sources.name_parts import parts_of_names

        parts = parts_of_names([p.relative_to(train).as_posix() for p in files], pattern, str(train), PICTURE_SUFFIXES)
        return [part["label"] for part in parts.values()], [f"The class is {{label}} in the names: {pattern}."]
    below = [p.relative_to(train).parts[:-1] for p in files]
    if level == "leaf":
        return ["/".join(b) for b in below], ["The class of an image is the innermost folder (level: leaf)."]
    if not all(below):
        return [b[0] if b else "" for b in below if b], []
    top, deep = {b[0] for b in below}, {b for b in below if len(b) > 1}
    leaves = Counter(b[-1] for b in deep)
    if deep and asked.label is None and len(deep) > len(top) and max(leaves.values()) == 1 and not all(v[-1:].isdigit() for v in leaves):
        example = next(iter(sorted(deep)))
        raise DataError(
            f"{train}: folders have subfolders ({'/'.join(example)}): are the classes the {len(top)} folders ({', '.join(sorted(top)[:4])}, ...) or the "
            f"{len({*below})} innermost ones ({', '.join(sorted(leaves)[:4])}, ...)? Say --label folder, or --label subfolder"
        )
    return [b[0] for b in below], []


def _groups(train: Path, files: list[Path], labels: list[str], pattern: str | None, level: str) -> tuple[dict[str, Any], int, list[str]]:
    """Return (`pattern` and `group` of the source, number of groups, reasons)."""
    if pattern is not None:
        part = part_of_pattern(pattern)
        found = groups_in_names([p.name for p in files])
        if part is None:
            return (
                {"pattern": pattern},
                0,
                [f"If a part of the names is a person or a track, set group to it ({found.example})."] if found else [],
            )
        from tauon.data.sources.name_parts import parts_of_names

        parts = parts_of_names([p.relative_to(train).as_posix() for p in files], pattern, str(train), PICTURE_SUFFIXES)
        return {"pattern": pattern, "group": part}, len({p[part] for p in parts.values()}), []
    below = [p.relative_to(train).parts[:-1] for p in files]
    depth = {len(b) for b in below}
    inner = Counter(b[-1] for b in below)
    if depth == {2} and level == "top" and 2 * len(inner) <= len(files):
        if len(inner) < FEWEST_GROUPS:
            return {}, 0, [f"Subfolders ({', '.join(inner)}) are too few to hold some out: figures hold for these alone."]
        said = f"Images of one subfolder, such as {next(iter(inner))}, are read as a group: a person, a session, a track."
        return {"pattern": "{label}/{group}/{name}", "group": "group"}, len(inner), [said]
    found = groups_in_names([p.name for p in files])
    if found is None or depth != {1}:
        return {}, 0, []
    return {"pattern": "{label}/" + found.pattern, "group": "group"}, found.groups, [_said(found)]


def _said(found: NameGroups) -> str:
    return (
        f"File names share a part, {found.example!r} for example: such images are probably of one object, and belong together (group). If they are not, "
        "remove pattern and group."
    )


def _pattern_hint(files: list[Path]) -> str:
    if not files:
        return ""
    return f". If the class is in the names, like {files[0].name!r}: --label '{{label}}_{{number}}'"


def _sides(files: list[Path]) -> list[int]:
    """Return the shorter side of some of the images, in pixels."""
    try:
        from PIL import Image
    except ImportError:
        from tauon.errors import MissingExtra

        raise MissingExtra("reading images", "images") from None
    step = max(1, len(files) // 50)
    found = []
    for path in files[::step]:
        try:
            with Image.open(path) as picture:
                found.append(min(picture.size))
        except OSError:  # damaged: training reports it
            continue
    if not found:
        raise DataError(f"{files[0]}: not a readable image, and neither are the other images that were tried")
    return sorted(found)


def _side(sides: list[int]) -> tuple[int, str]:
    middle = sides[len(sides) // 2]
    size = next((s for s in (28, 32, 48, 64, 96, 128, 160) if s >= middle), 160)
    return size, f"Half of the images are {middle} pixels or less on their shorter side; all are brought to {size} x {size}."
