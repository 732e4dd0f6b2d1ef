"""The room's verb: `prepare(config)` turns a `data` section into data sets for training, validation and test.

Text is tokenised once: the result lies in the cache under a fingerprint of everything that went into it, and is found there
the next time. Arrays are read each time, since reading them is all there is to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tauon.config import Config, dump
from tauon.config import children as nodes_below
from tauon.data.cache import cache_in, cache_root, obtain
from tauon.data.config import DataConfig, problems_for
from tauon.data.files import canonical, read_bytes, sha256_file, write_json
from tauon.data.half import halve
from tauon.data.masking import MaskedDataset
from tauon.data.progress import Progress, listening, report
from tauon.data.shards import Shards, ShardWriter
from tauon.data.sources.base import Document, SourceConfig, limited
from tauon.data.split import PARTS, Part, TextStat, split_text
from tauon.data.text_files import refuse_surrogates
from tauon.data.tokenizer import Tokenizer
from tauon.data.tokens import TokenDataset
from tauon.errors import ChecksumError, DataError, Problem, RecipeError
from tauon.types import Dataset, DataSpec

__all__ = ["DataSplits", "prepare"]

_VERSION = 1  # of what is written below: part of the fingerprint
_CACHED = 2  # of tokens in the cache: raised where a tokenizer is made otherwise. The fingerprint holds the tokenizer itself
_DONE = "preparation.json"
_DEFAULT_SEQ_LEN = 256


@dataclass
class DataSplits:
    """The prepared data: up to three data sets, and all that a report and a later prediction must know."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    spec: DataSpec
    facts: dict[str, Any]
    """For the report: sources, sizes, split, vocabulary, class balance. JSON values only."""
    fingerprint: str
    """sha256 over everything that decides the examples: content, split, tokenizer, length, normalising, augmenting, seed."""
    tokenizer: Tokenizer | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    """What must be done again to data that comes later: the tokenizer, or the normaliser and the label names. JSON values only."""


def prepare(config: DataConfig, *, seed: int, needs: str, scale_targets: bool = False, progress: Progress | None = None) -> DataSplits:
    """Read, split, tokenise or normalise. Done work is found by its fingerprint and not done again.

    Args:
        config: the recipe's `data` section.
        seed: the run's seed: moves windows and augmentation, not the split (that is `split.seed`).
        needs: what the task learns from: tokens, arrays, series, signals, labelled-text, chat, pairs.
        scale_targets: of arrays whose targets are numbers: put them on the scale of `data.normalize_targets` (a task says whether it wants that).
        progress: told (what, done, total) during long steps.

    Raises:
        RecipeError: settings that cannot work with such a task.
        DataError: whatever is wrong with the data, by file and place.
    """
    if config.half is not None:
        whole = config.model_copy(update={"half": None})
        return halve(prepare(whole, seed=seed, needs=needs, scale_targets=scale_targets, progress=progress), config.half)
    found = [Problem(f"data.{name}", message) for name, message in problems_for(config, needs)]
    if found:
        raise RecipeError(found)
    with listening(progress), cache_in(config.cache):
        sources = _sources(config)
        if needs == "masked-tokens":
            return _masked(_tokens(config, sources, seed), seed)
        if needs == "tokens":
            return _tokens(config, sources, seed)
        if needs == "series":
            from tauon.data.series import prepare_series

            return prepare_series(config, sources, seed)
        if needs == "signals":
            from tauon.data.signals import prepare_signals

            return prepare_signals(config, sources, seed)
        if needs == "labelled-text":
            from tauon.data.labelled_text import prepare_labelled_text

            return prepare_labelled_text(config, sources, seed)
        if needs == "chat":
            from tauon.data.chat import prepare_chat

            return prepare_chat(config, sources, seed)
        if needs == "pairs":
            from tauon.data.pairs import prepare_pairs

            return prepare_pairs(config, sources, seed)
        if config.source.tabular():
            from tauon.data.table_preparation import prepare_tables

            return prepare_tables(config, sources, seed, scale_targets=scale_targets)
        from tauon.data.array_preparation import prepare_arrays

        return prepare_arrays(config, sources, seed, scale_targets=scale_targets)


def _sources(config: DataConfig) -> dict[Part, SourceConfig]:
    """Each part that has a source of its own: named in the recipe, or published with the training set."""
    sources: dict[Part, SourceConfig] = {"train": config.source}
    for name in ("validation", "test"):
        own = getattr(config, name)
        if own is None and not (name == "test" and config.split.folds is not None):
            own = config.source.part(name)
        if own is not None:
            sources[name] = own
    return sources


def _wanted(sources: dict[Part, SourceConfig]) -> list[Part]:
    return [p for p in PARTS if p not in sources]


# ---------------------------------------------------------------------------------------------- text


def _tokens(config: DataConfig, sources: dict[Part, SourceConfig], seed: int) -> DataSplits:
    content = {
        "version": _VERSION, "sources": {p: s.fingerprint() for p, s in sources.items()}, "split": dump(config.split),
        "tokenizer": {k: v for k, v in dump(config.tokenizer).items() if k not in ("path", "eos")},
        "tokenizer_files": [sha256_file(path) for path, _ in config.tokenizer.files()],
    }  # fmt: skip
    made_of = hashlib.sha256(canonical(content).encode()).hexdigest()
    folder = (
        cache_root()
        / "tokens"
        / hashlib.sha256(
            canonical([_CACHED, made_of, config.tokenizer.names(), *map(sha256_file, config.tokenizer.beside())]).encode()
        ).hexdigest()[:32]
    )
    reused = obtain(folder, _DONE, lambda temporary: _build(temporary, config, sources, content))
    made = _read(folder / _DONE)
    count_as_read(config, made["read"])
    tokenizer = _tokenizer(folder, made["tokenizer"]["sha256"])

    seq_len, why = (config.seq_len, "as set") if config.seq_len is not None else (_DEFAULT_SEQ_LEN, "default")
    shards = {part: Shards(folder / part) for part in PARTS if (folder / part).is_dir()}
    several = config.mask_documents and any(len(s.starts) > 1 for s in shards.values())
    overlap = config.overlap
    parts = {
        part: TokenDataset(s, tokenizer, seq_len, seed=seed, training=part == "train", segments=several, overlap=overlap, name=part)
        for part, s in shards.items()
    }
    facts = {
        "kind": "tokens", "sources": made["sources"], "split": made["split"], "tokenizer": made["tokenizer"],
        "seq_len": {"value": seq_len, "why": why}, "mask_documents": several, "overlap": overlap,
        "parts": {p: d.facts for p, d in parts.items()}, "content": made_of, "cache": {"folder": str(folder), "reused": reused},
    }  # fmt: skip
    decides = [made_of, made["tokenizer"]["sha256"], seq_len, several, overlap, seed]
    return DataSplits(
        parts["train"], parts.get("validation"), parts.get("test"), parts["train"].spec, facts,
        hashlib.sha256(canonical(decides).encode()).hexdigest(), tokenizer, {"kind": "tokens", "tokenizer": tokenizer.to_json()},
    )  # fmt: skip


def _masked(splits: DataSplits, seed: int) -> DataSplits:
    """The same windows with tokens hidden."""
    held = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    parts = {name: MaskedDataset(d, seed=seed, name=name) for name, d in held.items() if isinstance(d, TokenDataset)}
    facts = splits.facts | {"parts": {name: d.facts for name, d in parts.items()}}
    fingerprint = hashlib.sha256(f"{splits.fingerprint}/masked".encode()).hexdigest()
    train = parts["train"]
    return replace(
        splits, train=train, validation=parts.get("validation"), test=parts.get("test"), spec=train.spec, facts=facts, fingerprint=fingerprint,
        preprocess=splits.preprocess | {"mask_token": train.mask},
    )  # fmt: skip


def _tokenizer(folder: Path, sha256: str) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.load(path)
    except DataError as err:
        raise ChecksumError(f"{err}. Delete {folder}, so that it is prepared again") from None
    if tokenizer.sha256 != sha256:
        raise ChecksumError(f"{path}: not the tokenizer that was written. Delete {folder}, so that it is prepared again")
    return tokenizer


def _build(folder: Path, config: DataConfig, sources: dict[Part, SourceConfig], content: dict[str, Any]) -> None:
    """Three passes over the text, a document in memory at a time: measure and split, train the tokenizer, write tokens."""
    held = {digest for p, s in sources.items() if p != "train" for digest in (t.digest for t in _measure(s, p))}
    stats = _measure(sources["train"], "train")
    kept = [t.digest not in held for t in stats]  # a copy of a held-out document must not be trained on
    left = [t for t, keep in zip(stats, kept, strict=True) if keep]
    if not left:
        raise DataError("every training document is also in the validation or test source. Give other sources, or drop data.validation")
    pieces, split_facts = split_text(left, config.split, _wanted(sources))
    split_facts |= {"own_parts": [p for p in sources if p != "train"], "left_out_as_held_out": len(stats) - len(left)}

    def documents() -> Iterator[tuple[Part, Document]]:
        number = 0
        for i, document in enumerate(_limited(sources["train"])):
            if i >= len(stats) or len(document.text) != stats[i].chars:
                raise DataError(f"{document.name}: changed while it was being prepared. Start again when nothing writes to it")
            if not kept[i]:
                continue
            cuts = pieces[number]
            number += 1
            for part, a, b in cuts:
                yield part, document if len(cuts) == 1 else Document(document.text[a:b], f"{document.name}[{a}:{b}]")
        for own in ("validation", "test"):
            if own in sources:
                yield from ((own, document) for document in _limited(sources[own]))

    report("tokenizer", 0)
    tokenizer = config.tokenizer.build(lambda: (d.text for p, d in documents() if p == "train"))
    tokenizer.save(folder / "tokenizer.json")
    unknown = _write(folder, documents(), tokenizer, content, total=len(left))
    facts = {
        "version": _VERSION, "content": content, "sources": {p: s.describe() for p, s in sources.items()}, "split": split_facts,
        "tokenizer": {
            "kind": config.tokenizer.kind_, "vocab": tokenizer.vocab_size, "bos": tokenizer.bos,
            "sha256": tokenizer.sha256, "unknown": unknown,
        },
        "read": reads(config),
    }  # fmt: skip
    write_json(folder / _DONE, facts)


def _limited(source: SourceConfig) -> Iterator[Document]:
    return limited(source.documents(), source.limit)


def _measure(source: SourceConfig, part: Part) -> list[TextStat]:
    stats = []
    for document in _limited(source):
        data = refuse_surrogates(document.text, document.name).encode()
        stats.append(TextStat(hashlib.sha256(data).digest(), len(document.text)))
        report(f"read {part}", len(stats))
    if not any(t.chars for t in stats):
        raise DataError(f"source {source.kind_!r} ({part}) has no text: {len(stats)} documents, all empty. Check its path and its limit")
    return stats


_GROUP_CHARS = 1 << 22


def _write(
    folder: Path, documents: Iterator[tuple[Part, Document]], tokenizer: Tokenizer, content: dict[str, Any], total: int
) -> dict[str, int]:
    """Encode in groups (every core has work, memory stays bounded) and write each part's shards. Counts unknown tokens by part."""
    writers: dict[Part, ShardWriter] = {}
    unknown_id = getattr(tokenizer, "unknown", None)
    unknown: dict[str, int] = {}
    group: list[tuple[Part, Document]] = []

    def flush() -> None:
        for (part, document), ids in zip(group, tokenizer.encode_many([d.text for _, d in group]), strict=True):
            if part not in writers:
                writers[part] = ShardWriter(folder / part, vocab=tokenizer.vocab_size, bos=tokenizer.bos)
            text = document.text
            writers[part].add(document.name, ids, n_bytes=len(text.encode()), n_words=len(text.split()), n_lines=text.count("\n"))
            if unknown_id is not None:
                unknown[part] = unknown.get(part, 0) + int((ids == unknown_id).sum())
        group.clear()

    size = 0
    for done, item in enumerate(documents, 1):
        group.append(item)
        size += len(item[1].text)
        if size >= _GROUP_CHARS:
            flush()
            size = 0
            report("tokenise", done, max(total, done))
    flush()
    for part, writer in writers.items():
        writer.finish(tokenizer_sha256=tokenizer.sha256, content=content, part=part)
        Shards(folder / part).verify()  # what was written is read back once; from now on only sizes are checked
    return unknown


# ---------------------------------------------------------------------------------------------- which keys were used


def reads(config: Config) -> list[list[str]]:
    """Path of every key that has been read: what a preparation consumed is kept with it."""
    mine = [[name] for name in sorted(getattr(config, "_reads", set()))]
    return mine + [[*key.split("."), *below] for key, node in nodes_below(config) for below in reads(node)]


def count_as_read(config: Config, paths: list[list[str]]) -> None:
    """Count as read what the preparation had read: finding it done must not make its keys look unused."""
    for path in paths:
        node: Any = config
        for part in path:
            node = node[int(part)] if part.isdigit() else getattr(node, part, None)
            if node is None:
                break


def _read(path: Path) -> Any:
    import json

    try:
        return json.loads(read_bytes(path))
    except ValueError as err:
        raise ChecksumError(f"{path}: not JSON any more ({err}). Delete {path.parent}, so that it is prepared again") from None
