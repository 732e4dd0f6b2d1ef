"""The section about the quality of data: what matters first and in words, places that can be found, images with a text alternative."""

from __future__ import annotations

from typing import Any

from tauon.report.quality import quality_html


def finding(check: str, severity: str, message: str, **more: Any) -> dict[str, Any]:
    return {"check": check, "severity": severity, "message": message, "examples": [], "count": 1, "facts": {}} | more


def page(*findings: dict[str, Any], **more: Any) -> str:
    return quality_html({"kind": "texts", "records": {"train": 8, "test": 2}, "findings": [*findings], "asked": ["Equal records"]} | more)


def example(*places: str, text: str = "", **more: Any) -> dict[str, Any]:
    return {"rows": list(range(len(places))), "places": list(places), "text": text, "note": "", "image": ""} | more


def test_the_top_says_in_words_what_matters() -> None:
    leak, note = finding("leaks", "bad", "8 records leak. Remove them"), finding("markup", "note", "3 have HTML")
    assert "1 serious finding: results measured with this data cannot be trusted before it is settled. Also 1 note." in page(leak, note)
    assert "Nothing serious was found. 1 finding worth a look." in page(finding("outliers", "warn", "4 texts are odd"))
    assert "1 check found nothing" in page()


def test_each_finding_says_how_grave_it_is_and_is_linked_from_the_top() -> None:
    html = page(
        finding("leaks", "bad", "8 records leak. Remove them"), finding("drift", "warn", "2 columns differ", facts={"part": "test"})
    )
    assert '<b>Serious</b> · <a href="#finding-1">Leaks</a>: 8 records leak.' in html and '<h3 id="finding-1">' in html
    assert "Worth a look. 2 columns differ." in html and "Drift, test part" in html
    assert "<p>Remove them.</p>" in html


def test_the_folder_of_all_files_is_said_once() -> None:
    one = finding("leaks", "bad", "2 leak", examples=[example("/data/a/t.csv, line 3", "/data/b/t.csv, line 9", text="x")])
    html = page(one)
    assert html.count("/data/") == 1 and "a/t.csv, line 3" in html and "b/t.csv, line 9" in html
    mixed = page(finding("leaks", "bad", "2 leak", examples=[example("/data/a/t.csv, line 3"), example("b/t.csv, line 9")]))
    assert "/data/a/t.csv, line 3" in mixed and "b/t.csv, line 9" in mixed


def test_records_that_differ_are_numbered_with_their_places() -> None:
    html = page(finding("near leaks", "warn", "1 leaks", examples=[example("line 3", "line 9", text="one\ntwo <b>")]))
    assert "<b>1</b> line 3" in html and "<b>2</b> line 9" in html and "<b>1</b> one" in html and "<b>2</b> two &lt;b&gt;" in html


def test_images_have_a_text_alternative_and_empty_columns_are_left_out() -> None:
    html = page(finding("outliers", "warn", "1 is odd", examples=[example("scan 3", image="iVBORw0KGgo=")]), kind="images")
    assert 'alt="Image: scan 3"' in html and ">What<" in html and ">Why<" not in html
    series = page(finding("drift", "warn", "1 differs", examples=[example("a", note="far")]))
    assert ">What<" not in series and ">Why<" in series


def test_only_pages_with_words_speak_of_personal_data() -> None:
    shown = finding("outliers", "warn", "1 is odd", examples=[example("3", text="hm")])
    assert "are masked" in page(shown, personal_data="masked") and "shown as it is" in page(shown, personal_data="shown")
    assert "masked" not in page(shown, kind="images", personal_data="masked")
