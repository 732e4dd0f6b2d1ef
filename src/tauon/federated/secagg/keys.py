"""The keys of one site in one session, and what is made of them.

    mask key   X25519; with each neighbour's gives the key of their common mask. Its secret is shared: if the site vanishes, its masks are removed
    share key  X25519; with each neighbour's gives the key that encrypts their shares (AES-256-GCM)
    seed       32 bytes; the key of the site's own mask. Shared: removed from the sum if the site sent its values

All keys are derived by HKDF-SHA256 (RFC 5869), bound to the session, to both names and both public keys, and to their purpose.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

from tauon.federated.secagg.identity import Identity, PinnedKeys
from tauon.federated.secagg.session import Refused, Session, import_primitives

__all__ = ["Announcement", "RoundKeys", "check_keys", "derive", "mask_key_of", "public_of"]

BYTES, NONCE = 32, 12


@dataclass(frozen=True)
class Announcement:
    """What a site announces in a session, signed with its identity."""

    name: str
    mask_key: bytes
    share_key: bytes
    commitment: bytes
    """SHA-256 of its seed: a seed that is reconstructed from shares is compared with it."""
    work: bytes
    """SHA-256 of what it was asked to do, and of the layout of the sum."""
    signature: bytes = b""

    def body(self, session: Session) -> bytes:
        """What is signed."""
        return session.context("keys", self.name, self.mask_key, self.share_key, self.commitment, self.work)

    def check(self, session: Session, pinned: PinnedKeys) -> None:
        """Raise `Refused` unless the pinned identity of its site signed it for this session."""
        pinned.check(self.name, self.signature, self.body(session))

    def to_json(self) -> dict[str, str]:
        values = {"mask_key": self.mask_key, "share_key": self.share_key, "commitment": self.commitment, "work": self.work}
        return {"name": self.name, **{k: v.hex() for k, v in values.items()}, "signature": self.signature.hex()}

    @classmethod
    def from_json(cls, values: Any) -> Announcement:
        """Inverse of `to_json`. Raises `Refused`."""
        try:
            raw = {k: bytes.fromhex(values[k]) for k in ("mask_key", "share_key", "commitment", "work", "signature")}
            name = values["name"]
        except (TypeError, KeyError, ValueError):
            raise Refused("an announcement of keys that cannot be read") from None
        if not isinstance(name, str) or any(len(raw[k]) != BYTES for k in ("mask_key", "share_key", "commitment", "work")):
            raise Refused(f"an announcement of keys with other lengths than {BYTES} bytes")
        return cls(name, **raw)


def derive(secret: bytes, info: bytes) -> bytes:
    """HKDF-SHA256, 256 bits."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return bytes(HKDF(SHA256(), BYTES, salt=None, info=info).derive(secret))


def public_of(secret: bytes) -> bytes:
    """The X25519 public key of a secret one."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return bytes(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


def _exchange(secret: bytes, public: bytes, whose: str) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        return bytes(X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public)))
    except ValueError:
        raise Refused(f"the key of {whose} is not a valid X25519 key") from None


def check_keys(announced: Announcement) -> None:
    """Raise `Refused` if a key of an announcement is no valid X25519 key: no site could exchange keys with it."""
    for public in (announced.mask_key, announced.share_key):
        _exchange(os.urandom(BYTES), public, announced.name)


def mask_key_of(secret: bytes, own: Announcement, other: Announcement, session: Session) -> bytes:
    """Key of the mask that two sites have in common, from the secret mask key of `own`."""
    ends = sorted([(own.name, own.mask_key), (other.name, other.mask_key)])
    return derive(_exchange(secret, other.mask_key, other.name), session.context("pair", *(part for end in ends for part in end)))


class RoundKeys:
    """The secrets of one site in one session."""

    def __init__(self, name: str, session: Session, work: bytes, identity: Identity) -> None:
        import_primitives()
        self.session = session
        self.mask_secret, self._share_secret, self.seed = os.urandom(BYTES), os.urandom(BYTES), os.urandom(BYTES)
        unsigned = Announcement(name, public_of(self.mask_secret), public_of(self._share_secret), commitment_of(self.seed), work)
        self.own = Announcement(**{**vars(unsigned), "signature": identity.sign(unsigned.body(session))})

    def own_mask(self) -> bytes:
        """Key of the site's own mask."""
        return own_mask_key(self.seed, self.own.name, self.session)

    def pair_mask(self, other: Announcement) -> bytes:
        """Key of the mask in common with `other`."""
        return mask_key_of(self.mask_secret, self.own, other, self.session)

    def _box(self, other: Announcement, *, sends: bool) -> tuple[Any, bytes]:
        """AES-256-GCM for one direction between the two, and what it authenticates."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        sender, receiver = (self.own, other) if sends else (other, self.own)
        context = self.session.context("shares", sender.name, sender.share_key, receiver.name, receiver.share_key)
        return AESGCM(derive(_exchange(self._share_secret, other.share_key, other.name), context)), context

    def seal(self, other: Announcement, shares: bytes) -> bytes:
        """Encrypt shares for `other`."""
        box, context = self._box(other, sends=True)
        nonce = os.urandom(NONCE)
        return nonce + bytes(box.encrypt(nonce, shares, context))

    def unseal(self, other: Announcement, sealed: bytes) -> bytes | None:
        """Decrypt shares from `other`; None if they were changed, or are not from it."""
        from cryptography.exceptions import InvalidTag

        box, context = self._box(other, sends=False)
        try:
            return bytes(box.decrypt(sealed[:NONCE], sealed[NONCE:], context))
        except (InvalidTag, ValueError):
            return None


def commitment_of(seed: bytes) -> bytes:
    """SHA-256 of a seed."""
    return hashlib.sha256(b"tauon/secagg/seed/" + seed).digest()


def own_mask_key(seed: bytes, name: str, session: Session) -> bytes:
    """Key of the mask of one site alone."""
    return derive(seed, session.context("own", name))
