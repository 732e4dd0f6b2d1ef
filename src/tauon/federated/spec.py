"""Preprocessing that several sites have in common: each describes its own data in a file without rows, and the files are merged.

A description has the shapes, the classes, the columns with their categories, and of every number that is scaled the count, mean and variance. Merged,
classes and categories are the union, and mean and variance are exactly those of all rows together. The result has no figure of a single site.

What is described is exact and in clear for whoever merges: names of classes and categories, and means and variances of columns. `normalize: bounds`,
`unit` and `none` need none of these figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data import DataSplits
from tauon.data.arrays import ArrayDataset, Normalizer
from tauon.data.columns import Column, Encoder
from tauon.data.spec_file import read_spec, write_spec
from tauon.data.spelling import whole_number
from tauon.errors import DataError
from tauon.types import DataSpec

__all__ = ["describe_site", "merge_specs", "write_site_spec"]

ROWS = 4096
"""Examples that are read at once."""
EXACT = ("none", "unit", "bounds")
"""Scalings that no site fits."""


def write_site_spec(splits: DataSplits, path: Path | str) -> None:
    """Write what `describe_site` says of a site's data to a file."""
    write_spec(path, splits.spec, splits.preprocess, {"site": describe_site(splits)})


def describe_site(splits: DataSplits) -> dict[str, Any]:
    """Return the figures of a site's training part that merging needs: its rows, and mean and variance of what is scaled.

    Raises:
        DataError: data or preprocessing of a kind that cannot be merged, with what to do.
    """
    pre = splits.preprocess
    if pre.get("kind") not in ("arrays", "table") or not isinstance(splits.train, ArrayDataset):
        raise DataError(
            f"data of kind {pre.get('kind')!r} cannot be described: only tables, arrays and images can. Text needs a tokenizer in a file "
            "(data.tokenizer), which is the same everywhere, and no spec."
        )
    if "scattering" in pre:
        raise DataError(
            "data.scattering is fitted image by image, and the same everywhere: no spec is needed. Remove --out, or data.scattering"
        )
    kind = pre["normalize"]["kind"]
    if kind not in (*EXACT, "standard"):
        raise DataError(f"data.normalize: {kind} cannot be fitted over sites. Use standard, or bounds, unit or none, which are not fitted")
    if kind == "standard" and "limits" in pre["normalize"]:
        raise DataError("data.bounds with normalize: standard cannot be fitted over sites. Use normalize: bounds, or leave bounds out")
    _refuse_columns(pre)
    found: dict[str, Any] = {"rows": len(splits.train)}
    if kind == "standard":
        found |= _moments(splits.train, pre)
    if not pre.get("target_scale", {"public": True})["public"]:
        own = splits.train.facts["targets"]
        found["targets"] = {"mean": own["mean"], "variance": [s**2 for s in own["std"]]}
    return found


def _refuse_columns(pre: Mapping[str, Any]) -> None:
    for c in Encoder.from_json(pre["columns"]).columns if "columns" in pre else ():
        if c.encoding == "target":
            raise DataError("data.table.categories: target is fitted to the labels, and cannot be merged. Use codes or onehot")
        if c.most_frequent:
            raise DataError(f"column {c.name!r}: the most frequent category cannot be merged. Leave data.table.fill_categories out")


def _moments(train: ArrayDataset, pre: Mapping[str, Any]) -> dict[str, Any]:
    """Number of values, and mean and variance of each scaled feature of a table, or each channel of images, in the data's units."""
    normalizer, data = Normalizer.from_json(pre["normalize"]), train.without_augmentation()
    total = squares = np.zeros(normalizer.center.size)
    count = 0
    for start in range(0, len(train), ROWS):
        z = data.batch(np.arange(start, min(start + ROWS, len(train)))).inputs.double().numpy()
        z = np.moveaxis(z, 1, -1).reshape(-1, z.shape[1])
        total, squares, count = total + z.sum(0), squares + np.square(z).sum(0), count + len(z)
    center, scale = normalizer.center.ravel().astype(np.float64), normalizer.scale.ravel().astype(np.float64)
    mean = total / count
    variance = scale**2 * np.maximum(squares / count - mean**2, 0)
    values = zip(_scaled_names(pre), (center + scale * mean).tolist(), variance.tolist(), strict=True)
    return {"count": count, "values": {name: [m, v] for name, m, v in values if name is not None}}


def _scaled_names(pre: Mapping[str, Any]) -> list[str | None]:
    """Names of the features, or numbers of the channels, that are scaled; None: not scaled."""
    if "columns" not in pre:
        return [str(i) for i in range(len(pre["normalize"]["center"]))]
    encoder = Encoder.from_json(pre["columns"])
    return [name if scaled else None for name, scaled in zip(encoder.names, encoder.scaled, strict=True)]


# ---------------------------------------------------------------------------------------------- merging


def merge_specs(paths: Sequence[Path | str], out: Path | str) -> DataSpec:
    """Merge the descriptions of sites into one file, and return the shapes.

    Raises:
        DataError: descriptions that do not fit together, with the two files and what differs.
    """
    read = [read_spec(path) for path in paths]
    names = [str(path) for path in paths]
    if not read:
        raise DataError("no file was given. Give the file of each site")
    sites: list[Any] = [record.get("site") for _, _, record in read]
    if any(not isinstance(site, dict) for site in sites):
        odd = names[next(i for i, site in enumerate(sites) if not isinstance(site, dict))]
        raise DataError(f"{odd} is not the description of one site: it was merged before. Give the files that the sites made")
    pres = [pre for _, pre, _ in read]
    for key in ("kind", "targets", "missing", "source", "pixel_range"):
        _same([_plain(pre.get(key)) for pre in pres], names, key)
    _same([pre["normalize"]["kind"] for pre in pres], names, "data.normalize")
    merged = _merged(pres, sites, names)
    labels = _union([pre["labels"] for pre in pres]) if pres[0]["targets"] == "classes" else pres[0]["labels"]
    merged |= {"labels": labels, "targets": pres[0]["targets"]}
    spec = replace(
        read[0][0], input_shape=tuple(merged["input_shape"]), outputs=len(labels) if merged["targets"] == "classes" else read[0][0].outputs,
        labels=tuple(labels), categories=_codes(merged), target_center=tuple(merged.get("target_scale", {}).get("center", ())),
        target_scale=tuple(merged.get("target_scale", {}).get("scale", ())),
    )  # fmt: skip
    write_spec(out, spec, merged)
    return spec


def _plain(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "why"} if isinstance(value, dict) else value


def _same(values: Sequence[Any], names: Sequence[str], what: str) -> None:
    odd = next((i for i, v in enumerate(values) if json.dumps(v, sort_keys=True) != json.dumps(values[0], sort_keys=True)), None)
    if odd is not None:
        raise DataError(
            f"{what} is {values[0]!r} in {names[0]}, but {values[odd]!r} in {names[odd]}. Every site needs the same settings and columns"
        )


def _union(lists: Sequence[Sequence[str]], what: str = "the classes") -> list[str]:
    """All names, as they are if all lists are the same, else in the order of `labels.class_numbers`."""
    if all(list(names) == list(lists[0]) for names in lists):
        return list(lists[0])
    if any(list(names) != _in_order(names) for names in lists):
        raise DataError(f"{what} are in an order of their own (data.label_order) and differ between sites: name all of them at every site")
    return _in_order({name for names in lists for name in names})


def _in_order(names: Iterable[str]) -> list[str]:
    found = list(names)
    return sorted(found, key=Decimal) if all(map(whole_number, found)) else sorted(found)


def _merged(pres: Sequence[Mapping[str, Any]], sites: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    merged, lost = dict(pres[0]), dict[str, _Missing]()
    if "columns" in pres[0]:
        encoder, lost = _columns([Encoder.from_json(pre["columns"]) for pre in pres], sites, names)
        merged |= {"columns": encoder.to_json(), "features": list(encoder.names), "input_shape": [len(encoder.names)]}
    else:
        for key in ("features", "input_shape"):
            _same([pre[key] for pre in pres], names, key)
    if pres[0]["normalize"]["kind"] == "standard":
        merged["normalize"] = _standard(merged, sites, lost)
    else:
        _same([_public_scaling(pre) for pre in pres], names, "data.normalize with data.bounds")
        merged["normalize"] = _rebuilt(merged, _public_scaling(pres[0]))
    scales = [pre.get("target_scale") for pre in pres]
    if scales[0] is not None and not scales[0]["public"]:
        weights = [float(site["rows"]) for site in sites]
        mean, variance = pooled(weights, [s["targets"]["mean"] for s in sites], [s["targets"]["variance"] for s in sites])
        merged["target_scale"] = {"center": mean.tolist(), "scale": _deviation(mean, variance).tolist(), "public": False}
    else:
        _same(scales, names, "target_scale")
    return merged


def pooled(weights: Sequence[float], means: Sequence[Any], variances: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and variance of several groups of values together, from those of each group.

    >>> [v.tolist() for v in pooled([2, 2], [[0.0], [2.0]], [[1.0], [1.0]])]
    [[1.0], [2.0]]
    """
    w = np.asarray(weights, np.float64)[:, None]
    m, v = np.asarray(means, np.float64), np.asarray(variances, np.float64)
    mean = (w * m).sum(0) / w.sum()
    return mean, (w * (v + np.square(m - mean))).sum(0) / w.sum()


def _deviation(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = np.sqrt(variance)
    return np.where(deviation > 1e-12 * np.maximum(np.abs(mean), 1e-30), deviation, 1.0)


def _standard(merged: Mapping[str, Any], sites: Sequence[Mapping[str, Any]], lost: Mapping[str, _Missing]) -> dict[str, Any]:
    """The scaler to mean 0 and variance 1 over all rows."""
    first, counts = merged["normalize"], [float(site["count"]) for site in sites]
    center: list[float] = []
    scale: list[float] = []
    for name in _scaled_names(merged):
        if name is None:
            center, scale = [*center, 0.0], [*scale, 1.0]
            continue
        each = [(float(m), float(v)) for m, v in (site["values"][name] for site in sites)]
        if name in lost:
            each = [lost[name].refilled(i, n, m, v) for i, (n, (m, v)) in enumerate(zip(counts, each, strict=True))]
        mean, variance = pooled(counts, [[m] for m, _ in each], [[v] for _, v in each])
        center, scale = [*center, float(mean[0])], [*scale, float(_deviation(mean, variance)[0])]
    return {**first, "center": center, "scale": scale, "shape": [len(center), *first["shape"][1:]]}


def _public_scaling(pre: Mapping[str, Any]) -> dict[str, Any]:
    """A scaling that is not fitted, by the names of features."""
    scaling, names = pre["normalize"], _scaled_names(pre)
    limits = scaling.get("limits")
    named = {} if limits is None else {names[c]: [limits[0][i], limits[1][i]] for i, c in enumerate(scaling["columns"])}
    return {"kind": scaling["kind"], "limits": named}


def _rebuilt(merged: Mapping[str, Any], public: Mapping[str, Any]) -> dict[str, Any]:
    """That scaling for the merged features."""
    first, names = dict(merged["normalize"]), _scaled_names(merged)
    if public["kind"] != "bounds":
        return first | {k: [first[k][0]] * len(names) for k in ("center", "scale")} | {"shape": [len(names), *first["shape"][1:]]}
    places = [i for i, name in enumerate(names) if name in public["limits"]]
    low, high = ([public["limits"][names[i]][k] for i in places] for k in (0, 1))
    center, scale = [0.0] * len(names), [1.0] * len(names)
    for i, a, b in zip(places, low, high, strict=True):
        center[i], scale[i] = (a + b) / 2, (b - a) / 2
    return first | {"center": center, "scale": scale, "shape": [len(names)], "columns": places, "limits": [low, high]}


@dataclass(frozen=True)
class _Missing:
    """A number column with missing values."""

    counts: list[float]
    """Of each site, how many."""
    before: list[float]
    """By what each site replaced them."""
    now: float
    """By what they are replaced."""

    def refilled(self, site: int, n: float, mean: float, variance: float) -> tuple[float, float]:
        """Mean and variance of the n values of a site with its missing ones replaced by `now`."""
        lost, old = self.counts[site], self.before[site]
        if not lost:
            return mean, variance
        there = n - lost
        m = (n * mean - lost * old) / there
        v = max(0.0, (n * (variance + (mean - m) ** 2) - lost * (old - m) ** 2) / there)
        together, spread = pooled([there, lost], [[m], [self.now]], [[v], [0.0]])
        return float(together[0]), float(spread[0])


def _columns(encoders: Sequence[Encoder], sites: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[Encoder, dict[str, _Missing]]:
    """The columns of all sites, and those number columns in which values are missing."""
    for encoder, name in zip(encoders, names, strict=True):
        mine = {c.name for c in encoder.columns}
        for other, who in zip(encoders, names, strict=True):
            gone = sorted({c.name for c in other.columns} - mine)
            if gone:
                why = f"it {encoder.dropped[gone[0]]}" if gone[0] in encoder.dropped else "it has no such column"
                raise DataError(f"column {gone[0]!r} of {who} is not used at {name}: {why}. Leave it out everywhere (data.source.drop)")
    merged: list[Column] = []
    lost: dict[str, _Missing] = {}
    for column in encoders[0].columns:
        own = [next(c for c in encoder.columns if c.name == column.name) for encoder in encoders]
        for key in ("kind", "encoding", "parts"):
            _same([getattr(c, key) for c in own], names, f"column {column.name!r}: {key}")
        made = replace(column, missing=0, why="", indicator=any(c.indicator for c in own), form=column.form)
        if column.kind == "category":
            categories = sorted({word for c in own for word in c.categories}) if column.encoding != "ordinal" else column.categories
            if column.encoding == "ordinal" and any(c.categories != column.categories for c in own):
                raise DataError(
                    f"column {column.name!r}: set its order in data.table.order, the same everywhere; an order cannot be merged"
                )
            made = replace(made, categories=tuple(categories))
        elif column.kind == "number" and any(c.fill is not None for c in own):
            missing = [float(c.missing) for c in own]
            there = [float(site["rows"]) - m for site, m in zip(sites, missing, strict=True)]
            before = [0.0 if c.fill is None else c.fill for c in own]
            now = sum(n * f for n, f in zip(there, before, strict=True)) / sum(there)
            made = replace(made, fill=now)
            if any(missing):
                lost[column.name] = _Missing(missing, before, now)
        merged.append(made)
    dropped = {k: "" for encoder in encoders for k in encoder.dropped}
    return Encoder(tuple(merged), dropped), lost


def _codes(merged: Mapping[str, Any]) -> tuple[int, ...]:
    return Encoder.from_json(merged["columns"]).codes if "columns" in merged else ()
