"""A CSV of 20,000 columns and 200 rows (expression of genes, say) read and encoded: processor seconds from the file to scaled numbers.

The peer is what one would write by hand: pandas.read_csv, scikit-learn's StandardScaler for numbers and OrdinalEncoder for words, on the same
file; it checks nothing. They take turns; medians. The claim is about seconds, so `ratio` is room below the ceiling: 5 s / median.

    python -m benchmarks.wide_table [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROWS, COLUMNS = 200, 20_000
CEILING = 5.0


def write(path: Path, columns: int) -> None:
    """Numbers of four decimals, every 50th column one of four words, a label of two classes."""
    rng = np.random.default_rng(0)
    values, words = rng.normal(size=(ROWS, columns)).round(4), np.array(["A", "C", "G", "T"])[rng.integers(0, 4, (ROWS, columns))]
    lines = [",".join([*(f"g{j}" for j in range(columns)), "y"])]
    for i in range(ROWS):
        cells = [words[i, j] if j % 50 == 49 else repr(float(values[i, j])) for j in range(columns)]
        lines.append(",".join([*cells, "ab"[i % 2]]))
    path.write_text("\n".join(lines) + "\n")


def ours(path: Path) -> np.ndarray:
    """All rows as a model reads them."""
    from tauon.config import parse
    from tauon.data import DataConfig, prepare

    config = parse(DataConfig, {"source": {"kind": "csv", "path": str(path), "label": "y"}, "split": {"validation": 0}})
    train = prepare(config, seed=0, input_kind="arrays").train
    return train.batch(np.arange(len(train))).inputs.numpy()


def peer(path: Path) -> np.ndarray:
    """The same by hand."""
    import pandas as pd
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler

    frame = pd.read_csv(path)
    frame.pop("y")
    words = frame.select_dtypes(exclude="number").columns
    found = np.empty(frame.shape, np.float32)
    is_word = frame.columns.isin(words)
    found[:, ~is_word] = StandardScaler().fit_transform(frame.loc[:, ~is_word].to_numpy())
    found[:, is_word] = OrdinalEncoder().fit_transform(frame.loc[:, is_word]) + 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 round instead of 5")
    parser.add_argument("--columns", type=int, default=COLUMNS)
    args = parser.parse_args()
    rounds = 1 if args.quick else 5
    cpu: dict[str, list[float]] = {"ours": [], "peer": []}
    wall: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.csv"
        write(path, args.columns)
        for r in range(rounds + 1):  # the first imports, and fills the disk cache
            out = {}
            for who, run in (("ours", ours), ("peer", peer)):
                begun, start = time.process_time(), time.perf_counter()
                out[who] = run(path)
                if r:
                    cpu[who].append(time.process_time() - begun)
                    wall[who].append(time.perf_counter() - start)
            np.testing.assert_allclose(out["ours"], out["peer"], atol=1e-4)
    median = {who: statistics.median(t) for who, t in cpu.items()}
    for who in ("ours", "peer"):
        print(
            f"{who}: {median[who]:.2f} s of processor ({min(cpu[who]):.2f} to {max(cpu[who]):.2f}), {statistics.median(wall[who]):.2f} s in all"
        )
    print(f"load {os.getloadavg()[0]:.1f}")
    result: dict[str, Any] = {"claim": "wide_table", "ours": round(median["ours"], 2), "peer": round(median["peer"], 2)}
    result |= {"ratio": round(CEILING / median["ours"], 2), "floor": 1.0}
    result |= {"unit": "processor seconds, 20,000 columns x 200 rows; ratio is ceiling (5 s) / median"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
