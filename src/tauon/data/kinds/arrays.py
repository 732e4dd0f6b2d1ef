"""Arrays that a source returns as a whole (images, archives, data sets of a library) -> data sets. Everything is fitted on the training rows
alone and stored in `DataSplits.preprocess`. Tables with text columns are another kind (`tables.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump, register
from tauon.data.arrays import ArrayDataset, NormalizeKind, Normalizer, check_arrays, count_repeats
from tauon.data.balance import reorder_classes
from tauon.data.bounds import limits_of
from tauon.data.choice import choice_facts, training_options
from tauon.data.config import DataConfig
from tauon.data.facts import content_of, feature_facts, notices, warnings_of
from tauon.data.files import canonical
from tauon.data.image_features import with_features
from tauon.data.kinds.base import ChosenRows, DataKind, Fitted, Parts, Request, changed, own_data
from tauon.data.kinds.steps import FEATURE_KEYS, augment_steps, fit_targets, refuse_arrays_by_document
from tauon.data.labels import renumbered
from tauon.data.pixel_range import PixelRange
from tauon.data.progress import report
from tauon.data.sources.base import Arrays, SourceConfig
from tauon.data.spec_file import agreed_labels, preprocessing_of, refuse_other_features
from tauon.data.split import Part, refuse_new_classes
from tauon.data.targets import target_names
from tauon.errors import DataError, Problem, RecipeError

__all__ = ["ArraysKind"]

_VERSION = 1


@register("arrays")
class ArraysKind(DataKind[Arrays]):
    """Rows of numbers, or images, each with a class or a value."""

    input_kind, output_kind, words = "arrays", "arrays", "features and targets"
    reads = (*FEATURE_KEYS, "scattering", "decontaminate")
    cleans, records = ("images", "table"), "examples"

    @classmethod
    def takes(cls, source: SourceConfig) -> bool:
        return not source.tabular()

    @classmethod
    def problems(cls, config: DataConfig) -> Iterator[tuple[str, str]]:
        if config.raw_value("table") != DataConfig.model_fields["table"].default:
            yield (
                "table",
                f"is only for tables (csv, jsonl, parquet), but source {config.raw_value('source').kind_!r} provides arrays of numbers; remove it",
            )
        yield from refuse_arrays_by_document(config)

    def read(self, source: SourceConfig, part: Part, request: Request) -> Arrays:
        report(f"read {part}", 0)
        table = source.arrays()
        if source.limit is not None:
            table = table.rows(slice(source.limit))
        return check_arrays(table, f"source {source.kind_!r} ({part})", training=part == "train")

    def compared(self, data: Arrays, index: NDArray[np.int64]) -> NDArray[Any]:
        return data.features if len(index) == len(data) else data.features[index]

    def strata(self, data: Arrays) -> NDArray[Any]:
        return data.targets

    def split(self, whole: Mapping[Part, Arrays], request: Request) -> tuple[Parts[Arrays], dict[str, Any]]:
        main = reorder_classes(whole["train"], request.config.label_order)
        parts, facts = super().split({**whole, "train": main}, request)
        mine = {part: rows.index for part, rows in parts.items() if rows.data is main}
        refuse_new_classes(main.targets, main.label_names, mine, "the targets")
        return parts, facts

    def fit(self, parts: Parts[Arrays], request: Request) -> Fitted:
        config = request.config
        given = preprocessing_of(config, "arrays")
        if config.spec is not None and given is not None:
            path, labels = config.spec, given
            parts = changed(parts, lambda table, part: agreed_labels(table, labels, path))
        parts, pixel_range = _as_pixels(parts, None if given is None else given.get("pixel_range"))
        raw_shape = list(parts["train"].data.features.shape[1:])
        if config.scattering is not None:
            scattering = config.scattering
            parts = changed(parts, lambda table, part: with_features(table, scattering, part))
        train = parts["train"]
        main = train.data
        parts = changed(parts, lambda table, part: table if table is main else _aligned(table, main, part))
        train_features = main.features if len(train.index) == len(main) else main.features[train.index]
        if given is None:
            normalizer, scaling = _normalizer(config, main, train_features)
        else:
            refuse_other_features(main.feature_names, main.features.shape[1:], given, str(config.spec))
            normalizer = Normalizer.from_json(given["normalize"])
            scaling = {"kind": normalizer.kind, "why": f"of {config.spec}"}
        target_scale, target_facts, target_notes = fit_targets(request, main.targets[train.index], main.label_names)
        options = training_options(config, main, train.index, main.features.shape[1:], request.seed)
        datasets = {
            part: ArrayDataset(rows.data, rows.index, normalizer, training=options if part == "train" else None, target_scale=target_scale)
            for part, rows in parts.items()
        }
        steps = augment_steps(config)
        contents = {p: content_of(table) for p, table in own_data(parts, request).items()}
        content = hashlib.sha256(canonical([_VERSION, contents, dump(config.split)]).encode()).hexdigest()
        chosen_how = choice_facts(config, main.label_names, options)
        scattered = {} if config.scattering is None else {"scattering": dump(config.scattering)}
        facts = {
            "sources": {p: s.describe() | {"sha256": contents[p]} for p, s in request.sources.items()},
            "split": {"rows_also_in_train": _also_in_train(parts, train_features)}, "normalize": scaling, "augment": steps,
            **scattered, **chosen_how, **pixel_range, **_notices(parts, request, train_features, [*target_notes, *_depth_notes(pixel_range)]),
            "features": feature_facts(train_features, main.feature_names), **target_facts,
            "input_shape": list(main.features.shape[1:]), "labels": list(main.label_names),
        }  # fmt: skip
        scaled = {} if target_scale is None else {"target_scale": target_scale.to_json()}
        preprocess = {
            "kind": "arrays", "normalize": normalizer.to_json(), "labels": list(main.label_names), "features": list(main.feature_names),
            "input_shape": list(main.features.shape[1:]), "targets": "classes" if main.classes else "values",
        } | scattered | ({"picture_shape": raw_shape} if scattered else {}) | pixel_range | scaled  # fmt: skip
        decides = [normalizer.to_json(), steps, request.seed, *chosen_how.values(), *scaled.values()]
        return Fitted({**datasets}, content, decides, preprocess, facts)


def _as_pixels(parts: Parts[Arrays], given: dict[str, Any] | None = None) -> tuple[Parts[Arrays], dict[str, Any]]:
    """Return (images of more than 8 bits scaled to 0 to 255 by one range for all parts, that range by its key in `preprocess`); bytes stay."""
    main, training = parts["train"].data, parts["train"].index
    depths = {p: r.data.pixel_range if isinstance(r.data.pixel_range, str) else type(r.data.pixel_range) for p, r in parts.items()}
    odd = next((part for part, depth in depths.items() if depth != depths["train"]), None)
    if odd is not None:
        raise DataError(f"the {odd} images have another depth (bits per value) than the training images. Convert them to one depth")
    if main.pixel_range is None:
        return parts, {}
    scale = (
        PixelRange.from_json(given)
        if given is not None
        else PixelRange.measure(main.features[training], main.pixel_range)
        if isinstance(main.pixel_range, str)
        else main.pixel_range
    )
    scaled = changed(parts, lambda table, part: replace(table, features=scale(table.features), pixel_range=None, pixels=True))
    return scaled, {"pixel_range": scale.to_json()}


def _depth_notes(pixel_range: dict[str, Any]) -> list[str]:
    return [f"images: black is {r['low']:g} and white {r['high']:g} ({r['why']})" for r in pixel_range.values()]


def _normalizer(config: DataConfig, main: Arrays, train_features: NDArray[Any]) -> tuple[Normalizer, dict[str, Any]]:
    """Return (scaler fitted on the training rows, facts about it)."""
    kind, why = _normalize(config, main)
    names = main.feature_names or tuple(f"x{i}" for i in range(main.features.shape[1]))
    if config.bounds and main.features.ndim != 2:
        message = (
            f"are only for tables, but examples have shape {main.features.shape[1:]}. Remove them; for images set data.normalize: unit."
        )
        raise RecipeError([Problem("data.bounds", message)])
    known = () if main.classes else target_names(main.label_names, main.targets.reshape(len(main), -1).shape[1])
    limits = limits_of(config.bounds, names, known=known) if config.bounds or kind == "bounds" else None
    facts = {"kind": kind, "why": why} | ({"bounds": dict(config.bounds)} if config.bounds else {})
    return Normalizer.fit(train_features, kind, limits=limits), facts


def _normalize(config: DataConfig, table: Arrays) -> tuple[NormalizeKind, str]:
    if config.normalize != "auto":
        return config.normalize, "as set"
    if config.scattering is not None:
        return "none", "scattering coefficients are normalised image by image"
    return ("unit", "features are bytes") if table.features.dtype == np.uint8 else ("standard", "features are not bytes")


def _also_in_train(parts: Parts[Arrays], train_features: NDArray[Any]) -> dict[str, int]:
    def features_of(rows: ChosenRows[Arrays]) -> NDArray[Any]:
        whole = rows.data.features
        return whole if len(rows.index) == len(whole) else whole[rows.index]

    return {p: count_repeats(train_features, features_of(rows)) for p, rows in parts.items() if p != "train"}


def _notices(parts: Parts[Arrays], request: Request, train_features: NDArray[Any], notes: list[str]) -> dict[str, Any]:
    tables, main = own_data(parts, request), parts["train"].data
    warnings = [message for table in tables.values() for message in table.warnings]
    warnings += warnings_of(main, train_features, parts["train"].index)
    return notices({p: table.left_out for p, table in tables.items()}, notes, warnings)


def _aligned(table: Arrays, main: Arrays, part: Part) -> Arrays:
    """Return `table` with the training set's class numbers. Features and targets must have the same shape and type as in training."""
    if table.features.shape[1:] != main.features.shape[1:]:
        raise DataError(
            f"the {part} source has examples of shape {table.features.shape[1:]}, but the training source has {main.features.shape[1:]}"
        )
    if table.feature_names != main.feature_names:
        odd = next((a, b) for a, b in zip(table.feature_names or ("",), main.feature_names or ("",), strict=True) if a != b)
        raise DataError(
            f"the {part} source has column {odd[0]!r} where the training source has {odd[1]!r}. Both must have the same columns in the same order"
        )
    if table.classes != main.classes or table.targets.shape[1:] != main.targets.shape[1:]:
        raise DataError(
            f"the {part} source has targets of type {table.targets.dtype}, but the training source has {main.targets.dtype}. Both must have the same type"
        )
    if not main.classes or table.label_names == main.label_names:
        return table
    targets = renumbered(table.targets, table.label_names, main.label_names, part)
    return replace(table, targets=targets, label_names=main.label_names)
