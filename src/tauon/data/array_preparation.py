"""Arrays that a source gives whole (pictures, archives, a library's sets) -> data sets. Everything is fitted on the training rows alone and
comes along in `DataSplits.preprocess`. Tables with columns of words are the business of `table_preparation.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from tauon.config import dump
from tauon.data.arrays import ArrayDataset, NormalizeKind, Normalizer, check_arrays, count_repeats
from tauon.data.bounds import limits_of
from tauon.data.choice import choice_facts, choose, in_order
from tauon.data.config import DataConfig
from tauon.data.facts import content_of, feature_facts, told, warnings_of
from tauon.data.files import canonical
from tauon.data.image_features import with_features
from tauon.data.labels import renumbered
from tauon.data.pixel_range import PixelRange
from tauon.data.preparation import DataSplits, count_as_read
from tauon.data.progress import report
from tauon.data.sources.base import Arrays, SourceConfig
from tauon.data.spelling import nfc
from tauon.data.split import PARTS, Part, refuse_new_classes, split_rows
from tauon.data.targets import TargetScale, fit_target_scale, target_names
from tauon.errors import DataError, Problem, RecipeError

__all__ = ["prepare_arrays", "target_scale_of"]

_VERSION = 1


def prepare_arrays(config: DataConfig, sources: dict[Part, SourceConfig], seed: int, *, scale_targets: bool = False) -> DataSplits:
    """Read, split, scale pictures, features and targets by the training rows alone."""
    tables = {part: _load(source, part) for part, source in sources.items()}
    left_out = {part: table.left_out for part, table in tables.items()}
    warnings = [message for table in tables.values() for message in table.warnings]
    tables["train"] = in_order(tables["train"], config.label_order)
    rows, split_facts = split_rows(tables["train"].targets, config.split, [p for p in PARTS if p not in sources])
    tables, pixel_range = _as_pixels(tables, rows["train"])
    if config.scattering is not None:
        tables = {part: with_features(table, config.scattering, part) for part, table in tables.items()}
    main = tables["train"]
    refuse_new_classes(main.targets, main.label_names, rows, "the targets")
    for part in tables:
        if part != "train":
            tables[part] = _aligned(tables[part], main, part)
    train_features = main.features if len(rows["train"]) == len(main) else main.features[rows["train"]]
    kind, why = _normalize(config, main)
    names = main.feature_names or tuple(f"x{i}" for i in range(main.features.shape[1]))
    if config.bounds and main.features.ndim != 2:
        message = f"are for tables, and examples have shape {main.features.shape[1:]}. Drop them; for pictures take normalize: unit."
        raise RecipeError([Problem("data.bounds", message)])
    known = () if main.classes else target_names(main.label_names, main.targets.reshape(len(main), -1).shape[1])
    limits = limits_of(config.bounds, names, known=known) if config.bounds or kind == "bounds" else None
    normalizer = Normalizer.fit(train_features, kind, limits=limits)
    target_scale, target_facts, target_notes = target_scale_of(config, main.targets[rows["train"]], main.label_names, scale_targets)
    parts: dict[Part, ArrayDataset] = {}
    choice = choose(config, main, rows["train"], main.features.shape[1:], seed)
    for part in PARTS:
        if part in rows:
            training = {"seed": seed, "augments": config.augment, **choice} if part == "train" else {}
            parts[part] = ArrayDataset(main, rows[part], normalizer, target_scale=target_scale, **training)
        elif part in tables:
            parts[part] = ArrayDataset(tables[part], np.arange(len(tables[part])), normalizer, target_scale=target_scale)
    steps = [dump(a) for a in config.augment]
    count_as_read(config, [["augment", str(i), name] for i, step in enumerate(steps) for name in step])  # by each training batch, later
    held = {p: main.features[rows[p]] if p in rows else tables[p].features for p in parts if p != "train"}
    also = {p: count_repeats(train_features, features) for p, features in held.items()}
    contents = {p: content_of(t) for p, t in tables.items()}
    made_of = hashlib.sha256(canonical([_VERSION, contents, dump(config.split)]).encode()).hexdigest()
    scaling = {"kind": kind, "why": why} | ({"bounds": dict(config.bounds)} if config.bounds else {})
    facts = {
        "kind": "arrays", "sources": {p: s.describe() | {"sha256": contents[p]} for p, s in sources.items()},
        "split": split_facts | {"own_parts": [p for p in sources if p != "train"], "rows_also_in_train": also},
        "parts": {p: d.facts for p, d in parts.items()}, "normalize": scaling, "augment": steps, "content": made_of,
        **({} if config.scattering is None else {"scattering": dump(config.scattering)}),
        **choice_facts(config, main.label_names, choice), **pixel_range,
        **told(left_out, [*target_notes, *_depth_notes(pixel_range)], [*warnings, *warnings_of(main, train_features, rows["train"])]),
        "features": feature_facts(train_features, main.feature_names), **target_facts,
        "input_shape": list(main.features.shape[1:]), "labels": list(main.label_names),
    }  # fmt: skip
    decides = [facts["content"], normalizer.to_json(), steps, seed, *choice_facts(config, main.label_names, choice).values()]
    decides += [] if target_scale is None else [target_scale.to_json()]
    preprocess = {
        "kind": "arrays", "normalize": normalizer.to_json(), "labels": list(main.label_names), "features": list(main.feature_names),
        "input_shape": list(main.features.shape[1:]), "targets": "classes" if main.classes else "values",
    } | ({} if config.scattering is None else {"scattering": dump(config.scattering)})  # fmt: skip
    preprocess |= pixel_range | ({} if target_scale is None else {"target_scale": target_scale.to_json()})
    return DataSplits(
        parts["train"], parts.get("validation"), parts.get("test"), parts["train"].spec, facts,
        hashlib.sha256(canonical(decides).encode()).hexdigest(), None, preprocess,
    )  # fmt: skip


def _load(source: SourceConfig, part: Part) -> Arrays:
    report(f"read {part}", 0)
    table = source.arrays()
    if source.limit is not None:
        table = table.rows(slice(source.limit))
    return check_arrays(table, f"source {source.kind_!r} ({part})", training=part == "train")


def _as_pixels(tables: dict[Part, Arrays], training: np.ndarray) -> tuple[dict[Part, Arrays], dict[str, Any]]:
    """(pictures of more than 8 bits from 0 to 255 by one range for all parts, that range by its key in `preprocess`); bytes stay."""
    main = tables["train"]
    depths = {part: table.pixel_range if isinstance(table.pixel_range, str) else type(table.pixel_range) for part, table in tables.items()}
    odd = next((part for part, depth in depths.items() if depth != depths["train"]), None)
    if odd is not None:
        raise DataError(f"the {odd} pictures are of another depth (bits a value) than the training pictures. Convert them to one depth")
    if main.pixel_range is None:
        return tables, {}
    found = PixelRange.measure(main.features[training], main.pixel_range) if isinstance(main.pixel_range, str) else main.pixel_range
    scaled = {part: replace(t, features=found(t.features), pixel_range=None, pixels=True) for part, t in tables.items()}
    return scaled, {"pixel_range": found.to_json()}


def _depth_notes(pixel_range: dict[str, Any]) -> list[str]:
    return [f"pictures: black is {r['low']:g} and white {r['high']:g} ({r['why']})" for r in pixel_range.values()]


def _aligned(table: Arrays, main: Arrays, part: Part) -> Arrays:
    """`table` with the training set's class numbers; features and targets must be of the same make."""
    if table.features.shape[1:] != main.features.shape[1:]:
        raise DataError(
            f"the {part} source has examples of shape {table.features.shape[1:]}, the training source {main.features.shape[1:]}"
        )
    if table.feature_names != main.feature_names:
        odd = next((a, b) for a, b in zip(table.feature_names or ("",), main.feature_names or ("",), strict=True) if a != b)
        raise DataError(
            f"the {part} source has a column {odd[0]!r} where the training source has {odd[1]!r}; the columns must be the same, in order"
        )
    if table.classes != main.classes or table.targets.shape[1:] != main.targets.shape[1:]:
        raise DataError(
            f"the {part} source has targets {table.targets.dtype}, the training source {main.targets.dtype}; both must be of one kind"
        )
    if not main.classes or table.label_names == main.label_names:
        return table
    targets = renumbered(table.targets, table.label_names, main.label_names, part)
    return replace(table, targets=targets, label_names=main.label_names)


def _normalize(config: DataConfig, table: Arrays) -> tuple[NormalizeKind, str]:
    if config.normalize != "auto":
        return config.normalize, "as set"
    if config.scattering is not None:
        return "none", "scattering coefficients are normalised picture by picture"
    return ("unit", "features are bytes") if table.features.dtype == np.uint8 else ("standard", "features are not bytes")


def target_scale_of(
    config: DataConfig, targets: np.ndarray, labels: tuple[str, ...], wanted: bool
) -> tuple[TargetScale | None, dict[str, Any], list[str]]:
    """`fit_target_scale` as the recipe asks for it, where the task wants its targets scaled."""
    if not wanted:
        return None, {}, []
    return fit_target_scale(
        targets, labels, kind=config.normalize_targets, normalize=config.normalize, bounds={nfc(n): b for n, b in config.bounds.items()}
    )
