"""The relation that a run promises for: one unit set to nothing, everything that follows from N unchanged. From the law of the draws to whole runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("dp_accounting")

from scipy.stats import binomtest
from test_privacy_units import table, text

from tauon.artifacts import latest_checkpoint, read_json
from tauon.cli.main import main
from tauon.pipeline import run
from tauon.privacy import PrivateGradients, PrivateLoader, SamplingScheme
from tauon.privacy.accounting import Release, epsilon, guarantee, trade_off
from tauon.privacy.units import Units
from tauon.recipe import Recipe, load_recipe
from tauon.testing import run_processes
from tauon.train import TrainJob
from tauon.types import Batch, Dataset
from toy import text_recipe, words

pytestmark = pytest.mark.long

SEEDED: dict[str, Any] = {"noise_multiplier": 1.0, "delta": 1e-3, "generator": "seeded"}


class Nothing(Dataset):
    """As many examples as it says."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def found(zeroed: int, removed: int, key: bytes, steps: int = 20) -> float:
    """What somebody sees of the sums, as a score for one unit's presence: its gradient is -1 and all others' are 1, with noise of multiplier 6."""
    loader = PrivateLoader(Nothing(40 - removed), batch=20, scheme=SamplingScheme("poisson", key))
    noise = np.random.default_rng(list(key)).normal(0, 6, steps)
    score = 0.0
    for step in range(steps):
        there = loader.chosen(step)
        mine = 0 if removed else int((there == 39).sum())
        score -= (len(there) - mine) - mine * (not zeroed) + noise[step]
    return score


def test_membership_is_told_no_better_than_promised_for_a_zeroed_unit() -> None:
    """Real draws, 40 units at rate 1/2: the attack stays within the curve. With a unit taken away instead, everybody's rate changes, and it does
    not, which is why nothing is promised for that.
    """
    runs = 2500
    rng = np.random.default_rng(0)
    present, zeroed, removed = ([found(z, r, rng.bytes(32)) for _ in range(runs)] for z, r in ((0, 0), (1, 0), (0, 1)))
    release = Release(6.0, "poisson", 0.5, 20)
    for share in (0.05, 0.2):
        for absent, kept in ((zeroed, True), (removed, False)):
            limit = np.quantile(absent, 1 - share)
            false = np.mean(np.array(absent) > limit)
            hits = binomtest(int((np.array(present) > limit).sum()), runs).proportion_ci(0.99)
            most = 1 - trade_off(release, [float(false) + 2.6 * math.sqrt(share * (1 - share) / runs)])[0]
            assert (hits.low <= most) is kept, (share, kept, hits, most)


@pytest.mark.parametrize("sampling", ["poisson", "fixed-size", "shuffled"])
def test_all_that_follows_from_n_is_the_same_where_a_unit_is_zeroed(sampling: Any) -> None:
    """The draws, rates and rows of a data set do not look at what is in it; taking a unit away changes every rate."""
    groups = np.repeat(np.arange(30), 3)
    a, b = (PrivateLoader(Nothing(90), batch=7, scheme=SamplingScheme(sampling, bytes(32), units=Units(groups, 2))) for _ in range(2))
    for step in range(10):
        assert a.rate(step) == 7 / 30 and np.array_equal(a.chosen(step), b.chosen(step))
    assert PrivateLoader(Nothing(90), batch=7, scheme=SamplingScheme(sampling, bytes(32), units=Units(groups[:-3], 2))).rate(0) == 7 / 29


# ------------------------------------------------------------------------------------------------ what is said


def test_guarantee_calculator_and_docs_say_one_relation(capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of the documented table are the figures' relation: none says "more or less" any longer."""
    doc = Path(__file__).parents[2] / "docs" / "privacy-accounting.md"
    rows = {line.split("|")[1].strip(" `"): line.split("|")[3].strip() for line in doc.read_text().splitlines() if line.startswith("| `")}
    rates = {"poisson": 0.1, "full": 1.0, "shuffled": 0.1, "fixed-size": 0.1}
    for sampling, rate in rates.items():
        stated = guarantee(Release(8.0, sampling, rate, 10), 1e-5, accountant="rdp")  # type: ignore[arg-type]
        assert stated.neighbouring == ("replace one" if sampling == "fixed-size" else "zero out one")
        assert rows[sampling].startswith("one replaced" if sampling == "fixed-size" else "one zeroed out")
        assert "N is public" in stated.assumptions[0] and not any("more or less" in a for a in stated.assumptions)
    assert rows["known"].startswith("one zeroed out")
    with pytest.raises(SystemExit) as ended:
        main(["privacy", "epsilon", "--noise", "2", "--rate", "0.1", "--steps", "10"])
    assert ended.value.code == 0 and "neighbours: zero out one" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ whole runs


def zero_each(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """In every step of a run, each unit is set to nothing in turn: by how much that moves the sum, over the bound. Noise is taken out."""
    moved: list[float] = []
    monkeypatch.setattr("tauon.privacy.private.noise_like", lambda p, name, draw: torch.zeros_like(p))
    step = PrivateGradients.__call__

    def call(self: PrivateGradients, job: TrainJob, batch: Batch) -> torch.Tensor:
        def sums(of: Batch) -> torch.Tensor:
            job.model.zero_grad(set_to_none=True)
            loss = step(self, job, of)
            flat = torch.cat([p.grad.flatten().double() for p in self.named.values() if p.grad is not None])
            return flat * self.expected(job.step) if of is not batch else torch.cat([loss.double().view(1), flat * self.expected(job.step)])

        whole: torch.Tensor | None = None
        others = []
        for first in range(0, len(batch), self.rows_per_unit):
            weights = batch.weights.clone()
            weights[first : first + self.rows_per_unit] = 0
            others.append(sums(replace(batch, weights=weights)))
        whole = sums(batch)
        bound = self.clipping.sensitivity(self.state, job.step / job.policy.total_steps)
        moved.extend(float((whole[1:] - other).norm()) / bound for other in others)
        return whole[0].float()

    monkeypatch.setattr(PrivateGradients, "__call__", call)
    return moved


def account_is_right(folder: Path, steps: int) -> None:
    record = read_json(folder / "privacy.json")
    releases = [Release(1.0, "poisson", record["expected_batch"] / record["units"], steps)]
    assert record["guarantee"]["epsilon"] == pytest.approx(epsilon(releases, record["guarantee"]["delta"]))
    assert record["guarantee"]["neighbouring"] == "zero out one" and record["sampling"] == "poisson"


DROPS = {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "dropout": 0.3}


def documents(folder: Path) -> Path:
    (folder / "text").mkdir()
    for i in range(30):
        (folder / "text" / f"{i:02d}.txt").write_text(f"{i} " + words(3 + 2 * (i % 7), seed=i))
    return folder / "text"


def adapted(folder: Path) -> dict[str, Any]:
    """Sections of a recipe that trains adapters with dropout beside a model that a run has trained."""
    start = run(load_recipe(text_recipe(folder, name="start", model=DROPS)), root=folder / "runs", stages=("prepare", "train"))
    return {
        "model": {"kind": "checkpoint", "from": str(start.folder)},
        "adapt": {"kind": "lora", "rank": 2, "dropout": 0.2},
    }


def recipe_of(kind: str, folder: Path) -> Recipe:
    train = {"train": {"steps": 4, "checkpoint_every": 4, "microbatch": 4, "validate_every": None}}
    if kind == "group":
        more = {"model": {"kind": "mlp", "hidden": [4], "dropout": 0.5}, "privacy": SEEDED | {"clipping": {"kind": "flat", "norm": 1.0}}}
        return table(folder, **more, train=train["train"] | {"microbatch": 6})
    if kind == "document":
        return text(folder, documents(folder), model=DROPS, privacy={"rows_per_unit": 2, "delta": 1e-3}, **train)
    more: dict[str, Any] = adapted(folder) if kind == "lora" else {"model": DROPS}
    train["train"] |= {"ema": 0.5} if kind == "ema" else {}
    bound = {"clipping": {"kind": "flat", "norm": 0.01 if kind == "lora" else 1.0}}
    return load_recipe(text_recipe(folder, privacy=SEEDED | bound, **more, **train))


@pytest.mark.parametrize("kind", ["group", "document", "ema", "lora"])
def test_a_run_moves_by_the_bound_at_most_where_a_unit_is_zeroed_and_its_account_is_right(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = zero_each(monkeypatch)
    done = run(recipe_of(kind, tmp_path), root=tmp_path / "runs", stages=("prepare", "train"))
    assert len(moved) >= 8 and max(moved) <= 1 + 1e-4 and max(moved) > 0.5
    account_is_right(done.folder, 4)


def test_an_average_of_the_weights_follows_from_them_and_costs_nothing(tmp_path: Path) -> None:
    done = {k: run(load_recipe(text_recipe(tmp_path, name=k, model=DROPS, privacy=SEEDED, train={"ema": e})), root=tmp_path / "runs",
                   stages=("prepare", "train")) for k, e in (("with", 0.5), ("without", None))}  # fmt: skip
    ends = {k: latest_checkpoint(d.checkpoints) for k, d in done.items()}
    assert ends["with"] is not None and ends["without"] is not None
    a, b = (ends[k].tensors("model") for k in done)  # type: ignore[union-attr]
    assert all(torch.equal(a[n], b[n]) for n in b)
    records = [json.dumps(read_json(d.folder / "privacy.json"), sort_keys=True) for d in done.values()]
    assert records[0] == records[1]
    average = ends["with"].tensors("ema")
    assert average.keys() <= a.keys() and any(not torch.equal(average[n], a[n]) for n in average)


def lora(folder: str, name: str, start: dict[str, Any], sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    sections = start | {"parallel": {"kind": "mesh", **sizes}, "train": {"steps": 3, "checkpoint_every": 3, "validate_every": None}}
    path = Path(folder) / name
    done = run(
        load_recipe(text_recipe(path, name=name, privacy=SEEDED, optim={"kind": "sgd", "lr": 0.5}, **sections)),
        root=path / "runs", stages=("prepare", "train"),
    )  # fmt: skip
    found = latest_checkpoint(done.checkpoints)
    assert found is not None
    return found.tensors("model")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["replicate", "shard"])
def test_adapters_trained_by_two_processes_are_those_of_one(kind: str, tmp_path: Path) -> None:
    start = adapted(tmp_path / "start")
    two = run_processes(lora, 2, 120, str(tmp_path), "two", start, {kind: 2})[0]
    one = lora(str(tmp_path), "one", start, {"replicate": 1})
    assert two.keys() == one.keys() and any("lora" in n for n in one)
    for name in ("one", "two"):
        account_is_right(tmp_path / name / "runs" / name, 3)
    for name, w in one.items():
        torch.testing.assert_close(two[name], w, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
