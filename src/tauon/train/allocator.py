"""Keeps the memory of freed tensors in the process, on Linux with glibc: the next step uses it again.

By default glibc returns large freed blocks to the kernel. The activations of a training step on a CPU are such blocks: allocated in the forward
pass and freed in the backward pass of every step, they then come as new pages, each a page fault and 4 KiB of zeros. That is 10 to 15% of a
step of a convolutional network (docs/experiments.md). The peak of memory stays as it is; between steps less is free.
Computes nothing: the numbers of a run do not depend on it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

import torch

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt (malloc.h)."""
LARGEST = 32 * 2**20
"""Bytes from which a block is the kernel's again when it is freed; the most that every glibc accepts."""


def keep_freed_memory(device: torch.device, environ: Mapping[str, str] = os.environ) -> bool:
    """Let malloc keep freed blocks up to `LARGEST` for the rest of this process; return whether it does.

    Nothing is changed for accelerators, without glibc, or where the user has tuned malloc by environment variables.
    """
    if device.type != "cpu" or sys.platform != "linux" or any(name.startswith("MALLOC_") for name in environ):
        return False
    if "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, -1))
