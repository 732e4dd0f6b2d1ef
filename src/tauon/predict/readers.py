"""Read raw rows from a file or folder in chunks, in the same way as the training data: the run's `data.source` has the settings (delimiter,
spelling of names, size of images), the file's name decides the format. Predicts nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tauon.data import PICTURE_SUFFIXES, Rows, is_recording, read_wav
from tauon.data.files import expand, open_bytes
from tauon.data.sources.npz import NpzConfig, find_keys, open_archive, read_array
from tauon.data.sources.picture_file import decode_picture, import_pillow
from tauon.data.sources.separated import column_names
from tauon.data.sources.system_files import is_system_file
from tauon.data.sources.tables import ABSENT
from tauon.data.sources.wav import wav_files
from tauon.data.text_files import json_lines, read_text
from tauon.errors import DataError
from tauon.predict.csv_stream import CsvStream

__all__ = ["Reading", "open_reader"]

_PACKED = (".gz", ".zst")
_FILE_COLUMNS = ("file", "path", "filename", "file_name", "name", "image", "picture", "recording", "audio", "wav")
"""Column names of file paths in a list of files."""
_MEDIA_ROWS = 256


@dataclass
class Reading:
    """How to read files."""

    source: Any
    """The run's `data.source`."""
    rows: int = 65536
    """Rows in memory at once."""
    delimiter: str | None = None
    encoding: str | None = None

    def setting(self, name: str, default: Any) -> Any:
        """Return a setting of the training source, if it has it."""
        return getattr(self.source, name, default)

    def pictures(self) -> tuple[tuple[int, int] | None, str, str | None]:
        """Return how images are decoded: size, fit, colours (see `decode_picture`)."""
        size = self.setting("size", None)
        colours = self.setting("colours", "auto")
        fixed = size if isinstance(size, tuple) or size is None else (size, size)
        return fixed, str(self.setting("fit", "crop")), None if colours == "auto" else str(colours)

    def csv(self, path: Path) -> CsvStream:
        """Return a source that reads the file like training would."""
        table = self.source.kind_ in ("csv", "series")
        found = self.delimiter or (self.setting("delimiter", ",") if table else "\t" if suffix_of(path) == ".tsv" else ",")
        encoding = self.encoding or self.setting("encoding", "utf-8")
        header, names = (self.setting("header", True), self.setting("names", ())) if self.source.kind_ == "csv" else (True, ())
        return CsvStream(path, found, encoding, header, tuple(names), self.rows)


def suffix_of(path: Path) -> str:
    """Return the suffix that decides the format: of data.csv.gz, .csv."""
    name = Path(path.stem) if path.suffix.lower() in _PACKED else path
    return name.suffix.lower()


@dataclass
class Reader:
    """Rows of several files, in order."""

    files: list[Path]
    reading: Reading
    done: int = 0
    total: int | None = None
    unit: str = "bytes"
    _before: int = field(default=0, repr=False)

    def columns(self) -> list[str]:
        """Columns of the first file, in order."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Rows]:
        raise NotImplementedError


class TableReader(Reader):
    """CSV, JSON lines, Parquet."""

    def columns(self) -> list[str]:
        return self._columns(self.files[0])

    def _columns(self, path: Path) -> list[str]:
        kind = suffix_of(path)
        if kind == ".parquet":
            return column_names(_parquet(path).schema_arrow.names, str(path))
        if kind in (".jsonl", ".ndjson"):
            known: dict[str, None] = {}
            for _, row in json_lines(path, self.reading.encoding or "utf-8"):
                known |= dict.fromkeys(row)
            return [*known]
        return self.reading.csv(path).names()

    def __iter__(self) -> Iterator[Rows]:
        names = self.columns()
        self.total, self._before = sum(p.stat().st_size for p in self.files), 0
        for path in self.files:
            kind, mine = suffix_of(path), self._columns(path) if path != self.files[0] else names
            odd = sorted({*names} ^ {*mine})
            if odd and kind not in (".jsonl", ".ndjson"):
                has, lacks = (path, self.files[0]) if odd[0] in mine else (self.files[0], path)
                raise DataError(f"{has} has a column {odd[0]!r}, but {lacks} does not. Predict the files one by one")
            parts = _of_parquet if kind == ".parquet" else self._of_json if kind in (".jsonl", ".ndjson") else None
            if parts is None:
                stream = self.reading.csv(path)
                for rows in stream:
                    self.done = self._before + stream.done
                    yield Rows({n: rows.columns[n] for n in names}, rows.where)
            else:
                for rows, share in parts(path, names, self.reading.rows):
                    self.done = self._before + int(share * path.stat().st_size)
                    yield rows
            self._before += path.stat().st_size
            self.done = self._before

    def _of_json(self, path: Path, names: list[str], size: int) -> Iterator[tuple[Rows, float]]:
        total = max(1, sum(1 for _ in _lines_of(path)))
        lines = json_lines(path, self.reading.encoding or "utf-8")
        count = 0
        while taken := list(itertools.islice(lines, size)):
            places = [place for place, _ in taken]
            columns = {name: [row.get(name, ABSENT) for _, row in taken] for name in names}
            count += len(taken)
            yield Rows(columns, lambda i, column, places=places: f"{places[i]}: column {column!r}"), count / total  # type: ignore[misc]


def _lines_of(path: Path) -> Iterator[bytes]:
    with open_bytes(path) as file:
        yield from file


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_bytes(path):  # missing, unreadable: the same messages as for other files
        pass
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as err:
        raise DataError(f"{path}: not a Parquet file ({str(err).splitlines()[0]})") from None


def _of_parquet(path: Path, names: list[str], size: int) -> Iterator[tuple[Rows, float]]:
    import pyarrow as pa

    with _parquet(path) as file:
        total, start = max(1, file.metadata.num_rows), 0
        try:
            for batch in file.iter_batches(batch_size=size):
                columns = dict(zip(column_names(batch.schema.names, str(path)), batch.columns, strict=True))
                first = start
                yield (
                    Rows({n: columns[n] for n in names}, lambda i, column, first=first: f"{path}, row {first + i}: column {column!r}"),  # type: ignore[misc]
                    start / total,
                )
                start += len(batch)
        except (pa.ArrowInvalid, OSError) as err:
            raise DataError(f"{path}: damaged Parquet file ({str(err).splitlines()[0]})") from None


class MediaReader(Reader):
    """Images or recordings: a file, a folder, or a list of files in a table."""

    kind = "pictures"
    listing: TableReader | None = None
    unit = "files"

    def columns(self) -> list[str]:
        return self.listing.columns() if self.listing is not None else ["file"]

    def __iter__(self) -> Iterator[Rows]:
        if self.listing is None:
            root = self.files[0].parent if self.files and not self.reading_root else self.reading_root
            self.total = len(self.files)
            step = min(self.reading.rows, _MEDIA_ROWS)
            for start in range(0, len(self.files), step):
                chosen = self.files[start : start + step]
                names = [p.relative_to(root).as_posix() if p.is_relative_to(root) else str(p) for p in chosen]
                yield self._read(chosen, {"file": names})
                self.done += len(chosen)
            return
        place = self.listing.files[0].parent
        for rows in self.listing:
            self.total, self.unit = self.listing.total, "bytes"
            column = next((c for c in _FILE_COLUMNS if c in rows.columns), None)
            if column is None:
                raise DataError(self._no_files(self.listing, [*rows.columns]))
            for start in range(0, len(rows), _MEDIA_ROWS):
                part = rows.part(start, min(start + _MEDIA_ROWS, len(rows)))
                names = [str(v) for v in _plain(part.columns[column])]
                yield self._read([place / name for name in names], dict(part.columns))
            self.done = self.listing.done

    reading_root: Path = Path()

    def _no_files(self, listing: TableReader, columns: Sequence[str]) -> str:
        """Return the message for a table without a column of file paths."""
        what = "images" if self.kind == "pictures" else "recordings"
        apart = next((d for d in ";\t|" if len(columns) == 1 and d in columns[0]), None)
        cut = "" if apart is None else f" The columns seem to be separated by {apart!r}: set --delimiter."
        return (
            f"{listing.files[0]}: the model reads {what}, expected a folder of {what}, or a CSV with a column 'file' that has their paths, relative to "
            f"the CSV. Columns: {', '.join(columns)}.{cut} Rename the column of paths to 'file', or give the folder: --data FOLDER"
        )

    def _read(self, files: Sequence[Path], columns: dict[str, Any]) -> Rows:
        if self.kind == "pictures":
            name, values = "picture", self._pictures(files)
        else:
            name, values = "recording", [read_wav(path, str(path)) for path in files]
        return Rows(columns | {name: values}, lambda i, column: f"{files[i]}: column {column!r}", frozenset({name}))

    def _pictures(self, files: Sequence[Path]) -> list[Any]:
        import os
        import warnings
        from concurrent.futures import ThreadPoolExecutor

        import_pillow()
        size, fit, shown = self.reading.pictures()
        with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(pool.map(lambda path: decode_picture(path, size, fit, shown), files))
        for path, picture in zip(files, found, strict=True):
            if isinstance(picture, str):
                raise DataError(f"{path}: {picture}. Replace it, or move it out of the folder")
        return found


class TextReader(Reader):
    """Text files, one text per file."""

    unit = "files"

    def columns(self) -> list[str]:
        return ["file"]

    def __iter__(self) -> Iterator[Rows]:
        self.total = len(self.files)
        for start in range(0, len(self.files), _MEDIA_ROWS):
            chosen = self.files[start : start + _MEDIA_ROWS]
            texts = []
            for path in chosen:
                with open_bytes(path) as file:
                    texts.append(read_text(file.read(), str(path), self.reading.encoding or "utf-8"))
            names = [path.name for path in chosen]
            yield Rows({"file": names, "text": texts}, lambda i, column, chosen=chosen: f"{chosen[i]}: {column}", frozenset({"text"}))  # type: ignore[misc]
            self.done += len(chosen)


class ArrayReader(Reader):
    """A .npz archive, or one array in a .npy file. Kept in memory whole."""

    unit = "rows"

    def columns(self) -> list[str]:
        return ["row"]

    def __iter__(self) -> Iterator[Rows]:
        path = self.files[0]
        features = _array_of(path, self.reading.source)
        self.total = len(features)
        step = max(64, self.reading.rows // 64 * 64)
        for start in range(0, len(features), step):
            part = features[start : start + step]
            rows = list(range(start, start + len(part)))
            yield Rows({"row": rows, "array": part}, _row_of(path, start), frozenset({"array"}))
            self.done = start + len(part)


def _row_of(path: Path, start: int) -> Callable[[int, str], str]:
    return lambda i, column: f"{path}, row {start + i}: column {column!r}"


def _array_of(path: Path, source: Any) -> Any:
    """Return the features in an archive, found like `NpzConfig` does; targets are not needed. Images with channels first."""
    with open_bytes(path) as file:
        content = file.read()
    archive = open_archive(content, path)
    asked: str = (source.features or "") if isinstance(source, NpzConfig) else ""
    usual = [n for n in ("x", "X", "images", "features", "data") if n in archive.files]
    held = find_keys(archive, "test")
    one = [*archive.files] if len(archive.files) == 1 else []
    names = ([asked] if asked in archive.files else []) + usual + ([held[0]] if held else []) + one
    loose = [n for n in archive.files if n in ("x_test", "X_test", "test_x", "test_images", "images_test", "test_features")]
    names += loose
    if not names:
        raise DataError(
            f"{path}: no array of features (x, X, images, features, data, or x_test, ...). Available: {', '.join(archive.files)}"
        )
    values = read_array(archive, names[0], path)
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4 and values.shape[-1] <= 4 < values.shape[1]:
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))
    return values[:, None] if values.ndim == 1 else values


def _plain(values: Any) -> list[Any]:
    found: list[Any] = values if isinstance(values, list) else values.to_pylist()
    return found


_TABLES = (".csv", ".tsv", ".txt", ".data", ".jsonl", ".ndjson", ".parquet")


def open_reader(data: Path | str, reads: str, reading: Reading) -> Reader:
    """Return the reader of `data` for a model whose examples are `reads` (`Replay.reads`). `DataError` if such a model cannot read it."""
    path = Path(data).expanduser()
    folder = path.is_dir()
    if reads == "rows":
        return TableReader([p for p, _ in expand(str(data)) if not folder or suffix_of(p) in _TABLES], reading)
    if reads == "texts":
        files = [p for p, _ in expand(str(data)) if not is_system_file(p.name)]
        return (
            TableReader(files, reading)
            if suffix_of(files[0]) in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
            else TextReader(files, reading)
        )
    if reads in ("pictures", "recordings"):
        if path.suffix.lower() in (".npz", ".npy") and reads == "pictures":
            return ArrayReader([path], reading)
        return _media(path, reads, reading)
    if reads == "arrays":
        return ArrayReader([p for p, _ in expand(str(data))], reading)
    raise DataError(f"data of {reads!r} cannot be read from files. Pass rows to tauon.predict.predict_rows")


def _media(path: Path, kind: str, reading: Reading) -> Reader:
    reader = MediaReader([], reading)
    reader.kind = kind
    if path.is_dir():
        found: list[Any]
        if kind == "pictures":
            found = [p for p, _ in expand(str(path)) if p.suffix.lower() in PICTURE_SUFFIXES and not is_system_file(p.name)]
        else:
            found = [held for held in wav_files(path).values() if isinstance(held, Path)]
        if not found:
            raise DataError(f"{path}: has no {'image' if kind == 'pictures' else 'recording'}. Check --data")
        reader.files, reader.reading_root = found, path
        return reader
    if not path.exists():
        expand(str(path))  # raises the right error
    if path.suffix.lower() in PICTURE_SUFFIXES or is_recording(path.name):
        reader.files, reader.reading_root = [path], path.parent
        return reader
    reader.listing = TableReader([path], Reading(_PlainSource(), reading.rows, reading.delimiter, reading.encoding))
    return reader


class _PlainSource:
    """A list of files is usually a plain CSV, whatever the training source was."""

    kind_ = ""
