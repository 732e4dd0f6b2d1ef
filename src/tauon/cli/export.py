"""`tauon export` and `tauon adapter merge`: trained models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tauon.cli.show import Show, pick_show

__all__ = ["adapter_command", "export_command"]

FOLDER = click.Path(path_type=Path, file_okay=False)
EPILOG = """\b
Formats:
  onnx           ONNX Runtime, on servers and small devices
  openvino       OpenVINO, on CPUs, GPUs and NPUs of Intel
  executorch     ExecuTorch, on phones and embedded devices
  aoti           AOTInductor: torch without Python, on machines like this one
  huggingface    config.json and model.safetensors for transformers, adapters merged in
  peft           the adapters alone, for PEFT
  gguf           llama.cpp and what is built on it; models shaped like Llama

\b
Examples:
  tauon export runs/patients --to onnx                        writes runs/patients/export/onnx
  tauon export runs/patients --to onnx,openvino
  tauon export runs/notes-lora --to huggingface --out notes-hf
"""


@click.command("export", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "formats", multiple=True, required=True, metavar="FORMAT", help="Format, or several: --to onnx,huggingface.")
@click.option(
    "--out", type=FOLDER, help="Folder to write, which must not exist; of several formats, one in it for each. Default: RUN/export/FORMAT."
)
@click.option("--device", help="Where the model is loaded: cpu, cuda. Programs are traced on the CPU.")
@click.option("--quiet", "-q", is_flag=True, help="Print only the folders.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, for scripts.")
def export_command(run: Path, formats: tuple[str, ...], out: Path | None, device: str | None, quiet: bool, as_json: bool) -> None:
    """Write the trained model of RUN (a run or a checkpoint) for another program. Programs are loaded in their runtime and compared with the
    model on held-out examples; one that does not agree is not kept.
    """
    from tauon.stages.export import export_run

    names = [name for given in formats for part in given.split(",") if (name := part.strip())]
    show = pick_show(quiet, as_json)
    with show:
        found = export_run(run, names, out=out, device=device, on_event=show.on_event)
    for record in found:
        _print(show, record, as_json)


def _print(show: Show, record: dict[str, Any], as_json: bool) -> None:
    from tauon.export.report import sentences

    if as_json:
        show.on_event("export", **{k: record.get(k) for k in ("kind", "folder", "verification", "latency", "bytes", "script")})
        return
    show.console.print(record["folder"], markup=False)
    if not isinstance(show, type(pick_show(True, False))):
        for line in sentences(record):
            show.console.print(f"  {line}", markup=False)


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
