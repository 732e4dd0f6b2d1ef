"""The event log: every value comes back, a kill loses less than a second, a call costs microseconds."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tauon.tracking.events as events
from tauon.artifacts.files import to_json
from tauon.errors import DataError, RunError
from tauon.tracking import EventLog, read_events, timeline

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["NaN", "Infinity", "-Infinity", "\\NaN", "\\\\-Infinity", "\n", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def same(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def values_of(event):
    return {k: v for k, v in event.items() if k not in ("time", "kind")}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(given_=st.lists(st.dictionaries(st.text().filter(lambda s: s not in ("time", "kind")), VALUES, max_size=4), max_size=4))
def test_every_value_comes_back_and_every_line_is_plain_json(tmp_path_factory, given_):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    with EventLog(path) as log:
        for values in given_:
            log.log("step", **values)

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    for line in path.read_bytes().splitlines():
        json.loads(line, parse_constant=refuse)
    found = read_events(path)
    assert [e["kind"] for e in found] == ["step"] * len(given_)
    assert same([values_of(e) for e in found], given_)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=VALUES)
def test_the_spelling_is_that_of_the_artifacts_room(value):
    """Two rooms of one level may not share code: the same spelling of inf and nan is held together by this test."""
    assert events._plain(value) == to_json(value)


def test_tensors_and_arrays_become_numbers_of_that_moment(tmp_path):
    loss, many, nested = torch.tensor(1.5, requires_grad=True), torch.tensor([1, 2]), {"a": [torch.tensor(float("inf"))]}
    array = np.array([0.5, math.nan], dtype=np.float32)
    with EventLog(tmp_path / "e") as log:
        log.log("step", loss=loss * 2, many=many, nested=nested, scalar=np.int64(3), array=array, half=torch.tensor(0.5).bfloat16())
        many.zero_()
        array[0] = 9
        nested["a"].append(1)
    (event,) = read_events(tmp_path / "e")
    assert math.isnan(event["array"].pop())
    assert values_of(event) == {"loss": 3.0, "many": [1, 2], "nested": {"a": [math.inf]}, "scalar": 3, "array": [0.5], "half": 0.5}


def test_a_tensor_elsewhere_is_read_by_the_thread_and_not_by_the_caller(tmp_path):
    class Elsewhere:
        """A stand-in for a tensor on an accelerator: reading it is slow."""

        device = torch.device("cuda", 0)
        read_by: list[str] = []  # noqa: RUF012

        def detach(self):
            return self

        clone = detach

        def tolist(self):
            self.read_by.append(threading.current_thread().name)
            return 0.25

    with EventLog(tmp_path / "e", flush_seconds=0.01) as log:
        log.log("step", loss=Elsewhere())
        deadline = time.monotonic() + 200
        while not Elsewhere.read_by and time.monotonic() < deadline:
            time.sleep(0.01)
    assert Elsewhere.read_by == ["events"]
    assert read_events(tmp_path / "e")[0]["loss"] == 0.25


def test_what_json_does_not_know_is_logged_as_text_and_what_cannot_be_read_too(tmp_path):
    class Broken:
        def tolist(self):
            raise RuntimeError("device lost")

        detach = clone = lambda self: self
        device = torch.device("cuda", 0)

    with EventLog(tmp_path / "e") as log:
        log.log("a", path=tmp_path, odd={3: {4}})
        log.log("b", loss=Broken())
        log.log("c", x=1)
    a, b, c = read_events(tmp_path / "e")
    assert values_of(a) == {"path": str(tmp_path), "odd": {"3": "{4}"}}
    assert "device lost" in b["unreadable"]
    assert c["x"] == 1


def test_events_have_the_time_and_taken_names_are_refused(tmp_path):
    before = time.time()
    with EventLog(tmp_path / "e") as log:
        log.log("a")
        for name in ("time", "kind"):
            with pytest.raises(ValueError, match="rename"):
                log.log("a", **{name: 1})
    (event,) = read_events(tmp_path / "e")
    assert before - 1e-3 <= event["time"] <= time.time() + 1e-3


def test_a_quiet_log_is_on_disk_within_its_time(tmp_path):
    log = EventLog(tmp_path / "e")
    log.log("a", x=1)
    deadline = time.monotonic() + 200
    while not (tmp_path / "e").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [e["kind"] for e in read_events(tmp_path / "e")] == ["a"]  # by itself: nothing was logged after it, nothing closed
    assert log.flush_seconds < 1.0
    log.close()


def test_threads_lose_nothing_and_keep_their_order(tmp_path):
    with EventLog(tmp_path / "e", flush_seconds=0.001) as log:

        def work(number):
            for i in range(500):
                log.log("t", thread=number, i=i)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = read_events(tmp_path / "e")
    for number in range(4):
        assert [e["i"] for e in found if e["thread"] == number] == list(range(500))


def test_flush_close_and_after(tmp_path):
    log = EventLog(tmp_path / "e", flush_seconds=100)
    log.log("a")
    log.flush()
    assert len(read_events(tmp_path / "e")) == 1
    log.log("b")
    log.close()
    log.close()
    assert len(read_events(tmp_path / "e")) == 2
    with pytest.raises(RunError, match="closed"):
        log.log("c")


def test_a_log_that_nobody_closed_is_written_at_exit(tmp_path):
    code = "import sys; from tauon.tracking import EventLog; EventLog(sys.argv[1], flush_seconds=100).log('a', x=1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "e")], check=True)
    assert read_events(tmp_path / "e")[0]["x"] == 1


FORK = """
import os, sys
from tauon.tracking import EventLog
log = EventLog(sys.argv[1], flush_seconds=100)
log.log("parent", x=1)
pid = os.fork()
if pid == 0:
    log.log("child", x=2)
    log.flush()
    os._exit(0)
os.waitpid(pid, 0)
log.log("parent", x=3)
log.close()
"""


def test_a_forked_child_logs_its_own_events_and_only_those(tmp_path):
    subprocess.run([sys.executable, "-c", FORK, str(tmp_path / "e")], check=True, timeout=300)
    assert [(e["kind"], e["x"]) for e in read_events(tmp_path / "e")] == [("child", 2), ("parent", 1), ("parent", 3)]


KILLED = """
import sys, time
from tauon.tracking import EventLog
log = EventLog(sys.argv[1])
i = 0
while True:
    i += 1
    log.log("step", step=i, loss=1.0 / i)
    if i % 50 == 0:
        print(i, time.time(), flush=True)
        time.sleep(0.005)
"""


def test_kill_9_loses_the_end_alone_and_the_next_process_goes_on(tmp_path):
    path = tmp_path / "events.jsonl"
    for attempt_number in range(2):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
        logged = int(child.stdout.readline().split()[0])
        while sum(e["kind"] == "step" and e["step"] == 101 for e in read_events(path)) <= attempt_number:  # until some of it is on disk
            logged = int(child.stdout.readline().split()[0])
        child.send_signal(signal.SIGKILL)
        said, _ = child.communicate()
        last_step = said.strip().splitlines()[-2].split()[0] if said.count("\n") > 1 else logged
        found = [e for e in read_events(path) if e["kind"] == "step"]
        attempt = found[max(i for i, e in enumerate(found) if e["step"] == 1) :]
        assert [e["step"] for e in attempt] == list(range(1, len(attempt) + 1))  # no hole before the loss
        assert len(attempt) > 100
        assert int(last_step) >= len(attempt) - 50


@pytest.mark.parametrize("tail", [b'{"time":2,"ki', b'{"time":2,"kind":"b","x":"' + b"y" * 200_000, b"\x00\x00"])
def test_half_a_line_is_cut_off_before_more_is_written(tmp_path, tail):
    path = tmp_path / "e"
    path.write_bytes(b'{"time":1,"kind":"a"}\n' + tail)
    assert [e["kind"] for e in read_events(path)] == ["a"]
    with EventLog(path) as log:
        log.log("c")
    assert [json.loads(line)["kind"] for line in path.read_bytes().splitlines()] == ["a", "c"]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "e"
    path.write_bytes(b'{"time":1,"kind":"a"}\n{"time":2,"kind":"b"}')
    with EventLog(path) as log:
        log.log("c")
    assert [e["kind"] for e in read_events(path)] == ["a", "b", "c"]


def test_a_damaged_line_in_the_middle_is_left_out_and_told(tmp_path):
    path = tmp_path / "e"
    path.write_bytes(b'{"time":1,"kind":"a"}\nrubbish\n[1]\n{"time":2,"kind":"b"}\n')
    heard: list[str] = []
    assert [e["kind"] for e in read_events(path, warn=heard.append)] == ["a", "b"]
    assert [text.split(" is ")[0] for text in heard] == [f"{path}: line 2", f"{path}: line 3"]
    with pytest.warns(RuntimeWarning, match="line"):
        read_events(path)


def test_a_full_disk_stops_no_log_call_loses_nothing_and_is_told_by_flush(tmp_path, monkeypatch):
    log = EventLog(tmp_path / "e", flush_seconds=0.01)
    room = [30]

    def write(fd, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = os_write(fd, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    os_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        for i in range(10):
            log.log("step", i=i)
            time.sleep(0.01)  # the thread meets the full disk again and again
        with pytest.raises(RunError, match=r"No space left on device.*kept in memory.*Free disk space"):
            log.flush()
        assert (tmp_path / "e").stat().st_size == 30  # while the disk is full: the thread writes on once it is not
    log.close()
    assert [e["i"] for e in read_events(tmp_path / "e")] == list(range(10))


def test_what_cannot_be_opened_or_read_is_named(tmp_path):
    with pytest.raises(RunError, match=r"nowhere.*No such file"):
        EventLog(tmp_path / "nowhere" / "e")
    with pytest.raises(DataError, match="cannot be read"):
        read_events(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="flush_seconds"):
        EventLog(tmp_path / "e", flush_seconds=0)


@settings(deadline=None)
@given(attempts=st.lists(st.integers(0, 30), min_size=1, max_size=5), every=st.integers(1, 7))
def test_the_timeline_of_a_killed_run_is_that_of_one_never_killed(attempts, every):
    """Each attempt runs to some step past its checkpoint and is killed; the last one finishes at step 40."""
    found, done = [], 0
    for reach in [*attempts, 40]:
        start = done
        if found:
            found.append({"kind": "resume", "step": start})
        for step in range(start + 1, max(start, reach) + 1):
            found.append({"kind": "step", "step": step, "loss": 1 / step})
        done = max(start, reach) // every * every
    found.append({"kind": "report"})
    told = [e for e in timeline(found) if e["kind"] != "resume"]
    assert told == [{"kind": "step", "step": s, "loss": 1 / s} for s in range(1, 41)] + [{"kind": "report"}]


def test_a_log_call_costs_microseconds(tmp_path):
    """The benchmark states the figure; here only that nobody put work back into the call: turning an event into JSON costs more than it."""

    def best(call):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            for i in range(100):
                call(i)
            times.append(time.perf_counter() - start)
        return min(times)

    with EventLog(tmp_path / "e", flush_seconds=100) as log:
        ours = best(lambda i: log.log("step", step=i, loss=1.5, lr=1e-3, grad_norm=0.5, speed=5e4))
    assert ours < 3 * best(lambda i: json.dumps({"kind": "step", "step": i, "loss": 1.5, "lr": 1e-3, "grad_norm": 0.5, "speed": 5e4}))
