"""Attribution methods: importing this package registers them in `tauon.explain.base.METHODS`."""

from tauon.explain.methods.attention import attention_rollout, attention_weights, explicit_attention, rollout
from tauon.explain.methods.baselines import blurred
from tauon.explain.methods.cam import grad_cam, grad_cam_plus_plus
from tauon.explain.methods.choice import auto_methods
from tauon.explain.methods.gradients import gradient_times_input, saliency
from tauon.explain.methods.integrated import integrated_gradients
from tauon.explain.methods.regions import occlusion, windows_of_grid
from tauon.explain.methods.shapley import kernel_shap
from tauon.explain.methods.smooth import gradient_shap, smoothgrad

__all__ = [
    "attention_rollout",
    "attention_weights",
    "auto_methods",
    "blurred",
    "explicit_attention",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_shap",
    "gradient_times_input",
    "integrated_gradients",
    "kernel_shap",
    "occlusion",
    "rollout",
    "saliency",
    "smoothgrad",
    "windows_of_grid",
]
