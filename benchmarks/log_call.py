"""Cost of one log call of five scalars, in the training thread: ours against TensorBoard's writer (`add_scalar` five times).

Both write to disk in the background; what is timed is what the training loop waits for. Rounds of the two alternate in one
process, so that both see the same machine; the medians over rounds are compared. Both are flushed between rounds, and
TensorBoard gets a queue that a round does not fill (its default of ten makes `add_scalar` wait for the disk, and would make
it look slower than it is).

Two conditions, because a call between two training steps finds the processor's caches full of something else:
calls one after another (the claim), and calls after a matrix product, less what an empty call costs there (`cold_*`).
The work that ours puts off to its thread is stated as well. Prints its figures, and one line of JSON last.

    python benchmarks/log_call.py
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 40
CALLS = 200
COLD_CALLS = 10
"""Calls in a round of the second condition, each after a matrix product of about a millisecond."""


def warm(call: Callable[[int], None], first: int) -> float:
    """Microseconds a call, one call after another."""
    start = time.perf_counter()
    for step in range(first, first + CALLS):
        call(step)
    return (time.perf_counter() - start) / CALLS * 1e6


def cold(call: Callable[[int], None], first: int, disturb: Callable[[], object]) -> float:
    """Microseconds a call, each after `disturb` (not timed): the median, a preempted call tells nothing."""
    times = []
    for step in range(first, first + COLD_CALLS):
        disturb()
        start = time.perf_counter()
        call(step)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from tauon.tracking import EventLog

    matrix = torch.ones(768, 768)
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder) / "events.jsonl")
        writer = SummaryWriter(str(Path(folder) / "tensorboard"), max_queue=10 * CALLS)

        def ours(step: int) -> None:
            log.log("step", step=step, loss=3.25 + step, lr=1e-3, grad_norm=0.5, tokens_per_second=51234.5)

        def peer(step: int) -> None:
            writer.add_scalar("step", step, step)
            writer.add_scalar("loss", 3.25 + step, step)
            writer.add_scalar("lr", 1e-3, step)
            writer.add_scalar("grad_norm", 0.5, step)
            writer.add_scalar("tokens_per_second", 51234.5, step)

        def empty(step: int) -> None:
            pass

        calls = {"ours": ours, "peer": peer, "empty": empty}
        times: dict[str, list[float]] = {f"{kind}_{name}": [] for kind in ("warm", "cold") for name in calls}
        for number in range(ROUNDS + 1):
            for name, call in calls.items():
                w = warm(call, number * CALLS)
                log.flush()
                writer.flush()
                c = cold(call, number * CALLS, lambda: matrix @ matrix)
                if number:  # the first round warms up
                    times[f"warm_{name}"].append(w)
                    times[f"cold_{name}"].append(c)
        for step in range(5000):
            ours(step)
        start = time.thread_time()
        log.flush()
        put_off = (time.thread_time() - start) / 5000 * 1e6
        log.close()
        writer.close()

    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        low, *_, high = statistics.quantiles(values, n=20)
        print(f"{name}: median {medians[name]:.2f} us, 5% to 95% of {ROUNDS} rounds {low:.2f} to {high:.2f} us")
    print(f"ours, put off to its thread: {put_off:.2f} us of processor time a call")
    result = {"claim": "log_call", "ours": round(medians["warm_ours"], 3), "peer": round(medians["warm_peer"], 3)}
    result["ratio"] = round(medians["warm_peer"] / medians["warm_ours"], 2)
    result |= {"floor": 20, "unit": "us per call of five scalars"}
    result |= {f"cold_{name}": round(medians[f"cold_{name}"] - medians["cold_empty"], 2) for name in ("ours", "peer")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
