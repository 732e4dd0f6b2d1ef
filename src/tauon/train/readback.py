"""Asynchronous copies from an accelerator to the host: the copy starts immediately and is read after the next step was launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """Numbers that are being copied to the host. `tolist` waits for the copy, but not for work launched after it."""

    def __init__(self, numbers: Tensor) -> None:
        self.copy = numbers.to("cpu", non_blocking=True)  # torch pins the memory that it copies to
        self.arrived: Any = None
        if numbers.device.type not in ("cpu", "meta"):
            self.arrived = torch.accelerator.current_stream(numbers.device).record_event()

    def tolist(self) -> list[Any]:
        """Return the numbers as Python numbers."""
        if self.arrived is not None:
            self.arrived.synchronize()
        numbers: list[Any] = self.copy.tolist()
        return numbers
