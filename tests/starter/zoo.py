"""Small inputs as people have them: file or folder, what was said, and the recipe that is right. Made by seed; no data is stored."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tones import tone, write_wav

__all__ = ["ZOO", "Case"]

WORDS = [
    "river",
    "stone",
    "light",
    "under",
    "quiet",
    "morning",
    "of",
    "the",
    "a",
    "and",
    "long",
    "road",
    "home",
    "to",
    "from",
    "where",
    "we",
    "went",
    "with",
    "old",
    "friends",
    "again",
    "today",
]
GOOD, BAD = "lovely great fun warm bright", "dull poor sad cold flat"


@dataclass(frozen=True)
class Case:
    """One input, and what is right."""

    name: str
    make: Callable[[Path], Path]
    """(empty folder) -> the file or folder to look at."""
    task: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    """Keys of the source; a value of None: the key is absent."""
    split: str = "row"
    """row, group, time, series (the end), parts (folders), document."""
    group: str | None = None
    table: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    """Regular expressions that the comments of the recipe match."""
    asks: str = ""
    """Instead of a recipe: what the error says."""
    given: dict[str, Any] = field(default_factory=dict)
    """Arguments of `draft`."""
    notes: str = ""
    """What a note of the prepared data says."""
    steps: bool = False
    """Whether it is also trained for two steps."""


ZOO: list[Case] = []
CHINESE = "".join(random.Random(0).choices("河石光下静晨长路回家我们去老友又今天，。", k=6000))


def zoo(name: str, **right: Any) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Register the maker below as a case."""

    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        ZOO.append(Case(name, make, **right))
        return make

    return add


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as f:
        out = csv.writer(f, delimiter=delimiter, lineterminator="\n")
        if header:
            out.writerow(header)
        out.writerows(rows)
    return path


def lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    return path


def text(seed: int, n: int = 12, tone_: str = "") -> str:
    draw = random.Random(seed)
    return " ".join([*(draw.choice(WORDS) for _ in range(n)), *([draw.choice(tone_.split())] if tone_ else []), str(seed)])


def opinions(n: int = 120, words: int = 12) -> list[tuple[str, int]]:
    return [(text(i, words, GOOD if i % 2 else BAD), i % 2) for i in range(n)]


def hours(n: int, start: str = "2024-01-01T00:00") -> list[datetime.datetime]:
    return [datetime.datetime.fromisoformat(start) + datetime.timedelta(hours=i) for i in range(n)]


def days(n: int, start: str = "2020-01-01", *, weekdays: bool = False, without: Sequence[int] = ()) -> list[datetime.date]:
    found = []
    day = datetime.date.fromisoformat(start)
    while len(found) < n:
        if not weekdays or day.weekday() < 5:
            found.append(day)
        day += datetime.timedelta(1)
    return [d for i, d in enumerate(found) if i not in without]


def wave(i: int) -> float:
    return round(10 + math.sin(i / 4) + 0.1 * math.cos(i * 1.7), 4)


def image(path: Path, seed: int, bright: bool, side: int = 20, suffix: str = ".png") -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    small = Image.new("RGB", (5, 5))
    small.putdata([(draw.randint(0, 90) + 150 * bright,) * 3 for _ in range(25)])
    small.resize((side, side)).save(path.with_suffix(suffix))


# ---------------------------------------------------------------------------------------------- 1: texts in tables


@zoo("text-01", task="text-classification", source={"text": "text", "label": "label"}, steps=True, train={"epochs": 1})
def _(f: Path) -> Path:
    return write(f / "x.csv", ["label", "text"], [(y, t) for t, y in opinions()])


@zoo("text-and-number", task="text-classification", source={"text": "text", "label": "label"}, said=("length_s: not read",))
def _(f: Path) -> Path:
    return write(f / "x.csv", ["label", "text", "length_s"], [(y, t, round(3 + i % 7 / 3, 2)) for i, (t, y) in enumerate(opinions())])


@zoo("short-questions", task="text-classification", source={"text": "question", "label": "category"})
def _(f: Path) -> Path:
    kinds = ["place", "person", "number", "thing"]
    return write(
        f / "q.csv",
        ["question", "category"],
        [(f"{['where', 'who', 'how', 'what'][i % 4]} is {text(i, 2)}", kinds[i % 4]) for i in range(200)],
    )


@zoo("title-and-body", task="text-classification", source={"text": ["title", "body"], "label": "topic"}, said=("title and body are read",))
def _(f: Path) -> Path:
    rows = [(text(i, 5), text(i + 999, 30, GOOD if i % 2 else BAD), ["sport", "world"][i % 2]) for i in range(100)]
    return write(f / "news.csv", ["title", "body", "topic"], rows)


@zoo("two-texts", asks="cannot decide what the model should learn")
def _(f: Path) -> Path:
    return write(f / "x.csv", ["left", "right"], [(text(i), text(i + 500)) for i in range(80)])


@zoo("chinese", task="text-classification", source={"text": "text", "label": "label"})
def _(f: Path) -> Path:
    draw = random.Random(0)
    return write(
        f / "x.csv",
        ["text", "label"],
        [("".join(draw.choice("河石光下静晨长路回家我们去老友又今天好坏") for _ in range(18)), i % 2) for i in range(100)],
    )


@zoo("sms", task="text-classification", source={"text": "c1", "label": "c0", "delimiter": "\t", "header": False}, given={"label": "c0"})
def _(f: Path) -> Path:
    return write(f / "sms.txt", [], [(["ham", "spam"][y], t) for t, y in opinions()], delimiter="\t")


@zoo("sms-without-label", task="text-classification", source={"text": "c1", "label": "c0"}, steps=True)
def _(f: Path) -> Path:
    return write(f / "sms.tsv", [], [(["ham", "spam"][y], t) for t, y in opinions()], delimiter="\t")


@zoo("notes-in-a-wide-table", asks="--inputs", given={"label": "died"})
def _(f: Path) -> Path:
    rows = [(30 + i % 50, i % 3 + 0.5, 100 + i % 40, ["a", "b"][i % 2], text(i), ["no", "yes"][i % 5 == 0]) for i in range(150)]
    return write(f / "x.csv", ["age", "dose", "bp", "arm", "notes", "died"], rows)


@zoo(
    "columns-of-a-wide-table",
    task="classification",
    source={"label": "died"},
    given={"label": "died", "inputs": ["age", "dose"]},
    said=("notes is left out",),
)
def _(f: Path) -> Path:
    rows = [(30 + i % 50, i % 3 + 0.5, 100 + i % 40, ["a", "b"][i % 2], text(i), ["no", "yes"][i % 5 == 0]) for i in range(150)]
    return write(f / "x.csv", ["age", "dose", "bp", "arm", "notes", "died"], rows)


@zoo(
    "text-of-a-wide-table",
    task="text-classification",
    source={"text": "notes", "label": "died"},
    given={"label": "died", "inputs": ["notes"]},
)
def _(f: Path) -> Path:
    rows = [(30 + i % 50, i % 3 + 0.5, 100 + i % 40, ["a", "b"][i % 2], text(i), ["no", "yes"][i % 5 == 0]) for i in range(150)]
    return write(f / "x.csv", ["age", "dose", "bp", "arm", "notes", "died"], rows)


@zoo("text-and-a-score", asks="texts can only be sorted into classes", given={"label": "score"})
def _(f: Path) -> Path:
    return write(f / "x.csv", ["text", "score"], [(t, round(math.sin(i), 3)) for i, (t, _) in enumerate(opinions())])


@zoo("stars", task="text-classification", source={"text": "review", "label": "stars"}, said=("5 whole numbers|5 different values",))
def _(f: Path) -> Path:
    return write(f / "x.csv", ["review", "stars"], [(text(i), 1 + i % 5) for i in range(200)])


@zoo("text-with-dates", task="text-classification", source={"text": "text", "label": "label", "time": "date"}, split="time")
def _(f: Path) -> Path:
    return write(f / "x.csv", ["date", "text", "label"], [(d, t, y) for d, (t, y) in zip(days(150), opinions(150), strict=True)])


@zoo("text-column-alone", task="language-modelling", source={"text": "text"}, split="document")
def _(f: Path) -> Path:
    return write(f / "x.csv", ["id", "text"], [(i, text(i, 60)) for i in range(80)])


# ---------------------------------------------------------------------------------------------- 2: time


@zoo("hourly-load", task="forecasting", source={"date": "time", "targets": ["load"]}, split="series", given={"label": "load"}, steps=True)
def _(f: Path) -> Path:
    return write(f / "x.csv", ["time", "load"], [(t, wave(i)) for i, t in enumerate(hours(600))])


@zoo(
    "clock-change",
    task="forecasting",
    source={"date": "time", "repeated": "keep", "calendar": "rows"},
    split="series",
    given={"label": "load"},
    said=("clocks repeat",),
    notes="each is a step",
)
def _(f: Path) -> Path:
    moments = list(hours(500, "2024-10-15T00:00"))
    at = moments.index(datetime.datetime(2024, 10, 27, 2))
    return write(f / "x.csv", ["time", "load"], [(t, wave(i)) for i, t in enumerate([*moments[:at], moments[at], *moments[at:]])])


@zoo(
    "repeated-moments",
    task="forecasting",
    source={"date": "time", "repeated": "mean"},
    split="series",
    said=("mean is used",),
    notes="their mean is used",
)
def _(f: Path) -> Path:
    moments = hours(500)
    return write(
        f / "x.csv",
        ["time", "load"],
        [(t, wave(i)) for i, t in enumerate([*moments[:77], moments[77], *moments[77:300], moments[300], *moments[300:]])],
    )


@zoo(
    "unsorted",
    task="forecasting",
    source={"date": "time", "unsorted": "sort"},
    split="series",
    said=("are sorted",),
    notes="sorted by date",
)
def _(f: Path) -> Path:
    rows = [(t, wave(i)) for i, t in enumerate(hours(400))]
    return write(f / "x.csv", ["time", "load"], [*rows[200:], *rows[:200]])


@zoo("newest-first", task="forecasting", source={"date": "date", "unsorted": "sort"}, split="series")
def _(f: Path) -> Path:
    return write(f / "x.csv", ["date", "price"], [(d, wave(i)) for i, d in enumerate(days(300))][::-1])


@zoo(
    "load-and-weather",
    task="forecasting",
    source={"targets": ["load"], "inputs": ["temperature", "wind"]},
    split="series",
    given={"label": "load"},
)
def _(f: Path) -> Path:
    return write(
        f / "x.csv", ["time", "load", "temperature", "wind"], [(t, wave(i), wave(i + 3), wave(2 * i)) for i, t in enumerate(hours(500))]
    )


@zoo(
    "machine-failures",
    task="classification",
    source={"label": "failed"},
    split="time",
    table={"time": "timestamp"},
    given={"label": "failed"},
    steps=True,
)
def _(f: Path) -> Path:
    rows = [(t, wave(i), wave(3 * i), "ABC"[i % 3], int(i % 9 == 0)) for i, t in enumerate(hours(400))]
    return write(f / "x.csv", ["timestamp", "heat", "vibration", "line", "failed"], rows)


@zoo(
    "sensors-and-a-flag",
    task="classification",
    source={"label": "failed"},
    split="time",
    table={"time": "timestamp"},
    given={"label": "failed"},
)
def _(f: Path) -> Path:
    return write(f / "x.csv", ["timestamp", "heat", "failed"], [(t, wave(i), int(i % 9 == 0)) for i, t in enumerate(hours(400))])


@zoo("stores", task="regression", source={"label": "sales"}, split="time", table={"time": "date", "group": None}, given={"label": "sales"})
def _(f: Path) -> Path:
    return write(
        f / "x.csv",
        ["store", "date", "sales"],
        [(s, d, round(wave(i) * (2 + "abcdef".index(s)), 2)) for i, d in enumerate(days(60)) for s in "abcdef"],
    )


@zoo("zoned", task="forecasting", source={"date": "time", "repeated": None}, split="series", notes="time zone")
def _(f: Path) -> Path:
    moments = [t - datetime.timedelta(hours=2) for t in hours(300, "2024-10-20T00:00")]
    change = datetime.datetime(2024, 10, 27, 1)
    local = [
        (t + datetime.timedelta(hours=2)).isoformat() + "+02:00" if t < change else (t + datetime.timedelta(hours=1)).isoformat() + "+01:00"
        for t in moments
    ]
    return write(f / "x.csv", ["time", "load"], [(t, wave(i)) for i, t in enumerate(local)])


# ---------------------------------------------------------------------------------------------- 3: calendars


@zoo("weekdays", task="forecasting", source={"fill": None, "calendar": None}, split="series", said=("no weekend is filled",), steps=True)
def _(f: Path) -> Path:
    return write(f / "x.csv", ["date", "price"], [(d, wave(i)) for i, d in enumerate(days(400, weekdays=True))])


@zoo(
    "trading-days",
    task="forecasting",
    source={"fill": None, "calendar": "rows"},
    split="series",
    said=("nothing is filled",),
    notes="nothing is filled",
)
def _(f: Path) -> Path:
    return write(
        f / "x.csv", ["date", "price"], [(d, wave(i)) for i, d in enumerate(days(400, weekdays=True, without=(12, 90, 91, 180, 255)))]
    )


@zoo("months", task="forecasting", source={"fill": None, "calendar": None}, split="series", said=("step is 1 month",))
def _(f: Path) -> Path:
    return write(f / "x.csv", ["date", "sales"], [(f"{2000 + i // 12}-{i % 12 + 1:02d}-01", wave(i)) for i in range(180)])


@zoo("numbers-alone", task="forecasting", source={"date": None}, split="series", said=("no dates",), notes="no dates")
def _(f: Path) -> Path:
    return write(f / "x.csv", ["value"], [(wave(i),) for i in range(300)])


@zoo("index-as-time", task="forecasting", source={"date": None, "targets": ["value"]}, split="series", given={"label": "value"})
def _(f: Path) -> Path:
    return write(f / "x.csv", ["t", "value"], [(i, wave(i)) for i in range(300)])


@zoo("irregular", task="forecasting", source={"fill": None, "calendar": "rows"}, split="series", said=("nothing is filled",))
def _(f: Path) -> Path:
    draw, at, rows = random.Random(0), datetime.datetime(2024, 1, 1), []
    for i in range(300):
        at += datetime.timedelta(minutes=draw.randint(3, 90))
        rows.append((at, wave(i)))
    return write(f / "x.csv", ["time", "value"], rows)


@zoo(
    "missing-hours",
    task="forecasting",
    source={"fill": None, "calendar": "rows"},
    split="series",
    said=("3 time steps are missing", "fill: forward"),
)
def _(f: Path) -> Path:
    return write(f / "x.csv", ["time", "load"], [(t, wave(i)) for i, t in enumerate(hours(500)) if i not in (100, 101, 340)])


@zoo(
    "empty-cells",
    task="forecasting",
    source={"fill": "drop"},
    split="series",
    said=("fill: forward",),
    notes="left out, because a value is missing",
)
def _(f: Path) -> Path:
    return write(f / "x.csv", ["time", "load"], [(t, "" if i in (50, 51, 200) else wave(i)) for i, t in enumerate(hours(500))])


@zoo("german-dates", task="forecasting", source={"date_format": "%d.%m.%Y"}, split="series", said=("%d.%m.%Y",))
def _(f: Path) -> Path:
    return write(
        f / "x.csv",
        ["Datum", "Preis"],
        [(d.strftime("%d.%m.%Y"), str(wave(i)).replace(".", ",")) for i, d in enumerate(days(300))],
        delimiter=";",
    )


@zoo("years", task="forecasting", source={"date": "year", "date_format": "%Y"}, split="series")
def _(f: Path) -> Path:
    return write(f / "x.csv", ["year", "sunspots"], [(1700 + i, wave(i)) for i in range(300)])


@zoo("american-dates", task="forecasting", source={"date_format": "%m/%d/%Y"}, split="series")
def _(f: Path) -> Path:
    return write(f / "x.csv", ["day", "visits"], [(d.strftime("%m/%d/%Y"), round(100 * wave(i))) for i, d in enumerate(days(300))])


# ---------------------------------------------------------------------------------------------- 4: groups


@zoo(
    "patients",
    task="classification",
    source={"label": "died"},
    split="group",
    group="patient_id",
    given={"label": "died"},
    steps=True,
    said=("no patient_id is in two parts",),
)
def _(f: Path) -> Path:
    draw = random.Random(0)
    return write(
        f / "x.csv",
        ["patient_id", "age", "bp", "died"],
        [(p, 40 + p % 30, draw.randint(90, 180), int(p % 4 == 0)) for p in range(50) for _ in range(6)],
    )


@zoo(
    "speakers-in-names",
    task="audio-classification",
    split="group",
    group="speaker",
    given={"label": "{label}_{speaker}_{take}"},
    steps=True,
)
def _(f: Path) -> Path:
    for digit, hz in (("one", 300), ("two", 1200)):
        for speaker in range(6):
            for take in range(3):
                write_wav(f / f"{digit}_s{speaker}_{take}.wav", tone(hz, 0.1, 8000, take + speaker), 8000)
    return f


@zoo("speakers-in-class-folders", task="audio-classification", split="group", group="speaker", said=("probably a speaker",))
def _(f: Path) -> Path:
    for digit, hz in (("yes", 300), ("no", 1200)):
        for speaker in range(8):
            for take in range(2):
                write_wav(f / digit / f"{speaker:04x}7a_nohash_{take}.wav", tone(hz, 0.1, 8000, take + speaker), 8000)
    return f


@zoo(
    "two-speakers",
    task="audio-classification",
    split="row",
    group=None,
    given={"label": "{label}_{speaker}_{take}"},
    said=("only 2 values of {speaker}",),
)
def _(f: Path) -> Path:
    for digit, hz in (("one", 300), ("two", 1200)):
        for speaker in ("ann", "bob"):
            for take in range(8):
                write_wav(f / f"{digit}_{speaker}_{take}.wav", tone(hz, 0.1, 8000, take), 8000)
    return f


@zoo("tracks", task="classification", split="group", group="group", source={"pattern": "{label}/{group}_{part1}"}, steps=True)
def _(f: Path) -> Path:
    for label in range(3):
        for track in range(9):
            for frame in range(4):
                image(f / f"{label:05d}" / f"{track + 20 * label:05d}_{frame:05d}.png", track, bool(label % 2), 24)
    return f


@zoo("users-of-texts", task="text-classification", split="group", group="user", source={"text": "text", "label": "label"}, steps=True)
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"user": f"u{i % 23}", "text": t, "label": ["bad", "good"][y]} for i, (t, y) in enumerate(opinions(200))])


@zoo("customers-by-code", task="classification", split="group", group="kundennummer", given={"label": "storniert"})
def _(f: Path) -> Path:
    rows = [(f"K{i % 60:05d}", wave(i), wave(i * 5), ["ja", "nein"][i % 3 == 0]) for i in range(300)]
    return write(f / "x.csv", ["kundennummer", "betrag", "alter", "storniert"], rows)


@zoo("three-hospitals", task="classification", split="row", table={"group": None}, given={"label": "died"}, said=("hospital repeats",))
def _(f: Path) -> Path:
    return write(f / "x.csv", ["hospital", "age", "died"], [("abc"[i % 3], 30 + i % 50, int(i % 4 == 0)) for i in range(200)])


@zoo(
    "one-row-a-patient",
    task="classification",
    split="row",
    source={"drop": ["patient_id"]},
    given={"label": "died"},
    said=("patient_id is left out",),
)
def _(f: Path) -> Path:
    return write(f / "x.csv", ["patient_id", "age", "died"], [(1000 + 7 * i, 30 + i % 50, int(i % 4 == 0)) for i in range(200)])


@zoo(
    "visits-of-patients",
    task="classification",
    split="group",
    group="patient",
    given={"label": "readmitted"},
    said=("set time: visit_date",),
)
def _(f: Path) -> Path:
    rows = [
        (p, d, 40 + p, wave(p * 5 + v), ["no", "yes"][(p + v) % 3 == 0])
        for p in range(40)
        for v, d in enumerate(days(5, f"2023-{p % 12 + 1:02d}-03"))
    ]
    return write(f / "x.csv", ["patient", "visit_date", "age", "creatinine", "readmitted"], rows)


@zoo("subjects-in-json", task="regression", split="group", group="subject", given={"label": "score"})
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"subject": i // 5, "x": wave(i), "z": wave(3 * i), "score": round(math.sin(i), 3)} for i in range(200)])


# ---------------------------------------------------------------------------------------------- 5: forms and encodings


@zoo("wrapped-folders", task="classification", steps=True)
def _(f: Path) -> Path:
    for i in range(40):
        image(f / "archive" / "images" / ["cat", "dog"][i % 2] / f"{i}.png", i, bool(i % 2))
    return f / "archive"


@zoo("taxonomy", asks="--label folder, or --label subfolder")
def _(f: Path) -> Path:
    for i in range(60):
        image(f / ["animals", "plants"][i % 2] / ["cat", "fern", "dog", "rose"][i % 4] / f"{i}.png", i, bool(i % 2))
    return f


@zoo("taxonomy-leaves", task="classification", source={"level": "leaf"}, given={"label": "subfolder"}, said=("4 classes",))
def _(f: Path) -> Path:
    for i in range(60):
        image(f / ["animals", "plants"][i % 2] / ["cat", "fern", "dog", "rose"][i % 4] / f"{i}.png", i, bool(i % 2))
    return f


@zoo("sessions-below-classes", task="classification", split="group", group="group", source={"pattern": "{label}/{group}/{name}"})
def _(f: Path) -> Path:
    for i in range(72):
        image(f / ["cat", "dog"][i % 2] / f"session{i // 2 % 9}" / f"{i}.png", i, bool(i % 2))
    return f


@zoo("train-and-test-folders", task="classification", split="parts")
def _(f: Path) -> Path:
    for i in range(60):
        image(f / ("test" if i % 6 == 5 else "train") / ["cat", "dog"][i // 2 % 2] / f"{i}.png", i, bool(i // 2 % 2))
    return f


def _suffixed(suffix: str) -> None:
    @zoo(f"images-{suffix[1:]}", task="classification")
    def _(f: Path) -> Path:
        for i in range(40):
            image(f / ["cat", "dog"][i % 2] / f"{i}.png", i, bool(i % 2), suffix=suffix)
        for name in ("cat", "dog"):
            (f / name / "list.csv").write_text("a;b\n1;2\n")
        return f


for _s in (".ppm", ".tif", ".webp"):
    _suffixed(_s)


@zoo("class-in-names", task="classification", source={"pattern": "{label}_{number}"}, given={"label": "{label}_{number}"})
def _(f: Path) -> Path:
    for i in range(40):
        image(f / f"{['cat', 'dog'][i % 2]}_{i}.png", i, bool(i % 2))
    return f


def chats(a: str, b: str, n: int = 60) -> list[dict[str, str]]:
    return [{a: f"What is {i}?", b: f"It is {i}."} for i in range(n)]


CHAT = {"task": "instruction-tuning", "given": {"model": "MODEL"}}


@zoo("instruction-response", source={"kind": "chat", "fields": {"output": "response"}}, **CHAT)
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"instruction": "Say it.", "input": text(i), "response": f"It is {i}."} for i in range(60)])


@zoo("question-answer", source={"kind": "chat", "fields": {"prompt": "question", "completion": "answer"}}, steps=True, **CHAT)
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", chats("question", "answer"))


@zoo("prompt-completion", source={"kind": "chat", "fields": None}, **CHAT)
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", chats("prompt", "completion"))


@zoo("one-list", source={"kind": "chat"}, **CHAT)
def _(f: Path) -> Path:
    (f / "x.json").write_text(json.dumps([{"instruction": "Say it.", "input": "", "output": f"It is {i}."} for i in range(60)], indent=1))
    return f / "x.json"


@zoo("query-response-list", source={"kind": "chat", "fields": {"prompt": "query", "completion": "response"}}, **CHAT)
def _(f: Path) -> Path:
    (f / "x.json").write_text(json.dumps(chats("query", "response")))
    return f / "x.json"


@zoo("chats-of-users", source={"kind": "chat", "group": "user_id"}, split="group", group="user_id", **CHAT)
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"user_id": i % 17, **row} for i, row in enumerate(chats("prompt", "response", 120))])


@zoo("chats-without-model", asks="these are conversations.*--model")
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", chats("question", "answer"))


@zoo("preferences-list", task="dpo", source={"kind": "pairs"}, given={"model": "MODEL"})
def _(f: Path) -> Path:
    (f / "x.json").write_text(json.dumps([{"prompt": f"Is {i} fine?", "chosen": "yes, it is", "rejected": "no, never"} for i in range(60)]))
    return f / "x.json"


@zoo("list-of-texts", task="text-classification", source={"kind": "jsonl", "text": "text", "label": "label"}, steps=True)
def _(f: Path) -> Path:
    (f / "x.json").write_text(json.dumps([{"text": t, "label": ["bad", "good"][y]} for t, y in opinions()]))
    return f / "x.json"


@zoo("latin-1-table", task="classification", source={"encoding": "latin-1"}, given={"label": "kauf"}, said=("latin-1",), steps=True)
def _(f: Path) -> Path:
    rows = [(["Köln", "Zürich", "Graz"][i % 3], 20 + i % 40, ["ja", "nein"][i % 2]) for i in range(150)]
    return write(f / "x.csv", ["stadt", "alter", "kauf"], rows, encoding="latin-1")


@zoo("latin-1-text", task="language-modelling", source={"encoding": "latin-1"}, split="document", said=("latin-1",))
def _(f: Path) -> Path:
    (f / "x.txt").write_bytes((" größer und schöner\n".join(text(i, 30) for i in range(60))).encode("latin-1"))
    return f / "x.txt"


@zoo("utf-16-table", task="classification", source={"encoding": None}, given={"label": "kauf"})
def _(f: Path) -> Path:
    rows = [(["Köln", "Zürich", "Graz"][i % 3], 20 + i % 40, ["ja", "nein"][i % 2]) for i in range(150)]
    return write(f / "x.csv", ["stadt", "alter", "kauf"], rows, encoding="utf-16")


@zoo("chinese-encoding", asks="--encoding")
def _(f: Path) -> Path:
    (f / "x.txt").write_bytes(CHINESE.encode("gb18030"))
    return f / "x.txt"


@zoo("chinese-encoding-named", task="language-modelling", source={"encoding": "gb18030"}, split="document", given={"encoding": "gb18030"})
def _(f: Path) -> Path:
    (f / "x.txt").write_bytes(CHINESE.encode("gb18030"))
    return f / "x.txt"


@zoo(
    "decimal-commas",
    task="regression",
    source={"delimiter": ";", "label": "preis"},
    given={"label": "preis"},
    said=("decimal ','", "semicolons"),
)
def _(f: Path) -> Path:
    rows = [
        (str(wave(i)).replace(".", ","), str(wave(3 * i)).replace(".", ","), str(round(wave(i) + wave(3 * i), 3)).replace(".", ","))
        for i in range(150)
    ]
    return write(f / "x.csv", ["länge", "breite", "preis"], rows, delimiter=";")


@zoo("decimal-commas-without-header", task="regression", source={"delimiter": ";", "header": False}, given={"label": "c2"})
def _(f: Path) -> Path:
    rows = [
        (str(wave(i)).replace(".", ","), str(wave(3 * i)).replace(".", ","), str(round(wave(i) + wave(3 * i), 3)).replace(".", ","))
        for i in range(150)
    ]
    return write(f / "x.csv", [], rows, delimiter=";")


@zoo("pos-and-neg", task="text-classification", source={"kind": "text-folder"}, steps=True, said=("pos", "language model"))
def _(f: Path) -> Path:
    for t, y in opinions(60):
        (f / ["neg", "pos"][y]).mkdir(exist_ok=True)
        (f / ["neg", "pos"][y] / f"{t.split()[-1]}.txt").write_text(t)
    return f


@zoo("pos-and-neg-in-parts", task="text-classification", source={"kind": "text-folder", "drop": ["unsup"]}, split="parts")
def _(f: Path) -> Path:
    for i, (t, y) in enumerate(opinions(90)):
        folder = f / ("test" if i % 9 > 6 else "train") / ("unsup" if i % 9 == 0 else ["neg", "pos"][y])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_text(t)
    return f


@zoo("texts-of-one-kind", task="language-modelling", source={"kind": "text"}, split="document")
def _(f: Path) -> Path:
    for i in range(40):
        (f / f"{i}.txt").write_text(text(i, 80))
    return f


@zoo("numbers-in-txt", task="classification", source={"kind": "csv", "header": False, "label": "c3"}, given={"label": "c3"}, steps=True)
def _(f: Path) -> Path:
    return write(f / "x.txt", [], [(wave(i), wave(2 * i), wave(3 * i), int(wave(i) > 10)) for i in range(150)])


@zoo("numbers-in-txt-without-label", asks="Name it with --label")
def _(f: Path) -> Path:
    return write(f / "x.txt", [], [(wave(i), wave(2 * i), wave(3 * i), int(wave(i) > 10)) for i in range(150)])


@zoo("text-gz", task="language-modelling", source={"kind": "text"}, split="document")
def _(f: Path) -> Path:
    (f / "x.txt.gz").write_bytes(gzip.compress("\n".join(text(i, 60) for i in range(80)).encode()))
    return f / "x.txt.gz"


@zoo("table-gz", task="classification", source={"label": "label"})
def _(f: Path) -> Path:
    write(f / "x.csv", ["a", "b", "label"], [(wave(i), wave(2 * i), i % 2) for i in range(150)])
    (f / "y.csv.gz").write_bytes(gzip.compress((f / "x.csv").read_bytes()))
    return f / "y.csv.gz"


@zoo("parquet", task="classification", source={"kind": "parquet", "label": "label"})
def _(f: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"a": [wave(i) for i in range(150)], "town": ["Bonn", "Kiel", "Graz"] * 50, "label": [i % 2 for i in range(150)]}),
        f / "x.parquet",
    )
    return f / "x.parquet"


# ---------------------------------------------------------------------------------------------- 6: counts


@zoo("twenty-thousand-rows", task="text-classification", said=("20,000",), train={"epochs": 1})
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"text": f"{text(i % 500)} {i}", "label": i % 2} for i in range(20_000)])


@zoo("five-thousand-documents", task="language-modelling", said=(r"about 3\d\d,\d\d\d characters",), split="document")
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"text": text(i, 12)} for i in range(5_000)])


@zoo("many-chats", said=("4,000 conversations",), **CHAT)
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", chats("prompt", "completion", 4_000))


# ---------------------------------------------------------------------------------------------- 7: kinds of numbers


@zoo("codes", task="classification", given={"label": "default"}, said=(r"housing has only 4 whole numbers \(1, 2, 3, 4\)",))
def _(f: Path) -> Path:
    return write(f / "x.csv", ["housing", "amount", "default"], [(1 + i % 4, 1000 + i * 7 % 991, int(i % 5 == 0)) for i in range(200)])


@zoo(
    "named-codes",
    task="classification",
    source={"categorical": ["job_code"]},
    given={"label": "default"},
    said=("job_code is read as categories",),
)
def _(f: Path) -> Path:
    return write(f / "x.csv", ["job_code", "amount", "default"], [(1 + i % 4, 1000 + i * 7 % 991, int(i % 5 == 0)) for i in range(200)])


@zoo(
    "postcodes-and-constants",
    task="regression",
    source={"drop": ["id", "postcode", "country"]},
    given={"label": "price"},
    said=("postcode is left out", "country is left out"),
)
def _(f: Path) -> Path:
    return write(
        f / "x.csv",
        ["id", "postcode", "country", "area", "price"],
        [(i, 10115 + i * 37, "DE", 30 + i % 90, 1000.5 + i) for i in range(200)],
    )


@zoo("few-postcodes", task="regression", source={"categorical": ["zip"]}, given={"label": "price"})
def _(f: Path) -> Path:
    return write(f / "x.csv", ["zip", "area", "price"], [(10115 + i % 8, 30 + i % 90, 1000.5 + i) for i in range(200)])


@zoo(
    "counts-to-19",
    task="regression",
    source={"target": "value"},
    given={"label": "admitted"},
    said=("counts|too many for classes",),
    steps=True,
)
def _(f: Path) -> Path:
    draw = random.Random(0)
    return write(
        f / "x.csv", ["beds", "age", "admitted"], [(10 + i % 9, 40 + i % 30, min(19, int(draw.expovariate(0.25)))) for i in range(400)]
    )


@zoo("visits", task="regression", source={"target": "value"}, given={"label": "visits"}, said=("source.target: class",))
def _(f: Path) -> Path:
    draw = random.Random(0)
    return write(
        f / "x.csv",
        ["income", "age", "visits"],
        [(1000 + i * 13 % 700, 40 + i % 30, min(6, int(draw.expovariate(0.9)))) for i in range(400)],
    )


@zoo("small-counts", task="regression", source={"target": "value"}, given={"label": "defects"}, said=("fall off like counts",))
def _(f: Path) -> Path:
    draw = random.Random(1)
    return write(
        f / "x.csv", ["speed", "heat", "defects"], [(10.5 + i % 9, 40 + i % 30, min(6, int(draw.expovariate(0.8)))) for i in range(400)]
    )


@zoo("class-numbers", task="classification", source={"target": "class"}, said=("4 whole numbers",))
def _(f: Path) -> Path:
    return write(f / "x.csv", ["a", "b", "class"], [(wave(i), wave(3 * i), 1 + i % 4) for i in range(200)])


@zoo("digits", task="classification", source={"target": "class"}, said=("task: regression",))
def _(f: Path) -> Path:
    return write(f / "x.csv", ["a", "b", "label"], [(wave(i), wave(3 * i), i % 10) for i in range(300)])


# ---------------------------------------------------------------------------------------------- 8 and 9: sizes


@zoo("pictures-105", task="classification", train={"early_stopping": {"patience": 3}})
def _(f: Path) -> Path:
    for i in range(160):
        image(f / f"letter{i % 4}" / f"{i}.png", i, bool(i % 2), 105)
    return f


@zoo("pictures-28", task="classification", source={"size": 28}, train={"early_stopping": {"patience": 3}})
def _(f: Path) -> Path:
    for i in range(60):
        image(f / f"digit{i % 3}" / f"{i}.png", i, bool(i % 2), 28)
    return f


@zoo("thousand-texts", task="text-classification", said=("chosen on the validation part",))
def _(f: Path) -> Path:
    return write(f / "x.csv", ["text", "label"], [(t, ["bad", "good"][y]) for t, y in opinions(1000)])


@zoo("small-table", task="classification", train={"early_stopping": {"patience": 3}})
def _(f: Path) -> Path:
    return write(f / "x.csv", ["a", "b", "y"], [(wave(i), wave(3 * i), ["u", "v"][i % 2]) for i in range(200)])


@zoo("small-recordings", task="audio-classification", train={"early_stopping": {"patience": 3}})
def _(f: Path) -> Path:
    for label, hz in (("up", 300), ("down", 1200)):
        for take in range(15):
            write_wav(f / label / f"{take}.wav", tone(hz, 0.1, 8000, take), 8000)
    return f


# ---------------------------------------------------------------------------------------------- more that people have


@zoo(
    "names-and-tickets",
    task="classification",
    source={"label": "Survived", "drop": ["PassengerId", "Name", "Ticket"]},
    table={"impute": "median"},
)
def _(f: Path) -> Path:
    header = ["PassengerId", "Survived", "Pclass", "Name", "Sex", "Age", "Ticket", "Fare"]
    rows = [
        (
            i + 1,
            int(i % 3 == 0),
            1 + i % 3,
            f"Braund{i}, Mr. Owen {i}",
            "mf"[i % 2],
            "" if i % 9 == 0 else 20 + i % 50,
            f"A/{i} {2000 + i}",
            wave(i),
        )
        for i in range(300)
    ]
    return write(f / "x.csv", header, rows)


@zoo(
    "months-of-passengers",
    task="forecasting",
    source={"date": "Month", "date_format": "%Y-%m"},
    split="series",
    said=("12 of them are a season",),
)
def _(f: Path) -> Path:
    return write(f / "x.csv", ["Month", "#Passengers"], [(f"{1949 + i // 12}-{i % 12 + 1:02d}", 100 + i) for i in range(144)])


@zoo(
    "clock-changes-of-a-year", task="forecasting", source={"repeated": "keep", "calendar": "rows"}, split="series", given={"label": "load"}
)
def _(f: Path) -> Path:
    moments = [t for t in hours(8784) if t != datetime.datetime(2024, 3, 31, 2)]
    at = moments.index(datetime.datetime(2024, 10, 27, 2))
    return write(f / "x.csv", ["time", "load"], [(t, wave(i)) for i, t in enumerate([*moments[:at], moments[at], *moments[at:]])])


@zoo("people-as-folders", asks="folders are named as people")
def _(f: Path) -> Path:
    for s in range(6):
        for word in ("yes", "no"):
            write_wav(f / f"speaker_{s}" / f"{word}_0.wav", tone(300, 0.05, 8000, s), 8000)
    return f


@zoo(
    "people-as-folders-with-pattern",
    task="audio-classification",
    split="group",
    group="speaker",
    given={"label": "{speaker}/{label}_{take}"},
)
def _(f: Path) -> Path:
    for s in range(6):
        for word, hz in (("yes", 300), ("no", 1200)):
            for take in range(2):
                write_wav(f / f"speaker_{s}" / f"{word}_{take}.wav", tone(hz, 0.05, 8000, s), 8000)
    return f


@zoo("persons-in-names", task="classification", split="group", group="group")
def _(f: Path) -> Path:
    for i in range(60):
        image(f / ["NORMAL", "PNEUMONIA"][i % 2] / f"person{i // 4}_bacteria_{i}.png", i, bool(i % 2))
    return f


@zoo(
    "system-question-response",
    source={"kind": "chat", "fields": {"prompt": "question", "completion": "response", "system": "system_prompt"}},
    **CHAT,
)
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"system_prompt": "Be good.", **row} for row in chats("question", "response")])


@zoo("questions-with-labels", task="text-classification", source={"text": ["question", "answer"], "label": "label"})
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"question": text(i, 6), "answer": text(i + 500, 8), "label": i % 2} for i in range(100)])


@zoo(
    "sensors-at-one-moment",
    task="regression",
    source={"categorical": ["sensor_id"]},
    split="time",
    table={"time": "time"},
    given={"label": "value"},
)
def _(f: Path) -> Path:
    rows = [(t, s, wave(i + s), wave(i)) for i, t in enumerate(hours(60)) for s in range(6)]
    return write(f / "x.csv", ["time", "sensor_id", "heat", "value"], rows)


@zoo("balances-and-ages", task="classification", split="row", source={"drop": None}, given={"label": "default"})
def _(f: Path) -> Path:
    rows = [(1000 + i % 70, 20 + i % 50, i % 3, int(i % 4 == 0)) for i in range(300)]
    return write(f / "x.csv", ["account_balance", "patient_age", "n_children", "default"], rows)


@zoo("dates-with-two-readings", asks="can be read as")
def _(f: Path) -> Path:
    return write(f / "x.csv", ["day", "value"], [(f"{1 + i % 12:02d}/{1 + i % 11:02d}/2024", wave(i)) for i in range(100)])


@zoo("texts-of-one-label", asks="expected at least two")
def _(f: Path) -> Path:
    return lines(f / "x.jsonl", [{"text": t, "label": "good"} for t, _ in opinions()])


@zoo(
    "tweets-without-header",
    task="text-classification",
    source={"text": "c5", "label": "c0", "group": "c4"},
    split="group",
    group="c4",
    given={"label": "c0"},
)
def _(f: Path) -> Path:
    rows = [
        (4 * (i % 2), 1000 + i, f"Mon Apr {i % 28 + 1:02d} 22:19:{i % 60:02d} PDT 2009", "NO_QUERY", f"user{i % 60}", text(i))
        for i in range(300)
    ]
    return write(f / "x.csv", [], rows)
