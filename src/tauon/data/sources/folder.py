"""A folder of images with one subfolder per class: PNG, JPEG and all other formats that Pillow reads.

Classes are the subfolders, in natural order (sign2 before sign10); so are the files, including those in subfolders of a class. Subfolders
named train, val (valid, validation) and test are published parts. One file is decoded in `picture_file.py`. Damaged, empty and unreadable
files are an error or are skipped and counted; files that are not images by their names are counted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.config import Count, register
from tauon.data.pixel_range import PixelRange
from tauon.data.progress import report
from tauon.data.sources.base import Arrays, Kind, SourceConfig
from tauon.data.sources.class_folders import PART_NAMES, class_folders, natural, part_of, visible
from tauon.data.sources.left_out import SkippedFiles, refuse_vanished
from tauon.data.sources.name_parts import parts_of_names, wrong_group, wrong_pattern
from tauon.data.sources.picture_file import PICTURE_SUFFIXES, decode_picture, import_pillow
from tauon.data.sources.system_files import is_system_file
from tauon.errors import DataError

__all__ = ["FolderConfig"]


@register("folder")
class FolderConfig(SourceConfig):
    """Images in subfolders, one per class. Needs `pip install 'tauon[images]'`. A `limit` takes equally many from every class."""

    path: str
    """The folder: `path/<class>/<image>`, or `path/train/<class>/<image>` with `val` and `test` beside `train`. Subfolders of a class
    belong to it."""
    split: Literal["auto", "train", "validation", "test"] = "auto"
    """Which part to read. auto: the subfolder `train` if it exists, with `val` and `test` as held-out parts; otherwise the folder itself."""
    level: Literal["top", "leaf"] = "top"
    """Which subfolders are the classes, if subfolders have subfolders. top: the first ones; leaf: those that directly contain images."""
    pattern: str | None = None
    """Pattern of the file names below `path`, without suffix, each {part} a piece of the name: `{label}_{number}` reads cat_12.png,
    `{label}/{track}_{frame}` reads stop/3_07.png. {label} is the class. Default: the subfolder is."""
    group: str | None = None
    """Part of the pattern that belongs together (a track, a patient): all images of one are in the same part. Default: no groups."""
    size: Count | tuple[Count, Count] | None = None
    """Side in pixels, or [height, width], to which every image is resized. Default: no resizing; all images must have one size."""
    fit: Literal["crop", "stretch", "pad"] = "crop"
    """How an image of another aspect ratio is fitted to `size`. crop: scale the shorter side, keep the middle; stretch: scale both sides;
    pad: scale the longer side and fill with black."""
    colours: Literal["auto", "rgb", "grey"] = "auto"
    """Channels. auto: grey if every image is grey, otherwise rgb. Transparent pixels become black."""
    value_range: tuple[float, float] | None = None
    """Values of black and white in images deeper than 8 bits; values outside are clipped. Default: one range for the whole data set, measured
    over the training part (whole numbers: the bits in use)."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What to do with a file that is not a complete image. skip: leave it out and count it; if half of the files are damaged, it is an error anyway."""

    provides: ClassVar[Kind] = "arrays"
    later: ClassVar[tuple[str, ...]] = ("value_range", "level", "pattern", "group")

    def problems(self) -> Iterator[tuple[str, str]]:
        size = self.raw_value("size")
        if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
            yield "size", f"got {size}, expected pixels: 32, or [height, width]"
        levels = self.raw_value("value_range")
        if levels is not None and not levels[0] < levels[1]:
            yield "value_range", f"got {list(levels)}, expected the value of black, then a larger one of white: [0, 4095]"
        pattern = self.raw_value("pattern")
        if pattern is not None:
            yield from wrong_pattern(pattern, PICTURE_SUFFIXES, labelled=True)
            if self.raw_value("level") != "top":
                yield "level", "has no effect with pattern, whose {label} is the class; remove one of the two"
        yield from wrong_group(self.raw_value("group"), pattern)
        if size is None and self.raw_value("fit") != "crop":
            yield "fit", "has no effect without size. Set size, or remove fit."

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        if self.split != "auto" or part_of(Path(self.path).expanduser(), "train") is None:
            return None
        if part_of(Path(self.path).expanduser(), name) is None:
            return None
        return self.model_copy(update={"split": name, "limit": None})

    def per_example(self) -> dict[str, Any]:
        return {"fit": self.raw_value("fit") if self.raw_value("size") is not None else None}

    def files(self) -> list[tuple[Path, str]]:
        """(path, class/name) of every image, classes and names in natural order."""
        root = self._root()
        found = [(p, p.relative_to(root).as_posix()) for p, _ in self._labelled(root)]
        if not found:
            raise DataError(
                f"{root}: no image in this folder ({', '.join(PICTURE_SUFFIXES[:4])}, ...). Expected {root.name}/<class>/<image>"
            )
        return found

    def reads(self) -> list[Path]:
        parts = (self, self.part("validation"), self.part("test"))
        return [path for part in parts if part is not None for path, _ in part.files()]

    def arrays(self) -> Arrays:
        root = self._root()
        labelled = self._labelled(root)
        names = tuple(dict.fromkeys(name for _, name in labelled))
        number = {name: i for i, name in enumerate(names)}
        files, targets = [path for path, _ in labelled], [number[name] for _, name in labelled]
        if len(names) == 1 and self.split in ("auto", "train"):
            raise DataError(
                f"{root}: only one class ({names[0]}), expected at least two. Put the images of each class in a subfolder of its own"
            )
        if self.limit is not None and self.limit < len(files):
            keep = _evenly(np.array(targets), self.limit)
            files, targets = [files[i] for i in keep], [targets[i] for i in keep]
        classes = np.array(targets, np.int64)
        pictures, broken = self._decoded(files)
        whole = np.array([i for i, p in enumerate(files) if p not in broken], np.int64)
        first = next((f"{p}: {why}" for p, why in broken.items()), "")
        refuse_vanished(names, classes, classes[whole], str(root), "no readable image", first)
        kept = [files[i] for i in whole]
        features, mixed = self._stacked(kept, pictures)
        left_out, levels = self._left_out(root, broken).lines(), self._range(features, files[0])
        return Arrays(features, classes[whole], (), names, left_out, mixed, levels, groups=self._groups(root, kept))

    def _labelled(self, root: Path) -> list[tuple[Path, str]]:
        """Return (file, class) of every image, classes and names in natural order."""
        if self.pattern is not None:
            files = _pictures(root)
            parts = parts_of_names([p.relative_to(root).as_posix() for p in files], self.pattern, str(root), PICTURE_SUFFIXES)
            named = [(path, part["label"]) for path, part in zip(files, parts.values(), strict=True)]
            return sorted(named, key=lambda one: natural(Path(one[1])))
        if self.level == "leaf":
            folders = sorted({p.parent for p in _pictures(root)}, key=lambda f: [natural(Path(s)) for s in f.relative_to(root).parts])
            if root in folders:
                raise DataError(f"{root}: some images are not in a class folder. Expected {root.name}/<...>/<class>/<image>")
            several = len({f.name for f in folders}) < len(folders)
            called = {f: f.relative_to(root).as_posix() if several else f.name for f in folders}
            return [(p, called[f]) for f in folders for p in _pictures(f) if p.parent == f]
        found = []
        for folder in _classes(root):
            inside = _pictures(folder)
            if not inside:
                raise DataError(f"{folder}: this class folder has no image. Remove the folder, or add images")
            found += [(p, folder.name) for p in inside]
        return found

    def _groups(self, root: Path, files: list[Path]) -> list[str]:
        if self.group is None or self.pattern is None:
            return []
        parts = parts_of_names([p.relative_to(root).as_posix() for p in files], self.pattern, str(root), PICTURE_SUFFIXES)
        return [part[self.group] for part in parts.values()]

    def _root(self) -> Path:
        base = Path(self.path).expanduser()
        if not base.is_dir():
            raise DataError(f"{base}: no such folder. Relative paths start at {Path.cwd()}")
        wanted = "train" if self.split == "auto" else self.split
        found = part_of(base, wanted)
        if found is None and self.split != "auto":
            raise DataError(f"{base}: no subfolder {' or '.join(PART_NAMES[wanted])}, so it has no part {wanted!r}")
        return found or base

    def _decoded(self, files: list[Path]) -> tuple[list[NDArray[Any]], dict[Path, str]]:
        """Return (the decoded images, what is wrong with each damaged file)."""
        import_pillow()
        size = self.size if isinstance(self.size, tuple) or self.size is None else (self.size, self.size)
        fit, colours = self.fit, None if self.colours == "auto" else self.colours
        _ = self.on_corrupt  # read the setting even if no image is damaged
        report("read images", 0, len(files))
        found: list[NDArray[Any] | str] = []
        # Pillow decodes without the interpreter lock. Warning filters are shared by all threads, so they are set here once.
        with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for answer in pool.map(lambda path: decode_picture(path, size, fit, colours), files):
                found.append(answer)
                if len(found) % 500 == 0:
                    report("read images", len(found), len(files))
        report("read images", len(files), len(files))
        broken = {p: a for p, a in zip(files, found, strict=True) if isinstance(a, str)}
        if broken:
            self._refuse_broken(broken, len(files))
        return [a for a in found if not isinstance(a, str)], broken

    def _stacked(self, files: list[Path], pictures: list[NDArray[Any]]) -> tuple[NDArray[Any], tuple[str, ...]]:
        """Return ((N, C, H, W), warnings). All images must have one size; a mix of depths may only be of 8 and 16 bits."""
        colours = self.colours
        grey = colours == "grey" or (colours == "auto" and all(p.shape[2] == 1 for p in pictures))
        shapes = {p.shape[:2] for p in pictures}
        if len(shapes) > 1:
            odd = next(i for i, p in enumerate(pictures) if p.shape[:2] != pictures[0].shape[:2])
            (h, w), (h1, w1) = pictures[odd].shape[:2], pictures[0].shape[:2]
            raise DataError(
                f"{files[odd]}: {w} x {h} pixels, but {files[0]} has {w1} x {h1}. All images must have one size: set data.source.size"
            )
        first = {p.dtype: f for p, f in zip(reversed(pictures), reversed(files), strict=True)}
        said: tuple[str, ...] = ()
        if len(first) > 1:
            (a, file_a), (b, file_b) = sorted(((str(d), f) for d, f in first.items()))[:2]
            if {*first} != {np.dtype(np.uint8), np.dtype(np.uint16)}:
                raise DataError(
                    f"{file_a} has {a} values and {file_b} has {b}, so their brightness cannot be compared. Convert all images to one depth"
                )
            count = sum(p.dtype == np.uint16 for p in pictures)
            said = (
                f"{count:,} of {len(pictures):,} images have 16 bits, the others 8: each is scaled by the depth of its file, so 65535 becomes 255",
            )
            pictures = [p if p.dtype == np.uint8 else np.rint(p / 257).astype(np.uint8) for p in pictures]
        out = np.empty((len(pictures), 1 if grey else 3, *pictures[0].shape[:2]), pictures[0].dtype)
        for i, p in enumerate(pictures):
            out[i] = np.moveaxis(p, -1, 0)  # a grey image is repeated in all three channels if other images are coloured
        return out, said

    def _range(self, features: NDArray[Any], example: Path) -> PixelRange | Literal["bits", "values"] | None:
        stated = self.value_range
        if features.dtype != np.uint8:
            measured: Literal["bits", "values"] = "bits" if features.dtype.kind in "iu" else "values"
            return measured if stated is None else PixelRange(*stated, "as set", clip=True)
        if stated is not None:
            raise DataError(f"data.source.value_range is only for images deeper than 8 bits, but {example} has 8 bits. Remove value_range")
        return None

    def _left_out(self, root: Path, broken: dict[Path, str]) -> SkippedFiles:
        """Damaged files, and all other files below the folder."""
        taken = {path for path, _ in self.files()}
        others = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p not in taken and p.is_file()]
        found = SkippedFiles().add("damaged images", [f"{p}: {why}" for p, why in broken.items()])
        found.add("files made by the operating system", [n for n in others if is_system_file(n)])
        return found.add("not images by their names", [n for n in others if not is_system_file(n)])

    def _refuse_broken(self, broken: dict[Path, str], total: int) -> None:
        path, why = next(iter(broken.items()))
        if self.on_corrupt == "error":
            more = f" ({len(broken)} of {total:,} files are damaged)" if len(broken) > 1 else ""
            raise DataError(f"{path}: {why}{more}. Replace it, or skip damaged files with data.source.on_corrupt=skip")
        if 2 * len(broken) >= total:
            raise DataError(f"{path}: {why}; {len(broken):,} of {total:,} files are damaged images, too many to skip. Check the folder")
        report(f"skipped {len(broken)} damaged images", len(broken), total)


def _classes(root: Path) -> list[Path]:
    found = class_folders(root)
    if not found:
        loose = next((p for p in visible(root) if p.suffix.lower() in PICTURE_SUFFIXES), None)
        problem = f"{loose.name} is not in a class folder" if loose is not None else "it has no subfolder"
        raise DataError(f"{root}: {problem}. Expected {root.name}/<class>/<image>, a subfolder for each class")
    return found


def _pictures(folder: Path) -> list[Path]:
    """The images of a class in natural order, then those of each of its subfolders."""
    inside = visible(folder)
    found = [p for p in inside if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()]
    return found + [p for below in inside if below.is_dir() for p in _pictures(below)]


def _evenly(targets: NDArray[np.int64], limit: int) -> list[int]:
    """Indices of the first files of every class in turn, `limit` in all: the first of the whole list would all be of one class."""
    turn = np.empty(len(targets), np.int64)
    for c in np.unique(targets):
        mine = np.flatnonzero(targets == c)
        turn[mine] = np.arange(len(mine))
    return sorted(np.lexsort((targets, turn))[:limit].tolist())
