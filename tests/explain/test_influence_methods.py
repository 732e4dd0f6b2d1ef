"""TracIn, TRAK and EK-FAC, against Captum, closed forms and retraining."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from influence_samples import Rows, assert_same_state, blobs, fit, one_by_one, perceptron, state_of
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.explain.influence.ekfac import EkFac
from tauon.explain.influence.encoder import products, squares
from tauon.explain.influence.factors import LayerFactors
from tauon.explain.influence.gradients import loss_value, margin_value
from tauon.explain.influence.labels import sample_labels
from tauon.explain.influence.lds import rank_correlation
from tauon.explain.influence.tracin import TracIn
from tauon.explain.influence.trak import Trak, soft_threshold
from tauon.models import materialize
from tauon.models.families.cnn import CNNConfig
from tauon.tasks.arrays import Classification, Regression
from tauon.testing import tiny_batch
from tauon.types import Batch, DataSpec

CLASSES = Classification()


def scores_of(encoder: Any, queries: Batch, examples: Batch) -> Tensor:
    found = products(encoder.encode(queries), encoder.encode(examples), encoder.blocks)
    return found * encoder.importance(examples) if encoder.weighted else found


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


# ---------------------------------------------------------------------------------------------- TracIn


def test_tracin_of_a_perceptron_equals_captum() -> None:
    from captum.influence import TracInCP

    data, queries = blobs(20), blobs(4, seed=1)
    models = [perceptron((6, 5, 3), seed=s) for s in (0, 1)]
    rates = {"0": 0.1, "1": 0.03}
    model = perceptron((6, 5, 3))

    def load(model: nn.Module, path: str) -> float:
        model.load_state_dict(models[int(path)].state_dict())
        return rates[path]

    dataset = torch.utils.data.TensorDataset(data.x, data.y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = TracInCP(model, dataset, ["0", "1"], checkpoints_load_func=load, loss_fn=nn.CrossEntropyLoss(reduction="none"), batch_size=7)
        expected = peer.influence((queries.x, queries.y))
        own = peer.self_influence()
    encoder = TracIn(rates=(0.1, 0.03)).fit(models, CLASSES, data)
    assert encoder.facts["exact"] and encoder.facts["left_out"] == []
    torch.testing.assert_close(scores_of(encoder, queries.all(), data.all()), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(squares(encoder.encode(data.all()), encoder.blocks), own, rtol=1e-4, atol=1e-6)


def test_tracin_of_convolutions_is_projected_close_to_the_exact_product_and_says_so() -> None:
    spec = DataSpec(input_shape=(3, 8, 8), outputs=4, labels=("a", "b", "c", "d"))
    model = materialize(CNNConfig(channels=(8, 16)).resolve(spec), seed=0)
    with torch.no_grad():
        nn.init.normal_(model.head.weight, 0, 0.3)  # type: ignore[arg-type, union-attr]
    batch = tiny_batch(spec, rows=12)
    data = Rows(batch.inputs, batch.targets)
    encoder = TracIn(columns=900).fit([model], CLASSES, data)
    assert encoder.facts["projected"] == ["convs.1.weight"] and not encoder.facts["exact"]
    grads = flat(one_by_one(model, loss_value(CLASSES), batch))
    found, exact = scores_of(encoder, batch, batch), grads @ grads.t()
    assert np.corrcoef(found.flatten(), exact.flatten())[0, 1] > 0.98


def test_tracin_names_what_is_left_out_and_refuses_a_wrong_number_of_rates() -> None:
    data = blobs(5)
    encoder = TracIn(parameters=("layers.1.*",)).fit([perceptron((6, 5, 3))], CLASSES, data)
    assert encoder.facts["left_out"] == ["layers.0.weight", "layers.0.bias"]
    with pytest.raises(RecipeError, match="got 2 learning rates for 1 checkpoints"):
        TracIn(rates=(0.1, 0.2)).fit([perceptron((6, 5, 3))], CLASSES, data)


# ---------------------------------------------------------------------------------------------- TRAK


def test_trak_equals_its_formula() -> None:
    data, queries = blobs(60), blobs(4, seed=1)
    models = [fit(perceptron((6, 3), seed=s), data, steps=20) for s in (0, 1)]
    encoder = Trak(columns=400, dense=True).fit(models, CLASSES, data)
    kernel, missing = torch.zeros(4, 60), torch.zeros(60)
    for m, model in enumerate(models):
        phi, phi_q = (
            sum(
                one_by_one(model, margin_value, d.all())[n].flatten(1) @ p.signs.float() / 20
                for n, p in encoder.projections[m].items()
                if p.signs is not None
            )
            for d in (data, queries)
        )
        assert isinstance(phi, Tensor) and isinstance(phi_q, Tensor)
        gram = phi.t().double() @ phi.double()
        gram += 1e-6 * gram.diagonal().mean() * torch.eye(400)
        kernel += (phi_q.double() @ torch.linalg.solve(gram, phi.t().double())).float() / 2
        missing += (1 - model(data.x).softmax(1).gather(1, data.y[:, None])[:, 0]).detach() / 2
    torch.testing.assert_close(
        scores_of(encoder, queries.all(), data.all()), kernel * missing, rtol=1e-2, atol=2e-3 * float(kernel.abs().max())
    )


def test_soft_thresholding_keeps_the_largest() -> None:
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    kept = soft_threshold(x, 5)
    assert ((kept != 0).sum(1) <= 5).all() and (kept.abs() <= x.abs()).all()
    assert torch.equal(kept.argmax(1), x.argmax(1)) or bool((kept.max(1).values == 0).any())
    assert soft_threshold(x, 50) is x


# ---------------------------------------------------------------------------------------------- EK-FAC


def linear_regression(n: int = 400) -> tuple[nn.Linear, Rows]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g) @ torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.3]))
    y = (x @ torch.tensor([[1.0], [-1.0], [2.0], [0.5]]) + torch.randn(n, 1, generator=g)).float()
    model = nn.Linear(4, 1)
    design = torch.cat([x, torch.ones(n, 1)], 1)
    solution = torch.linalg.lstsq(design, y).solution[:, 0]
    with torch.no_grad():
        model.weight.copy_(solution[None, :4])
        model.bias.copy_(solution[4:])
    return model, Rows(x, y)


class Repeated(Rows):
    """The same rows several times: more sampled labels for each."""

    def __init__(self, data: Rows, times: int) -> None:
        super().__init__(data.x.repeat(times, 1), data.y.repeat(times, 1) if data.y.ndim > 1 else data.y.repeat(times))


def test_ekfac_of_a_linear_regression_is_the_exact_influence_function() -> None:
    # the Hessian of the mean squared error is 2 A, and so is the Fisher matrix of exp(-(y - f)^2)
    model, data = linear_regression()
    encoder = EkFac(damping=1e-6).fit([model], Regression(), Repeated(data, 50))
    batch = data.all()
    grads = flat(one_by_one(model, loss_value(Regression()), batch))
    design = torch.cat([data.x, torch.ones(len(data), 1)], 1)
    hessian = 2 * design.t() @ design / len(data)
    exact = grads @ torch.linalg.solve(hessian, grads.t()) / len(data)
    found = scores_of(encoder, batch, batch) * 50  # N is 50 times as large here
    assert encoder.facts["kept_share"] == [pytest.approx(1.0)]
    assert float((found - exact).norm() / exact.norm()) < 0.03


def test_ekfac_of_a_linear_regression_predicts_leaving_one_out() -> None:
    model, data = linear_regression(100)
    encoder = EkFac(damping=1e-6).fit([model], Regression(), Repeated(data, 50))
    queries = Rows(data.x[:5] + 0.5, data.y[:5])
    found = scores_of(encoder, queries.all(), data.all()) * 50
    design, asked = (torch.cat([x, torch.ones(len(x), 1)], 1) for x in (data.x, queries.x))
    base = (asked @ torch.linalg.lstsq(design, data.y).solution - queries.y).square()[:, 0]
    changes = []
    for i in range(100):
        rest = torch.arange(100) != i
        left = (asked @ torch.linalg.lstsq(design[rest], data.y[rest]).solution - queries.y).square()[:, 0]
        changes.append(left - base)  # positive: the example helped
    actual = torch.stack(changes, 1)
    assert rank_correlation(found.t().numpy(), actual.t().numpy()).min() > 0.97
    assert 0.8 < float((found * actual).sum() / (found * found).sum()) < 1.25


def test_ekfac_of_a_logistic_model_ranks_as_leaving_one_out_does() -> None:
    data, queries = blobs(60, spread=1.6), blobs(6, seed=5, spread=1.6)

    def trained(x: Tensor, y: Tensor) -> nn.Linear:
        model = nn.Linear(6, 3)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)  # type: ignore[func-returns-value]
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / 60 + 0.01 * sum(p.square().sum() for p in model.parameters())
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        return model

    model = trained(data.x, data.y)
    encoder = EkFac(damping=0.1).fit([model], CLASSES, Repeated(data, 20))
    found = scores_of(encoder, queries.all(), data.all())
    loss = nn.functional.cross_entropy
    base = loss(model(queries.x), queries.y, reduction="none")
    changes = []
    for i in range(60):
        rest = torch.arange(60) != i
        changes.append((loss(trained(data.x[rest], data.y[rest])(queries.x), queries.y, reduction="none") - base).detach())
    actual = torch.stack(changes).numpy()
    agreement = rank_correlation(found.t().numpy(), actual).mean()
    plain = rank_correlation(scores_of(TracIn().fit([model], CLASSES, data), queries.all(), data.all()).t().numpy(), actual).mean()
    assert agreement > 0.7, (agreement, plain)
    assert agreement > plain - 0.02


def test_eigenvalues_are_those_of_labels_sampled_from_the_model_not_of_the_data() -> None:
    data = blobs(50)
    model = perceptron((6, 5, 3))
    (layers,) = EkFac().fit([model], CLASSES, Repeated(data, 100)).fitted
    factors = LayerFactors(model)
    p = model(data.x).softmax(1).detach()
    for name, layer in layers.items():
        expected = torch.zeros_like(layer.eigenvalues_OI)
        empirical = torch.zeros_like(expected)
        for c in range(3):
            for weights, labels, total in ((p[:, c], torch.full((50,), c), expected), ((data.y == c).float(), data.y, empirical)):
                ((a, g),) = factors.of(loss_value(CLASSES), Batch(data.x, labels, torch.ones(50)))[name]
                rotated = layer.rotated((a, g)).square()
                total += (weights[:, None, None] * rotated).mean(0)
        found = layer.eigenvalues_OI
        assert float((found - expected).norm() / expected.norm()) < 0.05
        assert float((found - empirical).norm() / empirical.norm()) > 0.2
        assert layer.damping == pytest.approx(0.1 * float(found.mean()))


def test_the_basis_diagonalises_the_factors() -> None:
    data, model = blobs(80), perceptron((6, 5, 3))
    (layers,) = EkFac(batch=32).fit([model], CLASSES, data).fitted
    a = torch.cat([torch.relu(model.layers[0](data.x)), torch.ones(80, 1)], 1).detach()  # type: ignore[operator]
    turned = layers["layers.1"].inputs_II.t() @ (a.t() @ a) @ layers["layers.1"].inputs_II
    assert float((turned - torch.diag(turned.diagonal())).norm() / turned.norm()) < 1e-4


def test_all_coordinates_equal_the_dense_inverse_and_fewer_keep_the_largest_shares() -> None:
    data, model = blobs(60), perceptron((6, 5, 3))
    batch = data.all()
    whole = EkFac(columns=None).fit([model], CLASSES, data)
    (layers,) = whole.fitted
    pairs, exact = LayerFactors(model).of(loss_value(CLASSES), batch), torch.zeros(60, 60)
    for name, layer in layers.items():
        each = layer.rotated(pairs[name][0]).flatten(1)
        exact += each / (layer.eigenvalues_OI.flatten() + layer.damping) @ each.t() / 60
    torch.testing.assert_close(scores_of(whole, batch, batch), exact, rtol=1e-4, atol=1e-6)
    few = EkFac(columns=10).fit([model], CLASSES, data)
    assert few.columns == 10 and 10 / whole.columns < few.facts["kept_share"][0] < 1


def test_convolutions_take_part_and_what_does_not_is_named() -> None:
    spec = DataSpec(input_shape=(3, 8, 8), outputs=4, labels=("a", "b", "c", "d"))
    model = materialize(CNNConfig(channels=(8, 8)).resolve(spec), seed=0)
    nn.init.normal_(model.head.weight, 0, 0.3)  # type: ignore[arg-type, union-attr]
    batch = tiny_batch(spec, rows=20)
    before = state_of(model)
    encoder = EkFac(columns=None, batch=8).fit([model], CLASSES, Rows(batch.inputs, batch.targets))
    assert_same_state(before, state_of(model))
    assert encoder.facts["layers_used"] == ["convs.0", "convs.1", "head"]
    assert encoder.facts["left_out"] == [f"norms.{i}.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")]
    (layers,) = encoder.fitted
    pairs = LayerFactors(model).of(loss_value(CLASSES), batch)
    exact = torch.zeros(20, 20)
    for name, layer in layers.items():
        each = layer.rotated(pairs[name][0]).flatten(1)
        exact += each / (layer.eigenvalues_OI.flatten() + layer.damping) @ each.t() / 20
    torch.testing.assert_close(scores_of(encoder, batch, batch), exact, rtol=1e-3, atol=1e-5)


def test_sampled_labels_have_the_models_probabilities() -> None:
    data, model = blobs(1, seed=3), perceptron((6, 3))
    batch = Repeated(data, 20_000).all()
    drawn = sample_labels(model, CLASSES, batch, torch.Generator().manual_seed(0)).targets
    shares = drawn.bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, model(data.x).softmax(1)[0], atol=0.015, rtol=0)
    with pytest.raises(RecipeError, match="it is not known how for task Regression"):
        sample_labels(nn.Linear(6, 1), Regression(loss_kind="mae"), Batch(data.x, torch.zeros(1, 1), torch.ones(1)), torch.Generator())


def test_ekfac_refuses_no_damping_and_no_samples() -> None:
    with pytest.raises(RecipeError, match="must be above 0"):
        EkFac(damping=0).fit([perceptron((6, 3))], CLASSES, blobs(5))
    with pytest.raises(RecipeError, match="at least one label for each example"):
        EkFac(samples=0).fit([perceptron((6, 3))], CLASSES, blobs(5))
