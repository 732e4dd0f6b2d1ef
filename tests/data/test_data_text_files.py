"""Text in files as people have it: byte order marks, encodings, line separators inside strings, bad bytes, half surrogates, in every source."""

from __future__ import annotations

import codecs
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import DataConfig, SourceConfig, prepare
from tauon.data.text_files import json_rows, read_text, text_lines
from tauon.errors import DataError, RecipeError

SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\rj"
"""Every character that `str.splitlines` takes for the end of a line, but for \\n."""
KINDS = ("text", "jsonl", "labelled", "csv", "chat", "chat list", "pairs")
MARKS = {
    "utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}  # fmt: skip


def rows_of(kind: str, said: str) -> str:
    """The content of a file of this kind in which `said` is said, thrice."""
    if kind == "text":
        return said
    if kind == "csv":
        return "text,label\n" + "".join(f'"{said}",{x}\n' for x in "aba")
    rows: list[Any] = [{"text": said, "label": x} for x in "aba"]
    if kind.startswith("chat"):
        rows = [{"instruction": "Hi", "output": said} for _ in range(3)]
    if kind == "pairs":
        rows = [{"prompt": "Hi", "chosen": said, "rejected": "No"} for _ in range(3)]
    return json.dumps(rows, ensure_ascii=False) if kind == "chat list" else "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)


def source(kind: str, path: Path, **settings: Any) -> SourceConfig:
    more = {"labelled": {"text": "text", "label": "label"}, "csv": {"text": "text", "label": "label"}}.get(kind, {})
    name = {"labelled": "jsonl", "chat list": "chat"}.get(kind, kind)
    return parse(SourceConfig, {"kind": name, "path": str(path), **more, **settings})


def said_in(config: SourceConfig) -> list[str]:
    output_kind = config.output_kind()
    if output_kind == "text":
        return [d.text for d in config.documents()]
    if output_kind == "labelled-text":
        return list(config.labelled_texts().texts)
    if output_kind == "chat":
        return [c.messages[-1].content for c in config.conversations()]
    return [p.chosen for p in config.pairs()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", MARKS)
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(kind: str, encoding: str, tmp_path: Path) -> None:
    said = "Ünï 你好 😀"
    path = tmp_path / "f"
    path.write_bytes(MARKS[encoding] + rows_of(kind, said).encode(encoding))
    assert set(said_in(source(kind, path))) == {said}
    assert set(said_in(source(kind, path, encoding=encoding))) == {said}
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert set(said_in(source(kind, path))) == {said}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "shift_jis", "gb18030", "utf-8-sig", "UTF_8"])
def test_an_encoding_can_be_named_for_every_source_of_text(kind: str, encoding: str, tmp_path: Path) -> None:
    said = {"latin-1": "Ärger mit Ü", "cp1252": "“Ärger” – 5 €", "shift_jis": "日本語", "gb18030": "你好，世界"}.get(
        encoding, "Ünï 你好 😀"
    )
    (tmp_path / "f").write_bytes(rows_of(kind, said).encode(encoding))
    assert set(said_in(source(kind, tmp_path / "f", encoding=encoding))) == {said}


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("text", "csv")])
def test_line_separators_inside_strings_end_no_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(rows_of(kind, SEPARATORS).replace("\n", "\r\n").encode())
    assert set(said_in(source(kind, tmp_path / "f"))) == {SEPARATORS}


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=8),
    st.sampled_from([*MARKS, "utf-8 bare"]),
)
@settings(max_examples=60, deadline=None)
def test_every_text_comes_back_from_lines_of_json(tmp_path_factory: pytest.TempPathFactory, said: list[str], encoding: str) -> None:
    lines = "\n".join(json.dumps({"text": s}, ensure_ascii=False) for s in said)
    data = MARKS.get(encoding, b"") + lines.encode(encoding.removesuffix(" bare"))
    assert [row["text"] for _, row in json_rows(read_text(data, "f"), "f")] == said
    path = tmp_path_factory.mktemp("lines") / "f"
    path.write_bytes(data)
    assert [json.loads(line)["text"] for _, line in text_lines(path)] == said
    assert [n for n, _ in text_lines(path)] == list(range(1, len(said) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_that_does_not_fit_is_named_with_its_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(rows_of(kind, "caf\xe9 ol\xe9").encode("latin-1"))
    with pytest.raises(DataError, match=r"/f.*: not utf-8 at byte \d+ \(e9 20.*set its encoding"):
        said_in(source(kind, tmp_path / "f"))
    with pytest.raises(RecipeError, match=r"encoding: unknown encoding 'utf-9'"):
        source(kind, tmp_path / "f", encoding="utf-9")
    with pytest.raises(RecipeError, match="encoding: unknown encoding 'rot13'"):
        source(kind, tmp_path / "f", encoding="rot13")


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("text", "csv")])
def test_half_a_surrogate_pair_is_named_with_its_row(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    text = rows_of(kind, "some text SURROGATE more").replace("SURROGATE", "\\ud83d", 1)
    (tmp_path / "f").write_text(text)
    input_kind = {"jsonl": "tokens", "labelled": "labelled-text", "chat list": "chat"}.get(kind, kind)
    config = {"source": {**dump_source(source(kind, tmp_path / "f"))}, "tokenizer": "bytes", "seq_len": 64}
    with pytest.raises(DataError, match=r"f(#0|, line 1|, item 0).*: character 10 is a lone surrogate"):
        prepare(parse(DataConfig, config), seed=0, input_kind=input_kind)
    whole = text.replace("\\ud83d", "\\ud83d\\ude00")
    (tmp_path / "f").write_text(whole)
    assert any("😀" in s for s in said_in(source(kind, tmp_path / "f")))


def test_half_a_surrogate_pair_in_a_label_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("\n".join(json.dumps({"text": f"t {i}", "label": "a\ud800" if i % 2 else "b"}) for i in range(20)))
    config = {"source": dump_source(source("labelled", tmp_path / "f")), "tokenizer": "bytes"}
    with pytest.raises(DataError, match=r"column 'label': the label .* has half a character"):
        prepare(parse(DataConfig, config), seed=0, input_kind="labelled-text")


def dump_source(config: SourceConfig) -> dict[str, Any]:
    from tauon.config import dump

    return dump(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("[]", "no rows"),
        ('{"a": 1}\n{"a":', "line 2: not valid JSON at column"),
        ('[{"a": 1}', "starts like a JSON list, but is not valid JSON"),
        ('{"a": 1}\n[1]', "line 2: a JSON list, expected an object"),
        ("[1]", "item 0: a JSON int, expected an object"),
        ("[" * 100_000, "starts like a JSON list"),
        ('{"a": 1, "b": 2, "a": 3}', "line 1: the key 'a' occurs twice"),
        ('[{"b": {"a": 1, "a": 3}}]', "the key 'a' occurs twice"),
        ('{"a": 1}'.encode("utf-16-le").decode(), "line 1: not valid JSON at column .*It looks like UTF-16"),
        ('{"a": 1' + "0" * 5000 + "}", "line 1: Exceeds the limit.*Write it as text"),
    ],
)
def test_rows_that_are_none_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(json_rows(text, "f"))


def test_an_old_file_that_is_text_is_read_as_before(tmp_path: Path) -> None:
    """Bytes without a mark are decoded as ever, whatever they look like."""
    rng = random.Random(0)
    text = "".join(rng.choices("ab \r\n\t\u2028\u0085é", k=500)) + "\ufeff inside"
    (tmp_path / "f").write_bytes(text.encode())
    assert said_in(source("text", tmp_path / "f")) == [text]
