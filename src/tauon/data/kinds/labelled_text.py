"""Texts with labels -> rows of tokens. The tokenizer is trained on the training texts alone, which also set the default length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.config import DataConfig
from tauon.data.dates import moments
from tauon.data.facts import notices
from tauon.data.files import canonical
from tauon.data.kinds.base import DataKind, Fitted, Parts, Request, own_data
from tauon.data.kinds.steps import augment_steps, refuse_split_by_document
from tauon.data.labelled_text import LabelledTextDataset
from tauon.data.labels import label_facts, renumbered
from tauon.data.masking import mask_token
from tauon.data.numbers import all_floats
from tauon.data.own_tokenizer import digest_of, tokenizer_for
from tauon.data.progress import report
from tauon.data.sources.base import LabelledTexts, SourceConfig
from tauon.data.split import Part, refuse_new_classes
from tauon.data.text_augment import TextAugmentConfig
from tauon.data.text_files import refuse_surrogates
from tauon.errors import DataError
from tauon.types import DataSpec

__all__ = ["LabelledTextKind"]

_VERSION = 1
_SHARE, _MOST = 95, 512


@register("labelled-text")
class LabelledTextKind(DataKind[LabelledTexts]):
    """Texts, each with a class."""

    input_kind, output_kind, words = "labelled-text", "labelled-text", "texts with labels"
    reads = ("tokenizer", "seq_len", "augment", "decontaminate")
    cleans, records = ("labelled-text",), "texts"

    @classmethod
    def problems(cls, config: DataConfig) -> Iterator[tuple[str, str]]:
        yield from refuse_split_by_document(config, cls.words)

    def read(self, source: SourceConfig, part: Part, request: Request) -> LabelledTexts:
        report(f"read {part}", 0)
        whole = source.labelled_texts()
        whole = whole if source.limit is None else whole.first(source.limit)
        _refuse_empty(whole, part)
        for text, place in zip(whole.texts, whole.places, strict=True):
            refuse_surrogates(text, place)
        for label in whole.label_names:
            refuse_surrogates(label, f"the {part} source, label {label!a}")
        return whole

    def compared(self, data: LabelledTexts, index: NDArray[np.int64]) -> list[str]:
        return [data.texts[i] for i in index]

    def strata(self, data: LabelledTexts) -> NDArray[Any]:
        return data.targets

    def times(self, data: LabelledTexts, request: Request) -> NDArray[Any] | None:
        if not len(data.times):
            return None
        numbers = all_floats(data.times)
        return numbers if numbers is not None else moments([str(v).strip() for v in data.times], "data.source.time")

    def split(self, whole: Mapping[Part, LabelledTexts], request: Request) -> tuple[Parts[LabelledTexts], dict[str, Any]]:
        """Split each class in proportion."""
        parts, facts = super().split(whole, request)
        main, rows = whole["train"], {part: p.index for part, p in parts.items() if p.data is whole["train"]}
        if len(np.unique(main.targets[rows["train"]])) < 2:
            name = main.label_names[main.targets[rows["train"][0]]]
            raise DataError(
                f"every training text has the label {name!r}: with one class there is nothing to learn. Check data.source.label"
            )
        refuse_new_classes(main.targets, main.label_names, rows, "the texts")
        return parts, facts

    def fit(self, parts: Parts[LabelledTexts], request: Request) -> Fitted:
        config, main = request.config, parts["train"].data
        texts = {part: [rows.data.texts[i] for i in rows.index] for part, rows in parts.items()}
        targets = {part: _targets(rows.data, main, part)[rows.index] for part, rows in parts.items()}
        tokenizer, made = tokenizer_for(config, texts["train"])
        mask, vocab = mask_token(tokenizer)
        ids = {part: tokenizer.encode_many(mine) for part, mine in texts.items()}
        seq_len, why = _length(config, ids["train"])
        refusal = "is not for texts. There are mask-tokens and drop-tokens"
        steps = augment_steps(config, lambda step: isinstance(step, TextAugmentConfig), refusal)
        spec = DataSpec(vocab=vocab, seq_len=seq_len, outputs=len(main.label_names), labels=main.label_names)
        datasets: dict[Part, LabelledTextDataset] = {}
        for part, mine in texts.items():
            augments = cast("tuple[TextAugmentConfig, ...]", config.augment) if part == "train" else ()
            datasets[part] = LabelledTextDataset(
                ids[part], targets[part], spec, tokenizer.bos, mask, seed=request.seed, augments=augments, texts=mine
            )
        content = [_VERSION, main.label_names, {p: [digest_of(mine), targets[p].tolist()] for p, mine in texts.items()}]
        facts = {
            "tokenizer": made, "seq_len": {"value": seq_len, "why": why}, "labels": list(main.label_names), "augment": steps,
            "split": {"rows_also_in_train": _also_in_train(texts)}, **_label_facts(parts, request),
        }  # fmt: skip
        preprocess = {
            "kind": "labelled-text", "tokenizer": tokenizer.to_json(), "seq_len": seq_len, "labels": list(main.label_names),
            "targets": "classes", "mask_token": mask,
        }  # fmt: skip
        made_of = hashlib.sha256(canonical(content).encode()).hexdigest()
        return Fitted({**datasets}, made_of, [tokenizer.sha256, seq_len, steps, request.seed], preprocess, facts, tokenizer)


def _targets(mine: LabelledTexts, main: LabelledTexts, part: Part) -> NDArray[np.int64]:
    """Return the class numbers of the training source."""
    return mine.targets if mine is main else renumbered(mine.targets, mine.label_names, main.label_names, part)


def _length(config: DataConfig, ids: Sequence[NDArray[np.uint32]]) -> tuple[int, str]:
    if config.seq_len is not None:
        return config.seq_len, "as set"
    why = f"{_SHARE}% of the training texts are not longer, or the most that is taken unasked ({_MOST})"
    return min(_MOST, int(np.percentile([len(i) + 1 for i in ids], _SHARE))), why


def _also_in_train(texts: Mapping[Part, Sequence[str]]) -> dict[str, int]:
    train = set(texts["train"])
    return {part: sum(t in train for t in mine) for part, mine in texts.items() if part != "train"}


def _label_facts(parts: Parts[LabelledTexts], request: Request) -> dict[str, Any]:
    main = parts["train"].data
    every = [label for mine in own_data(parts, request).values() for label in mine.labels]
    spelt, warnings = label_facts(every, main.label_names, f"column {main.label!r}") if every else ({}, [])
    notes = [note for mine in own_data(parts, request).values() for note in mine.notes]
    return ({"label_spelling": spelt} if spelt else {}) | notices({}, notes, warnings)


def _refuse_empty(found: LabelledTexts, part: str) -> None:
    if not len(found):
        raise DataError(f"the {part} source has no texts. Check its path and its limit")
    empty = next((place for text, place in zip(found.texts, found.places, strict=True) if not text.strip()), None)
    if empty is not None:
        raise DataError(f"{empty}: the text is empty. Fill it in, or remove the row")
