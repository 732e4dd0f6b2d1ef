"""What a site must not forget is on disk before its answer leaves."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tauon.artifacts import latest_checkpoint
from tauon.artifacts.checkpoint import write_checkpoint
from tauon.config import parse
from tauon.federated import Message
from tauon.federated.network import JoinAt, network
from tauon.pipeline import run
from tauon.recipe import Recipe

pytest.importorskip("sklearn")
pytest.importorskip("flwr", reason="federated training needs: pip install 'tauon[federated]'")


@pytest.mark.parametrize(
    ("sections", "optimizer"),
    [({"privacy": {"noise_multiplier": 1.0, "delta": 1e-3}}, "fresh"), ({"federate": {"optimizer": "kept"}}, "kept")],
)
def test_a_round_is_on_disk_when_its_answer_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], optimizer: str
) -> None:
    """Killed after its answer, a private site that had not saved the round would add the same noise to the next one: their difference has none."""
    answered, steps = threading.Event(), list[tuple[int, int]]()

    def slow(*args: Any) -> Any:
        answered.wait(1)  # a disk that is slower than the network
        return write_checkpoint(*args)

    def coordinator(address: str, end: Any, **_: Any) -> None:
        session = end.answer(Message("join", nonce="n", fields={"identity": {}})).fields["session"]
        weights = {name: t.clone() for name, t in end.site.local.travels.items()}
        fields = {"session": session, "epochs": 1, "attempt": 0, "optimizer": optimizer}
        assert end.answer(Message("train", 1, "n1", fields, weights)).kind == "trained"
        found = latest_checkpoint(tmp_path / "site" / "checkpoints")
        steps.append((end.site.local.job.step, 0 if found is None else found.step))
        answered.set()
        end.answer(Message("final", 3, "n3", {"session": session}, weights))

    monkeypatch.setattr("tauon.artifacts.writer.write_checkpoint", slow)
    monkeypatch.setattr("tauon.federated.flower.join", coordinator)
    tree = {
        "name": "site", "data": {"source": {"kind": "sklearn", "name": "iris"}, "normalize": "none"}, "task": "classification", "model": "logistic",
        "optim": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}, "train": {"epochs": 1, "batch": 16},
    }  # fmt: skip
    tree |= sections | {"federate": {"rounds": 3, "sites": 3} | sections.get("federate", {})}
    with network(JoinAt("localhost:9443", "a", tmp_path)):
        run(parse(Recipe, tree), root=tmp_path, stages=("prepare", "train"))
    ((done, saved),) = steps
    assert 0 < done == saved
