"""What the parameter server decides: equal to one process in sync, near it otherwise, whatever dies. Threads stand for Ray's processes here;
with Ray itself: `test_distributed_ray.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from served_work import ToyWork
from threads_as_ray import ThreadsAsRay

from tauon.artifacts import CheckpointWriter, load_checkpoint
from tauon.config import parse
from tauon.distributed import ParameterServer, ServerLost
from tauon.distributed.server_group import ServerGroup
from tauon.errors import RecipeError, TrainingError
from tauon.optim import OptimConfig
from tauon.pipeline import run as run_recipe
from tauon.recipe import load_recipe
from tauon.tracking import read_events, timeline
from tauon.train import EMA, TrainJob, job_state, restore, train, use_parameter_server, validation_loss
from tauon.train.parameter_server import sync
from toy import text_recipe

ADAMW = parse(OptimConfig, {"kind": "adamw", "lr": 1e-2})


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ThreadsAsRay:
    """In place of Ray. Workers that sleep do not run one at a time."""
    threads = ThreadsAsRay(one_at_a_time="slow" not in request.node.name)

    @contextmanager
    def session(address: str | None, *, cpus: int) -> Iterator[ThreadsAsRay]:
        yield threads

    monkeypatch.setattr(sync, "ray_session", session)
    monkeypatch.setattr(sync, "import_ray", lambda: threads)
    torch.set_num_threads(1)
    return threads


def config(**settings: Any) -> ParameterServer:
    return parse(ParameterServer, {"threads": 1, "timeout": 60} | settings)


def run(
    work: ToyWork, parallel: ParameterServer, *, upto: int | None = None, each: Any = None, **more: Any
) -> tuple[TrainJob, list[dict[str, Any]]]:
    """Train it; (the job with everything gathered, metrics of each step)."""
    job = work.alone()
    log: list[dict[str, Any]] = []
    servers = use_parameter_server(job, parallel, work.optim, work, **more)

    def hook(job: TrainJob, info: Any) -> str | None:
        log.append({**info.metrics, "step": info.step})
        if each is not None:
            each(servers, info.step)
        return "stop" if info.step == upto else None

    with servers:
        train(job, hooks=[hook])
        job_state(job)
    return job, log


def one_process(work: ToyWork) -> tuple[TrainJob, list[dict[str, Any]]]:
    job = work.alone()
    log: list[dict[str, Any]] = []
    train(job, hooks=[lambda j, info: log.append(dict(info.metrics))])
    return job, log


def weights(job: TrainJob) -> dict[str, torch.Tensor]:
    return dict(job.model.named_parameters())


def equal(a: TrainJob, b: TrainJob) -> bool:
    one, other = (job_state(j)[0] for j in (a, b))
    return all(torch.equal(one[g][k], other[g][k]) for g in ("model", "optim") for k in one[g])


@pytest.mark.parametrize("kind", ["gpt", "mlp"])
def test_sync_equals_one_process_bit_for_bit_where_sums_have_the_same_order(ray: Any, kind: str) -> None:
    torch.set_num_threads(1)
    work = ToyWork(kind, ADAMW, microbatch=4)  # two microbatches of one process are the two workers' shares
    alone, log = one_process(work)
    job, ours = run(work, config(workers=2, servers=1))
    assert [m["loss"] for m in ours] == [m["loss"] for m in log] and [m["grad_norm"] for m in ours] == [m["grad_norm"] for m in log]
    assert equal(job, alone)
    assert [m["lr"] for m in ours] == [m["lr"] for m in log] and job.examples == alone.examples and job.tokens == alone.tokens
    size = 4 * sum(p.numel() for p in job.model.parameters())
    assert {m["sent_bytes"] for m in ours} <= {3 * size, 4 * size}  # 2 pushes, and 2 pulls unless one worker did both shares


def test_muon_over_three_servers_is_bit_for_bit_one_process(ray: Any) -> None:
    muon = parse(OptimConfig, {"kind": "muon", "lr": 0.02, "clip_value": 0.05})
    work = ToyWork("gpt", muon, batch=12, microbatch=4)
    alone, log = one_process(work)
    job, ours = run(work, config(workers=3, servers=3, replicas=1))
    assert [m["loss"] for m in ours] == [m["loss"] for m in log] and equal(job, alone)


@pytest.mark.parametrize(
    ("kind", "optim"),
    [
        # an epsilon at which Adam's quotient does not turn the last bit of a tiny gradient into a whole step
        ("gpt", {"kind": "adamw", "lr": 1e-2, "eps": 1e-4, "schedule": {"kind": "wsd"}, "clip_norm": 0.5}),
        ("gpt", {"kind": "sgd", "lr": 0.1, "weight_decay": 1e-3}),
        ("mlp", {"kind": "sgd", "lr": 0.1, "clip_value": 0.05}),
    ],
    ids=["gpt-adamw", "gpt-sgd", "mlp-sgd"],
)
def test_sync_equals_one_process_to_1e6_whatever_the_order_of_sums(ray: Any, kind: str, optim: dict[str, Any]) -> None:
    work = ToyWork(kind, parse(OptimConfig, optim), batch=12, microbatch=12, uneven=True)
    alone, log = one_process(work)
    job, ours = run(work, config(workers=3, servers=3, replicas=1))
    np.testing.assert_allclose([m["loss"] for m in ours], [m["loss"] for m in log], atol=1e-6, rtol=1e-6)
    for name, p in weights(job).items():
        torch.testing.assert_close(p, weights(alone)[name], rtol=1e-6, atol=1e-6, msg=name)


def test_validation_and_averaged_weights_see_the_servers_weights(ray: Any) -> None:
    work = ToyWork("gpt", ADAMW)
    found = []
    for parallel in (None, config(workers=2, servers=2)):
        job = work.alone()
        job.ema = EMA(job.model, 0.9)
        batches = [work.source(0, 1).batch_at(1000)]

        def hook(j: TrainJob, info: Any, batches: Any = batches) -> None:
            if info.step in (3, 10):
                found.append(validation_loss(j, batches))

        if parallel is None:
            train(job, hooks=[hook])
        else:
            with use_parameter_server(job, parallel, work.optim, work):
                train(job, hooks=[hook])
    np.testing.assert_allclose(found[:2], found[2:], rtol=1e-5)


@pytest.mark.parametrize("push", ["none", "top-k"])
def test_a_resume_is_exact_also_with_other_numbers_of_servers(ray: Any, tmp_path: Path, push: str) -> None:
    work = ToyWork("gpt", ADAMW, dropout=0.1)
    parallel = {"workers": 2, "push": push}
    whole, log = run(work, config(**parallel, servers=1))
    half = work.alone()
    servers = use_parameter_server(half, config(**parallel, servers=1), work.optim, work)
    with servers, CheckpointWriter(tmp_path) as writer:
        train(half, hooks=[lambda j, info: "stop" if info.step == 5 else None])
        half.notes.clear()
        groups, state = job_state(half)
        writer.save(5, groups, state)
    again = work.alone()
    servers = use_parameter_server(again, config(**parallel, servers=1 if push == "top-k" else 2), work.optim, work)
    restore(again, load_checkpoint(tmp_path / "step-000005"))
    losses = []
    with servers:
        train(again, hooks=[lambda j, info: losses.append(info.metrics["loss"])])
        job_state(again)
    if push == "top-k":
        assert losses == [m["loss"] for m in log[5:]] and equal(again, whole)
    else:
        np.testing.assert_allclose(losses, [m["loss"] for m in log[5:]], rtol=1e-5)
    if push == "none":  # and one process goes on from it
        alone = ToyWork("gpt", ADAMW).alone()
        restore(alone, load_checkpoint(tmp_path / "step-000005"))
        train(alone)


@pytest.mark.parametrize(
    "settings",
    [{"push": "bf16", "pull": "bf16"}, {"push": "int8"}, {"push": {"kind": "top-k", "k": "20%"}}, {"push": "int8", "pull": "int8"}],
)
def test_compressed_runs_learn_like_the_uncompressed_and_send_less(ray: Any, settings: dict[str, Any]) -> None:
    work = ToyWork("mlp", parse(OptimConfig, {"kind": "adamw", "lr": 2e-2}), steps=40, batch=64, microbatch=64)
    plain, log = one_process(work)
    _, ours = run(work, config(workers=2, servers=2, **settings))
    full = 2 * 2 * 4 * sum(p.numel() for p in plain.model.parameters())
    assert all(m["sent_bytes"] < 0.75 * full for m in ours)
    end, wanted = (np.mean([m["loss"] for m in each[-8:]]) for each in (ours, log))
    assert end < wanted + 0.12 and end < log[0]["loss"] - 0.3


# ------------------------------------------------------------------------------------------------ asynchronous modes


@pytest.mark.parametrize("settings", [{"mode": "async"}, {"mode": "async", "delay_compensation": 0.5}, {"mode": "ssp", "staleness": 1}])
def test_asynchronous_modes_apply_every_batch_once(ray: Any, settings: dict[str, Any]) -> None:
    work = ToyWork("mlp", parse(OptimConfig, {"kind": "sgd", "lr": 0.3, "momentum": 0}), steps=40, batch=32, microbatch=32)
    job, log = run(work, config(workers=2, servers=2, **settings))
    _, sync = one_process(work)
    assert job.step == 40 and job.examples == 40 * 32 and len(log) == 40
    assert job.notes["parameter_server"] == {"applied": 40, "next": 40, "open": []}
    assert all(0 <= m["staleness"] < 40 for m in log) and max(m["staleness"] for m in log) >= 1
    assert np.mean([m["loss"] for m in log[-10:]]) < np.mean([m["loss"] for m in sync[-10:]]) + 0.06


def test_staleness_stays_within_its_bound_though_one_worker_is_slow(ray: Any) -> None:
    work = ToyWork("mlp", ADAMW, steps=24, slow=(0.25, 0.02))
    ahead: list[int] = []

    def each(servers: Any, step: int) -> None:
        if servers.open:
            ahead.append(servers.open[-1] // 2 - min(servers.open) // 2)

    _, log = run(work, config(workers=2, mode="ssp", staleness=1), each=each)
    # of clock c, everything before clock c - 1 is in: at most 2 clocks of 2 pushes are not, less its own
    assert max(m["staleness"] for m in log) <= 3 and max(ahead) <= 1
    _, free = run(work, config(workers=2, mode="async"))
    assert max(m["staleness"] for m in free) > 3


def test_async_resumes_with_the_batches_of_a_slow_worker_that_were_open(ray: Any, tmp_path: Path) -> None:
    work = ToyWork("mlp", ADAMW, steps=16, slow=(0.1, 0.0))
    half = work.alone()
    with use_parameter_server(half, config(workers=2, mode="async"), work.optim, work), CheckpointWriter(tmp_path) as writer:
        train(half, hooks=[lambda j, info: "stop" if info.step == 7 else None])
        half.notes.pop("stopped")
        writer.save(7, *job_state(half))
    note = half.notes["parameter_server"]
    assert note["applied"] == 7 and len(note["open"]) >= 1 and note["next"] == 7 + len(note["open"])
    again = work.alone()
    servers = use_parameter_server(again, config(workers=2, mode="async"), work.optim, work)
    restore(again, load_checkpoint(tmp_path / "step-000007"))
    taken: list[int] = []
    with servers:
        original = servers.pool.give
        servers.pool.give = lambda member, task, *a: (taken.append(task.step), original(member, task, *a))
        train(again)
    assert sorted(taken) == sorted([*note["open"], *range(note["next"], 16)])


def test_backup_workers_are_not_waited_for_if_slow(ray: Any) -> None:
    work = ToyWork("mlp", ADAMW, steps=12, batch=12, slow=(0.0, 0.0, 0.6))
    job, log = run(work, config(workers=3, backup_workers=1))
    steps = [m["seconds"] for m in log[2:]]
    assert np.median(steps) < 0.3
    assert all(m["dropped_examples"] == 4 for m in log)
    assert job.step == 12


# ------------------------------------------------------------------------------------------------ asynchronous DiLoCo


def test_one_worker_s_rounds_with_the_plain_outer_step_are_one_process(ray: Any) -> None:
    """x - (x - y) is y: what H steps of a worker on its own come to is what one process comes to."""
    work = ToyWork("mlp", parse(OptimConfig, {"kind": "sgd", "lr": 0.1}), steps=14, batch=8, microbatch=8)
    alone, log = one_process(work)
    job, ours = run(work, config(workers=1, servers=2, mode="ssp", staleness=0, every=4, outer={"kind": "average"}))
    np.testing.assert_allclose([m["loss"] for m in ours], [m["loss"] for m in log], rtol=1e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in ours], [m["grad_norm"] for m in log], rtol=1e-4)
    assert [m["lr"] for m in ours] == [m["lr"] for m in log] and job.examples == alone.examples
    for name, p in weights(job).items():
        torch.testing.assert_close(p, weights(alone)[name], rtol=1e-5, atol=1e-6, msg=name)
    sent = [m.get("sent_bytes", 0) for m in ours]
    assert [s > 0 for s in sent] == [i % 4 == 0 for i in range(14)]


def test_rounds_of_several_workers_learn_and_survive_deaths(ray: Any) -> None:
    work = ToyWork("mlp", parse(OptimConfig, {"kind": "adamw", "lr": 1e-2}), steps=240, batch=32, microbatch=32)
    _, log = one_process(work)

    def each(servers: Any, step: int) -> None:
        if step in (12, 33):
            ray.kill(servers.group.actors[step % 2])
        if step == 22:
            ray.kill(servers.pool.workers[0].actor)

    outer = {"kind": "delayed-nesterov", "delay": 2, "momentum": 0.5}
    job, ours = run(work, config(workers=2, servers=2, replicas=1, mode="async", every=5, outer=outer), each=each)
    assert len(ours) == 240 and job.notes["parameter_server"] == {"applied": 240, "next": 48, "open": [], "left": []}
    # two workers at a time go about half as far as one that takes all steps one after the other; who comes when is chance: a quarter at least
    assert np.mean([m["loss"] for m in ours[-10:]]) < np.mean([m["loss"] for m in log[55:65]]) + 0.1
    assert np.mean([m["loss"] for m in ours[-10:]]) < log[0]["loss"] - 0.4


def test_rounds_resume_in_the_middle_of_one(ray: Any, tmp_path: Path) -> None:
    sgd = parse(OptimConfig, {"kind": "sgd", "lr": 0.1, "momentum": 0})  # has no state that a resume would begin afresh
    work = ToyWork("mlp", sgd, steps=16, batch=8, microbatch=8)
    parallel = config(workers=1, servers=2, mode="ssp", staleness=0, every=4, outer={"kind": "nesterov", "momentum": 0.5})
    whole, log = run(work, parallel)
    half = work.alone()
    with use_parameter_server(half, parallel, sgd, work), CheckpointWriter(tmp_path) as writer:
        train(half, hooks=[lambda j, info: "stop" if info.step == 6 else None])
        half.notes.pop("stopped")
        writer.save(6, *job_state(half))
    again = work.alone()
    servers = use_parameter_server(again, parallel, sgd, work)
    restore(again, load_checkpoint(tmp_path / "step-000006"))
    losses: list[float] = []
    with servers:
        train(again, hooks=[lambda j, info: losses.append(info.metrics["loss"])])
        job_state(again)
    assert losses == [m["loss"] for m in log[6:]] and equal(again, whole)


# ------------------------------------------------------------------------------------------------ deaths


def test_workers_killed_and_servers_killed_five_times_change_no_bit(ray: Any) -> None:
    work = ToyWork("gpt", ADAMW, steps=24, dropout=0.1)
    parallel = config(workers=2, servers=3, replicas=1)
    undisturbed, log = run(work, parallel)
    told: list[str] = []

    def each(servers: Any, step: int) -> None:
        if step % 4 == 2 and step < 20:
            ray.kill(servers.group.actors[step // 4 % 3])
        if step in (5, 9):
            ray.kill(servers.pool.workers[step % 2].actor)

    job, ours = run(work, parallel, each=each, on_note=told.append)
    assert [m["loss"] for m in ours] == [m["loss"] for m in log] and equal(job, undisturbed)
    assert sum("server" in t for t in told) == 5 and sum("worker" in t for t in told) == 2, told
    assert max(m.get("restarts", 0) for m in ours) == 7


def test_asynchronous_runs_survive_deaths_and_apply_every_batch_once(ray: Any) -> None:
    work = ToyWork("mlp", parse(OptimConfig, {"kind": "sgd", "lr": 0.1}), steps=30, batch=32, microbatch=32)

    def each(servers: Any, step: int) -> None:
        if step in (4, 9, 14):
            ray.kill(servers.group.actors[step % 2])
        if step in (6, 12):
            ray.kill(servers.pool.workers[1].actor)

    for settings in ({"mode": "async", "delay_compensation": 0.1}, {"mode": "ssp", "staleness": 0}):
        job, log = run(work, config(workers=2, servers=2, replicas=1, **settings), each=each)
        assert len(log) == 30 and job.notes["parameter_server"] == {"applied": 30, "next": 30, "open": []}
        assert log[-1]["loss"] < log[0]["loss"]


def test_without_restarts_the_workers_that_are_left_do_all_the_work(ray: Any) -> None:
    work = ToyWork("mlp", ADAMW, steps=10)
    whole, log = run(work, config(workers=2))

    def each(servers: Any, step: int) -> None:
        if step == 3:
            ray.kill(servers.pool.workers[1].actor)

    told: list[str] = []
    job, ours = run(work, config(workers=2, max_restarts=0), each=each, on_note=told.append)
    assert [m["loss"] for m in ours] == [m["loss"] for m in log] and equal(job, whole)
    assert len(told) == 1 and "1 workers continue without it" in told[0]


def test_the_last_worker_s_death_ends_the_run_in_words(ray: Any) -> None:
    with pytest.raises(TrainingError, match=r"no worker is left, and parallel.max_restarts is used up"):
        run(ToyWork("mlp", ADAMW), config(workers=1, max_restarts=0), each=lambda s, step: ray.kill(s.pool.workers[0].actor))


def test_workers_may_join_and_leave(ray: Any) -> None:
    work = ToyWork("mlp", ADAMW, steps=12)
    whole, _ = run(work, config(workers=2))

    def each(servers: Any, step: int) -> None:
        if step == 2:
            servers.pool.leave(0)
        if step == 4:
            servers.pool.join(7)

    job, _ = run(work, config(workers=2), each=each)
    assert equal(job, whole)


def test_a_shard_that_nobody_else_holds_is_lost_and_comes_back_from_a_checkpoint(ray: Any, tmp_path: Path) -> None:
    work = ToyWork("gpt", ADAMW, steps=12)
    whole, _ = run(work, config(workers=2, servers=2))
    job = work.alone()
    servers = use_parameter_server(job, config(workers=2, servers=2), work.optim, work)
    with servers, CheckpointWriter(tmp_path) as writer:

        def hook(j: TrainJob, info: Any) -> None:
            if info.step == 5:
                writer.save(5, *job_state(j))
                writer.wait()
            if info.step == 8 and servers.restarts == 0:
                ray.kill(servers.group.actors[1])

        with pytest.raises(ServerLost, match=r"server 1 died, and there was no other copy of its shard \(parallel.replicas is 0\)"):
            train(job, hooks=[hook])
        restore(job, load_checkpoint(tmp_path / "step-000005"))
        servers.start_over()
        train(job, hooks=[hook])
        assert job.step == 12 and equal(job, whole)


def losses_of(run: Any) -> list[float]:
    return [e["loss"] for e in timeline(read_events(run.events_path)) if e["kind"] == "step"]


def test_a_recipe_goes_back_to_its_checkpoint_by_itself(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve steps, a checkpoint every four; the only holder of a shard dies after ten."""
    path, root = text_recipe(tmp_path), tmp_path / "runs"
    parallel = "parallel={kind: parameter-server, workers: 2, servers: 2, threads: 1}"
    one = run_recipe(load_recipe(path, ["name=one"]), root=root, stages=("prepare", "train"))
    apply, killed = ServerGroup.apply, []

    def apply_and_kill(self: ServerGroup, *args: Any) -> None:
        apply(self, *args)
        if self.version == 10 and not killed:
            killed.append(self.actors[1])
            ray.kill(self.actors[1])

    monkeypatch.setattr(ServerGroup, "apply", apply_and_kill)
    told: list[str] = []
    two = run_recipe(
        load_recipe(path, ["name=two", parallel]),
        root=root,
        stages=("prepare", "train"),
        on_event=lambda kind, **f: told.append(str(f.get("message"))),
    )
    assert killed and any("Resuming from the checkpoint of step 8" in t for t in told)
    np.testing.assert_allclose(losses_of(two), losses_of(one), rtol=1e-5)
    assert [e["step"] for e in read_events(two.events_path) if e["kind"] == "resume"] == [8]


# ------------------------------------------------------------------------------------------------ errors, in words


def test_what_a_worker_raises_is_raised_here_with_its_number(ray: Any) -> None:
    work = ToyWork("mlp", ADAMW, breaks="no such disk")
    job = ToyWork("mlp", ADAMW).alone()
    with (
        pytest.raises(TrainingError, match=r"worker \d: RuntimeError: no such disk"),
        use_parameter_server(job, config(workers=2), ADAMW, work),
    ):
        train(job)


def test_nothing_for_too_long_from_a_slow_worker_is_an_error_that_says_who_was_at_what(ray: Any) -> None:
    work = ToyWork("mlp", ADAMW, steps=100, slow=(0.0, 4.0))  # until the slow one is up, the other does its share, too
    with pytest.raises(TrainingError, match=r"timed out after 1 s .*worker 1 \(pid \d+ on .*\) at batch \d+, share \d"):
        run(work, config(workers=2, timeout=1))


def test_asynchronous_training_does_without_a_slow_worker_until_only_its_batch_is_left(ray: Any) -> None:
    work = ToyWork("mlp", ADAMW, steps=20, slow=(0.05, 4.0))
    done: list[int] = []
    with pytest.raises(TrainingError, match=r"timed out after 1 s .*worker 1 \(pid \d+ on .*\) at batch \d+, share 0"):
        run(work, config(workers=2, timeout=1, mode="async"), each=lambda servers, step: done.append(step))
    assert done[-1] == work.steps - 1


class Never:
    """A method of a process that is cut off: no answer, and no error."""

    def remote(self, *_: Any) -> Future[Any]:
        return Future()


@pytest.mark.parametrize("call", ["reduce", "state"])
def test_no_answer_from_a_server_for_too_long_is_an_error(ray: Any, call: str) -> None:
    def cut_off(servers: Any, step: int) -> None:
        if step == 3:
            setattr(servers.group.actors[1], call, Never())

    began = time.monotonic()
    with pytest.raises(TrainingError, match=r"no answer from a server for 1 s \(parallel.timeout\)"):
        run(ToyWork("mlp", ADAMW), config(workers=2, servers=2, timeout=1), each=cut_off)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("replicas", [0, 1])
@pytest.mark.parametrize("step", [3, 9], ids=["noticed by the next step", "noticed when weights are read at the end"])
def test_an_update_that_a_cut_took_from_one_server_is_noticed(ray: Any, replicas: int, step: int) -> None:
    def cut_off(servers: Any, at: int) -> None:
        actor = servers.group.actors[1]
        if at == step:
            actor.apply = Never()
        elif at == step + 1:
            del actor.apply

    with pytest.raises(ServerLost, match="a server missed an update when its connection broke: shard [01] is at"):
        run(ToyWork("mlp", ADAMW), config(workers=2, servers=2, replicas=replicas), each=cut_off)


def test_what_cannot_be_shared_out_is_refused_before_anything_starts() -> None:
    job = ToyWork("mlp", ADAMW).alone()
    with pytest.raises(RecipeError, match=r"train.batch: 8 examples do not divide evenly among parallel.workers=3"):
        use_parameter_server(job, config(workers=3), ADAMW, ToyWork("mlp", ADAMW))
    with pytest.raises(RecipeError, match=r"parallel.servers: is 300"):
        use_parameter_server(ToyWork("mlp", ADAMW).alone(), config(servers=300), ADAMW, ToyWork("mlp", ADAMW))
    job = ToyWork("mlp", ADAMW).alone()
    job.model = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    with pytest.raises(RecipeError, match=r"parallel.kind: .*running statistics, but the model has them \(1"):
        use_parameter_server(job, config(), ADAMW, ToyWork("mlp", ADAMW))
