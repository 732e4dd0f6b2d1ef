"""Drafts for texts with a label, conversations, preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.data import TableLook
from tauon.data.own_tokenizer import SEQ_LEN_DEFAULT
from tauon.errors import DataError, TauonError
from tauon.models import open_model_folder
from tauon.starter.draft import Asked, Draft, held_out, training
from tauon.starter.names import NameGroups
from tauon.starter.roles import Roles

__all__ = ["answers", "classes", "fields_of", "text_classes"]

_FORMS: tuple[tuple[str, ...], ...] = (
    ("messages",), ("conversations",), ("instruction", "output"), ("prompt", "completion"), ("prompt", "chosen", "rejected"),
    ("question", "chosen", "rejected"), ("instruction", "chosen", "rejected"),
)  # fmt: skip
"""Keys of rows that are read as they are."""
_ASKS = ("prompt", "question", "instruction", "query", "input", "user", "human", "problem", "request", "source")
_SAYS = ("completion", "answer", "response", "output", "reply", "assistant", "bot", "solution", "target", "generation", "accepted_answer")
"""Other names of a question and of its answer."""
_CONTEXT = ("input", "context", "passage")


def fields_of(keys: list[str]) -> tuple[str, dict[str, str]] | None:
    """Return (`pairs` or `chat`, the field map) if rows with these keys are preferences or conversations; None if they are neither.

    >>> fields_of(["question", "answer"]), fields_of(["instruction", "input", "response"]), fields_of(["text", "label"])
    (('chat', {'prompt': 'question', 'completion': 'answer'}), ('chat', {'output': 'response'}), None)
    """
    lower = {k.lower(): k for k in keys}
    for form in _FORMS:
        if all(k in keys for k in form):
            return ("pairs" if "chosen" in form else "chat"), {}
    for good, bad in (("chosen", "rejected"), ("preferred", "dispreferred"), ("response_j", "response_k"), ("accepted", "rejected")):
        ask = next((lower[k] for k in _ASKS if k in lower), None)
        if good in lower and bad in lower and ask is not None:
            fields = {"prompt": ask, "chosen": lower[good], "rejected": lower[bad]}
            return "pairs", {k: v for k, v in fields.items() if k != v}
    for ask in _ASKS:
        for say in _SAYS:
            if ask in lower and say in lower and ask != say:
                return "chat", _chat_fields(lower, ask, say)
    return None


def _chat_fields(lower: dict[str, str], ask: str, say: str) -> dict[str, str]:
    """Return the field map of a question and an answer; with a context, as instruction, input and output."""
    context = next((k for k in _CONTEXT if k in lower and k not in (ask, say)), None)
    fields = (
        {"instruction": lower[ask], "output": lower[say]}
        if context or ask == "instruction"
        else {"prompt": lower[ask], "completion": lower[say]}
    )
    if context:
        fields["input"] = lower[context]
    system = next((k for k in ("system", "system_prompt", "system_message") if k in lower), None)
    if system:
        fields["system"] = lower[system]
    return {k: v for k, v in fields.items() if k != v}


def text_classes(place: Path, look: TableLook, roles: Roles, asked: Asked, source: dict[str, Any], why: list[str]) -> Draft:
    """Draft for texts with a label, in a table or in rows of JSON."""
    label, texts = roles.label, [c.name for c in roles.texts]
    assert label is not None
    source = source | {"text": texts[0] if len(texts) == 1 else texts, "label": label.name}
    if len(texts) > 1:
        why = [*why, f"{' and '.join(texts)} are read, in this order, as one text (text)."]
    if roles.features:
        named = ", ".join(c.name for c in roles.features)
        why = [
            *why,
            f"{named}: not read, because a model reads texts or columns. To predict from the columns: --inputs {roles.features[0].name}.",
        ]
    why += [f"{c.name or 'The column without a name'} is left out: {reason}." for c, reason in roles.left_out[:8]]
    why += [r for r in roles.remarks if "categorical" not in r]
    empty = [c for c in roles.texts if c.missing]
    if empty and len(texts) == 1:
        raise DataError(f"{place}: {empty[0].missing:,} rows have no {empty[0].name!r}. Fill it in, or remove the rows")
    groups = 0
    if roles.group is not None:
        source["group"], groups = roles.group.name, roles.group.distinct
    elif roles.time is not None and roles.time.formats in ((), ("",)):
        source["time"] = roles.time.name
    made = classes(
        place, source, examples=look.rows, distinct=label.distinct, name=asked.name, label=label.name, why=why,
        groups=NameGroups("", groups, source["group"]) if groups else None,
    )  # fmt: skip
    if "time" in source:
        made.why["data"][-1] = (
            f"{source['time']} is the time of a text: the last ones are held out, so that nothing is learned from the future."
        )
    return made


def classes(
    place: Path, source: dict[str, Any], *, examples: int, distinct: int, name: str, label: str, why: list[str], groups: NameGroups | None = None
) -> Draft:  # fmt: skip
    """Draft for texts to classify. `source` has file, text and label; `distinct`: number of labels."""
    if distinct < 2:
        raise DataError(f"{place}: every row has the same {label!r}, expected at least two")
    if distinct * 2 > examples:
        raise DataError(
            f"{place}: {label!r} has {distinct} values in {examples} rows: too few rows per class. Name another label with --label"
        )
    made = Draft(name, f"{label} of the texts in {place.name}, {examples:,} texts", examples=examples)
    split, sentence = held_out(examples, groups=groups.groups if groups else 0, what=str(source.get("group", "")))
    vocab = 3000 if examples >= 1000 else 1024
    said = f"{vocab:,} pieces of words are learned from the training texts."
    data = {"source": source, "tokenizer": {"kind": "bpe", "vocab": vocab}, "seq_len": 2048, "split": split}
    made.set("data", data, *why, said, "Of a text up to 2,048 pieces are read (seq_len).", sentence)
    made.set("task", "text-classification", f"{label}: {distinct} different values: classes.")
    made.set(
        "model",
        {"kind": "tfidf", "ngrams": 2},
        "Logistic regression on TF-IDF of pieces of words and pairs of them: takes seconds, and is hard to improve on without a pretrained network.",
    )
    made.set("train", {"epochs": 1}, "The weights are fitted as a whole; how strongly they are held back is chosen on the validation part.")
    return made


def answers(
    place: Path, keys: list[str], kind: str, fields: dict[str, str], asked: Asked, *, examples: int, group: tuple[str, int] | None, extra: dict[str, Any]
) -> Draft:  # fmt: skip
    """Draft for conversations (`chat`) or preferences (`pairs`), to tune a trained model. `group`: key of what belongs together, with its values."""
    pairs = kind == "pairs"
    what = "preferences" if pairs else "conversations"
    if asked.model is None:
        raise DataError(
            f"{place}: these are {what} ({', '.join(keys)}), to tune a trained model. Name it with --model: a run, a folder of "
            "Hugging Face, or a name on its hub. To predict a key instead, name it with --label"
        )
    source: dict[str, Any] = {"kind": kind, "path": str(place)} | extra | ({"fields": fields} if fields else {})
    why = [f"{', '.join(f'{there} is read as {key}' for key, there in fields.items())} (fields)."] if fields else []
    split: dict[str, str] = {"validation": "10%"}
    if group is not None:
        source["group"] = group[0]
        split = {"validation": held_out(examples, groups=group[1], what=group[0])[0]["validation"]}
        why.append(f"Rows of one {group[0]} belong together: no {group[0]} is in two parts.")
    title = f"{'Preference' if pairs else 'Instruction'} tuning of {asked.model} on {place.name}, {examples:,} {what}"
    made = Draft(asked.name, title, examples=examples)
    said = "Tokens are the model's own; an answer ends with its end token (data.chat.template says how roles are written)."
    data: dict[str, Any] = {"source": source, "split": split}
    longest = _longest(asked.model)
    if longest is not None and longest < SEQ_LEN_DEFAULT:
        data["seq_len"] = longest
        why.append(f"{asked.model} reads {longest} tokens: longer {what} are cut at the beginning (seq_len).")
    made.set("data", data, *why, said)
    made.set("task", "dpo" if pairs else "instruction-tuning", "The loss is on answers alone.")
    made.set("model", {"from": asked.model})
    made.set("adapt", {"kind": "lora", "rank": 16}, "A few new weights beside the model's, which stay: full tuning is without this line.")
    made.set("optim", {"kind": "adamw", "lr": 0.0002 if pairs else 0.001, "weight_decay": 0, "schedule": {"kind": "cosine", "final": 0}})
    train, reasons = training(examples, batch=8, seen=3 * examples, most=3)
    made.set("train", train, *reasons)
    return made


def _longest(model: str) -> int | None:
    """Return the most tokens that a model on this machine reads; None if it does not say, or must be downloaded."""
    if not Path(model).expanduser().is_dir():
        return None
    try:
        return getattr(open_model_folder(model).config, "seq_len", None)
    except TauonError:  # whatever is wrong with it is reported when the recipe is run
        return None
