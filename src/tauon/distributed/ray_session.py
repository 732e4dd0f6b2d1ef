"""A connection to Ray: one that somebody else started, or one of our own on this machine, on loopback, without dashboard or usage statistics.

The one place that imports Ray. What Ray changes in the process that connects (signal handlers, standard output) is put back.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tauon.errors import MissingExtra, RunError

__all__ = ["import_ray", "ray_session"]

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor without GPUs of its own keeps the environment it was started in
}


def import_ray() -> Any:
    """The module, or `MissingExtra`."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as err:
        raise MissingExtra("The parameter server", "ray") from err
    return ray


@contextmanager
def ray_session(address: str | None, *, cpus: int) -> Iterator[Any]:
    """Ray, connected. A connection that was there before is used, and left as it is.

    Args:
        address: of a running cluster, `host:port` or `auto`; None: start one here, which ends with the context.
        cpus: for a cluster of our own: how many tasks of one CPU it may run at a time.

    Raises:
        MissingExtra: Ray is not installed.
        RunError: nothing answers at the address, or another version does.
    """
    if address is None:  # read when Ray is imported: every process of it then listens on 127.0.0.1 alone, on any system
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # where Ray had been imported before
        settings |= {"num_cpus": cpus, "include_dashboard": False, "address": "local"}
    else:
        settings["address"] = address
    try:
        with _signals_kept():
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as err:
        raise RunError(_why_not(address, err)) from err
    _speak_on_stderr(ray)
    try:
        yield ray
    finally:
        with _signals_kept():
            ray.shutdown()


def _why_not(address: str | None, err: Exception) -> str:
    text = " ".join(str(err).split())
    if "ersion mismatch" in text:
        import ray

        return (
            f"parallel.address {address}: the cluster's Ray or Python is another version than this one's ({text[:400]}). "
            f"Install ray=={ray.__version__} and the same Python everywhere."
        )
    if address is None:
        return f"Ray could not be started on this machine: {text[:400]}. Its logs are in /tmp/ray/session_latest/logs."
    return (
        f"parallel.address {address}: no Ray cluster answers there ({text[:400]}). Start one with `ray start --head`, "
        "or leave parallel.address out: one is then started here."
    )


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets a handler for SIGTERM that exits at once; whoever listened before must go on to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _speak_on_stderr(ray: Any) -> None:
    """Ray prints what it says about dead processes on standard output, where a command's figures and JSON go."""
    module = ray._private.worker
    say = getattr(module, "print_to_stdstream", None)
    if say is None or getattr(say, "on_stderr", False):
        return

    def say_on_stderr(data: Any, *args: Any, **more: Any) -> Any:
        return say({**data, "is_err": True}, *args, **more)

    say_on_stderr.on_stderr = True  # type: ignore[attr-defined]
    module.print_to_stdstream = say_on_stderr
