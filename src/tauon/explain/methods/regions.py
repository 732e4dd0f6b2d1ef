"""Methods that hide parts of the input and need outputs only: occlusion (Zeiler & Fergus 2014, arXiv:1311.2901).

Shapes as in `base.py`; R regions or windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.explain.base import Attribution, Cases, Work, attribution_method, scores_of, untouched

__all__ = ["occlusion", "windows_of_grid"]


@attribution_method("occlusion", "Occlusion", needs="outputs", source="arXiv:1311.2901")
def occlusion(cases: Cases, work: Work, *, window: Sequence[int] | None = None, stride: Sequence[int] | None = None) -> Attribution:
    """Return how much the output falls when a region, or a window, shows its baseline instead of the input.

    Every feature of a region gets the fall of the whole region. With windows, a feature gets the mean over the windows that cover it
    (as in Captum's `Occlusion`).

    Args:
        cases: the examples.
        work: how to compute.
        window: size of a window along each axis of the grid; None: the regions of the cases.
        stride: distance between windows along each axis; None: the size of a window.

    >>> from torch import nn
    >>> model = nn.Linear(3, 2)
    >>> x = torch.ones(1, 3)
    >>> cases = Cases(model, x, lambda x, rows: model(x), torch.tensor([1]), torch.zeros(1, 3), torch.arange(3), (3,))
    >>> torch.allclose(occlusion(cases, Work()).values[0], model.weight[1], atol=1e-6)
    True
    """
    device, n = cases.inputs.device, len(cases)
    if window is None:
        regions = cases.region_of.to(device)
        hides_RF = regions == torch.arange(int(regions.max()) + 1, device=device).unsqueeze(1)
    else:
        hides_RF = windows_of_grid(cases.grid, window, stride).to(device)
    with untouched(cases.model):
        scores = scores_of(cases, cases.inputs, torch.arange(n, device=device), replace(work, progress=None))
        pairs = _pairs_that_exist(cases, hides_RF)
        fall = torch.zeros(n, len(hides_RF), device=device)
        with torch.no_grad():
            for part in work.chunks(len(pairs)):
                rows, region = pairs[part].unbind(1)
                fall[rows, region] = scores[rows] - cases.score(cases.masked(~hides_RF[region], rows), rows).float()
    values = fall @ hides_RF.float() / hides_RF.sum(0).clamp(min=1)
    if cases.valid is not None:
        values = values * cases.valid
    what = f"{len(hides_RF)} {'regions' if window is None else 'windows'}"
    return Attribution("occlusion", values, scores, note=f"{what}, {len(pairs)} evaluations")


def _pairs_that_exist(cases: Cases, hides_RF: Tensor) -> Tensor:
    """Return (example, region) of every region that has a feature in the example, int64, P x 2."""
    n, device = len(cases), hides_RF.device
    if cases.valid is None:
        return torch.cartesian_prod(torch.arange(n, device=device), torch.arange(len(hides_RF), device=device)).view(-1, 2)
    return (cases.valid.to(device).float() @ hides_RF.float().T > 0).nonzero()


def windows_of_grid(grid: tuple[int, ...], window: Sequence[int], stride: Sequence[int] | None = None) -> Tensor:
    """Return the features that each window covers, RF (bool). The last window along an axis may reach beyond the edge.

    Raises:
        DataError: a window that does not fit, or a stride that leaves features uncovered.

    >>> windows_of_grid((5,), (2,)).int().tolist()
    [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    """
    step = tuple(window if stride is None else stride)
    if len(window) != len(grid) or len(step) != len(grid) or not all(1 <= w <= g for w, g in zip(window, grid, strict=False)):
        raise DataError(f"window {tuple(window)}, stride {step}: one number from 1 to the size is needed for each axis of {grid}")
    if any(not 1 <= s <= w for s, w in zip(step, window, strict=True)):
        raise DataError(f"stride {step} is not between 1 and the window {tuple(window)}: some features would never be hidden")
    along = []
    for size, w, s in zip(grid, window, step, strict=True):
        starts = range(0, -(-(size - w) // s) * s + 1, s)
        places = torch.arange(size)
        along.append([(places >= a) & (places < a + w) for a in starts])
    masks = []
    for chosen in itertools.product(*along):
        mask = chosen[0]
        for axis in chosen[1:]:
            mask = mask.unsqueeze(-1) & axis
        masks.append(mask.flatten())
    return torch.stack(masks)
