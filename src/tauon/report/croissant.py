"""`croissant.json`: the data card of a run, Croissant 1.0 in JSON-LD: where its data came from, licences, files with their sha256, numbers of records,
what was left out and why, columns. Readable by `mlcroissant` and by what reads Croissant.

The tables of the card are in it (`data` of a record set); the records themselves are not: they are in the files that it names. A fact that no record of
the run has is left out. Source: https://docs.mlcommons.org/croissant/docs/croissant-spec.html.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tauon.data.files import sha256_file
from tauon.report.origins import Origin, dropped, is_private, origins, size_of
from tauon.report.records import Records

__all__ = ["CARD", "HASHED", "data_card"]

CARD = "croissant.json"
HASHED = 1 << 30
"""Bytes of files that a stage reads to hash them; more are hashed when a person asks for the card."""

_CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject", "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace", "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
"""Croissant 1.0's own, appendix 1."""


def data_card(records: Records, most: int | None = None) -> dict[str, Any] | None:
    """Return the card of the data of a run, as JSON values.

    Args:
        records: of a run whose data was prepared.
        most: bytes of files without a recorded sha256 that may be read to compute it. None: all.

    Returns:
        None if more than `most` bytes would have to be read.
    """
    found = origins(records)
    private = is_private(records)
    files = _files([o for o in found if not private or all(sha256 for _, sha256 in o.files)], most)
    if files is None:
        return None
    licences = list(dict.fromkeys(one.licence for one in found if one.licence))
    urls = list(dict.fromkeys(one.origin for one in found if one.origin))
    print_ = str((records.manifest.get("data") or {}).get("fingerprint") or "")
    card: dict[str, Any] = {
        "@context": _CONTEXT, "@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.0", "name": _name(records.name),
        "description": _description(records, found),
    }  # fmt: skip
    for key, values in (("license", licences), ("url", urls[:1]), ("isBasedOn", urls)):
        if values:
            card[key] = values[0] if len(values) == 1 else values
    if print_ and not private:  # a hash of private records confirms a guess of them
        card["identifier"] = f"sha256:{print_}"
    return card | {"distribution": files, "recordSet": list(_tables(records, found))}


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "data"


def _description(records: Records, found: Sequence[Origin]) -> str:
    names = ", ".join(dict.fromkeys(one.name for one in found)) or "unknown sources"
    rows = dropped(records)
    if is_private(records):
        left = "What was left out is not counted, and own files are not listed: the run is private. "
    else:
        left = f"{sum(d.count or 0 for d in rows):,} records were left out (record set `dropped`). " if rows else "No record was left out. "
    more = "".join(
        f"Of {one.total:,} files of {one.name} the first {len(one.files)} are listed. " for one in found if one.total > len(one.files)
    )
    unstated = [one.name for one in found if not one.licence]
    licence = f"Licence not stated for: {', '.join(dict.fromkeys(unstated))}. " if unstated else ""
    return f"Data of the training run {records.name}, from {names}. {left}{more}{licence}".strip()


def _files(found: Sequence[Origin], most: int | None) -> list[dict[str, Any]] | None:
    """Return a FileObject of each file whose sha256 is recorded or can be computed."""
    made: dict[str, dict[str, Any]] = {}
    budget = most
    for one in found:
        for name, sha256 in one.files:
            path = Path(name)
            if sha256 is None:
                if not path.is_file():
                    continue
                if budget is not None:
                    budget -= path.stat().st_size
                    if budget < 0:
                        return None
                sha256 = sha256_file(path)
            kind = mimetypes.guess_type(path.name, strict=False)[0]
            about = {
                "@type": "cr:FileObject",
                "@id": f"file-{len(made) + 1}",
                "name": path.name,
                "contentUrl": (one.origin or name) if len(one.files) == 1 else name,
            }
            made.setdefault(name, about | {"encodingFormat": kind or "application/octet-stream", "sha256": sha256})
    return list(made.values())


def _tables(records: Records, found: Sequence[Origin]) -> Iterator[dict[str, Any]]:
    sources = [{"part": o.part, "source": o.name, "licence": o.licence or "not stated", "origin": o.origin or "not stated"} for o in found]
    yield from _table("sources", "Where the records came from.", sources)
    parts, sizes = records.data.get("parts"), list[dict[str, Any]]()
    for part, facts in parts.items() if isinstance(parts, Mapping) else ():
        size = size_of(facts) if isinstance(facts, Mapping) else None
        if size is not None:
            sizes.append({"part": part, "records": size[0], "unit": size[1]})
    yield from _table("splits", f"Parts of the data; split by {(records.data.get('split') or {}).get('by', 'its sources')}.", sizes)
    rows = dropped(records)
    if not is_private(records):
        listed = [{"part": d.part, "step": d.step, "rule": d.rule, "records": d.count} for d in rows]
        yield from _table("dropped", "Records that were left out: by which step and rule.", listed)
    columns = [c for c in records.data.get("columns") or [] if isinstance(c, Mapping)]
    described = [{"column": str(c.get("column")), "kind": str(c.get("kind")), "becomes": str(c.get("becomes"))} for c in columns]
    yield from _table("columns", "Columns of the table, what they are, and what they become for the model.", described)


def _table(name: str, description: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a record set whose records are in the card; none without rows."""
    if rows:
        kinds = {key: "sc:Integer" if isinstance(value, int) else "sc:Text" for key, value in rows[0].items()}
        fields = [{"@type": "cr:Field", "@id": f"{name}/{key}", "name": key, "dataType": kind} for key, kind in kinds.items()]
        data = [{f"{name}/{key}": value for key, value in row.items()} for row in rows]
        yield {"@type": "cr:RecordSet", "@id": name, "name": name, "description": description, "field": fields, "data": data}
