"""Quality of data: what a person should look at before training. Finds and shows; changes nothing."""

from tauon.data.quality.base import DataView, Example, Finding, QualityCheck
from tauon.data.quality.classes import ClassBalance  # registers the check; so do the next
from tauon.data.quality.columns import ColumnGiveaways, ColumnOutliers, ColumnValues
from tauon.data.quality.config import QualityConfig
from tauon.data.quality.drift import PartDrift
from tauon.data.quality.equal import EqualRecords
from tauon.data.quality.examine import Quality, examine, quality_checks
from tauon.data.quality.label_errors import LabelErrors, find_label_errors
from tauon.data.quality.out_of_fold import out_of_fold
from tauon.data.quality.view import view_of

__all__ = [
    "ClassBalance",
    "ColumnGiveaways",
    "ColumnOutliers",
    "ColumnValues",
    "DataView",
    "EqualRecords",
    "Example",
    "Finding",
    "LabelErrors",
    "PartDrift",
    "Quality",
    "QualityCheck",
    "QualityConfig",
    "examine",
    "find_label_errors",
    "out_of_fold",
    "quality_checks",
    "view_of",
]
