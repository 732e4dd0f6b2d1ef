"""`tauon generate`: let a trained language model continue a text."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["generate_command"]


@click.command("generate")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--prompt", "-p", default="", help="Text to continue. Default: the start of a document. `-` reads standard input.")
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
    run: Path, prompt: str, tokens: int, samples: int, temperature: float, top_k: int | None, top_p: float, seed: int
) -> None:
    """Let the language model in the folder RUN continue a text, token by token."""
    from tauon.artifacts import Run
    from tauon.context import Context, quiet
    from tauon.data import Tokenizer
    from tauon.errors import DataError, RunError
    from tauon.generate import generate
    from tauon.models import GPT
    from tauon.pipeline import load_model
    from tauon.recipe import load_recipe

    recipe = load_recipe(run)
    checkpoint = Context(recipe, Run.read(run), quiet).final_checkpoint
    model, precision = load_model(checkpoint, recipe, weights=recipe.evaluate.weights)
    if not isinstance(model, GPT):
        raise RunError(f"{run} trained a {recipe.model.kind_}, which writes no text. Take a run of task language-modelling.")
    tokenizer = Tokenizer.from_json(checkpoint.state["preprocess"]["tokenizer"])
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if prompt == "-" else prompt
        text.encode("utf-8")
    except UnicodeError as err:
        raise DataError(f"the prompt is not UTF-8 ({err}). Convert it first.") from None
    ids = [tokenizer.bos, *tokenizer.encode(text).tolist()]
    shown = ""
    live = samples == 1
    so_far: list[int] = []

    def stream(_: int, token: int) -> None:
        nonlocal shown
        so_far.append(token)
        now = tokenizer.decode(so_far)
        if not now.endswith("�"):  # half a character: wait for the rest
            click.echo(now[len(shown) :], nl=False)
            shown = now

    if live:
        click.echo(text, nl=False)
    out = generate(
        model, ids, max_tokens=tokens, samples=samples, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        stop_id=tokenizer.bos, context=precision.context, on_token=stream if live else None,
    )  # fmt: skip
    if live:
        click.echo(tokenizer.decode(out[0])[len(shown) :])
        return
    for i, new in enumerate(out):
        click.secho(f"----- {i + 1}", dim=True)
        click.echo(text + tokenizer.decode(new))
