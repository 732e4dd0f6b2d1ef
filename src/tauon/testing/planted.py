"""Data with planted faults, whose places are known: label flips, near-duplicates, leaks between parts, outliers, damaged encodings, personal data,
unreadable files, columns that give the label away. For tests of whatever looks for such faults.

Each function takes clean data of one kind, or makes some, and returns a changed copy and the truth. Nothing here looks for faults.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Planted", "plant_images", "plant_table", "plant_texts", "topic_texts", "write_images"]

Places = tuple[int, ...]
"""Records of one fault: one, or the original and its copy."""


@dataclass
class Planted:
    """Records of one kind of data, and the faults among them."""

    records: list[Any]
    """Texts, rows of a table as dicts, or images as uint8 arrays (height, width) or (height, width, 3)."""
    labels: list[str]
    parts: list[str]
    """train or test, of each record."""
    faults: dict[str, set[Places]] = field(default_factory=dict)
    """Kind of fault -> places."""

    def score(self, kind: str, found: set[Places]) -> tuple[float, float]:
        """Return (share of the planted faults that were found, share of what was found that was planted).

        >>> Planted(["a", "a"], ["x", "x"], ["train"] * 2, {"duplicate": {(0, 1)}}).score("duplicate", {(0, 1)})
        (1.0, 1.0)
        """
        planted = {tuple(sorted(p)) for p in self.faults[kind]}
        hits = len(planted & {tuple(sorted(p)) for p in found})
        return hits / max(1, len(planted)), hits / max(1, len(found))

    def rows_of(self, kind: str) -> set[int]:
        """Return every record that takes part in a fault of this kind."""
        return {i for places in self.faults[kind] for i in places}


TOPICS: dict[str, str] = {
    "medicine": "patient doctor nurse hospital fever surgery dose clinic disease blood organ therapy vaccine symptom virus lung treatment chronic scan tumour",
    "finance": "bank loan interest credit market stock bond profit debt payment investor account fund price share tax insurance budget currency capital",
    "weather": "rain storm wind snow cloud sunny temperature forecast cold heat humid fog thunder pressure front drizzle frost breeze season climate",
    "sport": "team match goal player coach league score season stadium referee defender striker training injury champion cup final penalty fans tournament",
}
_COMMON = (
    "the of and to in a is that for it was on are as with they at be this have from or one had by but what some we can out other were all there when up "
    "use your how said an each she which do their time if will way about many then them would like so these her long make thing see him two has look more "
    "day could go come did my sound no most number who over know water than call first people may down side been now find any new work part take get place "
    "made live where after back little only round man year came show every good give our under name very through just form much great think say help low "
    "line before turn cause same mean differ move right boy old too does tell sentence set three want air well also play small end put home read hand port"
)
_PLAIN = _COMMON.split()


def topic_texts(n: int, seed: int = 0, words: tuple[int, int] = (40, 90)) -> tuple[list[str], list[str]]:
    """Return (texts, labels): sentences of common words with words of one of four topics among them, so that a label can be learnt.

    >>> texts, labels = topic_texts(4)
    >>> labels
    ['medicine', 'finance', 'weather', 'sport']
    """
    rng, names = np.random.default_rng(seed), list(TOPICS)
    topical = {name: words.split() for name, words in TOPICS.items()}
    texts, labels = [], []
    for i in range(n):
        label, length = names[i % len(names)], int(rng.integers(*words))
        drawn = [str(rng.choice(topical[label])) if rng.random() < 0.2 else str(rng.choice(_PLAIN)) for _ in range(length)]
        sentences, at = [], 0
        while at < length:
            step = int(rng.integers(6, 15))
            sentences.append(" ".join(drawn[at : at + step]).capitalize() + ".")
            at += step
        texts.append(" ".join(sentences))
        labels.append(label)
    return texts, labels


def _draw(rng: np.random.Generator, free: list[int], count: int) -> list[int]:
    """Take `count` records that have no fault yet."""
    if count > len(free):
        raise ValueError(f"{count} faults wanted, but only {len(free)} records are left without one. Lower the share, or give more records")
    picked = [int(i) for i in rng.choice(free, count, replace=False)]
    for i in picked:
        free.remove(i)
    return picked


def _flip(rng: np.random.Generator, labels: list[str], at: Sequence[int]) -> None:
    names = sorted(set(labels))
    for i in at:
        labels[i] = str(rng.choice([n for n in names if n != labels[i]]))


def plant_texts(texts: Sequence[str], labels: Sequence[str], *, share: float = 0.03, test: float = 0.2, seed: int = 0) -> Planted:
    """Plant faults in labelled texts, of each kind in `share` of the training records.

    Kinds: label, duplicate (an edited copy), leak (a test text among the training texts), outlier (no language), encoding (UTF-8 read as Latin-1,
    or replacement characters), pii (e-mail addresses, telephone numbers, card numbers, keys).

    Args:
        texts: clean texts, of at least a dozen words for copies to be recognisable.
        labels: class of each.
        share: faults of each kind, as a share of the training records.
        test: share of records of the test part.
        seed: of every draw.
    """
    rng = np.random.default_rng(seed)
    records, classes, n = list(texts), list(labels), len(texts)
    parts = ["train"] * n
    for i in rng.choice(n, round(test * n), replace=False):
        parts[i] = "test"
    free = [i for i in range(n) if parts[i] == "train"]
    held = [i for i in range(n) if parts[i] == "test"]
    each = max(2, round(share * len(free)))
    faults: dict[str, set[Places]] = {}

    at = _draw(rng, free, each)
    _flip(rng, classes, at)
    faults["label"] = {(i,) for i in at}
    faults["duplicate"] = set()
    for i in _draw(rng, free, each):
        records.append(_edited(rng, records[i]))
        classes.append(classes[i])
        parts.append("train")
        faults["duplicate"].add((i, len(records) - 1))
    faults["leak"] = set()
    for k, i in enumerate(rng.choice(held, min(each, len(held)), replace=False).tolist()):
        records.append(records[i] if k % 2 else _edited(rng, records[i]))
        classes.append(classes[i])
        parts.append("train")
        faults["leak"].add((i, len(records) - 1))
    for kind, change in (("outlier", _noise), ("encoding", _damaged), ("pii", _with_personal_data)):
        at = _draw(rng, free, each)
        for k, i in enumerate(at):
            records[i] = change(rng, records[i], k)
        faults[kind] = {(i,) for i in at}
    return Planted(records, classes, parts, faults)


def _edited(rng: np.random.Generator, text: str) -> str:
    """A copy with one word in 25 exchanged, one left out, other blanks."""
    words = text.split()
    for at in rng.choice(len(words), max(1, len(words) // 25), replace=False):
        words[at] = str(rng.choice(_PLAIN))
    del words[int(rng.integers(len(words)))]
    return " ".join(words) + " "


def _noise(rng: np.random.Generator, text: str, k: int) -> str:
    """Not a text: random letters, numbers, or one word again and again."""
    length = len(text)
    if k % 3 == 0:
        return "".join(chr(int(c)) for c in rng.integers(33, 127, length))
    if k % 3 == 1:
        return " ".join(str(int(v)) for v in rng.integers(0, 10**6, max(8, length // 7)))
    return " ".join([str(rng.choice(_PLAIN))] * max(20, length // 5))


def _damaged(rng: np.random.Generator, text: str, k: int) -> str:
    """UTF-8 read as Latin-1 or Windows-1252, or bytes that were not UTF-8."""
    words = text.split()
    for at in rng.choice(len(words), max(3, len(words) // 8), replace=False):
        words[at] = str(rng.choice(["naïve", "café", "Zürich", "œuvre", "“quoted”", "señor", "it’s", "Größe", "—"]))
    changed = " ".join(words).encode()
    if k % 3 == 0:
        return changed.decode("latin-1")
    if k % 3 == 1:
        return changed.decode("cp1252", errors="replace")
    return changed.replace(b"\xc3", b"").replace(b"\xe2", b"").decode("utf-8", errors="replace")


def _with_personal_data(rng: np.random.Generator, text: str, k: int) -> str:
    digits = "".join(str(d) for d in rng.integers(0, 10, 6))
    card = "4539 1488 0343 6467", "5500 0055 5555 5559", "4111 1111 1111 1111"
    found = (
        f"write to anna.{digits}@example.org",
        f"call +49 30 90182{digits[:4]}",
        f"card {card[int(rng.integers(3))]}",
        f"key AKIA{''.join(rng.choice(list('ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'), 16))}",
        "account DE89 3704 0044 0532 0130 00",
    )[k % 5]
    words = text.split()
    words.insert(int(rng.integers(len(words))), found)
    return " ".join(words)


def _with_flips_and_copies(
    rng: np.random.Generator, data: Planted, share: float, test: float, copy: Callable[[int], Any]
) -> tuple[list[int], int]:
    """Choose the test part; plant the kinds label, duplicate and leak. Returns (training records without a fault, faults of each kind)."""
    n = len(data.records)
    for i in rng.choice(n, round(test * n), replace=False):
        data.parts[i] = "test"
    free, held = ([i for i in range(n) if data.parts[i] == part] for part in ("train", "test"))
    each = max(2, round(share * len(free)))
    at = _draw(rng, free, each)
    _flip(rng, data.labels, at)
    data.faults["label"] = {(i,) for i in at}
    originals = {"duplicate": _draw(rng, free, each), "leak": rng.choice(held, min(each, len(held)), replace=False).tolist()}
    for kind, numbers in originals.items():
        data.faults[kind] = set()
        for i in numbers:
            data.records.append(copy(i))
            data.labels.append(data.labels[i])
            data.parts.append("train")
            data.faults[kind].add((i, len(data.records) - 1))
    return free, each


def plant_table(rows: Sequence[dict[str, Any]], labels: Sequence[str], *, share: float = 0.03, test: float = 0.2, seed: int = 0) -> Planted:
    """Plant faults in a table, of each kind in `share` of the training rows; number columns are those whose values are all numbers.

    Kinds: label, duplicate (the same row again), leak (a test row among the training rows), outlier (a value in another unit or with a shifted decimal
    mark), broken (text in a column of numbers), pii (an e-mail address or telephone number in a column of words), giveaway (the column `result`, which
    equals the label; its place is (-1,)).
    """
    rng = np.random.default_rng(seed)
    records, classes, n = [dict(r) for r in rows], list(labels), len(rows)
    numbers = [k for k in records[0] if all(isinstance(r[k], (int, float)) for r in records)]
    for record in records:
        record["remark"] = str(rng.choice(["none", "seen again", "by letter", "first visit"]))
    found = Planted(records, classes, ["train"] * n)
    free, each = _with_flips_and_copies(rng, found, share, test, lambda i: dict(records[i]))
    faults = found.faults
    for k, i in enumerate(at := _draw(rng, free, each)):
        column = numbers[k % len(numbers)]
        there = [r[column] for r in rows]
        value, most = records[i][column] * 1000, max(map(abs, there))
        records[i][column] = value if abs(value) > 10 * most else float(20 * most + 40 * (np.std(there) or 1.0))
    faults["outlier"] = {(i,) for i in at}
    for k, i in enumerate(at := _draw(rng, free, each)):
        records[i][numbers[k % len(numbers)]] = ("n/a?", "12,3x", "see note", "1e", "ERR")[k % 5]
    faults["broken"] = {(i,) for i in at}
    at = _draw(rng, free, each)
    for i, record in enumerate(records):
        record["result"] = f"r{sorted(set(labels)).index(classes[i])}"
        if i in at:
            record["remark"] = _with_personal_data(rng, record["remark"] + " today", i % 2)
    faults["pii"], faults["giveaway"] = {(i,) for i in at}, {(-1,)}
    return found


def plant_images(
    images: Sequence[NDArray[np.uint8]], labels: Sequence[str], *, share: float = 0.03, test: float = 0.2, seed: int = 0
) -> Planted:
    """Plant faults in images, of each kind in `share` of the training images.

    Kinds: label, duplicate (a copy, brighter and with a little noise), leak (such a copy of a test image among the training images), outlier (noise, or
    inverted), blank (one colour). `write_images` adds the kind broken: files that end in the middle.
    """
    rng = np.random.default_rng(seed)
    records, classes, n = [np.array(i) for i in images], list(labels), len(images)
    found = Planted(records, classes, ["train"] * n)

    def copy(i: int) -> NDArray[np.uint8]:
        changed = records[i] * rng.uniform(0.92, 1.06) + rng.normal(0, 2, records[i].shape)
        return np.clip(changed, 0, 255).astype(np.uint8)

    free, each = _with_flips_and_copies(rng, found, share, test, copy)
    faults = found.faults
    for k, i in enumerate(at := _draw(rng, free, each)):
        records[i] = rng.integers(0, 256, records[i].shape).astype(np.uint8) if k % 2 else 255 - records[i]
    faults["outlier"] = {(i,) for i in at}
    for i in (at := _draw(rng, free, each)):
        records[i] = np.full_like(records[i], int(rng.integers(0, 256)))
    faults["blank"] = {(i,) for i in at}
    return found


def write_images(planted: Planted, folder: Path, *, broken: int = 3, seed: int = 0) -> list[Path]:
    """Write images as PNG files `folder/PART/LABEL/NUMBER.png`; the last `broken` free ones of the training part end in the middle (kind broken).

    Returns:
        Path of each record.
    """
    from PIL import Image

    rng, taken = np.random.default_rng(seed), {i for kind in planted.faults for i in planted.rows_of(kind)}
    free = [i for i, part in enumerate(planted.parts) if part == "train" and i not in taken]
    cut = set(_draw(rng, free, broken))
    paths = []
    for i, (image, label, part) in enumerate(zip(planted.records, planted.labels, planted.parts, strict=True)):
        path = folder / part / label / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        data = content.getvalue()
        path.write_bytes(data[: len(data) // 2] if i in cut else data)
        paths.append(path)
    planted.faults["broken"] = {(i,) for i in cut}
    return paths
