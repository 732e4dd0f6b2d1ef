"""Several labels and ordered classes: losses against torch and closed forms, whole runs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tauon.artifacts import read_json
from tauon.config import parse
from tauon.errors import RecipeError
from tauon.recipe import Recipe
from tauon.tasks import MultiLabel, Ordinal
from tauon.types import Batch
from toy import Tauon, table_recipe

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def batch(targets: torch.Tensor) -> Batch:
    return Batch(X, targets, torch.tensor([1.0, 1, 0, 2, 1, 1]))


def head(outputs: int) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Linear(4, outputs)


def test_multi_label_is_torchs_binary_cross_entropy() -> None:
    targets = (torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    model, one = head(3), batch(targets)
    loss_B, weight_B = MultiLabel().losses(model, one)
    torch.testing.assert_close(
        loss_B.sum(), F.binary_cross_entropy_with_logits(model(X), targets, weight=one.weights[:, None] / 3, reduction="sum")
    )
    assert torch.equal(weight_B, one.weights)
    smooth, _ = MultiLabel(label_smoothing=0.2).losses(model, one)
    torch.testing.assert_close(
        smooth, F.binary_cross_entropy_with_logits(model(X), targets * 0.8 + 0.1, reduction="none").mean(1) * one.weights
    )
    torch.testing.assert_close(MultiLabel().predict(model, one)["scores"], model(X).sigmoid())


def test_ordinal_losses_are_their_formulas() -> None:
    targets = torch.tensor([0, 3, 1, 2, 3, 0])
    model, one = head(4), batch(targets)
    p = model(X).double().softmax(1)
    below = p.cumsum(1)[:, :3]
    truth = (targets[:, None] <= torch.arange(3)).double()
    rps = ((below - truth) ** 2).sum(1)
    binary = F.binary_cross_entropy(below, truth, reduction="none").sum(1)
    for kind, wanted in (("rps", rps), ("cumulative", binary)):
        loss_B, _ = Ordinal(loss_kind=kind).losses(model, one)  # type: ignore[arg-type]
        torch.testing.assert_close(loss_B.double(), wanted * one.weights, rtol=1e-5, atol=1e-6)
        shares, _ = Ordinal(loss_kind=kind).losses(model, batch(F.one_hot(targets, 4).float()))  # type: ignore[arg-type]
        torch.testing.assert_close(shares, loss_B)


@pytest.mark.parametrize("kind", ["rps", "cumulative"])
def test_ordinal_losses_are_proper_and_grow_with_the_distance(kind: Any) -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    true = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):  # over the true distribution of targets
        each = Ordinal(loss_kind=kind).losses(lambda _: logits.expand(4, 4), Batch(X[:4], torch.arange(4), torch.ones(4)))[0]  # type: ignore[arg-type]
        (each * true[0]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(logits.softmax(1), true, atol=2e-3, rtol=0)
    sure = 6.0 * F.one_hot(torch.tensor(0), 4).float()[None]
    each = Ordinal(loss_kind=kind).losses(lambda _: sure.expand(4, 4), Batch(X[:4], torch.arange(4), torch.ones(4)))[0]  # type: ignore[arg-type]
    assert each.tolist() == sorted(each.tolist()) and each[3] > 1.9 * each[1]


def test_extreme_logits_stay_finite() -> None:
    for scale in (1e4, -1e4):
        logits = (scale * torch.arange(4.0)).expand(4, 4).clone().requires_grad_()
        loss_B, _ = Ordinal().losses(lambda _: logits, Batch(X[:4], torch.arange(4), torch.ones(4)))  # type: ignore[arg-type] # noqa: B023
        loss_B.sum().backward()
        assert torch.isfinite(loss_B).all() and torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- whole runs


def npz(folder: Path, y: np.ndarray, name: str = "a.npz") -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(size=(len(y), 3)).astype(np.float32)
    np.savez(folder / name, x=x, y=y)
    return {"kind": "npz", "path": str(folder / name)}


def test_a_multi_label_run_from_data_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    y = (np.random.default_rng(1).random((80, 3)) < 0.4).astype(np.float32)
    source = npz(tmp_path, y) | {"label_names": ["red", "round", "large"]}
    recipe = table_recipe(tmp_path, data={"source": source, "split": {"validation": 0.25}}, task="multi-label")
    ended = Tauon(capsys)("run", recipe)
    assert ended.code == 0, ended.err
    found = read_json(Path("runs/table/evaluation.json"))
    assert (found["family"], found["primary"]) == ("multi-label", "map")
    assert [row["label"] for row in found["per_class"]] == ["red", "round", "large"]
    assert 0 < found["metrics"]["map"]["value"] <= 1
    page = Path("runs/table/report.html").read_text()
    assert "Mean average precision" in page and "round" in page


def test_an_ordinal_run_from_data_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i % 7},{('low', 'mid', 'high')[(i % 7) // 3]}\n" for i in range(90))
    (tmp_path / "t.csv").write_text("x,size\n" + rows)
    data = {"source": {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "size"}, "split": {"validation": 0.3}}
    recipe = table_recipe(tmp_path, data=data, task="ordinal", train={"steps": 60}, optim={"lr": 0.05})
    tauon = Tauon(capsys)
    ended = tauon("run", recipe)
    assert ended.code == 2 and "data.label_order: is not set" in ended.err and "high, low, mid" in ended.err, ended.err
    ended = tauon("run", recipe, "data.label_order=[low, mid, high]")
    assert ended.code == 0, ended.err
    found = read_json(Path("runs/table/evaluation.json"))
    assert found["confusion"]["labels"] == ["low", "mid", "high"]
    assert found["metrics"]["kappa_quadratic"]["value"] > 0.5
    assert "Kappa (quadratic)" in Path("runs/table/report.html").read_text()


@pytest.mark.parametrize(
    ("task", "targets", "more", "says"),
    [
        ("multi-label", "classes", {}, "multi-label needs one column of 0 and 1 per label"),
        ("multi-label", "large", {}, "they range from 0 to 5"),
        ("ordinal", "large", {}, "ordinal needs ordered classes"),
        ("multi-label", "labels", {"sampling": "balanced"}, "data.sampling: is only for classes, but the task is multi-label"),
        ("regression", "labels", {"mix": {"mixup": 0.2}}, "data.mix: is only for classes, but the task is regression"),
    ],
)
def test_data_that_a_task_cannot_learn_from_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, task: str, targets: str, more: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    y = np.arange(40) % 2
    columns: dict[str, Any] = {
        "classes": y,
        "large": np.stack([y, 5 * y], 1).astype(np.float32),
        "labels": np.stack([y, 1 - y], 1).astype(np.float32),
    }
    ended = Tauon(capsys)("run", table_recipe(tmp_path, data={"source": npz(tmp_path, columns[targets]), **more}, task=task))
    assert ended.code in (2, 3) and says in ended.err, ended.err


def test_choices_of_examples_belong_to_arrays() -> None:
    text = {
        "name": "x",
        "data": {"source": "python-stdlib", "class_weights": "balanced"},
        "task": "language-modelling",
        "model": "gpt",
        "train": {"steps": 1},
    }
    with pytest.raises(RecipeError, match="data.class_weights: is only for arrays"):
        parse(Recipe, text)
