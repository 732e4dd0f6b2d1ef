"""Grad-CAM: equal to Captum's, on every family without help from the user, and clear about layers that cannot be explained."""

from __future__ import annotations

from typing import Any

import captum.attr as captum
import pytest
import torch
from torch import nn

from explain.test_cases import made
from explain.test_methods import image_cases
from tauon.errors import DataError
from tauon.explain import Cases, Work, cases_of
from tauon.explain.methods import grad_cam, grad_cam_plus_plus


def test_the_coarse_map_equals_captum() -> None:
    cases = image_cases(functional=True)
    ours = grad_cam(cases, Work(at_once=2), layer="conv2")
    theirs = captum.LayerGradCam(cases.model, cases.model.conv2).attribute(cases.inputs, target=cases.targets, relu_attributions=True)
    assert ours.coarse is not None
    torch.testing.assert_close(ours.coarse, theirs[:, 0].detach(), rtol=1e-4, atol=1e-7)
    enlarged = captum.LayerAttribution.interpolate(theirs, (8, 8), interpolate_mode="bilinear")
    torch.testing.assert_close(ours.values.view(-1, 8, 8), enlarged[:, 0].detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", [grad_cam, grad_cam_plus_plus])
def test_operations_in_place_behind_the_layer_change_nothing(method: Any) -> None:
    """The ReLU behind conv2 works in place in one model and not in the other."""
    a, b = (method(image_cases(functional=f), Work(), layer="conv2") for f in (True, False))
    torch.testing.assert_close(a.values, b.values)


def test_plus_plus_has_the_weights_of_the_paper() -> None:
    cases = image_cases()
    ours = grad_cam_plus_plus(cases, Work(), layer="conv2")
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[0].clone()

    handle = cases.model.conv2.register_forward_hook(keep)
    score = cases.score(cases.inputs, torch.arange(5))
    handle.remove()
    (g,) = torch.autograd.grad(score.sum(), kept[0])
    activations = kept[0].detach()
    wanted = torch.zeros(5, 4, 4)
    for n in range(5):
        for c in range(6):
            total = activations[n, c].sum()
            alpha = [[float(d**2 / (2 * d**2 + total * d**3)) if d else 0.0 for d in row] for row in g[n, c]]
            wanted[n] += (torch.tensor(alpha) * g[n, c].relu()).sum() * activations[n, c]
    torch.testing.assert_close(ours.coarse, wanted.relu(), rtol=1e-4, atol=1e-7)


COARSE = {"resnet": (2, 2), "vit": (2, 2), "speech": (6,), "conformer": (3,)}


@pytest.mark.parametrize("kind", COARSE)
def test_every_family_has_a_layer_by_default(kind: str) -> None:
    model, task, spec, batch = made(kind)
    cases = cases_of(model, task, spec, batch)
    found = grad_cam(cases, Work())
    assert found.coarse is not None and found.coarse.max() > 0
    assert found.coarse.shape[1:] == COARSE[kind]
    if len(COARSE[kind]) == 1:  # frames: the same for every band
        values = found.values.view(4, *cases.grid)
        assert torch.equal(values[3, :, 0], values[3, :, 1])


def test_patches_lie_where_they_are_cut() -> None:
    """A model of patches whose output is the first number of one patch: the map is above that patch only."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Identity()
            self.body = nn.LayerNorm(16, elementwise_affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.view(len(x), 2, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(len(x), 8, 16)
            tokens = torch.cat([torch.zeros(len(x), 1, 16), tokens], 1)
            return self.norm(self.body(tokens))[:, 1 + 6, :1]  # row 1, column 2

    model = Patches().eval()
    x = torch.rand(2, 1, 8, 16, generator=torch.Generator().manual_seed(0))
    x[:, :, 4, 8] = 5
    cases = Cases(
        model, x, lambda x, rows: model(x), torch.zeros(2, dtype=torch.int64), x * 0, torch.arange(128).view(1, 8, 16), (8, 16), "image"
    )
    found = grad_cam(cases, Work(), layer="norm")
    assert found.coarse is not None and found.coarse.shape == (2, 2, 4)
    assert found.coarse.flatten(1).argmax(1).tolist() == [6, 6]  # the bright pixel is the first of the patch in row 1, column 2
    assert torch.equal(grad_cam(cases, Work(), layer="body").values, found.values)


def test_a_layer_without_a_known_type_takes_its_side_from_those_before_it() -> None:
    model, task, spec, batch = made("conformer")
    cases = cases_of(model, task, spec, batch)
    for layer in ("embed", "blocks.0.convolution", "blocks.0.convolution.depthwise", "subsample.1"):
        found = grad_cam(cases, Work(), layer=layer)
        assert found.coarse is not None and found.coarse.shape[1] == (cases.grid[0] + 3) // 4


def test_a_layer_that_cannot_be_explained_is_refused_with_the_nearest_that_can() -> None:
    model, task, spec, batch = made("resnet")
    cases = cases_of(model, task, spec, batch)
    with pytest.raises(DataError, match=r"never calls.*'layer3\.2'"):
        grad_cam(cases, Work(), layer="layer3")
    with pytest.raises(DataError, match=r"did you mean 'layer3\.2'"):
        grad_cam(cases, Work(), layer="layer3.3")
    with pytest.raises(DataError, match=r"no axes of the one fit"):
        grad_cam(cases, Work(), layer="fc")
    twice = image_cases()
    with pytest.raises(DataError, match="called 2 times"):
        grad_cam(twice, Work(), layer="relu")


def test_activations_that_can_be_read_in_two_ways_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.same(x.expand(-1, 8, -1, -1)).sum((1, 2, 3)).unsqueeze(1)

    model, x = Odd(), torch.rand(2, 1, 8, 8)
    cases = Cases(
        model, x, lambda x, rows: model(x), torch.zeros(2, dtype=torch.int64), x * 0, torch.arange(64).view(1, 8, 8), (8, 8), "image"
    )
    with pytest.raises(DataError, match="channels='first'"):
        grad_cam(cases, Work(), layer="same")
    assert grad_cam(cases, Work(), layer="same", channels="first").coarse is not None
