"""Who may take part: keys, clocks, versions, recipes, certificates; and what happens when processes end and start again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch

from federated.federation_sites import Adder
from federated.test_federated_flower_transport import SiteThread, federation, keys, message, reason
from tauon import __version__
from tauon.errors import Interrupted, LaunchError
from tauon.federated import Message
from tauon.federated.flower import CertificateError, Refused, join, load_site, make_authority, make_server_certificate, make_site_key, serve
from tauon.federated.flower.coordinator import END_TIMEOUT
from tauon.federated.flower.transport import CONNECT

pytest.importorskip("flwr", reason="federated training needs: pip install 'tauon[federated]'")
__all__ = ["keys"]


def ended(site: SiteThread) -> str:
    """Words with which a site ended."""
    site.thread.join(120)
    assert not site.thread.is_alive()
    assert isinstance(site.error, LaunchError), site.error
    return str(site.error)


def test_an_unknown_key_is_refused_and_joins_once_it_is_in_the_roster(keys: Path, tmp_path: Path) -> None:
    roster = tmp_path / "roster"
    roster.write_text((keys / "roster").read_text())
    with serve("127.0.0.1:0", folder=keys, roster=roster) as coordinator:
        assert "does not know this site's key" in ended(SiteThread(keys, coordinator.port, "stranger", Adder(1.0)))
        roster.write_text((keys / "roster").read_text() + (keys / "stranger.pub").read_text())
        assert "stranger" in coordinator.expected()
        site = SiteThread(keys, coordinator.port, "stranger", Adder(1.0))
        assert coordinator.wait_for(1, timeout=120) == ["stranger"]
        roster.write_text((keys / "roster").read_text())
        assert coordinator.sites() == []
        assert "does not know this site's key" in ended(site)
        began = time.monotonic()
    assert time.monotonic() - began < END_TIMEOUT, "a site that was removed is not waited for"


@pytest.mark.parametrize(("offset", "words"), [(600.0, "ahead of"), (-600.0, "behind")])
def test_a_clock_ten_minutes_off_is_refused_in_words(keys: Path, offset: float, words: str) -> None:
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator:
        site = SiteThread(keys, coordinator.port, "a", Adder(1.0), clock=lambda: time.time() + offset)
        text = ended(site)
        said = re.search(r"(\d+) s", text)
        assert said is not None and 540 < int(said[1]) < 700 and words in text and "NTP" in text


def test_a_clock_half_a_minute_off_is_corrected(keys: Path) -> None:
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator:
        site = SiteThread(keys, coordinator.port, "a", Adder(1.0), clock=lambda: time.time() + 30.0)
        coordinator.wait_for(1, timeout=120)
        assert isinstance(coordinator.ask({"a": message()}, timeout=120)["a"], Message)
    site.thread.join(120)
    assert site.error is None


def test_another_recipe_and_another_version_are_refused_at_both_ends(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster", recipe="ab" * 32, note=notes.append) as coordinator:
        site = SiteThread(keys, coordinator.port, "a", Adder(1.0), recipe="cd" * 32)
        while site.thread.is_alive():
            assert coordinator.sites() == []
            time.sleep(0.02)
        assert "another recipe" in ended(site) and coordinator.sites() == []
        assert any("a cannot take part" in n and "another recipe" in n for n in notes)
        coordinator.transport.greeting = Message(CONNECT, fields={"version": "0.0.1", "flower": "1.41.0", "recipe": ""})
        site = SiteThread(keys, coordinator.port, "b", Adder(1.0))
        while site.thread.is_alive():
            coordinator.sites()
            time.sleep(0.02)
        assert f"coordinator has Tauon 0.0.1, this site {__version__}" in ended(site)


def test_another_recipe_is_refused_with_the_settings_that_differ(keys: Path) -> None:
    theirs = json.dumps({"optim": {"lr": 0.1, "kind": "sgd"}, "federate": {"rounds": 20}, "adapt": None})
    ours = json.dumps({"optim": {"lr": 0.3, "kind": "sgd"}, "federate": {"rounds": 20, "timeout": 60.0}, "adapt": None})
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster", recipe=theirs) as coordinator:
        site = SiteThread(keys, coordinator.port, "a", Adder(1.0), recipe=ours)
        while site.thread.is_alive():
            assert coordinator.sites() == []
            time.sleep(0.02)
    words = ended(site)
    assert "optim.lr is 0.1, at this site 0.3" in words and "federate.timeout is not set, at this site 60.0" in words
    assert "kind" not in words and "rounds" not in words


def test_a_coordinator_with_a_certificate_of_another_authority_is_refused(keys: Path, tmp_path: Path) -> None:
    make_authority(tmp_path)
    (tmp_path / "a.key").write_bytes((keys / "a.key").read_bytes())
    (tmp_path / "a.key").chmod(0o600)
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator:
        site = SiteThread(tmp_path, coordinator.port, "a", Adder(1.0))
        assert "another authority" in ended(site) and isinstance(site.error, CertificateError)


def test_a_name_that_is_not_in_the_certificate_is_refused(keys: Path, tmp_path: Path) -> None:
    for name in ("ca.key", "ca.crt"):
        (tmp_path / name).write_bytes((keys / name).read_bytes())
    (tmp_path / "ca.key").chmod(0o600)
    make_server_certificate(tmp_path, ["fed.example.org"])
    with serve("127.0.0.1:0", folder=tmp_path, roster=keys / "roster") as coordinator:
        assert "not for 127.0.0.1" in ended(SiteThread(keys, coordinator.port, "a", Adder(1.0)))


def test_an_expired_certificate_is_refused_at_both_ends(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ca.key", "ca.crt"):
        (tmp_path / name).write_bytes((keys / name).read_bytes())
    (tmp_path / "ca.key").chmod(0o600)
    make_server_certificate(tmp_path, ["127.0.0.1"], days=0)
    with pytest.raises(CertificateError, match="expired on"), serve("127.0.0.1:0", folder=tmp_path, roster=keys / "roster"):
        pass
    monkeypatch.setattr("tauon.federated.flower.coordinator.check_certificate", lambda *_, **__: None)
    with serve("127.0.0.1:0", folder=tmp_path, roster=keys / "roster") as coordinator:
        assert "has expired" in ended(SiteThread(keys, coordinator.port, "a", Adder(1.0)))


def test_a_renewed_certificate_is_used_once_its_key_is_there_and_the_earlier_one_until_then(keys: Path, tmp_path: Path) -> None:
    for place in (serving := tmp_path / "serving", renewed := tmp_path / "renewed"):
        place.mkdir()
        for name in ("ca.key", "ca.crt"):
            shutil.copy(keys / name, place)
        make_server_certificate(place, ["127.0.0.1"])
    notes: list[str] = []
    old, new = ((place / "server.crt").read_text() for place in (serving, renewed))
    with serve("127.0.0.1:0", folder=serving, roster=keys / "roster", note=notes.append) as coordinator:

        def served() -> str:
            coordinator.sites()  # looks at the files
            return ssl.get_server_certificate(("127.0.0.1", coordinator.port), ca_certs=str(keys / "ca.crt"), timeout=60)

        assert served().split() == old.split()
        (serving / "server.crt").write_text(new)
        assert served().split() == old.split() and "the earlier one stays" in notes[-1]
        (serving / "server.key").write_bytes((renewed / "server.key").read_bytes())
        assert served().split() == new.split() and notes[-1].endswith("was renewed")


def test_a_second_process_with_the_same_key_takes_over_and_the_first_ends(keys: Path) -> None:
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator:
        first = SiteThread(keys, coordinator.port, "a", Adder(1.0))
        coordinator.wait_for(1, timeout=120)
        second = SiteThread(keys, coordinator.port, "a", Adder(10.0))
        assert "Another process has joined" in ended(first)
        coordinator.wait_for(1, timeout=120)
        answer = coordinator.ask({"a": message()}, timeout=120)["a"]
        assert isinstance(answer, Message) and float(answer.tensors["w"].sum()) == 30.0
    second.thread.join(120)
    assert second.error is None


def test_a_question_to_a_process_that_was_started_again_fails_before_its_deadline(keys: Path) -> None:
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator:
        first = SiteThread(keys, coordinator.port, "a", Adder(1.0))
        coordinator.wait_for(1, timeout=120)
        later = threading.Timer(0.5, lambda: SiteThread(keys, coordinator.port, "a", Adder(2.0)))
        later.start()
        start = time.monotonic()
        answers = coordinator.ask({"a": message(seconds=3.0)}, timeout=60)
        assert reason(answers["a"]) == "it was started again before it answered" and time.monotonic() - start < 3.0
        assert coordinator.wait_for(1, timeout=120) == ["a"]
        assert "Another process has joined" in ended(first)


def test_a_coordinator_that_starts_again_has_its_sites_back(keys: Path) -> None:
    with pytest.raises(ZeroDivisionError), federation(keys, {"a": Adder(1.0), "b": Adder(2.0)}) as (coordinator, site_threads, _):
        port = coordinator.port
        raise ZeroDivisionError  # as if it were killed: sites are not asked to end
    with serve(f"127.0.0.1:{port}", folder=keys, roster=keys / "roster") as coordinator:
        assert coordinator.wait_for(2, timeout=30) == ["a", "b"]
        answers = coordinator.ask({name: message() for name in ("a", "b")}, timeout=120)
        assert all(isinstance(answer, Message) for answer in answers.values())
    for site in site_threads.values():
        site.thread.join(120)
        assert site.error is None and any("again" in note for note in site.notes)


def test_the_port_serves_nothing_but_what_sites_call(keys: Path) -> None:
    """Flower's own SuperLink answers on the same port, without a password: start a run, that is, any program at every site."""
    context = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator, httpx.Client(verify=context) as client:
        url = f"https://127.0.0.1:{coordinator.port}"
        for path in ("/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/acquire-task", "/v1/fleet/get-fab", "/docs", "/"):
            assert client.post(url + path, content=b"").status_code == 404, path
        assert client.get(url + "/v1/fleet/pull-messages").status_code == 404
        unsigned = client.post(url + "/v1/fleet/pull-messages", content=b"", headers={"content-type": "application/protobuf"})
        assert unsigned.status_code in (401, 415)
        large = client.post(url + "/v1/fleet/push-object", content=(b"x" for _ in range(3)))
        assert large.status_code == 413
    assert isinstance(Refused("x"), LaunchError)


def test_a_request_that_ends_does_not_leave_a_later_one_of_the_same_key_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was lost, or a stranger, who needs no secret to wait."""
    from tauon.federated.flower import gate

    async def waits() -> None:
        one = gate.Gate(lambda *_: asyncio.sleep(0), lambda: None)
        monkeypatch.setattr(gate, "LONGEST_WAIT", 0.05)
        first = asyncio.create_task(one._wait(b"key", b"0"))
        while not one._waiting:
            await asyncio.sleep(0)
        monkeypatch.setattr(gate, "LONGEST_WAIT", 120.0)
        second = asyncio.create_task(one._wait(b"key", b"0"))
        await first
        one._bump([b"key"])
        await asyncio.wait_for(second, 60)
        assert not one._waiting

    asyncio.run(waits())


def test_a_transport_over_flowers_own_grid_needs_no_link_of_ours() -> None:
    """Any Grid of Flower will do, here one that answers by a ClientApp at once, as Flower's simulation does."""
    from flwr.app import Context, RecordDict
    from flwr.app.message import make_message

    from tauon.federated.flower import FlowerTransport, site_app

    site = Adder(4.0)
    app = site_app(lambda context: site)

    class Grid:
        def __init__(self) -> None:
            self.replies: dict[str, object] = {}
            self.run = type("Run", (), {"run_id": 7})()

        def get_nodes(self) -> list[object]:
            return [type("Node", (), {"node_id": n, "public_key": b"", "last_activated_at": "now"})() for n in (11, 12)]

        def push_messages(self, messages: list[object]) -> list[str]:
            ids = []
            for m in messages:
                m.metadata.__dict__["_message_id"] = f"m{len(self.replies)}"  # type: ignore[attr-defined]
                context = Context(run_id=7, node_id=11, node_config={}, state=RecordDict(), run_config={})
                self.replies[m.metadata.message_id] = app(m, context)  # type: ignore[attr-defined]
                ids.append(m.metadata.message_id)  # type: ignore[attr-defined]
            return ids

        def pull_messages(self, ids: list[str]) -> list[object]:
            return [self.replies.pop(i) for i in ids if i in self.replies]

    assert make_message is not None
    transport = FlowerTransport(Grid())
    assert transport.sites() == ["site-11", "site-12"]
    answers = transport.ask({"site-11": message(), "site-12": message("refuse")}, timeout=5)
    assert isinstance(answers["site-11"], Message) and torch.equal(answers["site-11"].tensors["w"], torch.full((3,), 4.0))
    assert "no data" in reason(answers["site-12"])


def test_a_site_key_that_others_can_read_is_refused(keys: Path, tmp_path: Path) -> None:
    make_site_key(tmp_path, "a")
    (tmp_path / "ca.crt").write_bytes((keys / "ca.crt").read_bytes())
    (tmp_path / "a.key").chmod(0o644)
    assert "chmod 600" in ended(SiteThread(tmp_path, 1, "a", Adder(1.0)))


def test_a_site_that_is_stopped_says_goodbye(keys: Path) -> None:
    """A process: SIGTERM while it waits for work; and in another one, training that was stopped by a signal of its own."""
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator:
        command = [sys.executable, "-m", "federated.federation_sites", f"127.0.0.1:{coordinator.port}", "federated.federation_sites:adder"]
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        settings = [*command, '{"amount": 1.0}', str(keys / "a.key"), str(keys / "ca.crt")]
        process = subprocess.Popen(settings, env=environ, stdout=subprocess.PIPE, text=True)
        try:
            coordinator.wait_for(1, timeout=60)
            assert isinstance(coordinator.ask({"a": message()}, timeout=120)["a"], Message)
            process.terminate()
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == Interrupted.exit_code and "left the federation" in said
        assert coordinator.sites() == [], "at once, not after 20 s without a sign of life"
        site = SiteThread(keys, coordinator.port, "b", Adder(1.0))
        coordinator.wait_for(1, timeout=120)
        assert "went offline" in reason(coordinator.ask({"b": message("stop")}, timeout=120)["b"])
        site.thread.join(120)
        assert isinstance(site.error, Interrupted)
        assert len(coordinator.link.departed()) == 2
        began = time.monotonic()
    assert time.monotonic() - began < END_TIMEOUT, "sites that said goodbye are not waited for"


@pytest.mark.parametrize("path", ["federated.federation_sites", "no.such.module:site", "federated.federation_sites:nothing"])
def test_a_site_that_cannot_be_imported_is_named(path: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(path)):
        load_site(path, {})
    assert load_site("federated.federation_sites:adder", {"amount": 2.0}).answer(message("add")).kind == "added"


ADDRESSES = [
    "9443",
    "localhost",
    "localhost:port",
    ":9443",
    "https://localhost:9443",
    "localhost:9443/",
    "::1:9443",
    "localhost:²",
    "localhost:99999",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_refused_at_both_ends(keys: Path, address: str) -> None:
    with pytest.raises(LaunchError, match="The address is"), serve(address, folder=keys, roster=keys / "roster"):
        pass
    with pytest.raises(LaunchError, match="The address is"):
        join(address, Adder(1.0), key=keys / "a.key", authority=keys / "ca.crt")


def test_an_ipv6_address_is_served_and_joined(tmp_path: Path) -> None:
    make_authority(tmp_path)
    make_server_certificate(tmp_path, ["::1"])
    (tmp_path / "roster").write_text(make_site_key(tmp_path, "a") + "\n")
    try:
        serving = serve("[::1]:0", folder=tmp_path, roster=tmp_path / "roster")
        coordinator = serving.__enter__()
    except LaunchError as err:
        pytest.skip(f"this machine has no IPv6: {err}")
    errors: list[BaseException] = []

    def site() -> None:
        try:
            join(f"[::1]:{coordinator.port}", Adder(1.0), key=tmp_path / "a.key", authority=tmp_path / "ca.crt")
        except LaunchError as err:
            errors.append(err)

    thread = threading.Thread(target=site, daemon=True)
    thread.start()
    assert coordinator.wait_for(1, timeout=60) == ["a"]
    serving.__exit__(None, None, None)
    thread.join(60)
    assert not thread.is_alive() and not errors


def test_a_port_that_is_taken_is_named(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauon.federated.flower.link.STARTING", 0.3)
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator:
        address = f"127.0.0.1:{coordinator.port}"
        with pytest.raises(LaunchError, match=f"cannot listen on {address}"), serve(address, folder=keys, roster=keys / "roster"):
            pass


def test_a_site_with_the_final_weights_does_not_wait_for_a_coordinator_that_is_gone(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.federated.flower import site as module

    monkeypatch.setattr(module, "LAST_PATIENCE", 0.5)
    with serve("127.0.0.1:0", folder=keys, roster=keys / "roster") as coordinator:
        site = SiteThread(keys, coordinator.port, "a", Adder(1.0))
        assert coordinator.wait_for(1, timeout=120) == ["a"]
        for kind in ("final", "evaluate"):
            coordinator.ask({"a": message(kind=kind)}, timeout=120)
        monkeypatch.setattr(coordinator, "end", lambda: None)  # it dies without saying goodbye
    site.thread.join(120)
    assert not site.thread.is_alive() and site.error is None
    assert any("The final weights have come" in note for note in site.notes)
