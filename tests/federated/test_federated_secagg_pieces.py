"""The pieces of a secure sum: the mask generator against published vectors and another library, shares, graphs, identities."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.errors import RunError
from tauon.federated.secagg import Identity, PinnedKeys, Refused, SecureAggregationError, Session
from tauon.federated.secagg.graph import degree, neighbours
from tauon.federated.secagg.keys import RoundKeys, own_mask_key
from tauon.federated.secagg.masks import add_mask, keystream
from tauon.federated.secagg.session import majority
from tauon.federated.secagg.shamir import combine, recover, split

RFC_8439_A1 = [
    (bytes(32), 0, "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"),
    (bytes(32), 1, "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"),
    (bytes(31) + b"\1", 1, "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"),
    (b"\0\xff" + bytes(30), 2, "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"),
]  # fmt: skip
"""Appendix A.1, test vectors 1 to 4: key, block, key stream."""


@pytest.mark.parametrize(("key", "block", "stream"), RFC_8439_A1)
def test_masks_are_the_stream_of_rfc_8439(key: bytes, block: int, stream: str) -> None:
    words = keystream(key, 16 * (block + 1))
    assert words[16 * block :].astype("<u4").tobytes().hex() == stream


@pytest.mark.parametrize("count", [1, 15, 16_383, 16_384, 16_385, 100_000])
def test_masks_equal_another_library(count: int) -> None:
    from Crypto.Cipher import ChaCha20

    key = os.urandom(32)
    stream = ChaCha20.new(key=key, nonce=bytes(12)).encrypt(bytes(4 * count))
    assert (keystream(key, count) == np.frombuffer(stream, "<u4")).all()


def test_a_mask_depends_on_each_of_its_256_bits() -> None:
    key = bytes(range(32))
    base = keystream(key, 4096)
    for bit in range(256):
        other = bytearray(key)
        other[bit // 8] ^= 1 << bit % 8
        changed = np.unpackbits((base ^ keystream(bytes(other), 4096)).view(np.uint8)).mean()
        assert 0.49 < changed < 0.51, f"bit {bit}"
    with pytest.raises(ValueError, match="expected 32"):
        keystream(key[:16], 4)


def test_the_keys_of_masks_have_256_bits_from_x25519_and_hkdf_of_another_library() -> None:
    from Crypto.Hash import SHA256
    from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement
    from Crypto.Protocol.KDF import HKDF

    at = Session("run", 3, "nonce", 1)
    a, b = RoundKeys("a", at, bytes(32), Identity.generate()), RoundKeys("b", at, bytes(32), Identity.generate())
    assert a.pair_mask(b.own) == b.pair_mask(a.own)
    info = at.context("pair", "a", a.own.mask_key, "b", b.own.mask_key)
    theirs = key_agreement(
        static_priv=import_x25519_private_key(a.mask_secret), static_pub=import_x25519_public_key(b.own.mask_key),
        kdf=lambda shared: HKDF(shared, 32, b"", SHA256, 1, context=info),
    )  # fmt: skip
    assert a.pair_mask(b.own) == theirs and len(theirs) == 32


def test_no_two_masks_have_a_key_in_common() -> None:
    secret, name = bytes(range(32)), "a"
    sessions = [
        Session(run, number, nonce, attempt) for run in ("r", "s") for number in (1, 2, 11) for nonce in ("n", "m") for attempt in (0, 1)
    ]
    keys = [own_mask_key(secret, n, s) for s in sessions for n in (name, "b")]
    assert len(set(keys)) == len(keys) == 48
    ones = np.unpackbits(np.frombuffer(b"".join(keys), np.uint8).reshape(48, 32), axis=1).mean(0)
    assert ones.min() > 0.15 and ones.max() < 0.85  # no bit is the same in all of them


def test_shares_are_for_one_receiver_in_one_session() -> None:
    at = Session("run", 3, "nonce")
    a, b, c = (RoundKeys(n, at, bytes(32), Identity.generate()) for n in "abc")
    sealed = a.seal(b.own, bytes(range(64)))
    assert b.unseal(a.own, sealed) == bytes(range(64))
    assert c.unseal(a.own, sealed) is None and a.unseal(b.own, sealed) is None and b.unseal(c.own, sealed) is None
    for position in range(0, len(sealed), 7):
        changed = bytearray(sealed)
        changed[position] ^= 1
        assert b.unseal(a.own, bytes(changed)) is None
    assert b.unseal(a.own, b"") is None


def test_a_key_of_low_order_is_refused() -> None:
    from dataclasses import replace

    at = Session("run", 3, "nonce")
    a, b = RoundKeys("a", at, bytes(32), Identity.generate()), RoundKeys("b", at, bytes(32), Identity.generate())
    with pytest.raises(Refused, match="not a valid X25519 key"):
        a.pair_mask(replace(b.own, mask_key=bytes(32)))


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 6), st.integers(0, 3), st.randoms())
def test_any_threshold_of_shares_give_the_secret_back(secret: bytes, threshold: int, more: int, draws: object) -> None:
    shares = split(secret, threshold, threshold + more)
    points = draws.sample(range(len(shares)), threshold)  # type: ignore[attr-defined]
    assert combine({p + 1: shares[p] for p in points}) == secret
    assert combine({p + 1: shares[p] for p in points[:-1]}) != secret


def test_shares_below_the_threshold_fit_every_secret() -> None:
    """Two of three shares leave the secret undetermined: for any secret there is a third share that completes them."""
    shares = split(os.urandom(32), 3, 3)
    seen = {combine({1: shares[0], 2: shares[1], 3: os.urandom(32)}) for _ in range(8)}
    assert len(seen) == 8
    halves = {split(bytes(32), 2, 2)[0][:16] == split(bytes(32), 2, 2)[0][16:] for _ in range(4)}
    assert halves == {False}  # the halves have polynomials of their own


def test_a_secret_is_recovered_in_spite_of_wrong_shares() -> None:
    secret = os.urandom(32)
    shares = dict(enumerate(split(secret, 3, 6), 1))
    wrong = {**shares, 2: bytes(32), 5: bytes(32)}
    assert recover(wrong, 3, lambda s: s == secret, "a") == secret
    with pytest.raises(SecureAggregationError, match="of a do not give it back"):
        recover({k: bytes(32) for k in shares}, 3, lambda s: s == secret, "a")


@pytest.mark.parametrize(("threshold", "count"), [(5, 9), (6, 11), (10, 11), (10, 19)])
def test_whoever_sends_the_one_wrong_share_the_secret_is_recovered(threshold: int, count: int) -> None:
    secret = os.urandom(32)
    shares = dict(enumerate(split(secret, threshold, count), 1))
    for liar in shares:
        assert recover({**shares, liar: bytes(32)}, threshold, lambda s: s == secret, "a") == secret


def test_added_masks_are_removed_by_subtracting_them() -> None:
    words = np.arange(40_000, dtype=np.uint32)
    masked = words.copy()
    add_mask(masked, b"k" * 32)
    assert (masked != words).mean() > 0.999
    add_mask(masked, b"k" * 32, subtract=True)
    assert (masked == words).all()


@pytest.mark.parametrize(("count", "k"), [(5, 4), (6, 4), (40, 10), (41, 20)])
def test_neighbours_are_mutual_and_as_many_as_stated(count: int, k: int) -> None:
    names = [f"n{i}" for i in range(count)]
    graph = neighbours(names, k, b"s")
    assert all(len(set(v)) == k and name not in v and list(v) == sorted(v) for name, v in graph.items())
    assert all(name in graph[other] for name, others in graph.items() for other in others)
    if k < count - 1:
        assert graph != neighbours(names, k, b"t")
    assert graph == neighbours(list(reversed(names)), k, b"s")
    assert neighbours(names, k, b"s", "n3") == {"n3": graph["n3"]}


def test_degree_is_large_enough_by_a_hypergeometric_tail_of_scipy() -> None:
    from scipy.stats import hypergeom

    for count in (1000, 5000):
        k = degree(count)
        assert k < 400 and k % 2 == 0
        corrupt, gone = int(0.2 * count), int(0.3 * count)
        assert count * hypergeom.sf(majority(k) - 1, count - 1, corrupt, k) < 2**-40
        assert count * hypergeom.sf(k - majority(k), count - 1, gone, k) < 2**-30
    assert [degree(n) for n in (3, 10, 50)] == [2, 9, 49]


def test_a_majority_is_above_the_share() -> None:
    assert [majority(n) for n in (2, 3, 4, 9, 10)] == [2, 2, 3, 5, 6]
    assert [majority(n, 2 / 3) for n in (3, 9, 10, 30)] == [3, 7, 7, 21]
    for n, share in combinations([3, 5, 8, 13], 2):
        assert majority(n, 1 - 1 / share) > n * (1 - 1 / share) or majority(n, 1 - 1 / share) == n


def test_an_identity_is_kept_in_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "identity"
    one = Identity.of(path)
    assert Identity.of(path).public == one.public and path.stat().st_mode & 0o077 == 0 and "PRIVATE" not in repr(one)
    path.chmod(0o644)
    with pytest.raises(RunError, match="readable by other users"):
        Identity.of(path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(RunError, match="not an identity"):
        Identity.of(path)


def test_pinned_keys_are_kept_in_a_file(tmp_path: Path) -> None:
    one = Identity.generate()
    PinnedKeys(path=tmp_path / "pinned.json").pin("a", one.public)
    again = PinnedKeys(path=tmp_path / "pinned.json")
    assert dict(again) == {"a": one.public}
    again.check("a", one.sign(b"x"), b"x")
    with pytest.raises(Refused, match="not valid"):
        again.check("a", one.sign(b"x"), b"y")
    with pytest.raises(Refused, match="not pinned"):
        again.check("b", one.sign(b"x"), b"x")
    with pytest.raises(Refused, match="expected 32"):
        again.pin("c", b"short")
    (tmp_path / "pinned.json").write_text("[1]")
    with pytest.raises(RunError, match="not a list of pinned keys"):
        PinnedKeys(path=tmp_path / "pinned.json")
