"""NumPy archives: features and targets in one `.npz` file, with published parts where its keys name them.

Arrays of Python objects are refused: reading them would run a pickle.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.files import expand, read_bytes, refuse_bomb
from tauon.data.sources.base import Arrays, Kind, SourceConfig, class_targets
from tauon.errors import DataError

__all__ = ["NpzConfig", "find_keys", "open_archive", "read_array"]

Split = Literal["auto", "train", "validation", "test", "all"]

_SPELT = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
_FEATURES, _TARGETS = ("x", "X", "images", "features", "data"), ("y", "Y", "labels", "targets", "target")


@register("npz")
class NpzConfig(SourceConfig):
    """Arrays in a `.npz` file: `x` and `y` (or images and labels, ...), or x_train, y_train, train_images, train_labels, ..."""

    path: str
    """The file."""
    split: Split = "auto"
    """Which part to read. auto: the training part, with the file's own validation and test parts as held-out data unless the recipe names
    others; the whole file if its keys name no parts. all: every part, one after the other."""
    features: str | None = None
    """Key of the features, if it has another name. Images may have channels last: (N, H, W, 1 to 4)."""
    targets: str | None = None
    """Key of the targets."""
    target: Literal["auto", "class", "value"] = "auto"
    """What the targets are. auto: floating-point numbers are values, whole numbers are classes."""
    label_names: tuple[str, ...] = ()
    """Names of the classes 0, 1, ..., or of the columns of values."""

    provides: ClassVar[Kind] = "arrays"

    def problems(self) -> Any:
        if (self.raw_value("features") is None) != (self.raw_value("targets") is None):
            yield "features" if self.raw_value("features") else "targets", "set both keys, features and targets, or neither"
        if self.raw_value("features") is not None and self.raw_value("split") != "auto":
            yield "split", "has no effect if features and targets name their keys; remove one or the other"

    def files(self) -> list[tuple[Path, str]]:
        return [(expand(self.path)[0][0], "npz")]

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        if self.split != "auto" or self.features is not None:
            return None
        path = self.files()[0][0]
        archive = open_archive(read_bytes(path), path)
        if find_keys(archive, name) is None:
            return None
        return self.model_copy(update={"split": name, "limit": None})

    def arrays(self) -> Arrays:
        path = self.files()[0][0]
        archive = open_archive(read_bytes(path), path)
        return _together(archive, self._keys(archive, path), path, self.target, self.label_names)

    def _keys(self, archive: Any, path: Path) -> list[tuple[str, str]]:
        if self.features is not None and self.targets is not None:
            return [(self.features, self.targets)]
        split = self.split
        parts = [p for p in _SPELT if find_keys(archive, p)]
        chosen = (parts if split == "all" else ["train"] if split == "auto" else [split]) if parts else [None]
        found = [find_keys(archive, p) for p in chosen]
        if not parts and split not in ("auto", "all"):
            raise DataError(f"{path}: has no part {split!r}, since its keys name no parts. Its keys: {', '.join(archive.files)}")
        missing = [str(p) for p, f in zip(chosen, found, strict=True) if f is None]
        if missing:
            what = f"has no part {missing[0]!r}" if parts else "has no features and targets under a usual name"
            raise DataError(
                f"{path}: {what}. Its keys: {', '.join(archive.files)}. Set data.source.features and data.source.targets to the keys"
            )
        return [f for f in found if f is not None]


def npz_part(content: bytes, where: str, part: str, label_names: tuple[str, ...]) -> Arrays:
    """One part, by its usual keys, of the bytes of an archive of classes."""
    archive = open_archive(content, where)
    keys = find_keys(archive, part)
    if keys is None:
        raise DataError(f"{where}: has no part {part!r}. Its keys: {', '.join(archive.files)}")
    return _together(archive, [keys], where, "class", label_names)


def _together(archive: Any, keys: list[tuple[str, str]], path: Path | str, target: str, label_names: tuple[str, ...]) -> Arrays:
    """Return the parts of these keys, concatenated, images with channels first."""
    pairs = [(read_array(archive, x, path), read_array(archive, y, path)) for x, y in keys]
    shapes = {x.shape[1:] for x, _ in pairs}
    if len(shapes) > 1:
        raise DataError(f"{path}: the parts have examples of different shapes ({', '.join(map(str, shapes))}), expected one shape")
    features, values = np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
    if features.ndim == 3:
        features = features[:, None]
    elif features.ndim == 4 and features.shape[-1] <= 4 < features.shape[1]:
        features = np.ascontiguousarray(np.moveaxis(features, -1, 1))
    elif features.ndim == 1:
        features = features[:, None]
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if target == "value" or (target == "auto" and values.dtype.kind == "f"):
        names = label_names or tuple(f"y{i}" for i in range(values.shape[1] if values.ndim == 2 else 1))
        return Arrays(features, values.astype(np.float64), (), names)
    targets, names = class_targets(values, f"{path}: {keys[0][1]}", label_names)
    return Arrays(features, targets, (), names)


def find_keys(archive: Any, part: str | None) -> tuple[str, str] | None:
    """Return the keys of (features, targets) of a part, in any usual spelling."""
    words = _SPELT[part] if part else (None,)
    for word in words:
        for x, y in ((x, y) for x in _FEATURES for y in _TARGETS):
            for a, b in ((x, y),) if word is None else ((f"{x}_{word}", f"{y}_{word}"), (f"{word}_{x}", f"{word}_{y}")):
                if a in archive.files and b in archive.files:
                    return a, b
    return None


def open_archive(content: bytes, path: Path | str) -> Any:
    if content.startswith(b"\x93NUMPY"):  # not opened: numpy would allocate whatever its header asks for
        raise DataError(f"{path}: is a single array (.npy), expected a .npz archive with features and targets")
    try:
        archive: Any = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as err:
        raise DataError(f"{path}: not a .npz file, or damaged ({err})") from None
    members: list[zipfile.ZipInfo] = archive.zip.infolist()
    refuse_bomb(path, sum(m.file_size for m in members), len(content))
    return archive


def _refuse_wrong_size(archive: Any, key: str) -> None:
    """Raise ValueError if an array's header asks for more memory than the archive has data for it: numpy would allocate it before it reads."""
    name = key if key in archive.zip.namelist() else f"{key}.npy"
    with archive.zip.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
    wanted, held = math.prod(shape) * dtype.itemsize, archive.zip.getinfo(name).file_size
    if wanted > held and not dtype.hasobject:
        raise ValueError(f"its header asks for {wanted:,} bytes, but it has {held:,}")


def read_array(archive: Any, key: str, path: Path | str) -> NDArray[Any]:
    if key not in archive.files:
        raise DataError(f"{path}: has no array {key!r}. Its keys: {', '.join(archive.files)}")
    try:
        _refuse_wrong_size(archive, key)
        array: NDArray[Any] = archive[key]
    except (ValueError, zipfile.BadZipFile, zlib.error, OSError, EOFError) as err:
        reason = (
            "it contains Python objects, which are not read because loading them could run code"
            if "pickle" in str(err)
            else f"damaged ({err})"
        )
        raise DataError(f"{path}: array {key!r} cannot be read: {reason}") from None
    if array.ndim == 0:
        raise DataError(f"{path}: array {key!r} is a single number, expected one entry per example")
    return array
