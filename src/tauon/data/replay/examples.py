"""Recordings, labelled texts, windows of a series -> the model's inputs; and the kinds that have no predictions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tauon.data.replay.base import Replay, Rows, register_replay
from tauon.data.signals import fitted
from tauon.data.text_files import refuse_surrogates
from tauon.data.tokenizer import Tokenizer
from tauon.errors import DataError
from tauon.types import Batch

__all__ = ["SeriesReplay", "SignalReplay", "TextReplay"]


@register_replay("signals")
@dataclass
class SignalReplay(Replay):
    """Recordings in a column `recording`: (samples, sampling rate in Hz)."""

    reads = "recordings"
    columns = ("recording",)  # type: ignore[assignment]

    def batch(self, rows: Rows) -> Batch:
        import torch

        rows.need(self.columns)
        rate, waves = self.preprocess["sample_rate"], []
        for i, (wave, its) in enumerate(rows.columns["recording"]):
            if its != rate:
                where = rows.where(i, "recording").rpartition(": column")[0]
                raise DataError(
                    f"{where}: sampling rate {its:,} Hz, but the model was trained on {rate:,} Hz. Convert it, for example: ffmpeg -i in.wav -ar {rate} out.wav"
                )
            waves.append(np.asarray(wave, np.float32))
        self.say(
            "recordings longer than those in training, of which only the middle was used",
            sum(len(w) > self.preprocess["samples"] for w in waves),
        )
        inputs, lengths = fitted(waves, self.preprocess["samples"])
        return Batch(torch.from_numpy(inputs), self.filler(len(rows)), torch.ones(len(rows)), lengths=torch.from_numpy(lengths))


@register_replay("labelled-text")
@dataclass
class TextReplay(Replay):
    """Texts in a column `text`."""

    reads = "texts"
    columns = ("text",)  # type: ignore[assignment]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_json(self.preprocess["tokenizer"])

    def batch(self, rows: Rows) -> Batch:
        import torch

        from tauon.data.labelled_text import rows_of

        rows.need(self.columns)
        values = rows.columns["text"]
        texts = values if isinstance(values, list) else values.to_pylist()
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{rows.where(i, 'text')} is {text!r}, expected text")
            if not text.strip():
                raise DataError(f"{rows.where(i, 'text')} is empty. Fill it in, or remove the row")
            refuse_surrogates(text, rows.where(i, "text"))
        tokens, lengths = rows_of(self.tokenizer.encode_many(texts), self.preprocess["seq_len"], self.tokenizer.bos)
        there = np.arange(tokens.shape[1]) < lengths[:, None]
        segments = torch.from_numpy(np.where(there, 0, -1).astype(np.int32))
        return Batch(torch.from_numpy(tokens.astype(np.int64)), self.filler(len(rows)), torch.ones(len(rows)), segments)


@register_replay("series")
@dataclass
class SeriesReplay(Replay):
    """Windows in a column `window`: (context, columns), scaled and with calendar features, as `windows` of `tauon.predict` cuts them."""

    reads = "series"
    columns = ("window",)  # type: ignore[assignment]

    def batch(self, rows: Rows) -> Batch:
        import torch

        windows_BTF = np.asarray(rows.columns["window"], np.float32)
        n, H, K = len(windows_BTF), self.preprocess["horizon"], self.preprocess["targets"]
        return Batch(torch.from_numpy(windows_BTF), torch.zeros(n, H, K), torch.ones(n))


_GENERATE = "a language model continues texts, one token after the other: use it with `tauon generate RUN --prompt ...`"


@register_replay("tokens")
class TokenReplay(Replay):
    """Running text."""

    refusal = f"{_GENERATE}. `tauon evaluate` measures how well it predicts a text"


@register_replay("chat")
class ChatReplay(Replay):
    """Conversations."""

    refusal = _GENERATE.replace("continues texts", "answers")


@register_replay("pairs")
class PairReplay(Replay):
    """Pairs of answers."""

    refusal = _GENERATE.replace("a language model continues texts", "a model that was tuned on preferences answers")
