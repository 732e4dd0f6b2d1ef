"""`tauon export` and `tauon adapter merge`: trained weights for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["adapter_command", "export_command"]

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "to", type=FOLDER, required=True, help="Folder to write; it must not exist.")
@click.option(
    "--format", "layout", type=click.Choice(["huggingface", "peft"]), default="huggingface", show_default=True,
    help="huggingface: config.json and model.safetensors, adapters merged in. peft: only the adapters.",
)  # fmt: skip
def export_command(run: Path, to: Path, layout: Any) -> None:
    """Write the trained model of RUN (a run or a checkpoint) in a form that transformers or PEFT loads."""
    from tauon.export import export_checkpoint

    files = export_checkpoint(run, to, format=layout)
    for file in files:
        click.echo(str(file))
    if any(f.name == "generation_config.json" for f in files) and not any(f.name == "tokenizer.json" for f in files):
        click.echo(
            "no tokenizer.json was written: transformers has no tokenizer of single characters or bytes. Pass token ids to the model.",
            err=True,
        )


@click.group("adapter", context_settings={"help_option_names": ["-h", "--help"]})
def adapter_command() -> None:
    """Adapters (LoRA, DoRA): merge them into the weights of their base model."""


@adapter_command.command("merge")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "to", type=FOLDER, required=True, help="Folder to write; it must not exist.")
@click.option("--base", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Base model of a PEFT folder.")
def merge_command(run: Path, to: Path, base: Path | None) -> None:
    """Merge the adapters of RUN (a run, a checkpoint or a PEFT folder) into their base model, as a checkpoint for `model.from`."""
    from tauon.export import merge_adapter

    click.echo(str(merge_adapter(run, to, base=base)))
