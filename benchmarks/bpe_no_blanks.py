"""Seconds to train a tokenizer (BPE, 4,096 tokens) on 400,000 letters without a blank, and to encode them: Chinese of words drawn by Zipf's law.

The peer is the `tokenizers` library as it comes, on a text of 50,000 letters in one piece: its time grows with the square of the length, so
that 400,000 take 64 times as long (92 s were measured on two cores). The claim is about seconds: `ratio` is room below the ceiling of 3 s,
of training; encoding is stated beside it, at the whole and at half of the length, for its time must grow as the length does.

    python -m benchmarks.bpe_no_blanks [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable

from tauon.config import parse
from tauon.data import TokenizerConfig
from tauon.data.tokenizer_config import _PATTERNS

LETTERS, OF_PEER, VOCAB, CEILING = 400_000, 50_000, 4096, 3.0


def text(length: int) -> str:
    draw = random.Random(0)
    words = [
        "".join(chr(0x4E00 + min(int(draw.paretovariate(0.6)), 3000)) for _ in range(draw.choice([1, 2, 2, 2, 3]))) for _ in range(8000)
    ]
    return "".join(draw.choices(words, [1 / (i + 1) for i in range(len(words))], k=length))[:length]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peer(letters: str) -> None:
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    tok = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(_PATTERNS["gpt4"]), behavior="isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, min_frequency=2, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tok.train_from_iterator([letters], trainer=trainer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    rounds = 1 if parser.parse_args().quick else 3
    whole, config = text(LETTERS), parse(TokenizerConfig, {"kind": "bpe", "vocab": VOCAB})
    times = [seconds(lambda: config.build(lambda: iter([whole]))) for _ in range(rounds)]
    tokenizer = config.build(lambda: iter([whole]))
    encode = {
        n: statistics.median(seconds(lambda n=n: tokenizer.encode(whole[:n])) for _ in range(rounds)) for n in (LETTERS // 2, LETTERS)
    }  # type: ignore[misc]
    theirs = seconds(lambda: peer(whole[:OF_PEER]))
    ours = statistics.median(times)
    print(
        f"{LETTERS:,} letters: {ours:.2f} s ({min(times):.2f} to {max(times):.2f} of {rounds}), encoding {encode[LETTERS]:.2f} s, half of them ",
        end="",
    )
    print(f"{encode[LETTERS // 2]:.2f} s; the library as it comes, {OF_PEER:,} letters: {theirs:.2f} s; load {os.getloadavg()[0]:.1f}")
    result = {"claim": "bpe_no_blanks", "ours": round(ours, 2), "peer": round(theirs, 2), "ratio": round(CEILING / ours, 2), "floor": 1.0}
    result |= {
        "unit": f"seconds; ratio is ceiling ({CEILING:g}) / ours; peer at an eighth of the length",
        "ours_encode": round(encode[LETTERS], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
