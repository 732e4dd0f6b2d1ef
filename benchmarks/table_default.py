"""The default for tables, TabM, beside scikit-learn's HistGradientBoosting as it comes: mean difference in ROC-AUC (R2 of numbers), and time.

Sets: german-credit, breast-cancer, digits, diabetes, and five that are made here: `houses` (a map, skewed numbers, thresholds; 8,000 rows), `missing`
(interactions, 15% of the values missing, some for a reason; 6,000), `shops` (two columns of 50 categories that interact; 10,000), `census` (spikes,
mostly zeros, categories; 24,000), and `steps` (a sum of axis-parallel steps, the trees' own shape; 8,000). Ours is a recipe run through the pipeline
(`recipe_of`), which holds nothing out to choose anything; the peer gets the same rows, numbers unscaled with NaN where they are missing, and
categories as categories. Seconds are processor seconds of the whole run (reading the CSV, training, evaluating), and of the peer's encoding, `fit`
and prediction, after a warm-up of each: importing torch's optimizers takes a second, once a process. Set OMP_NUM_THREADS=1 where other programs use
the cores.

The claim is over the sets but `census` and `steps`, which are shown beside. Ratio: mean difference + 1.002; floor: 1. `time` is ours / the peer's, of all.

    python -m benchmarks.table_default [--sets german-credit,digits] [--folds 0,1] [--results FILE] [--quick]

With `--results`, each finished fold is one line of the file and is not computed again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tauon.artifacts import read_json
from tauon.pipeline import run
from tauon.plan import table_defaults
from tauon.recipe import load_recipe

Columns = dict[str, np.ndarray]
FOLDS, BESIDE = 5, ("census", "steps")


def german() -> tuple[Columns, np.ndarray]:
    path = Path(os.environ["TAUON_DATA"]) / "german-credit" / "german.data"
    rows = [line.split() for line in path.read_text().splitlines() if line]
    columns = {f"c{j}": np.array([r[j] for r in rows]) for j in range(20)}
    return {k: v.astype(float) if v[0].isdigit() else v for k, v in columns.items()}, np.array([r[20] for r in rows])


def shipped(name: str) -> tuple[Columns, np.ndarray]:
    import sklearn.datasets

    data = getattr(sklearn.datasets, f"load_{name}")()
    y = data.target if name == "diabetes" else np.array([f"k{v}" for v in data.target])
    return {f"c{j}": data.data[:, j] for j in range(data.data.shape[1])}, y


def houses() -> tuple[Columns, np.ndarray]:
    r, n = np.random.default_rng(0), 8000
    lat, lon, age = r.uniform(32, 42, n), r.uniform(-124, -114, n), r.integers(1, 53, n).astype(float)
    income, rooms, bed, per = (r.lognormal(m, s, n) for m, s in ((1.2, 0.45), (1.65, 0.35), (0.07, 0.15), (1.05, 0.25)))
    at, height, wide = r.uniform([32, -124], [42, -114], (12, 2)), r.normal(0, 1, 12), r.uniform(0.4, 1.5, 12)
    place = sum(height[i] * np.exp(-((lat - at[i, 0]) ** 2 + (lon - at[i, 1]) ** 2) / (2 * wide[i] ** 2)) for i in range(12))
    y = 0.45 * income * (1 + 0.5 * np.tanh(place)) + place + 0.3 * np.log(rooms / bed) - 0.35 * np.log(per) * (income > 3.5)
    y = np.clip(y + 0.006 * age * (lat < 36) + r.normal(0, 0.45, n), 0.15, 5)
    people = r.lognormal(7, 0.7, n)
    return {"income": income, "age": age, "rooms": rooms, "bed": bed, "people": people, "per": per, "lat": lat, "lon": lon}, y


def missing() -> tuple[Columns, np.ndarray]:
    r, n = np.random.default_rng(1), 6000
    x = r.normal(size=(n, 12))
    x[:, 3], x[:, 4] = np.exp(x[:, 3]), np.round(x[:, 4] * 3)
    z = (
        1.2 * x[:, 0] * x[:, 1]
        + np.sin(2 * x[:, 2])
        + 0.5 * np.log(x[:, 3]) * (x[:, 4] > 0)
        + 0.8 * (np.abs(x[:, 5]) < 0.5)
        + 0.4 * x[:, 6]
    )
    lost = r.random((n, 12)) < 0.15
    lost[:, 7] = r.random(n) < 1 / (1 + np.exp(-x[:, 6]))  # missing says something
    y = r.random(n) < 1 / (1 + np.exp(-1.3 * (z + 0.9 * lost[:, 7] - 1)))
    return {f"x{j}": np.where(lost[:, j], np.nan, x[:, j]) for j in range(12)}, np.where(y, "yes", "no")


def shops() -> tuple[Columns, np.ndarray]:
    r, n = np.random.default_rng(2), 10_000
    a = r.zipf(1.4, 3 * n)
    a, b, c = np.resize(a[a <= 50][:n] - 1, n), r.integers(0, 50, n), r.integers(0, 6, n)
    of_a, of_b, of_both, x = r.normal(0, 1, 50), r.normal(0, 0.8, 50), r.normal(0, 0.6, (6, 50)), r.normal(size=(n, 5))
    x[:, 0] = np.exp(1.2 * x[:, 0])
    z = of_a[a] + of_b[b] + of_both[c, a] * x[:, 1] + 0.5 * np.log(x[:, 0]) * (c < 3) + 0.7 * np.abs(x[:, 2]) - 1
    y = r.random(n) < 1 / (1 + np.exp(-z))
    words = {k: np.array([f"{k}{v}" for v in codes]) for k, codes in (("a", a), ("b", b), ("c", c))}
    return {f"x{j}": x[:, j] for j in range(5)} | words, np.where(y, "yes", "no")


def census() -> tuple[Columns, np.ndarray]:
    r, n = np.random.default_rng(3), 24_000
    age, school = np.clip(r.gamma(6, 6.5, n), 17, 90).round(), r.integers(1, 17, n).astype(float)
    hours = np.where(r.random(n) < 0.5, 40, np.clip(r.normal(40, 13, n), 1, 99).round())
    gain = np.where(r.random(n) < 0.08, np.exp(r.normal(8.5, 1.2, n)).round(), 0)
    loss = np.where(r.random(n) < 0.05, np.exp(r.normal(7.5, 0.3, n)).round(), 0)
    sizes = {"work": 14, "home": 6, "firm": 8, "sex": 2, "land": 42}
    codes = {k: np.minimum(r.zipf(2.2, n), 41) if k == "land" else r.integers(0, m, n) for k, m in sizes.items()}
    home = np.array([1.6, -0.8, -1.2, -0.4, 1.4, -1])
    z = (
        -4.2
        + 0.35 * np.maximum(school - 8, 0)
        + r.normal(0, 0.7, 14)[codes["work"]]
        + home[codes["home"]]
        + r.normal(0, 0.4, 8)[codes["firm"]]
    )
    z += (
        1.5 * np.exp(-(((age - 48) / 15) ** 2))
        + 0.03 * np.clip(hours - 40, -20, 20)
        + 3 * (gain > 5000)
        - 1.2 * ((gain > 0) & (gain < 1000))
    )
    z += ((loss > 1500) & (loss < 2000)) + 0.25 * codes["sex"] * (codes["home"] < 2)
    y = r.random(n) < 1 / (1 + np.exp(-1.25 * z))
    words = {k: np.array([f"{k}{v}" for v in c]) for k, c in codes.items()}
    numbers = {"age": age, "school": school, "hours": hours, "gain": gain, "loss": loss, "weight": np.exp(r.normal(12, 0.5, n)).round()}
    return numbers | words, np.where(y, "yes", "no")


def steps() -> tuple[Columns, np.ndarray]:
    r, n = np.random.default_rng(4), 8000
    x, z = r.normal(size=(n, 10)), np.zeros(n)
    for _ in range(25):
        (i, j), (s, t) = r.choice(10, 2, replace=False), r.normal(size=2) * 0.8
        z += r.normal() * ((x[:, i] > s) & (x[:, j] > t))
    return {f"x{j}": x[:, j] for j in range(10)}, z + r.normal(0, 0.6, n)


SETS: dict[str, Callable[[], tuple[Columns, np.ndarray]]] = {
    "german-credit": german, "breast-cancer": lambda: shipped("breast_cancer"), "digits": lambda: shipped("digits"),
    "diabetes": lambda: shipped("diabetes"), "houses": houses, "missing": missing, "shops": shops, "census": census, "steps": steps,
}  # fmt: skip


def write(path: Path, columns: Columns, y: np.ndarray, rows: np.ndarray) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*columns, "y"])
        lists = [["" if v != v else v for v in values[rows].tolist()] for values in (*columns.values(), y)]
        out.writerows(zip(*lists, strict=True))


def recipe_of(folder: Path, columns: Columns, y: np.ndarray, train: np.ndarray) -> Path:
    """Write the recipe with the defaults for such a table, and return its path."""
    classes = y.dtype.kind in "US"
    defaults = table_defaults(len(train), missing=any(v.dtype.kind == "f" and np.isnan(v).any() for v in columns.values()))
    source = {"kind": "csv", "label": "y", "target": "class" if classes else "value"}
    data = {
        "source": source | {"path": str(folder / "train.csv")},
        "test": source | {"path": str(folder / "test.csv")},
        "split": {"validation": 0, "test": 0},
    }
    tree = {"name": "ours", "seed": 7, "task": "classification" if classes else "regression", **defaults, "data": data | defaults["data"]}
    path = folder / "ours.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def ours(columns: Columns, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """(score, processor seconds) of the recipe."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder / "train.csv", columns, y, train)
        write(folder / "test.csv", columns, y, test)
        begun = time.process_time()
        done = run(load_recipe(recipe_of(folder, columns, y, train), []), root=folder, stages=("prepare", "train", "evaluate"))
        metrics = read_json(done.folder / "evaluation.json")["metrics"]
        name = next(k for k in ("roc_auc", "roc_auc_macro", "r2") if k in metrics)
        return float(metrics[name]["value"]), time.process_time() - begun


def peer(columns: Columns, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """(score, processor seconds) of scikit-learn."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.metrics import r2_score, roc_auc_score
    from sklearn.preprocessing import OrdinalEncoder

    begun = time.process_time()
    coded = [v.dtype.kind in "US" for v in columns.values()]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    encoded = [encoder.fit(v[train, None]).transform(v[:, None])[:, 0] if c else v for v, c in zip(columns.values(), coded, strict=True)]
    x, classes = np.stack(encoded, 1), y.dtype.kind in "US"
    model: Any = (HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor)(categorical_features=coded, random_state=7)
    model.fit(x[train], y[train])
    p = model.predict_proba(x[test]) if classes else model.predict(x[test])
    seconds = time.process_time() - begun
    if not classes:
        return float(r2_score(y[test], p)), seconds
    return float(roc_auc_score(y[test], p[:, 1]) if p.shape[1] == 2 else roc_auc_score(y[test], p, multi_class="ovr")), seconds


def folds(y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import KFold, StratifiedKFold

    kind: Any = StratifiedKFold if y.dtype.kind in "US" else KFold
    return list(kind(FOLDS, shuffle=True, random_state=7).split(np.zeros(len(y)), y))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print each set; return the claim's line."""
    names = [n for n in SETS if any(r["set"] == n for r in rows)]
    found = {n: np.mean([[r["ours"], r["peer"], r["ours_s"], r["peer_s"]] for r in rows if r["set"] == n], axis=0) for n in names}
    for name, (a, b, s, t) in found.items():
        print(f"{name:14} {a:.4f}  gradient boosting {b:.4f}  {a - b:+.4f}   {s:.2f} s / {t:.2f} s = {s / t:.1f}")
    counted = np.array([found[n] for n in names if n not in BESIDE] or [*found.values()])
    a, b, s, t = counted.mean(0)
    result = {
        "claim": "table_default",
        "ours": round(float(a), 4),
        "peer": round(float(b), 4),
        "ratio": round(float(a - b + 1.002), 4),
        "floor": 1.0,
    }
    return result | {
        "time": round(float(s / t), 2),
        "unit": "mean ROC-AUC or R2; ratio is the difference + 1.002",
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--folds", default="0,1,2,3,4")
    parser.add_argument("--results", type=Path, help="file of finished folds")
    parser.add_argument("--quick", action="store_true", help="one fold of the smaller sets")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Found unknown categories")
    names = [n for n in args.sets.split(",") if not (args.quick and n in (*BESIDE, "digits"))]
    kept = args.results.read_text().splitlines() if args.results and args.results.is_file() else []
    rows = [json.loads(line) for line in kept]
    columns, y = shipped("diabetes")
    ours(columns, y, np.arange(200), np.arange(200, 300))
    peer(columns, y, np.arange(200), np.arange(200, 300))
    for name in names:
        columns, y = SETS[name]()
        for fold, (train, test) in enumerate(folds(y)):
            if str(fold) not in (["0"] if args.quick else args.folds.split(",")) or any(
                (r["set"], r["fold"]) == (name, fold) for r in rows
            ):
                continue
            (a, s), (b, t) = ours(columns, y, train, test), peer(columns, y, train, test)
            rows.append({"set": name, "fold": fold, "ours": a, "peer": b, "ours_s": s, "peer_s": t})
            print(f"{name}, fold {fold}: {a:.4f} ({s:.1f} s), gradient boosting {b:.4f} ({t:.1f} s)", flush=True)
            if args.results:
                with args.results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
