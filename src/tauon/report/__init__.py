"""Report: turns a run's records into one offline HTML page with plots. It only reads files and computes no metrics."""

from tauon.report.lr_range import range_page
from tauon.report.page import Section
from tauon.report.records import Records
from tauon.report.render import SECTIONS, SectionMaker, core_sections, render

__all__ = ["SECTIONS", "Records", "Section", "SectionMaker", "core_sections", "range_page", "render"]
