"""Reading numbers from an accelerator without making it wait: the copy to the host starts at once, and is read when the next step is on its way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """Numbers that are being copied to the host. `tolist` waits for them, not for anything that the device was given afterwards."""

    def __init__(self, numbers: Tensor) -> None:
        self.copy = numbers.to("cpu", non_blocking=True)  # torch pins the memory that it copies to
        self.arrived: Any = None
        if numbers.device.type not in ("cpu", "meta"):
            self.arrived = torch.accelerator.current_stream(numbers.device).record_event()

    def tolist(self) -> list[Any]:
        """The numbers, as Python's."""
        if self.arrived is not None:
            self.arrived.synchronize()
        found: list[Any] = self.copy.tolist()
        return found
