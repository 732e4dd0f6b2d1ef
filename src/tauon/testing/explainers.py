"""Contract of an attribution method: it leaves the model as it was found, gives one map whatever the batch, and keeps the promises it is named for.
Public, as the others in `contracts.py`.

    from tauon.testing import check_explainer
    def test_my_method(): check_explainer(METHODS["mine"], axioms=("completeness", "dummy"))
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.explain import Attribution, Cases, Method, Work

__all__ = ["Axiom", "check_explainer", "explainer_cases"]

Axiom = Literal["completeness", "linear", "dummy", "shares"]
"""completeness: values sum to f(x) - f(baseline), within 1%. linear: of f = w x they are w (x - baseline). dummy: a feature that f does not read gets 0.
shares: values of an example are not negative and sum to 1."""
N = 4


class _Pictures(nn.Module):
    """Convolutions with activations in place, the first on the input itself; or the same with functions that write nowhere."""

    def __init__(self, *, functional: bool) -> None:
        super().__init__()
        self.first = nn.Identity() if functional else nn.LeakyReLU(0.5, inplace=True)
        self.conv1, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.Identity() if functional else nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.conv2, self.fc = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Linear(6, 3)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(x, 0.5) if self.functional else self.first(x)
        x = self.norm(self.conv1(x))
        x = self.drop(F.relu(x) if self.functional else self.relu(x))
        x = self.conv2(x)
        x = F.relu(x) if self.functional else self.relu(x)
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class _Texts(nn.Module):
    """One layer of attention over embeddings of tokens, some of them padding."""

    def __init__(self, *, functional: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.mlp = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu = nn.Identity() if functional else nn.ReLU(inplace=True)
        self.fc, self.functional = nn.Linear(6, 3), functional

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, 3)).transpose(1, 2) for t in self.qkv(x_BTD).chunk(3, 2))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_BT[:, None, None, :])
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.mlp(x_BTD)
        x_BTD = x_BTD + (F.relu(h) if self.functional else self.relu(h))
        mean = (x_BTD * valid_BT.unsqueeze(2)).sum(1) / valid_BT.sum(1, keepdim=True)
        out: Tensor = self.fc(mean)
        return out


def explainer_cases(*, functional: bool = False, seed: int = 0) -> dict[str, Cases]:
    """Return small cases of each kind: image (a network with activations in place, even on its input, batch norm and dropout), table (linear; the
    last column has no weight), text (attention over padded tokens). Only images and texts have classes.

    Args:
        functional: activations that write nowhere, in a model of the same weights.
        seed: of weights and examples.
    """
    g = torch.Generator().manual_seed(seed)

    def filled(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.ndim > 1 else 0.2))
        return model.eval()

    targets = torch.arange(N) % 3
    pictures, texts, line = filled(_Pictures(functional=functional)), filled(_Texts(functional=functional)), filled(nn.Linear(5, 2))
    with torch.no_grad():
        line.weight[:, -1] = 0  # type: ignore[index, operator]
    x = torch.randn(N, 2, 8, 8, generator=g)
    regions = (torch.arange(8) // 2).view(8, 1) * 4 + torch.arange(8) // 2
    image = Cases(
        pictures, x, lambda x, rows: pictures(x), targets, torch.full((1, 2, 8, 8), 0.1), torch.arange(64).view(1, 8, 8), (8, 8), "image",
        regions=regions.flatten(), link="softmax",
    )  # fmt: skip
    table = Cases(
        line,
        torch.randn(N, 5, generator=g),
        lambda x, rows: line(x),
        targets % 2,
        torch.randn(1, 5, generator=g),
        torch.arange(5),
        (5,),
        "table",
    )
    valid = torch.arange(7) < torch.tensor([[7], [5], [7], [2]])
    text = Cases(
        texts, torch.randn(N, 7, 6, generator=g), lambda x, rows: texts(x, valid[rows]), targets, torch.zeros(1, 7, 6),
        torch.arange(7).view(7, 1), (7,), "text", valid=valid, link="softmax",
    )  # fmt: skip
    return {"image": image, "table": table, "text": text}


def check_explainer(
    method: Method, *, axioms: Collection[Axiom] = (), options: Mapping[str, Any] | None = None, cases: Mapping[str, Cases] | None = None
) -> None:
    """Check an attribution method on small cases of each kind that it explains.

    The model's weights, buffers, modes, hooks, attributes, gradients and `requires_grad`, and torch's, numpy's and Python's random states are as
    before, and the inputs are not written. A model in training mode, with frozen weights, or called under `no_grad` has the map of its evaluation
    mode; a hook of the model's own counts. The map does not depend on the batch size or on the examples beside it, is the same when repeated, and the
    same for a twin with functional activations. No example gives an empty map; a constant input and the baseline give finite values; a target that
    does not exist is refused; padding is not marked. Then the axioms.

    Args:
        method: of `METHODS`.
        axioms: what the method promises: completeness, linear, dummy, shares.
        options: given to every call, such as fewer samples.
        cases: other cases than `explainer_cases`, for a method of other kinds of data (without a twin and without axioms of linear models).

    Raises:
        AssertionError: names the method, the kind and the promise that does not hold.
    """
    unknown = set(axioms) - set(get_args(Axiom))
    assert not unknown, f"unknown axioms {sorted(unknown)}; known: {', '.join(get_args(Axiom))}"
    assert method.title, f"{method.name}: a title is needed"
    assert method.source, f"{method.name}: a source is needed"
    made = dict(explainer_cases() if cases is None else cases)
    twins = explainer_cases(functional=True) if cases is None else {}
    own = {k: c for k, c in made.items() if not method.why_not(c) and (method.needs != "attention" or cases is not None or k == "text")}
    assert own, f"{method.name} explains none of {', '.join(made)}: give it cases of its kind"
    for kind, one in own.items():
        run = _Run(method, kind, dict(options or {}))
        inputs = one.inputs.clone()
        attribution = run(one, Work())
        run.holds(torch.equal(inputs, one.inputs) and not one.inputs.requires_grad, "the inputs were changed")
        _check_shapes(run, one, attribution)
        _check_untouched(run, one, attribution)
        _check_batches(run, one, attribution)
        _check_inputs(run, one)
        if kind in twins:
            run.same(attribution, run(twins[kind], Work()), "a twin with functional activations has another map")
        if "completeness" in axioms:
            _check_completeness(run, one, attribution)
        if "shares" in axioms:
            total = attribution.values.sum(1)
            run.holds(
                bool((attribution.values >= -1e-6).all() and ((total - 1).abs() < 1e-4).all()), f"values sum to {total.tolist()}, not to 1"
            )
    if "table" in own and cases is None:
        _check_linear(_Run(method, "table", dict(options or {})), own["table"], axioms)


@dataclass(frozen=True)
class _Run:
    method: Method
    kind: str
    options: dict[str, Any]

    def __call__(self, cases: Cases, work: Work) -> Attribution:
        return self.method.run(cases, work, **self.options)

    def holds(self, fine: bool, promise: str) -> None:
        assert fine, f"{self.method.name}, {self.kind}: {promise}"

    def same(self, a: Attribution, b: Attribution, promise: str, tolerance: float = 1e-3) -> None:
        """Compare maps relative to the largest value."""
        self.holds(a.values.shape == b.values.shape, f"{promise} (shapes {tuple(a.values.shape)} and {tuple(b.values.shape)})")
        off = float((a.values - b.values).abs().max()) if a.values.numel() else 0.0
        size = float(a.values.abs().max()) if a.values.numel() else 0.0
        self.holds(off <= tolerance * size + 1e-7, f"{promise} (off by {off:.2g} where the largest value is {size:.2g})")


# ---------------------------------------------------------------------------------------------- parts of the contract


def _check_shapes(run: _Run, cases: Cases, a: Attribution) -> None:
    n = len(cases)
    run.holds(a.method == run.method.name, f"the attribution names itself {a.method!r}")
    run.holds(a.values.shape == (n, cases.n_features), f"values {tuple(a.values.shape)}, expected {(n, cases.n_features)}")
    run.holds(bool(a.values.isfinite().all()) and float(a.values.abs().max()) > 0, "values must be finite and not all 0")
    run.holds(not a.values.requires_grad and not a.scores.requires_grad, "values and scores must not need gradients")
    run.holds(a.raw is None or a.raw.shape == cases.inputs.shape, "raw must have the shape of the inputs")
    run.holds(a.errors is None or a.errors.shape == a.values.shape, "errors must have the shape of the values")
    run.holds(all(len(fact) == n for fact in a.facts.values()), "each fact needs one number for each example")
    run.holds(a.failed is None or (a.failed.shape == (n,) and a.failed.dtype == torch.bool), "failed must be N booleans")
    run.holds(a.signed or bool((a.values >= 0).all()), "values below 0 need signed=True")
    run.holds(cases.valid is None or not bool(a.values[~cases.valid].any()), "padding is marked")
    with torch.no_grad():
        wanted = cases.score(cases.inputs, torch.arange(n))
    run.holds(torch.allclose(a.scores, wanted, rtol=1e-4, atol=1e-5), f"scores {a.scores.tolist()}, expected {wanted.tolist()}")


def _check_untouched(run: _Run, cases: Cases, wanted: Attribution) -> None:
    """Models in other states than evaluation without hooks."""
    model = cases.model
    module = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    parameters = list(model.parameters())
    handle = module.register_forward_hook(lambda _, __, out: 2 * out)
    with torch.no_grad():
        hooked = cases.score(cases.inputs, torch.arange(len(cases)))
    model.train()
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    try:
        for work in (Work(at_once=1), Work()):
            before = _state(model)
            with torch.no_grad():
                found = run(cases, work)
            changed = [name for name, value in _state(model).items() if not _equal(value, before[name])]
            run.holds(not changed, f"the model or the process is not as it was found: {', '.join(changed)}")
            fine = torch.allclose(found.scores, hooked, rtol=1e-4, atol=1e-5)
            run.holds(fine, "a model's own hook, or its evaluation mode, was ignored")
    finally:
        handle.remove()
        parameters[-1].grad = None
    for p in parameters:
        p.requires_grad_(False)
    found = run(cases, Work())
    run.holds(all(not p.requires_grad for p in parameters), "frozen weights do not stay frozen")
    run.same(wanted, found, "a model in training mode with frozen weights has another map")
    for p in parameters:
        p.requires_grad_(True)
    model.eval()


def _state(model: nn.Module) -> dict[str, Any]:
    registered = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights and buffers": [v.clone() for v in model.state_dict().values()],
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [list(getattr(m, name)) for m in model.modules() for name in registered],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": cast(Any, np.random.get_state())[1],
        "Python's random state": random.getstate(),
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _check_batches(run: _Run, cases: Cases, wanted: Attribution) -> None:
    run.holds(torch.equal(wanted.values, run(cases, Work()).values), "the same call gave another map")
    for at_once in (1, 3):
        run.same(wanted, run(cases, Work(at_once=at_once)), f"with {at_once} rows at once the map differs")
    for i in (0, len(cases) - 1):
        alone = run(_only(cases, i), Work())
        run.same(replace(wanted, values=wanted.values[i : i + 1]), alone, f"example {i} alone has another map")
    rows = list[tuple[int, int]]()
    run(cases, Work(at_once=2, progress=lambda done, total: rows.append((done, total))))
    run.holds(not rows or rows[-1][0] == rows[-1][1], f"progress ends at {rows[-1:]}")
    empty = run(_only(cases, slice(0, 0)), Work())
    run.holds(empty.values.shape == (0, cases.n_features) and empty.scores.shape == (0,), "no example must give an empty map")


def _only(cases: Cases, which: int | slice) -> Cases:
    """Return some of the cases."""
    rows = torch.arange(len(cases))[which].view(-1)

    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    baselines = cases.baselines if len(cases.baselines) == 1 else cases.baselines[rows]
    return replace(
        cases, inputs=cases.inputs[rows], targets=cases.targets[rows], outputs=lambda x, chosen: cases.outputs(x, rows[chosen]),
        baselines=baselines, valid=cut(cases.valid),
    )  # fmt: skip


def _check_inputs(run: _Run, cases: Cases) -> None:
    for what, inputs in (
        ("constant", torch.full_like(cases.inputs, 0.3)),
        ("the baseline", cases.baseline(torch.arange(len(cases))).clone()),
    ):
        values = run(replace(cases, inputs=inputs), Work()).values
        run.holds(bool(values.isfinite().all()), f"an input that is {what} gives numbers that are not finite")
    for target in (99, -1):
        try:
            run(replace(cases, targets=torch.full_like(cases.targets, target)), Work())
        except DataError:
            continue
        run.holds(False, f"target {target} does not exist and is not refused with a DataError")


def _check_completeness(run: _Run, cases: Cases, a: Attribution) -> None:
    rows = torch.arange(len(cases))
    with torch.no_grad():
        difference = cases.score(cases.inputs, rows) - cases.score(cases.baseline(rows), rows)
    off = (a.values.sum(1) - difference).abs() / difference.abs().clamp(min=1e-6)
    run.holds(bool((off <= 0.0101).all()), f"values do not sum to f(x) - f(baseline): off by {off.tolist()} of it")


def _check_linear(run: _Run, cases: Cases, axioms: Collection[Axiom]) -> None:
    a = run(cases, Work())
    weight = cases.model.weight[cases.targets].detach()  # type: ignore[operator, index]
    if "linear" in axioms:
        run.same(replace(a, values=weight * (cases.inputs - cases.baselines)), a, "of f = w x the values are not w (x - baseline)")
    if "dummy" in axioms:
        run.holds(float(a.values[:, -1].abs().max()) < 1e-6, "a column without weight is marked")
