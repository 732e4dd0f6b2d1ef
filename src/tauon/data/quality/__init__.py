"""Quality of data: what a person should look at before training. Finds and shows; changes nothing."""

from tauon.data.quality.base import DataView, Example, Finding, QualityCheck
from tauon.data.quality.classes import ClassBalance  # registers the check; so do the next
from tauon.data.quality.columns import ColumnGiveaways, ColumnOutliers, ColumnValues
from tauon.data.quality.config import QualityConfig
from tauon.data.quality.drift import PartDrift
from tauon.data.quality.encoding import TextEncoding
from tauon.data.quality.equal import EqualRecords
from tauon.data.quality.examine import Quality, examine, quality_checks
from tauon.data.quality.image_outliers import BlankImages, ImageOutliers
from tauon.data.quality.label_errors import LabelErrors, find_label_errors
from tauon.data.quality.labels import WrongLabels
from tauon.data.quality.near import NearDuplicates
from tauon.data.quality.out_of_fold import out_of_fold
from tauon.data.quality.personal import PersonalData
from tauon.data.quality.signal_faults import RecordingFaults, SeriesFaults
from tauon.data.quality.text_outliers import TextOutliers
from tauon.data.quality.view import view_of

__all__ = [
    "BlankImages",
    "ClassBalance",
    "ColumnGiveaways",
    "ColumnOutliers",
    "ColumnValues",
    "DataView",
    "EqualRecords",
    "Example",
    "Finding",
    "ImageOutliers",
    "LabelErrors",
    "NearDuplicates",
    "PartDrift",
    "PersonalData",
    "Quality",
    "QualityCheck",
    "QualityConfig",
    "RecordingFaults",
    "SeriesFaults",
    "TextEncoding",
    "TextOutliers",
    "WrongLabels",
    "examine",
    "find_label_errors",
    "out_of_fold",
    "quality_checks",
    "view_of",
]
