"""Recordings -> examples of one length, with a class or the characters of a transcript. No statistics are fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.audio_augment import AudioAugmentConfig
from tauon.data.config import DataConfig
from tauon.data.facts import notices
from tauon.data.files import canonical
from tauon.data.kinds.base import ChosenRows, DataKind, Fitted, Parts, Request, own_data
from tauon.data.kinds.steps import augment_steps
from tauon.data.labels import renumbered
from tauon.data.progress import report
from tauon.data.signals import BLANK, SignalDataset
from tauon.data.sources.base import Signals, SourceConfig
from tauon.data.spelling import classes_alike
from tauon.data.split import Part, refuse_new_classes
from tauon.errors import DataError
from tauon.types import DataSpec

__all__ = ["SignalsKind"]

_VERSION = 1
_SHARE = 95


@register("signals")
class SignalsKind(DataKind[Signals]):
    """Recordings, each with a class or a transcript."""

    input_kind, output_kind, words = "signals", "signals", "recordings"
    reads = ("augment", "signal")
    cleans, records = ("signals",), "recordings"

    def read(self, source: SourceConfig, part: Part, request: Request) -> Signals:
        report(f"read {part}", 0)
        whole = source.signals()
        return whole if source.limit is None else whole.first(source.limit)

    def strata(self, data: Signals) -> NDArray[Any]:
        return data.targets if data.targets is not None else np.zeros(len(data), np.int64)

    def split(self, whole: Mapping[Part, Signals], request: Request) -> tuple[Parts[Signals], dict[str, Any]]:
        main = whole["train"]
        for part, signals in whole.items():
            if signals.rate != main.rate:
                raise DataError(
                    f"the {part} source has sampling rate {signals.rate:,} Hz, but the training source has {main.rate:,} Hz. Convert one of them"
                )
        spelled = _spelled(request.config, main)
        parts, facts = super().split(whole, request)
        if not spelled:
            _refuse_one_class(main, parts["train"].index)
            mine = {part: rows.index for part, rows in parts.items() if rows.data is main}
            refuse_new_classes(self.strata(main), main.label_names, mine, "the recordings")
        return parts, facts

    def fit(self, parts: Parts[Signals], request: Request) -> Fitted:
        config, main = request.config, parts["train"].data
        spelled = _spelled(config, main)
        samples, why = _length(config, parts, spelled)
        named = _characters(parts) if spelled else _named_classes(parts)
        refusal = "is not for recordings. Use speed, gain, shift-audio or noise-audio"
        steps = augment_steps(config, lambda step: isinstance(step, AudioAugmentConfig), refusal)
        spec = DataSpec(input_shape=(samples,), outputs=len(named.labels), labels=named.labels, sample_rate=main.rate)
        datasets: dict[Part, SignalDataset] = {}
        for part, rows in parts.items():
            augments = cast("tuple[AudioAugmentConfig, ...]", config.augment) if part == "train" else ()
            datasets[part] = SignalDataset(
                rows.data, rows.index, named.targets[part], spec, spelled=spelled, seed=request.seed, augments=augments
            )
        facts = {
            "sample_rate": main.rate, "seconds": {"value": samples / main.rate, "why": why}, "target": "transcript" if spelled else "class",
            "labels": list(named.labels), "augment": steps,
        }  # fmt: skip
        alike = [] if spelled else classes_alike(named.labels, "the labels")
        facts |= notices({p: s.left_out for p, s in own_data(parts, request).items()}, (), alike)
        preprocess = {
            "kind": "signals", "sample_rate": main.rate, "samples": samples, "labels": list(named.labels), "spelled": spelled,
            "targets": "transcripts" if spelled else "classes",
        }  # fmt: skip
        content = _content(parts, named, request)
        return Fitted({**datasets}, content, [samples, steps, request.seed], preprocess, facts)


@dataclass(frozen=True)
class _Named:
    """Outputs by name, with their index."""

    labels: tuple[str, ...]
    targets: dict[Part, NDArray[np.int64]]
    """Targets of each part: classes (N), or characters (N, U)."""


def _spelled(config: DataConfig, main: Signals) -> bool:
    """Whether targets are characters."""
    asked = config.signal.target
    spelled = asked == "transcript" or (asked == "auto" and main.targets is None)
    if not spelled and main.targets is None:
        raise DataError("data.signal.target: class, but the recordings have transcripts, not classes. Set transcript")
    return spelled


def _length(config: DataConfig, parts: Parts[Signals], spelled: bool) -> tuple[int, str]:
    """Return (samples per example, reason)."""
    train, seconds = parts["train"], config.signal.seconds
    rate = train.data.rate
    longest = max(len(rows.data.waves[i]) for rows in parts.values() for i in rows.index)
    if seconds is None and spelled:
        return int(longest), "the longest recording"
    if seconds is None:
        lengths = np.array([len(train.data.waves[i]) for i in train.index])
        return int(np.percentile(lengths, _SHARE)), f"{_SHARE}% of the training recordings are not longer"
    samples = round(seconds * rate)
    if spelled and longest > samples:
        whole = ((rows.data, i) for rows in parts.values() for i in rows.index)
        signals, i = next((s, i) for s, i in whole if len(s.waves[i]) > samples)
        raise DataError(
            f"{signals.names[i]}: {len(signals.waves[i]) / rate:.2f} s, longer than data.signal.seconds {samples / rate:g}; speech at its "
            "end would be lost. Raise data.signal.seconds, or cut the recording and its transcript"
        )
    return samples, "as set"


def _characters(parts: Parts[Signals]) -> _Named:
    """Return the transcripts as characters of the training transcripts."""
    texts = {part: [_said(rows.data, i) for i in rows.index] for part, rows in parts.items()}
    alphabet = (BLANK, " ", *sorted({c for text in texts["train"] for c in text} - {" "}))
    return _Named(alphabet, {part: _numbers(t, alphabet, parts[part], part) for part, t in texts.items()})


def _named_classes(parts: Parts[Signals]) -> _Named:
    main = parts["train"].data
    return _Named(main.label_names, {part: _classes(rows.data, main, part)[rows.index] for part, rows in parts.items()})


def _content(parts: Parts[Signals], named: _Named, request: Request) -> str:
    rate = parts["train"].data.rate
    chosen = {p: rows.index.tolist() for p, rows in parts.items()}
    digest = hashlib.sha256(canonical([_VERSION, rate, named.labels, chosen]).encode())
    for signals in own_data(parts, request).values():
        for wave in signals.waves:
            digest.update(np.ascontiguousarray(wave).data)
    for targets in named.targets.values():
        digest.update(np.ascontiguousarray(targets).data)
    return digest.hexdigest()


def _refuse_one_class(signals: Signals, rows: NDArray[np.int64]) -> None:
    assert signals.targets is not None
    if len(np.unique(signals.targets[rows])) < 2:
        name = signals.label_names[signals.targets[rows[0]]]
        raise DataError(
            f"every training recording has the label {name!r}: with one class there is nothing to learn. Check data.source.pattern"
        )


def _classes(signals: Signals, main: Signals, part: str) -> NDArray[np.int64]:
    """Return the class numbers of the training source."""
    if signals.targets is None:
        raise DataError(f"the {part} source has transcripts, but the training source has classes. Both must have the same")
    return renumbered(signals.targets, signals.label_names, main.label_names, part)


def _said(signals: Signals, i: int) -> str:
    if signals.targets is None:
        return signals.transcripts[i]
    name: str = signals.label_names[signals.targets[i]]
    return name


def _numbers(texts: Sequence[str], alphabet: Sequence[str], rows: ChosenRows[Signals], part: str) -> NDArray[np.int64]:
    """Return (N, U) character numbers, padded with -1 at the end."""
    number = {c: i for i, c in enumerate(alphabet)}
    found = np.full((len(texts), max(map(len, texts))), -1, np.int64)
    for row, text in enumerate(texts):
        new = next((c for c in text if c not in number), None)
        if new is not None:
            name = rows.data.names[rows.index[row]]
            raise DataError(
                f"{name}: the {part} transcript has {new!r}, which no training transcript has. Clean it, or add such text to the training data"
            )
        found[row, : len(text)] = [number[c] for c in text]
    return found
