"""A folder of images, one subfolder per class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tauon.data import PICTURE_SUFFIXES
from tauon.errors import DataError
from tauon.starter.draft import Draft, held_out, suffixes, training

__all__ = ["is_pictures", "pictures"]


def is_pictures(place: Path) -> bool:
    found = suffixes(place) if place.is_dir() else Counter()
    return sum(found[s] for s in PICTURE_SUFFIXES) > sum(found.values()) / 2


def pictures(place: Path, label: str | None, name: str) -> Draft:
    if label not in (None, "folder"):
        raise DataError(
            f"the label of images is their folder: expected --label-from folder, got {label!r}. Sort the images into one subfolder per class"
        )
    train = next((place / n for n in ("train", "training") if (place / n).is_dir()), place)
    classes = {d.name: [p for p in d.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES] for d in sorted(train.iterdir()) if d.is_dir()}
    classes = {c: files for c, files in classes.items() if files}
    if len(classes) < 2:
        raise DataError(f"{train}: expected at least two subfolders of images, one per class, found {', '.join(classes) or 'none'}")
    counts = {c: len(files) for c, files in classes.items()}
    total = sum(counts.values())
    sides = _sides([f for files in classes.values() for f in files])
    size, why_size = _side(sides)
    made = Draft(name, f"Which of {len(classes)} classes is on an image? {total:,} images below {place.name}/")
    source: dict[str, Any] = {"kind": "folder", "path": str(place), "size": size}
    data: dict[str, Any] = {"source": source}
    why = [why_size]
    if train == place:
        data["split"], sentence = held_out(total)
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
    made.set(
        "model",
        model,
        f"{'A small residual network' if size <= 64 else 'ResNet-18'}: trains on a laptop at this size. resnet50 or vit want more images.",
    )
    made.set("optim", {"kind": "adamw", "lr": 0.003, "schedule": {"kind": "cosine", "warmup": "5%"}})
    train_section, sentence = training(total, batch=64, seen=100_000)
    made.set("train", train_section, sentence)
    return made


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
