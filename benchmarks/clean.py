"""Documents per second of the default filters of texts (Gopher, C4, FineWeb), against datatrove's filters with the same rules, one process each.

10,000 documents of about 1,000 characters: WikiText, AG News and Alpaca, with line breaks and repetition planted in every tenth. Blocks of 250
documents go through the one and the other in turn; the figures are medians over blocks. Every verdict, rule and changed text must be equal, or
it ends with an error. datatrove is asked directly (`filter`), without its pipeline. `repair` is left out: both call ftfy.

    python -m benchmarks.clean [--quick]
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import random
import re
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tauon.config import parse
from tauon.data.clean import FilterConfig, Rejected, TextCleaner

BLOCK, FLOOR = 250, 3.0
RULES = {
    "gopher_short_doc": "too_few_words", "gopher_long_doc": "too_many_words", "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words", "gopher_too_many_hashes": "hash_signs", "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_points", "gopher_too_many_end_ellipsis": "lines_with_ellipsis",
    "gopher_below_alpha_threshold": "few_letters", "gopher_enough_stop_words": "few_stop_words", "dup_para_frac": "repeated_paragraphs",
    "dup_para_char_frac": "characters_in_repeated_paragraphs", "dup_line_frac": "repeated_lines",
    "dup_line_char_frac": "characters_in_repeated_lines", "line_punct_ratio": "few_punctuated_lines", "short_line_ratio": "short_lines",
    "char_dup_ratio": "repeated_lines", "list_ratio": "list",
} | {f"duplicated_{n}_n_grams": f"repeated_{n}_grams" for n in range(5, 11)}  # fmt: skip


def documents(number: int) -> list[str]:
    folder = Path(os.environ["TAUON_DATA"])

    def read(name: str) -> str:
        return gzip.decompress((folder / name).read_bytes()).decode()

    wiki = read("wikitext-2/train.txt.gz").replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".").replace("<unk>", "unknown")
    paragraphs = [re.sub(r" ([,.;:?!)'’])", r"\1", line).strip() for line in wiki.split("\n") if len(line) > 80]
    news = [row[2] for row in csv.reader(io.StringIO(read("ag_news/ag_news_test.csv.gz")))]
    asked = [f"{x['instruction']}\n{x['input']}\n{x['output']}" for x in json.loads(read("alpaca/alpaca_5000.json.gz"))]
    texts = ["\n".join(paragraphs[i : i + 2]) for i in range(0, len(paragraphs) - 1, 2)]
    draw = random.Random(0)
    chosen = [*texts[: number * 7 // 10], *draw.sample(news, number // 10), *draw.sample(asked, number // 5)]
    for i in range(0, len(chosen), 10):
        words = chosen[i].split(" ")
        at = draw.randrange(len(words))
        chosen[i] = " ".join(words[:at] + words[at : at + draw.randint(2, 12)] * draw.randint(2, 8) + words[at:]).replace(". ", ".\n")
    draw.shuffle(chosen)
    return chosen[:number]


def peer_filters() -> list[Any]:
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    return [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter()]


def peer_verdict(filters: list[Any], text: str) -> str:
    from datatrove.data import Document

    document = Document(text=text, id="0")
    for one in filters:
        found = one.filter(document)
        if found is not True:
            return f"{type(one).__name__}: {RULES.get(found[1], found[1])}"
    return document.text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 documents instead of 10,000")
    texts = documents(1000 if parser.parse_args().quick else 10_000)
    theirs = peer_filters()
    kinds = ["gopher-repetition", "gopher-quality", {"kind": "c4", "terminal_punctuation": False}, "fineweb-quality"]
    mine = TextCleaner([parse(FilterConfig, kind if isinstance(kind, dict) else {"kind": kind}) for kind in kinds])
    names = dict(zip((type(one).__name__ for one in theirs), ("gopher-repetition", "gopher-quality", "c4", "fineweb-quality"), strict=True))
    peer_verdict(theirs, texts[0])  # both load their rules
    mine(texts[0])
    rates: tuple[list[float], list[float]] = [], []
    verdicts: Counter[str] = Counter()
    for a in range(0, len(texts), BLOCK):
        block = texts[a : a + BLOCK]
        start = time.perf_counter()
        expected = [peer_verdict(theirs, text) for text in block]
        middle = time.perf_counter()
        found = [(mine(text), mine.by) for text in block]
        end = time.perf_counter()
        rates[0].append(len(block) / (middle - start))
        rates[1].append(len(block) / (end - middle))
        for text, verdict, (made, by) in zip(block, expected, found, strict=True):
            said = f"{by.kind_}: {made.rule}" if isinstance(made, Rejected) and by is not None else str(made)
            head, _, rest = verdict.partition(": ")
            assert said == (f"{names[head]}: {rest}" if head in names else verdict), f"{said[:200]} is not {verdict[:200]}: {text[:200]!r}"
            verdicts[said if isinstance(made, Rejected) else "kept"] += 1
    peer, ours = (statistics.median(each) for each in rates)
    ratio = statistics.median(b / a for a, b in zip(*rates, strict=True))
    print(f"{len(texts):,} documents, {sum(map(len, texts)) / len(texts):,.0f} characters on average; verdicts equal:")
    print("  " + ", ".join(f"{rule} {n:,}" for rule, n in verdicts.most_common()))
    print(f"tauon {ours:,.0f} documents/s, datatrove {peer:,.0f} documents/s")
    print(
        json.dumps(
            {"claim": "clean", "ours": round(ours), "peer": round(peer), "ratio": round(ratio, 2), "floor": FLOOR, "unit": "documents/s"}
        )
    )


if __name__ == "__main__":
    main()
