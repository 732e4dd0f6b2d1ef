"""A real deployment on this machine: a coordinator and three sites, each a process in a network namespace of its own, with TLS and node keys.

    python tests/federated/deployment.py [FOLDER]      as root, about 80 s; prints what happens

One site is killed in mid-run and started again, one loses its network for a while, then the coordinator is killed and started again. The run must end
with every round done once, the sites' processes untouched by the coordinator's end, and nothing left behind. Sites and coordinator are named by
commands (`Plan`), so the same story can be played with real training.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from federated.namespaces import COORDINATOR, Network, Process, available
from tauon.federated.flower import make_authority, make_server_certificate, make_site_key

SITES = ["hospital-a", "hospital-b", "hospital-c"]
PORT = 9443
ADDRESS = f"{COORDINATOR}:{PORT}"


def round_of_json(line: str) -> int | None:
    """Round of a line such as {"round": 3, ...}, or None."""
    found = re.match(r'\{"round": (\d+)', line)
    return int(found[1]) if found else None


@dataclass
class Plan:
    """What is deployed.

    Args:
        serve: the coordinator's command, which prints the transport's notes ("hospital-a joined", "hospital-a went offline"); started again with
            the same words after it was killed.
        join: each site's command; the second site is killed, the third loses its network.
        round_of: round of a line of the coordinator's output, printed when the round is done, or None.
        rounds: the last round.
        seconds: that one round may take.
        killed_after: round after which a site is killed; the others follow every `step` rounds.
        step: rounds between two events.
        alone: whether rounds go on without the site that was killed; otherwise they wait for it.
        cut: whether the third site loses its network, for the 20 s until it counts as offline; the coordinator must continue without it.
        environ: of all processes, beside this one's.
    """

    serve: list[str]
    join: dict[str, list[str]]
    rounds: int
    round_of: Callable[[str], int | None] = round_of_json
    seconds: float = 30.0
    killed_after: int = 3
    step: int = 3
    cut: bool = True
    alone: bool = True
    environ: dict[str, str] = field(default_factory=dict)


def make_keys(folder: Path) -> None:
    """Authority, the coordinator's certificate, a key for each site, the roster."""
    make_authority(folder)
    make_server_certificate(folder, [COORDINATOR])
    (folder / "roster").write_text("".join(make_site_key(folder, name) + "\n" for name in SITES))


def adders(folder: Path, rounds: int = 60) -> Plan:
    """Sites that add numbers."""
    python = [sys.executable, "-u", "-m"]
    join = {}
    for i, name in enumerate(SITES, 1):
        settings = json.dumps({"amount": float(i), "counter": str(folder / f"{name}.count")})
        site = ["federated.federation_sites", ADDRESS, "federated.federation_sites:adder", settings]
        join[name] = [*python, *site, str(folder / f"{name}.key"), str(folder / "ca.crt"), "ab" * 32]
    serve = [*python, "federated.federation_coordinator", f"0.0.0.0:{PORT}", str(folder), str(rounds), "0.7"]
    return Plan(serve, join, rounds, environ={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"})


def play(plan: Plan, folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """Play the story; return the coordinator's lines, of both of its lives. Raises `AssertionError` with the last lines of whoever failed."""
    environ = {**os.environ, **plan.environ}
    first_site, second_site = list(plan.join)[1], list(plan.join)[2]
    start = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - start:6.1f} s  {text}")

    def until(process: Process, number: int, after: int = 0) -> int:
        return process.wait_for(lambda line: (plan.round_of(line) or -1) >= number, plan.seconds * plan.step + 60, after)

    with Network(list(plan.join), folder) as network:
        coordinator = network.start("coordinator", plan.serve, environ)
        sites = {name: network.start(name, command, environ) for name, command in plan.join.items()}
        event = plan.killed_after
        until(coordinator, event)
        sites[first_site].kill()
        tell(f"round {event}: {first_site} was killed")
        event += plan.step
        if plan.alone:
            until(coordinator, event)
        sites[first_site] = network.start(first_site, plan.join[first_site], environ)
        back = coordinator.wait_for(lambda line: f"{first_site} joined" in line, 60, len(coordinator.lines))
        tell(f"{first_site} was started again and has joined")
        if plan.cut:
            network.cut(second_site, connected=False)
            at = coordinator.wait_for(lambda line: f"{second_site} went offline" in line, plan.seconds + 60, back)
            network.cut(second_site, connected=True)
            coordinator.wait_for(lambda line: f"{second_site} joined" in line, 60, at)
            tell(f"{second_site} was without network, went offline, and is back")
        reached = max(plan.round_of(line) or 0 for line in coordinator.lines)
        until(coordinator, reached + plan.step)
        coordinator.kill()
        lines = list(coordinator.lines)
        tell(f"round {max(plan.round_of(line) or 0 for line in lines)}: the coordinator was killed")
        coordinator = network.start("coordinator", plan.serve, environ)
        code = coordinator.end(plan.seconds * plan.rounds + 60)
        lines += coordinator.lines
        assert code == 0, f"the coordinator ended with {code}:\n" + "\n".join(coordinator.lines[-30:])
        tell(f"the coordinator was started again and has ended after round {max(plan.round_of(line) or 0 for line in lines)}")
        for name, site in sites.items():
            code = site.end(30)
            assert code == 0, f"{name} ended with {code}:\n" + "\n".join(site.lines[-30:])
        tell("all sites have ended by themselves")
    return lines


def main() -> None:
    if reason := available():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_keys(folder)
        play(adders(folder), folder, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
