"""Shared by the benchmarks of federated training: MNIST in memory, the models of McMahan et al. 2017 (arXiv:1602.05629), jobs, and Flower's simulation."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._mnist import Rows, read
from tauon.config import Config, register
from tauon.data import Loader
from tauon.models import LogisticConfig, MLPConfig, Model, ModelConfig
from tauon.optim import Constant, SGDConfig
from tauon.plan import Work, make_plan
from tauon.tasks import Classification
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job
from tauon.types import DataSpec

SPEC = DataSpec(input_shape=(1, 28, 28), outputs=10, labels=tuple("0123456789"))


@register("mcmahan-cnn")
class McMahanCNNConfig(ModelConfig):
    """Two 5x5 convolutions (32 and 64 channels, each with 2x2 max-pool), 512 units, softmax: 1,663,370 parameters."""

    def build(self) -> Model:
        return McMahanCNN()


class McMahanCNN(Model):
    shard_plan = {"*": "replicate"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.fc1, self.fc2 = nn.Linear(3136, 512), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


MODELS: dict[str, ModelConfig] = {"logistic": LogisticConfig(), "2nn": MLPConfig(hidden=(200, 200)), "cnn": McMahanCNNConfig()}


def mnist(split: str, count: int = 60_000) -> Rows:
    """Pictures N x 1 x 28 x 28 from 0 to 1, with their digits."""
    x, y = read(split, count)
    rows = Rows(torch.from_numpy(x).float().div(255).unsqueeze(1), torch.from_numpy(y).long())
    rows.spec = SPEC
    return rows


def make_job(model: Config, lr: float, *, seed: int = 0, batch: int = 10, precision: Any = "fp32", data: Rows | None = None) -> TrainJob:
    """A job of plain SGD at a constant rate, not compiled. `data`: with `precision: auto`, what the plan measures it on."""
    settings = TrainConfig(steps=1, batch=batch, precision=precision, compile=False, device="cpu")
    how = SGDConfig(lr=lr, momentum=0.0, schedule=Constant(warmup=0))
    config = JobConfig(model.resolve(SPEC), how, settings, Classification(), SPEC, seed)  # type: ignore[attr-defined]
    work = None if data is None else Work(Loader(data, batch=batch, seed=seed))
    return build_job(config, cast(Any, None), make_plan(config, examples=600, work=work))


@torch.no_grad()
def accuracy(model: nn.Module, test: Rows) -> float:
    """Share of correct answers, in percent."""
    own: Any = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # max-pool is faster so
    correct = sum(int((own(test.x[i : i + 1000]).argmax(1) == test.y[i : i + 1000]).sum()) for i in range(0, len(test), 1000))
    return 100 * correct / len(test)


@dataclass
class Timed:
    """Seconds of each round and accuracy after it."""

    seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def plain_model(name: str) -> nn.Module:
    """The same networks as a user of Flower writes them, with the same names of weights."""
    return MODELS[name].resolve(SPEC).build()


_LOADED: dict[str, Any] = {}


def flower(
    name: str, start: dict[str, Tensor], parts: list[np.ndarray], *, rounds: int, epochs: int, batch: int, lr: float, sampled: int
) -> Timed:
    """Run FedAvg in Flower's simulation (Ray, one processor a client); the clients train by a plain loop over tensors in memory."""
    import os
    import warnings

    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server, timed, test = ClientApp(), ServerApp(), Timed(), mnist("test", 10_000)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        from benchmarks import _fed

        torch.set_num_threads(1)
        if name not in _fed._LOADED:  # once in each of Ray's processes
            _fed._LOADED[name] = (_fed.mnist("train"), _fed.plain_model(name))
        data, model = _fed._LOADED[name]
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        rows = torch.from_numpy(parts[int(context.node_config["partition-id"])])
        optimizer, total = torch.optim.SGD(model.parameters(), lr=lr), 0.0
        for _ in range(epochs):
            for at in torch.randperm(len(rows)).split(batch):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(data.x[rows[at]]), data.y[rows[at]])
                loss.backward()
                optimizer.step()
                total += loss.item()
        metrics = MetricRecord({"train_loss": total / (epochs * len(rows) / batch), "num-examples": len(rows)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        model = plain_model(name)
        strategy = FedAvg(
            fraction_train=sampled / len(parts), fraction_evaluate=0.0, min_train_nodes=sampled, min_available_nodes=len(parts)
        )
        clock = time.perf_counter()

        def after(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            nonlocal clock
            if number:
                timed.seconds.append(time.perf_counter() - clock)
                model.load_state_dict(arrays.to_torch_state_dict())
                timed.accuracies.append(accuracy(model, test))
            clock = time.perf_counter()
            return None

        strategy.start(grid=grid, initial_arrays=ArrayRecord(start), num_rounds=rounds, evaluate_fn=after)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(server, client, len(parts), backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return timed


def ours(job: TrainJob) -> Timed:
    """Run a coordinator's job; time and measure each round."""
    from tauon.train import train

    timed, test = Timed(), mnist("test", 10_000)
    clock = time.perf_counter()

    def after(job: TrainJob, info: Any) -> None:
        nonlocal clock
        timed.seconds.append(time.perf_counter() - clock)
        timed.accuracies.append(accuracy(job.model, test))
        clock = time.perf_counter()

    train(job, hooks=[after])
    return timed
