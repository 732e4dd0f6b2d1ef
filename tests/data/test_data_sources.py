"""Sources read what is there, whole and in a fixed order; what is wrong with a file is said with its name and place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.config import parse
from tauon.data import SourceConfig
from tauon.data.sources.idx import parse_idx
from tauon.errors import ChecksumError, DataError, RecipeError


def source(kind: str, **values: Any) -> SourceConfig:
    return parse(SourceConfig, {"kind": kind, **values})


def texts(src: SourceConfig) -> list[tuple[str, str]]:
    return [(d.name, d.text) for d in src.documents()]


# ---------------------------------------------------------------------------------------------- text


def test_a_file_a_folder_and_a_glob_give_a_document_each(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden", "sub/.also"):
        (tmp_path / name).write_text(f"in {name}\r\n", newline="")
    assert texts(source("text", path=str(tmp_path))) == [(n, f"in {n}\r\n") for n in ("a.txt", "b.txt", "sub/c.txt")]
    assert texts(source("text", path=str(tmp_path / "a.txt"))) == [("a.txt", "in a.txt\r\n")]
    assert [t for _, t in texts(source("text", path=str(tmp_path / "*.txt")))] == ["in a.txt\r\n", "in b.txt\r\n"]
    assert [n for n, _ in texts(source("text", path=str(tmp_path), pattern="*/*.txt"))] == ["sub/c.txt"]
    both = source("text", path=[str(tmp_path / "b.txt"), str(tmp_path / "a.txt"), str(tmp_path / "a.txt")])
    assert [n for n, _ in texts(both)] == ["a.txt", "b.txt"]


def test_packed_files_are_read_as_if_unpacked(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = "zwölf Boxkämpfer\n" * 1000
    packer = zstandard.ZstdCompressor()
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.txt.zst").write_bytes(packer.compress(text.encode()))
    (tmp_path / "d.zst").write_bytes(packer.compress(text[:50].encode()) + packer.compress(text[50:].encode()))  # two frames
    assert [t for _, t in texts(source("text", path=str(tmp_path)))] == [text] * 4


def test_documents_begin_where_the_pattern_matches_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "\n = One = \nbody\n = = Part = = \nmore\n = Two = \nend"
    (tmp_path / "w.txt").write_text(text)
    found = texts(source("text", path=str(tmp_path), document_start=r"^ = [^=]"))
    assert [t for _, t in found] == ["\n = One = \nbody\n = = Part = = \nmore\n", " = Two = \nend"]
    assert [n for n, _ in found] == ["w.txt#0", "w.txt#1"]
    blank = "para one\n\npara two\n\n\npara three"
    (tmp_path / "w.txt").write_text(blank)
    cut = [t for _, t in texts(source("text", path=str(tmp_path), document_start=r"\n\n+"))]
    assert cut == ["para one", "\n\npara two", "\n\n\npara three"]


def test_a_wrong_pattern_is_refused_by_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"document_start: .* is not a regular expression"):
        source("text", path="x", document_start="(")


def test_another_encoding_can_be_named_and_a_wrong_one_says_where(tmp_path: Path) -> None:
    path = tmp_path / "l.txt"
    path.write_bytes("caf\xe9 ol\xe9".encode("latin-1"))
    assert texts(source("text", path=str(path), encoding="latin-1"))[0][1] == "café olé"
    with pytest.raises(DataError, match=r"l\.txt: not utf-8 at byte 3 \(e9 20"):
        texts(source("text", path=str(path)))
    with pytest.raises(RecipeError, match="unknown encoding 'utf-9'"):
        texts(source("text", path=str(path), encoding="utf-9"))


def test_missing_files_are_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("x")
    with pytest.raises(DataError, match=r"trian\.txt: no such file or folder; did you mean .*train\.txt"):
        texts(source("text", path=str(tmp_path / "trian.txt")))
    with pytest.raises(DataError, match=r"\*\.csv: no file matches"):
        texts(source("text", path=str(tmp_path / "*.csv")))
    with pytest.raises(DataError, match=r"has no file that matches '\*\.md'"):
        texts(source("text", path=str(tmp_path), pattern="*.md"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(DataError, match=r"secret\.txt: permission denied"):
        texts(source("text", path=str(path)))


def test_permission_errors_are_data_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("x")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"secret\.txt: permission denied"):
        texts(source("text", path=str(path)))


@pytest.mark.parametrize("keep", [4, 30, -9, -1])
def test_truncated_gzip_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:keep])
    with pytest.raises(DataError, match=r"t\.txt\.gz: damaged or truncated gzip"):
        texts(source("text", path=str(path)))


def test_a_flipped_byte_in_gzip_and_a_torn_zstd_are_named(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    data = bytearray(gzip.compress(b"hello" * 1000))
    data[-5] ^= 0xFF  # the checksum at its end
    (tmp_path / "f.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"f\.gz: damaged or truncated gzip"):
        texts(source("text", path=str(tmp_path / "f.gz")))
    packed = zstandard.ZstdCompressor().compress(os.urandom(5000).hex().encode())
    for keep in (10, len(packed) // 2, len(packed) - 1):
        (tmp_path / "t.zst").write_bytes(packed[:keep])
        with pytest.raises(DataError, match=r"t\.zst: (truncated|damaged) zstd"):
            texts(source("text", path=str(tmp_path / "t.zst")))


def test_other_packings_fail_as_the_bytes_they_are(tmp_path: Path) -> None:
    (tmp_path / "x.bz2").write_bytes(bz2.compress(b"hello" * 100))
    with pytest.raises(DataError, match="not utf-8 at byte"):
        texts(source("text", path=str(tmp_path / "x.bz2")))


def test_the_fingerprint_follows_content_and_settings_but_not_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    one, two = (source("text", path=str(tmp_path / f)) for f in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != source("text", path=str(tmp_path / "one"), limit=1).fingerprint()
    before = two.fingerprint()
    (tmp_path / "two" / "a.txt").write_text("sane")
    assert two.fingerprint() != before
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "b.txt")
    (tmp_path / "two" / "b.txt").write_text("same")
    assert two.fingerprint() != before


# ---------------------------------------------------------------------------------------------- the standard library


def test_the_standard_library_is_sorted_distinct_and_has_no_tests() -> None:
    found = texts(source("python-stdlib"))
    names = [n for n, _ in found]
    assert names == sorted(names)
    assert {"json/decoder.py", "os.py", "asyncio/events.py"} <= set(names)
    assert not any(part in {"test", "tests", "site-packages", "idlelib", "lib2to3"} for n in names for part in n.split("/")[:-1])
    assert len({t for _, t in found}) == len(found)
    assert sum(len(t) for _, t in found) > 5_000_000
    assert source("python-stdlib").describe()["python"] == sys.version.split()[0]


# ---------------------------------------------------------------------------------------------- tables of text


def test_text_columns_of_jsonl_csv_and_parquet_agree(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"title": "A", "text": 'He said "no",\ntwice'}, {"title": "B", "text": "ß€𝄞"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "t.csv").write_text('title,text\nA,"He said ""no"",\ntwice"\nB,ß€𝄞\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        src = source(kind, path=str(tmp_path / f"t.{kind}"))
        assert [t for _, t in texts(src)] == [r["text"] for r in rows]
        both = source(kind, path=str(tmp_path / f"t.{kind}"), text=["title", "text"])
        assert [t for _, t in texts(both)] == ['A\n\nHe said "no",\ntwice', "B\n\nß€𝄞"]
        assert src.output_kind() == "text"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"line 2: not valid JSON at column"),
        ('["a"]', r"line 2: a JSON list, expected an object"),
        ('{"txt": "a"}', r"line 2: no key 'text'; did you mean 'txt'\?"),
        ('{"text": 3}', r"line 2: column 'text' is 3, expected text"),
        ("[" * 100_000, r"line 2: "),
    ],
)
def test_wrong_json_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"text": "ok"}}\n{line}\n')
    with pytest.raises(DataError, match=rf"t\.jsonl, {message}"):
        texts(source("jsonl", path=str(tmp_path / "t.jsonl")))


def test_wrong_bytes_in_json_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl, line 2: not utf-8 at byte 10"):
        texts(source("jsonl", path=str(tmp_path / "t.jsonl")))


def test_missing_columns_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("titel,body\na,b\n")
    with pytest.raises(DataError, match=r"no column 'title'; did you mean 'titel'\? Available: titel, body"):
        texts(source("csv", path=str(tmp_path / "t.csv"), text="title"))


# ---------------------------------------------------------------------------------------------- tables of numbers


def test_features_and_labels_of_jsonl_csv_and_parquet_agree(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"a": 1.5, "b": 2, "kind": "x"}, {"a": -3.25, "b": 4, "kind": "y"}, {"a": 0.0, "b": 6, "kind": "x"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.csv").write_text("a,b,kind\n1.5,2,x\n-3.25,4,y\n0.0,6,x\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        src = source(kind, path=str(tmp_path / f"t.{kind}"), label="kind")
        table = src.arrays()
        assert src.output_kind() == "arrays"
        assert table.features.tolist() == [[1.5, 2], [-3.25, 4], [0, 6]]
        assert (table.targets.tolist(), table.label_names, table.feature_names) == ([0, 1, 0], ("x", "y"), ("a", "b"))
        one = source(kind, path=str(tmp_path / f"t.{kind}"), label="a", features=["b"]).arrays()
        assert (one.targets.dtype, one.targets.tolist(), one.label_names) == (np.float64, [1.5, -3.25, 0], ("a",))


def test_whole_numbers_are_classes_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,7\n2,9\n3,7\n")
    base = {"path": str(tmp_path / "t.csv"), "header": False, "label": "c1"}
    table = source("csv", **base).arrays()
    assert (table.targets.tolist(), table.label_names) == ([0, 1, 0], ("7", "9"))
    assert source("csv", **base, target="value").arrays().targets.tolist() == [7.0, 9.0, 7.0]
    (tmp_path / "t.csv").write_text("1,0.5\n2,1\n")
    with pytest.raises(DataError, match=r"column 'c1': label 0\.5 of row 0 is not a whole number"):
        source("csv", **base, target="class").arrays()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,y\n1,0\nx,1\n", r"t\.csv, line 3: column 'a' is 'x', expected a number"),
        ("a,y\n1,0\n2\n", r"t\.csv, line 3: 1 values, expected 2"),
        ("a,y\n1,0\n2,\n", r"t\.csv, line 3: column 'y' is '', expected a label"),
        ("a,a,y\n1,2,0\n", r"two columns have the same name 'a'"),
        ("", r"t\.csv: the file is empty"),
        ("a,y\n", r"t\.csv: no rows"),
        ('a,y\n"1,0\n', r"t\.csv, line 2: not valid CSV"),
        ("a,z\n1,0\n", r"no column 'y'"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        source("csv", path=str(tmp_path / "t.csv"), label="y").arrays()


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n1,low\n2,high\n")
    with pytest.raises(DataError, match="'low' .*is not a number"):
        source("csv", path=str(tmp_path / "t.csv"), label="y", target="value").arrays()


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"t\.parquet: not a Parquet file"):
        texts(source("parquet", path=str(tmp_path / "t.parquet")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "a", "label": "y", "drop": ["b"]}, "drop: has no effect with text"),
        ({"features": ["a"]}, "features: has no effect without label"),
        ({"label": "y", "features": ["a", "y"]}, "features: includes the label 'y'"),
        ({"delimiter": ";;"}, "delimiter: ';;' is neither one character nor 'blanks'"),
    ],
)
def test_impossible_table_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        source("csv", path="x.csv", **values)


# ---------------------------------------------------------------------------------------------- IDX


def idx(array: np.ndarray, code: int = 8) -> bytes:
    """The bytes of an IDX file, as its definition says."""
    big = {8: ">u1", 0x0B: ">i2", 0x0D: ">f4"}[code]
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(big).tobytes()


@pytest.mark.parametrize("code", [8, 0x0B, 0x0D])
def test_idx_arrays_come_back(code: int) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(parse_idx(idx(array, code), "x"), array)


def test_idx_images_get_a_channel_and_labels_names(tmp_path: Path) -> None:
    (tmp_path / "i.gz").write_bytes(gzip.compress(idx(np.arange(3 * 2 * 2).reshape(3, 2, 2))))
    (tmp_path / "l").write_bytes(idx(np.array([1, 0, 1])))
    table = source("idx", images=str(tmp_path / "i.gz"), labels=str(tmp_path / "l"), label_names=["no", "yes"]).arrays()
    assert table.features.shape == (3, 1, 2, 2)
    assert table.features.dtype == np.uint8
    assert (table.targets.tolist(), table.label_names) == ([1, 0, 1], ("no", "yes"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file: it begins with nothing"),
        (b"\x89PNG....", "not an IDX file: it begins with 89 50 4e 47"),
        (b"\0\0\x08\x03\0\0\0\x02", "the IDX header names 3 dimensions but ends"),
        (idx(np.zeros((2, 2)))[:-1], "announces 2 x 2 uint8, 16 bytes in all, but the file has 15"),
        (idx(np.zeros((2, 2))) + b"x", "but the file has 17"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "but the file has 12"),
    ],
)
def test_wrong_idx_files_are_named(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"im.idx: .*{message}"):
        parse_idx(data, "im.idx")


def test_halves_of_different_sets_and_labels_out_of_range_are_named(tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(idx(np.zeros((3, 2, 2))))
    (tmp_path / "l").write_bytes(idx(np.array([0, 1])))
    with pytest.raises(DataError, match=r"has 3 examples, but .* has 2 labels"):
        source("idx", images=str(tmp_path / "i"), labels=str(tmp_path / "l")).arrays()
    (tmp_path / "l").write_bytes(idx(np.array([0, 1, 2])))
    with pytest.raises(DataError, match="label 2 of row 2 is out of range: 2 class names are given, expected 0 to 1"):
        source("idx", images=str(tmp_path / "i"), labels=str(tmp_path / "l"), label_names=["a", "b"]).arrays()


# ---------------------------------------------------------------------------------------------- NumPy archives


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_npz_finds_its_keys_and_its_parts(tmp_path: Path) -> None:
    x, y = np.arange(8.0).reshape(4, 2), np.array([3, 5, 3, 5])
    plain = source("npz", path=npz(tmp_path / "a.npz", X=x, y=y))
    assert plain.arrays().features.tolist() == x.tolist()
    assert plain.arrays().label_names == ("3", "5")
    assert plain.part("test") is None
    parts = source("npz", path=npz(tmp_path / "b.npz", train_images=x, train_labels=y[:, None], val_images=x[:1], val_labels=y[:1, None]))
    assert len(parts.arrays()) == 4
    held = parts.part("validation")
    assert held is not None
    assert len(held.arrays()) == 1
    assert parts.part("test") is None
    assert len(source("npz", path=str(tmp_path / "b.npz"), split="all").arrays()) == 5


def test_npz_images_may_have_channels_last(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3)).astype(np.uint8)
    table = source("npz", path=npz(tmp_path / "a.npz", x_train=x, y_train=np.array([0, 1, 0, 1, 0]))).arrays()
    assert table.features.shape == (5, 3, 8, 9)
    assert table.features[2, 1, 3, 4] == x[2, 3, 4, 1]


@pytest.mark.parametrize(
    ("arrays", "values", "message"),
    [
        ({"a": [1], "b": [2]}, {}, "no features and targets under a usual name. Its keys: a, b"),
        ({"x": [[1]], "y": [2]}, {"split": "test"}, "its keys name no parts"),
        ({"x_train": [[1]], "y_train": [2]}, {"split": "test"}, "no part 'test'"),
        ({"x": [[1]], "y": [2]}, {"features": "x", "targets": "z"}, "no array 'z'. Its keys: x, y"),
        ({"x": 3, "y": [2]}, {}, "array 'x' is a single number"),
        ({"x": np.array([{}], object), "y": [2]}, {}, "array 'x' cannot be read: it contains Python objects"),
        ({"x": [[1], [2]], "y": [0.5, 1]}, {"target": "class"}, "label 0.5 of row 0 is not a whole number"),
    ],
)
def test_wrong_archives_are_named(tmp_path: Path, arrays: dict[str, Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"a.npz.*{message}"):
        source("npz", path=npz(tmp_path / "a.npz", **arrays), **values).arrays()


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = Path(npz(tmp_path / "a.npz", x=np.zeros((100, 3)), y=np.zeros(100, int)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.npz: not a \.npz file, or damaged"):
        source("npz", path=str(path)).arrays()
    data = bytearray(whole)
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz: array 'x' cannot be read: damaged"):
        source("npz", path=str(path)).arrays()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"a single array \(\.npy\)"):
        source("npz", path=str(path)).arrays()


# ---------------------------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize(
    ("name", "shape", "labels"),
    [
        ("breast_cancer", (569, 30), ("malignant", "benign")),
        ("iris", (150, 4), ("setosa", "versicolor", "virginica")),
        ("wine", (178, 13), ("class_0", "class_1", "class_2")),
        ("digits", (1797, 1, 8, 8), tuple("0123456789")),
        ("diabetes", (442, 10), ("progression",)),
    ],
)
def test_scikit_learns_tables_are_theirs(name: str, shape: tuple[int, ...], labels: tuple[str, ...]) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    table = source("sklearn", name=name).arrays()
    theirs = getattr(datasets, f"load_{name}")()
    assert table.features.shape == shape
    assert table.label_names == labels
    assert np.allclose(table.features.reshape(len(table), -1), theirs.data)
    assert np.allclose(table.targets, theirs.target)
    assert table.classes == (name != "diabetes")


def test_checksum_errors_are_data_errors() -> None:
    assert issubclass(ChecksumError, DataError)
