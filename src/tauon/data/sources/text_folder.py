"""A folder of texts with one subfolder per class: pos/1.txt, neg/2.txt. Subfolders named train, val (valid, validation) and test are published
parts. Text without classes is read by `text.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from tauon.config import register
from tauon.data.files import read_bytes
from tauon.data.labels import class_numbers
from tauon.data.sources.base import Kind, LabelledTexts, SourceConfig
from tauon.data.sources.class_folders import class_folders, natural, part_of, visible
from tauon.data.sources.left_out import SkippedFiles
from tauon.data.sources.name_parts import parts_of_names, wrong_group, wrong_pattern
from tauon.data.text_files import read_text, wrong_encoding
from tauon.errors import DataError

__all__ = ["TEXT_SUFFIXES", "TextFolderConfig", "is_text_name"]

TEXT_SUFFIXES = (".txt", ".md", ".text", ".txt.gz", ".md.gz", ".txt.zst")
"""File suffixes that are read as texts."""


def is_text_name(name: str) -> bool:
    """Return whether a file is a text by its name."""
    return name.lower().endswith(TEXT_SUFFIXES)


@register("text-folder")
class TextFolderConfig(SourceConfig):
    """Text files in subfolders, one subfolder per class; each file is one text."""

    path: str
    """The folder: `path/<class>/<text>`, or `path/train/<class>/<text>` with `val` and `test` beside `train`."""
    split: Literal["auto", "train", "validation", "test"] = "auto"
    """Which part to read. auto: the subfolder `train` if it exists, with `val` and `test` as held-out parts; otherwise the folder itself."""
    drop: tuple[str, ...] = ()
    """Subfolders that are no classes: unlabelled texts, for example."""
    encoding: str = "utf-8"
    """Text encoding, read strictly. A byte order mark (UTF-8, UTF-16, UTF-32) takes precedence."""
    pattern: str | None = None
    """Pattern of the file names below `path`, without suffix: `{label}/{author}_{number}`; for `group`. Default: names have no parts."""
    group: str | None = None
    """Part of the pattern that belongs together (an author): all texts of one are in the same part. Default: no groups."""

    provides: ClassVar[Kind] = "labelled-text"

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from wrong_encoding(self.raw_value("encoding"))
        if self.raw_value("pattern") is not None:
            yield from wrong_pattern(self.raw_value("pattern"), TEXT_SUFFIXES, labelled=True)
            if self.raw_value("group") is None:
                yield "pattern", "has no effect without group, the part of it that belongs together; set group, or remove it"
        yield from wrong_group(self.raw_value("group"), self.raw_value("pattern"))

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        base = Path(self.path).expanduser()
        if self.split != "auto" or part_of(base, "train") is None or part_of(base, name) is None:
            return None
        return self.model_copy(update={"split": name, "limit": None})

    def per_example(self) -> dict[str, Any]:
        return {"text": ["text"]}

    def files(self) -> list[tuple[Path, str]]:
        root = self._root()
        found = [(p, p.relative_to(root).as_posix()) for folder in self._classes(root) for p in _texts(folder)]
        if not found:
            raise DataError(f"{root}: no text in this folder ({', '.join(TEXT_SUFFIXES[:3])}). Expected {root.name}/<class>/<text>")
        return found

    def reads(self) -> list[Path]:
        parts = (self, self.part("validation"), self.part("test"))
        return [path for part in parts if part is not None for path, _ in part.files()]

    def labelled_texts(self) -> LabelledTexts:
        root, files = self._root(), self.files()
        labels = [p.relative_to(root).parts[0] for p, _ in files]
        if len({*labels}) == 1 and self.split in ("auto", "train"):
            raise DataError(f"{root}: only one class ({labels[0]}), expected at least two subfolders with texts")
        texts = [read_text(read_bytes(p), str(p), self.encoding) for p, _ in files]
        targets, names = class_numbers(labels, str(root))
        groups: list[str] = []
        if self.group is not None and self.pattern is not None:
            parts = parts_of_names([name for _, name in files], self.pattern, str(root), TEXT_SUFFIXES)
            groups = [part[self.group] for part in parts.values()]
        taken = {path for path, _ in files}
        others = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file() and p not in taken]
        notes = tuple(f"left out: {line}" for line in SkippedFiles().add("not texts of a class", others).lines())
        return LabelledTexts(texts, targets, names, [str(p) for p, _ in files], labels, "the folder", groups, notes=notes)

    def _root(self) -> Path:
        base = Path(self.path).expanduser()
        if not base.is_dir():
            raise DataError(f"{base}: no such folder. Relative paths start at {Path.cwd()}")
        wanted = "train" if self.split == "auto" else self.split
        found = part_of(base, wanted)
        if found is None and self.split != "auto":
            raise DataError(f"{base}: no subfolder of the part {wanted!r}")
        return found or base

    def _classes(self, root: Path) -> list[Path]:
        return [folder for folder in class_folders(root) if folder.name not in self.drop]


def _texts(folder: Path) -> list[Path]:
    inside = visible(folder)
    found = [p for p in inside if p.is_file() and is_text_name(p.name)]
    return sorted(found, key=natural) + [p for below in inside if below.is_dir() for p in _texts(below)]
