"""Losses and predictions of each task against torch's own; the logits of a language model never exist whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tauon.models import GPT, GPTConfig, materialize
from tauon.tasks import Classification, CountingBytes, LanguageModelling, Regression, linear_cross_entropy, losses, token_nll
from tauon.types import Batch, DataSpec


def case(N: int = 37, D: int = 16, V: int = 53, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g).requires_grad_()
    target = torch.randint(0, V, (N,), generator=g)
    token_weight = (torch.rand(N, generator=g) > 0.3).float() * torch.rand(N, generator=g)
    return hidden, weight, target, token_weight


def whole(hidden: Tensor, weight: Tensor, target: Tensor, token_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients from whole logits in float64."""
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = (F.cross_entropy(h @ w.t(), target, reduction="none") * token_weight).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None and w.grad is not None
    return loss.float(), h.grad.float(), w.grad.float()


@pytest.mark.parametrize("rows", [1, 5, 7, 36, 37, 100])
def test_linear_cross_entropy_is_cross_entropy_on_whole_logits_whatever_the_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "chunk_rows", lambda n, vocab, device: min(n, rows))
    hidden, weight, target, token_weight = case()
    loss = linear_cross_entropy(hidden, weight, target, token_weight)
    (loss * 3).backward()  # type: ignore[no-untyped-call]
    wanted, grad_h, grad_w = whole(hidden, weight, target, token_weight)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad, 3 * grad_h, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, 3 * grad_w, rtol=1e-4, atol=1e-5)


def test_in_bf16_loss_and_gradients_are_close_and_come_in_the_right_types() -> None:
    hidden, weight, target, token_weight = case(N=64, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, target, token_weight)
    loss.backward()  # type: ignore[no-untyped-call]
    wanted, grad_h, grad_w = whole(hidden, weight, target, token_weight)
    assert (loss.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)  # type: ignore[union-attr]
    torch.testing.assert_close(loss, wanted, rtol=2e-2, atol=1e-2)
    assert F.cosine_similarity(hidden.grad.float().flatten(), grad_h.flatten(), 0) > 0.999  # type: ignore[union-attr]
    assert F.cosine_similarity(weight.grad.flatten(), grad_w.flatten(), 0) > 0.999  # type: ignore[union-attr]


def test_tokens_of_weight_zero_count_nothing() -> None:
    hidden, weight, target, token_weight = case()
    kept = token_weight > 0
    all_of_it = linear_cross_entropy(hidden, weight, target, token_weight)
    all_of_it.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and hidden.grad[~kept].abs().max() == 0
    some = linear_cross_entropy(hidden[kept], weight, target[kept], token_weight[kept])
    torch.testing.assert_close(all_of_it, some)
    changed = target.clone()
    changed[~kept] = (changed[~kept] + 1) % 53
    assert linear_cross_entropy(hidden, weight, changed, token_weight).item() == all_of_it.item()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, target, token_weight = case()
    loss = linear_cross_entropy(hidden * 1000, weight, target, token_weight)
    assert torch.isfinite(loss) and loss > 0


@pytest.mark.parametrize(("want_h", "want_w"), [(True, False), (False, True), (False, False)])
def test_gradients_are_made_only_where_they_are_wanted(want_h: bool, want_w: bool) -> None:
    hidden, weight, target, token_weight = case()
    _, grad_h, grad_w = whole(hidden, weight, target, token_weight)
    hidden, weight = hidden.detach().requires_grad_(want_h), weight.detach().requires_grad_(want_w)
    loss = linear_cross_entropy(hidden, weight, target, token_weight)
    if want_h or want_w:
        loss.backward()  # type: ignore[no-untyped-call]
    if want_h:
        torch.testing.assert_close(hidden.grad, grad_h, rtol=1e-4, atol=1e-5)
    if want_w:
        torch.testing.assert_close(weight.grad, grad_w, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor held."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.numel())
        return out


def language_model(V: int = 400) -> GPT:
    model = materialize(GPTConfig(layers=1, width=16, heads=2, vocab=V, seq_len=32), seed=0)
    assert isinstance(model, GPT)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return model


def text_batch(V: int = 400, B: int = 8, T: int = 32) -> Batch:
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(0, V, (B, T + 1), generator=g)
    return Batch(ids[:, :-1], ids[:, 1:], (torch.rand(B, T, generator=g) > 0.2).float())


def test_the_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "chunk_rows", lambda n, vocab, device: 16)
    monkeypatch.setattr(losses, "KEPT", 32 * 400 * 4)
    model, batch = language_model(), text_batch()
    logits = batch.targets.numel() * 400
    with Largest() as seen:
        total, _ = LanguageModelling().loss(model, batch)
        total.backward()  # type: ignore[no-untyped-call]
    assert seen.numel < logits / 5
    with Largest() as seen:  # so that the measurement can fail
        F.cross_entropy(model.logits(model(batch.inputs)).flatten(0, 1), batch.targets.flatten())
    assert seen.numel == logits


class Products(TorchDispatchMode):
    """Remembers the types of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.types.add(out.dtype)
        return out


def test_under_autocast_the_head_multiplies_in_bfloat16_also_if_the_last_norm_is_float32() -> None:
    hidden, weight, target, token_weight = case()
    loss, grad_h, grad_w = whole(hidden, weight, target, token_weight)
    for x in (hidden, weight):
        x.grad = None
    with Products() as seen, torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, target, token_weight)
        each = token_nll(hidden, weight, target)
        ours.backward()  # type: ignore[no-untyped-call]
    assert seen.types == {torch.bfloat16}
    assert hidden.grad is not None and weight.grad is not None and hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(ours, loss, rtol=2**-7, atol=0)
    torch.testing.assert_close((each * token_weight).sum(), loss, rtol=2**-7, atol=0)
    for a, b in ((hidden.grad, grad_h), (weight.grad, grad_w)):
        assert (a - b).norm() < 2**-6 * b.norm()


def test_gradients_of_the_head_are_the_same_in_any_groups_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one product to the rounding of bfloat16, in several sums in float32 of such products."""
    hidden, weight, target, token_weight = case()
    monkeypatch.setattr(losses, "chunk_rows", lambda n, vocab, device: 3)
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for kept in (1, 10 * 53 * 4, 2**30):
            monkeypatch.setattr(losses, "KEPT", kept)
            found.append(torch.autograd.grad(linear_cross_entropy(hidden.to(dtype), weight, target, token_weight), (hidden, weight)))
        for other in found[1:]:
            assert torch.equal(other[0], found[0][0])
            assert (other[1] - found[0][1]).norm() <= 4 * torch.finfo(dtype).eps * found[0][1].norm()


def test_a_chunk_is_of_bounded_memory() -> None:
    cpu = torch.device("cpu")
    for vocab in (2, 257, 50257, 10**6, 10**8):
        rows = losses.chunk_rows(10**6, vocab, cpu)
        assert 1 <= rows <= 10**6 and (rows == 1 or rows * vocab * 4 <= (16 if rows > 128 else 256) * 2**20)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_is_losses_summed_and_both_are_the_formula(z_loss: float) -> None:
    model, batch, task = language_model(), text_batch(), LanguageModelling(z_loss=z_loss)
    logits = model.logits(model(batch.inputs)).double()
    each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(batch.weights)
    each = (each + z_loss * logits.logsumexp(-1) ** 2) * batch.weights
    loss_B, weight_B = task.losses(model, batch)
    torch.testing.assert_close(loss_B.double(), each.sum(1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(weight_B, batch.weights.sum(1))
    total, weight = task.loss(model, batch)
    torch.testing.assert_close(total, loss_B.sum(), rtol=1e-5, atol=1e-4)
    assert weight.item() == task.weight(batch).item() == batch.weights.sum().item()
    gradient = torch.autograd.grad(total, list(model.parameters()), retain_graph=False)
    wanted = torch.autograd.grad(loss_B.sum(), list(model.parameters()))
    for a, b in zip(gradient, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_predictions_of_text_are_sums_over_counted_tokens() -> None:
    model, batch = language_model(), text_batch()
    batch.weights[2] = 0
    counts = torch.arange(400) % 5
    out = CountingBytes(LanguageModelling(), counts).predict(model, batch)
    nll = token_nll(model(batch.inputs).flatten(0, 1), model.head.weight, batch.targets.flatten()).view_as(batch.weights)
    torch.testing.assert_close(out["nll"], (nll.double() * batch.weights).sum(1))
    assert out["nll"][2] == 0 and out["tokens"][2] == 0
    assert out["tokens"].tolist() == [int(w) for w in batch.weights.sum(1)]
    assert out["bytes"].tolist() == (counts[batch.targets] * (batch.weights > 0)).sum(1).tolist()


class Fixed(nn.Module):
    """A model that answers with its weights."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = nn.Parameter(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_weighted_cross_entropy(smoothing: float) -> None:
    logits, y, w = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0]), torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5])
    task, model = Classification(label_smoothing=smoothing), Fixed(logits)
    total, weight = task.loss(model, Batch(torch.zeros(5, 2), y, w))
    p = logits.double().log_softmax(-1)
    spread = (1 - smoothing) * F.one_hot(y, 3) + smoothing / 3
    assert total.item() == pytest.approx(-((spread * p).sum(1) * w).sum().item(), rel=1e-5)
    assert weight.item() == 4.5
    scores = task.predict(model, Batch(torch.zeros(5, 2), y, w))["scores"]
    torch.testing.assert_close(scores, logits.softmax(-1))


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("mse", lambda e: e**2),
        ("mae", abs),
        ("huber", lambda e: 0.5 * e**2 if abs(e) < 1 else abs(e) - 0.5),
    ],
)
def test_regression_sums_over_targets_and_averages_over_examples(kind: str, formula: Any) -> None:
    out, y, w = torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([[0.5, 0.0], [1.0, 2.0]]), torch.tensor([1.0, 3.0])
    total, weight = Regression(loss_kind=kind).loss(Fixed(out), Batch(torch.zeros(2, 1), y, w))  # type: ignore[arg-type]
    wanted = sum(
        wi * sum(formula(a - b) for a, b in zip(o, t, strict=True)) for wi, o, t in zip(w.tolist(), out.tolist(), y.tolist(), strict=True)
    )
    assert total.item() == pytest.approx(wanted)
    assert weight.item() == 4.0


def test_one_target_may_come_as_a_column_or_as_numbers() -> None:
    out = torch.tensor([[1.0], [3.0]])
    for y in (torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [1.0]])):
        assert Regression().loss(Fixed(out), Batch(torch.zeros(2, 1), y, torch.ones(2)))[0].item() == 5.0


def test_tasks_say_which_data_they_cannot_learn_from() -> None:
    text, table = DataSpec(vocab=5, seq_len=3), DataSpec(input_shape=(2,), outputs=2, labels=("a", "b"))
    assert not list(LanguageModelling().fits(text)) and list(LanguageModelling().fits(table))
    for task in (Classification(), Regression()):
        assert not list(task.fits(table)) and list(task.fits(text))


def test_the_first_loss_of_a_model_that_knows_nothing_is_the_logarithm_of_the_choices() -> None:
    model = materialize(GPTConfig(layers=1, width=16, heads=2, vocab=400, seq_len=32), seed=0)
    total, weight = LanguageModelling().loss(model, text_batch())
    assert (total / weight).item() == pytest.approx(math.log(400), rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 60.0, 1e4])
def test_the_loss_is_exact_where_the_probability_is_too_small_for_a_float(size: float) -> None:
    g = torch.Generator().manual_seed(0)
    h, w = torch.randn(9, 4, generator=g) * size, torch.randn(13, 4, generator=g)
    target, weight = torch.randint(0, 13, (9,), generator=g), torch.rand(9, generator=g)
    want = (torch.nn.functional.cross_entropy(h @ w.t(), target, reduction="none") * weight).sum()
    torch.testing.assert_close(losses.linear_cross_entropy(h, w, target, weight), want, rtol=1e-5, atol=1e-6)
