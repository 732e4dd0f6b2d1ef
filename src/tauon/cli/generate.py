"""`tauon generate`: continue a text with a trained language model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

__all__ = ["generate_command"]


@click.command("generate")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--prompt", "-p", default="",
    help="Text to continue, or a question to a chat model. Default: the start of a document. `-` reads standard input.",
)  # fmt: skip
@click.option("--plain", is_flag=True, help="Continue the prompt as plain text, without the model's chat template.")
@click.option("--tokens", "-n", default=200, show_default=True, type=click.IntRange(1), help="Most tokens to generate.")
@click.option("--samples", "-s", default=1, show_default=True, type=click.IntRange(1), help="Number of continuations.")
@click.option("--temperature", "-t", default=0.8, show_default=True, type=click.FloatRange(0), help="0 always takes the most likely token.")
@click.option("--top-k", type=click.IntRange(1), help="Sample only from the k most likely tokens.")
@click.option(
    "--top-p",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample only from the most likely tokens that add up to this probability.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed generates the same text.")
def generate_command(
    run: Path, prompt: str, plain: bool, tokens: int, samples: int, temperature: float, top_k: int | None, top_p: float, seed: int
) -> None:
    """Continue a text with the language model in the folder RUN. A chat model answers the prompt."""
    from tauon.artifacts import RunFolder
    from tauon.generate import Sampling
    from tauon.recipe import load_recipe
    from tauon.stages.context import Context, null_callback
    from tauon.stages.generate import TextGenerator

    options: dict[str, Any] = {
        "max_tokens": tokens, "samples": samples, "plain": plain,
        "sampling": Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
    }  # fmt: skip
    writer = TextGenerator(Context(load_recipe(run), RunFolder.read(run), null_callback))
    text = _read_prompt(prompt)
    prefix = "" if writer.answers(plain=plain) else text
    if samples == 1:
        click.echo(prefix, nl=False)
        writer.write(text, **options, on_text=lambda piece: click.echo(piece, nl=False))
        click.echo()
        return
    for i, new in enumerate(writer.write(text, **options)):
        click.secho(f"----- {i + 1}", dim=True)
        click.echo(prefix + new)


def _read_prompt(prompt: str) -> str:
    from tauon.errors import DataError

    try:
        text = sys.stdin.buffer.read().decode("utf-8") if prompt == "-" else prompt
        text.encode("utf-8")
    except UnicodeError as err:
        raise DataError(f"the prompt is not UTF-8 ({err}). Convert it first.") from None
    return text
