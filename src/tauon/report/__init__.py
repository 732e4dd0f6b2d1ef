"""A run's records -> one offline HTML page with plots. Reads files, draws them, measures nothing."""

from tauon.report.lr_range import range_page
from tauon.report.page import Section
from tauon.report.records import Records
from tauon.report.render import SECTIONS, render
from tauon.report.trade_off import trade_off_chart, trade_off_page

__all__ = ["SECTIONS", "Records", "Section", "range_page", "render", "trade_off_chart", "trade_off_page"]
