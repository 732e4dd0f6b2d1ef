"""Activations: for each example a map a layer, and for the model the units that are dead or saturated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.explain.drawing.shapes import picture, sequential
from tauon.report.page import table
from tauon.report.records import number
from tauon.report.text import escape, figure

__all__ = ["activations_html", "layers_html"]

Arrays = Mapping[str, NDArray[Any]]
_MOST = 60
"""Layers in the table."""


def activations_html(record: Mapping[str, Any], i: int, arrays: Arrays) -> str:
    """Return the maps of example i; "" if there are none."""
    found = (record.get("activations") or {}).get("maps") or []
    flat, drawn = [], ""
    for one in found:
        array = arrays.get(str(one.get("array")))
        if array is None or i >= len(array):
            continue
        values, name = np.asarray(array[i], float), str(one.get("layer"))
        at = values / max(float(values.max()), 1e-30)
        if values.ndim == 2 and min(values.shape) > 1:
            alt = f"Where layer {name} is active: mean size over its units"
            drawn += f"<figure>{picture(sequential(at), alt, 'small')}<figcaption>{escape(name, 60)}</figcaption></figure>"
        else:
            flat.append((name, at.ravel()))
    if flat:
        rows = "".join(
            f'<div class="stripe">{picture(sequential(at)[None].repeat(2, 0), f"Where layer {name} is active, first position left", "strip")}'
            f"<span>{escape(name, 40)}</span></div>"
            for name, at in flat
        )
        drawn += f"<div class='layers'>{rows}</div>"
    if not drawn:
        return ""
    return f"<details><summary>Where each layer is active</summary><div class='maps heads'>{drawn}</div></details>"


def layers_html(record: Mapping[str, Any]) -> str:
    """Return what each layer does over the sample, and which units are dead or saturated."""
    found = record.get("activations") or {}
    layers = [x for x in found.get("layers") or [] if isinstance(x, dict)]
    if not layers:
        return ""
    said = [escape(f, 300) for f in found.get("findings") or []]
    n = number(found.get("examples")) or 0
    summary = f"Over {n:,.0f} held-out examples no unit is dead or saturated." if not said else ""
    items = "".join(f"<li>{s}</li>" for s in said[:20])
    rows = [
        [
            escape(x["name"], 80), escape(x["kind"], 40), f"{x['units']:,}", figure(number(x["mean"]), 3), f"{x['share_of_zeros']:.0%}",
            f"{len(x['dead']):,}", f"{len(x['saturated']):,}",
        ]
        for x in layers[:_MOST]
    ]  # fmt: skip
    head = [("Layer", ""), ("Kind", ""), ("Units", "num"), ("Mean", "num"), ("Zeros", "num"), ("Dead", "num"), ("Saturated", "num")]
    listed = f"<ul class='plain'>{items}</ul>" if items else f"<p>{summary}</p>"
    whole = f"<details><summary>All {len(layers)} layers</summary>{table(head, rows, 'Activations of each layer')}</details>"
    return f"<h3>Units that never act, or always at their end</h3>{listed}{whole}"
