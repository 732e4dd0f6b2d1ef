"""Texts with labels -> rows of tokens of one length: [BOS] text, cut at the end, filled up behind it (segment -1).

The tokenizer is made of the training texts alone; so is the length, where the recipe leaves it open.

Shape legend: B batch, T time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump
from tauon.data.augment import Draws
from tauon.data.config import DataConfig
from tauon.data.facts import told
from tauon.data.files import canonical
from tauon.data.labels import label_facts, renumbered
from tauon.data.masking import mask_token
from tauon.data.own_tokenizer import digest_of, tokenizer_for
from tauon.data.preparation import DataSplits, count_as_read
from tauon.data.progress import report
from tauon.data.sources.base import LabelledTexts, SourceConfig
from tauon.data.split import PARTS, Part, refuse_new_classes, split_rows
from tauon.data.text_augment import TextAugmentConfig
from tauon.data.text_files import refuse_surrogates
from tauon.data.tokenizer import Tokenizer
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["LabelledTextDataset", "inputs_from_texts", "prepare_labelled_text"]

_VERSION = 1
_SHARE, _MOST = 95, 512


def prepare_labelled_text(config: DataConfig, sources: dict[Part, SourceConfig], seed: int) -> DataSplits:
    """Read, split by row (each class in proportion), make the tokenizer, settle the length, encode."""
    held: dict[Part, LabelledTexts] = {}
    for part, source in sources.items():
        report(f"read {part}", 0)
        found = source.labelled_texts()
        held[part] = found if source.limit is None else found.first(source.limit)
        _refuse_empty(held[part], part)
        for said, where in zip(held[part].texts, held[part].places, strict=True):
            refuse_surrogates(said, where)
        for label in held[part].label_names:
            refuse_surrogates(label, f"the {part} source, label {label!a}")
    main = held["train"]
    rows, split_facts = split_rows(main.targets, config.split, [p for p in PARTS if p not in sources])
    if len(np.unique(main.targets[rows["train"]])) < 2:
        name = main.label_names[main.targets[rows["train"][0]]]
        raise DataError(f"every training text has the label {name!r}: with one class there is nothing to learn. Check data.source.label")
    refuse_new_classes(main.targets, main.label_names, rows, "the texts")
    chosen: dict[Part, tuple[Sequence[str], NDArray[np.int64]]] = {}
    for part in PARTS:
        if part in rows:
            chosen[part] = ([main.texts[i] for i in rows[part]], main.targets[rows[part]])
        elif part in held:
            chosen[part] = (held[part].texts, renumbered(held[part].targets, held[part].label_names, main.label_names, part))

    tokenizer, made = tokenizer_for(config, chosen["train"][0])
    mask, vocab = mask_token(tokenizer)
    ids = {part: tokenizer.encode_many(list(texts)) for part, (texts, _) in chosen.items()}
    seq_len, why = config.seq_len, "as set"
    if seq_len is None:
        seq_len = min(_MOST, int(np.percentile([len(i) + 1 for i in ids["train"]], _SHARE)))
        why = f"{_SHARE}% of the training texts are not longer, or the most that is taken unasked ({_MOST})"
    steps = [dump(a) for a in config.augment]
    for place, step in enumerate(config.augment):
        if not isinstance(step, TextAugmentConfig):
            raise DataError(f"data.augment.{place}: {step.kind_} is not for texts. There are mask-tokens and drop-tokens")
    count_as_read(config, [["augment", str(i), name] for i, step in enumerate(steps) for name in step])
    spec = DataSpec(vocab=vocab, seq_len=seq_len, outputs=len(main.label_names), labels=main.label_names)
    parts: dict[Part, LabelledTextDataset] = {}
    for part, (texts, targets) in chosen.items():
        augments = cast("tuple[TextAugmentConfig, ...]", config.augment) if part == "train" else ()
        parts[part] = LabelledTextDataset(ids[part], targets, spec, tokenizer.bos, mask, seed=seed, augments=augments, texts=texts)
    train_texts = set(chosen["train"][0])
    also = {part: sum(t in train_texts for t in texts) for part, (texts, _) in chosen.items() if part != "train"}
    content = [_VERSION, main.label_names, {p: [digest_of(texts), targets.tolist()] for p, (texts, targets) in chosen.items()}]
    every = [label for part in held.values() for label in part.labels]
    spelt, warnings = label_facts(every, main.label_names, f"column {main.label!r}") if every else ({}, [])
    made_of = hashlib.sha256(canonical(content).encode()).hexdigest()
    facts = {
        "kind": "labelled-text", "sources": {p: s.describe() for p, s in sources.items()}, "tokenizer": made,
        "split": split_facts | {"own_parts": [p for p in sources if p != "train"], "rows_also_in_train": also},
        "seq_len": {"value": seq_len, "why": why}, "labels": list(main.label_names), "parts": {p: d.facts for p, d in parts.items()},
        "augment": steps, "content": made_of, **({"label_spelling": spelt} if spelt else {}), **told({}, (), warnings),
    }  # fmt: skip
    preprocess = {
        "kind": "labelled-text", "tokenizer": tokenizer.to_json(), "seq_len": seq_len, "labels": list(main.label_names), "targets": "classes",
        "mask_token": mask,
    }  # fmt: skip
    return DataSplits(
        parts["train"], parts.get("validation"), parts.get("test"), spec, facts,
        hashlib.sha256(canonical([made_of, tokenizer.sha256, seq_len, steps, seed]).encode()).hexdigest(), tokenizer, preprocess,
    )  # fmt: skip


def _refuse_empty(found: LabelledTexts, part: str) -> None:
    if not len(found):
        raise DataError(f"the {part} source has no texts. Check its path and its limit")
    empty = next((place for text, place in zip(found.texts, found.places, strict=True) if not text.strip()), None)
    if empty is not None:
        raise DataError(f"{empty}: the text is empty, so nothing tells its class. Fill it in or drop the row")


class LabelledTextDataset:
    """Texts as rows of tokens. Example `i` of epoch `e` is a pure function of (seed, e, i); threads may share it."""

    def __init__(
        self, ids: Sequence[NDArray[np.uint32]], targets: NDArray[np.int64], spec: DataSpec, bos: int, mask: int, *, seed: int = 0,
        augments: Sequence[TextAugmentConfig] = (), texts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`ids` of each text without BOS; `texts`: what they were, for who wants to read them."""
        assert spec.seq_len is not None
        self.spec, self._targets, self._bos, self._mask, self._seed, self._augments = spec, targets, bos, mask, seed, tuple(augments)
        self.texts = texts
        self._tokens, self._lengths = rows_of(ids, spec.seq_len, bos)
        counts = np.bincount(targets, minlength=len(spec.labels)).tolist()
        self.facts: dict[str, Any] = {
            "texts": len(targets), "tokens": int(sum(len(i) for i in ids)), "cut": sum(len(i) + 1 > spec.seq_len for i in ids),
            "classes": dict(zip(spec.labels, counts, strict=True)),
        }  # fmt: skip

    @property
    def targets(self) -> NDArray[np.int64]:
        """Class of each text, (N)."""
        return self._targets

    def __len__(self) -> int:
        return len(self._targets)

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """The texts `index`: inputs BT int64, targets B int64, weights B of 1, segments BT int32, -1 where nothing is."""
        import torch

        index = np.asarray(index, np.int64)
        tokens_BT, lengths_B = self._tokens[index].astype(np.int64), self._lengths[index]
        for place, step in enumerate(self._augments):
            tokens_BT, lengths_B = step.rewrite(tokens_BT, lengths_B, self._mask, Draws(self._seed, place, epoch, index))
        there_BT = np.arange(tokens_BT.shape[1]) < lengths_B[:, None]
        tokens_BT = np.where(there_BT, tokens_BT, self._bos)
        return Batch(
            torch.from_numpy(tokens_BT), torch.from_numpy(self._targets[index]), torch.ones(len(index)),
            torch.from_numpy(np.where(there_BT, 0, -1).astype(np.int32)), torch.from_numpy(index.copy()),
        )  # fmt: skip


def rows_of(ids: Sequence[NDArray[np.uint32]], seq_len: int, bos: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """(tokens NT, lengths N): [BOS] text, the end cut off, BOS behind it."""
    tokens = np.full((len(ids), seq_len), bos, np.uint32)
    lengths = np.array([min(len(i) + 1, seq_len) for i in ids], np.int64)
    for row, (i, n) in enumerate(zip(ids, lengths.tolist(), strict=True)):
        tokens[row, 1:n] = i[: n - 1]
    return tokens, lengths


def inputs_from_texts(preprocess: Mapping[str, Any], texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(inputs BT, segments BT) of texts that come later, as a checkpoint's `preprocess` has it. Raises `DataError` for an empty one."""
    if not texts or any(not t.strip() for t in texts):
        raise DataError("a text is empty, expected at least one word" if texts else "no text was given, expected at least one")
    for i, text in enumerate(texts):
        refuse_surrogates(text, f"text {i}")
    tokenizer = Tokenizer.from_json(preprocess["tokenizer"])
    tokens, lengths = rows_of(tokenizer.encode_many(list(texts)), preprocess["seq_len"], tokenizer.bos)
    there = np.arange(tokens.shape[1]) < lengths[:, None]
    return tokens.astype(np.int64), np.where(there, 0, -1).astype(np.int32)
