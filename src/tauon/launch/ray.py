"""`ray`: workers on a Ray cluster, or on a local Ray started by this process (`tauon[ray]`).

Ray Train places the workers, watches them, and restarts them (its `FailureConfig`); it grows and shrinks the group between `min_workers`
and `max_workers`. Each worker runs the same command as with other launchers, in a separate process with torchrun's variables: killing
the process does not kill the Ray actor, and Ctrl-C reaches it as SIGTERM, so that it saves.

The output of workers comes through an actor (`Relay`), which also sends the stop signal.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from tauon.artifacts import atomic_write
from tauon.config import register
from tauon.errors import Interrupted, LaunchError, MissingExtra
from tauon.launch.config import EventCallback, Workers
from tauon.launch.job import Job
from tauon.launch.logs import Console, log_path, print_line
from tauon.launch.outcome import STOPPED, cause, ended, failed, still_at_work
from tauon.launch.ray_relay import POLL_S, Relay
from tauon.launch.worker import HEADER

__all__ = ["Ray"]


@register("ray")
class Ray(Workers):
    """Ray actors, one per worker. Without an address, a local Ray on 127.0.0.1 is started for the run."""

    address: str | None = None
    """Cluster to join: HOST:PORT of its head, ray://HOST:PORT, or auto. Default: a local Ray."""
    cpus_per_worker: float | None = Field(None, gt=0, le=4096)
    """Cores that Ray reserves for each worker. Default: 1."""
    gpus_per_worker: float | None = Field(None, gt=0, le=1)
    """GPUs that Ray reserves for each worker. Default: 1 if the cluster has any and `train.device` is not cpu, otherwise none."""

    def show(self, job: Job) -> str:
        _ = self.grace, self.address
        low, n, high = self.group(self.workers or 1)
        count = f"{self.workers or 'as many as it has GPUs (else CPUs)'}" if low == high else f"{low} to {high}"
        lines = [
            f"# Ray: {self.address or 'its own, on 127.0.0.1'}",
            f"# ScalingConfig: {count} workers, {self.resources(1.0 if self.gpus_per_worker else 0.0)} each",
            f"# FailureConfig: max_failures={self.max_restarts}",
            f"# logs: {job.logs}/rank-<k>.log",
            *(f"export {job.shell([f'{k}={v}'])}" for k, v in self.environment().items()),
        ]
        return "\n".join([*lines, f"{job.shell()}   # {n} times, with torchrun's RANK, WORLD_SIZE, ..."]) + "\n"

    def group(self, workers: int) -> tuple[int, int, int]:
        """(minimum, wanted, maximum) workers."""
        return min(self.min_workers or workers, workers), workers, max(self.max_workers or workers, workers)

    def resources(self, gpus: float) -> dict[str, float]:
        """Resources that Ray reserves for a worker."""
        return {"CPU": self.cpus_per_worker or 1.0, **({"GPU": self.gpus_per_worker or gpus} if self.gpus_per_worker or gpus else {})}

    def start(self, job: Job, on_event: EventCallback) -> None:
        job.write()
        with connected(self.address, self.workers or self.max_workers) as ray:
            has = ray.cluster_resources()
            gpus = 0.0 if job.device.startswith("cpu") or not has.get("GPU") else 1.0
            each = self.resources(gpus)
            fit = int(min(has.get(kind, 0.0) / amount for kind, amount in each.items()))
            low, workers, high = self.group(self.workers or min(max(fit, 1), self.max_workers or max(fit, 1)))
            if fit < low:
                raise LaunchError(
                    f"{low} workers with {each} each do not fit into this Ray cluster, which has "
                    f"{ ({k: has.get(k, 0.0) for k in each}) } and fits {fit}. Use fewer (--on ray:N), or fewer resources per worker."
                )
            why = "from the recipe" if self.workers else f"what fits, {each} each"
            on_event("note", message=f"{workers} workers: {why}" + (f"; {low} to {high} as resources permit" if low < high else ""))
            self._fit(ray, job, (low, workers, high), each, on_event)

    def _fit(self, ray: Any, job: Job, group: tuple[int, int, int], each: dict[str, float], on_event: EventCallback) -> None:
        """Run Ray Train in a thread, so that this thread gets the signals and reads the workers' output."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        relay = ray.remote(num_cpus=0)(Relay).remote()
        low, workers, high = group
        told = {
            "command": job.command(), "folder": os.getcwd(), "grace": self.grace, "relay": relay, "env": self.environment(),
            "recipe": (str(job.recipe_path), job.recipe), "loopback": self.address is None, "restarts": self.max_restarts,
        }  # fmt: skip
        trainer = DataParallelTrainer(
            be_a_worker,
            train_loop_config=told,
            scaling_config=ScalingConfig(
                num_workers=workers if low == high else (low, high), resources_per_worker=each, use_gpu="GPU" in each
            ),
            run_config=RunConfig(
                name="ray", storage_path=str(job.folder / "launch"), failure_config=FailureConfig(max_failures=self.max_restarts)
            ),
        )
        self._follow(ray, trainer, relay, job, workers, on_event)

    def _follow(self, ray: Any, trainer: Any, relay: Any, job: Job, workers: int, on_event: EventCallback) -> None:
        """Run the trainer and show the workers' output, until they end or a signal comes."""
        console = Console(functools.partial(print_line, json="--json" in job.options))
        found: dict[str, Any] = {}

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as err:  # reported by the workers' output, or raised below
                found["error"] = err

        thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        asked = ""
        restarts = 0
        begun = False
        with _signals() as signals:
            thread.start()
            while True:
                last = not thread.is_alive()
                for event in ray.get(relay.take.remote()):
                    restarts = max(restarts, event.get("restart", 0))
                    begun = True
                    if event["kind"] == "lines":
                        _keep(job, event["rank"], event["lines"], console)
                    elif event["kind"] == "restart":
                        on_event(
                            "warning",
                            message=f"{event['words']}: restarting all workers from the last checkpoint (restart {event['restart']} of {self.max_restarts})",
                        )
                if signals and not asked:
                    asked = signals[0]
                    ray.get(relay.ask_to_stop.remote())
                if last or len(signals) > 1:
                    break
                time.sleep(POLL_S)
        codes: dict[int, int] = ray.get(relay.codes.remote())
        if asked:
            raise _interrupted(job, asked, codes, workers, all_ended=not thread.is_alive(), begun=begun)
        refuse_failures(job, codes, restarts)
        if "error" in found:
            raise LaunchError(f"Ray could not run the workers: {str(found['error']).strip().splitlines()[-1]}") from found["error"]


def _interrupted(job: Job, asked: str, codes: dict[int, int], workers: int, *, all_ended: bool, begun: bool) -> Interrupted:
    """Error after a signal: says whether all workers saved."""
    saved = all_ended and codes and all(c in (0, STOPPED) for c in codes.values())
    rest = still_at_work(job.folder, len(codes), workers) if begun else ["none had begun"]
    ways = ", ".join([*(ended(rank, code) for rank, code in sorted(codes.items())), *rest])
    how = f"all {len(codes)} workers saved and ended" if saved else f"not every worker saved: {ways}"
    return Interrupted(f"{asked}: {how}. Run the same command again to resume from the last checkpoint.")


def refuse_failures(job: Job, codes: dict[int, int], restarts: int) -> None:
    """Raise the error of failed workers."""
    bad = {rank: code for rank, code in codes.items() if code != 0}
    if bad:
        if bad[cause(bad)] == STOPPED:
            raise Interrupted(
                f"{ended(cause(bad), STOPPED)}: it was stopped from outside, and saved. Run the same command again to resume."
            )
        raise failed(bad, job.logs, restarts)


def be_a_worker(told: dict[str, Any]) -> None:
    """Function that Ray Train runs on each worker: the command, with torchrun's environment, until it ends or must stop."""
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    path, text = Path(told["recipe"][0]), told["recipe"][1]
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # a machine without the shared folder
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    relay = told["relay"]
    meeting = store = None
    if rank == 0:
        host = "127.0.0.1" if told["loopback"] else ray.util.get_node_ip_address()
        store = meeting_point(host)
        meeting = {"host": host, "port": store.port, "restart": ray.get(relay.begin.remote(rank, size))}
    meeting = broadcast_from_rank_zero(meeting)
    process = subprocess.Popen(  # noqa: S603
        told["command"], env=_worker_environment(told, context, meeting), cwd=told["folder"] if os.path.isdir(told["folder"]) else None,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    lines: list[str] = [
        f"{HEADER} {rank} of {size}, process {process.pid}, restart {meeting['restart']}, {time.strftime('%FT%TZ', time.gmtime())}"
    ]
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    asked_at: float | None = None
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            said, lines[:] = lines[:], []
            wait = ray.get(relay.say.remote(rank, said))
            if wait is not None and asked_at is None:
                time.sleep(wait)
                asked_at = time.monotonic()
                process.terminate()
            elif asked_at is not None and time.monotonic() - asked_at > told["grace"]:
                process.kill()
    finally:
        if process.poll() is None:
            process.kill()
    reader.join(timeout=5)
    ray.get(relay.say.remote(rank, lines[:]))
    code = process.returncode
    del store  # kept until here: others may still be in the rendezvous
    if not ray.get(relay.ended.remote(rank, code)) and code != 0:
        raise RuntimeError(ended(rank, code))  # so that Ray Train restarts the group


def _worker_environment(told: dict[str, Any], context: Any, meeting: dict[str, Any]) -> dict[str, str]:
    """Environment of this worker's process: torchrun's, and the launcher's."""
    import ray

    cores = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(cores),
        **({"GLOO_SOCKET_IFNAME": "lo"} if told["loopback"] else {}),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "GROUP_RANK": str(context.get_node_rank()),
        "MASTER_ADDR": meeting["host"],
        "MASTER_PORT": str(meeting["port"]),
        "TORCHELASTIC_RESTART_COUNT": str(meeting["restart"]),
        "TORCHELASTIC_MAX_RESTARTS": str(told["restarts"]),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": ray.get_runtime_context().get_job_id(),
        # Ray ends a group by killing its actors; their processes must end at once, before the next group uses the folder.
        "TAUON_PARENT": f"{os.getpid()}:{int(signal.SIGKILL)}",
        "PYTHONUNBUFFERED": "1",
        **told["env"],
    }


def meeting_point(host: str) -> Any:
    """Store for the workers' rendezvous, on this address only; their own would listen on every interface."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen(512)
        port = listener.getsockname()[1]
        return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _read(process: Any, lines: list[str]) -> None:
    for raw in process.stdout:
        lines.append(raw.decode("utf-8", "replace").rstrip("\n"))


@contextlib.contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[Any]:
    """Context with a joined or local Ray. Raises `MissingExtra`, or `LaunchError` if there is no cluster or it has another version."""
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # Ray replaces 127.0.0.1 by the network's address, unless its clusters are disabled.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.train
    except ImportError as err:
        raise MissingExtra("--on ray", "ray") from err
    already = ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    try:
        if address is not None:
            knock(address)
            ray.init(address=address, **quiet)
        elif not already:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            # A Ray CPU is a logical resource, not a core: two workers can share a core, more slowly.
            ray.init(address="local", num_cpus=max(cores, cpus or 0), include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except (RuntimeError, ConnectionError, ValueError, TimeoutError) as err:
        raise LaunchError(refusal(str(err), address)) from err
    try:
        yield ray
    finally:
        if not already:
            ray.shutdown()


def knock(address: str, seconds: float = 10) -> None:
    """Raise `ConnectionError` if nothing listens at HOST:PORT; Ray itself would retry for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d{1,5})", address)
    if found is None:
        return  # auto, or another form of address
    try:
        socket.create_connection((found[1], int(found[2])), timeout=seconds).close()
    except (OSError, OverflowError) as err:
        raise ConnectionError(getattr(err, "strerror", None) or str(err)) from err


def refusal(said: str, address: str | None) -> str:
    """Explain why Ray could not be joined.

    >>> refusal("Version mismatch: The cluster was started with:    Ray: 2.9.0    Python: 3.11.1 This process ...", "head:6379")[:53]
    'the Ray cluster at head:6379 has another version than'
    """
    if re.search(r"version mismatch|versions? .*(differ|mismatch)", said, re.IGNORECASE):
        flat = " ".join(said.split())
        ways = "Install the cluster's version here (pip install ray==...), or use an image with this machine's version."
        return f"the Ray cluster at {address} has another version than this machine: {flat}. {ways}"
    what = f"no Ray answers at {address}" if address else "Ray could not be started here"
    first = next((line.strip() for line in said.splitlines() if line.strip()), "no reason given")
    return f"{what}: {first}. Check launch.address, and that the cluster runs (ray status). Without launch.address a local Ray is started."


@contextlib.contextmanager
def _signals() -> Iterator[list[str]]:
    """Context that collects the names of stop signals, and restores the handlers afterwards."""
    names: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield names
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for s in before:
        signal.signal(s, lambda number, _frame: names.append(signal.Signals(number).name))
    try:
        yield names
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _keep(job: Job, rank: int, lines: list[str], console: Console) -> None:
    """Write to the rank's log and the console."""
    with open(log_path(job.logs, rank), "a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    for line in lines:
        console.line(rank, line)
