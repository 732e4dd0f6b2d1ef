"""Cleaning: filters that repair, mask or reject records before they are split, each counted, with its reason kept for every record."""

from tauon.data.clean.base import DefaultConfig, FilterConfig, Rejected, RowFilter, RowVerdicts, Text, TextFilter, expanded
from tauon.data.clean.defaults import StandardConfig  # registers itself, as do the filters below
from tauon.data.clean.documents import CleanedDocuments, cleaned
from tauon.data.clean.pii import PiiConfig
from tauon.data.clean.predicates import ExpressionConfig, FunctionConfig, cleaning_function
from tauon.data.clean.quality import C4Config, FineWebQualityConfig, GopherQualityConfig
from tauon.data.clean.repetition import GopherRepetitionConfig
from tauon.data.clean.run import Cleaning, TextCleaner
from tauon.data.clean.text import HtmlConfig, LanguageConfig, LengthConfig, RepairConfig, ScriptConfig, WordsConfig

__all__ = [
    "C4Config",
    "CleanedDocuments",
    "Cleaning",
    "DefaultConfig",
    "ExpressionConfig",
    "FilterConfig",
    "FineWebQualityConfig",
    "FunctionConfig",
    "GopherQualityConfig",
    "GopherRepetitionConfig",
    "HtmlConfig",
    "LanguageConfig",
    "LengthConfig",
    "PiiConfig",
    "Rejected",
    "RepairConfig",
    "RowFilter",
    "RowVerdicts",
    "ScriptConfig",
    "StandardConfig",
    "Text",
    "TextCleaner",
    "TextFilter",
    "WordsConfig",
    "cleaned",
    "cleaning_function",
    "expanded",
]
