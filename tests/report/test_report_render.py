"""The report as a file: complete, safe, small, whole or absent, and honest about what is missing."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import report_folders as made

from tauon.errors import RunError
from tauon.report import SECTIONS, Records, Section, render

VOID = {"meta", "wbr", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks nesting as it goes; collects tags with attributes, ids, and text outside script and style."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def page_of(folder):
    return Page(render(folder).read_text(encoding="utf-8"))


FOLDERS = {
    "language-model": made.language_model,
    "classifier": made.classifier,
    "two-classes": lambda f: made.classifier(f, 2, 300),
    "forty-classes": lambda f: made.classifier(f, 40, 3000, 5.0),
    "regressor": made.regressor,
    "three-targets": lambda f: made.regressor(f, 3),
    "hostile": made.hostile,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_kind_of_run_gives_a_well_formed_page_that_fetches_nothing(tmp_path, name):
    html = render(FOLDERS[name](tmp_path)).read_text(encoding="utf-8")
    page = Page(html)
    assert "could not be drawn" not in page.words
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "video", "audio", "source", "base", "form"), tag
        assert not {"src", "srcset", "action", "poster", "data", "formaction", "xlink:href"} & set(attrs)
        assert attrs.get("href", "#").startswith("#")
        assert not [a for a in attrs if a.startswith("on")]
        assert "url(" not in (attrs.get("style") or "")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    anchors = {a["href"][1:] for t, a in page.tags if t == "a"}
    assert anchors <= set(ids)
    labelled = [a["aria-labelledby"].split() for t, a in page.tags if t == "svg" and "aria-labelledby" in a]
    assert all(i in ids for pair in labelled for i in pair)


def test_markup_in_records_stays_text(tmp_path):
    page = page_of(made.hostile(tmp_path))
    assert sum(t == "script" for t, _ in page.tags) == 1
    assert sum(t == "title" for t, a in page.tags if "id" not in a) == 1
    assert "<script>document.title='taken'</script><img src=x onerror=alert(1)>" in page.words
    assert "<script>alert(1)</script>" in page.words
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)


def test_only_our_script_may_run(tmp_path):
    import base64
    import hashlib

    html = render(made.regressor(tmp_path)).read_text(encoding="utf-8")
    policy = next(a["content"] for t, a in Page(html).tags if t == "meta" and "http-equiv" in a)
    script = html[html.index("<script>") + 8 : html.index("</script>")]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")


def test_the_page_says_what_the_run_reached(tmp_path):
    folder = made.classifier(tmp_path)
    words = page_of(folder).words
    accuracy = json.loads((folder / "evaluation.json").read_text())["metrics"]["accuracy"]
    assert f"{accuracy['value']:.4f}" in words
    assert f"{accuracy['low']:.4f} to {accuracy['high']:.4f}" in words
    for part in (
        "digits-mlp",
        "Finished: 900 steps",
        "Accuracy on the test split",
        "Confusion matrix",
        "Reliability",
        "ROC-AUC",
        "118,282",
    ):
        assert part in words
    for part in ("Data", "Recipe", "Environment", "Lineage"):
        assert part in words
    assert "ef" * 32 in words
    assert "counted after building" in words


def test_the_confusion_matrix_shows_every_count(tmp_path):
    folder = made.classifier(tmp_path, 3, 200)
    html = render(folder).read_text()
    shown = html[html.index('<table class="confusion">') :]
    shown = [int(n) for n in re.findall(r">(\d+)</td>", shown[: shown.index("</table>")])]
    assert shown == np.array(json.loads((folder / "evaluation.json").read_text())["confusion"]["counts"]).ravel().tolist()


def test_of_many_classes_the_report_shows_the_most_frequent_confusions(tmp_path):
    folder = made.classifier(tmp_path, 3, 200)
    record = json.loads((folder / "evaluation.json").read_text())
    record["confusion"] = {"labels": [f"class {i}" for i in range(400)], "cells": [[7, 7, 3], [7, 399, 9], [0, 12, 1]]}
    (folder / "evaluation.json").write_text(json.dumps(record))
    page = render(folder).read_text()
    assert "400 classes are too many for a matrix" in page and '<table class="confusion">' not in page
    assert page.index("class 399</td>") < page.index("class 12</td>") and "75.0%" in page
    for odd in ({"labels": ["a"], "cells": [[0, 5, 1]]}, {"labels": ["a"], "counts": 3}, {"labels": None, "cells": [["x", 0, 0]]}):
        record["confusion"] = odd
        (folder / "evaluation.json").write_text(json.dumps(record))
        page_of(folder)


def test_a_language_model_shows_curves_and_samples(tmp_path):
    page = page_of(made.language_model(tmp_path))
    for part in (
        "Bits per byte on the validation split",
        "Word perplexity",
        "skipped step (2)",
        "resumed (1)",
        "tokens per second",
        "def read_lines(path):",
    ):
        assert part in page.words
    assert page.words.count("class Stack:") == 1  # a text that repeats its prompt is shown once
    titles = " ".join(page.words.split())
    for chart in ("Loss", "Learning rate", "Gradient norm", "Throughput", "Memory", "Validation: Bits per byte"):
        assert chart in titles


def test_a_bare_recipe_says_what_is_missing(tmp_path):
    made.write(tmp_path, "recipe.yaml", "name: bare\n")
    words = page_of(tmp_path).words
    for part in (
        "Not evaluated",
        "No training steps",
        "No data facts",
        "No environment",
        "No lineage",
        "No derived settings",
    ):
        assert part in words


def test_no_recipe_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(RunError, match=r"recipe\.yaml"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_event_log_and_damaged_records_are_named(tmp_path):
    made.regressor(tmp_path)
    made.write(tmp_path, "events.jsonl", "")
    made.write(tmp_path, "data.json", "{broken")
    made.write(tmp_path, "samples.json", {"not": "a list"})
    made.write(tmp_path, "recipe.yaml", "name: [unclosed\n")
    words = page_of(tmp_path).words
    assert "No training steps" in words
    assert "data.json cannot be read" in words
    assert "samples.json contains a dict" in words
    assert "recipe.yaml cannot be parsed and is shown as text" in words
    assert "name: [unclosed" in words


def test_lines_that_are_damaged_in_the_log_are_left_out_and_said(tmp_path):
    made.regressor(tmp_path)
    path = tmp_path / "events.jsonl"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:5], "{half", *lines[5:-1], '{"kind": "step", "st']))
    words = page_of(tmp_path).words
    assert "damaged" in words
    assert "Finished: 25 steps" in words


def events_of(folder, events, **records):
    made.write(folder, "recipe.yaml", "name: x\ntrain: {steps: 100}\n")
    made.write_events(folder, events)
    for name, value in records.items():
        made.write(folder, f"{name}.json", value)
    return folder


@pytest.mark.parametrize(
    ("extra", "records", "sentence"),
    [
        ([], {}, "Not finished: 60 of 100 steps; last event 2025-07-20"),
        ([{"kind": "interrupted", "step": 60, "reason": "SIGTERM"}], {}, "Interrupted at step 60: SIGTERM."),
        ([{"kind": "failed", "step": 60, "message": "loss is NaN"}], {}, "Failed at step 60: loss is NaN."),
        ([], {"stages": {"train": {"fingerprint": "x", "seconds": 6.0}}}, "Stopped early after 60 steps of 100 planned"),
        ([], {"manifest": {"training": {"plan": {"steps": 60}}}}, "Finished: 60 steps in 6.5 s."),
        ([{"kind": "interrupted", "step": 60}, {"kind": "resume", "step": 50}], {}, "Not finished: 50 of 100 steps"),
    ],
)
def test_the_verdict_follows_the_last_events(tmp_path, extra, records, sentence):
    assert sentence in page_of(events_of(tmp_path, [*made.step_events(60), *extra], **records)).words


def test_steps_of_a_killed_attempt_are_dropped(tmp_path):
    steps = list(made.step_events(80))
    resumed = [e | {"loss": 1.0} for e in made.step_events(100, first=51)]
    records = Records.read(events_of(tmp_path, [*steps, {"kind": "resume", "step": 50}, *resumed]))
    xs, ys = records.series("loss")
    assert xs == list(range(1, 101))
    assert ys[50:] == [1.0] * 50


def test_losses_that_are_not_finite_are_gaps_and_counted(tmp_path):
    steps = [e | {"loss": math.nan if e["step"] in (30, 31) else math.inf if e["step"] == 40 else e["loss"]} for e in made.step_events(60)]
    html = render(events_of(tmp_path, steps)).read_text()
    assert "3 of 60 losses are not finite numbers" in html
    figure = html[html.index('id="loss-t"') :]
    path = re.search(r'class="line tone-quiet" d="([^"]*)"', figure)[1]
    assert path.count("M") == 3
    assert "NaN" not in html
    assert "nan" not in path


def test_a_loss_that_is_never_finite_is_said(tmp_path):
    steps = [e | {"loss": math.nan} for e in made.step_events(60)]
    assert "loss is never finite" in page_of(events_of(tmp_path, steps)).words


def test_a_hundred_thousand_steps_stay_under_five_megabytes(tmp_path):
    made.language_model(tmp_path, steps=200)
    line = '{"time":%d.5,"kind":"step","step":%d,"loss":%.6f,"lr":%.6g,"grad_norm":%.5f,"tokens_per_s":%.4f,"tflops":%.6f,"memory_mb":1900.5}\n'
    noise = np.random.default_rng(0).normal(size=100_000).tolist()
    rows = (
        line % (made.START + i, i, 3 + 0.1 * v, 1e-3 / i, 1 + 0.1 * v * v, 4e4 + 90 * v, 0.5 + 0.01 * v) for i, v in enumerate(noise, 1)
    )
    made.write(tmp_path, "events.jsonl", "".join(rows))
    path = render(tmp_path)
    assert path.stat().st_size <= 1_000_000
    assert "100,000 steps" in path.read_text()
    Page(path.read_text())


def test_a_spike_of_one_step_among_a_hundred_thousand_is_drawn(tmp_path):
    steps = [{"kind": "step", "step": i, "loss": 50.0 if i == 77_777 else 3.0} for i in range(1, 100_001)]
    html = render(events_of(tmp_path, steps)).read_text()
    assert "highest 50" in html


def test_records_of_any_size_stay_under_five_megabytes(tmp_path):
    made.classifier(tmp_path, 300, 900)
    made.write(tmp_path, "recipe.yaml", "name: big\n" + "# " + "é<&>" * 200_000 + "\n")
    made.write(tmp_path, "data.json", {f"k{i}": {"a": "<&>" * 500, "b": list(range(50))} for i in range(1000)})
    made.write(tmp_path, "samples.json", [{"prompt": "<" * 9000, "text": "&" * 90_000} for _ in range(300)])
    made.write(tmp_path, "manifest.json", {f"k{i}": [{f"c{j}": "<" * 900 for j in range(10)} for _ in range(40)] for i in range(30)})
    path = render(tmp_path)
    assert path.stat().st_size <= 5_000_000
    assert "Left out" in Page(path.read_text()).words


def test_a_folder_of_folds_leads_with_their_mean_and_links_their_reports(tmp_path):
    made.regressor(tmp_path)
    for name in ("events.jsonl", "evaluation.json"):
        (tmp_path / name).unlink()
    made.write(tmp_path / "fold-0", "report.html", "x")
    page = page_of(tmp_path)
    assert "Cross-validated: 5 folds" in page.words
    assert re.search(r"R², mean of the folds\s+0\.460", page.words)
    assert [a["href"] for t, a in page.tags if t == "a" and not a["href"].startswith("#")] == ["fold-0/report.html"]
    assert "No training step" not in page.words


def test_the_same_records_give_the_same_bytes(tmp_path):
    folder = made.language_model(tmp_path, steps=200)
    first = render(folder).read_bytes()
    assert render(folder).read_bytes() == first


def test_a_write_that_fails_keeps_the_old_report(tmp_path, monkeypatch):
    folder = made.regressor(tmp_path)
    before = render(folder).read_bytes()
    names = {p.name for p in folder.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="report"):
        render(folder)
    monkeypatch.undo()
    assert (folder / "report.html").read_bytes() == before
    assert {p.name for p in folder.iterdir()} == names


def test_another_room_adds_a_section_and_one_that_breaks_is_said(tmp_path):
    folder = made.regressor(tmp_path)
    made.write(folder, "privacy.json", {"epsilon": 3.0})

    def privacy(records):
        spent = records.json("privacy.json", {})
        return Section("privacy", "Privacy", f"<p>epsilon {spent['epsilon']}</p>")

    def broken(records):
        return Section("broken", "Broken", records.json("privacy.json")["delta"])

    def nothing(records):
        return None

    page = Page(render(folder, [*SECTIONS, privacy, broken, nothing]).read_text())
    assert "epsilon 3.0" in page.words
    assert "could not be drawn" in page.words
    assert ("section", {"id": "privacy"}) in page.tags


def test_records_of_random_shape_never_break_a_section(tmp_path):
    rng = np.random.default_rng(0)
    values = [None, True, -1, 0, 10**400, 1e308, 5e-324, "x", "", [], {}, [1], [[1]], {"a": 1}, [{"a": 1}], {"value": 1}, "NaN", [None, {}]]

    def pick(depth=0):
        if depth < 2 and rng.random() < 0.3:
            return {str(k): pick(depth + 1) for k in rng.choice(KEYS, 3)}
        return values[rng.integers(len(values))]

    KEYS = [
        "metrics",
        "confusion",
        "counts",
        "labels",
        "calibration",
        "bins",
        "n",
        "per_class",
        "primary",
        "value",
        "low",
        "high",
        "folds",
        "mean",
    ]
    KEYS += ["environment", "splits", "training", "plan", "steps", "confidence", "split", "accuracy", "label", "notes", "family"]
    for i in range(60):
        folder = tmp_path / str(i)
        made.write(folder, "recipe.yaml", json.dumps({"name": pick(), "task": pick(), "train": pick()}))
        for name in ("manifest", "data", "evaluation", "folds", "stages"):
            made.write(folder, f"{name}.json", {str(k): pick() for k in rng.choice(KEYS, 9)})
        for name in ("derived", "samples"):
            made.write(folder, f"{name}.json", [{k: pick() for k in ("path", "value", "source", "prompt", "text")} for _ in range(3)])
        kinds = ["step", "validate", "skip", "resume", "interrupted", "warning", "x"]
        events = [
            {"kind": str(rng.choice(kinds)), "time": i, "step": j, "loss": pick(), "lr": pick(), "grad_norm": pick()} for j in range(40)
        ]
        events += [{"kind": str(rng.choice(kinds)), "time": pick(), "step": pick(), "message": pick()} for _ in range(5)]
        made.write_events(folder, events)
        words = page_of(folder).words
        assert "could not be drawn" not in words, (i, re.search("could not be drawn[^.]*", words)[0])
