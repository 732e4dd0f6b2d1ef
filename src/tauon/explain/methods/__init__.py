"""Attribution methods: importing this package registers them in `tauon.explain.base.METHODS`."""

from tauon.explain.methods.gradients import gradient_times_input, saliency

__all__ = ["gradient_times_input", "saliency"]
