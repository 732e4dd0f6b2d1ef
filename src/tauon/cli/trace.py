"""`tauon trace RUN`: where a token of the training data came from, where a text stands in it, what a step was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tauon.data.trace import Found

__all__ = ["trace_command"]

EPILOG = """\b
Examples:
  tauon trace runs/quickstart --token 1000                 source, file and line of this token of the training part
  tauon trace runs/quickstart --token 1000 --part validation
  tauon trace runs/quickstart --text "def main("           where this text stands in the training part, or why it was rejected
  tauon trace runs/quickstart --step 0 --row 1             the documents of one row of one batch

\b
Tokens are counted from 0 over the part's whole stream, the BOS before each document included. Nothing but the run's data.json and
the prepared data in the cache is read. Of a rejected record only the first 300 characters are known, and none where a filter hides them (pii).
"""


@click.command("trace", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--token", type=click.IntRange(0), help="Position of a token in the stream of the part.")
@click.option("--text", help="A text to find.")
@click.option("--step", type=click.IntRange(0), help="A training step, from 0: list the documents that its batch has.")
@click.option("--row", type=click.IntRange(0), help="With --step: only this row of the batch, from 0.")
@click.option("--part", type=click.Choice(["train", "validation", "test"]), default="train", show_default=True, help="Part of the data.")
@click.option("--most", type=click.IntRange(1), default=10, show_default=True, help="With --text: show at most this many places.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per place, for scripts.")
def trace_command(
    run: Path, token: int | None, text: str | None, step: int | None, row: int | None, part: str, most: int, as_json: bool
) -> None:
    """Say where training data came from: source, file and record, place in the record, licence, and the text around it."""
    if sum(given is not None for given in (token, text, step)) != 1:
        raise click.UsageError("give one of --token, --text and --step")
    if row is not None and step is None:
        raise click.UsageError("--row names a row of a batch; give --step too")
    if step is not None and part != "train":
        raise click.UsageError("--step is a training step; remove --part")
    from tauon.data.trace import Trail

    trail, left_out = Trail(run), list[dict[str, Any]]()
    if token is not None:
        places = [trail.token(token, part)]
    elif text is not None:
        places = trail.find(text, part, most)
        left_out = trail.rejected(text, part, most)
    else:
        from tauon.stages.trace_step import places_of_step

        shards = trail.shards("train")
        places = [trail.token(position, "train", shards=shards) for position in places_of_step(run, step or 0, row)]
    if as_json:
        for place in places:
            click.echo(json.dumps(place.to_json()))
        for line in left_out:
            click.echo(json.dumps({"rejected": line}))
        return
    if not places:
        click.echo(f"not in the {part} part")
    for i, place in enumerate(places):
        click.echo(("" if i == 0 else "\n") + _described(place))
    for line in left_out:
        click.echo("\n" + _rejected(line))


_SHORT = {"decontaminate": "held out"}


def _rejected(row: dict[str, Any]) -> str:
    names = (
        ("source", "source"),
        ("record", "record"),
        ("step", "step"),
        ("rule", "rule"),
        ("reason", "reason"),
        ("of", "repeats"),
        ("text", "text"),
    )
    lines = [f"  {shown:<8} {row[key]}".replace("\n", "\\n") for key, shown in names if row.get(key)]
    return "\n".join([f"rejected, not in the {row['part']} part:", *lines])


def _described(found: Found) -> str:
    what = repr(found.text) if found.text else "before a document"
    lines = [
        f"token {found.position:,} of {found.part}: id {found.token}, {what}",
        f"  source   {found.source}",
        f"  record   {found.record:,}: {found.name}",
        f"  offset   character {found.offset:,}",
        f"  licence  {found.licence or 'not stated (data.source.licence)'}",
    ]  # fmt: skip
    lines += [f"  origin   {found.origin}"] if found.origin else []
    lines += [f"  split    by {found.split}"] if found.split else []
    lines += [f"  {_SHORT.get(name, name):<8} {verdict}" for name, verdict in found.verdicts.items()]
    return "\n".join([*lines, f"  text     {found.before}[{found.text}]{found.after}".replace("\n", "\\n")])
