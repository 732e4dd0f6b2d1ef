"""The `data` section of a recipe: what to read, what to hold out, how to turn it into examples.

Keys stand in groups, by what they are about; in a recipe they are one flat section. Which keys are for which kind of data, and what cannot
work with it, each kind says itself (`kinds/`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveFloat

from tauon.config import Config, Count, Fraction
from tauon.data.augment import AugmentConfig
from tauon.data.bounds import wrong_bounds
from tauon.data.chat_template import ChatConfig
from tauon.data.columns import ColumnsConfig
from tauon.data.image_features import ScatteringConfig
from tauon.data.mix import MixConfig
from tauon.data.shadow_split import HalfConfig
from tauon.data.signal_config import SignalConfig
from tauon.data.sources.base import SourceConfig
from tauon.data.split import SplitConfig
from tauon.data.targets import TargetKind
from tauon.data.tokenizer_config import BpeConfig, TokenizerConfig
from tauon.data.window import WindowConfig

__all__ = ["DataConfig"]


class SourceKeys(Config):
    """Where the data comes from, and what is held out."""

    source: SourceConfig
    """Where the data comes from."""
    validation: SourceConfig | None = None
    """A source of its own for validation; it comes before `split.validation`."""
    test: SourceConfig | None = None
    """A source of its own for test; it comes before `split.test`."""
    split: SplitConfig = SplitConfig()
    """How to hold data out where no source of its own is given."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        split: SplitConfig = self.raw_value("split")
        for name in ("validation", "test"):
            if self.raw_value(name) is not None and split.raw_value(name) not in (0, SplitConfig.model_fields[name].default):
                yield f"split.{name}", f"has no effect, since data.{name} names a source of its own; drop one of the two"
        if self.raw_value("test") is not None and split.raw_value("folds") is not None:
            yield "test", "with split.folds the test part is one of the folds; drop data.test or split.folds"
        given = {n: self.raw_value(n).output_kind() for n in ("source", "validation", "test") if self.raw_value(n) is not None}
        for name in ("validation", "test"):
            if name in given and given[name] != given["source"]:
                yield name, f"gives {given[name]}, but data.source gives {given['source']}; both must be the same"


class TextKeys(Config):
    """How text becomes tokens, and tokens examples."""

    tokenizer: TokenizerConfig = BpeConfig()
    """Text of any kind: how it becomes tokens."""
    seq_len: Count | None = Field(default=None, ge=1, le=2**24)
    """Text of any kind: tokens in an example. None: 256; of texts with labels, the length that 95% of them do not exceed."""
    mask_documents: bool = True
    """Text only: attention stays inside a document. Without effect where there is one document."""
    overlap: Fraction = Field(default=0.0, ge=0, lt=1)
    """Text only: share of each held-out window that repeats the one before as context, not counted again. 0 is fastest;
    0.5 measures each token with at least half a window before it."""


class FeatureKeys(Config):
    """How numbers are scaled and changed."""

    normalize: Literal["auto", "none", "standard", "robust", "minmax", "quantile", "unit", "bounds"] = "auto"
    """Arrays and series. standard: mean 0, variance 1; robust: median 0, quartiles 1 apart; minmax: 0 to 1; quantile (tables): normal
    by ranks; unit: bytes / 255. By column, or by channel of images, with statistics of the training part. bounds (tables): from -1 to 1,
    by `bounds` alone. auto: unit for bytes, standard otherwise."""
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Tables only: lowest and highest value of columns of numbers, {age: [18, 100], "*": [0, 1]}, where "*" stands for those that are not
    named. Values beyond are clipped before `normalize: standard`, or scale by it (`normalize: bounds`): then nothing is learned from the
    data. State them without looking at it. Left out: nothing is clipped."""
    normalize_targets: TargetKind = "auto"
    """Numbers to predict (regression, quantiles) of arrays. standard: mean 0, variance 1, by the training part; bounds: from -1 to 1, by
    their range in `bounds`, nothing is clipped; none: as they are. Predictions and figures are in the units of the data all the same;
    losses are on this scale. auto: bounds where `bounds` names the target, standard otherwise."""
    augment: tuple[AugmentConfig, ...] = ()
    """Arrays, series, recordings and texts with labels: random changes of the training examples, in turn."""
    scattering: ScatteringConfig | None = None
    """Pictures only: learn from wavelet scattering coefficients instead of pixels: fixed features, which private training on few data
    lacks. Left out: pixels."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("scattering") is not None and self.raw_value("augment"):
            yield "augment", "changes pixels, and data.scattering is worked out once for each picture. Drop one of the two"
        bounds, kind = self.raw_value("bounds"), self.raw_value("normalize")
        yield from ((f"bounds.{name}", message) for name, message in wrong_bounds(bounds))
        if kind == "bounds" and not bounds:
            yield "bounds", 'normalize: bounds needs the range of each column: {age: [18, 100], "*": [0, 1]}; give it, or take standard'
        if bounds and kind not in ("bounds", "standard"):
            yield "bounds", f"clip values for normalize: bounds or standard, and it is {kind}; take one of these, or drop them"


class ClassKeys(Config):
    """How examples of classes are chosen, weighed, mixed and numbered."""

    mix: MixConfig | None = None
    """Classes only: mix training examples in pairs (mixup, CutMix). Left out: none."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """Classes only: the order of training examples. shuffle: each once an epoch; balanced: every class as often as every other."""
    class_weights: Literal["balanced"] | tuple[PositiveFloat, ...] | None = None
    """Classes only: weight of each class in the training loss. balanced: rows / (classes x rows of the class); or one number a class.
    Left out: all weigh alike. Validation and evaluation count every example once."""
    label_order: tuple[str, ...] = ()
    """Classes only: their names in the order that their numbers shall have, lowest first for ordinal targets. Left out: by name."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("sampling") == "balanced" and self.raw_value("class_weights") == "balanced":
            yield "class_weights", "balanced, and so is sampling: seldom classes would count twice. Take one of the two"


class KindKeys(Config):
    """Sections for one kind of data each."""

    table: ColumnsConfig = ColumnsConfig()
    """Tables (csv, jsonl, parquet) only: categories, missing values, dates."""
    window: WindowConfig = WindowConfig()
    """Series only: how much is read, how much is predicted."""
    signal: SignalConfig = SignalConfig()
    """Recordings only: length of an example, and what its target is."""
    chat: ChatConfig = ChatConfig()
    """Conversations and preferences only: how roles are written."""


class DataConfig(KindKeys, ClassKeys, FeatureKeys, TextKeys, SourceKeys):  # pydantic lists the keys of the last base first
    """Data and how it becomes examples. Text for language models, arrays for classification and regression, series for forecasting,
    texts with labels, recordings, conversations, preferences.
    """

    half: HalfConfig | None = None
    """Of reference models in an audit: train on a random half of the training and the held-out examples. Left out: on the training part."""
    workers: int = Field(default=0, ge=0, le=64)
    """Threads that prepare batches ahead; the batches are the same whatever their number."""
    cache: str | None = None
    """Folder for prepared data and downloads. None: TAUON_CACHE, else ~/.cache/tauon."""
