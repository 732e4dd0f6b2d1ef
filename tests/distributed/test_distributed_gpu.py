"""What several processes with a GPU each do differently, tried on CPUs: weights gathered in bf16, words before NCCL aborts, one card each."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from layouts import ADAMW, GPT, TEXT, make_job, whole

from tauon.distributed import Heartbeat, World, counted, join, reshard
from tauon.errors import RecipeError
from tauon.testing.processes import run_processes

pytestmark = pytest.mark.distributed


def trained(sizes: dict[str, int], gathered: bool, micro: int) -> tuple[list[float], dict[str, Any], dict[str, int]]:
    """(losses, weights, bytes of the last step) of four steps in bf16; `gathered`: as on a GPU."""
    from tauon.train import build, train_step

    before = build.gather_dtype
    build.gather_dtype = lambda *_: torch.bfloat16 if gathered else None
    try:
        job = make_job(sizes, {"kind": "mesh"}, GPT, ADAMW, TEXT, micro=micro, packed=False, precision="bf16")
    finally:
        build.gather_dtype = before
    losses = []
    for step in range(4):
        with counted() as sent:
            losses.append(train_step(job, job.loader.batch_at(step))["loss"])
    reshard(job.model)
    assert {p.dtype for p in job.model.parameters()} == {torch.float32}, "weights are kept, and moved, in fp32"
    return losses, {n: whole(p) for n, p in job.model.named_parameters()}, dict(sent)


def both_ways() -> dict[tuple[bool, int], Any]:
    return {(gathered, micro): trained({"shard": 2}, gathered, micro) for gathered in (True, False) for micro in (8, 4)}


def test_gathering_in_bf16_sends_half_and_computes_what_autocast_computes() -> None:
    sharded = run_processes(both_ways, 2, 400)[0]
    for micro in (8, 4):
        alone, weights, _ = trained({}, False, micro)
        losses, mine, sent = sharded[True, micro]
        _, theirs, full = sharded[False, micro]
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(alone), atol=2e-4, rtol=0)
        # As near to one process as gathering in fp32 is: both differ from it by roundings of bf16 sums.
        off, off_fp32 = (max(float((w[n] - weights[n]).abs().max()) for n in weights) for w in (mine, theirs))
        assert off <= 2 * off_fp32, (off, off_fp32)
        blocks = sum(w.numel() for n, w in weights.items() if n.startswith("blocks."))
        gathers = 2 * 8 // micro  # for forward and for backward, of each microbatch
        assert full["all-gather"] - sent["all-gather"] == gathers * blocks, "two bytes less for each element that a process hands in"
        assert sent["reduce-scatter"] == full["reduce-scatter"], "gradients are still summed in fp32"


def says(log: str) -> None:
    group = dist.new_group(timeout=timedelta(seconds=6))
    with (
        open(f"{log}-{dist.get_rank()}", "w") as file,
        contextlib.redirect_stderr(file),
        Heartbeat(World(dist.get_rank(), 3), interval=0.3, speaks=True) as heart,
    ):
        heart.limit = 4.0
        heart.beat(5 if heart.world.rank < 2 else 4)
        if heart.world.rank < 2:
            with pytest.raises(RuntimeError):
                dist.all_reduce(torch.ones(1), group=group)
        else:
            time.sleep(7)


def test_a_process_says_for_whom_it_waits_before_the_time_out(tmp_path: Path) -> None:
    run_processes(says, 3, 400, str(tmp_path / "log"))
    *waiting, stuck = ((tmp_path / f"log-{rank}").read_text() for rank in range(3))
    for rank, waited in enumerate(waiting):  # both speak at about the same time, and neither takes the other for gone
        assert waited.startswith(f"error: rank {rank} of 3 failed while waiting for other ranks after step 5 (")
        assert "the timeout is 4 s" in waited
        assert "Rank 2 is missing: it is at step 4" in waited
        assert "in says" in waited
        assert waited.count("error:") == 1
    assert stuck == "", "who is stuck by itself waits for nobody"


def test_reading_from_a_card_counts_as_waiting_and_own_work_does_not() -> None:
    """A host that waits for a card stands in the C code of `.item()`, as it stands here in a lock's."""
    heart = Heartbeat(World(0, 2))
    lock = threading.Lock()
    found: list[tuple[list[str], bool]] = []

    def look() -> None:
        time.sleep(0.2)
        found.append(heart._stack())
        lock.release()

    class Loss:
        item = work = lock.acquire

    for call in ("item", "work"):
        lock.acquire()
        thread = threading.Thread(target=look)
        thread.start()
        if call == "item":
            Loss.item()
        else:
            Loss.work()
        thread.join()
        lock.release()
    (stack, waits), (_, works) = found
    assert "test_reading_from_a_card" in stack[-1]
    assert waits
    assert not works


def test_processes_of_one_machine_do_not_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="is cuda:1, which 2 processes of this machine would share") as refused, join("cuda:1"):
        pass
    assert refused.value.problems[0].path == "train.device"
