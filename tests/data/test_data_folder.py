"""A folder of pictures: natural order, published parts, one mode and one size; every kind of file that is no picture is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.config import parse
from tauon.data import DataConfig, SourceConfig, inputs_from_pictures, prepare
from tauon.errors import DataError, MissingExtra, RecipeError

Image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")


def save(path: Path, value: Any = 100, size: tuple[int, int] = (6, 4), mode: str = "RGB", **how: Any) -> None:
    """A picture of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **how)


def folder(tmp_path: Path, per_class: int = 3) -> Path:
    root = tmp_path / "signs"
    for c, colour in (("class2", (200, 0, 0)), ("class10", (0, 200, 0)), ("class1", (0, 0, 200))):
        for i in (2, 10, 1)[:per_class]:
            save(root / c / f"{i}.png", tuple(v + i for v in colour))
    return root


def source(path: Path, **values: Any) -> Any:
    return parse(SourceConfig, {"kind": "folder", "path": str(path), **values})


def test_classes_and_files_come_in_natural_order(tmp_path: Path) -> None:
    table = source(folder(tmp_path)).arrays()
    assert table.label_names == ("class1", "class2", "class10")
    assert table.features.shape == (9, 3, 4, 6) and table.features.dtype == np.uint8
    assert table.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert table.features[:3, 2, 0, 0].tolist() == [201, 202, 210]
    assert [name for _, name in source(tmp_path / "signs").files()][:3] == ["class1/1.png", "class1/2.png", "class1/10.png"]


def test_hidden_and_other_files_are_no_pictures_and_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "._1.png", "notes.txt", "scan.dcm"):
        (root / "class1" / name).write_text("x")
    (root / "README.md").write_text("x")
    (root / "__MACOSX" / "class1").mkdir(parents=True)
    (root / "__MACOSX" / "class1" / "._1.png").write_text("x")
    table = source(root).arrays()
    assert len(table) == 9 and table.label_names == ("class1", "class2", "class10")
    assert table.left_out == (
        "files made by the operating system (4): __MACOSX/class1/._1.png, class1/.DS_Store, class1/._1.png, class1/Thumbs.db",
        "not images by their names (3): README.md, class1/notes.txt, class1/scan.dcm",
    )
    made = prepare(
        parse(DataConfig, {"source": {"kind": "folder", "path": str(root)}, "split": {"validation": 0}}), seed=0, input_kind="arrays"
    )
    assert made.facts["left_out"]["train"] == [*table.left_out]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".apng", ".dib", ".tga"])
def test_pictures_go_by_many_names(tmp_path: Path, suffix: str) -> None:
    root = folder(tmp_path)
    how = {".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".apng": "PNG", ".dib": "DIB", ".tga": "TGA"}[suffix]
    save(root / "class1" / f"x{suffix}", format=how)
    assert len(source(root).arrays()) == 10


def test_subfolders_of_a_class_belong_to_it(tmp_path: Path) -> None:
    root = folder(tmp_path)
    save(root / "class1" / "patient7" / "left" / "3.png", (9, 9, 9))
    table = source(root).arrays()
    assert np.bincount(table.targets).tolist() == [4, 3, 3]
    assert table.features[3, :, 0, 0].tolist() == [9, 9, 9]
    assert source(root).files()[3][1] == "class1/patient7/left/3.png"


def deep(folder: Path, values: list[int | float], kind: Any, suffix: str = ".png") -> Path:
    """A picture of 4 x 4 for each value, in two classes in turn."""
    for i, value in enumerate(values):
        path = folder / "ab"[i % 2] / f"{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4), value, kind)
        pixels[0, 0] = 0
        Image.fromarray(pixels).save(path)
    return folder


def learned(folder: Path, **more: Any) -> Any:
    return prepare(
        parse(DataConfig, {"source": {"kind": "folder", "path": str(folder), **more}, "split": {"validation": 0}}),
        seed=0,
        input_kind="arrays",
    )


@pytest.mark.parametrize(
    ("kind", "suffix", "values", "top"),
    [
        (np.uint16, ".png", [200, 65000, 100, 30000], 65535),
        (np.uint16, ".png", [17, 4000, 18, 2000], 4095),  # 12 bits in 16
        (np.uint16, ".tif", [1, 200, 100, 50], 255),
        (np.int32, ".tif", [100_000, 7, 50_000, 90_000], 131_071),
        (np.float32, ".tif", [0.25, 0.5, 0.9, 0.1], 1),
        (np.float32, ".tif", [10.5, 200.25, 100, 3], 255),
    ],
)
def test_deep_pictures_have_one_range_and_keep_their_levels(tmp_path: Path, kind: Any, suffix: str, values: list[Any], top: float) -> None:
    made = learned(deep(tmp_path / "x", values, kind, suffix))
    order = [values[i] for i in (0, 2, 1, 3)]  # class a, then class b
    stored = made.train._table.features[:, 0, 3, 3]
    np.testing.assert_allclose(stored, np.array(order, kind).astype(np.float64) * 255 / top, rtol=1e-6)
    assert made.facts["pixel_range"]["high"] == top and made.facts["normalize"]["kind"] == "standard"
    raw = source(tmp_path / "x").arrays().features
    assert raw.dtype == kind
    np.testing.assert_allclose(
        inputs_from_pictures(made.preprocess, raw), made.train.batch(np.arange(4)).inputs.numpy(), rtol=1e-5, atol=1e-6
    )


def test_the_range_of_deep_pictures_is_that_of_the_training_part(tmp_path: Path) -> None:
    deep(tmp_path / "x" / "train", [1000, 4000, 100, 50], np.uint16)
    deep(tmp_path / "x" / "test", [60000, 10], np.uint16)
    made = learned(tmp_path / "x")
    assert made.facts["pixel_range"]["high"] == 4095
    assert made.facts["notes"] == ["images: black is 0 and white 4095 (12 bits are in use in the training images)"]
    assert made.test._table.features.max() == pytest.approx(60000 * 255 / 4095)
    stated = learned(tmp_path / "x", value_range=[1000, 2000])
    assert sorted({*stated.train._table.features[:, 0, 3, 3].tolist()}) == [0, 255]


def test_deep_pictures_are_augmented_as_bytes_are(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint16)
    for i, pixels in enumerate(wide):
        for folder, array in (("deep", pixels * 257), ("bytes", pixels.astype(np.uint8))):
            path = tmp_path / folder / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    config = {"split": {"validation": 0}, "normalize": "standard", "augment": [{"kind": "colour", "brightness": 0.3}, "flip"]}
    one, two = (
        prepare(parse(DataConfig, config | {"source": {"kind": "folder", "path": str(tmp_path / f)}}), seed=1, input_kind="arrays")
        for f in ("deep", "bytes")
    )
    a, b = (s.train.batch(np.arange(6), epoch=3).inputs.numpy() for s in (one, two))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_deep_pictures_are_resized_without_losing_levels(tmp_path: Path) -> None:
    root = deep(tmp_path / "x", [4000, 4001, 4002, 4003], np.uint16)
    assert sorted(source(root, size=2).arrays().features[:, 0, 1, 1].tolist()) == [4000, 4001, 4002, 4003]


def test_depths_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    root = deep(tmp_path / "x", [4000, 300], np.uint16)
    deep(root, [0, 0, 0.5, 0.25], np.float32, ".tif")
    with pytest.raises(DataError, match=r"has float32 values and .* uint16.*Convert all images to one depth"):
        source(root).arrays()
    with pytest.raises(DataError, match="value_range is only for images deeper than 8 bits"):
        source(folder(tmp_path), value_range=[0, 100]).arrays()
    with pytest.raises(RecipeError, match="value_range"):
        source(root, value_range=[5, 5])
    nan = deep(tmp_path / "n", [np.nan, 1], np.float32, ".tif")
    with pytest.raises(DataError, match=r"0.tif: 15 of its values are NaN or infinite"):
        source(nan).arrays()


def test_a_class_of_which_nothing_is_whole_is_an_error(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for p in (root / "class2").iterdir():
        p.write_bytes(b"broken")
    with pytest.raises(
        DataError, match=r"class 'class2' has 3 files but no readable image among them.*The first: .*1.png: damaged or not an image"
    ):
        source(root, on_corrupt="skip").arrays()


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "Testing")])
def test_subfolders_of_parts_are_published_parts(tmp_path: Path, names: tuple[str, str, str]) -> None:
    root = folder(tmp_path)
    for i, name in enumerate(names):
        (tmp_path / "whole").mkdir(exist_ok=True)
        for c in ("class1", "class2", "class10"):
            for j in range(i + 1):
                save(tmp_path / "whole" / name / c / f"{j}.png", (i, 10 * j, 0))
    del root
    splits = prepare(parse(DataConfig, {"source": {"kind": "folder", "path": str(tmp_path / "whole")}}), seed=0, input_kind="arrays")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [3, 6, 9]  # type: ignore[arg-type]
    only = source(tmp_path / "whole", split="test")
    assert len(only.arrays()) == 9 and only.part("test") is None
    with pytest.raises(DataError, match="no subfolder test"):
        source(folder(tmp_path), split="test").arrays()


def test_a_class_that_only_the_test_folder_has_is_an_error(tmp_path: Path) -> None:
    for part, classes in (("train", "ab"), ("test", "abc")):
        for c in classes:
            save(tmp_path / "whole" / part / c / "0.png")
    with pytest.raises(DataError, match=r"the test source has the label 'c', which the training data does not have. Training labels: a, b"):
        prepare(
            parse(DataConfig, {"source": {"kind": "folder", "path": str(tmp_path / "whole")}, "split": {"validation": 0}}),
            seed=0, input_kind="arrays",
        )  # fmt: skip


def test_modes_are_brought_together(tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    save(root / "a" / "rgb.png", (10, 20, 30))
    save(root / "a" / "grey.png", 77, mode="L")
    save(root / "b" / "palette.gif", (10, 20, 30), mode="RGB")
    save(root / "b" / "alpha.png", (200, 100, 50, 0), mode="RGBA")  # transparent: black
    save(root / "b" / "half.png", (200, 100, 50, 128), mode="RGBA")
    save(root / "b" / "cmyk.jpg", (0, 0, 0, 0), mode="CMYK")
    save(root / "b" / "line.png", 1, mode="1")
    save(root / "b" / "wide.png", 65535, mode="I;16")
    table = source(root).arrays()
    assert table.features.shape == (8, 3, 4, 6)
    named = {n: table.features[i, :, 0, 0].tolist() for i, (_, n) in enumerate(source(root).files())}
    assert named["a/rgb.png"] == [10, 20, 30] and named["a/grey.png"] == [77] * 3
    assert named["b/alpha.png"] == [0, 0, 0] and named["b/half.png"] == [100, 50, 25]
    assert named["b/cmyk.jpg"] == [255] * 3 and named["b/line.png"] == [255] * 3 and named["b/wide.png"] == [255] * 3
    assert source(root, colours="grey").arrays().features.shape == (8, 1, 4, 6)
    (root / "a" / "rgb.png").unlink()
    for p in (root / "b").iterdir():
        if p.name not in ("line.png", "wide.png"):
            p.unlink()
    assert source(root).arrays().features.shape == (3, 1, 4, 6)  # all grey
    assert source(root, colours="rgb").arrays().features.shape == (3, 3, 4, 6)


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "x" / "a" / "turned.jpg", size=(8, 4), exif=exif)
    save(tmp_path / "x" / "b" / "plain.jpg", size=(4, 8))
    assert source(tmp_path / "x").arrays().features.shape == (2, 3, 8, 4)


@pytest.mark.parametrize(("fit", "column"), [("crop", [0, 0, 255, 255]), ("stretch", [0, 0, 255, 255]), ("pad", [0, 0, 0, 0])])
def test_pictures_come_to_one_size(tmp_path: Path, fit: str, column: list[int]) -> None:
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[20:] = 255
    wide[:, :20], wide[:, 60:] = (255, 0, 0), (255, 0, 0)
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / "x" / name / "0.png")
    out = source(tmp_path / "x", size=4, fit=fit).arrays().features
    assert out.shape == (2, 3, 4, 4)
    middle = out[0, 1, :, 1]  # green: 0 above, 255 below, where the middle is kept
    if fit == "pad":
        assert out[0, :, 0].max() == out[0, :, 3].max() == 0 and out[0, 0, 1:3].max() > 100
    else:
        assert np.abs(middle.astype(int) - column).max() <= 70
        assert (out[0, 0, 0, 0] > 200) == (fit == "stretch")  # what crop cuts off is red
    assert source(tmp_path / "x", size=[3, 5]).arrays().features.shape == (2, 3, 3, 5)


def test_a_limit_takes_from_every_class(tmp_path: Path) -> None:
    table = source(folder(tmp_path), limit=4).arrays()
    assert np.bincount(table.targets).tolist() == [2, 1, 1]


# ---------------------------------------------------------------------------------------------- what is wrong with files


def broken(root: Path, what: str) -> str:
    """Spoil the folder; returns what the error must say."""
    path = root / "class2" / "2.png"
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
        return r"class2/2\.png: damaged or not an image .*on_corrupt=skip"
    if what == "no picture":
        path.write_bytes(b"<html>Not found</html>")
        return r"class2/2\.png: damaged or not an image \(cannot identify image file"
    if what == "nothing":
        path.write_bytes(b"")
        return r"class2/2\.png: damaged or not an image"
    if what == "another size":
        save(path, size=(9, 9))
        return r"class2/2\.png: 9 x 9 pixels, but .*class1/1\.png has 6 x 4.*set data\.source\.size"
    if what == "one class":
        for name in ("class2", "class10"):
            for p in (root / name).iterdir():
                p.unlink()
            (root / name).rmdir()
        return r"signs: only one class \(class1\)"
    if what == "empty class":
        for p in (root / "class2").iterdir():
            p.unlink()
        return r"signs/class2: this class folder has no image"
    if what == "no classes":
        save(root.parent / "signs2" / "0.png")
        os.rename(root, root.parent / "old")
        os.rename(root.parent / "signs2", root)
        return r"signs: 0\.png is not in a class folder. Expected signs/<class>/<image>"
    assert what == "missing"
    os.rename(root, root.parent / "old")
    return r"signs: no such folder. Relative paths start at"


@pytest.mark.parametrize(
    "what", ["truncated", "no picture", "nothing", "another size", "one class", "empty class", "no classes", "missing"]
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, what: str) -> None:
    root = folder(tmp_path)
    says = broken(root, what)
    with pytest.raises(DataError, match=says):
        source(root).arrays()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_picture_that_may_not_be_read(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "class1" / "1.png").chmod(0)
    with pytest.raises(DataError, match=r"1\.png: cannot be read: permission denied"):
        source(root).arrays()


def test_skipping_leaves_out_and_counts(tmp_path: Path) -> None:
    root = folder(tmp_path)
    broken(root, "truncated")
    table = source(root, on_corrupt="skip").arrays()
    assert np.bincount(table.targets).tolist() == [3, 2, 3]
    assert len(table.left_out) == 1 and "class2/2.png: damaged or not an image" in table.left_out[0]
    splits = prepare(
        parse(DataConfig, {"source": {"kind": "folder", "path": str(root), "on_corrupt": "skip"}, "split": {"validation": 0}}),
        seed=0, input_kind="arrays",
    )  # fmt: skip
    assert splits.facts["left_out"]["train"] == list(table.left_out)
    for name in ("class1/1.png", "class1/2.png", "class10/1.png", "class10/2.png"):
        (root / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"5 of 9 files are damaged images, too many to skip"):
        source(root, on_corrupt="skip").arrays()


def test_settings_without_sense_are_refused(tmp_path: Path) -> None:
    for values, says in (
        ({"size": 0}, "expected pixels"),
        ({"fit": "pad"}, "has no effect without size"),
        ({"size": [3, 0]}, "expected pixels"),
    ):
        with pytest.raises(RecipeError, match=says):
            source(tmp_path, **values)


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    root = folder(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tauon\[images\]'"):
        source(root).arrays()
