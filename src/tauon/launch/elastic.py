"""Torch's elastic agent for one machine, with a few changes. Imported only to start workers: it loads torch."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from torch.numa.binding import AffinityMode, NumaOptions

from tauon.launch.config import EventCallback
from tauon.launch.loopback import listen
from tauon.launch.outcome import cause, ended, is_final

__all__ = ["Agent", "Loopback", "make_agent"]

SURVIVORS_S = 5
"""Time for the other workers to end after one died: their collective is broken, and the run resumes from the last checkpoint."""


class Loopback(RendezvousHandler):
    """Rendezvous of a single machine: a new store at each start, because the old one has the addresses of ended processes.

    torch's own rendezvous handlers keep one store, or listen on every interface.
    """

    use_agent_store = True

    def __init__(self, port: int | None) -> None:
        """`port`: to listen on; None: a free one at each start."""
        self.port = port

    def get_backend(self) -> str:
        return "loopback"

    def next_rendezvous(self) -> RendezvousInfo:
        listener = listen(self.port)
        number = listener.getsockname()[1]
        store = TCPStore(
            "127.0.0.1", number, 1, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(),
        )  # fmt: skip
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("127.0.0.1", number))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return f"tauon-{os.getpid()}"

    def shutdown(self) -> bool:
        return True


class Agent(LocalElasticAgent):
    on_event: EventCallback = staticmethod(lambda *_, **__: None)
    """Called at restarts."""
    max_restarts = 0
    restarted = 0
    codes: dict[int, int] = {}  # noqa: RUF012
    """Exit code of each rank that failed by itself, not because it was stopped."""

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self._store = worker_group.store = None  # closes the old store and its port
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.codes = {}
        started: dict[int, Any] = super()._start_workers(worker_group)
        context: Any = self._pcontext
        close = context.close

        def close_soon(death_sig: Any = None, timeout: int = SURVIVORS_S) -> None:
            """Replaces the 30 s that the other workers get after one died."""
            if not self.codes:
                self.codes = {rank: code for rank, code in enumerate(self.exit_codes()) if code}
            close(death_sig, timeout)

        context.close = close_soon
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            if is_final(self.codes, self.restarted):
                self._remaining_restarts = 0
            elif self._remaining_restarts > 0:
                self.restarted += 1
                words = ended(cause(self.codes), self.codes[cause(self.codes)])
                self.on_event(
                    "warning",
                    message=f"{words}: restarting all workers from the last checkpoint (restart {self.restarted} of {self.max_restarts})",
                )
        return result

    def exit_codes(self) -> list[int | None]:
        """Exit codes of all workers by rank; None while running."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return [handlers[rank].proc.poll() for rank in sorted(handlers)]

    def stop_now(self) -> None:
        """Kill all remaining workers."""
        if self._pcontext is not None and None in self.exit_codes():
            self._pcontext.close(signal.SIGKILL, 5)


def make_agent(
    command: list[str], workers: int, port: int | None, max_restarts: int, grace: float, on_event: EventCallback, *, numa: bool
) -> Agent:
    """The agent that runs `command` in `workers` processes."""
    spec = WorkerSpec(
        role="worker", local_world_size=workers, entrypoint=command[0], args=tuple(command[1:]), rdzv_handler=Loopback(port),
        max_restarts=max_restarts, monitor_interval=0.1, local_addr="127.0.0.1",
        numa_options=NumaOptions(affinity_mode=AffinityMode.NODE, should_fall_back_if_binding_fails=True) if numa and shutil.which("numactl") else None,
    )  # fmt: skip
    agent = Agent(spec, DefaultLogsSpecs(), shutdown_timeout=int(grace))
    agent.on_event, agent.max_restarts = on_event, max_restarts  # type: ignore[method-assign]
    return agent
