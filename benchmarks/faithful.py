"""Do attribution maps of the published CIFAR ResNet-20 mark what its answers rest on? Deletion and insertion against random orders.

Definition. Images: the first of the test set that the model answers rightly (an answer that is wrong has no object to find). Measured: the
probability of that answer. Deletion: 4x4-pixel regions (64) are replaced by the fill, most important first; the area under the probability, over the
area of random orders of the same regions. Lower is better. Insertion: from an image of fill alone, pixels (1,024) are shown, most important first;
the area over that of random orders. Higher is better. The order of regions is by the mean of a map in each, that of pixels by the map itself (a
method of regions orders pixels by their region). Areas are means over all images, curves of 16 equal parts, random orders of 5 draws (3 where
`--quick`). The fill is the mean colour of the training set, which is also every method's own "absent" unless its name says blurred (a Gaussian
of 4 pixels). The same table with the blurred image and with black as the fill stands beside it: no method is best under every fill.

The peer is the random order itself, as in the papers (Petsiuk et al. 2018, arXiv:1806.07421). Floors: the best method's deletion at most 0.6 of
random; the best method's insertion at least 2.5 times random, both with the mean colour.

    python -m benchmarks.faithful [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks._resnet import images, resnet20
from tauon.explain import METHODS, Attribution, Cases, Work, cases_of
from tauon.explain.checks import faithfulness, hide_at_random
from tauon.explain.inputs import regions_of_grid
from tauon.explain.methods import blurred
from tauon.types import Batch

FLOORS = {"deletion": 0.6, "insertion": 2.5}
BLUR = 4.0
"""Standard deviation in pixels."""
STEPS = 16


def right_answers(n: int) -> Cases:
    """Cases of the first n test images that the model answers rightly; regions of 4x4 pixels, the mean colour (0) as the baseline."""
    model, spec = resnet20()
    x, y = images(2 * n)
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten()[:n]
    assert len(right) == n
    x, y = x[right].contiguous(), y[right]
    cases = cases_of(model, "arrays", spec, Batch(x, y, torch.ones(n)))
    assert torch.equal(cases.targets, y)
    return replace(cases, regions=regions_of_grid((32, 32), (8, 8)))


def maps_of(cases: Cases, soft: Cases, work: Work) -> dict[str, Attribution]:
    """Every method's maps. `soft`: the cases with a blurred baseline."""
    runs: dict[str, tuple[str, Cases, dict[str, Any]]] = {
        "KernelSHAP": ("kernel_shap", cases, {"evaluations": 512}),
        "KernelSHAP, blurred": ("kernel_shap", soft, {"evaluations": 512}),
        "integrated gradients": ("integrated_gradients", cases, {}),
        "integrated gradients, blurred": ("integrated_gradients", soft, {}),
        "Grad-CAM": ("grad_cam", cases, {}),
        "Grad-CAM++": ("grad_cam_plus_plus", cases, {}),
        "occlusion": ("occlusion", cases, {}),
        "saliency": ("saliency", cases, {}),
        "gradient x input": ("gradient_times_input", cases, {}),
        "SmoothGrad": ("smoothgrad", cases, {"samples": 25}),
    }
    found = {}
    for label, (name, of, options) in runs.items():
        start = time.perf_counter()
        found[label] = METHODS[name].run(of, work, **options)
        print(f"{label}: {time.perf_counter() - start:.1f} s  {found[label].note}", flush=True)
    return found


def table(cases: Cases, maps: dict[str, Attribution], fill: Any, name: str, orders: int, work: Work) -> dict[str, dict[str, float]]:
    """Ratios of every method under one fill, printed."""
    pixels = replace(cases, regions=None)
    by_region = hide_at_random(cases, work, steps=STEPS, orders=orders, fill=fill, fill_name=name)
    by_pixel = hide_at_random(pixels, work, steps=STEPS, orders=orders, fill=fill, fill_name=name)
    areas = [float(a.mean()) for a in (by_region.random[0], by_region.random[1], by_pixel.random[0], by_pixel.random[1])]
    print(
        f"\nfill: {name}. Areas of random orders: regions {areas[0]:.3f} deletion, {areas[1]:.3f} insertion; pixels {areas[2]:.3f}, {areas[3]:.3f}"
    )
    print(f"{'':<31}{'4x4 regions':>23}{'pixels':>23}\n{'':<31}" + f"{'deletion':>12}{'insertion':>11}" * 2)
    found = {}
    for label, attribution in maps.items():
        region, pixel = faithfulness(cases, attribution, work, by_region), faithfulness(pixels, attribution, work, by_pixel)
        row = {
            "deletion": region.deletion_ratio, "region_insertion": region.insertion_ratio,
            "pixel_deletion": pixel.deletion_ratio, "insertion": pixel.insertion_ratio,
        }  # fmt: skip
        print(
            f"{label:<31}" + "".join(f"{value:>{width}.2f}" for value, width in zip(row.values(), (12, 11, 12, 11), strict=True)),
            flush=True,
        )
        found[label] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 images, one fill and 3 random orders, instead of 48, 3 and 5")
    parser.add_argument("--images", type=int, help="number of images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    n = args.images or (24 if args.quick else 48)
    cases, work = right_answers(n), Work(at_once=128)
    soft = replace(cases, baselines=blurred(cases.inputs, BLUR))
    black = (-torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    maps = maps_of(cases, soft, work)
    fills: dict[str, Any] = {"mean colour": None, "blurred image": "blurred", "black": black}
    tables = {}
    for name, fill in fills.items():
        if name == "mean colour" or not args.quick:
            tables[name] = table(cases, maps, fill, name, 3 if args.quick else 5, work)
    main_table = tables["mean colour"]
    best = min(main_table, key=lambda m: main_table[m]["deletion"]), max(main_table, key=lambda m: main_table[m]["insertion"])
    deletion, insertion = main_table[best[0]]["deletion"], main_table[best[1]]["insertion"]
    result: dict[str, Any] = {"claim": "faithful", "ours": round(deletion, 3), "peer": 1.0}
    result |= {"ratio": round(min(FLOORS["deletion"] / deletion, insertion / FLOORS["insertion"]), 3), "floor": 1.0}
    result |= {"unit": "area of deletion, share of random orders; ratio is the lesser of floor / deletion and insertion / floor"}
    result |= {"deletion": [best[0], round(deletion, 3)], "insertion": [best[1], round(insertion, 3)], "floors": FLOORS, "images": n}
    result |= {"fill": "mean colour", "regions": "4x4 pixels (64) for deletion, pixels (1,024) for insertion"}
    result |= {"tables": {fill: {m: {k: round(v, 3) for k, v in row.items()} for m, row in t.items()} for fill, t in tables.items()}}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
