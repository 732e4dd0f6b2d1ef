"""`tauon data`: look at data and write it for other programs."""

from __future__ import annotations

import click

from tauon.cli.data_export import export_command

__all__ = ["data_command"]


@click.group("data", context_settings={"help_option_names": ["-h", "--help"]})
def data_command() -> None:
    """Write prepared training data for other programs: Parquet, WebDataset, Hugging Face datasets."""


data_command.add_command(export_command)
