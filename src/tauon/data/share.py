"""Prepared documents for other programs: Parquet, WebDataset tars, a Hugging Face dataset on disk. Texts are decoded from the tokens, so that
they are what the model was trained on: split, cleaned, deduplicated. Each row says where it came from.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tauon.data.files import canonical, sha256_bytes, write_plain_json
from tauon.data.progress import report
from tauon.data.split import PARTS
from tauon.data.trace import Trail
from tauon.errors import DataError

__all__ = ["FORMATS", "export_documents"]

_ROWS = 2000
"""Documents in memory, and in a row group or a tar."""
_PER_FILE = 50
"""Row groups in a file."""


def export_documents(trail: Trail, target: str, folder: Path) -> dict[str, int]:
    """Write every part's documents below a new folder, as `target`: parquet, webdataset or huggingface. Returns the documents of each part."""
    if target not in FORMATS:
        raise DataError(f"no format is called {target!r}. Available: {', '.join(FORMATS)}")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty. Name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    parts = [part for part in PARTS if (trail.folder / part).is_dir()]
    try:
        counts: dict[str, int] = {}
        for part in parts:
            (temporary / part).mkdir(parents=True)
            counts[part] = FORMATS[target](documents_of(trail, part), temporary / part, part)
        if target == "huggingface":
            write_plain_json(temporary / "dataset_dict.json", {"splits": parts})
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as err:
        raise DataError(f"{folder}: cannot be written ({err.strerror or err}). Free disk space, or name another folder") from err
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def documents_of(trail: Trail, part: str) -> Iterator[dict[str, Any]]:
    """Yield each document of a part in order: text, source, record, name, offset, licence."""
    shards, decode = trail.shards(part), trail.tokenizer.decode
    sources = shards.sources
    for number, ids in enumerate(shards.documents()):
        origin = shards.origin(number)
        facts = sources[origin.source]
        yield {
            "text": decode(ids), "source": str(facts.get("name", origin.source)), "record": origin.record, "name": origin.name,
            "offset": origin.offset, "licence": facts.get("licence"),
        }  # fmt: skip
        if number % 1000 == 0:
            report(f"export {part}", number, len(shards.starts))


def _schema() -> Any:
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    return pa.schema([("text", text), ("source", text), ("record", whole), ("name", text), ("offset", whole), ("licence", text)])


def _tables(documents: Iterator[dict[str, Any]]) -> Iterator[Any]:
    import pyarrow as pa

    while rows := list(islice(documents, _ROWS)):
        yield pa.Table.from_pylist(rows, _schema())


def _files(documents: Iterator[dict[str, Any]]) -> Iterator[Iterator[Any]]:
    """Yield the tables of one file after another."""
    tables = _tables(documents)
    for first in tables:
        yield (t for group in ([first], islice(tables, _PER_FILE - 1)) for t in group)


def to_parquet(documents: Iterator[dict[str, Any]], folder: Path, part: str) -> int:
    """Write `part-00000.parquet`, ..."""
    import pyarrow.parquet as pq

    count = 0
    for number, tables in enumerate(_files(documents)):
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", _schema(), compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
                count += len(table)
    return count


def to_webdataset(documents: Iterator[dict[str, Any]], folder: Path, part: str) -> int:
    """Write `train-000000.tar`, ...: of each document a `.txt` and a `.json` with where it came from. Equal documents make equal bytes."""
    count = number = 0
    while rows := list(islice(documents, _ROWS * 5)):
        with tarfile.open(folder / f"{part}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows:
                facts = {k: v for k, v in row.items() if k != "text"}
                for extension, data in (("json", canonical(facts).encode()), ("txt", row["text"].encode())):
                    member = tarfile.TarInfo(f"{count:012d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count += 1
        number += 1
    return count


def to_hugging_face(documents: Iterator[dict[str, Any]], folder: Path, part: str) -> int:
    """Write what `datasets.load_from_disk` reads: Arrow streams, state.json, dataset_info.json."""
    import pyarrow as pa

    features = {f.name: {"dtype": str(f.type), "_type": "Value"} for f in _schema()}
    schema = _schema().with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    count, names = 0, []
    for number, tables in enumerate(_files(documents)):
        names.append(f"part-{number:05d}.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata(schema.metadata))
                count += len(table)
    fingerprint = sha256_bytes(canonical([part, count, names]).encode())[:16]
    state: dict[str, Any] = {
        "_data_files": [{"filename": n} for n in names], "_fingerprint": fingerprint, "_format_columns": None, "_format_kwargs": {},
        "_format_type": None, "_output_all_columns": False, "_split": part,
    }  # fmt: skip
    write_plain_json(folder / "state.json", state)
    write_plain_json(folder / "dataset_info.json", {"citation": "", "description": "", "features": features, "homepage": "", "license": ""})
    return count


Writer = Callable[[Iterator[dict[str, Any]], Path, str], int]
FORMATS: dict[str, Writer] = {"parquet": to_parquet, "webdataset": to_webdataset, "huggingface": to_hugging_face}
"""What documents are written as."""
