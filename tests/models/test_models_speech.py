"""Log-mel features against transformers' own; padding that changes nothing; SpecAugment; CTC and edit distance against torch and a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tauon.config import parse
from tauon.models import LogMel, ModelConfig, materialize, mel_filters
from tauon.models.families.mel import frame_mask, spec_augment
from tauon.tasks import SpeechRecognition
from tauon.tasks.speech import distance, spoken
from tauon.types import Batch, DataSpec

SPEC = DataSpec(input_shape=(4000,), outputs=6, labels=("<blank>", " ", *"abcd"), sample_rate=8000)
SMALL: list[dict[str, Any]] = [
    {"kind": "speech-cnn", "channels": [8, 12], "mels": 16},
    {"kind": "conformer", "layers": 2, "width": 16, "heads": 2, "mels": 16, "kernel": 7},
]


def test_the_filters_are_transformers_own() -> None:
    audio = pytest.importorskip("transformers.audio_utils")
    wanted = audio.mel_filter_bank(129, 40, 0.0, 4000.0, 8000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters(129, 40, 8000).numpy(), wanted, atol=1e-6)


def test_the_energies_are_transformers_own() -> None:
    audio = pytest.importorskip("transformers.audio_utils")
    layer = LogMel(8000, 40, 25.0, 10.0)
    layer.fill()
    x = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    window = np.zeros(256)
    window[28:228] = audio.window_function(200, "hann")  # torch puts a short window into the middle
    wanted = audio.spectrogram(
        x.astype(np.float64), window, 256, 80, 256, power=2.0, center=True, pad_mode="constant",
        mel_filters=mel_filters(129, 40, 8000).numpy().astype(np.float64), mel_floor=1e-10,
    ).T  # fmt: skip
    wanted = np.log(wanted + 1e-6)
    wanted = (wanted - wanted.mean(0)) / np.sqrt(wanted.var(0) + 1e-5)
    mine, frames = layer(torch.from_numpy(x)[None], torch.tensor([3000]))
    assert frames.tolist() == [len(wanted)] == [mine.shape[1]]
    np.testing.assert_allclose(mine[0].numpy(), wanted, atol=2e-4)


def moved(config: dict[str, Any]) -> nn.Module:
    """With a head that says something: it starts at zero."""
    model = materialize(parse(ModelConfig, config).resolve(SPEC), seed=0).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.startswith("head."):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c["kind"])
def test_what_lies_behind_a_recording_changes_nothing(config: dict[str, Any]) -> None:
    model = moved(config)
    x = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([4000, 2500, 1200])
    padded = x * (torch.arange(4000) < lengths[:, None])
    with torch.no_grad():
        together = model(padded, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone = model(padded[i : i + 1, : -(-n // 80) * 80 + 400], lengths[i : i + 1])
            torch.testing.assert_close(together[i], alone[0], rtol=1e-3, atol=1e-4)
        frames, valid = model(padded, lengths, frames=True)
    assert frames.shape[0] == 3 and valid.tolist() == sorted(valid.tolist(), reverse=True) and valid[0] == frames.shape[1]


def test_masks_hide_stretches_in_training_only_and_within_the_recording() -> None:
    mel = torch.ones(16, 50, 20)
    torch.manual_seed(0)
    hidden = spec_augment(mel, torch.full((16,), 50), 2, 2)
    assert 0.5 < hidden.mean() < 0.95 and set(hidden.unique().tolist()) == {0.0, 1.0}
    layer = LogMel(8000, 16, 25.0, 10.0, 2, 2)
    layer.fill()
    x, lengths = torch.randn(1, 4000), torch.tensor([4000])
    layer.eval()
    assert layer(x, lengths)[0].equal(layer(x, lengths)[0])
    layer.train()
    assert not layer(x, lengths)[0].equal(layer(x, lengths)[0])


def test_a_frame_mask_ends_with_the_recording() -> None:
    assert frame_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]


def test_the_loss_is_torchs_ctc_for_each_recording() -> None:
    model = moved(SMALL[0])
    g = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(3, 4000, generator=g), torch.tensor([[2, 3, -1], [4, -1, -1], [2, 2, 5]]), torch.tensor([1.0, 0.0, 1.0]),
        lengths=torch.tensor([4000, 3000, 3600]),
    )  # fmt: skip
    losses, weights = SpeechRecognition().losses(model, batch)
    logits, frames = model(batch.inputs, batch.lengths, frames=True)
    for i, target in enumerate(([2, 3], [4], [2, 2, 5])):
        log = logits[i, : frames[i]].log_softmax(-1)
        wanted = nn.functional.ctc_loss(log, torch.tensor(target), frames[i], torch.tensor(len(target)), reduction="none") / len(target)
        torch.testing.assert_close(losses[i], wanted * weights[i])


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("saturday", "sunday", 3), ("abc", "", 3), ("ab", "ba", 2)],
)
def test_edit_distance_of_known_pairs(a: str, b: str, wanted: int) -> None:
    assert distance(a, b) == wanted == distance(b, a)


def test_reading_out_drops_repeats_and_blanks() -> None:
    assert spoken([0, 2, 2, 0, 2, 3, 3, 0, 0]) == [2, 2, 3] and spoken([]) == [] and spoken([0, 0]) == []


def test_errors_are_counted_in_characters_and_words() -> None:
    class Says(nn.Module):
        def forward(self, x: Any, lengths: Any, frames: bool = False) -> Any:
            path = torch.tensor([[2, 3, 1, 4, 0], [2, 0, 2, 0, 0]])
            return nn.functional.one_hot(path, 6).float(), torch.tensor([5, 3])

    targets = torch.tensor([[2, 3, 1, 5, -1], [2, 2, -1, -1, -1]])
    found = SpeechRecognition().predict(Says(), Batch(torch.zeros(2, 9), targets, torch.ones(2), lengths=torch.tensor([9, 9])))
    rows = {k: v.tolist() for k, v in found.items()}
    assert rows == {"character_errors": [1, 0], "characters": [4, 2], "word_errors": [1, 0], "words": [2, 1], "samples": [9, 9]}
