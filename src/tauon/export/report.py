"""The report's part about exports: format, size, agreement with the model, time of a batch, and how each is used. Reads `export/export.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tauon.report.page import Section, missing, table
from tauon.report.records import Records, number
from tauon.report.text import count, escape, figure, human_bytes

__all__ = ["exports", "sentences"]


def exports(records: Records) -> Section | None:
    """The section; None if nothing was exported."""
    found = records.json("export/export.json")
    entries = [e for e in found.get("exports", []) if isinstance(e, dict)] if isinstance(found, dict) else []
    if not entries:
        return None
    rows = [_row(e) for e in entries if "refused" not in e]
    head = [("Format", ""), ("Size", "num"), ("Agrees with the model", ""), ("1 row", "num"), ("64 rows", "num"), ("Use it", "")]
    html = table(head, rows, "Exports") if rows else ""
    html += "".join(missing(f"{e.get('kind')}: {e['refused']}") for e in entries if "refused" in e)
    note = "Times are medians on the machine of the run, with the model in torch (not compiled) below each."
    return Section("export", "Export", html + f'<p class="note">{note}</p>')


def _row(entry: Mapping[str, Any]) -> list[str]:
    found = entry.get("latency")
    latency: Mapping[str, Any] = found if isinstance(found, dict) else {}
    cells = []
    for rows in ("1", "64"):
        ours, theirs = (number((latency.get(k) or {}).get(rows)) for k in ("program", "model"))
        cells.append("–" if ours is None else f"{figure(ours, 3)} ms<small>model {figure(theirs, 3)} ms</small>")
    size = number(entry.get("bytes"))
    return [
        f"<b>{escape(entry.get('kind'))}</b>", "–" if size is None else human_bytes(size), escape(_agreement(entry), 600), *cells,
        f"<code>{escape(_use(entry), 300)}</code>",
    ]  # fmt: skip


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Return lines about an export, for the command line."""
    found = [_agreement(record)]
    size, latency = number(record.get("bytes")), record.get("latency")
    if size is not None:
        found.append(f"size: {human_bytes(size)}")
    if isinstance(latency, dict):
        times = [
            f"{figure(latency['program'][n], 3)} ms for {n} (model in torch: {figure(latency['model'][n], 3)} ms)" for n in ("1", "64")
        ]
        found.append(f"time of a batch: {'; '.join(times)}")
    found += [f"note: {record['needs']}"] if record.get("needs") else []
    found += [str(record["script_note"])] if record.get("script_note") else []
    return [*found, f"use it: {_use(record)}"]


def _agreement(entry: Mapping[str, Any]) -> str:
    found = entry.get("verification")
    if isinstance(found, str):
        return found
    if not isinstance(found, dict):
        return "not verified"
    share = number(found.get("argmax"))
    same = "" if share is None else f"the same largest output in {share:.2%}; "
    return (
        f"{same}outputs differ by at most {figure(number(found.get('relative')), 2)} of the largest one, on {count(number(found.get('examples')) or 0)} "
        f"held-out examples, against {found.get('against', 'the model')}"
    )


def _use(entry: Mapping[str, Any]) -> str:
    folder, kind = str(entry.get("folder", "")), entry.get("kind")
    if kind == "huggingface":
        return f'transformers.AutoModel.from_pretrained("{folder}")'
    if kind == "peft":
        return f'peft.PeftModel.from_pretrained(base, "{folder}")'
    if kind == "gguf":
        return f"llama-cli -m {folder}/model.gguf"
    return f"python {folder}/predict.py FILE" if entry.get("script") else f"tauon predict {folder} --data FILE"
