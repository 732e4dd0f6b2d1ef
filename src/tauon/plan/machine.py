"""What the machine has free now."""

from __future__ import annotations

import torch

__all__ = ["available_memory"]


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that could be allocated now; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as f:
            line = next(line for line in f if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None
