"""A run's records -> one offline HTML page with plots. Reads files, draws them, measures nothing."""

from tauon.report.lr_range import range_page
from tauon.report.page import Section
from tauon.report.records import Records
from tauon.report.render import SECTIONS, SectionMaker, core_sections, render

__all__ = ["SECTIONS", "Records", "Section", "SectionMaker", "core_sections", "range_page", "render"]
