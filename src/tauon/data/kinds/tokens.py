"""Running text -> a stream of tokens on disk, read in windows of one length. Tokenised once: the result is stored in the cache under a
fingerprint of all inputs, and found there the next time. The whole text is never in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tauon.config import dump, register
from tauon.data.block_workers import Workers, local_workers, ray_workers
from tauon.data.blocks import Blocks
from tauon.data.cache import cache_root, make_folder, obtain
from tauon.data.clean.run import fingerprint_of
from tauon.data.config import DataConfig
from tauon.data.dedup.removal import decontaminate, duplicates_in, removal_settings
from tauon.data.files import canonical, read_bytes, sha256_file, write_plain_json
from tauon.data.kinds.base import DataKind, Request
from tauon.data.kinds.cleaning import clean_documents, rejected_facts
from tauon.data.own_tokenizer import SEQ_LEN_DEFAULT
from tauon.data.progress import report
from tauon.data.read_keys import count_as_read, reads
from tauon.data.shards import Shards
from tauon.data.sources.base import Document, SourceConfig
from tauon.data.sources.mixture import MixtureConfig
from tauon.data.sources.numbered import numbered
from tauon.data.sources.rejects import Rejects, collecting, reading
from tauon.data.split import PARTS, Part, SplitConfig
from tauon.data.split_text import TextStat, TextStats, split_text
from tauon.data.splits import DataSplits
from tauon.data.text_files import refuse_surrogates
from tauon.data.token_blocks import write_tokens
from tauon.data.tokenizer import Tokenizer
from tauon.data.tokens import TokenDataset
from tauon.errors import ChecksumError, DataError

__all__ = ["TokensKind"]

_VERSION = 1  # version of the files written below: part of the fingerprint
_CACHED = (
    4  # version of tokens in the cache: raised if tokenizers are trained differently, or the files beside the tokens have another form
)
_DONE = "preparation.json"


@register("tokens")
class TokensKind(DataKind[Any]):
    """Windows of running text."""

    input_kind, output_kind, words = "tokens", "text", "text"
    reads = ("tokenizer", "seq_len", "mask_documents", "overlap", "dedup", "decontaminate", "processes", "cluster")
    cleans, records = ("text",), "documents"

    @classmethod
    def problems(cls, config: DataConfig) -> Iterator[tuple[str, str]]:
        split: SplitConfig = config.raw_value("split")
        if split.raw_value("by") == "row":
            yield "split.by", "row is only for arrays; text is split by document or position"

    def prepare(self, request: Request) -> DataSplits:
        config = request.config
        content = _content(request)
        made_of = hashlib.sha256(canonical(content).encode()).hexdigest()
        beside = map(sha256_file, config.tokenizer.beside())
        names = hashlib.sha256(
            canonical([_CACHED, made_of, config.tokenizer.names(), removal_settings(config), *beside]).encode()
        ).hexdigest()
        folder = cache_root() / "tokens" / names[:32]
        reused = obtain(folder, _DONE, lambda temporary: _build_by_blocks(temporary, folder, request, content))
        made = _read(folder / _DONE)
        count_as_read(config, made["read"])
        tokenizer = _tokenizer(folder, made["tokenizer"]["sha256"])

        seq_len, why = (config.seq_len, "as set") if config.seq_len is not None else (SEQ_LEN_DEFAULT, "default")
        shards = {part: Shards(folder / part) for part in PARTS if (folder / part).is_dir()}
        several = config.mask_documents and any(len(s.starts) > 1 for s in shards.values())
        overlap, seed = config.overlap, request.seed
        parts = {
            part: TokenDataset(s, tokenizer, seq_len, seed=seed, training=part == "train", segments=several, overlap=overlap, name=part)
            for part, s in shards.items()
        }
        mixed: dict[str, Any] = {} if not isinstance(config.source, MixtureConfig) else _mix(config.source, parts["train"], seed)
        facts = {
            "kind": "tokens", "sources": {p: s.describe() for p, s in request.sources.items()}, "split": made["split"], "tokenizer": made["tokenizer"],
            "seq_len": {"value": seq_len, "why": why}, "mask_documents": several, "overlap": overlap,
            "parts": {p: d.facts for p, d in parts.items()}, "content": made_of, "cache": {"folder": str(folder), "reused": reused},
        } | mixed | made["unreadable"] | rejected_facts(made, folder / "rejected")  # fmt: skip
        preprocess = {"kind": "tokens", "tokenizer": tokenizer.to_json(), "seq_len": seq_len}
        facts |= {name: made[name] for name in ("dedup", "decontamination", "warnings") if name in made}
        left_out = {p: [*facts.get("left_out", {}).get(p, []), *made.get("left_out", {}).get(p, [])] for p in parts}
        facts |= {"left_out": left_out} if any(left_out.values()) else {}
        decides = [
            made_of,
            made["tokenizer"]["sha256"],
            seq_len,
            several,
            overlap,
            seed,
            *([mixed["mixture"]] if mixed else []),
            *made["removed"],
        ]
        return DataSplits(
            parts["train"], parts.get("validation"), parts.get("test"), parts["train"].spec, facts,
            hashlib.sha256(canonical(decides).encode()).hexdigest(), tokenizer, preprocess,
        )  # fmt: skip


def _mix(source: MixtureConfig, train: TokenDataset, seed: int) -> dict[str, Any]:
    """Give the training part the order of a mixture; return the facts about it."""
    names = source.member_names()
    missing = [name for k, name in enumerate(names) if k not in train.sources]
    if missing:
        raise DataError(f"source {missing[0]!r} of the mixture has no training text. Lower data.split, or remove the source")
    windows = train.windows_of.tolist()
    order = train.order = source.order(windows, seed)
    drawn = order.drawn(order.count).tolist()
    sources = [
        {"name": name, "windows": n, "tokens": n * train.seq_len, "share": round(d / order.count, 6), "epochs_per_epoch": round(d / n, 4)}
        for name, n, d in zip(names, windows, drawn, strict=True)
    ]
    plan = {"curriculum": [[c.step, c.share, c.weights] for c in order.changes], "most": order.most}
    return {"mixture": {"windows_per_epoch": order.count, "sources": sources} | plan}


def _content(request: Request) -> dict[str, Any]:
    """What the tokens in the cache depend on."""
    asked, cleaning = request.config.tokenizer, request.cleaning("text")
    return {
        "version": _VERSION, "sources": {p: s.fingerprint() for p, s in request.sources.items()}, "split": dump(request.config.split),
        "tokenizer": {k: v for k, v in dump(asked).items() if k not in ("path", "eos")},
        "tokenizer_files": [sha256_file(path) for path, _ in asked.files()],
    } | ({"clean": fingerprint_of(cleaning, request.config.clean_held_out)} if cleaning else {})  # fmt: skip


def _tokenizer(folder: Path, sha256: str) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.load(path)
    except DataError as err:
        raise ChecksumError(f"{err}. Delete {folder}, and the data is prepared again") from None
    if tokenizer.sha256 != sha256:
        raise ChecksumError(f"{path}: the tokenizer file has changed since it was written. Delete {folder}, and the data is prepared again")
    return tokenizer


def _build_by_blocks(folder: Path, final: Path, request: Request, content: dict[str, Any]) -> None:
    """Build with finished blocks kept beside the result, so that the same command after a kill continues from them."""
    kept = make_folder(final.with_name(f".{final.name}.blocks"))
    try:
        with _workers(request.config) as workers:
            _build(folder, request, content, Blocks(kept, workers))
    except (DataError, OSError):  # the data, a setting or the disk must change first
        shutil.rmtree(kept, ignore_errors=True)
        raise
    shutil.rmtree(kept, ignore_errors=True)


def _workers(config: DataConfig) -> contextlib.AbstractContextManager[Workers]:
    """Return where blocks are worked on, by `data.processes` and `data.cluster`."""
    asked, cluster = config.processes, config.cluster
    count = None if asked == "auto" else asked
    if cluster is None:
        return local_workers(1 if asked is None else count)
    return ray_workers(count, os.environ.get("RAY_ADDRESS") if cluster == "ray" else cluster)


def _build(folder: Path, request: Request, content: dict[str, Any], blocks: Blocks) -> None:
    """Three passes over the text, a block in memory at a time: measure and split, train the tokenizer, write tokens."""
    config = request.config
    with collecting(folder / "rejected" / "unreadable.jsonl") as rejects:
        sources, cleaning_facts = clean_documents(request, folder, blocks)
        held = {digest for p, s in sources.items() if p != "train" for digest in _measure(s, p, rejects).digests()}
        stats = _measure(sources["train"], "train", rejects)
    repeated, removal_facts = duplicates_in(config, sources["train"], folder)
    is_copy = np.array([digest in held for digest in stats.digests()], bool)  # a copy of a held-out document must not be trained on
    kept = ~is_copy
    kept[sorted(repeated)] = False
    left = stats.where(kept)
    if not left:
        raise DataError(
            "every training document is also in the validation or test source, so none is left to train on. Use other sources, or remove them"
        )
    pieces, split_facts = split_text(left, config.split, request.to_split)
    split_facts |= {"own_parts": request.own_parts, "left_out_as_held_out": int(is_copy.sum())}
    chars = stats.chars

    def documents() -> Iterator[tuple[Part, Document]]:
        number = 0
        for i, document in enumerate(numbered(sources["train"])):
            if i >= len(stats) or len(document.text) != chars[i]:
                raise DataError(f"{document.name}: the file changed while it was being prepared. Run again when no program writes to it")
            if not kept[i]:
                continue
            cuts = pieces[number]
            number += 1
            for part, a, b in cuts:
                yield part, document if len(cuts) == 1 else replace(document, text=document.text[a:b], offset=document.offset + a)
        for own in ("validation", "test"):
            if own in sources:
                yield from ((own, document) for document in numbered(sources[own]))

    chosen, contamination = decontaminate(config, documents, sources, split_facts["by"], folder)
    removal_facts |= contamination
    removed = [sorted(repeated), contamination.get("decontamination", {}).pop("removed", [])]
    report("tokenizer", 0)
    tokenizer = config.tokenizer.build(lambda: (d.text for p, d in chosen() if p == "train"))
    tokenizer.save(folder / "tokenizer.json")
    unknown = write_tokens(folder, chosen(), tokenizer, _provenance(request, content), blocks, total=len(left))
    facts = {
        "version": _VERSION, "content": content, "split": split_facts, "unreadable": rejects.facts(),
        "tokenizer": {
            "kind": config.tokenizer.kind_, "vocab": tokenizer.vocab_size, "bos": tokenizer.bos,
            "sha256": tokenizer.sha256, "unknown": unknown,
        },
        "read": reads(config), "removed": [hashlib.sha256(canonical(removed).encode()).hexdigest()] if any(removed) else [],
        **removal_facts, **cleaning_facts,
    }  # fmt: skip
    write_plain_json(folder / _DONE, facts)


def _provenance(request: Request, content: dict[str, Any]) -> dict[Part, dict[str, Any]]:
    """What the manifest of each part says of its sources."""
    found: dict[Part, dict[str, Any]] = {}
    for part in PARTS:
        source = request.sources.get(part, request.sources["train"])
        listed = [{"name": name} | member.describe() for name, member in zip(source.member_names(), source.members(), strict=True)]
        found[part] = {"sources": listed, "content": content, "part": part}
    return found


def _measure(source: SourceConfig, part: Part, rejects: Rejects) -> TextStats:
    stats = TextStats()
    with reading(part):
        for document in numbered(source):
            data = refuse_surrogates(document.text, document.name).encode()
            stats.append(TextStat(hashlib.sha256(data).digest(), len(document.text), document.source))
            if len(stats) % 1000 == 0:
                report(f"read {part}", len(stats))
    report(f"read {part}", len(stats))
    if not stats.chars.any():
        why = rejects.first(part)
        raise DataError(
            f"source {source.kind_!r} ({part}) has no text: all {len(stats)} documents are empty. Check its path and its limit"
            + (f". Rejected, for example: {why}" if why else "")
        )
    return stats


def _read(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except ValueError as err:
        raise ChecksumError(f"{path}: damaged JSON ({err}). Delete {path.parent}, and the data is prepared again") from None
