"""A deployment in network namespaces: a killed site, a lost network, a killed coordinator; nothing is done twice, nothing is left behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from federated.deployment import SITES, adders, make_keys, play
from federated.namespaces import PREFIX, available

pytest.importorskip("flwr", reason="federated training needs: pip install 'tauon[federated]'")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_survives_a_killed_site_a_lost_network_and_a_killed_coordinator(tmp_path: Path) -> None:
    if reason := available():
        pytest.skip(reason)
    make_keys(tmp_path)
    plan = adders(tmp_path)
    lines = play(plan, tmp_path)
    rounds = [json.loads(line) for line in lines if line.startswith('{"round"')]
    assert [r["round"] for r in rounds] == list(range(1, plan.rounds + 1))
    processes = {name: {r["sites"][name]["process"] for r in rounds if name in r["sites"]} for name in SITES}
    assert [len(processes[name]) for name in SITES] == [1, 2, 1], "a site's process outlives the coordinator's"
    for name in SITES:  # state of a site is at the site, and each answer that counts was counted once
        answers = [r["sites"][name]["answers"] for r in rounds if name in r["sites"]]
        assert answers == sorted(set(answers)) and int((tmp_path / f"{name}.count").read_text()) >= answers[-1]
    failed = [reason for r in rounds for reason in r["failed"].values()]
    assert failed and all("offline" in reason or "started again" in reason or "not connected" in reason for reason in failed)
    assert f"{PREFIX}" not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
