"""Who a site is: an Ed25519 key that signs its keys of each round, and the public keys of the others, pinned when they joined.

A coordinator that exchanges the keys of a round for its own would read every update; it cannot sign them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tauon.artifacts import atomic_write
from tauon.errors import RunError
from tauon.federated.secagg.session import Refused, import_primitives

__all__ = ["Identity", "PinnedKeys", "fingerprint"]

BYTES = 32


def fingerprint(public: bytes) -> str:
    """SHA-256 of a public key, shortened to 128 bits, for comparing it over the telephone.

    >>> fingerprint(bytes(32))
    '6668 7aad f862 bd77 6c8f c18b 8e9f 8e20'
    """
    text = hashlib.sha256(public).hexdigest()[:32]
    return " ".join(text[i : i + 4] for i in range(0, 32, 4))


class Identity:
    """The long-lived secret key of one site.

    >>> mine = Identity.generate()
    >>> PinnedKeys({"us": mine.public}).check("us", mine.sign(b"text"), b"text")
    """

    def __init__(self, secret: bytes) -> None:
        import_primitives()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Identity:
        """Return a new identity, from the operating system's random numbers."""
        return cls(os.urandom(BYTES))

    @classmethod
    def of(cls, path: Path) -> Identity:
        """Read the identity in a file; create it, readable by its owner only, if there is none. Raises `RunError`."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, os.urandom(BYTES).hex() + "\n", mode=0o600)
        if path.stat().st_mode & 0o077:
            raise RunError(
                f"{path} is readable by other users. Make a new identity: remove the file, and let the other sites pin the new key."
            )
        try:
            secret = bytes.fromhex(path.read_text().strip())
        except ValueError:
            secret = b""
        if len(secret) != BYTES:
            raise RunError(f"{path} is not an identity (64 hexadecimal digits). Restore it from its backup.")
        return cls(secret)

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return bytes(self._key.sign(data))

    def __repr__(self) -> str:
        return f"Identity({fingerprint(self.public)})"


class PinnedKeys(Mapping[str, bytes]):
    """Public identity keys by the name of the site. A key that was pinned never changes."""

    def __init__(self, keys: Mapping[str, bytes] | None = None, path: Path | None = None) -> None:
        """`path`: where they are saved with each change, and read from."""
        self._keys: dict[str, bytes] = {}
        self.path = path
        self.on_pin: Callable[[str, bytes], None] | None = None
        """Called with the name and the key of a site that is pinned for the first time."""
        if path is not None and path.exists():
            try:
                self._keys = {str(n): bytes.fromhex(k) for n, k in json.loads(path.read_text()).items()}
            except (ValueError, TypeError, AttributeError):
                raise RunError(
                    f"{path} is not a list of pinned keys ({{name: 64 hexadecimal digits}}). Restore it from its backup."
                ) from None
        for name, key in (keys or {}).items():
            self.pin(name, key)

    def __getitem__(self, name: str) -> bytes:
        return self._keys[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def pin(self, name: str, public: bytes) -> None:
        """Pin the key of a site. Raises `Refused` if the name has another key, or the key another name."""
        if len(public) != BYTES:
            raise Refused(f"the identity key of {name} has {len(public)} bytes, expected {BYTES}")
        before = self._keys.get(name)
        if before is not None and before != public:
            raise Refused(
                f"{name} has another identity key than the one that was pinned: {fingerprint(public)}, pinned {fingerprint(before)}. Ask its operator "
                f"by another channel; if the key was replaced, remove {name} from {self.path or 'the pinned keys'}."
            )
        if before is not None:
            return
        other = next((n for n, key in self._keys.items() if key == public), None)
        if other is not None:
            raise Refused(f"{name} and {other} have the same identity key")
        self._keys[name] = public
        if self.on_pin is not None:
            self.on_pin(name, public)
        if self.path is not None:
            atomic_write(self.path, json.dumps({n: k.hex() for n, k in sorted(self._keys.items())}, indent=1) + "\n")

    def check(self, name: str, signature: bytes, data: bytes) -> None:
        """Raise `Refused` unless the pinned key of `name` signed `data`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if name not in self._keys:
            raise Refused(f"the identity of {name} is not pinned: it has not joined this run")
        try:
            Ed25519PublicKey.from_public_bytes(self._keys[name]).verify(signature, data)
        except (InvalidSignature, ValueError):
            raise Refused(f"the signature of {name} is not valid: what it signed was changed, or another key signed it") from None
