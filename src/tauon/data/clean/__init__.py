"""Cleaning: filters that repair, mask or reject records before they are split, each counted, with its reason kept for every record."""

from tauon.data.clean.base import DefaultConfig, FilterConfig, Rejected, RowFilter, RowVerdicts, Text, TextFilter, expanded
from tauon.data.clean.defaults import StandardConfig  # registers itself, as do the filters below
from tauon.data.clean.documents import CleanedDocuments, cleaned
from tauon.data.clean.duplicates import DuplicatesConfig, NearDuplicatesConfig
from tauon.data.clean.pii import PiiConfig
from tauon.data.clean.predicates import ExpressionConfig, FunctionConfig, cleaning_function
from tauon.data.clean.quality import C4Config, FineWebQualityConfig, GopherQualityConfig
from tauon.data.clean.repetition import GopherRepetitionConfig
from tauon.data.clean.run import Cleaning, TextCleaner
from tauon.data.clean.signals import BlankConfig, ClippedConfig, DurationConfig, SilentConfig, StuckConfig
from tauon.data.clean.tables import MissingConfig, OutliersConfig, RangeConfig, TypesConfig, UnitsConfig
from tauon.data.clean.text import HtmlConfig, LanguageConfig, LengthConfig, RepairConfig, ScriptConfig, WordsConfig

__all__ = [
    "BlankConfig",
    "C4Config",
    "CleanedDocuments",
    "Cleaning",
    "ClippedConfig",
    "DefaultConfig",
    "DuplicatesConfig",
    "DurationConfig",
    "ExpressionConfig",
    "FilterConfig",
    "FineWebQualityConfig",
    "FunctionConfig",
    "GopherQualityConfig",
    "GopherRepetitionConfig",
    "HtmlConfig",
    "LanguageConfig",
    "LengthConfig",
    "MissingConfig",
    "NearDuplicatesConfig",
    "OutliersConfig",
    "PiiConfig",
    "RangeConfig",
    "Rejected",
    "RepairConfig",
    "RowFilter",
    "RowVerdicts",
    "ScriptConfig",
    "SilentConfig",
    "StandardConfig",
    "StuckConfig",
    "Text",
    "TextCleaner",
    "TextFilter",
    "TypesConfig",
    "UnitsConfig",
    "WordsConfig",
    "cleaned",
    "cleaning_function",
    "expanded",
]
