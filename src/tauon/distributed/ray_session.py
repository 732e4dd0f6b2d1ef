"""Connection to Ray: to an existing cluster, or to one started here, on loopback, without dashboard or usage statistics.

The only module that imports Ray. Ray's changes in this process (signal handlers, standard output) are undone.
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
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor without GPUs keeps CUDA_VISIBLE_DEVICES
}


def import_ray() -> Any:
    """Import Ray. Raises `MissingExtra` if it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as err:
        raise MissingExtra("The parameter server", "ray") from err
    return ray


@contextmanager
def ray_session(address: str | None, *, cpus: int) -> Iterator[Any]:
    """Context with a connection to Ray. An existing connection is used, and left open.

    Args:
        address: of a running cluster, `host:port` or `auto`; None: start one here, for the context.
        cpus: number of CPUs of a cluster started here.

    Raises:
        MissingExtra: Ray is not installed.
        RunError: no answer at the address, or another version.
    """
    if address is None:  # read when Ray is imported: all its processes then listen on 127.0.0.1 only, on any system
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # if Ray was imported before
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
            f"parallel.address {address}: the cluster has another version of Ray or Python ({text[:400]}). "
            f"Install ray=={ray.__version__} and the same Python on all machines."
        )
    if address is None:
        return f"Ray could not be started on this machine: {text[:400]}. Its logs are in /tmp/ray/session_latest/logs."
    return (
        f"parallel.address {address}: no Ray cluster answers there ({text[:400]}). Start one with `ray start --head`, "
        "or remove parallel.address to start one here."
    )


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Context that restores signal handlers: Ray sets one for SIGTERM that exits at once."""
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
    """Move Ray's messages about ended processes to stderr: it prints them to stdout, which is for results and JSON."""
    module = ray._private.worker
    say = getattr(module, "print_to_stdstream", None)
    if say is None or getattr(say, "on_stderr", False):
        return

    def say_on_stderr(data: Any, *args: Any, **more: Any) -> Any:
        return say({**data, "is_err": True}, *args, **more)

    say_on_stderr.on_stderr = True  # type: ignore[attr-defined]
    module.print_to_stdstream = say_on_stderr
