"""The transport over Flower's own runtime: its simulation on Ray, with its Grid and its ClientApp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="federated training needs: pip install 'tauon[federated]'")
pytest.importorskip("ray", reason="Flower's simulation needs Ray")

PROGRAM = """
import time
from tauon.federated.flower import FlowerTransport, load_flower, site_app
load_flower()
import torch
from federated.federation_sites import Adder
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from tauon.federated import Message

server, sites = ServerApp(), {}

@server.main()
def main(grid, context):
    transport = FlowerTransport(grid)
    while len(transport.sites()) < 3:
        time.sleep(0.05)
    messages = {name: Message("add", 1, name, {}, {"w": torch.full((3,), float(i))}) for i, name in enumerate(transport.sites())}
    messages["nobody"] = Message("add", 1, "x")
    answers = transport.ask(messages, timeout=60)
    print("ANSWERS", [float(a.tensors["w"].sum()) if isinstance(a, Message) else a.reason for a in answers.values()], flush=True)

app = site_app(lambda context: sites.setdefault(context.node_id, Adder(2.0)))
run_simulation(server, app, num_supernodes=3, backend_config={"client_resources": {"num_cpus": 1.0}, "init_args": {"include_dashboard": False}})
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_sites_in_flowers_simulation_answer_as_over_a_network() -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=180)
    assert "ANSWERS [6.0, 9.0, 12.0, 'it is not connected']" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
