"""Near-duplicates: against all pairs compared one by one, against datasketch, and the same to the byte after a kill at any point."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data.dedup import DedupConfig, Duplicates, find_duplicates
from tauon.data.dedup import sketch_files as sketch_files_module
from tauon.data.dedup.clusters import clusters, jaccard
from tauon.data.dedup.minhash import SKETCH, Bands, choose_bands, sketches
from tauon.data.dedup.sketch_files import SketchFiles
from tauon.data.dedup.words import WordHashes, ngrams, words_of


def corpus(documents: int, seed: int = 0, longest: int = 120) -> list[str]:
    """Texts of random words; half of them repeat an earlier one with some words changed."""
    draw = random.Random(seed)
    vocab = [f"w{i}" for i in range(3000)]
    made: list[list[str]] = []
    for _ in range(documents):
        if made and draw.random() < 0.5:
            rate = draw.choice([0, 0.01, 0.02, 0.05, 0.3])
            made.append([draw.choice(vocab) if draw.random() < rate else w for w in draw.choice(made)])
        else:
            made.append(draw.choices(vocab, k=draw.randint(3, longest)))
    return [" ".join(words) for words in made]


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def similarity(a: str, b: str) -> float:
    x, y = shingles(a), shingles(b)
    return len(x & y) / len(x | y)


def one_by_one(texts: list[str], threshold: float) -> list[int]:
    """First document of the cluster of each, all pairs compared."""
    first = list(range(len(texts)))
    sets = [shingles(t) for t in texts]
    for j in range(len(texts)):
        for i in range(j):
            if first[i] != first[j] and len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]):
                low, high = sorted((first[i], first[j]))
                first = [low if f == high else f for f in first]
    return first


def find(texts: list[str], folder: Path, **settings: object) -> Duplicates:
    return find_duplicates(lambda: iter(texts), parse(DedupConfig, settings), folder)


def test_clusters_are_those_of_all_pairs_compared_one_by_one(tmp_path: Path) -> None:
    texts = corpus(300)
    found = find(texts, tmp_path, bins=512)
    first = one_by_one(texts, 0.8)
    assert found.removed.tolist() == [i for i, f in enumerate(first) if f != i] and len(found.removed) > 60
    assert found.of.tolist() == [first[i] for i in found.removed]
    for i, of, value in zip(found.removed.tolist(), found.of.tolist(), found.similarity.tolist(), strict=True):
        assert value == pytest.approx(similarity(texts[i], texts[of]))
    assert sum(size * count for size, count in found.cluster_sizes.items()) == len(found.removed) + len(set(found.of.tolist()))


def test_pairs_of_datasketch_are_found(tmp_path: Path) -> None:
    datasketch = pytest.importorskip("datasketch")
    texts = corpus(400, seed=1)
    found = find(texts, tmp_path)
    first = dict(zip(found.removed.tolist(), found.of.tolist(), strict=True))
    index = datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    pairs = []
    for i, text in enumerate(texts):
        made = datasketch.MinHash(num_perm=128)
        made.update_batch([" ".join(s).encode() for s in shingles(text)])
        pairs += [(j, i) for j in index.query(made)]
        index.insert(i, made)
    true = [(a, b) for a, b in pairs if similarity(texts[a], texts[b]) >= 0.8]
    assert len(true) > 100
    assert sum(first.get(a, a) == first.get(b, b) for a, b in true) >= 0.99 * len(true)


def test_the_share_of_equal_bins_is_the_similarity() -> None:
    texts = corpus(60, seed=2, longest=400)
    words, counts = WordHashes()(texts)
    made = sketches(words, counts, 5, 512, Bands(512, 1))  # a key per bin
    errors = []
    for a in range(60):
        for b in range(a):
            errors.append((made.keys[:, a] == made.keys[:, b]).mean() - similarity(texts[a], texts[b]))
    assert abs(np.mean(errors)) < 0.005 and np.max(np.abs(errors)) < 0.15


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_rarely_miss_a_pair_above_the_threshold(threshold: float) -> None:
    bands = choose_bands(threshold, 128)
    assert bands.bands * bands.rows <= 128
    assert bands.probability(threshold) > 0.95 and bands.probability((1 + threshold) / 2) > 0.999
    assert bands.probability(threshold / 3) < 0.2


def test_long_documents_are_compared_by_their_smallest_hashes(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = [f"w{draw.randrange(10**6)}" for _ in range(6 * SKETCH)]
    changed = [w if draw.random() > 0.01 else "other" for w in words]
    texts = [" ".join(words), " ".join(changed), " ".join(reversed(words))]
    found = find(texts, tmp_path)
    assert found.removed.tolist() == [1]
    assert found.similarity[0] == pytest.approx(similarity(texts[0], texts[1]), abs=0.05)


def test_short_texts_and_texts_without_words(tmp_path: Path) -> None:
    texts = ["", "a b", "A, b!", "a b c", "...", "  ...", "?!", "", "你好", "你 好", "你好吗"]
    found = find(texts, tmp_path)
    assert dict(zip(found.removed.tolist(), found.of.tolist(), strict=True)) == {2: 1, 5: 4, 7: 0, 9: 8}


def test_exact_duplicates_differ_in_white_space_and_composition_only(tmp_path: Path) -> None:
    texts = ["caf\u00e9 au lait", "cafe\u0301  au\nlait ", "Caf\u00e9 au lait", "caf\u00e9 au lait.", "caf\u00e9 au lait"]
    found = find(texts, tmp_path, kind="exact")
    assert (found.removed.tolist(), found.of.tolist(), found.similarity.tolist()) == ([1, 4], [0, 0], [1, 1])


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_stopped_anywhere_it_continues_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch_files_module, "ROWS", 32)
    texts = corpus(200)
    find(texts, tmp_path / "whole")
    whole = state_of(tmp_path / "whole")
    assert not any("work" in name for name in whole)

    class Stop(BaseException):
        pass

    stops = 0
    for place in [0, 1, 31, 32, 33, 100, 199]:
        seen: list[int] = []

        def some(place: int = place, seen: list[int] = seen) -> Iterator[str]:
            for i, text in enumerate(texts):
                if i == place:
                    raise Stop
                seen.append(i)
                yield text

        with pytest.raises(Stop):
            find_duplicates(some, DedupConfig(), tmp_path / "stopped")
        stops += 1
    monkeypatch.setattr("tauon.data.dedup.clusters._unite", lambda *a: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        find(texts, tmp_path / "stopped")
    monkeypatch.undo()
    monkeypatch.setattr(sketch_files_module, "ROWS", 32)
    assert (tmp_path / "stopped" / "work" / "chunk-00005.json").is_file() and stops == 7
    find(texts, tmp_path / "stopped")
    assert state_of(tmp_path / "stopped") == whole


def test_killed_it_continues_to_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tauon.data.dedup import *\nfrom tauon.data.dedup import sketch_files\n"
        "sys.path.insert(0, sys.argv[2])\nfrom test_dedup_near import corpus\nsketch_files.ROWS = 20\n"
        "def texts():\n    for t in corpus(150):\n        time.sleep(float(sys.argv[3]))\n        yield t\n"
        "find_duplicates(texts, DedupConfig(), Path(sys.argv[1]))\n"
    )
    work = tmp_path / "killed"
    here = str(Path(__file__).parent)
    running = subprocess.Popen([sys.executable, "-c", code, str(work), here, "0.02"])
    while not (work / "work" / "chunk-00001.json").is_file():
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (work / "duplicates.json").exists()
    find(corpus(150), tmp_path / "whole")
    subprocess.run([sys.executable, "-c", code, str(work), here, "0"], check=True)
    assert state_of(work) == state_of(tmp_path / "whole")


def test_neither_memory_nor_chunks_nor_batches_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus(200, seed=3)
    hashes, bands = WordHashes(), choose_bands(0.8, 128)
    results = []
    for rows, chars, memory in ((1 << 16, 1 << 20, 1 << 30), (17, 1 << 20, 500), (50, 900, 2000)):
        monkeypatch.setattr(sketch_files_module, "ROWS", rows)
        monkeypatch.setattr(sketch_files_module, "CHARS", chars)
        folder = tmp_path / str(rows)
        SketchFiles.write(folder, texts, lambda batch: sketches(*hashes(batch), 5, 128, bands))
        results.append(clusters(SketchFiles(folder), folder, 0.8, jaccard, memory).tolist())
    assert results[0] == results[1] == results[2]
    assert len(set(results[0])) < 200


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_of_the_pattern(text: str) -> None:
    assert words_of(text) == re.findall(r"\w+", text.lower())


@given(st.lists(st.text(), max_size=6))
def test_a_word_has_one_hash_wherever_it_is(texts: list[str]) -> None:
    values, counts = WordHashes()(texts)
    words = [words_of(t) for t in texts]
    assert counts.tolist() == [max(1, len(w)) for w in words]
    known: dict[str, int] = {}
    at = 0
    for mine in words:
        for word in mine:
            alone = int(WordHashes()([word])[0][0])
            assert known.setdefault(word, int(values[at])) == int(values[at]) == alone
            at += 1
        at += not mine
    assert len(set(known.values())) == len(known)


@pytest.mark.parametrize("more", ["", " na\u00efve"])
def test_every_ascii_character_parts_words_or_belongs_to_one(more: str) -> None:
    texts = [f"Ab{chr(c)}Cd{more}" for c in range(128)]
    values, counts = WordHashes()(texts)
    assert counts.tolist() == [len(words_of(text)) for text in texts]
    assert np.array_equal(values, WordHashes()([" ".join(words_of(text)) for text in texts])[0])


def test_hashes_and_keys_are_those_of_earlier_versions() -> None:
    """So that the same command removes the same documents."""
    texts = ["Hello, World! 你好", "antidisestablishmentarianism snake_case 42", "...", "one two three four five six seven"]
    words, counts = WordHashes()(texts)
    made = sketches(words, counts, 5, 64, Bands(16, 4))
    both = made.keys.astype("<u8").tobytes() + made.hashes.astype("<u4").tobytes()
    assert hashlib.sha256(words.astype("<u8").tobytes()).hexdigest()[:16] == "9a315eda9a53270a"
    assert hashlib.sha256(both).hexdigest()[:16] == "9beaa7ca3b10b38a"


def test_a_long_text_has_the_words_of_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(corpus(40)) + " naïve 你好 " + "x" * 5000
    whole = WordHashes()([text, "end"])
    monkeypatch.setattr("tauon.data.dedup.words._SLICE", 300)
    monkeypatch.setattr("tauon.data.dedup.words._BLOCK", 256)
    cut = WordHashes()([text, "end"])
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 7))
def test_ngrams_do_not_cross_texts(counts: list[int], n: int) -> None:
    words = np.random.default_rng(0).integers(0, 2**63, sum(counts)).astype(np.uint64)
    values, whose = ngrams(words, np.array(counts), n)
    edges = np.cumsum([0, *counts])
    alone = [ngrams(words[a:b], np.array([b - a]), n)[0] for a, b in itertools.pairwise(edges.tolist())]
    assert [len(a) for a in alone] == [max(1, c - n + 1) for c in counts] == np.bincount(whose, minlength=len(counts)).tolist()
    assert np.array_equal(values, np.concatenate(alone))
