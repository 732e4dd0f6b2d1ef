"""Files in object stores and on web servers: s3, gs, az and http addresses, read through `fsspec` (docs: filesystem-spec.readthedocs.io).

Each file is downloaded once for each version of it (by its ETag, or else size and time), into the cache, and read from there like any local
file. Credentials are those of each store's own library (AWS_..., GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_...); none is in a recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tauon.data.cache import cache_root, make_folder
from tauon.data.progress import report
from tauon.errors import DataError, MissingExtra

__all__ = ["is_remote", "remote_files"]

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
_VERSION_FACTS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime", "created", "size")


def is_remote(path: str) -> bool:
    """Return whether a path is an address, such as s3://bucket/key."""
    return "://" in path


def remote_files(address: str, pattern: str = "**/*") -> dict[Path, str]:
    """Return (local copy -> name) of the files at an address: a file, a glob, or a folder, whose files `pattern` chooses.

    Raises `DataError` if there is none or it cannot be reached, `MissingExtra` without the library of the store.
    """
    protocol = address.partition("://")[0]
    if protocol not in PROTOCOLS:  # fsspec also knows protocols that run code or unpack archives
        raise DataError(f"{address}: {protocol}:// is not read. Known: {', '.join(f'{p}://' for p in PROTOCOLS)}")
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(address)
    except ImportError as err:
        raise MissingExtra(f"{address}: reading {protocol}://", "remote") from err
    try:
        fs.invalidate_cache()
        found = _listed(fs, path, address, pattern)
        return {_local(fs, remote, info, protocol): name for remote, (name, info) in found.items()}
    except DataError:
        raise
    except Exception as err:  # each store's library has its own errors
        raise DataError(
            f"{address}: cannot be read ({type(err).__name__}: {err}). Check the address, the credentials and the network"
        ) from err


def _listed(fs: Any, path: str, address: str, pattern: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return remote path -> (name, facts)."""
    if any(c in path for c in "*?[") and not address.startswith("http"):
        return {p: (p, fs.info(p)) for p in sorted(fs.glob(path)) if not fs.isdir(p)} or _nothing(address, "no file matches this pattern")
    if address.startswith("http") or fs.isfile(path):
        return {path: (posixpath.basename(path.partition("?")[0].rstrip("/")) or "index", fs.info(path))}
    below = {p: posixpath.relpath(p, path) for p in sorted(fs.find(path))} if fs.exists(path) else {}
    chosen = {p: n for p, n in below.items() if _matches(n, pattern) and not any(s.startswith(".") for s in n.split("/"))}
    return {p: (n, fs.info(p)) for p, n in chosen.items()} or _nothing(
        address, "no such file, and no file below it" if not below else f"no file matches {pattern!r}"
    )


def _nothing(address: str, why: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    raise DataError(f"{address}: {why}. Check the address")


def _matches(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern in which `**/` is any folders, or none."""
    return fnmatch(name, pattern) or (pattern.startswith("**/") and fnmatch(posixpath.basename(name), pattern[3:]))


def _local(fs: Any, remote: str, info: Mapping[str, Any], protocol: str) -> Path:
    """Return the local copy of this version of a file, downloaded if there is none."""
    version = {k: str(info[k]) for k in _VERSION_FACTS if info.get(k) is not None}
    identity = json.dumps([protocol, remote, version], sort_keys=True)
    folder = cache_root() / "remote" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    target = folder / (posixpath.basename(remote.partition("?")[0].rstrip("/")) or "index")
    if target.is_file():
        return target
    make_folder(folder)
    handle, temporary = tempfile.mkstemp(prefix=".download-", dir=folder)
    os.close(handle)
    try:
        report(f"download {target.name}", 0, info.get("size"))
        fs.get_file(remote, temporary)
        size = info.get("size")
        if size is not None and Path(temporary).stat().st_size != size:
            raise DataError(f"{protocol}://{remote}: {Path(temporary).stat().st_size:,} bytes arrived of {size:,}. Run again")
        os.rename(temporary, target)
    except OSError as err:
        if err.errno is None:
            raise
        raise DataError(f"{target}: cannot be written ({err.strerror}). Free disk space, or set data.cache to another disk") from err
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target
