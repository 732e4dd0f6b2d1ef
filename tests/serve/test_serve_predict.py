"""`/predict` for each kind of data: the predictions of `tauon predict`; bad requests get the right status and a message in words."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import worlds
from worlds import raw, run_of

from tauon.predict import predict_file


def by_file(kind: str, path: Path, tmp_path: Path) -> list[dict[str, str]]:
    predict_file(run_of(kind), path, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def alike(served: dict[str, Any], told: dict[str, str]) -> None:
    """Words are equal; numbers within the rounding of float32."""
    assert served
    for name, value in served.items():
        if isinstance(value, float):
            assert value == pytest.approx(float(told[name]), rel=2e-5, abs=2e-6), name
        else:
            assert str(value) == told[name], name


@pytest.mark.parametrize("kind", [*worlds.KINDS, *worlds.FITTED])
@pytest.mark.parametrize("how", ["body", "form"])
def test_each_kind_of_data_answers_as_tauon_predict(serve: Any, tmp_path: Path, kind: str, how: str) -> None:
    client = serve(kind)
    path, content_type = raw(kind)
    content = path.read_bytes()
    if how == "body":
        response = client.post("/predict", content=content, headers={"content-type": content_type})
    else:
        response = client.post("/predict", files={"file": (path.name, content, content_type)})
    assert response.status_code == 200, response.text
    answer = response.json()
    told = by_file(kind, path, tmp_path)
    assert len(answer["predictions"]) == len(told)
    for served, row in zip(answer["predictions"], told, strict=True):
        alike(served, row)


def test_rows_as_json_and_csv_as_answer(serve: Any, tmp_path: Path) -> None:
    client = serve("table")
    with (worlds.world() / "table.csv").open(newline="") as f:
        rows = [{"age": int(r["age"]), "town": r["town"]} for r in csv.DictReader(f)][:20]
    told = by_file("table", worlds.world() / "table.csv", tmp_path)[:20]
    for body in ({"rows": rows}, rows):
        answer = client.post("/predict", json=body).json()["predictions"]
        for served, row in zip(answer, told, strict=True):
            alike(served, row)
    alike(client.post("/predict", json=rows[0]).json()["predictions"][0], told[0])
    text = client.post("/predict", json=rows, headers={"accept": "text/csv"})
    assert text.headers["content-type"].startswith("text/csv")
    assert [r["prediction"] for r in csv.DictReader(text.text.splitlines())] == [r["prediction"] for r in told]


def test_texts_and_a_series_as_json(serve: Any, tmp_path: Path) -> None:
    client = serve("texts")
    one = client.post("/predict", json={"rows": [{"text": "bad film"}, {"text": "good film"}]}).json()["predictions"]
    assert one == client.post("/predict", json=["bad film", "good film"]).json()["predictions"] and len(one) == 2
    series = serve("series")
    path, _ = raw("series")
    with path.open(newline="") as f:
        rows = [{"date": r["date"], "load": float(r["load"])} for r in csv.DictReader(f)]
    answer = series.post("/predict", json={"rows": rows}).json()["predictions"]
    for served, row in zip(answer, by_file("series", path, tmp_path), strict=True):
        alike(served, row)


def test_several_pictures_in_one_form(serve: Any) -> None:
    client = serve("pictures")
    files = [
        ("file", (f"{i}.png", (worlds.world() / "images" / name / f"{i}.png").read_bytes(), "image/png"))
        for i, name in ((0, "cat"), (1, "dog"))
    ]
    both = client.post("/predict", files=files).json()["predictions"]
    each = [client.post("/predict", files=[f]).json()["predictions"][0] for f in files]
    assert [b["prediction"] for b in both] == [e["prediction"] for e in each]


BAD = [
    (b"{", "application/json", 400, "line 1"),
    (b"\xff\xfe", "application/json", 400, "UTF-8"),
    (b"[" * 100_000, "application/json", 400, "nested"),
    (b"[]", "application/json", 422, "at least one row"),
    (b'{"rows": []}', "application/json", 422, "at least one row"),
    (b"17", "application/json", 422, "row 0 is int"),
    (b'{"rows": [1]}', "application/json", 422, "expected an object"),
    (b'{"rows": [{"age": 3}]}', "application/json", 422, "town"),
    (b'{"rows": [{"age": "old", "town": "Bonn"}]}', "application/json", 422, "'old'"),
    (b'{"rows": [{"age": NaN, "town": "Bonn"}, {"age": Infinity, "town": "Bonn"}]}', "application/json", 422, "inf"),
    (b"age;town\n3;Bonn\n", "text/csv", 422, "the body"),
    (b"", "text/csv", 422, ""),
    (b"age,town\n", "text/csv", 422, "no rows"),
    (b"\x89PNG", "image/png", 415, "the model reads rows"),
    (b"x", "application/x-python-pickle", 415, "is not read"),
    (b"--x\r\n", "multipart/form-data; boundary=y", 400, "form"),
    (b"", "multipart/form-data", 400, "form"),
    (b"--y--\r\n", "multipart/form-data; boundary=y", 422, "no file"),
]


@pytest.mark.parametrize(("body", "kind", "status", "words"), BAD)
def test_bad_bodies_are_refused_in_words(serve: Any, body: bytes, kind: str, status: int, words: str) -> None:
    client = serve("table")
    response = client.post("/predict", content=body, headers={"content-type": kind})
    assert (response.status_code, words in response.json()["error"]["message"]) == (status, True), response.text
    assert "/tmp" not in response.text, "no path of this machine"
    assert client.post("/predict", json=[{"age": 50, "town": "Ulm"}]).status_code == 200
    assert client.state.budget.used == 0


@pytest.mark.parametrize("name", ["../../etc/passwd.png", "..\\x.png", "/etc/x.png", "a\x00b.png", "é" * 300 + ".png"])
def test_a_file_name_is_never_a_path(serve: Any, name: str) -> None:
    client = serve("pictures")
    content = (worlds.world() / "images" / "cat" / "0.png").read_bytes()
    assert client.post("/predict", files={"file": (name, content, "image/png")}).status_code in (200, 400, 415)
    bad = client.post("/predict", files={"file": ("x.png", b"no picture", "image/png")})
    assert bad.status_code == 422 and bad.json()["error"]["message"].startswith("x.png: damaged")


def test_unknown_paths_and_methods_are_json_too(serve: Any) -> None:
    client = serve("table")
    assert client.get("/nowhere").status_code == 404 and "/nowhere" in client.get("/nowhere").json()["error"]["message"]
    wrong = client.get("/predict")
    assert wrong.status_code == 405 and "POST" in wrong.json()["error"]["message"]
    assert client.post("/predict?explain=true", json=[{"age": 1, "town": "Ulm"}]).status_code == 403


def test_an_answer_is_explained_on_request(serve: Any) -> None:
    client = serve("table", explain=True)
    response = client.post("/predict?explain=true", json=[{"age": 50, "town": "Ulm"}])
    assert response.status_code == 200, response.text
    (explained,) = response.json()["explanations"]
    assert explained["answer"] == response.json()["predictions"][0]["prediction"]
    assert explained["maps"]


def test_what_a_client_must_know(serve: Any) -> None:
    info = serve("table").get("/info").json()
    assert [c["name"] for c in info["columns"]] == ["age", "town"] and info["labels"] == ["no", "yes"]
    assert info["columns"][1]["values"] == ["Bonn", "Köln", "Ulm"]
    schema = serve("table").get("/openapi.json").json()
    row = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"][2]
    assert row["required"] == ["age", "town"]


def test_the_page_has_nothing_from_elsewhere(serve: Any) -> None:
    client = serve("table")
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/", "/page.js", "/page.css", "/docs", "/docs.js"):
        assert client.get(path).status_code == 200 and "https://" not in client.get(path).text


def test_a_changed_request_body_is_no_half_answer(serve: Any) -> None:
    """One bad row of a request fails that request; the others that were joined with it are answered."""
    import threading

    client = serve("table")
    good, bad = json.dumps([{"age": 50, "town": "Ulm"}]), json.dumps([{"age": "x", "town": "Ulm"}])
    found: list[int] = []

    def ask(body: str) -> None:
        found.append(client.post("/predict", content=body, headers={"content-type": "application/json"}).status_code)

    threads = [threading.Thread(target=ask, args=(bad if i % 3 == 0 else good,)) for i in range(30)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(found) == [200] * 20 + [422] * 10


def test_a_csv_and_json_that_arrive_together_are_read_each_by_its_rules(serve: Any) -> None:
    from tauon.serve.uploads import Upload, rows_of_json, rows_of_upload

    served = serve("table").state.predictors.current
    predictor = served.predictor
    as_json = rows_of_json([{"age": 50, "town": "Ulm"}], predictor)
    as_csv = rows_of_upload([Upload(b"age,town\n50,Ulm\n30,Bonn\n", ".csv", "x.csv")], predictor)
    wrong = rows_of_json([{"age": "x", "town": "Ulm"}], predictor)
    alone = [served.compute([item])[0] for item in (as_json, as_csv)]
    first, second, bad, third = served.compute([as_json, as_csv, wrong, as_json])
    assert first == third == alone[0] and second == alone[1] and first[0] == second[0]
    assert "'x'" in str(bad)
