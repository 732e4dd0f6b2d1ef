"""Recordings: their class (audio classification), or their transcript (speech recognition with CTC).

Shape legend: B batch, S frames, C classes or characters, U characters of a transcript.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.classification import classification
from tauon.metrics.speech import speech_recognition
from tauon.tasks.answers import Answers, OutputMeaning, class_columns
from tauon.tasks.base import Task
from tauon.types import Batch, DataSpec

__all__ = ["AudioClassification", "SpeechRecognition", "distance", "spoken"]

BLANK, SPACE = "<blank>", 1
"""Name of output 0 in the data's labels; the output that is a space."""


@register("audio-classification")
class AudioClassification(Task):
    """Softmax cross-entropy over classes of whole recordings."""

    family = "classification"
    input_kind = "signals"

    label_smoothing: Fraction = Field(0.0, ge=0, lt=1)
    """Label smoothing: share of each target spread evenly over all classes (arXiv:1512.00567)."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_BC = model(batch.inputs, batch.lengths).float()
        loss_B = F.cross_entropy(logits_BC, batch.targets, reduction="none", label_smoothing=self.label_smoothing)
        return loss_B * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """scores: BC, probabilities; targets: B."""
        return {"scores": model(batch.inputs, batch.lengths).float().softmax(-1), "targets": batch.targets}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        scores, targets = need(outputs, self.family, "scores"), need(outputs, self.family, "targets").astype(np.int64)
        return classification(scores, targets, scoring.spec.labels, **scoring.how, top_k=scoring.top_k, costs=scoring.costs)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        return class_columns(outputs["scores"], meaning.labels)

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.labels[:1] == (BLANK,):
            yield "task", "audio-classification needs classes, but these recordings have transcripts. Set task: speech-recognition."


@register("speech-recognition")
class SpeechRecognition(Task):
    """Connectionist temporal classification of characters (Graves et al. 2006); greedy decoding. Scored by word and character error rate."""

    family = "speech-recognition"
    input_kind = "signals"

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each recording's -log p of its transcript, divided by its number of characters."""
        logits_BSC, frames_B = model(batch.inputs, batch.lengths, frames=True)
        characters_B = (batch.targets >= 0).sum(1)
        log_SBC = logits_BSC.float().log_softmax(-1).transpose(0, 1)
        loss_B = F.ctc_loss(log_SBC, batch.targets.clamp(min=0), frames_B, characters_B, blank=0, reduction="none", zero_infinity=True)
        return loss_B / characters_B.clamp(min=1) * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return errors in characters and words, and the number of both and of samples: B each."""
        logits_BSC, frames_B = model(batch.inputs, batch.lengths, frames=True)
        best_BS = logits_BSC.float().argmax(-1).cpu()
        rows = []
        for path, n, target in zip(best_BS.tolist(), frames_B.tolist(), batch.targets.tolist(), strict=True):
            said, meant = spoken(path[:n]), [c for c in target if c >= 0]
            words = words_of(said), words_of(meant)
            rows.append([distance(said, meant), len(meant), distance(*words), len(words[1])])
        found = torch.tensor(rows, dtype=torch.int64)
        assert batch.lengths is not None
        names = ("character_errors", "characters", "word_errors", "words")
        return {name: found[:, i] for i, name in enumerate(names)} | {"samples": batch.lengths}

    def infer(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """path: BS, the most likely output of each frame; frames: B, number of valid frames."""
        logits_BSC, frames_B = model(batch.inputs, batch.lengths, frames=True)
        return {"path": logits_BSC.float().argmax(-1), "frames": frames_B}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        names = ("character_errors", "characters", "word_errors", "words", "samples")
        found = {name: need(outputs, self.family, name) for name in names}
        return speech_recognition(found, seconds=scoring.seconds, rate=scoring.spec.sample_rate, **scoring.how)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        rows = zip(outputs["path"].tolist(), outputs["frames"].tolist(), strict=True)
        return {"prediction": ["".join(meaning.labels[c] for c in spoken(path[:n])).strip() for path, n in rows]}

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.labels[:1] != (BLANK,):
            yield (
                "task",
                "speech-recognition needs transcripts, but these recordings have classes. Set task: audio-classification, or data.signal.target=transcript.",
            )


def spoken(path: Sequence[int]) -> list[int]:
    """Collapse a path to characters: merge repeats, remove blanks (0)."""
    return [c for i, c in enumerate(path) if c != 0 and (i == 0 or path[i - 1] != c)]


def words_of(characters: Sequence[int]) -> list[tuple[int, ...]]:
    """Split at spaces (output 1), without empty words."""
    words: list[list[int]] = [[]]
    for c in characters:
        if c == SPACE:
            words.append([])
        else:
            words[-1].append(c)
    return [tuple(w) for w in words if w]


def distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions that turn one into the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
