"""Mixing in pairs and balanced order: the formulas of the papers, and nothing that depends on who asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tauon.config import parse
from tauon.data import (
    ArrayDataset,
    Arrays,
    AugmentConfig,
    BalancedOrder,
    DataConfig,
    Loader,
    MixConfig,
    Mixer,
    Normalizer,
    TrainingOptions,
    class_weights,
    prepare,
)
from tauon.errors import DataError, RecipeError
from tauon.tasks import Classification

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (50, 1, 8, 6)).astype(np.uint8)
CLASSES = np.repeat([0, 1, 2], [35, 10, 5])


def dataset(mix: dict[str, Any] | None = None, *, balanced: bool = False, weights: Any = None, augments: Any = ()) -> ArrayDataset:
    table = Arrays(PICTURES, CLASSES, (), ("a", "b", "c"))
    mixer = None if mix is None else Mixer(parse(MixConfig, mix), seed=5, classes=3, shape=(1, 8, 6))
    order = BalancedOrder(CLASSES, 5) if balanced else None
    steps = [parse(AugmentConfig, a) for a in augments]
    training = TrainingOptions(seed=5, augments=steps, weights=weights, order=order, mixer=mixer)
    return ArrayDataset(table, np.arange(50), Normalizer.fit(PICTURES, "unit"), training=training)


@pytest.mark.parametrize("mix", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "share": 0.6}], ids=str)
@pytest.mark.parametrize("balanced", [False, True])
def test_a_batch_does_not_depend_on_ranks_or_workers(mix: dict[str, Any], balanced: bool) -> None:
    data = dataset(mix, balanced=balanced, augments=[{"kind": "flip"}])
    for step in (0, 3, 7):  # within an epoch, and over its end
        whole = Loader(data, batch=14, seed=5).batch_at(step)
        for world in (2, 3, 7):
            parts = [Loader(data, batch=14, seed=5, rank=r, world=world).batch_at(step) for r in range(world)]
            for name in ("inputs", "targets", "weights", "index"):
                joined = torch.cat([getattr(p, name) for p in parts])
                kept = torch.cat([p.weights for p in parts]) > 0
                assert torch.equal(joined[kept][: len(whole)], getattr(whole, name)), name
        with Loader(data, batch=14, seed=5, workers=3) as ahead:
            assert torch.equal(ahead.batch_at(step).inputs, whole.inputs)


def test_mixup_is_the_papers_formula() -> None:
    data = dataset({"mixup": 0.4})
    plain, mixed = Loader(dataset(), batch=20, seed=5).batch_at(2), Loader(data, batch=20, seed=5).batch_at(2)
    how = data.mixer.plan(2, 20)  # type: ignore[union-attr]
    assert sorted(how.partner) == list(range(20))
    a = torch.from_numpy(how.own)
    wide = a.view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed.inputs, wide * plain.inputs + (1 - wide) * plain.inputs[how.partner])
    hot = F.one_hot(plain.targets, 3).float()
    torch.testing.assert_close(mixed.targets, a[:, None] * hot + (1 - a[:, None]) * hot[how.partner])
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(20))


def test_cutmix_pastes_a_box_of_the_partner_and_counts_its_area() -> None:
    data = dataset({"cutmix": 1.0})
    plain, mixed = Loader(dataset(), batch=20, seed=5).batch_at(0), Loader(data, batch=20, seed=5).batch_at(0)
    how = data.mixer.plan(0, 20)  # type: ignore[union-attr]
    assert how.box is not None
    hot = F.one_hot(plain.targets, 3).float()
    sizes = set()
    for i in range(20):
        top, bottom, left, right = how.box[i]
        wanted = plain.inputs[i].clone()
        wanted[:, top:bottom, left:right] = plain.inputs[how.partner[i], :, top:bottom, left:right]
        assert torch.equal(mixed.inputs[i], wanted)
        share = (bottom - top) * (right - left) / 48 if how.partner[i] != i else 0.0
        torch.testing.assert_close(mixed.targets[i], (1 - share) * hot[i] + share * hot[how.partner[i]])
        sizes.add(share)
    assert len(sizes) > 10


def test_shares_follow_the_beta_distribution_and_the_share_of_rows() -> None:
    stats = pytest.importorskip("scipy.stats")
    mixer = Mixer(parse(MixConfig, {"mixup": 0.3}), seed=1, classes=2, shape=(4,))
    own = np.concatenate([mixer.plan(s, 500).own for s in range(8)])
    assert stats.kstest(own[own < 1], stats.beta(0.3, 0.3).cdf).pvalue > 1e-4
    half = Mixer(parse(MixConfig, {"mixup": 0.3, "cutmix": 1.0, "share": 0.5}), seed=1, classes=2, shape=(1, 16, 16))
    plans = [half.plan(s, 500) for s in range(8)]
    mixed = np.concatenate([p.partner != np.arange(500) for p in plans])
    pasted = np.concatenate([(p.box[:, 1] > 0) for p in plans if p.box is not None])
    assert mixed.mean() == pytest.approx(0.5, abs=0.03)
    assert pasted.mean() == pytest.approx(0.25, abs=0.03)


def test_the_loss_of_shares_is_the_share_of_the_losses() -> None:
    data = dataset({"mixup": 0.4})
    batch = Loader(data, batch=20, seed=5).batch_at(1)
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    loss_B, weight_B = Classification().losses(head, batch)
    log = head(batch.inputs).log_softmax(1)
    torch.testing.assert_close(loss_B, -(batch.targets * log).sum(1))
    assert weight_B.tolist() == [1.0] * 20


def test_only_training_examples_are_mixed(tmp_path: Any) -> None:
    np.savez(tmp_path / "a.npz", x=PICTURES, y=CLASSES)
    config = parse(
        DataConfig, {"source": {"kind": "npz", "path": str(tmp_path / "a.npz")}, "mix": {"mixup": 0.2}, "split": {"validation": 0.2}}
    )
    splits = prepare(config, seed=0, input_kind="arrays")
    assert splits.train.mixer is not None and splits.validation.mixer is None  # type: ignore[union-attr, attr-defined]
    assert splits.validation.batch(np.arange(2)).targets.dtype == torch.int64  # type: ignore[union-attr]
    assert splits.facts["mix"] == {"mixup": 0.2, "cutmix": None, "share": 1.0}
    other = prepare(config.model_copy(update={"mix": None}), seed=0, input_kind="arrays")
    assert other.fingerprint != splits.fingerprint


# ---------------------------------------------------------------------------------------------- balance


def test_balanced_order_deals_one_of_each_class_a_round_and_every_example_in_turn() -> None:
    order = BalancedOrder(CLASSES, seed=9)
    position = np.arange(3 * 70)
    epoch, example = order.at(position)
    classes = CLASSES[example].reshape(70, 3)
    assert all(sorted(row) == [0, 1, 2] for row in classes.tolist())
    assert len({tuple(row) for row in classes.tolist()}) == 6  # in every order
    for c, size in ((0, 35), (1, 10), (2, 5)):
        mine = example[CLASSES[example] == c]
        for start in range(0, len(mine) - size + 1, size):
            assert sorted(mine[start : start + size]) == np.flatnonzero(c == CLASSES).tolist()
        assert epoch[CLASSES[example] == c].tolist() == [i // size for i in range(len(mine))]
    some = RNG.permutation(position)[:40]
    again = order.at(some)
    assert np.array_equal(again[0], epoch[some]) and np.array_equal(again[1], example[some])


def test_a_loader_in_balanced_order_gives_rows_in_that_order_augmented_as_their_class_is() -> None:
    data = dataset(balanced=True, augments=[{"kind": "noise", "std": 0.3}])
    loader = Loader(data, batch=12, seed=5)
    batch = loader.batch_at(6)
    epoch, example = data.order.at(np.arange(72, 84))  # type: ignore[union-attr]
    assert len(set(epoch.tolist())) > 1
    assert batch.index.tolist() == example.tolist()  # type: ignore[union-attr]
    for row in range(12):
        alone = data.batch(example[row : row + 1], epoch=int(epoch[row]))
        assert torch.equal(batch.inputs[row], alone.inputs[0])
    counts = np.bincount(batch.targets.numpy(), minlength=3)
    assert counts.tolist() == [4, 4, 4]


def test_class_weights_are_scikit_learns() -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight")
    wanted = utils.compute_class_weight("balanced", classes=np.arange(3), y=CLASSES)
    assert np.allclose(class_weights(CLASSES, "balanced", ("a", "b", "c")), wanted)
    data = dataset(weights=class_weights(CLASSES, "balanced", ("a", "b", "c")))
    batch = Loader(data, batch=50, seed=0).batch_at(0)
    assert torch.allclose(batch.weights, torch.from_numpy(wanted).float()[batch.targets])
    assert batch.weights.mean().item() == pytest.approx(1, abs=1e-5)
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    total, weight = Classification().loss(head, batch)
    expected = F.cross_entropy(head(batch.inputs), batch.targets, weight=torch.from_numpy(wanted).float())
    torch.testing.assert_close(total / weight, expected)


def pictures(tmp_path: Any, **data: Any) -> DataConfig:
    np.savez(tmp_path / "a.npz", x=PICTURES, y=CLASSES)
    return parse(DataConfig, {"source": {"kind": "npz", "path": str(tmp_path / "a.npz")}, **data})


def test_weights_and_order_are_of_the_training_part_alone(tmp_path: Any) -> None:
    splits = prepare(pictures(tmp_path, class_weights="balanced", split={"validation": 0.2}), seed=0, input_kind="arrays")
    counts = splits.facts["parts"]["train"]["classes"]
    rows = sum(counts.values())
    assert splits.facts["class_weights"] == pytest.approx({k: rows / (3 * n) for k, n in counts.items()}, rel=1e-5)
    assert splits.validation.batch(np.arange(5)).weights.tolist() == [1.0] * 5  # type: ignore[union-attr]
    given = prepare(pictures(tmp_path, class_weights=[1, 2, 3]), seed=0, input_kind="arrays")
    assert given.facts["class_weights"] == {"0": 1, "1": 2, "2": 3}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"class_weights": [1, 2]}, "2 weights for 3 classes"),
        ({"label_order": ["0", "1"]}, "'2' is not in both"),
        ({"mix": {"cutmix": 1.0}, "source": {"kind": "sklearn", "name": "iris"}}, "cutmix needs images"),
        ({"sampling": "balanced", "source": {"kind": "sklearn", "name": "diabetes"}}, "data.sampling needs classes"),
        ({"mix": {"mixup": 1}, "source": {"kind": "sklearn", "name": "diabetes"}}, "data.mix needs classes"),
        ({"label_order": ["a"], "source": {"kind": "sklearn", "name": "diabetes"}}, "the targets are numbers, not classes"),
    ],
)
def test_data_that_a_choice_does_not_fit_is_named(tmp_path: Any, data: dict[str, Any], says: str) -> None:
    if "source" in data:
        pytest.importorskip("sklearn")
    with pytest.raises(DataError, match=says):
        prepare(pictures(tmp_path, **data) if "source" not in data else parse(DataConfig, data), seed=0, input_kind="arrays")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"mix": {}}, "neither mixup nor cutmix is set"),
        ({"sampling": "balanced", "class_weights": "balanced"}, "would be weighted twice"),
        ({"mix": {"mixup": -1}}, "mixup"),
    ],
)
def test_settings_without_sense_are_refused(tmp_path: Any, data: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        pictures(tmp_path, **data)


def test_a_class_that_only_held_out_rows_have_is_an_error(tmp_path: Any) -> None:
    config = pictures(tmp_path, split={"by": "position", "validation": 0, "test": 0.1})  # the rows lie class by class
    with pytest.raises(DataError, match=r"the test part has the class '2', which no training row has"):
        prepare(config, seed=0, input_kind="arrays")
    np.savez(tmp_path / "b.npz", x_train=PICTURES[:45], y_train=CLASSES[:45], x_test=PICTURES[40:], y_test=CLASSES[40:])
    with pytest.raises(DataError, match=r"the test source has the label '2', which the training data does not have"):
        prepare(parse(DataConfig, {"source": {"kind": "npz", "path": str(tmp_path / "b.npz")}}), seed=0, input_kind="arrays")


def test_classes_are_numbered_in_the_order_given(tmp_path: Any) -> None:
    (tmp_path / "t.csv").write_text(
        "x,size\n" + "".join(f"{i},{'high' if i % 3 == 0 else 'low' if i % 3 == 1 else 'mid'}\n" for i in range(30))
    )
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "size"}
    splits = prepare(
        parse(DataConfig, {"source": source, "label_order": ["low", "mid", "high"], "normalize": "none"}), seed=0, input_kind="arrays"
    )
    assert splits.spec.labels == ("low", "mid", "high") == tuple(splits.preprocess["labels"])
    batch = splits.train.batch(np.arange(len(splits.train)))
    assert [int(x) % 3 for x in batch.inputs[:, 0]] == [{0: 1, 1: 2, 2: 0}[int(t)] for t in batch.targets]
