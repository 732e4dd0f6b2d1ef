"""Which attribution methods suit a model, and why."""

from __future__ import annotations

from tauon.explain.base import Cases

__all__ = ["auto_methods"]


def auto_methods(cases: Cases) -> dict[str, str]:
    """Return the methods that suit the cases, each with the reason."""
    if not cases.differentiable:
        return {"occlusion": "the inputs are codes, which have no gradient"}
    found = {"integrated_gradients": "the outputs have a gradient, and its sum can be checked"}
    if cases.kind in ("image", "audio"):
        found = {"grad_cam": "the last layers of a network of images or sounds keep their places"} | found
    return found | {"occlusion": "needs no gradient: a second opinion"}
