"""How waveforms become examples of one length: the `signal` section of `data`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tauon.config import Config

__all__ = ["SignalConfig"]


class SignalConfig(Config):
    """Length of an example, and its target."""

    seconds: float | None = Field(None, gt=0, le=3600)
    """Shorter recordings are padded to this, longer ones are cut at both ends. Default: the length that 95% of training recordings do not
    exceed; with transcripts, the longest one, so that no speech is lost."""
    target: Literal["auto", "class", "transcript"] = "auto"
    """class: the class of the recording; transcript: its transcript, in characters. `transcript` for recordings with classes spells the
    class name. auto: what the source has."""
