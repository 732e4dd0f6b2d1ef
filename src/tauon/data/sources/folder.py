"""A folder of pictures, one subfolder a class: PNG, JPEG and whatever else Pillow reads.

Classes are the subfolders, in natural order (sign2 before sign10), files likewise. Subfolders called train, val (valid, validation) and
test are published parts. Each picture is turned upright as its EXIF says, brought to one mode and one size, and kept as bytes: what fits
in memory. Damaged, empty and unreadable files are named, or left out and counted.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.config import Count, register
from tauon.data.progress import report
from tauon.data.sources.base import Arrays, Kind, SourceConfig
from tauon.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FolderConfig"]

_PARTS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_MOST_PIXELS = 178_956_970
"""Pillow's own limit, beyond which a picture is a decompression bomb."""


@register("folder")
class FolderConfig(SourceConfig):
    """Pictures in subfolders, one a class. Needs `pip install 'tauon[images]'`. A `limit` takes from every class alike."""

    path: str
    """The folder: `path/<class>/<picture>`, or `path/train/<class>/<picture>` with `val` and `test` beside `train`."""
    split: Literal["auto", "train", "validation", "test"] = "auto"
    """Which subfolder of parts. auto: `train` where there is one, with `val` and `test` as its held-out parts; else the folder itself."""
    size: Count | tuple[Count, Count] | None = None
    """Side in pixels, or [height, width], that every picture is brought to. Left out: all must have one size already."""
    fit: Literal["crop", "stretch", "pad"] = "crop"
    """How a picture of another shape comes to `size`. crop: the shorter side is scaled and the middle is kept; stretch: both sides are
    scaled; pad: the longer side is scaled and the rest is black."""
    colours: Literal["auto", "rgb", "grey"] = "auto"
    """Channels. auto: grey where every picture is grey, else rgb. Transparent pixels become black."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What a file that is no whole picture does. skip: it is left out and counted; when half of the files are, it is an error all the same."""

    provides: ClassVar[Kind] = "arrays"

    def problems(self) -> Iterator[tuple[str, str]]:
        size = self.peek("size")
        if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
            yield "size", f"got {size}, expected pixels: 32, or [height, width]"
        if size is None and self.peek("fit") != "crop":
            yield "fit", "has no effect without size. Set size, or drop it."

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        if self.split != "auto" or _part(Path(self.path).expanduser(), "train") is None:
            return None
        if _part(Path(self.path).expanduser(), name) is None:
            return None
        return self.model_copy(update={"split": name, "limit": None})

    def files(self) -> list[tuple[Path, str]]:
        """(path, class/name) of every picture, classes and names in natural order."""
        root = self._root()
        found = [(p, f"{p.parent.name}/{p.name}") for folder in _classes(root) for p in _pictures(folder)]
        if not found:
            raise DataError(f"{root}: no picture in it ({', '.join(_SUFFIXES[:4])}, ...). Expected {root.name}/<class>/<picture>")
        return found

    def reads(self) -> list[Path]:
        parts = (self, self.part("validation"), self.part("test"))
        return [path for part in parts if part is not None for path, _ in part.files()]

    def arrays(self) -> Arrays:
        root, folders = self._root(), _classes(self._root())
        files, targets = [], []
        for number, folder in enumerate(folders):
            inside = _pictures(folder)
            if not inside:
                raise DataError(f"{folder}: the class has no picture. Remove the folder, or put some in")
            files += inside
            targets += [number] * len(inside)
        if len(folders) == 1 and self.split in ("auto", "train"):
            raise DataError(
                f"{root}: one class only ({folders[0].name}): there is nothing to tell apart. Expected a subfolder for each class"
            )
        if self.limit is not None and self.limit < len(files):
            keep = _evenly(np.array(targets), self.limit)
            files, targets = [files[i] for i in keep], [targets[i] for i in keep]
        features, whole, left_out = self._read(files)
        return Arrays(features, np.array(targets, np.int64)[whole], (), tuple(f.name for f in folders), left_out)

    def _root(self) -> Path:
        base = Path(self.path).expanduser()
        if not base.is_dir():
            raise DataError(f"{base}: no such folder. Relative paths start at {Path.cwd()}")
        wanted = "train" if self.split == "auto" else self.split
        found = _part(base, wanted)
        if found is None and self.split != "auto":
            raise DataError(f"{base}: no subfolder {' or '.join(_PARTS[wanted])}, so it has no part {wanted!r}")
        return found or base

    def _read(self, files: list[Path]) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
        """(N, C, H, W) of the files that are whole, their numbers, and what is wrong with each of the others."""
        import_pillow()
        size = self.size if isinstance(self.size, tuple) or self.size is None else (self.size, self.size)
        fit, colours, _ = self.fit, self.colours, self.on_corrupt  # the last is read, too, where no picture is broken
        report("read pictures", 0, len(files))

        def one(path: Path) -> NDArray[np.uint8] | str:
            return _decode(path, size, fit, None if colours == "auto" else colours)

        found: list[NDArray[np.uint8] | str] = []
        # Pillow decodes without the interpreter lock. Its warnings are silenced here, once: filters are not the threads' own.
        with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for answer in pool.map(one, files):
                found.append(answer)
                if len(found) % 500 == 0:
                    report("read pictures", len(found), len(files))
        report("read pictures", len(files), len(files))
        broken = [(p, a) for p, a in zip(files, found, strict=True) if isinstance(a, str)]
        if broken:
            self._refuse_broken(broken, len(files))
        whole = [i for i, a in enumerate(found) if not isinstance(a, str)]
        pictures = [a for a in found if not isinstance(a, str)]
        grey = colours == "grey" or (colours == "auto" and all(p.shape[2] == 1 for p in pictures))
        shapes = {p.shape[:2] for p in pictures}
        if len(shapes) > 1:
            odd = next(i for i, p in enumerate(pictures) if p.shape[:2] != pictures[0].shape[:2])
            (h, w), (h1, w1) = pictures[odd].shape[:2], pictures[0].shape[:2]
            raise DataError(
                f"{files[whole[odd]]}: {w} x {h} pixels, and {files[whole[0]]} has {w1} x {h1}. All must be of one size: set data.source.size"
            )
        channels = 1 if grey else 3
        out = np.empty((len(pictures), channels, *pictures[0].shape[:2]), np.uint8)
        for i, p in enumerate(pictures):
            out[i] = np.moveaxis(p, -1, 0)  # of one channel for all three, where others are coloured
        return out, np.array(whole, np.int64), tuple(f"{p}: {why}" for p, why in broken)

    def _refuse_broken(self, broken: list[tuple[Path, str]], total: int) -> None:
        path, why = broken[0]
        if self.on_corrupt == "error":
            more = f" ({len(broken)} such files of {total:,})" if len(broken) > 1 else ""
            raise DataError(f"{path}: {why}{more}. Replace it, or leave such files out with data.source.on_corrupt=skip")
        if 2 * len(broken) >= total:
            raise DataError(
                f"{path}: {why}; {len(broken):,} of {total:,} files are no whole pictures, too many to leave out. Check the folder"
            )
        report(f"left out {len(broken)} files that are no whole pictures", len(broken), total)


def import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as err:
        raise MissingExtra("reading pictures", "images") from err
    return Image


def _natural(path: Path) -> tuple[list[Any], str]:
    """Numbers in a name count as numbers."""
    return [(1, int(t), "") if t.isdigit() else (0, 0, t.lower()) for t in re.split(r"(\d+)", path.name) if t], path.name


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=_natural)
    except OSError as err:
        raise DataError(f"{folder}: cannot be listed ({err.strerror or err})") from None


def _part(base: Path, name: str) -> Path | None:
    """The subfolder of a part, in any usual spelling; only where `train` is among the subfolders they are parts at all."""
    inside = {p.name.lower(): p for p in _visible(base) if p.is_dir()} if base.is_dir() else {}
    if not any(spelt in inside for spelt in _PARTS["train"]):
        return None
    return next((inside[spelt] for spelt in _PARTS[name] if spelt in inside), None)


def _classes(root: Path) -> list[Path]:
    found = [p for p in _visible(root) if p.is_dir()]
    if not found:
        loose = next((p for p in _visible(root) if p.suffix.lower() in _SUFFIXES), None)
        lies = f"{loose.name} lies in no class" if loose is not None else "it has no subfolder"
        raise DataError(f"{root}: {lies}. Expected {root.name}/<class>/<picture>, a subfolder for each class")
    return found


def _pictures(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.is_file() and p.suffix.lower() in _SUFFIXES]


def _evenly(targets: NDArray[np.int64], limit: int) -> list[int]:
    """The first files of every class in turn, `limit` in all: the first of the whole list would be of one class."""
    turn = np.empty(len(targets), np.int64)
    for c in np.unique(targets):
        mine = np.flatnonzero(targets == c)
        turn[mine] = np.arange(len(mine))
    return sorted(np.lexsort((targets, turn))[:limit].tolist())


def _decode(path: Path, size: tuple[int, int] | None, fit: str, colours: str | None) -> NDArray[np.uint8] | str:
    """(H, W, 1 or 3) of the picture, or why it is none."""
    from PIL import Image, ImageOps

    try:
        content = io.BytesIO(path.read_bytes())
        if path.suffix.lower() == ".png":
            with Image.open(content) as file:
                file.verify()  # its checksums: decoding alone would not look at them
            content.seek(0)
        with Image.open(content) as file:
            if file.width * file.height > _MOST_PIXELS:
                return f"{file.width:,} x {file.height:,} pixels are more than any picture has"
            if size is not None and file.format == "JPEG":
                file.draft(None, (2 * size[1], 2 * size[0]))  # decodes at a half, a quarter, where that is still twice what is wanted
            file.load()
            picture: Image.Image = ImageOps.exif_transpose(file)
        picture = _in_mode(picture, colours)
        if size is not None:
            picture = _at_size(picture, size, fit)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as err:
        if isinstance(err, PermissionError):
            return "may not be read by this user (permission denied)"
        return f"not a whole picture ({str(err).partition(chr(10))[0]})"
    pixels = np.asarray(picture, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _in_mode(picture: Image, colours: str | None) -> Image:
    """RGB or L. Of `colours` None, whichever loses nothing."""
    from PIL import Image as images

    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "F"):  # 16 bits a pixel: scaled, where Pillow would cut off
        wide = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode.startswith("I") and wide.max(initial=0) > 255 else 255.0
        picture = images.fromarray(np.clip(wide * (255.0 / top), 0, 255).round().astype(np.uint8))
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        over = images.new("RGBA", picture.size, (0, 0, 0, 255))
        over.alpha_composite(picture.convert("RGBA"))
        grey = picture.mode in ("LA", "La")
        picture = over.convert("L" if grey else "RGB")
    if colours is not None:
        return picture.convert("L" if colours == "grey" else "RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def _at_size(picture: Image, size: tuple[int, int], fit: str) -> Image:
    """Height and width `size`, bilinear over the whole source area (antialiased)."""
    from PIL import Image as images
    from PIL import ImageOps

    at = (size[1], size[0])
    how = images.Resampling.BILINEAR
    if fit == "stretch":
        return picture.resize(at, how)
    return ImageOps.fit(picture, at, how) if fit == "crop" else ImageOps.pad(picture, at, how)
