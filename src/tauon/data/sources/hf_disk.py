"""Hugging Face datasets as `Dataset.save_to_disk` writes them: Arrow streams with JSON beside them, read by pyarrow alone.

Needs no `datasets` library and runs no code of a dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from tauon.config import register
from tauon.data.files import read_bytes
from tauon.data.sources.base import SourceConfig
from tauon.data.sources.separated import column_names
from tauon.data.sources.table_files import python_values
from tauon.data.sources.tables import Row, TableConfig
from tauon.data.spelling import nfc
from tauon.errors import DataError

__all__ = ["HfDiskConfig"]

_SPLITS = {"validation": ("validation", "valid", "dev"), "test": ("test",)}


@register("hf-disk")
class HfDiskConfig(TableConfig):
    """A Hugging Face dataset on disk, written by `save_to_disk`: a Dataset, or a DatasetDict with a folder for each split."""

    split: str = "auto"
    """Split of a DatasetDict. auto: train, with its validation and test splits as held-out data unless the recipe names others."""

    later: ClassVar[tuple[str, ...]] = (*TableConfig.later, "split")

    def _splits(self) -> list[str]:
        """Return the splits of a DatasetDict; none for a Dataset."""
        path = self._base() / "dataset_dict.json"
        return list(_json(path).get("splits", [])) if path.is_file() else []

    def _base(self) -> Path:
        if not isinstance(self.path, str):
            raise DataError("data.source.path of hf-disk is one folder. For several, use a mixture")
        base = Path(self.path).expanduser()
        if not base.is_dir():
            raise DataError(f"{base}: no such folder. Relative paths start at {Path.cwd()}")
        return base

    def _folder(self) -> Path:
        splits = self._splits()
        if not splits:
            if self.split != "auto":
                raise DataError(f"{self._base()}: is one Dataset without splits; remove data.source.split")
            return self._base()
        name = self.split if self.split != "auto" else "train"
        if name not in splits:
            raise DataError(f"{self._base()}: has no split {name!r}. Available: {', '.join(splits)}. Set data.source.split")
        return self._base() / name

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        if self.split != "auto":
            return None
        found = next((s for s in _SPLITS[name] if s in self._splits()), None)
        return None if found is None else self.model_copy(update={"split": found, "limit": None})

    def files(self) -> list[tuple[Path, str]]:
        folder = self._folder()
        state = folder / "state.json"
        if not state.is_file():
            raise DataError(
                f"{folder}: has no state.json, so it was not written by Dataset.save_to_disk. For Parquet files use kind: parquet"
            )
        listed = [Path(f["filename"]).name for f in _json(state)["_data_files"]]  # a name alone: nothing outside of the folder is read
        missing = [n for n in listed if not (folder / n).is_file()]
        if missing:
            raise DataError(f"{folder / missing[0]}: is missing, but state.json names it. Copy the folder again")
        return [(folder / n, f"{folder.name}/{n}" if folder != self._base() else n) for n in listed]

    def columns(self, path: Path) -> list[str]:
        with _arrow(path) as reader:
            return column_names(reader.schema.names, str(path))

    def rows(self, path: Path, columns: Sequence[str], optional: frozenset[str] = frozenset()) -> Iterator[Row]:
        number = 0
        with _arrow(path) as reader:
            spelt = {nfc(name): i for i, name in enumerate(reader.schema.names)}
            for batch in reader:
                values = {c: python_values(batch.column(spelt[c])) for c in dict.fromkeys(columns)}
                for row in zip(*(values[c] for c in columns), strict=True):
                    yield f"{path}, row {number}", row
                    number += 1


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(path))
    except ValueError as err:
        raise DataError(f"{path}: damaged JSON ({err}). Copy the folder again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object")
    return found


class _arrow:
    """An open Arrow stream. Errors of the library become `DataError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        import pyarrow as pa

        try:
            self._file = pa.memory_map(str(self._path))
            return pa.ipc.open_stream(self._file)
        except (pa.ArrowInvalid, OSError) as err:
            raise DataError(f"{self._path}: not an Arrow stream ({str(err).splitlines()[0]}). Copy the folder again") from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        self._file.close()
        if isinstance(error, (pa.ArrowInvalid, OSError)) and not isinstance(error, DataError):
            raise DataError(
                f"{self._path}: damaged or truncated Arrow file ({str(error).splitlines()[0]}). Copy the folder again"
            ) from None
