"""Superpixels are connected and follow edges; methods that hide regions use them."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from tauon.errors import DataError
from tauon.explain import METHODS, Work
from tauon.explain.checks import rank_correlation
from tauon.explain.superpixels import explain_by_superpixel, superpixels
from tauon.testing import explainer_cases


@pytest.mark.parametrize("cells", [(1, 1), (3, 4), (8, 8), (12, 16)])
def test_regions_are_connected_numbered_and_cover_the_image(cells: tuple[int, int]) -> None:
    images = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    for regions in superpixels(images, cells).view(3, 12, 16):
        assert sorted(regions.unique().tolist()) == list(range(int(regions.max()) + 1))
        assert int(regions.max()) < cells[0] * cells[1]
        for r in range(int(regions.max()) + 1):
            assert ndimage.label((regions == r).numpy())[1] == 1


def test_regions_follow_the_edges_of_a_shape() -> None:
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((rows - 15) ** 2 + (columns - 17) ** 2 < 81).float()
    image = (disc + 0.05 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).expand(1, 3, 32, 32)
    regions = superpixels(image, (6, 6))[0]
    squares = (rows // 6 * 6 + columns // 6).flatten()

    def mixed(of: torch.Tensor) -> float:
        """Share of pixels on the wrong side of their region's majority."""
        inside = [disc.flatten()[of == r].mean() for r in of.unique()]
        return sum(float(min(m, 1 - m)) * float((of == r).sum()) for m, r in zip(inside, of.unique(), strict=True)) / 1024

    assert mixed(regions) < 0.01 < mixed(squares)


def test_large_compactness_gives_a_grid_and_a_constant_image_is_cut_too() -> None:
    grid = (torch.arange(8).view(8, 1) // 4 * 2 + torch.arange(8) // 4).flatten()
    for image in (torch.rand(1, 1, 8, 8), torch.ones(1, 1, 8, 8)):
        assert torch.equal(superpixels(image, (2, 2), compactness=1e4)[0], grid)


@pytest.mark.parametrize("name", ["occlusion", "kernel_shap"])
def test_methods_hide_superpixels(name: str) -> None:
    cases = explainer_cases()["image"]
    regions = superpixels(cases.inputs, (3, 3))
    found = explain_by_superpixel(METHODS[name], cases, Work(at_once=16), regions)
    assert found.values.shape == (4, 64) and "superpixels" in found.note
    for values, of in zip(found.values, regions, strict=True):
        for r in of.unique():
            assert values[of == r].std(correction=0) < 1e-6
    torch.testing.assert_close(found.scores, METHODS[name].run(cases, Work()).scores)
    if name == "kernel_shap":
        difference = found.scores - cases.score(cases.baseline(torch.arange(4)), torch.arange(4)).detach()
        torch.testing.assert_close(found.values.sum(1), difference, rtol=1e-3, atol=1e-4)
    assert (rank_correlation(found.values, explain_by_superpixel(METHODS[name], cases, Work()).values) > -1).all()


def test_what_has_no_superpixels_is_refused() -> None:
    cases = explainer_cases()
    with pytest.raises(DataError, match="need images"):
        explain_by_superpixel(METHODS["occlusion"], cases["table"], Work())
    with pytest.raises(DataError, match="hides no regions"):
        explain_by_superpixel(METHODS["saliency"], cases["image"], Work())
    with pytest.raises(DataError, match="no more cells than pixels"):
        superpixels(torch.zeros(1, 1, 4, 4), (5, 4))
