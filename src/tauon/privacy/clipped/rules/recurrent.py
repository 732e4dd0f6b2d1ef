"""Recurrent layers: torch's LSTM, GRU and RNN, any number of layers, both directions, with projections.

torch's fused kernels do not expose the gradient of the gates, so the steps run one by one. The gradient of the gates' input at all steps is
recorded once, at W_ih x: with x it gives W_ih's gradient, with the previous states W_hh's. A GRU's candidate has its reset gate in between.
Shapes: N rows, T steps, I inputs, H state, Z gates x H.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.privacy.clipped.record import Record, tap
from tauon.privacy.clipped.rules.base import register_rule, weight_of

__all__: list[str] = []


@register_rule(nn.LSTM, nn.GRU, nn.RNN, forward=True)
def run(layer: Any, record: Record, input: Tensor, hx: Any = None) -> Any:
    """See the module docstring."""
    if not isinstance(input, Tensor) or input.ndim != 3:
        raise RecipeError(
            f"{type(layer).__name__} needs a batch of padded sequences (rows, steps, inputs) in private training. Pad them, and mask the loss."
        )
    x = input if layer.batch_first else input.transpose(0, 1)
    both, cell = 2 if layer.bidirectional else 1, layer.mode == "LSTM"
    first_h, first_c = hx if cell and hx is not None else (hx, None)
    last_h, last_c = [], []
    for i in range(layer.num_layers):
        outs = []
        for d in range(both):
            at = i * both + d
            h = x.new_zeros(len(x), layer.proj_size or layer.hidden_size) if first_h is None else first_h[at]
            c = x.new_zeros(len(x), layer.hidden_size) if first_c is None else first_c[at]
            out, h, c = _direction(layer, record, f"l{i}" + ("_reverse" if d else ""), x, h, c, reverse=bool(d))
            outs.append(out)
            last_h.append(h)
            last_c.append(c)
        x = outs[0] if both == 1 else torch.cat(outs, 2)
        if i < layer.num_layers - 1:
            x = F.dropout(x, layer.dropout, layer.training)
    out = x if layer.batch_first else x.transpose(0, 1)
    h_n = torch.stack(last_h)
    return (out, (h_n, torch.stack(last_c))) if cell else (out, h_n)


def _direction(layer: Any, record: Record, at: str, x_NTI: Tensor, h: Tensor, c: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(states of all steps, the last state, the last cell) of one layer in one direction."""
    w_ih, w_hh, b_ih, b_hh, w_hr = (weight_of(layer, f"{n}_{at}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"))
    gru = layer.mode == "GRU"
    T = x_NTI.shape[1]
    before: list[Tensor] = []
    resets: list[Tensor] = []
    inside: list[Tensor] = []
    outside: list[Tensor | None] = [None] * T

    def wants(leaf: str) -> bool:
        return record.wants(layer, f"{leaf}_{at}")

    def entered(g_NTZ: Tensor, x_NTI: Tensor) -> None:
        """Record the terms; called last for this direction, when the gradients of all steps have arrived."""
        states_NTH = torch.stack(before, 1)
        of_state = g_NTZ
        if gru:
            H = g_NTZ.shape[2] // 3
            of_state = torch.cat([g_NTZ[..., : 2 * H], g_NTZ[..., 2 * H :] * torch.stack(resets, 1)], 2)
        for leaf, a, g in (("weight_ih", x_NTI, g_NTZ), ("weight_hh", states_NTH, of_state)):
            if wants(leaf):
                record.keep_outer(layer, f"{leaf}_{at}", a.to(g.dtype), g)
        for leaf, g in (("bias_ih", g_NTZ), ("bias_hh", of_state)):
            if wants(leaf):
                record.keep_sum(layer, f"{leaf}_{at}", g)
        if wants("weight_hr"):
            g_hr = torch.stack([torch.zeros_like(h) if g is None else g for g in outside], 1)
            record.keep_outer(layer, f"weight_hr_{at}", torch.stack(inside, 1).to(g_hr.dtype), g_hr)

    x_NTI = x_NTI.flip(1) if reverse else x_NTI
    z_NTZ = tap(record, F.linear(x_NTI, w_ih, b_ih), entered, x_NTI)
    if not gru and b_hh is not None:
        z_NTZ = z_NTZ + b_hh
    steps = []
    for t in range(T):
        before.append(h.detach())
        z = z_NTZ[:, t]
        if layer.mode == "LSTM":
            i, f, n, o = (z + F.linear(h, w_hh)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(n)
            h = torch.sigmoid(o) * torch.tanh(c)
            if w_hr is not None:
                inside.append(h.detach())
                h = tap(record, F.linear(h, w_hr), lambda g, t=t: outside.__setitem__(t, g))
        elif gru:
            r, u, n = z.chunk(3, 1)
            hr, hu, hn = F.linear(h, w_hh, b_hh).chunk(3, 1)
            r = torch.sigmoid(r + hr)
            resets.append(r.detach())
            u = torch.sigmoid(u + hu)
            n = torch.tanh(n + r * hn)
            h = n + u * (h - n)
        else:
            act = torch.tanh if layer.nonlinearity == "tanh" else torch.relu
            h = act(z + F.linear(h, w_hh))
        steps.append(h)
    out = torch.stack(steps, 1)
    return (out.flip(1) if reverse else out), h, c
