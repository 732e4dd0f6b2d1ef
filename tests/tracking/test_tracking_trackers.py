"""Trackers, read back with the tools' own readers."""

from __future__ import annotations

import csv
import json
import math
import sys
import warnings

import pytest

from tauon.config import parse, registered, unread_keys
from tauon.config.documented import descriptions
from tauon.errors import MissingExtra, RecipeError, RunError
from tauon.tracking import CsvConfig, Tracker, TrackerConfig, guard
from tauon.tracking.tracker import flatten

RECIPE = {"name": "r", "seed": 7, "optim": {"kind": "adamw", "betas": [0.9, 0.95]}, "long": "x" * 9000} | {f"k{i}": i for i in range(120)}


def build(data, folder) -> Tracker:
    return parse(TrackerConfig, data).build(folder, "first", RECIPE)


def run_killed_and_resumed(data, folder) -> None:
    """Steps 1 to 5, killed; resumes from the checkpoint of step 3 to step 6."""
    tracker = build(data, folder)
    for step in range(1, 6):
        tracker.log(step, {"loss": 1 / step, "lr": 0.5})
    tracker.close()
    tracker = build(data, folder)
    for step in range(4, 7):
        tracker.log(step, {"loss": 10 / step, "accuracy": math.nan if step == 6 else 0.5})
    tracker.summary({"best": 0.25})
    tracker.close()


EXPECTED = {1: 1.0, 2: 1 / 2, 3: 1 / 3, 4: 10 / 4, 5: 10 / 5, 6: 10 / 6}


def test_the_family_has_its_members():
    assert set(registered("tracker")) >= {"csv", "tensorboard", "mlflow", "wandb"}


@pytest.mark.parametrize("kind", sorted(registered("tracker")))
def test_every_field_is_documented_and_consumed(kind, tmp_path, monkeypatch):
    member = registered("tracker")[kind]
    assert member.__doc__
    assert {*descriptions(member)} == {*member.model_fields}
    if kind in ("tensorboard", "mlflow", "wandb"):
        library = pytest.importorskip(kind)
    if kind == "wandb":
        monkeypatch.setattr(library, "init", lambda **_: None)
    config = parse(TrackerConfig, {"kind": kind} | {name: info.default for name, info in member.model_fields.items()})
    config.build(tmp_path, "first", {})
    assert unread_keys(config) == []


def test_csv_holds_one_row_a_number(tmp_path):
    run_killed_and_resumed({"kind": "csv"}, tmp_path)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(r["step"]): float(r["value"]) for r in rows if r["name"] == "loss"} == EXPECTED
    assert [r["step"] for r in rows if r["name"] == "loss"] == [str(s) for s in EXPECTED]
    assert math.isnan(float(rows[-2]["value"]))
    assert rows[-1] == {"step": "", "name": "best", "value": "0.25"}


def test_csv_survives_a_torn_last_row_and_odd_names(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,name,value\n1,loss,1.0\n2,lo")
    tracker = build({"kind": "csv"}, tmp_path)
    tracker.log(2, {'a,"b"\nc': 0.1})
    tracker.close()
    with open(path, newline="") as file:
        assert list(csv.reader(file)) == [["step", "name", "value"], ["1", "loss", "1.0"], ["2", 'a,"b"\nc', "0.1"]]


def test_csv_values_keep_every_bit(tmp_path):
    tracker = build({"kind": "csv"}, tmp_path)
    values = {"a": 0.1 + 0.2, "b": -math.inf, "c": 5e-324}
    tracker.log(1, values)
    tracker.close()
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert {r["name"]: float(r["value"]) for r in csv.DictReader(file)} == values


def test_csv_stays_in_its_folder(tmp_path):
    with pytest.raises(RecipeError, match="plain file name"):
        CsvConfig(file="../x.csv").build(tmp_path, "r", {})
    with pytest.raises(RunError, match="cannot be written"):
        build({"kind": "csv"}, tmp_path / "nowhere").log(1, {"a": 1.0})


def test_tensorboard_shows_the_curve_without_the_killed_attempt(tmp_path):
    pytest.importorskip("tensorboard")
    run_killed_and_resumed({"kind": "tensorboard"}, tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert {e.step: e.value for e in shown.Scalars("loss")} == pytest.approx(EXPECTED, rel=1e-6)
    assert len(shown.Scalars("loss")) == 6
    assert shown.Scalars("summary/best")[0].value == 0.25
    assert "recipe/text_summary" in shown.Tags()["tensors"]


def test_mlflow_goes_on_with_one_run_in_the_run_folder(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run_killed_and_resumed({"kind": "mlflow", "experiment": "trial"}, tmp_path)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    number = client.get_experiment_by_name("trial").experiment_id
    (run,) = client.search_runs([number])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params["optim.betas.1"] == "0.95"
    assert run.data.params["k119"] == "119"
    assert len(run.data.params["long"]) == 6000
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {m.step: m.value for m in history} == EXPECTED  # the later value of a repeated step
    assert run.data.metrics["summary/best"] == 0.25


def test_mlflow_out_of_reach_says_so(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RunError, match=r"MLflow at http://127\.0\.0\.1:9.*leave the tracker out"):
            build({"kind": "mlflow", "uri": "http://127.0.0.1:9"}, tmp_path)


def test_wandb_stays_offline_by_default(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    seen: dict = {}
    real = wandb.init

    def init(**words):
        seen.update(words)
        return real(**words)

    monkeypatch.setattr(wandb, "init", init)
    tracker = build({"kind": "wandb", "project": "p"}, tmp_path)
    for step in (1, 2):
        tracker.log(step, {"loss": 1 / step})
    tracker.summary({"best": 0.25})
    tracker.close()
    assert (seen["mode"], seen["project"], seen["name"], seen["config"]["seed"]) == ("offline", "p", "first", 7)
    wandb.teardown()  # as at the end of the process: only now is the file surely written
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = wandb_records(file)
    history = [
        {(i.get("key") or ".".join(i["nestedKey"])): json.loads(i["valueJson"]) for i in r["history"]["item"]}
        for r in found
        if "history" in r
    ]
    assert [(h["_step"], h["loss"]) for h in history] == [(1, 1.0), (2, 0.5)]


def wandb_records(file) -> list[dict]:
    """The records that `wandb sync` would send: a LevelDB log (blocks of 32 KiB, records with a 7-byte head) after 7 bytes of magic."""
    from google.protobuf.json_format import MessageToDict
    from wandb.proto import wandb_internal_pb2

    raw, at, parts, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, last = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6] in (1, 4)
        parts += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if last:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(MessageToDict(record))
            parts = b""
    return found


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_library_names_its_extra(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)  # importing it now fails
    with pytest.raises(MissingExtra, match=rf"pip install 'tauon\[{kind}\]'"):
        build({"kind": kind}, tmp_path)


def test_a_tracker_that_fails_is_left_out_and_told_once():
    class Broken:
        calls = 0

        def log(self, step, values):
            self.calls += 1
            raise ConnectionError("server gone")

        summary = close = log

    heard: list[str] = []
    broken = Broken()
    tracker = guard(broken, heard.append)
    tracker.log(1, {"a": 1.0})
    tracker.log(2, {"a": 1.0})
    tracker.summary({})
    tracker.close()
    assert broken.calls == 1
    assert len(heard) == 1
    assert "ConnectionError: server gone" in heard[0]


def test_flatten_gives_dotted_keys():
    assert flatten({"a": {"b": [1, {"c": None}]}, "d": "x"}) == {"a.b.0": 1, "a.b.1.c": None, "d": "x"}
    assert json.dumps(flatten({})) == "{}"
