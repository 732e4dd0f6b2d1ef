"""How large a request becomes once it is read: values of JSON, rows of a table, pixels of a picture, samples of a recording. Each is bounded before
the memory is taken, so that a small body cannot fill the machine.
"""

from __future__ import annotations

import io
from typing import Any

from tauon.serve.errors import HttpError

__all__ = ["MOST_ROWS", "MOST_VALUES", "check_json", "check_rows", "check_upload"]

MOST_VALUES = 1_000_000
"""Values in a JSON body: about 100 bytes of memory each."""
MOST_ROWS = 100_000
"""Rows of a request."""
MOST_CELLS = 20_000_000
"""Values in a table that is not JSON."""
MOST_COLUMNS = 50_000
MOST_DECODED = 256 * 2**20
"""Bytes of pixels, samples or cells that all files of a request decode to."""
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_TABLES = (".csv", ".tsv", ".jsonl", ".txt")


def check_json(body: bytes) -> int:
    """Return about how many values a JSON body has. `HttpError` 413 for more than `MOST_VALUES`."""
    values = body.count(b",") + body.count(b"{") + body.count(b"[") + 1
    if values > MOST_VALUES:
        raise HttpError(413, f"the JSON has about {values:,} values, at most {MOST_VALUES:,} are allowed. Send fewer rows, or a CSV.")
    return values


def check_rows(rows: int) -> None:
    """`HttpError` 413 for more than `MOST_ROWS`."""
    if rows > MOST_ROWS:
        raise HttpError(413, f"{rows:,} rows, at most {MOST_ROWS:,} are allowed in a request. Send them in parts, or use `tauon predict`.")


def check_upload(content: bytes, suffix: str, name: str, *, reads: str) -> int:
    """Return the bytes that a file decodes to, as far as its header says.

    Raises:
        HttpError: 415 for a compressed file, 413 for one that is too large once it is read.
    """
    packed = next((kind for start, kind in _PACKED.items() if content.startswith(start)), None)
    if packed is not None and suffix != ".npz":
        raise HttpError(415, f"{name}: is compressed with {packed}. Send it uncompressed.", param="file")
    if suffix in _TABLES:
        return _table(content, suffix, name, reads)
    try:
        decoded = _decoded(content, suffix, reads)
    except HttpError:
        raise
    except Exception:  # damaged: the reader says in which way
        return 0
    if decoded > MOST_DECODED:
        raise HttpError(
            413, f"{name}: {len(content):,} bytes that decode to {decoded:,}, at most {MOST_DECODED:,} are allowed.", param="file"
        )
    return decoded


def _table(content: bytes, suffix: str, name: str, reads: str) -> int:
    rows, values = content.count(b"\n"), sum(content.count(d) for d in (b",", b";", b"\t"))
    if reads != "series" and not (suffix == ".txt" and reads == "texts"):  # a series is one answer, a text file one row
        check_rows(rows - 1)
    most = MOST_VALUES if suffix == ".jsonl" else MOST_CELLS
    if values + rows > most:
        raise HttpError(413, f"{name}: about {values + rows:,} values, at most {most:,} are allowed. Send it in parts.", param="file")
    first = content[: content.find(b"\n") + 1 or len(content)]
    columns = max(first.count(d) for d in (b",", b";", b"\t")) + 1
    if suffix in (".csv", ".tsv") and columns > MOST_COLUMNS:
        raise HttpError(413, f"{name}: {columns:,} columns, at most {MOST_COLUMNS:,} are allowed.", param="file")
    return len(content)


def _decoded(content: bytes, suffix: str, reads: str) -> int:
    if suffix == ".parquet":
        return _parquet(content, reads)
    if reads == "pictures":
        from tauon.data.sources.picture_file import import_pillow

        with import_pillow().open(io.BytesIO(content)) as picture:
            return int(picture.width) * int(picture.height) * 4
    if reads == "recordings":
        import soundfile

        with soundfile.SoundFile(io.BytesIO(content)) as recording:
            return int(recording.frames) * int(recording.channels) * 4
    return len(content)


def _parquet(content: bytes, reads: str) -> int:
    """Return the bytes of the cells; texts that are stored once and repeated are counted as often as they occur."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    shape = pq.ParquetFile(io.BytesIO(content)).metadata
    if reads != "series":
        check_rows(shape.num_rows)
    if shape.num_columns > MOST_COLUMNS or shape.num_rows * shape.num_columns > MOST_CELLS:
        raise HttpError(413, f"{shape.num_rows:,} rows of {shape.num_columns:,} columns are too many. Send them in parts.", param="file")
    size = int(sum(shape.row_group(i).total_byte_size for i in range(shape.num_row_groups)))
    if size > MOST_DECODED:
        return size
    texts = [c.name for c in shape.schema.to_arrow_schema() if pa.types.is_string(c.type) or pa.types.is_large_string(c.type)]
    size += 8 * shape.num_rows * shape.num_columns
    for batch in pq.ParquetFile(io.BytesIO(content), read_dictionary=texts).iter_batches(batch_size=8192, columns=texts) if texts else ():
        for column in batch.columns:
            size += _text_bytes(column, pc)
        if size > MOST_DECODED:
            break
    return int(size)


def _text_bytes(column: Any, pc: Any) -> int:
    if not hasattr(column, "dictionary"):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary)
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0)
