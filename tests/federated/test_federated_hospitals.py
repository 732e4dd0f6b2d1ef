"""`tauon federate serve` and `join` in network namespaces on real pictures: the story of `chest.py`, through a killed site and a killed coordinator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from federated.chest import ROUNDS, hospitals, round_of
from federated.deployment import SITES, make_keys, play
from federated.namespaces import available
from tauon.artifacts import latest_checkpoint, read_json

pytest.importorskip("flwr", reason="federated training needs: pip install 'tauon[federated]'")


@pytest.mark.slow
@pytest.mark.distributed
def test_three_hospitals_train_through_a_killed_site_and_a_killed_coordinator(tmp_path: Path, mirror: Path) -> None:
    if reason := available():
        pytest.skip(reason)
    make_keys(tmp_path)
    lines = play(hospitals(mirror / "medmnist" / "pneumoniamnist.npz", tmp_path), tmp_path)
    run = tmp_path / "runs" / "chest"
    done = [n for line in lines if (n := round_of(line)) is not None]
    assert sorted(set(done)) == list(range(1, ROUNDS + 1))
    found = read_json(run / "federate.json")
    assert len(found["rounds"]) == ROUNDS and all(known == {} for r in found["rounds"] for known in r["sites"].values())
    assert set(found["sites"]) == {"all sites"} and found["sites"]["all sites"]["metrics"]["accuracy"] > 0.7  # no figure of one site
    assert read_json(run / "evaluation.json")["metrics"]["roc_auc"]["value"] > 0.8
    ends = [latest_checkpoint(folder / "checkpoints") for folder in (run, *(tmp_path / name / "chest" for name in SITES))]
    weights = [end.tensors("model") for end in ends if end is not None]
    assert len(weights) == 4 and all((w[n] == weights[0][n]).all() for w in weights for n in w if not n.endswith("num_batches_tracked"))
    assert all(json.loads(line) for line in lines if line.startswith("{"))
