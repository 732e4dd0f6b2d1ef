"""Inside `recording`, modules get subclasses: their `forward` is the rule's, and a trainable weight is read as `Tapped`.

So every use of a weight is recorded: by its layer, by a loss that takes `head.weight`, by a model that adds a bare parameter. The supported
uses of a `Tapped` weight are defined here; any other use is refused, as its per-example gradient is not known.

Classes change, not methods of instances: wrappers that hook modules or replace their weights (FSDP2) work as before, and compiled blocks see
another class and are compiled again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tauon.distributed.pieces import is_dtensor, local_part
from tauon.errors import RecipeError
from tauon.models.randomness import first_row_alone
from tauon.privacy.clipped.record import Record, tap
from tauon.privacy.clipped.rules.base import rule_of
from tauon.privacy.clipped.rules.embedding import bag, look_up
from tauon.privacy.clipped.rules.generic import vmap_rule
from tauon.privacy.clipped.rules.head import Head
from tauon.privacy.clipped.rules.linear import linear
from tauon.privacy.clipped.tensor import in_parts, on_part

KINDS = 64
"""Maximum number of cached batch shapes."""

__all__ = ["Tapped", "plain_again", "recorded_class"]


@cache
def recorded_class(kind: type[nn.Module], leaves: tuple[str, ...], run: Callable[..., Any] | None, root: bool) -> type[nn.Module]:
    """A subclass of `kind` whose parameters `leaves` are tapped and whose `forward` is `run`."""
    body: dict[str, Any] = {leaf: _reader(leaf) for leaf in leaves}
    body["__module__"] = kind.__module__
    if run is not None:

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if in_parts(self._parameters.get("weight")):
                return on_part(run, self, self.__dict__["_clipped"], *args, **kwargs)
            return run(self, self.__dict__["_clipped"], *args, **kwargs)

        body["forward"] = torch.compiler.disable(forward)
    if root:
        inner = body.get("forward", kind.forward)

        def outermost(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            _begin(self, inner, args, kwargs)
            return inner(self, *args, **kwargs)

        body["forward"] = outermost
    return type(kind.__name__, (kind,), body)


def plain_again(module: nn.Module) -> None:
    """Restore the class of a module."""
    if module.__dict__.pop("_clipped", None) is not None:
        module.__dict__.pop("_clipped_inside", None)
        module.__class__ = type(module).__mro__[1]


def rule_for(module: nn.Module, leaves: tuple[str, ...]) -> Callable[..., Any] | None:
    """The rule of a module; a leaf without a rule gets the generic one; a parent runs normally, with tapped parameters."""
    if not leaves:
        rule = rule_of(module)
        return rule if rule is not None and any(p.requires_grad for p in module.parameters()) else None
    rule = rule_of(module)
    if rule is not None:
        return rule
    return vmap_rule if not any(True for _ in module.children()) else None


def _begin(model: nn.Module, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Record the number of rows. For a new batch shape, first run one row alone, to find layers whose input is shared by all rows."""
    record: Record = model.__dict__["_clipped"]
    if record.calibrating or not torch.is_grad_enabled():
        return
    values = (*args, *kwargs.values())
    first = next((v for v in values if isinstance(v, Tensor) and v.ndim), None)
    if first is None:
        raise RecipeError("the model was called without a tensor, so the number of examples is not known. Pass the batch as a tensor.")
    rows = len(first)
    if record.rows is not None and record.rows != rows:
        raise RecipeError(f"the model was called with {rows} rows after {record.rows} in one recording. Record one microbatch at a time.")
    record.rows, record.calls, record.alone = rows, {}, {}
    if rows == 1:
        return
    kind = tuple(tuple(v.shape[1:]) if isinstance(v, Tensor) else type(v) for v in values)
    if kind in record.known:
        record.alone = record.known[kind]
        return

    def alone(v: Any) -> Any:
        return v[:1] if isinstance(v, Tensor) and v.ndim and len(v) == rows else v

    record.calibrating, record.rows = True, 1
    devices = [first.device] if first.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"), first_row_alone():
            run(model, *(alone(v) for v in args), **{k: alone(v) for k, v in kwargs.items()})
        record.known = {kind: record.alone} if len(record.known) > KINDS else {**record.known, kind: record.alone}
    finally:
        record.calibrating, record.rows = False, rows


def _reader(leaf: str) -> property:
    def read(self: nn.Module) -> Any:
        record: Record = self.__dict__["_clipped"]
        p = self._parameters[leaf]
        if p is None or (is_dtensor(p) and not in_parts(p)):  # FSDP2 restores its own
            return p
        if self.__dict__.get("_clipped_inside"):
            return local_part(p.detach())
        if not torch.is_grad_enabled():
            return p.detach()
        return Tapped.of(local_part(p.detach()), self, leaf, record)

    return property(read)


Step = Callable[[Tensor], Tensor]


class Tapped(Tensor):
    """A trainable weight that is read outside its layer's forward during a recording."""

    plain: Tensor
    layer: nn.Module
    leaf: str
    record: Record
    steps: tuple[Step, ...]

    @staticmethod
    def of(plain: Tensor, layer: nn.Module, leaf: str, record: Record, steps: tuple[Step, ...] = ()) -> Tapped:
        """`plain`: the value after applying `steps` to the weight."""
        found: Tapped = plain.as_subclass(Tapped)
        found.plain, found.layer, found.leaf, found.record, found.steps = plain, layer, leaf, record, steps
        return found

    @property
    def tapped(self) -> Head:
        """For losses: products with this weight, with per-example gradients."""
        if self.steps:
            raise self.refused("a loss, after other operations")
        return Head(self.record, self.layer, self.leaf, self.plain)

    def refused(self, what: str) -> RecipeError:
        """Error for an unsupported use."""
        name = self.record.name(self.layer, self.leaf)
        return RecipeError(
            f"{name} is used by {what}, outside a layer, where its gradient per example is not known. Put it into its own module, write a "
            "rule for the module that has it (docs/adding-a-layer-rule.md), or freeze it."
        )

    def then(self, step: Step) -> Tapped:
        """The weight after a change of shape or of type."""
        return Tapped.of(step(self.plain), self.layer, self.leaf, self.record, (*self.steps, step))

    def spread(self, shape: tuple[int, ...], rows: int) -> Tensor:
        """The weight expanded to `shape` (rows first); its gradient is recorded per unit."""
        record, steps, weight = self.record, self.steps, self.layer._parameters[self.leaf]
        assert weight is not None
        wide = self.plain.reshape(shape).expand(rows, *shape[1:])
        inside = self.plain.shape
        base = weight.detach()

        def done(g: Tensor) -> None:
            each = record.by_unit(g.float(), record.name(self.layer, self.leaf)).sum(1).view(-1, *inside)
            if steps:
                each = _pulled(steps, base, each)
            record.keep(self.layer, self.leaf, each)

        return tap(record, wide, done)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        first = args[0] if args else None
        if name in _QUESTIONS or (name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") in _FIELDS):
            return func(*(_plain(a) for a in args), **{k: _plain(v) for k, v in kwargs.items()})
        if isinstance(first, Tapped) and name in _RESHAPES:
            return first.then(lambda w: func(w, *args[1:], **kwargs))
        if name == "__get__" and isinstance(first, Tapped) and getattr(func.__self__, "__name__", "") in ("T", "mT"):
            return first.then(lambda w: func(w))
        found = _product(name, args, kwargs)
        if found is not None:
            return found
        if isinstance(first, Tapped) and name in ("expand", "repeat"):
            return _expanded(first, func, args[1:])
        if name in _BROADCAST:
            return _broadcast(func, args, kwargs)
        culprit = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tapped))
        raise culprit.refused(name)


_RESHAPES = frozenset(
    ["to", "float", "type_as", "contiguous", "t", "transpose", "unsqueeze", "squeeze", "view", "reshape", "flatten", "permute", "clone",
     "__getitem__"]
)  # fmt: skip
_QUESTIONS = frozenset(["size", "dim", "numel", "__len__", "stride", "is_contiguous", "is_floating_point", "element_size", "__repr__", "data_ptr",
                        "detach", "is_complex", "storage_offset"])  # fmt: skip
_FIELDS = frozenset(["shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "is_cuda", "is_meta", "layout", "is_sparse", "grad_fn", "data",
                     "is_quantized", "is_nested", "is_cpu"])  # fmt: skip
_BROADCAST = frozenset(
    ["add", "sub", "mul", "div", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "rsub",
     "true_divide", "maximum", "minimum", "where", "lerp", "pow", "__pow__"]
)  # fmt: skip


def _plain(x: Any) -> Any:
    return x.plain if isinstance(x, Tapped) else x


def _product(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Linear maps, lookups, bags; None: none of these."""
    if name == "linear":
        x, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        if isinstance(weight, Tapped) and not isinstance(x, Tapped) and not weight.steps:
            if isinstance(bias, Tapped):
                if bias.layer is not weight.layer or bias.leaf != "bias" or weight.leaf != "weight":
                    return weight.tapped.times(x) + bias
                return linear(weight.record, weight.layer, x, weight.plain, bias.plain)
            y = weight.tapped.times(x)
            return y if bias is None else y + bias
    if name in ("matmul", "__matmul__", "mm") and isinstance(args[1], Tapped) and not isinstance(args[0], Tapped):
        x, weight = args[0], args[1]
        if weight.ndim == 2 and x.ndim >= 2:
            return _matmul(x, weight)
    if name in ("embedding", "embedding_bag") and isinstance(args[1], Tapped) and not args[1].steps:
        ids, weight = args[0], args[1]
        more = {k: v for k, v in kwargs.items() if not (v is None or v is False)}  # other than the defaults
        more.pop("norm_type", None)
        if name == "embedding" and len(args) == 2 and set(more) <= {"padding_idx"}:
            return look_up(weight.record, weight.layer, weight.leaf, ids, weight.plain, more.get("padding_idx"))
        each = more.pop("per_sample_weights", None)
        if name == "embedding_bag" and len(args) == 2 and ids.ndim == 2 and more == {"mode": "sum"}:
            return bag(weight.record, weight.layer, weight.leaf, ids, weight.plain, each)
    return None


def _matmul(x: Tensor, weight: Tapped) -> Tensor:
    """X w, with w (I, O) made from the weight by any steps."""
    record, steps, plain = weight.record, weight.steps, weight.plain
    stored = weight.layer._parameters[weight.leaf]
    assert stored is not None
    turned = stored.ndim == 2 and plain.shape == stored.shape[::-1] and plain.data_ptr() == stored.data_ptr() and plain.stride(0) == 1
    if turned:
        return Head(record, weight.layer, weight.leaf, stored.detach()).times(x)
    base, layer, leaf = stored.detach(), weight.layer, weight.leaf

    def done(g: Tensor, x: Tensor) -> None:
        name = record.name(layer, leaf)
        a, b = (record.by_unit(v, name).flatten(1, -2) for v in (x.to(g.dtype), g))
        each = torch.bmm(a.mT, b).float()
        record.keep(layer, leaf, _pulled(steps, base, each) if steps else each)

    return tap(record, x @ plain, done, x)


def _pulled(steps: tuple[Step, ...], base: Tensor, each: Tensor) -> Tensor:
    """Map gradients of the result of `steps` back to the weight, per unit."""

    def made(w: Tensor) -> Tensor:
        for step in steps:
            w = step(w)
        return w

    with torch.enable_grad():
        value, pull = torch.func.vjp(made, base)[:2]
    pulled: Tensor = torch.func.vmap(lambda g: pull(g.to(value.dtype))[0])(each)
    return pulled


def _expanded(weight: Tapped, func: Any, sizes: tuple[Any, ...]) -> Tensor:
    """`expand(rows, ...)` and `repeat(rows, 1, ...)` of a weight: one copy per row."""
    asked = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    rows, ndim = asked[0], weight.ndim
    shape = (1,) * (len(asked) - ndim) + tuple(weight.shape)
    if shape[0] != 1 or weight.record.rows is None or rows % weight.record.rows:
        raise weight.refused(func.__name__)
    out: Tensor = func(weight.spread(shape, rows), -1 if func.__name__ == "expand" else 1, *asked[1:])
    return out


def _broadcast(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An elementwise operation of tensors, rows first, with weights."""
    others = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and not isinstance(a, Tapped) and a.ndim]
    weights = [a for a in (*args, *kwargs.values()) if isinstance(a, Tapped)]
    ndim = max([o.ndim for o in others], default=0)
    rows = max([o.shape[0] for o in others if o.ndim == ndim], default=0)

    def own(a: Any) -> Any:
        if not isinstance(a, Tapped):
            return a
        shape = (1,) * (ndim - a.ndim) + tuple(a.shape)
        batch = a.record.rows
        if len(shape) != ndim or shape[0] != 1 or batch is None or rows % batch:
            raise a.refused(getattr(func, "__name__", "an operation"))
        return a.spread(shape, rows)

    assert weights
    return func(*(own(a) for a in args), **{k: own(v) for k, v in kwargs.items()})
