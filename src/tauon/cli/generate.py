"""`tauon generate`: let a trained language model continue a text."""

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
    help="Text to continue, or a question to a model that was tuned to answer. Default: the start of a document. `-` reads standard input.",
)  # fmt: skip
@click.option("--plain", is_flag=True, help="Continue the text as it is, also where the model was tuned to answer with a chat template.")
@click.option("--tokens", "-n", default=200, show_default=True, type=click.IntRange(1), help="Most tokens to write.")
@click.option("--samples", "-s", default=1, show_default=True, type=click.IntRange(1), help="How many continuations.")
@click.option(
    "--temperature", "-t", default=0.8, show_default=True, type=click.FloatRange(0), help="0 takes the likeliest token each time."
)
@click.option("--top-k", type=click.IntRange(1), help="Only among the k likeliest tokens.")
@click.option(
    "--top-p",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Only among the likeliest tokens of this joint share.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed writes the same text.")
def generate_command(
    run: Path, prompt: str, plain: bool, tokens: int, samples: int, temperature: float, top_k: int | None, top_p: float, seed: int
) -> None:
    """Let the language model in the folder RUN continue a text, token by token; one that was tuned to answer answers."""
    from tauon.artifacts import Run
    from tauon.generate import Sampling
    from tauon.recipe import load_recipe
    from tauon.stages.context import Context, null_callback
    from tauon.stages.generate import TextGenerator

    asked: dict[str, Any] = {
        "max_tokens": tokens, "samples": samples, "plain": plain,
        "sampling": Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
    }  # fmt: skip
    writer = TextGenerator(Context(load_recipe(run), Run.read(run), null_callback))
    text = _text_of(prompt)
    before = "" if writer.answers(plain=plain) else text
    if samples == 1:
        click.echo(before, nl=False)
        writer.write(text, **asked, on_text=lambda piece: click.echo(piece, nl=False))
        click.echo()
        return
    for i, new in enumerate(writer.write(text, **asked)):
        click.secho(f"----- {i + 1}", dim=True)
        click.echo(before + new)


def _text_of(prompt: str) -> str:
    from tauon.errors import DataError

    try:
        text = sys.stdin.buffer.read().decode("utf-8") if prompt == "-" else prompt
        text.encode("utf-8")
    except UnicodeError as err:
        raise DataError(f"the prompt is not UTF-8 ({err}). Convert it first.") from None
    return text
