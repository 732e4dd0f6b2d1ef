"""Which methods explain a model by default, and why."""

from __future__ import annotations

from tauon.errors import DataError
from tauon.explain.base import Cases, untouched
from tauon.explain.methods.layers import called_modules, default_layer

__all__ = ["auto_methods"]


def auto_methods(cases: Cases) -> dict[str, str]:
    """Return the methods to use for these cases, each with the reason.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> x = torch.ones(1, 3)
    >>> cases = Cases(model, x, lambda x, rows: model(x), torch.tensor([1]), torch.zeros(1, 3), torch.arange(3), (3,), "table")
    >>> list(auto_methods(cases))
    ['integrated_gradients']
    """
    if not cases.differentiable:
        what = "tokens that the model looks up" if cases.kind == "text" else "codes of categories"
        return {"kernel_shap": f"the inputs are {what}, without gradients; Shapley values need outputs only and sum to the answer"}
    found = {}
    if cases.kind in ("image", "audio"):
        layer = _layer(cases)
        if layer is not None:
            found["grad_cam"] = f"the activations of layer {layer} lie over the {cases.kind}: they show where the answer comes from"
    summed = {
        "image": "pixels", "audio": "cells of the spectrogram", "text": "tokens", "series": "steps and columns", "table": "columns",
    }.get(cases.kind, "inputs")  # fmt: skip
    found["integrated_gradients"] = (
        f"the model is differentiable: the values of {summed} sum to the answer, and the error of the sum is known"
    )
    return found


def _layer(cases: Cases) -> str | None:
    with untouched(cases.model):
        try:
            return default_layer(cases, called_modules(cases))
        except DataError:
            return None
