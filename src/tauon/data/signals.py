"""Waveforms -> examples of one length, padded at the end; characters of transcripts; augmented in training.

No statistics are fitted: what a model hears is normalised by itself, recording by recording (`models/families/mel.py`).

Shape legend: B batch, T samples, U characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump
from tauon.data.audio_augment import AudioAugmentConfig
from tauon.data.augment import Draws
from tauon.data.config import DataConfig
from tauon.data.facts import told
from tauon.data.files import canonical
from tauon.data.labels import renumbered
from tauon.data.preparation import DataSplits, count_as_read
from tauon.data.progress import report
from tauon.data.sources.base import Signals, SourceConfig
from tauon.data.spelling import classes_alike
from tauon.data.split import PARTS, Part, refuse_new_classes, split_rows
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["BLANK", "SignalDataset", "inputs_from_waves", "prepare_signals"]

_VERSION = 1
BLANK = "<blank>"
"""Name of output 0 where outputs are characters (CTC's blank). Output 1 is the space, whether or not there is one."""
_SHARE = 95


def prepare_signals(config: DataConfig, sources: dict[Part, SourceConfig], seed: int) -> DataSplits:
    """Read, split by recording, settle the length, and the classes or characters."""
    held: dict[Part, Signals] = {}
    for part, source in sources.items():
        report(f"read {part}", 0)
        found = source.signals()
        held[part] = found if source.limit is None else found.first(source.limit)
    main = held["train"]
    for part, signals in held.items():
        if signals.rate != main.rate:
            raise DataError(
                f"the {part} source has {signals.rate:,} samples a second, the training source {main.rate:,}. Convert one of them"
            )
    asked = config.signal.target
    spelled = asked == "transcript" or (asked == "auto" and main.targets is None)
    if not spelled and main.targets is None:
        raise DataError("data.signal.target: class, but the recordings have transcripts, not classes. Take transcript")
    strata = main.targets if main.targets is not None else np.zeros(len(main), np.int64)
    rows, split_facts = split_rows(strata, config.split, [p for p in PARTS if p not in sources])
    if not spelled:
        _refuse_one_class(main, rows["train"])
        refuse_new_classes(strata, main.label_names, rows, "the recordings")
    chosen: dict[Part, tuple[Signals, NDArray[np.int64]]] = {
        part: (main, rows[part]) if part in rows else (held[part], np.arange(len(held[part])))
        for part in PARTS
        if part in rows or part in held
    }

    lengths = np.array([len(main.waves[i]) for i in rows["train"]])
    asked_seconds = config.signal.seconds
    if asked_seconds is not None:
        samples, why = round(asked_seconds * main.rate), "as set"
    elif spelled:
        samples, why = int(max(len(w) for s, r in chosen.values() for w in (s.waves[i] for i in r))), "the longest recording"
    else:
        samples, why = int(np.percentile(lengths, _SHARE)), f"{_SHARE}% of the training recordings are not longer"
    if spelled:
        long = next(((s.names[i], len(s.waves[i])) for s, r in chosen.values() for i in r if len(s.waves[i]) > samples), None)
        if long is not None:
            raise DataError(
                f"{long[0]}: {long[1] / main.rate:.2f} s, longer than data.signal.seconds {samples / main.rate:g}; what is said at its end would be "
                "lost. Give more seconds, or cut the recording and its transcript"
            )
        texts = {part: [_said(s, i) for i in r] for part, (s, r) in chosen.items()}
        alphabet = (BLANK, " ", *sorted({c for text in texts["train"] for c in text} - {" "}))
        labels: tuple[str, ...] = alphabet
        targets = {part: _numbers(t, alphabet, chosen[part], part) for part, t in texts.items()}
    else:
        labels = main.label_names
        targets = {part: _classes(s, main, part)[r] for part, (s, r) in chosen.items()}

    steps = [dump(a) for a in config.augment]
    for place, step in enumerate(config.augment):
        if not isinstance(step, AudioAugmentConfig):
            raise DataError(f"data.augment.{place}: {step.kind_} is not for recordings. There are speed, gain, shift-audio and noise-audio")
    count_as_read(config, [["augment", str(i), name] for i, step in enumerate(steps) for name in step])
    spec = DataSpec(input_shape=(samples,), outputs=len(labels), labels=labels, sample_rate=main.rate)
    parts: dict[Part, SignalDataset] = {}
    for part, (signals, r) in chosen.items():
        augments = cast("tuple[AudioAugmentConfig, ...]", config.augment) if part == "train" else ()
        parts[part] = SignalDataset(signals, r, targets[part], spec, spelled=spelled, seed=seed, augments=augments)
    digest = hashlib.sha256(canonical([_VERSION, main.rate, labels, {p: r.tolist() for p, (_, r) in chosen.items()}]).encode())
    for signals in held.values():
        for wave in signals.waves:
            digest.update(np.ascontiguousarray(wave).data)
    for t in targets.values():
        digest.update(np.ascontiguousarray(t).data)
    made_of = digest.hexdigest()
    facts = {
        "kind": "signals", "sources": {p: s.describe() for p, s in sources.items()}, "sample_rate": main.rate,
        "seconds": {"value": samples / main.rate, "why": why}, "target": "transcript" if spelled else "class",
        "split": split_facts | {"own_parts": [p for p in sources if p != "train"]}, "labels": list(labels),
        "parts": {p: d.facts for p, d in parts.items()}, "augment": steps, "content": made_of,
    }  # fmt: skip
    alike = [] if spelled else classes_alike(labels, "the labels")
    facts |= told({p: s.left_out for p, s in held.items()}, (), alike)
    preprocess = {"kind": "signals", "sample_rate": main.rate, "samples": samples, "labels": list(labels), "spelled": spelled}
    preprocess["targets"] = "transcripts" if spelled else "classes"
    return DataSplits(
        parts["train"], parts.get("validation"), parts.get("test"), spec, facts,
        hashlib.sha256(canonical([made_of, samples, steps, seed]).encode()).hexdigest(), None, preprocess,
    )  # fmt: skip


def _refuse_one_class(signals: Signals, rows: NDArray[np.int64]) -> None:
    assert signals.targets is not None
    if len(np.unique(signals.targets[rows])) < 2:
        name = signals.label_names[signals.targets[rows[0]]]
        raise DataError(
            f"every training recording has the label {name!r}: with one class there is nothing to learn. Check data.source.pattern"
        )


def _classes(signals: Signals, main: Signals, part: str) -> NDArray[np.int64]:
    """Class numbers as the training source has them."""
    if signals.targets is None:
        raise DataError(f"the {part} source has transcripts, the training source classes; both must have the same")
    return renumbered(signals.targets, signals.label_names, main.label_names, part)


def _said(signals: Signals, i: int) -> str:
    if signals.targets is None:
        return signals.transcripts[i]
    name: str = signals.label_names[signals.targets[i]]
    return name


def _numbers(texts: Sequence[str], alphabet: Sequence[str], of: tuple[Signals, NDArray[np.int64]], part: str) -> NDArray[np.int64]:
    """(N, U) numbers of characters, -1 behind the end."""
    number = {c: i for i, c in enumerate(alphabet)}
    found = np.full((len(texts), max(map(len, texts))), -1, np.int64)
    for row, text in enumerate(texts):
        new = next((c for c in text if c not in number), None)
        if new is not None:
            name = of[0].names[of[1][row]]
            raise DataError(
                f"{name}: the {part} transcript has {new!r}, which no training transcript has. Clean it, or train on such text too"
            )
        found[row, : len(text)] = [number[c] for c in text]
    return found


class SignalDataset:
    """Recordings of one length. Example `i` of epoch `e` is a pure function of (seed, e, i); threads may share it."""

    def __init__(
        self, signals: Signals, rows: NDArray[np.int64], targets: NDArray[np.int64], spec: DataSpec, *, spelled: bool, seed: int = 0,
        augments: Sequence[AudioAugmentConfig] = (),
    ) -> None:  # fmt: skip
        """`targets` of `rows`: classes (N), or characters (N, U)."""
        assert spec.input_shape is not None
        self._signals, self._rows, self._targets, self._seed, self._augments = signals, rows, targets, seed, tuple(augments)
        self._samples, self.spec = spec.input_shape[0], spec
        lengths = [len(signals.waves[i]) for i in rows]
        self.facts: dict[str, Any] = {"recordings": len(rows), "seconds": round(sum(lengths) / signals.rate, 3)}
        self.facts["cropped"] = sum(n > self._samples for n in lengths)
        if spelled:
            self.facts["characters"] = int((targets >= 0).sum())
        else:
            counts = np.bincount(targets, minlength=len(spec.labels)).tolist()
            self.facts["classes"] = dict(zip(spec.labels, counts, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """The recordings `index`: inputs BT float32 in [-1, 1], targets B or BU int64, lengths B, weights B of 1."""
        import torch

        index = np.asarray(index, np.int64)
        waves = [self._signals.waves[self._rows[i]] for i in index]
        for place, step in enumerate(self._augments):
            waves = step.play(waves, self._signals.rate, Draws(self._seed, place, epoch, index))
        inputs, lengths = fitted(waves, self._samples)
        return Batch(
            torch.from_numpy(inputs), torch.from_numpy(self._targets[index]), torch.ones(len(index)), lengths=torch.from_numpy(lengths),
            index=torch.from_numpy(index.copy()),
        )  # fmt: skip


def fitted(waves: Sequence[NDArray[np.float32]], samples: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(BT, lengths B): zeros behind the end of short ones, both ends cut off long ones."""
    out = np.zeros((len(waves), samples), np.float32)
    lengths = np.minimum([len(w) for w in waves], samples).astype(np.int64)
    for row, wave in enumerate(waves):
        start = max(0, (len(wave) - samples) // 2)
        out[row, : lengths[row]] = wave[start : start + lengths[row]]
    return out, lengths


def inputs_from_waves(
    preprocess: Mapping[str, Any], waves: Sequence[NDArray[np.float32]], rate: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(inputs BT, lengths B) of recordings that come later, as a checkpoint's `preprocess` has it. Raises `DataError` for another rate."""
    if rate != preprocess["sample_rate"]:
        raise DataError(
            f"{rate:,} samples a second, and the model was trained on {preprocess['sample_rate']:,}. Convert the recording first"
        )
    return fitted(waves, preprocess["samples"])
