"""The class behind `adamw8bit`. Imported where it is used: it needs torchao."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao.optim import AdamW8bit as TorchaoAdamW8bit
from torchao.optim.adam import single_param_adam
from torchao.optim.subclass_8bit import OptimState8bit

__all__ = ["AdamW8bit"]


class AdamW8bit(TorchaoAdamW8bit):  # type: ignore[misc]
    """torchao's, with float learning rates; not compiled on a CPU, where compiling each shape takes longer than it saves."""

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
        """Inverse of `packed`."""
        state = {entry: value for entry, value in plain.items() if "." not in entry}
        for entry in {e.partition(".")[0] for e in plain if "." in e}:
            fresh = self._new_buffer(p.detach(), entry == "exp_avg")
            fresh.codes.copy_(plain[f"{entry}.codes"])
            fresh.scale.copy_(plain[f"{entry}.scale"])
            state[entry] = fresh
        return state
