"""Running text, and folders of texts: a language model, or classes if subfolders sort the texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.data.files import read_bytes
from tauon.data.sources.class_folders import PART_NAMES, class_folders, part_of
from tauon.data.sources.system_files import is_system_file
from tauon.data.sources.text_folder import is_text_name
from tauon.data.text_files import read_text
from tauon.errors import DataError
from tauon.starter.draft import Asked, Draft, encoding_of, suffix_of, suffixes, training
from tauon.starter.names import groups_in_names
from tauon.starter.text_tasks import classes

__all__ = ["is_text", "language", "text"]

_SUFFIXES = (".txt", ".md", ".text")
_UNLABELLED = ("unsup", "unlabeled", "unlabelled", "unsupervised")


def is_text(place: Path) -> bool:
    if place.is_file():
        return suffix_of(place.name) in _SUFFIXES
    found = suffixes(place)
    return sum(found[s] for s in _SUFFIXES) > sum(found.values()) / 2


def text(place: Path, asked: Asked) -> Draft:
    """Draft for a text file, or a folder of them."""
    if place.is_dir():
        files = [p for p in sorted(place.rglob("*")) if p.is_file() and is_text_name(p.name) and not is_system_file(p.relative_to(place))]
        root = _class_root(place)
        if asked.label not in (None, "folder"):
            raise DataError(f"{place}: the label of texts in files is their folder: expected --label folder, got {asked.label!r}")
        if root is not None or asked.label == "folder":
            return _text_classes(place, root or place, files, asked)
    elif asked.label is not None:
        raise DataError(f"{place}: running text has no label, got --label {asked.label!r}")
    else:
        files = [place]
    encoding, said = encoding_of(files, asked, place)
    source = {"kind": "text", "path": str(place)} | encoding
    if place.is_dir() and (odd := {suffix_of(p.name) for p in place.rglob("*") if p.is_file()} - {*_SUFFIXES}):
        source["pattern"] = "**/*" + next(s for s in _SUFFIXES if s not in odd and any(p.name.lower().endswith(s) for p in files))
    characters = sum(len(read_text(read_bytes(p), str(p), encoding.get("encoding", "utf-8"))) for p in files)
    return language(place, source, characters, asked.name, why=[said])


def _class_root(place: Path) -> Path | None:
    """Return the folder whose subfolders sort the texts into classes: at least two with several texts each, and no text beside them."""
    base = place
    while True:
        inside = class_folders(base)
        loose = any(p.is_file() and is_text_name(p.name) for p in base.iterdir())
        if loose or not inside:
            return None
        if len(inside) == 1:
            base = inside[0]
            continue
        break
    root = part_of(base, "train") or base
    folders = [f for f in class_folders(root) if f.name.lower() not in _UNLABELLED]
    counts = [sum(1 for p in f.rglob("*") if p.is_file() and is_text_name(p.name)) for f in folders]
    return base if len(folders) >= 2 and min(counts) >= 3 else None


def _text_classes(place: Path, base: Path, files: list[Path], asked: Asked) -> Draft:
    root = part_of(base, "train") or base
    encoding, said = encoding_of(files, asked, place)
    folders = class_folders(root)
    drop = [f.name for f in folders if f.name.lower() in _UNLABELLED]
    kept = [f for f in folders if f.name not in drop]
    inside = [p for f in kept for p in f.rglob("*") if p.is_file() and is_text_name(p.name)]
    source: dict[str, Any] = {"kind": "text-folder", "path": str(base)} | encoding | ({"drop": drop} if drop else {})
    groups = groups_in_names([p.name for p in inside])
    if groups is not None and all(f.parent == p.parent for f in kept for p in [f]):
        source |= {"pattern": "{label}/" + groups.pattern, "group": "group"}
    why = [said, f"The class of a text is its folder ({', '.join(f.name for f in kept[:6])}{', ...' if len(kept) > 6 else ''})."]
    why += [f"{', '.join(drop)} is left out: texts without a class." for _ in drop[:1]]
    why.append(f"For a language model of all texts instead: source: {{kind: text, path: {base}}} and task: language-modelling.")
    made = classes(place, source, examples=len(inside), distinct=len(kept), name=asked.name, label="the class", why=why, groups=groups)
    if root != base:
        made.sections["data"].pop("split", None)
        if part_of(base, "test") is None:
            made.sections["data"]["split"] = {"validation": "10%", "test": "10%"}
        made.why["data"] = [s for s in made.why["data"] if "held out" not in s] + [
            f"The parts are folders: {', '.join(n for names in PART_NAMES.values() for n in names if (base / n).is_dir())}."
        ]
    return made


def language(place: Path, source: dict[str, Any], characters: int, name: str, *, why: list[str] | None = None) -> Draft:
    """Draft for a language model of about so many characters of text."""
    vocab = 512 if characters < 1_000_000 else 4096
    seq_len = 64 if characters < 200_000 else 256
    examples = max(20, characters // (3 * seq_len))
    made = Draft(name, f"A small language model of {place.name}, about {characters:,} characters", examples=examples)
    data = {"source": source, "tokenizer": {"kind": "bpe", "vocab": vocab}, "seq_len": seq_len, "split": {"validation": "10%"}}
    made.set("data", data, *(why or []), f"{vocab:,} pieces of words are learned from the text; examples are {seq_len} of them.")
    made.set("task", "language-modelling")
    width = 64 if characters < 1_000_000 else 256
    made.set(
        "model", {"kind": "gpt", "layers": 4, "width": width, "heads": 4}, "A small transformer: more layers and width want more text."
    )
    made.set("optim", {"kind": "muon", "lr": 0.02, "schedule": {"kind": "wsd"}})
    train, reasons = training(examples, batch=16, seen=20_000, most=20)
    made.set("train", train, *reasons)
    return made
