"""Freed memory is used again: page faults of a process of its own."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest
import torch

from tauon.train.allocator import keep_freed_memory

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")

STEPS = """
import json, resource
import torch
from tauon.train.allocator import keep_freed_memory
kept = keep_freed_memory(torch.device("cpu"), environ={})
def step():
    layers = [torch.full((2**20,), float(i)) for i in range(12)]  # 48 MiB, then freed
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
before = faults()
for _ in range(10):
    step()
print(json.dumps({"kept": kept, "faults": faults() - before}))
"""


@pytest.mark.skipif(not GLIBC, reason="other allocators have other rules")
def test_freed_memory_comes_back_without_page_faults() -> None:
    """Ten steps of 48 MiB are 122,880 pages; without the setting nearly all are new, except where something stays above them in memory."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["kept"] is True
    assert found["faults"] < 2_000


@pytest.mark.parametrize("environ", [{"MALLOC_TRIM_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1"}])
def test_settings_of_the_user_stay(environ: dict[str, str]) -> None:
    assert keep_freed_memory(torch.device("cpu"), environ) is False


def test_nothing_is_changed_for_an_accelerator() -> None:
    assert keep_freed_memory(torch.device("cuda"), {}) is False
