"""Data sources, one file each. Importing this registers those that come with Tauon."""

from tauon.data.sources.base import Arrays, Conversation, Document, LabelledTexts, Message, Pair, Series, Signals, SourceConfig, Table
from tauon.data.sources.chat import ChatSourceConfig, PairsConfig
from tauon.data.sources.folder import FolderConfig
from tauon.data.sources.hf_disk import HfDiskConfig
from tauon.data.sources.idx import IdxConfig
from tauon.data.sources.mixture import MixtureConfig
from tauon.data.sources.npz import NpzConfig
from tauon.data.sources.public import PublicConfig
from tauon.data.sources.series import SeriesConfig
from tauon.data.sources.sklearn import SklearnConfig
from tauon.data.sources.stdlib import PythonStdlibConfig
from tauon.data.sources.table_files import CsvConfig, JsonlConfig, ParquetConfig
from tauon.data.sources.text import TextConfig
from tauon.data.sources.text_folder import TextFolderConfig
from tauon.data.sources.wav import WavConfig
from tauon.data.sources.webdataset import WebDatasetConfig

__all__ = [
    "Arrays",
    "ChatSourceConfig",
    "Conversation",
    "CsvConfig",
    "Document",
    "FolderConfig",
    "HfDiskConfig",
    "IdxConfig",
    "JsonlConfig",
    "LabelledTexts",
    "Message",
    "MixtureConfig",
    "NpzConfig",
    "Pair",
    "PairsConfig",
    "ParquetConfig",
    "PublicConfig",
    "PythonStdlibConfig",
    "Series",
    "SeriesConfig",
    "Signals",
    "SklearnConfig",
    "SourceConfig",
    "Table",
    "TextConfig",
    "TextFolderConfig",
    "WavConfig",
    "WebDatasetConfig",
]
