"""How waveforms become examples of one length: the `signal` section of `data`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tauon.config import Config

__all__ = ["SignalConfig"]


class SignalConfig(Config):
    """Length of an example, and what its target is."""

    seconds: float | None = Field(None, gt=0, le=3600)
    """Shorter recordings are padded to this, longer ones lose both ends. Left out: the length that 95% of training recordings do not
    exceed; with transcripts, the longest one, since nothing that is said may be lost."""
    target: Literal["auto", "class", "transcript"] = "auto"
    """class: what the recording is of; transcript: what is said, in characters. `transcript` of recordings with classes spells the class's
    name. auto: what the source has."""
