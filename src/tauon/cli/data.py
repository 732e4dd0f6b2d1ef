"""`tauon data`: look at data and write it for other programs."""

from __future__ import annotations

import click

from tauon.cli.data_card import card_command
from tauon.cli.data_export import export_command
from tauon.cli.data_report import report_command

__all__ = ["data_command"]


@click.group("data", context_settings={"help_option_names": ["-h", "--help"]})
def data_command() -> None:
    """Look at data before training, write it for other programs, and say where it came from."""


data_command.add_command(report_command)
data_command.add_command(export_command)
data_command.add_command(card_command)
