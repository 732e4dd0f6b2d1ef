"""Attribution methods: importing this package registers them in `tauon.explain.base.METHODS`."""

from typing import Any

from tauon.explain.methods.gradients import gradient_times_input, saliency


def auto_methods(cases: Any) -> dict[str, str]:
    """Return the methods that suit the cases, each with the reason."""
    why = "one gradient of the explained output"
    return {"saliency": why, "gradient_times_input": why} if cases.differentiable else {}


__all__ = ["auto_methods", "gradient_times_input", "saliency"]
