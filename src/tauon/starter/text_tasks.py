"""Drafts for texts with a label, conversations, preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.errors import DataError
from tauon.starter.draft import Draft, held_out, training

__all__ = ["ANSWER_KEYS", "CHAT_KEYS", "PAIR_KEYS", "answers", "classes"]

CHAT_KEYS = ("messages", "conversations", "instruction")
"""A row of JSON with one of these is a conversation; with both keys below it is a preference, or a question with its answer."""
PAIR_KEYS = ("chosen", "rejected")
ANSWER_KEYS = ("prompt", "completion")


def classes(place: Path, source: dict[str, Any], *, examples: int, distinct: int, name: str) -> Draft:
    """Draft for texts to classify. `source` has file, text and label; `distinct`: number of labels."""
    if distinct < 2:
        raise DataError(f"{place}: every row has the same {source['label']!r}, expected at least two")
    if distinct * 2 > examples:
        raise DataError(
            f"{place}: {source['label']!r} has {distinct} values in {examples} rows: too few rows per class. Name another label with --label-from"
        )
    made = Draft(name, f"{source['label']} of the texts in {place.name}, {examples:,} rows")
    split, sentence = held_out(examples)
    vocab = 4096 if examples >= 1000 else 1024
    why = f"{vocab:,} pieces of words are learned from the training texts."
    made.set("data", {"source": source, "tokenizer": {"kind": "bpe", "vocab": vocab}, "split": split}, why, sentence)
    made.set("task", "text-classification", f"{source['label']}: {distinct} different values: classes.")
    made.set(
        "model",
        {"kind": "text-bag", "width": 16, "ngrams": 2},
        "A bag of pieces of words and pairs of them: quick, and hard to beat with little data.",
    )
    made.set("optim", {"kind": "adamw", "lr": 0.01, "weight_decay": 0, "schedule": {"kind": "cosine", "warmup": "5%", "final": 0}})
    train, sentence = training(examples, batch=32, seen=40_000, most=40)
    made.set("train", train, sentence)
    return made


def answers(place: Path, keys: list[str], examples: int, name: str, model: str | None) -> Draft:
    """Draft for conversations or preferences, to tune a trained model."""
    pairs = all(k in keys for k in PAIR_KEYS)
    what = "preferences" if pairs else "conversations"
    if model is None:
        raise DataError(
            f"{place}: these are {what} ({', '.join(keys)}), to tune a trained model. Name it with --model: a run, a folder of "
            "Hugging Face, or a name on its hub"
        )
    made = Draft(name, f"{'Preference' if pairs else 'Instruction'} tuning of {model} on {place.name}, {examples:,} {what}")
    data = {"source": {"kind": "pairs" if pairs else "chat", "path": str(place)}, "split": {"validation": "10%"}}
    made.set("data", data, "Tokens are the model's own; an answer ends with its end token (data.chat.template says how roles are written).")
    made.set("task", "dpo" if pairs else "instruction-tuning", "The loss is on answers alone.")
    made.set("model", {"from": model})
    made.set("adapt", {"kind": "lora", "rank": 16}, "A few new weights beside the model's, which stay: full tuning is without this line.")
    made.set("optim", {"kind": "adamw", "lr": 0.0002 if pairs else 0.001, "weight_decay": 0, "schedule": {"kind": "cosine", "final": 0}})
    train, sentence = training(examples, batch=8, seen=3 * examples, most=3)
    made.set("train", train, sentence)
    return made
