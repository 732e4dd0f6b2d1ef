"""What cannot be clipped by example is refused, with the layer's name and the way out; wrappers and modes of training are not in the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.models import materialize
from tauon.models.families.cnn import CNNConfig
from tauon.models.families.gpt import GPTConfig
from tauon.privacy.clipped import ClippedSum, check_independent
from tauon.tasks import Classification, LanguageModelling
from tauon.testing import check_clipping, gradients_one_by_one, tiny_batch
from tauon.train.precision import apply_checkpointing_and_compile
from tauon.types import Batch, DataSpec

TEXT = DataSpec(vocab=50, seq_len=16)
IMAGES = DataSpec(input_shape=(1, 8, 8), outputs=3, labels=("a", "b", "c"))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4)])
def test_batch_norm_is_refused_with_its_name_and_the_way_out(layer: nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"^1 is a batch norm: .* Use group norm"):
        ClippedSum(nn.Sequential(nn.Linear(4, 4), layer))


def test_a_frozen_batch_norm_is_a_constant() -> None:
    norm = nn.BatchNorm1d(4).eval().requires_grad_(False)
    x = torch.randn(4, 4)
    check_clipping(nn.Sequential(nn.Linear(4, 4), norm), lambda m, a, b: m(x[a:b]).square().sum(), 4)


def test_running_statistics_of_examples_are_refused() -> None:
    with pytest.raises(RecipeError, match="track_running_stats=False"):
        ClippedSum(nn.InstanceNorm2d(3, affine=True, track_running_stats=True))


def test_a_model_of_which_nothing_trains_is_refused() -> None:
    with pytest.raises(RecipeError, match="nothing to clip"):
        ClippedSum(nn.Linear(3, 3).requires_grad_(False))


def test_a_penalty_on_weights_is_refused() -> None:
    model = nn.Linear(3, 3)
    clipped = ClippedSum(model)
    with pytest.raises(RecipeError, match=r"weight, bias got a gradient outside the recorded layers"), clipped.recording():
        (model(torch.randn(2, 3)).sum() + sum(p.square().sum() for p in model.parameters())).backward()


def test_a_weight_used_in_an_unknown_way_is_named() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.table = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) @ torch.linalg.inv(self.table)

    clipped = ClippedSum(Model())
    with pytest.raises(RecipeError, match=r"table is used by linalg_inv.*Put it into its own module"), clipped.recording():
        clipped.model(torch.randn(2, 3))


def test_rows_that_are_not_whole_units_are_refused() -> None:
    model = nn.Linear(3, 3)
    clipped = ClippedSum(model, rows_per_unit=2)
    with pytest.raises(RecipeError, match="5 rows are not a multiple of 2 rows per unit"), clipped.recording():
        model(torch.randn(5, 3)).sum().backward()
    clipped.forget()
    with pytest.raises(RecipeError, match="no forward pass"):
        clipped.squared_norms()


def test_the_batch_must_come_first() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.transpose(0, 1))

    clipped = ClippedSum(Turned())
    with pytest.raises(RecipeError, match="Keep the batch in the first dimension"), clipped.recording():
        clipped.model(torch.randn(4, 3, 4)).sum().backward()


def test_weights_want_a_gradient_outside_and_modules_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    clipped = ClippedSum(model)
    with pytest.raises(ValueError, match="stop"), clipped.recording():
        raise ValueError("stop")
    assert type(model[0]) is nn.Linear
    assert all(p.requires_grad for p in model.parameters())


class Mixing(nn.Module):
    """Takes the mean over the batch away: one example reaches the others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.inner(x.flatten(1))
        return h - h.mean(0)


class Averaged(Classification):
    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss_B, weight_B = super().losses(model, batch)
        return loss_B / weight_B.sum(), weight_B


class Penalised(Classification):
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        total, weight = super().loss(model, batch)
        return total + sum(p.square().sum() for p in model.parameters()), weight


def test_examples_that_reach_each_other_are_found_before_training() -> None:
    batch = tiny_batch(IMAGES, 5)
    torch.manual_seed(0)
    with pytest.raises(RecipeError, match="mixes examples"):
        check_independent(Mixing(), Classification(), batch)
    model = materialize(CNNConfig(channels=(8,)).resolve(IMAGES), seed=0)
    nn.init.normal_(model.get_parameter("head.weight"))
    check_independent(model, Classification(), batch)
    with pytest.raises(RecipeError, match="given weight 0"):
        check_independent(model, Averaged(), batch)
    with pytest.raises(RecipeError, match="but the sum of its examples"):
        check_independent(model, Penalised(), batch)


def test_an_example_that_overflows_is_no_reason_to_refuse_a_model_and_none_to_trust_it() -> None:
    batch = tiny_batch(IMAGES, 5)
    batch.inputs[1] = torch.inf
    torch.manual_seed(0)
    model = materialize(CNNConfig(channels=(8,)).resolve(IMAGES), seed=0)
    nn.init.normal_(model.get_parameter("head.weight"))
    check_independent(model, Classification(), batch)
    with pytest.raises(RecipeError, match=r"loss of example 0 is nan in a batch, but finite alone"):
        check_independent(Mixing(), Classification(), batch)


def test_the_check_leaves_no_trace_and_stands_dropout() -> None:
    model = materialize(CNNConfig(channels=(8,), dropout=0.5).resolve(IMAGES), seed=0)
    nn.init.normal_(model.get_parameter("head.weight"))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_independent(model, Classification(), tiny_batch(IMAGES, 5))
    assert torch.equal(before, torch.get_rng_state())


def language_model(**more: Any) -> nn.Module:
    model = materialize(GPTConfig(layers=2, width=32, heads=2, **more).resolve(TEXT), seed=0)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g) * 0.05)
    return model


def test_activation_checkpointing_changes_nothing() -> None:
    model, batch, task = language_model(), tiny_batch(TEXT, 4), LanguageModelling()
    apply_checkpointing_and_compile(model, checkpointing=True, compiled=False)  # type: ignore[arg-type]
    check_clipping(model, lambda m, a, b: task.loss(m, batch.rows(a, b))[0], 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, inside its compiler
def test_compiled_blocks_change_nothing() -> None:
    model, batch, task = language_model(), tiny_batch(TEXT, 4), LanguageModelling()
    apply_checkpointing_and_compile(model, checkpointing=False, compiled=True)  # type: ignore[arg-type]
    with torch.no_grad():
        plain = task.loss(model, batch)[0]
    check_clipping(model, lambda m, a, b: task.loss(m, batch.rows(a, b))[0], 4)
    with torch.no_grad():
        torch.testing.assert_close(task.loss(model, batch)[0], plain)


def test_bf16_is_close() -> None:
    """The norms of a batch in bfloat16 to 2% of those in float32, the sum to 3%."""
    model, batch, task = language_model(tied=True), tiny_batch(TEXT, 6), LanguageModelling()

    def loss(m: nn.Module, a: int, b: int) -> Tensor:
        return task.loss(m, batch.rows(a, b))[0]

    want = gradients_one_by_one(model, loss, 6)
    clipped = ClippedSum(model)
    with clipped.recording(), torch.autocast("cpu", torch.bfloat16):
        loss(model, 0, 6).backward()
    squared = clipped.squared_norms()
    whole = torch.stack([w.flatten(1).square().sum(1) for w in want.values()]).sum(0)
    torch.testing.assert_close(torch.stack(list(squared.values())).sum(0), whole, rtol=0.02, atol=0)
    clipped.add(torch.ones(6))
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        assert float((p.grad - want[name].sum(0)).norm()) <= 0.03 * float(whole.sum().sqrt()), name


def test_examples_of_weight_zero_have_no_gradient_at_all() -> None:
    model, batch, task = language_model(), tiny_batch(TEXT, 4), LanguageModelling()
    batch.weights[1] = 0
    clipped = ClippedSum(model)
    with clipped.recording():
        task.loss(model, batch)[0].backward()
    assert all(float(s[1]) == 0 for s in clipped.estimates().values())
    assert all(0 <= float(s[1]) < 1e-16 and float(s[0]) >= 0 for s in clipped.squared_norms().values())
