"""`tauon data`: look at data, without a run."""

from __future__ import annotations

import click

from tauon.cli.data_report import report_command

__all__ = ["data_command"]


@click.group("data", context_settings={"help_option_names": ["-h", "--help"]})
def data_command() -> None:
    """Look at data before training."""


data_command.add_command(report_command)
