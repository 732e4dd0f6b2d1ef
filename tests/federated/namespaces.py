"""A network of this machine's own: the coordinator and each site in a network namespace, joined by cables that end at the coordinator.

A site reaches the coordinator and nothing else, not the other sites (bridge ports are isolated) and not this machine. Needs root and `ip`. Everything
is undone at the end: processes are killed, namespaces deleted; those that a killed run left behind are deleted by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PREFIX = "tauonfed"
COORDINATOR = "10.77.0.1"
PR_SET_PDEATHSIG = 1


def available() -> str:
    """Why there are no namespaces here, or ""."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need Linux, root and the ip command"
    name = f"{PREFIX}{os.getpid()}probe"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode != 0:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Process:
    """A process in a namespace, whose lines are kept; it dies with this one."""

    def __init__(self, name: str, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.name, self.lines, self.changed = name, [], threading.Condition()
        self.lines: list[str]
        libc = ctypes.CDLL(None)
        self.process = subprocess.Popen(
            command,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self.reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self.reader.start()

    def _read(self, log: Path) -> None:
        assert self.process.stdout is not None
        with log.open("a") as file, self.process.stdout as stream:
            for line in stream:
                file.write(line)
                file.flush()
                with self.changed:
                    self.lines.append(line.rstrip("\n"))
                    self.changed.notify_all()

    def wait_for(self, wanted: Callable[[str], bool], timeout: float, after: int = 0) -> int:
        """Wait for a line that is wanted, from line `after`; return its number. Fails with what was said where none comes, or the process ends."""
        give_up = time.monotonic() + timeout
        with self.changed:
            while True:
                for number, line in enumerate(self.lines[after:], after):
                    if wanted(line):
                        return number
                ended = self.process.poll() is not None and not self.reader.is_alive()
                if ended or time.monotonic() > give_up:
                    what = f"ended with {self.process.returncode}" if ended else f"said nothing of the kind within {timeout:g} s"
                    raise AssertionError(f"{self.name} {what}:\n" + "\n".join(self.lines[-30:]))
                self.changed.wait(0.2)

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()
        self.reader.join(5)

    def end(self, timeout: float) -> int:
        """Wait for its end; return the exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout:g} s:\n" + "\n".join(self.lines[-30:])) from None
        self.reader.join(5)
        return code


class Network:
    """Namespaces `coordinator` and one for each site. Use as a context."""

    def __init__(self, sites: list[str], logs: Path) -> None:
        self.sites, self.logs = sites, logs
        self.started: list[Process] = []
        self.names = {name: f"{PREFIX}{os.getpid()}n{i}" for i, name in enumerate(["coordinator", *sites])}

    def __enter__(self) -> Network:
        _remove_old()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def _build(self) -> None:
        hub = self.names["coordinator"]
        for name in self.names.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "addr", "add", f"{COORDINATOR}/24", "dev", "br0")
        _ip("-n", hub, "link", "set", "br0", "up")
        for i, site in enumerate(self.sites, 1):
            port = f"site{i}"
            _ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.names[site])
            _ip("-n", hub, "link", "set", port, "master", "br0")
            _ip("-n", hub, "link", "set", port, "type", "bridge_slave", "isolated", "on")
            _ip("-n", hub, "link", "set", port, "up")
            _ip("-n", self.names[site], "addr", "add", f"10.77.0.{10 + i}/24", "dev", "eth0")
            _ip("-n", self.names[site], "link", "set", "eth0", "up")

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for process in self.started:
            if process.process.poll() is None:
                process.kill()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def start(self, name: str, command: list[str], environ: dict[str, str] | None = None) -> Process:
        """Start a command in the namespace of the coordinator or of a site."""
        inside = ["ip", "netns", "exec", self.names[name], *command]  # ip replaces itself by the command: one process
        process = Process(name, inside, environ or dict(os.environ), self.logs / f"{name}.log")
        self.started.append(process)
        return process

    def cut(self, site: str, *, connected: bool) -> None:
        """Pull a site's cable, or put it back."""
        _ip("-n", self.names[site], "link", "set", "eth0", "up" if connected else "down")


def _remove_old() -> None:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    for name in re.findall(rf"^{PREFIX}(\d+)\w*", listed, re.MULTILINE):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(name), 0)
            continue
        for stale in re.findall(rf"^{PREFIX}{name}\D\w*", listed, re.MULTILINE):
            subprocess.run(["ip", "netns", "del", stale], capture_output=True)
