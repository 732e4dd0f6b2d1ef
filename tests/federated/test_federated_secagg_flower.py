"""What docs/secure-aggregation.md says about the protocol in Flower is so in the version that is installed."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import numpy as np
import pytest


def module(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Flower's imports warn of deprecations
        try:
            return importlib.import_module(f"flwr.{name}")
        except ImportError:
            pytest.skip("this version of Flower has no such protocol, or is not installed")


MOD = "client.mod.secure_aggregation.secaggplus_mod"


def test_its_masks_depend_on_32_bits_of_their_key() -> None:
    generate = module("common.secure_aggregation.secaggplus_utils").pseudo_rand_gen
    key = os.urandom(32)
    folded = np.bitwise_xor.reduce(np.frombuffer(key, "<u4")).tobytes()
    ours, other = (generate(k, 2**32, [(1000,)])[0] for k in (key, folded + bytes(28)))
    assert (ours == other).all()


def test_it_gives_both_secrets_of_a_node_on_both_lists() -> None:
    mod = module(MOD)
    state = mod.SecAggPlusState()
    state.threshold, state.rd_seed_share_dict, state.sk1_share_dict = 1, {7: b"seed"}, {7: b"key"}
    assert mod._unmask(state, {"active_nids": [7], "dead_nids": [7]}) == {"nids": [7, 7], "shares": [b"seed", b"key"]}
    assert mod._unmask(state, {"active_nids": [7], "dead_nids": []})["shares"] == [b"seed"]  # and a second time


def test_it_fails_if_a_node_vanished_before_it_shared_its_secrets() -> None:
    mod = module(MOD)
    state = mod.SecAggPlusState()
    state.threshold, state.rd_seed_share_dict, state.sk1_share_dict = 1, {7: b"seed"}, {7: b"key"}
    with pytest.raises(KeyError):
        mod._unmask(state, {"active_nids": [7], "dead_nids": [8]})  # 8 is among the sampled ones, and is listed as dead


def test_it_accepts_keys_that_the_server_made() -> None:
    mod, keys = module(MOD), module("supercore.primitives.asymmetric")
    state = mod.SecAggPlusState()
    own = mod._setup(
        state,
        {
            "sample_num": 3,
            "share_num": 3,
            "threshold": 2,
            "clipping_range": 8.0,
            "target_range": 2**22,
            "mod_range": 2**32,
            "max_weight": 1.0,
        },
    )
    state.nid = 1
    forged = {str(nid): tuple(keys.public_key_to_bytes(keys.generate_key_pairs()[1]) for _ in range(2)) for nid in (2, 3)}
    answer = mod._share_keys(state, {"1": (own["pk1"], own["pk2"]), **forged})
    assert answer["dsts"] == [2, 3]  # the shares of both secrets, for keys that the server knows


def test_it_clips_without_a_word() -> None:
    quantization = module("common.secure_aggregation.quantization")
    steps = quantization.quantize([np.array([100.0, -100.0])], 8.0, 2**22)
    assert quantization.dequantize(steps, 8.0, 2**22)[0].tolist() == [8.0, -8.0]
