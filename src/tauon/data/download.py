"""Get one published file, verified: from a mirror folder, the cache, or the network, in this order.

The cache stores the decompressed content, under its final name only after its sha256 is verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tauon.data.cache import make_folder
from tauon.data.files import open_bytes, raw_bytes, read_bytes, refuse_bomb, sha256_bytes
from tauon.data.progress import report
from tauon.errors import ChecksumError, DataError

__all__ = ["fetch", "members_digest", "mirror"]

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0
_SLACK = 1 << 20  # compression can make a file larger, but not by this much


def mirror() -> Path | None:
    """Return the folder in TAUON_DATA, if it is set."""
    chosen = os.environ.get("TAUON_DATA")
    return Path(chosen).expanduser() if chosen else None


@dataclass(frozen=True)
class _Wanted:
    """Expected content of a file."""

    sha256: str
    size: int
    digest: Callable[[bytes], str]
    packed: bool
    md5: str | None

    def accepts(self, content: bytes) -> tuple[bool, str]:
        """Return (whether the content is as expected, its digest)."""
        got = self.digest(content)
        also = self.md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() == self.md5
        return got == self.sha256 or also, got

    def read(self, path: Path) -> bytes:
        """Return the content of a file, up to the expected size: a compressed file can be made to expand without end."""
        most = self.size + (_SLACK if self.md5 is not None else 0)
        with open(path, "rb") if self.packed else open_bytes(path) as file:
            content: bytes = file.read(most + 1)
        return content


def members_digest(content: bytes) -> str:
    """Return the sha256 over names and contents of the WAV files in a zip, independent of their paths and compression."""
    import io
    import zipfile

    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as z:
            refuse_bomb("the zip file", sum(i.file_size for i in z.infolist()), len(content))
            for name in sorted((n for n in z.namelist() if n.lower().endswith(".wav")), key=lambda n: n.rsplit("/", 1)[-1]):
                digest.update(name.rsplit("/", 1)[-1].encode() + b"\0" + hashlib.sha256(z.read(name)).digest())
    except (zipfile.BadZipFile, EOFError):
        return "not a zip file"
    return digest.hexdigest()


def fetch(
    name: str, urls: tuple[str, ...], sha256: str, size: int, cached: Path, digest: Callable[[bytes], str] = sha256_bytes, *,
    packed: bool = False, md5: str | None = None,
) -> tuple[bytes, str]:  # fmt: skip
    """Return (decompressed content, where it came from) of the file `name` of the mirror.

    Args:
        name: path below the mirror folder.
        urls: addresses, tried in turn.
        sha256: of the decompressed content; a mismatch is an error.
        size: of the decompressed content in bytes, for the progress bar.
        cached: where the decompressed content is stored after a download.
        digest: how `sha256` is computed from the content.
        packed: do not decompress: `sha256` and `size` are of the bytes as stored and served.
        md5: of another content of about that size that is accepted too.

    Raises:
        ChecksumError: a file in the mirror, in the cache or at every address differs from the published one.
        DataError: the file is not available anywhere.
    """
    local, want = mirror(), _Wanted(sha256, size, digest, packed, md5)
    if local is not None and (local / name).is_file():
        return _checked(local / name, want, "Replace it with the published file, or unset TAUON_DATA"), str(local / name)
    if cached.is_file():
        return _checked(cached, want, "Delete it, and it is downloaded again"), str(cached)
    make_folder(cached.parent)
    failures: list[str] = []
    for url in urls:
        try:
            content = _download(url, cached, want)
        except ChecksumError:
            raise
        except (OSError, ValueError, DataError) as err:
            failures.append(f"{url}: {getattr(err, 'reason', None) or err}")
        else:
            return content, url
    listed = "; ".join(failures) or "no address is known"
    looked = f" TAUON_DATA={local} has no {name}." if local is not None else ""
    raise DataError(
        f"{cached.name} could not be downloaded: {listed}.{looked} Check the network, put the decompressed file at {cached}, "
        "or set TAUON_DATA to a folder that has it"
    )


def _checked(path: Path, want: _Wanted, advice: str) -> bytes:
    content = raw_bytes(path) if want.packed else read_bytes(path)
    fine, got = want.accepts(content)
    if not fine:
        raise ChecksumError(f"{path}: sha256 of the decompressed content is {got}, expected {want.sha256}. {advice}")
    return content


def _download(url: str, target: Path, want: _Wanted) -> bytes:
    size = want.size
    if not url.startswith(("https://", "http://")):
        raise ValueError("only http and https addresses are supported")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    what = f"download {target.name}"
    try:
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - scheme checked above
            total = int(answer.headers.get("Content-Length") or 0) or None
            done = 0
            report(what, 0, total)
            while chunk := answer.read(_CHUNK):
                out.write(chunk)
                done += len(chunk)
                if done > size + _SLACK:
                    raise OSError(f"the server sends more than the published {size:,} bytes")
                report(what, done, total)
        if total is not None and done != total:
            raise OSError(f"the connection ended after {done:,} of {total:,} bytes")
        content = want.read(temporary)
        fine, got = want.accepts(content)
        if not fine:
            raise ChecksumError(
                f"{url}: got {len(content):,} bytes with sha256 {got}, expected {size:,} with {want.sha256}. "
                "The published file has changed or was tampered with; nothing was saved"
            )
        temporary.write_bytes(content)
        os.replace(temporary, target)
        return content
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
