"""Two network namespaces joined by a wire that a test can bend: packets late, packets lost, nothing at all.

Neither netem nor iptables is asked for: each namespace has a TUN device, and one process holds the other end of both and carries packets
from one to the other, as it was told (`Wire.bend`). Namespaces have no name: they end with the processes that live in them, so nothing is
left behind whatever happens to the test. Linux only, and root only.

Run as a program, this file is that process: commands on stdin, one line of JSON each, answers on stdout; it ends when stdin does.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["DEVICE", "HOSTS", "Unavailable", "Wire"]

HOSTS = ("10.77.0.1", "10.77.0.2")
"""Addresses of the two namespaces."""
DEVICE = "wire0"
"""Name of the device in both."""


class Unavailable(Exception):
    """This machine cannot do it; the message says why."""


class Wire:
    """The wire, and the two namespaces, 0 and 1. A context; whatever still runs in them at its end is killed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Wire:
        if sys.platform != "linux" or os.geteuid() != 0:
            raise Unavailable("network namespaces need Linux and root")
        if missing := [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]:
            raise Unavailable(f"no {' and no '.join(missing)} here")
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            raise Unavailable("no /dev/net/tun here")
        self.carrier = subprocess.Popen(
            [sys.executable, __file__, str(self.seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.carrier.stdout is not None
        first = self.carrier.stdout.readline()
        if not first:
            error = self.carrier.communicate()[1].strip().splitlines()
            raise Unavailable(f"no namespaces and TUN devices: {error[-1] if error else 'no reason given'}")
        self.namespaces: list[str] = json.loads(first)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
        for process in self.started:
            process.wait()
        self.carrier.communicate()

    def bend(self, *, delay: float = 0.0, loss: float = 0.0, cut: bool = False, cut_after: int | None = None) -> None:
        """From now on packets arrive `delay` seconds late, a share `loss` of them never, and with `cut` none of them.

        `cut_after`: as many are still let through, in both directions together, and then none.
        """
        self._ask({"delay": delay, "loss": loss, "cut_after": 0 if cut else cut_after})

    @property
    def dropped(self) -> int:
        """Packets that did not arrive, so far."""
        return self._ask({})["dropped"]

    @property
    def carried(self) -> int:
        """Packets that did."""
        return self._ask({})["carried"]

    def _ask(self, how: dict[str, Any]) -> dict[str, int]:
        assert self.carrier.stdin is not None
        assert self.carrier.stdout is not None
        self.carrier.stdin.write(json.dumps(how) + "\n")
        self.carrier.stdin.flush()
        counts: dict[str, int] = json.loads(self.carrier.stdout.readline())
        return counts

    def start(self, host: int, command: Sequence[str], environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """A process inside namespace `host`; what it says on both streams goes into `log`."""
        with open(log, "wb") as out:
            process = subprocess.Popen(
                ["nsenter", f"--net={self.namespaces[host]}", *command], env=environ, stdout=out, stderr=subprocess.STDOUT
            )
        self.started.append(process)
        return process

    def unplug(self, host: int) -> None:
        """Take the device of one side down: there, the other side cannot even be addressed any more."""
        subprocess.run(["nsenter", f"--net={self.namespaces[host]}", "ip", "link", "set", DEVICE, "down"], check=True)


# ------------------------------------------------------------------------------------------ the process that carries

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


def _new_namespace(address: str) -> tuple[int, int]:
    """(TUN device, namespace) as open files; this process is in the namespace afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    for words in (f"addr add {address}/24 dev {DEVICE}", f"link set {DEVICE} up", "link set lo up"):
        subprocess.run(["ip", *words.split()], check=True, stdout=sys.stderr)
    return tun, os.open("/proc/self/ns/net", os.O_RDONLY)


def _carry(seed: int) -> None:
    (tun_0, ns_0), (tun_1, ns_1) = (_new_namespace(host) for host in HOSTS)
    print(json.dumps([f"/proc/{os.getpid()}/fd/{ns}" for ns in (ns_0, ns_1)]), flush=True)
    other = {tun_0: tun_1, tun_1: tun_0}
    draw = random.Random(seed)
    how: dict[str, Any] = {"delay": 0.0, "loss": 0.0, "cut_after": None}
    under_way: list[tuple[float, int, int, bytes]] = []
    counts = {"carried": 0, "dropped": 0}
    number = 0
    while True:
        left = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([sys.stdin, *other], [], [], left)
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                return
            how |= json.loads(line)
            if how["cut_after"] == 0:  # what is on its way is lost, too
                counts["dropped"] += len(under_way)
                under_way.clear()
            print(json.dumps(counts), flush=True)
        for tun in other:
            if tun not in ready:
                continue
            try:
                packet = os.read(tun, 65536)
            except OSError:  # the device is down
                continue
            if how["cut_after"] == 0 or draw.random() < how["loss"]:
                counts["dropped"] += 1
                continue
            if how["cut_after"] is not None:
                how["cut_after"] -= 1
            number += 1
            heapq.heappush(under_way, (time.monotonic() + how["delay"], number, other[tun], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, tun, packet = heapq.heappop(under_way)
            try:
                os.write(tun, packet)
                counts["carried"] += 1
            except OSError:  # the device is down, or its queue is full
                counts["dropped"] += 1


if __name__ == "__main__":
    _carry(int(sys.argv[1]))
