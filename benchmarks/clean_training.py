"""Steps of training that cleaning saves: the same small GPT on a corpus that is 30% junk, on the same corpus with `data.clean: default` and
`data.dedup: {}`, and on the corpus without its junk; all validated on the same clean text.

The corpus: WikiText-2 of the mirror (`TAUON_DATA`) with its spaces before signs removed, four paragraphs a document; without the mirror the
docstrings of the standard library, of which the rules for prose reject more. Six kinds of junk make 5% of the documents each: duplicates (half of them
with one word in 25 changed), damaged encodings and noise (random signs, numbers, one word again and again) by `tauon.testing.plant_texts`; boilerplate
of web pages, one sentence repeated, and texts in a language of invented words in Cyrillic, Greek or accented letters.

Each run prepares its data by itself, its BPE included, as a recipe does; losses are therefore compared in bits per byte of the validation text.
The learning rate is constant after its warm-up, so that a point of a curve is what a run of so many steps gives; the cleaned and the clean run
end after 70% of the steps. L is what the uncleaned run has
reached at its last step; `ours` is the first step (between two validations by interpolation) at which the cleaned run has L, `peer` the number of all
steps. `clean_steps` is the same for the clean corpus. Ratio: peer / ours; floor: 1 / 0.6. Seeds take turns; the curves are means over seeds.

    python -m benchmarks.clean_training [--quick] [--steps N] [--seeds N] [--first N] [--threads N] [--svg FILE]
"""

from __future__ import annotations

import argparse
import ast
import gzip
import itertools
import json
import math
import os
import random
import re
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tauon.artifacts import read_json
from tauon.config import parse
from tauon.pipeline import run
from tauon.recipe import Recipe, load_parts
from tauon.testing import plant_texts

FLOOR, JUNK, HELD_OUT = 1 / 0.6, 0.05, 24
SIDES: dict[str, dict[str, Any]] = {
    "dirty": {},
    "cleaned": {"clean": ["default"], "dedup": {"kind": "near"}},
    "clean": {},
}
BOILERPLATE = (
    "Home | News | Sport | Weather | Shop | Contact", "Please enable javascript to view this page.", "Log in or register to post comments", "Share this:",
    "All rights reserved.", "We use cookies to improve your experience. By using this site you accept our cookie policy.", "Terms of use | Privacy policy",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "Click here to subscribe to our newsletter!", "Read more...", "Related articles", "Next »",
    "Add to basket", "Your basket is empty", "Follow us on social media", "Sign up now", "Advertisement", "« Previous", "Posted in Uncategorized",
    "Showing 1 to 20 of 512 results", "Sort by: price | rating | newest", "Back to top", "No comments yet", "Be the first to review this product",
)  # fmt: skip
ALPHABETS = ("абвгдежзиклмнопрстуфхчшыья", "αβγδεζηθικλμνξοπρστυφχψω", "aäbdeéfghiklmnoöprsßtuüvzñçå")


def prose() -> tuple[str, list[str]]:
    """Return (name, paragraphs) of the clean text."""
    if "TAUON_DATA" in os.environ:
        text = gzip.decompress((Path(os.environ["TAUON_DATA"]) / "wikitext-2/train.txt.gz").read_bytes()).decode()
        text = text.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".").replace("<unk>", "unknown")
        text = re.sub(r'" ([^"\n]*?) "', r'"\1"', re.sub(r"([($]) ", r"\1", re.sub(r" ([,.;:?!)'’%])", r"\1", text)))
        return "WikiText-2", [line.strip() for line in text.split("\n") if len(line) > 80]
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
        found += [" ".join(p.split()) for doc in docs for p in doc.split("\n\n") if len(p) > 80]
    return "docstrings of the standard library", found


def boilerplate(draw: random.Random, length: int) -> str:
    """Lines of the navigation of web pages."""
    lines: list[str] = []
    while sum(map(len, lines)) < length:
        lines.append(draw.choice(BOILERPLATE))
    return "\n".join(lines)


def repeated(draw: random.Random, length: int, text: str) -> str:
    """One sentence of a text, again and again."""
    sentence = draw.choice([s for s in text.replace("\n", " ").split(". ") if s]) + ". "
    return sentence * (length // len(sentence) + 1)


class Foreign:
    """Texts of words that were invented from an alphabet, the short ones frequent."""

    def __init__(self, draw: random.Random, alphabet: str) -> None:
        weights = [1 / (i + 1) for i in range(len(alphabet))]
        letters = draw.sample(alphabet, len(alphabet))
        self.words = ["".join(draw.choices(letters, weights, k=2 + i % 9)) for i in range(5000)]
        self.weights = [1 / (i + 10) for i in range(len(self.words))]

    def __call__(self, draw: random.Random, length: int) -> str:
        return " ".join(draw.choices(self.words, self.weights, k=length // 6)).capitalize() + "."


def corpora(folder: Path, most: int, seed: int = 0) -> tuple[str, dict[str, float]]:
    """Write dirty.jsonl, clean.jsonl and held.jsonl; return (name of the text, what is in them)."""
    name, paragraphs = prose()
    texts = ["\n".join(paragraphs[i : i + 4]) for i in range(0, len(paragraphs) - 3, 4)]
    draw = random.Random(seed)
    draw.shuffle(texts)
    held, texts = texts[:HELD_OUT], texts[HELD_OUT : HELD_OUT + most]
    share = JUNK / (1 - 3 * JUNK)  # of n documents 3 x are junk in place or unused, 4 x are added: x = JUNK (n + x)
    planted = plant_texts(texts, [str(i % 2) for i in range(len(texts))], share=share, test=0, seed=seed)
    damaged, copies = planted.rows_of("outlier") | planted.rows_of("encoding"), {pair[1] for pair in planted.faults["duplicate"]}
    unused = planted.rows_of("pii")  # personal data in a good text is neither
    good = [t for i, t in enumerate(planted.records) if i not in damaged | copies | unused]
    exact = {copy: original for k, (original, copy) in enumerate(sorted(planted.faults["duplicate"])) if k % 2}  # every second copy
    junk = [planted.records[exact.get(i, i)] for i in sorted(damaged | copies)]
    languages = [Foreign(draw, alphabet) for alphabet in ALPHABETS]
    for i in range(len(copies)):
        lengths = [len(t) for t in draw.sample(good, 3)]
        junk += [boilerplate(draw, lengths[0]), repeated(draw, lengths[1], draw.choice(good)), languages[i % 3](draw, lengths[2])]
    dirty = [*good, *junk]
    draw.shuffle(dirty)
    for file, documents in (("held", held), ("clean", good), ("dirty", dirty)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in documents))
    chars = [sum(map(len, side)) for side in (good, junk)]
    return name, {
        "documents": len(dirty),
        "junk_documents": len(junk) / len(dirty),
        "junk_characters": chars[1] / sum(chars),
        "characters": sum(chars),
    }


def curve(side: str, folder: Path, steps: int, every: int, seed: int) -> tuple[list[tuple[int, float]], dict[str, Any]]:
    """Train one side; return ((step, bits per byte of the held-out text) of each validation, facts of its data)."""
    data = {
        "source": {"kind": "jsonl", "path": str(folder / ("clean.jsonl" if side == "clean" else "dirty.jsonl"))},
        "validation": {"kind": "jsonl", "path": str(folder / "held.jsonl")}, "tokenizer": {"kind": "bpe", "vocab": 1024}, "seq_len": 64,
        **SIDES[side],
    }  # fmt: skip
    recipe = parse(Recipe, {
        "name": f"{side}-{seed}", "seed": seed, "data": data, "task": "language-modelling",
        "model": {"kind": "gpt", "layers": 2, "width": 64, "heads": 2},
        "optim": {"kind": "muon", "lr": 0.01, "adamw_lr": 0.003, "embed_lr": 0.1, "schedule": {"kind": "constant", "warmup": 10}},
        "train": {
            "steps": steps, "batch": 16, "validate_every": every, "checkpoint_every": steps, "watch_layers": steps, "device": "cpu",
            "precision": "fp32", "compile": False, "attention": "fused",
        },
    })  # fmt: skip
    seen: list[tuple[int, float]] = []

    def on_event(kind: str, **facts: Any) -> None:
        if kind == "validate":
            seen.append((facts["step"], facts["loss"]))

    done = run(recipe, root=folder / "runs", stages=("prepare", "train"), on_event=on_event)
    facts = read_json(done.folder / "data.json")
    part = facts["parts"]["validation"]
    per_byte = (part["tokens"] - 1) / part["bytes"] / math.log(2)  # each token but the first is predicted
    return [(step, loss * per_byte) for step, loss in seen], facts


def first_step(points: Sequence[tuple[int, float]], level: float) -> float:
    """Return the step at which a curve first has a level, by linear interpolation; infinity if never."""
    for (a, x), (b, y) in itertools.pairwise(points):
        if y <= level:
            return b if y == x else a + (b - a) * max(0.0, (x - level) / (x - y))
    return math.inf


def svg(curves: dict[str, list[tuple[int, float]]], level: float) -> str:
    """Draw the curves, their names at their ends."""
    colours, width, height = {"dirty": "#c0392b", "cleaned": "#2471a3", "clean": "#7f8c8d"}, 640, 320
    last = max(step for points in curves.values() for step, _ in points)
    values = [v for points in curves.values() for _, v in points[1:]]
    low, high = min(values), max(values)

    def at(step: float, value: float) -> str:
        return f"{50 + step / last * (width - 130):.1f},{15 + (high - value) / (high - low) * (height - 60):.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="#fff"/>')
    for i in range(5):
        value, step = low + (high - low) * i / 4, last * i / 4
        y, x = at(0, value).split(",")[1], at(step, low).split(",")[0]
        parts.append(
            f'<line x1="50" x2="{width - 80}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="44" y="{y}" text-anchor="end" dy="4">{value:.2f}</text>'
        )
        parts.append(f'<text x="{x}" y="{height - 28}" text-anchor="middle">{step:.0f}</text>')
    y = at(0, level).split(",")[1]
    parts.append(f'<line x1="50" x2="{width - 80}" y1="{y}" y2="{y}" stroke="#c0392b" stroke-dasharray="4 4"/>')
    ends = {side: float(at(last, points[-1][1]).split(",")[1]) for side, points in curves.items()}
    before, names = -math.inf, {"dirty": "uncleaned"}
    for side in sorted(curves, key=lambda s: ends[s]):
        shown = " ".join(at(step, value) for step, value in curves[side] if value <= high)
        before = max(ends[side], before + 14)
        parts.append(f'<polyline points="{shown}" fill="none" stroke="{colours[side]}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 74}" y="{before:.1f}" dy="4" fill="{colours[side]}">{names.get(side, side)}</text>')
    parts.append(f'<text x="50" y="{height - 8}">steps; bits per byte of clean held-out text</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 steps, one seed, 300 documents")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=7, help="the first seed")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--svg", type=Path, help="write the curves as a picture")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    load_parts()
    steps, seeds, most = (40, 1, 300) if args.quick else (args.steps, args.seeds, 3500)
    length = {"dirty": steps, "cleaned": steps * 7 // 10, "clean": steps * 7 // 10}
    runs: dict[str, list[list[tuple[int, float]]]] = {side: [] for side in SIDES}
    tokens: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        name, facts = corpora(Path(place), most)
        print(f"{name}: {facts}", flush=True)
        for seed in range(args.first, args.first + seeds):
            for side in SIDES:
                start = time.perf_counter()
                points, data = curve(side, Path(place), length[side], max(5, steps // 28), seed)
                runs[side].append(points)
                tokens[side] = data["parts"]["train"]["tokens"]
                print(
                    f"{side} {seed}: {points[-1][1]:.4f} bits per byte after {length[side]} steps, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
                for note in data.get("notes", []) if seed == args.first else []:
                    print(f"  {note}")
                if "dedup" in data and seed == args.first:
                    print(f"  duplicates removed: {data['dedup']['removed']}")
    curves = {
        side: [(points[0][0], float(np.mean([p[1] for p in points]))) for points in zip(*found, strict=True)]
        for side, found in runs.items()
    }
    level = curves["dirty"][-1][1]
    needed = {side: first_step(points, level) for side, points in curves.items()}
    print("step    " + "".join(f"{side:>10}" for side in SIDES))
    for step in sorted({step for points in curves.values() for step, _ in points}):
        shown = [dict(points).get(step) for points in curves.values()]
        print(f"{step:<8}" + "".join(f"{'' if value is None else f'{value:.4f}':>10}" for value in shown))
    if args.svg:
        args.svg.write_text(svg(curves, level))
    each = [first_step(c, d[-1][1]) / steps for c, d in zip(runs["cleaned"], runs["dirty"], strict=True)]
    result = {
        "claim": "clean_training", "ours": round(needed["cleaned"]), "peer": steps, "ratio": round(steps / needed["cleaned"], 3),
        "floor": round(FLOOR, 3), "unit": "steps to the bits per byte that the uncleaned run has at its end", "share": round(needed["cleaned"] / steps, 3),
        "share_by_seed": [round(s, 3) for s in each], "clean_steps": round(needed["clean"]), "level": round(level, 4),
        "end": {side: round(points[-1][1], 4) for side, points in curves.items()}, "train_tokens": tokens, "corpus": name,
        "junk_characters": round(facts["junk_characters"], 3), "junk_documents": round(facts["junk_documents"], 3), "seeds": seeds,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
