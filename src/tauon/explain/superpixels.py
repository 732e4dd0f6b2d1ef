"""Regions of an image that follow its edges: k-means over colour and place (SLIC; Achanta et al. 2012, 10.1109/TPAMI.2012.120), connected.

Squares cut objects apart. Regions of like colour are what a person would name, and a method that hides regions then hides things. Every image has its
own regions, so images are explained one after another (`explain_by_superpixel`).

Shapes as in `base.py`; H, W an image's size, K clusters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.explain.base import Attribution, Cases, Method, Work
from tauon.explain.parts.maps import part_of

__all__ = ["explain_by_superpixel", "superpixels"]


def superpixels(images_NCHW: Tensor, cells: tuple[int, int] = (7, 7), *, compactness: float = 0.5, iterations: int = 10) -> Tensor:
    """Return the region of each pixel, NF (int64): numbered from 0, connected, at most `cells[0] * cells[1]` an image.

    Args:
        images_NCHW: images, in any scale.
        cells: rows and columns of the grid of first centres.
        compactness: weight of the distance in place (in cells) against that in colour (in standard deviations of the image); squares for large values.
        iterations: of k-means.

    >>> image = torch.zeros(1, 1, 4, 4)
    >>> image[..., 3:] = 1
    >>> superpixels(image, (1, 2), compactness=0.01).view(4, 4)[0].tolist()
    [0, 0, 0, 1]
    """
    if images_NCHW.ndim != 4 or not all(1 <= c <= s for c, s in zip(cells, images_NCHW.shape[2:], strict=True)):
        raise DataError(f"images {tuple(images_NCHW.shape)}, cells {cells}: expected NCHW, and no more cells than pixels along an axis")
    found = [_connected(_clusters(image, cells, compactness, iterations)) for image in images_NCHW.detach().float()]
    return torch.stack(found) if found else torch.zeros(0, images_NCHW[0:0, 0].flatten(1).shape[1], dtype=torch.int64)


def _clusters(image_CHW: Tensor, cells: tuple[int, int], compactness: float, iterations: int) -> Tensor:
    C, H, W = image_CHW.shape
    colour_PC = image_CHW.flatten(1).T / (image_CHW.std() + 1e-12) / C**0.5
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    step = torch.tensor([H / cells[0], W / cells[1]])
    place_P2 = torch.stack([rows.flatten(), columns.flatten()], 1).to(colour_PC) / step.to(colour_PC)  # in cells
    first = torch.cartesian_prod(torch.arange(cells[0]), torch.arange(cells[1])).view(-1, 2).to(colour_PC) + 0.5
    first_place = first - 0.5 / step.to(colour_PC)  # pixel numbers begin at their corner
    nearest = torch.cdist(place_P2, first_place).argmin(1)
    for _ in range(iterations):
        centers = [_means(v, nearest, len(first)) for v in (colour_PC, place_P2)]
        apart = torch.cdist(place_P2, centers[1])
        cost = torch.cdist(colour_PC, centers[0]) ** 2 + compactness * apart**2
        cost = cost.masked_fill((place_P2.unsqueeze(1) - centers[1]).abs().amax(2) > 1.5, torch.inf)  # a center is of its surroundings only
        own = cost.gather(1, nearest.unsqueeze(1)).squeeze(1)
        best = cost.min(1)
        moved = torch.where(best.values < own, best.indices, nearest)
        if torch.equal(moved, nearest):
            break
        nearest = moved
    return nearest.view(H, W)


def _means(values_PD: Tensor, cluster_P: Tensor, K: int) -> Tensor:
    """Return the mean of each cluster, KD; far away for an empty one."""
    size = torch.zeros(K, device=values_PD.device).index_add_(0, cluster_P, torch.ones(len(values_PD), device=values_PD.device))
    total = torch.zeros(K, values_PD.shape[1], device=values_PD.device).index_add_(0, cluster_P, values_PD)
    return torch.where(size.unsqueeze(1) > 0, total / size.clamp(min=1).unsqueeze(1), 1e6)


def _connected(cluster_HW: Tensor) -> Tensor:
    """Keep the largest connected part of each cluster, give the rest to neighbours, and number what is left: F."""
    H, W = cluster_HW.shape
    part = torch.arange(H * W, device=cluster_HW.device).view(H, W)
    while True:  # the smallest number of a pixel in the same connected part
        joined = part.clone()
        for ours, theirs in _neighbours():
            same = cluster_HW[ours] == cluster_HW[theirs]
            joined[ours] = torch.where(same, torch.minimum(joined[ours], joined[theirs]), joined[ours])
        if torch.equal(joined, part):
            break
        part = joined
    sizes = torch.bincount(part.flatten(), minlength=H * W)
    clusters = cluster_HW.flatten()
    largest: dict[int, int] = {}
    for name in part.unique().tolist():
        cluster = int(clusters[name])
        if cluster not in largest or sizes[name] > sizes[largest[cluster]]:
            largest[cluster] = name
    kept = torch.isin(part, torch.tensor(list(largest.values()), device=part.device))
    region = torch.where(kept, part, -1)
    while (region < 0).any():
        for ours, theirs in _neighbours():
            region[ours] = torch.where((region[ours] < 0), region[theirs], region[ours])
    numbered: Tensor = region.flatten().unique(return_inverse=True)[1]
    return numbered


def _neighbours() -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return (pixels that have a neighbour, their neighbours) for each of four directions."""
    every, head, tail = slice(None), slice(None, -1), slice(1, None)
    return [((head, every), (tail, every)), ((tail, every), (head, every)), ((every, head), (every, tail)), ((every, tail), (every, head))]


def explain_by_superpixel(method: Method, cases: Cases, work: Work, regions_NF: Tensor | None = None, **options: Any) -> Attribution:
    """Run a method that hides regions (occlusion, kernel_shap) with the superpixels of each image.

    Args:
        method: of `METHODS`.
        cases: images.
        work: how to compute.
        regions_NF: of `superpixels`; None: computed here, from as many cells as the cases have regions, at most 49.
        options: of the method.

    Raises:
        DataError: the cases are not images, or the method does not hide regions.
    """
    if cases.kind != "image" or cases.inputs.ndim != 4:
        raise DataError(f"superpixels need images, and this is {cases.kind}")
    if method.needs != "outputs":
        raise DataError(f"{method.name} hides no regions, so superpixels change nothing. Use occlusion or kernel_shap.")
    if regions_NF is None:
        side = min(7, *cases.grid, max(1, round((int(cases.region_of.max()) + 1) ** 0.5)))
        regions_NF = superpixels(cases.inputs, (side, side))
    found = []
    for i in range(len(cases)):
        one = replace(part_of(cases, slice(i, i + 1)), regions=regions_NF[i])
        found.append(method.run(one, replace(work, progress=None), **options))
        if work.progress is not None:
            work.progress(i + 1, len(cases))
    if not found:
        return method.run(cases, work, **options)
    facts = {name: torch.cat([a.facts[name] for a in found]) for name in found[0].facts}
    counts = (regions_NF.amax(1) + 1).tolist()
    values, scores = (torch.cat(parts) for parts in ([a.values for a in found], [a.scores for a in found]))
    errors = None if found[0].errors is None else torch.cat([a.errors for a in found if a.errors is not None])
    return replace(found[0], values=values, scores=scores, errors=errors, facts=facts, note=f"{min(counts)} to {max(counts)} superpixels")
