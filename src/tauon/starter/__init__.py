"""`tauon recipe new`: inspect a user's files, and write a runnable recipe for them, with a reason for each choice.

Trains nothing. Each kind of data has a file that makes a `Draft` of it: sections of a recipe, and a sentence for each choice. If it
cannot decide something (which column is the label, for example), it raises an error that lists the options.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from tauon.artifacts import atomic_write
from tauon.config import parse
from tauon.errors import DataError, RecipeError
from tauon.recipe import NAME, Recipe, load_recipe
from tauon.starter.draft import Draft, name_of
from tauon.starter.pictures import is_pictures, pictures
from tauon.starter.recordings import is_recordings, recordings
from tauon.starter.tables import is_table, table
from tauon.starter.text import is_jsonl, is_text, jsonl, text

__all__ = ["Draft", "draft", "write_draft"]

KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path, str | None, str], Draft]], ...] = (
    (is_table, table),
    (is_jsonl, jsonl),
    (is_recordings, recordings),
    (is_pictures, pictures),
    (is_text, text),
)
"""Kinds of data, tried in order. A new kind is one more file and one more line."""


def draft(path: Path | str, *, label: str | None = None, name: str | None = None, model: str | None = None) -> Draft:
    r"""Look at data and write a recipe for it, each choice with its reason.

    Args:
        path: a file, or a folder.
        label: what to predict: `folder`, a column, or the pattern of names of recordings (`{label}_{speaker}`).
        name: of the recipe and its runs. Left out: after the data.
        model: the trained model that conversations or preferences are to tune.

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
    name = name or name_of(place)
    for fits, make in KINDS:
        if fits(place):
            if make is jsonl:
                made = jsonl(place, label, name, model)
            elif model is not None:
                raise DataError(f"{place}: --model is only for conversations and preferences in .jsonl")
            else:
                made = make(place, label, name)
            parse(Recipe, yaml.safe_load(made.to_yaml()), "the drafted recipe")
            return made
    raise DataError(
        f"{place}: unknown kind of data. Supported are folders of images, of .wav files and of .txt files, and .csv, .tsv, .jsonl, .parquet and "
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
