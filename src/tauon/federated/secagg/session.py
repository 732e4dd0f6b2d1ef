"""What one secure sum is bound to, what its errors are, and the settings of both ends."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tauon.errors import MissingExtra, TauonError
from tauon.federated.messages import Message

__all__ = ["FEWEST", "Refused", "RoundFailed", "SecureAggregationError", "Session", "fingerprint_of_work", "import_primitives"]

FEWEST = 3
"""Sites in a sum at least: of two, each learns the other's value by subtracting its own."""
PER_SITE = ("session",)
"""Fields of the work that differ between the sites of a sum: a token that each site drew when it joined. All others are the same."""


class SecureAggregationError(TauonError):
    """A secure sum that cannot be computed."""


class Refused(SecureAggregationError):
    """A site does not take part: what it was sent would break the protection of its update, or of another site's."""


class RoundFailed(SecureAggregationError):
    """Too few sites are left. Nothing was revealed: the round can be repeated, under a new number."""


@dataclass(frozen=True)
class Session:
    """Names one key exchange. Every key, signature and ciphertext is bound to it.

    Args:
        run: identifier of the run, agreed when the sites joined.
        round: number of the round. It rises: a site takes part in each round once.
        nonce: random text of the coordinator for this round.
        attempt: key exchanges of this round before this one; sites that are lost early make another one necessary.
    """

    run: str
    round: int
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    attempt: int = 0

    def context(self, purpose: str, *parts: bytes | str) -> bytes:
        """Return the session, the purpose and the parts as bytes; different ones never give the same bytes, as each has its length before it.

        >>> one = Session("r", 1, "n")
        >>> one.context("mask", "a", "bc") == one.context("mask", "ab", "c")
        False
        """
        values = ("tauon/secagg/1", purpose, self.run, str(self.round), self.nonce, str(self.attempt), *parts)
        raw = [v.encode() if isinstance(v, str) else v for v in values]
        return b"".join(len(v).to_bytes(4, "big") + v for v in raw)

    def again(self) -> Session:
        """The session of another key exchange in the same round."""
        return replace(self, attempt=self.attempt + 1)

    def message(self, stage: str, fields: dict[str, Any]) -> Message:
        """Return the coordinator's message of this session."""
        return Message(f"secagg/{stage}", self.round, self.nonce, {"run": self.run, "attempt": self.attempt, **fields})


def fingerprint_of_work(work: Message) -> bytes:
    """SHA-256 of what a site was asked to do: kind, round, nonce, the fields but `PER_SITE`, and every tensor.

    All sites of a sum compare it, so that one site cannot be sent a model of its own, whose answer the sum would show (Pasquini, Francati & Ateniese
    2022, arXiv:2111.07380).
    """
    fields = {k: v for k, v in sorted(work.fields.items()) if k not in PER_SITE}
    digest = hashlib.sha256(Message(work.kind, work.round, work.nonce, fields).to_bytes())
    for name, tensor in sorted(work.tensors.items()):
        digest.update(f"{len(name)}/{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        digest.update(_raw(tensor))
    return digest.digest()


def _raw(tensor: Any) -> Any:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def digest_of(parts: Iterable[bytes | str]) -> bytes:
    """SHA-256 of the parts, each with its length before it."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.digest()


def majority(count: int, share: float = 0.5) -> int:
    """The smallest number that is above `share` of `count`: 6 of 10, 3 of 5."""
    return min(count, math.floor(share * count + 1e-9) + 1)


def import_primitives() -> None:
    """Check that the libraries are installed. Raises `MissingExtra`."""
    try:
        import cryptography  # noqa: F401
        from Crypto.Protocol import SecretSharing  # noqa: F401
    except ImportError as err:
        raise MissingExtra("Secure aggregation", "federated") from err
