"""The environment of a run: versions, processor, memory, the user's own code. Measured once, stored in the manifest.

Leaves out everything that may be secret or private: environment variables, command lines, addresses of git remotes,
the names of the machine and of the user.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import tauon

__all__ = ["code_fingerprint", "environment"]

_LIBRARIES = ("torch", "numpy", "pydantic", "safetensors", "tokenizers", "pyarrow", "scikit-learn")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "sha_ni", "asimd", "sve", "bf16")


def environment() -> dict[str, Any]:
    """JSON values: `python`, `tauon`, `libraries`, `platform`, `cpu`, `flags`, `cores`, `memory` (bytes), `accelerators`, `git`.

    `cores` are those that this process may use. `git` is the commit of the current directory and whether it has uncommitted changes;
    None outside a repository. Imports nothing heavy: `accelerators` is filled only if torch is loaded already.
    """
    cpu, flags = _cpu()
    return {
        "tauon": tauon.__version__,
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu,
        "flags": flags,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "accelerators": _accelerators(),
        "git": _git(),
    }


def code_fingerprint() -> str:
    """Return the sha256 of every source file of the package: equal in two processes means the same code."""
    digest = hashlib.sha256()
    root = Path(tauon.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[str, list[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), []
    found = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    present = set((found.get("flags") or found.get("Features") or "").split())
    return found.get("model name", platform.machine()), [flag for flag in _FLAGS if flag in present]


def _memory() -> int | None:
    """Return the bytes that this process may use: the machine's, or the control group's limit if that is smaller."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _accelerators() -> list[str]:
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        # Without optional locks, so that this never disturbs a git command of the user.
        command = ["git", "--no-optional-locks", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603 - fixed words

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
