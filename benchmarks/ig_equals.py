"""Largest difference from Captum of saliency, integrated gradients (fixed steps), occlusion and Grad-CAM, on the published ResNet-20.

16 CIFAR images, their predicted classes, the same numbers of steps, the same windows. Grad-CAM at `layer3.2`, before it is enlarged. Each difference
is absolute; the largest value of the attribution is printed beside it.

    python -m benchmarks.ig_equals                   needs captum
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch

from benchmarks import _resnet

FLOOR = 1e-5


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(ours, Captum's) by method."""
    import captum.attr as captum

    from tauon.explain import METHODS, Work

    cases = _resnet.cases(16)
    model, x, y, work = cases.model, cases.inputs, cases.targets, Work(at_once=64)
    ours: dict[str, Any] = {
        "saliency": METHODS["saliency"].run(cases, work).raw,
        "integrated_gradients": METHODS["integrated_gradients"].run(cases, work, steps=50).raw,
        "integrated_gradients, trapezoid": METHODS["integrated_gradients"].run(cases, work, steps=50, quadrature="riemann_trapezoid").raw,
        "occlusion": METHODS["occlusion"].run(cases, work, window=(8, 8), stride=(4, 4)).values.view(-1, 32, 32),
        "grad_cam": METHODS["grad_cam"].run(cases, work, layer="layer3.2").coarse,
    }
    integrated = captum.IntegratedGradients(model)
    theirs = {
        "saliency": captum.Saliency(model).attribute(x.clone().requires_grad_(), target=y),
        "integrated_gradients": integrated.attribute(x, 0, target=y, n_steps=50, internal_batch_size=64),
        "integrated_gradients, trapezoid": integrated.attribute(
            x, 0, target=y, n_steps=50, method="riemann_trapezoid", internal_batch_size=64
        ),
        "occlusion": captum.Occlusion(model).attribute(x, (3, 8, 8), (3, 4, 4), baselines=0, target=y)[:, 0],
        "grad_cam": captum.LayerGradCam(model, model.layer3[2]).attribute(x, target=y, relu_attributions=True)[:, 0],
    }
    return {name: (ours[name].detach(), theirs[name].detach()) for name in ours}


def main() -> None:
    warnings.filterwarnings("ignore")
    differences = {}
    for name, (ours, theirs) in pairs().items():
        differences[name] = float((ours - theirs).abs().max())
        print(f"{name}: largest difference {differences[name]:.1e}, largest value {float(theirs.abs().max()):.3g}")
    worst = max(differences.values())
    result = {"claim": "ig_equals", "ours": worst, "peer": FLOOR, "ratio": round(FLOOR / max(worst, 1e-12), 2), "floor": 1.0}
    print(json.dumps(result | {"unit": "largest absolute difference", "differences": differences}))


if __name__ == "__main__":
    main()
