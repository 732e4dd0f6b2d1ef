"""AdamW whose two moments take a byte a weight: torchao's (Dettmers et al. 2022, arXiv:2110.02861). Extra: `pip install 'tauon[torchao]'`."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.config import register
from tauon.errors import MissingExtra
from tauon.optim.base import Decay, OptimConfig, decay_groups, refuse_pieces

__all__ = ["AdamW8bitConfig"]


@register("adamw8bit")
class AdamW8bitConfig(OptimConfig):
    """AdamW with 8-bit moments, quantised in blocks of 256; tensors below 4,096 weights keep theirs in fp32."""

    default_lr = 3e-4

    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the first and second moment estimates."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    clip_norm: float | None = Field(1.0, gt=0)

    def build(self, model: nn.Module) -> Optimizer:
        refuse_pieces(model, self, "keeps moments in blocks of 256, which pieces of a weight would cut")
        groups = decay_groups(model.named_parameters(), self.peak, self.weight_decay)
        return _optimizer_class()(groups, lr=self.peak, betas=self.betas, eps=self.eps)  # type: ignore[no-any-return]


def _optimizer_class() -> Any:
    try:
        from torchao.optim import AdamW8bit
        from torchao.optim.adam import single_param_adam
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError:
        raise MissingExtra("AdamW with 8-bit moments", "torchao") from None

    class AdamW8(AdamW8bit):  # type: ignore[misc]
        """torchao's, with rates that are numbers; run as it is on a CPU, where compiling each shape takes longer than it saves."""

        def __init__(self, groups: Any, **settings: Any) -> None:
            super().__init__(groups, **settings)
            for group in self.param_groups:
                group["lr"] = float(group["lr"])

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            rates = [g["lr"] for g in self.param_groups]
            for group in self.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)
            try:
                on_cpu = all(p.device.type == "cpu" for g in self.param_groups for p in g["params"])
                return self._eager(closure) if on_cpu else super().step(closure)
            finally:
                for group, lr in zip(self.param_groups, rates, strict=True):
                    group["lr"] = lr

        def _eager(self, closure: Any) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    state = self.state[p]
                    if not state:
                        state["step"] = torch.tensor(0.0)
                        state["exp_avg"] = self._new_buffer(p, True)
                        state["exp_avg_sq"] = self._new_buffer(p, False)
                    state["step"] += 1
                    single_param_adam(
                        p.detach(), p.grad, state["step"], state["exp_avg"], state["exp_avg_sq"], None, group["lr"], *group["betas"],
                        group["weight_decay"], group["eps"], self.is_adamw, False,
                    )  # fmt: skip
            return loss

        def packed(self, state: dict[str, Any]) -> dict[str, Any]:
            """A parameter's state as plain tensors: `optimizer_tensors` asks."""
            plain: dict[str, Any] = {}
            for entry, value in state.items():
                if isinstance(value, OptimState8bit):
                    plain |= {f"{entry}.codes": value.codes, f"{entry}.scale": value.scale}
                else:
                    plain[entry] = value
            return plain

        def unpacked(self, p: Tensor, plain: dict[str, Any]) -> dict[str, Any]:
            """The state that `packed` took apart."""
            state = {entry: value for entry, value in plain.items() if "." not in entry}
            for entry in {e.partition(".")[0] for e in plain if "." in e}:
                fresh = self._new_buffer(p.detach(), entry == "exp_avg")
                fresh.codes.copy_(plain[f"{entry}.codes"])
                fresh.scale.copy_(plain[f"{entry}.scale"])
                state[entry] = fresh
            return state

    AdamW8.__name__ = "AdamW8bit"
    return AdamW8
