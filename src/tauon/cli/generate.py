"""`tauon generate`: let a trained language model continue a text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tauon.data import Tokenizer

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
    from tauon.context import Context, quiet
    from tauon.data import Tokenizer
    from tauon.errors import RunError
    from tauon.generate import Sampling, generate
    from tauon.models import GPT
    from tauon.pipeline import load_model
    from tauon.recipe import load_recipe

    recipe = load_recipe(run)
    checkpoint = Context(recipe, Run.read(run), quiet).final_checkpoint
    model, precision = load_model(checkpoint, recipe, weights=recipe.evaluate.weights)
    if not isinstance(model, GPT):
        raise RunError(f"{run} trained a {recipe.model.kind_}, which writes no text. Take a run of task language-modelling.")
    tokenizer = Tokenizer.from_json(checkpoint.state["preprocess"]["tokenizer"])
    text = _text_of(prompt)
    ids, stops, before = _asked(checkpoint.state["preprocess"], tokenizer, text, plain)
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
        click.echo(before, nl=False)
    how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    out = generate(
        model, ids, max_tokens=tokens, samples=samples, sampling=how, stop_id=stops, context=precision.context,
        on_token=stream if live else None,
    )  # fmt: skip
    if live:
        click.echo(tokenizer.decode(out[0])[len(shown) :])
        return
    for i, new in enumerate(out):
        click.secho(f"----- {i + 1}", dim=True)
        click.echo(before + tokenizer.decode(new))


def _text_of(prompt: str) -> str:
    from tauon.errors import DataError

    try:
        text = sys.stdin.buffer.read().decode("utf-8") if prompt == "-" else prompt
        text.encode("utf-8")
    except UnicodeError as err:
        raise DataError(f"the prompt is not UTF-8 ({err}). Convert it first.") from None
    return text


def _asked(preprocess: Mapping[str, Any], tokenizer: Tokenizer, text: str, plain: bool) -> tuple[list[int], set[int], str]:
    """(tokens to begin with, tokens that end the text, what is shown before what the model writes)."""
    from tauon.data import Message, chat_prompt
    from tauon.errors import DataError

    stops = {tokenizer.bos, tokenizer.eos}
    if preprocess.get("kind") not in ("chat", "pairs") or plain:
        return [tokenizer.bos, *tokenizer.encode(text).tolist()], stops, text
    if not text.strip():
        raise DataError(
            "this model was tuned to answer, and there is no question. Give one with --prompt, or continue a text with --plain."
        )
    ids, end = chat_prompt(preprocess, [Message("user", text)])
    return ids, stops | {end}, ""
