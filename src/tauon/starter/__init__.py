"""`tauon recipe new`: inspect a user's files, and write a runnable recipe for them, with a reason for each choice.

Trains nothing, except a few steps whose time is measured. Each kind of data has a file that makes a `Draft` of it: sections of a recipe,
and a sentence for each choice. If it cannot decide something (which column is the label, for example), it raises an error that lists the options.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from tauon.artifacts import atomic_write
from tauon.config import parse
from tauon.errors import DataError, RecipeError
from tauon.recipe import NAME, Recipe, load_recipe
from tauon.starter.draft import Asked, Draft, name_of
from tauon.starter.json_rows import is_json, json_file
from tauon.starter.pictures import is_pictures, pictures
from tauon.starter.recordings import is_recordings, recordings
from tauon.starter.tables import is_parquet, is_table, parquet, table
from tauon.starter.text import is_text, text
from tauon.starter.timing import add_time

__all__ = ["Asked", "Draft", "draft", "write_draft"]

KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path, Asked], Draft]], ...] = (
    (is_table, table),
    (is_json, json_file),
    (is_parquet, parquet),
    (is_recordings, recordings),
    (is_pictures, pictures),
    (is_text, text),
)
"""Kinds of data, tried in order. A new kind is one more file and one more line."""


def draft(
    path: Path | str, *, label: str | None = None, name: str | None = None, model: str | None = None, inputs: Sequence[str] = (),
    encoding: str | None = None, measure: bool = False,
) -> Draft:  # fmt: skip
    r"""Look at data and write a recipe for it, each choice with its reason.

    Args:
        path: a file, or a folder.
        label: what to predict: `folder` (or `subfolder`), a column, or the pattern of file names (`{label}_{speaker}`).
        name: of the recipe and its runs. Left out: after the data.
        model: the trained model that conversations or preferences are to tune.
        inputs: columns to predict from, if looking cannot decide.
        encoding: of text files. Left out: detected.
        measure: measure a few training steps, so that the recipe says how long it trains here, and shorten a training of more than 15 minutes.

    Raises:
        DataError: data of an unknown kind, or a label that must be named.
        RecipeError: a name that runs cannot have.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "patients.csv"
    >>> _ = path.write_text("age,dose,died\n" + "".join(f"{30 + i},{i % 7},{'no yes'.split()[i % 2]}\n" for i in range(60)))
    >>> draft(path, label="died").name
    'patients'
    """
    place = Path(path)
    if name is not None and not re.fullmatch(NAME, name):
        message = (
            f"--name {name!r} is not a valid run name: use ASCII letters, digits, '.', '_' and '-', at most 100, a letter or a digit first."
        )
        raise RecipeError(f"{message} For example: --name {name_of(Path(name))}. The file name is free (--to).")
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    asked = Asked(name or name_of(place), label, model, tuple(inputs), encoding)
    for fits, make in KINDS:
        if fits(place):
            if model is not None and make is not json_file:
                raise DataError(f"{place}: --model is only for conversations and preferences in .jsonl or .json")
            made = make(place, asked)
            parse(Recipe, yaml.safe_load(made.to_yaml()), "the drafted recipe")
            return add_time(made) if measure else made
    raise DataError(
        f"{place}: unknown kind of data. Supported are folders of images, of .wav files and of .txt files, and .csv, .tsv, .jsonl, .json, .parquet and "
        ".txt files. For anything else start from `tauon recipe show breast-cancer --source`."
    )


def write_draft(made: Draft, target: Path, *, force: bool = False) -> Path:
    """Write the recipe; an existing file is an error, unless `force`. Raises `RecipeError`."""
    if target.exists() and not force:
        raise RecipeError(f"{target} exists already. Name another file with --to, or overwrite it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, made.to_yaml())
    load_recipe(target)
    return target
