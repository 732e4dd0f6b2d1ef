"""Read one audio file as samples. Uncompressed PCM in WAV is read by the standard library; everything else (float and extensible WAV, FLAC,
OGG, MP3, AIFF) by libsndfile through the optional package `soundfile`. Channels are averaged; nothing is resampled.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.files import most_unpacked, read_bytes, refuse_bomb
from tauon.errors import DataError, MissingExtra

__all__ = ["AUDIO_SUFFIXES", "read_wav"]

AUDIO_SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64")
"""File suffixes that are read as audio."""
_BEGINNINGS = (
    b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa", b"FORM", b".snd", b"caff",
)  # fmt: skip
"""First bytes of the formats that libsndfile may read, so that other files are recognised without it."""
_HINT = "Repair the file, move it out of the data folder, or set data.source.on_corrupt: skip"
_UNKNOWN = (0, 2**32 - 1)
"""Sizes in a RIFF header that was written before the length was known."""


def read_wav(source: bytes | Path, name: str) -> tuple[NDArray[np.float32], int]:
    """Return (samples, sampling rate in Hz) of an audio file, averaged over channels.

    Args:
        source: the file, or its bytes.
        name: its name in error messages.

    Returns:
        float32 in [-1, 1]; samples of float files are not rescaled and may exceed that range.

    Raises:
        DataError: the file is damaged or empty, or a sample is not a finite number.
        MissingExtra: the format needs `soundfile`, which is not installed.
    """
    content = source if isinstance(source, bytes) else read_bytes(source)
    if not content.startswith(_BEGINNINGS):
        raise DataError(f"{name}: not an audio file (its first bytes are {content[:8]!r}). {_HINT}")
    found = _pcm(content, name)
    samples, rate = found if found is not None else _by_soundfile(content, name)
    if not len(samples):
        raise DataError(
            f"{name}: the audio has 0 samples. Replace the file, move it out of the data folder, or set data.source.on_corrupt: skip"
        )
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: {int((~np.isfinite(samples)).sum()):,} of its samples are NaN or infinite. Export the file again")
    return samples, rate


def _pcm(content: bytes, name: str) -> tuple[NDArray[np.float32], int] | None:
    """Samples and rate as the standard library reads them; None if it does not support the format."""
    try:
        with wave.open(io.BytesIO(content)) as w:
            width, channels, rate, n = w.getsampwidth(), w.getnchannels(), w.getframerate(), w.getnframes()
            raw = w.readframes(n)
    except wave.Error:
        return None  # another format, or an extensible header, which Python 3.11 does not read
    except (EOFError, RuntimeError, ValueError) as err:
        raise DataError(f"{name}: damaged WAV file ({str(err) or 'it ends early'}). {_HINT}") from None
    if len(raw) < n * width * channels:
        raise DataError(f"{name}: {len(raw):,} bytes of audio, but the header says {n * width * channels:,}. {_HINT}")
    if width not in (1, 2, 3, 4):
        return None
    if width == 3:
        bytes_N3 = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        values: NDArray[Any] = ((bytes_N3[:, 0] << 8 | bytes_N3[:, 1] << 16 | bytes_N3[:, 2] << 24) >> 8) / np.float32(2**23)
    elif width == 1:
        values = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    else:
        values = np.frombuffer(raw, {2: "<i2", 4: "<i4"}[width]).astype(np.float32) / np.float32(2 ** (8 * width - 1))
    return values.reshape(-1, channels).mean(1).astype(np.float32), rate


def _by_soundfile(content: bytes, name: str) -> tuple[NDArray[np.float32], int]:
    try:
        import soundfile
    except (ImportError, OSError) as err:  # OSError: the package is installed, libsndfile is missing
        raise MissingExtra(f"{name}: reading anything but uncompressed PCM in WAV", "audio") from err
    said = int.from_bytes(content[4:8], "little") if content.startswith(b"RIFF") else 0
    if said not in _UNKNOWN and said + 8 > len(content):  # libsndfile would read a truncated file without an error
        raise DataError(f"{name}: {len(content):,} bytes, but the header says {said + 8:,}. {_HINT}")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            said, rate = file.frames, file.samplerate
            known = said < 2**62  # the length of some streams is unknown until the end
            frame, packed = 4 * file.channels, len(content)
            refuse_bomb(name, frame * said if known else 0, packed)
            values_NC = file.read(said if known else most_unpacked(packed) // frame + 1, dtype="float32", always_2d=True)
            refuse_bomb(name, values_NC.nbytes, packed)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as err:
        raise DataError(f"{name}: damaged audio file ({str(err).partition(': ')[2] or err}). {_HINT}") from None
    if known and len(values_NC) < said:
        raise DataError(f"{name}: {len(values_NC):,} samples, but the header says {said:,}. {_HINT}")
    return values_NC.mean(1, dtype=np.float32), rate
