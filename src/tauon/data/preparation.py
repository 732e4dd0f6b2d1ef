"""The room's verb: `prepare(config)` turns a `data` section into data sets for training, validation and test.

Text is tokenised once: the result lies in the cache under a fingerprint of everything that went into it, and is found there
the next time. Arrays are read each time, since reading them is all there is to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tauon.config import Config, dump
from tauon.config import children as nodes_below
from tauon.data.arrays import ArrayDataset, NormalizeKind, Normalizer, check_arrays, count_repeats
from tauon.data.bounds import limits_of
from tauon.data.cache import cache_in, cache_root, obtain
from tauon.data.choice import choice_facts, choose, in_order
from tauon.data.config import DataConfig, problems_for
from tauon.data.files import canonical, read_bytes, sha256_file, write_json
from tauon.data.half import halve
from tauon.data.image_features import with_features
from tauon.data.masking import MaskedDataset
from tauon.data.pixel_range import PixelRange
from tauon.data.progress import Progress, listening, report
from tauon.data.shards import Shards, ShardWriter
from tauon.data.sources.base import Arrays, Document, SourceConfig, limited
from tauon.data.spelling import nfc
from tauon.data.split import PARTS, Part, TextStat, refuse_new_classes, split_rows, split_text
from tauon.data.targets import TargetScale, fit_target_scale, target_names
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
        return _arrays(config, sources, seed, scale_targets=scale_targets)


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
        "tokenizer": {k: v for k, v in dump(config.tokenizer).items() if k != "path"},
        "tokenizer_files": [sha256_file(path) for path, _ in config.tokenizer.files()],
    }  # fmt: skip
    made_of = hashlib.sha256(canonical(content).encode()).hexdigest()
    folder = (
        cache_root()
        / "tokens"
        / hashlib.sha256(canonical([_CACHED, made_of, *map(sha256_file, config.tokenizer.beside())]).encode()).hexdigest()[:32]
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


# ---------------------------------------------------------------------------------------------- arrays


def _arrays(config: DataConfig, sources: dict[Part, SourceConfig], seed: int, *, scale_targets: bool) -> DataSplits:
    tables = {part: _load(source, part) for part, source in sources.items()}
    left_out = {part: table.left_out for part, table in tables.items()}
    warnings = [message for table in tables.values() for message in table.warnings]
    tables["train"] = in_order(tables["train"], config.label_order)
    rows, split_facts = split_rows(tables["train"].targets, config.split, _wanted(sources))
    tables, pixel_range = _as_pixels(tables, rows["train"])
    if config.scattering is not None:
        tables = {part: with_features(table, config.scattering, part) for part, table in tables.items()}
    main = tables["train"]
    refuse_new_classes(main.targets, main.label_names, rows, "the targets")
    for part in tables:
        if part != "train":
            tables[part] = _aligned(tables[part], main, part)
    train_features = main.features if len(rows["train"]) == len(main) else main.features[rows["train"]]
    kind, why = _normalize(config, main)
    names = main.feature_names or tuple(f"x{i}" for i in range(main.features.shape[1]))
    if config.bounds and main.features.ndim != 2:
        message = f"are for tables, and examples have shape {main.features.shape[1:]}. Drop them; for pictures take normalize: unit."
        raise RecipeError([Problem("data.bounds", message)])
    known = () if main.classes else target_names(main.label_names, main.targets.reshape(len(main), -1).shape[1])
    limits = limits_of(config.bounds, names, known=known) if config.bounds or kind == "bounds" else None
    normalizer = Normalizer.fit(train_features, kind, limits=limits)
    target_scale, target_facts, target_notes = target_scale_of(config, main.targets[rows["train"]], main.label_names, scale_targets)
    parts: dict[Part, ArrayDataset] = {}
    choice = choose(config, main, rows["train"], main.features.shape[1:], seed)
    for part in PARTS:
        if part in rows:
            training = {"seed": seed, "augments": config.augment, **choice} if part == "train" else {}
            parts[part] = ArrayDataset(main, rows[part], normalizer, target_scale=target_scale, **training)
        elif part in tables:
            parts[part] = ArrayDataset(tables[part], np.arange(len(tables[part])), normalizer, target_scale=target_scale)
    steps = [dump(a) for a in config.augment]
    count_as_read(config, [["augment", str(i), name] for i, step in enumerate(steps) for name in step])  # by each training batch, later
    held = {p: main.features[rows[p]] if p in rows else tables[p].features for p in parts if p != "train"}
    also = {p: count_repeats(train_features, features) for p, features in held.items()}
    contents = {p: content_of(t) for p, t in tables.items()}
    made_of = hashlib.sha256(canonical([_VERSION, contents, dump(config.split)]).encode()).hexdigest()
    scaling = {"kind": kind, "why": why} | ({"bounds": dict(config.bounds)} if config.bounds else {})
    facts = {
        "kind": "arrays", "sources": {p: s.describe() | {"sha256": contents[p]} for p, s in sources.items()},
        "split": split_facts | {"own_parts": [p for p in sources if p != "train"], "rows_also_in_train": also},
        "parts": {p: d.facts for p, d in parts.items()}, "normalize": scaling, "augment": steps, "content": made_of,
        **({} if config.scattering is None else {"scattering": dump(config.scattering)}),
        **choice_facts(config, main.label_names, choice), **told(left_out, target_notes, warnings), **pixel_range,
        "features": feature_facts(train_features, main.feature_names), **target_facts,
        "input_shape": list(main.features.shape[1:]), "labels": list(main.label_names),
    }  # fmt: skip
    decides = [facts["content"], normalizer.to_json(), steps, seed, *choice_facts(config, main.label_names, choice).values()]
    decides += [] if target_scale is None else [target_scale.to_json()]
    preprocess = {
        "kind": "arrays", "normalize": normalizer.to_json(), "labels": list(main.label_names), "features": list(main.feature_names),
        "input_shape": list(main.features.shape[1:]), "targets": "classes" if main.classes else "values",
    } | ({} if config.scattering is None else {"scattering": dump(config.scattering)})  # fmt: skip
    preprocess |= pixel_range | ({} if target_scale is None else {"target_scale": target_scale.to_json()})
    return DataSplits(
        parts["train"], parts.get("validation"), parts.get("test"), parts["train"].spec, facts,
        hashlib.sha256(canonical(decides).encode()).hexdigest(), None, preprocess,
    )  # fmt: skip


def _load(source: SourceConfig, part: Part) -> Arrays:
    report(f"read {part}", 0)
    table = source.arrays()
    if source.limit is not None:
        table = table.rows(slice(source.limit))
    return check_arrays(table, f"source {source.kind_!r} ({part})", training=part == "train")


def _as_pixels(tables: dict[Part, Arrays], training: np.ndarray) -> tuple[dict[Part, Arrays], dict[str, Any]]:
    """(pictures of more than 8 bits from 0 to 255 by one range for all parts, that range by its key in `preprocess`); bytes stay."""
    main = tables["train"]
    depths = {part: table.pixel_range if isinstance(table.pixel_range, str) else type(table.pixel_range) for part, table in tables.items()}
    odd = next((part for part, depth in depths.items() if depth != depths["train"]), None)
    if odd is not None:
        raise DataError(f"the {odd} pictures are of another depth (bits a value) than the training pictures. Convert them to one depth")
    if main.pixel_range is None:
        return tables, {}
    found = PixelRange.measure(main.features[training], main.pixel_range) if isinstance(main.pixel_range, str) else main.pixel_range
    scaled = {part: replace(t, features=found(t.features), pixel_range=None, pixels=True) for part, t in tables.items()}
    return scaled, {"pixel_range": found.to_json()}


def _aligned(table: Arrays, main: Arrays, part: Part) -> Arrays:
    """`table` with the training set's class numbers; features and targets must be of the same make."""
    if table.features.shape[1:] != main.features.shape[1:]:
        raise DataError(
            f"the {part} source has examples of shape {table.features.shape[1:]}, the training source {main.features.shape[1:]}"
        )
    if table.feature_names != main.feature_names:
        odd = next((a, b) for a, b in zip(table.feature_names or ("",), main.feature_names or ("",), strict=True) if a != b)
        raise DataError(
            f"the {part} source has a column {odd[0]!r} where the training source has {odd[1]!r}; the columns must be the same, in order"
        )
    if table.classes != main.classes or table.targets.shape[1:] != main.targets.shape[1:]:
        raise DataError(
            f"the {part} source has targets {table.targets.dtype}, the training source {main.targets.dtype}; both must be of one kind"
        )
    if not main.classes or table.label_names == main.label_names:
        return table
    number = {name: i for i, name in enumerate(main.label_names)}
    new = [name for name in table.label_names if name not in number]
    if new:
        raise DataError(f"the {part} source has the label {new[0]!r}, which training never sees. It has {', '.join(main.label_names)}")
    renumbered = np.array([number[name] for name in table.label_names], np.int64)[table.targets]
    return replace(table, targets=renumbered, label_names=main.label_names)


def _normalize(config: DataConfig, table: Arrays) -> tuple[NormalizeKind, str]:
    if config.normalize != "auto":
        return config.normalize, "as set"
    if config.scattering is not None:
        return "none", "scattering coefficients are normalised picture by picture"
    return ("unit", "features are bytes") if table.features.dtype == np.uint8 else ("standard", "features are not bytes")


def target_scale_of(
    config: DataConfig, targets: np.ndarray, labels: tuple[str, ...], wanted: bool
) -> tuple[TargetScale | None, dict[str, Any], list[str]]:
    """`fit_target_scale` as the recipe asks for it, where the task wants its targets scaled."""
    if not wanted:
        return None, {}, []
    return fit_target_scale(
        targets, labels, kind=config.normalize_targets, normalize=config.normalize, bounds={nfc(n): b for n, b in config.bounds.items()}
    )


def content_of(table: Arrays) -> str:
    digest = hashlib.sha256()
    for array in (table.features, table.targets):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(canonical([table.feature_names, table.label_names]).encode())
    return digest.hexdigest()


def told(left_out: Mapping[Part, Sequence[str]], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> dict[str, Any]:
    """What a person must be told of the data, as facts: `prepare_stage` says it in the terminal, too. `left_out` is by part."""
    by_part = {part: [*lines] for part, lines in left_out.items() if lines}
    found: dict[str, Any] = {"left_out": by_part, "notes": [*dict.fromkeys(notes)], "warnings": [*dict.fromkeys(warnings)]}
    return {name: lines for name, lines in found.items() if lines}


_SHOWN = 64


def feature_facts(features: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Mean, standard deviation and range: of each column of a small table, of everything otherwise."""
    if features.ndim == 2 and features.shape[1] <= _SHOWN:
        wide = features.astype(np.float64)
        listed = names or tuple(f"x{i}" for i in range(features.shape[1]))
        columns = zip(listed, wide.mean(0).tolist(), wide.std(0).tolist(), wide.min(0).tolist(), wide.max(0).tolist(), strict=True)
        return {n: {"mean": m, "std": s, "min": lo, "max": hi} for n, m, s, lo, hi in columns}
    return {"all": {"mean": float(features.mean(dtype=np.float64)), "min": float(features.min()), "max": float(features.max())}}


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
