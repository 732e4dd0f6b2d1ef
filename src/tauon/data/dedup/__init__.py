"""Duplicates within the data, and held-out data in the training part."""

from tauon.data.dedup.config import DecontaminateConfig, DedupConfig
from tauon.data.dedup.find import Duplicates, find_duplicates

__all__ = ["DecontaminateConfig", "DedupConfig", "Duplicates", "find_duplicates"]
