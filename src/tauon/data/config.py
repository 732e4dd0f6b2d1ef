"""The `data` section of a recipe: what to read, what to hold out, how to turn it into examples.

Keys are grouped by topic in code; in a recipe they are one flat section. Each kind of data (`kinds/`) declares which keys it reads and
which settings cannot work with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator

from tauon.config import Config, Count, Fraction
from tauon.data.augment import AugmentConfig
from tauon.data.bounds import wrong_bounds
from tauon.data.chat_template import ChatConfig
from tauon.data.clean.base import FilterConfig
from tauon.data.columns import ColumnsConfig
from tauon.data.dedup.config import DecontaminateConfig, DedupConfig
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
    """A separate source for validation; it takes precedence over `split.validation`."""
    test: SourceConfig | None = None
    """A separate source for test; it takes precedence over `split.test`."""
    split: SplitConfig = SplitConfig()
    """How to hold data out if there is no separate source."""
    spec: str | None = None
    """Arrays and tables: file with shapes, classes and preprocessing that several places have in common (`tauon federate spec`); it is applied instead of
    fitted here. Default: fitted on the training part."""
    rows: bool = True
    """false: read no data, only `spec`: for the coordinator of sites that have the data."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.raw_value("rows") and self.raw_value("spec") is None:
            yield "spec", "is missing, but with rows: false nothing else says what the data look like. Make it: tauon federate spec"
        split: SplitConfig = self.raw_value("split")
        for name in ("validation", "test"):
            if self.raw_value(name) is not None and split.raw_value(name) not in (0, SplitConfig.model_fields[name].default):
                yield f"split.{name}", f"has no effect, because data.{name} is a separate source; remove one of the two"
        if self.raw_value("test") is not None and split.raw_value("folds") is not None:
            yield "test", "has no effect with split.folds, where the test part is one of the folds; remove data.test or split.folds"
        given = {n: self.raw_value(n).output_kind() for n in ("source", "validation", "test") if self.raw_value(n) is not None}
        for name in ("validation", "test"):
            if name in given and given[name] != given["source"]:
                yield name, f"provides {given[name]}, but data.source provides {given['source']}; both must be the same kind"


class RepeatKeys(Config):
    """What repeats, within the training source and between the parts."""

    dedup: DedupConfig | None = None
    """Text only: leave out documents that repeat an earlier one of the training source. Default: duplicates stay."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """Look for held-out data in the training part. Default: text is left out, other data is reported."""


def _or_one(schema: dict[str, Any]) -> None:
    """JSON Schema of a list that may be written as one item."""
    listed = {key: schema.pop(key) for key in ("type", "items")}
    schema["anyOf"] = [listed, listed["items"]]


class CleanKeys(Config):
    """Which records are repaired, masked or left out before the split."""

    clean: tuple[FilterConfig, ...] = Field(default=(), json_schema_extra=_or_one)
    """Cleaning filters, in turn: `default`, or a list of them, [{kind: repair}, {kind: gopher-quality, min_words: 20}]. Records that one of
    them rejects are left out, counted, and listed with the reason in `rejected/`. Default: none."""
    clean_limit: Fraction = Field(default=0.5, ge=0, le=1)
    """Largest share of the training source that cleaning may reject; more is an error that names the reasons."""
    clean_held_out: Literal["count", "apply"] = "count"
    """Sources of their own in `validation` and `test`. count: say what cleaning would do, and change nothing; apply: clean them, too. A part that
    is split from the training source is clean in any case."""

    @field_validator("clean", mode="before")
    @classmethod
    def _one_filter(cls, value: Any) -> Any:
        """Take `default`, or one filter, as a list of one."""
        return (value,) if isinstance(value, (str, Mapping)) else value

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for key in ("clean_limit", "clean_held_out"):
            if not self.raw_value("clean") and self.raw_value(key) != type(self).model_fields[key].default:
                yield key, "has no effect without data.clean; set clean: default, or remove it"


class TextKeys(Config):
    """How text becomes tokens, and tokens examples."""

    tokenizer: TokenizerConfig = BpeConfig()
    """Text of any kind: how it becomes tokens."""
    seq_len: Count | None = Field(default=None, ge=1, le=2**24)
    """Text of any kind: tokens per example. None: 256; for texts with labels, the length that 95% of them do not exceed."""
    mask_documents: bool = True
    """Text only: attention does not cross document borders. No effect if there is one document."""
    overlap: Fraction = Field(default=0.0, ge=0, lt=1)
    """Text only: share of each held-out window that repeats the one before as context, not counted again. 0 is fastest;
    0.5 measures each token with at least half a window before it."""


class ScaleKeys(Config):
    """Where data is prepared."""

    processes: Literal["auto"] | Annotated[Count, Field(ge=1, le=4096)] | None = None
    """Text only: processes that clean and tokenise it. The bytes do not depend on it. auto: one for each core that may be used. Default: this process
    alone; on Ray, one for each of its cores."""
    cluster: str | None = None
    """Text only: the Ray cluster that has these processes (needs `pip install 'tauon[ray]'`): HOST:PORT or ray://HOST:PORT, or `ray`: the one that the
    environment variable RAY_ADDRESS names, else a Ray on this machine. Default: this machine, without Ray."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        cluster = self.raw_value("cluster")
        if cluster not in (None, "ray") and not re.fullmatch(r"(ray://)?[^/\s]+:\d{1,5}", cluster):
            yield "cluster", f"is {cluster!r}; use ray, or the address of a Ray cluster: HOST:PORT or ray://HOST:PORT"


class FeatureKeys(Config):
    """How numbers are scaled and changed."""

    normalize: Literal["auto", "none", "standard", "robust", "minmax", "quantile", "unit", "bounds"] = "auto"
    """Arrays and series. standard: mean 0, variance 1; robust: median 0, quartiles 1 apart; minmax: 0 to 1; quantile (tables): normal
    by ranks; unit: bytes / 255. By column, or by channel of images, with statistics of the training part. bounds (tables): from -1 to 1,
    by `bounds` alone. auto: unit for bytes, standard otherwise."""
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Tables only: lowest and highest value of number columns, {age: [18, 100], "*": [0, 1]}, where "*" stands for those that are not
    named. Values outside are clipped before `normalize: standard`, or scaled by the range (`normalize: bounds`): then nothing is estimated
    from the data. State them without looking at the data. Default: no clipping."""
    normalize_targets: TargetKind = "auto"
    """Regression targets (regression, quantiles) of arrays. standard: mean 0, variance 1, by the training part; bounds: from -1 to 1, by
    their range in `bounds`, nothing is clipped; none: unchanged. Predictions and metrics are in the units of the data in all cases;
    losses are on this scale. auto: bounds if `bounds` has the target, standard otherwise."""
    augment: tuple[AugmentConfig, ...] = ()
    """Arrays, series, recordings and texts with labels: random changes of the training examples, in turn."""
    scattering: ScatteringConfig | None = None
    """Images only: train on wavelet scattering coefficients instead of pixels: fixed features, which help private training on little
    data. Default: pixels."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("scattering") is not None and self.raw_value("augment"):
            yield "augment", "changes pixels, but data.scattering is computed once per image. Remove one of the two"
        bounds, kind = self.raw_value("bounds"), self.raw_value("normalize")
        yield from ((f"bounds.{name}", message) for name, message in wrong_bounds(bounds))
        if kind == "bounds" and not bounds:
            yield (
                "bounds",
                'is missing, but normalize: bounds needs the range of each column, {age: [18, 100], "*": [0, 1]}; set it, or set normalize: standard',
            )
        if bounds and kind not in ("bounds", "standard"):
            yield "bounds", f"has no effect with normalize: {kind}; set normalize to bounds or standard, or remove bounds"


class ClassKeys(Config):
    """How examples with classes are sampled, weighted, mixed and numbered."""

    mix: MixConfig | None = None
    """Classes only: mix training examples in pairs (mixup, CutMix). Default: none."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """Classes only: the order of training examples. shuffle: each once per epoch; balanced: every class as often as every other."""
    class_weights: Literal["balanced"] | tuple[PositiveFloat, ...] | None = None
    """Classes only: weight of each class in the training loss. balanced: rows / (classes x rows of the class); or one number per class.
    Default: equal weights. Validation and evaluation count every example once."""
    label_order: tuple[str, ...] = ()
    """Classes only: their names in the order of their numbers, lowest first for ordinal targets. Default: by name."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("sampling") == "balanced" and self.raw_value("class_weights") == "balanced":
            yield "class_weights", "is balanced, and so is sampling: rare classes would be weighted twice. Set one of the two"


class KindKeys(Config):
    """Sections for one kind of data each."""

    table: ColumnsConfig = ColumnsConfig()
    """Tables (csv, jsonl, parquet) only: categories, missing values, dates."""
    window: WindowConfig = WindowConfig()
    """Series only: context length and horizon."""
    signal: SignalConfig = SignalConfig()
    """Recordings only: length of an example, and its target."""
    chat: ChatConfig = ChatConfig()
    """Conversations and preferences only: how roles are written."""


class DataConfig(
    KindKeys, ClassKeys, FeatureKeys, ScaleKeys, TextKeys, RepeatKeys, CleanKeys, SourceKeys
):  # pydantic lists the keys of the last base first
    """Data and how it becomes examples: text for language models, arrays for classification and regression, series for forecasting,
    texts with labels, recordings, conversations, preferences.
    """

    half: HalfConfig | None = None
    """For reference models in an audit: train on a random half of the training and held-out examples. Default: on the training part."""
    workers: int = Field(default=0, ge=0, le=64)
    """Threads that prepare batches ahead; the batches do not depend on it."""
    cache: str | None = None
    """Folder for prepared data and downloads. None: TAUON_CACHE, else ~/.cache/tauon."""
