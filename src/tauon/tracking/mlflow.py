"""MLflow: metrics by step, the recipe as parameters. Without an address, a store inside the run's folder and no network.

Uses only the client (`mlflow-skinny`), not MLflow's global current run, so that two runs in one process stay separate.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauon.config import register
from tauon.errors import MissingExtra, RunError
from tauon.tracking.tracker import Tracker, TrackerConfig, flatten

__all__ = ["MlflowConfig"]

_BATCH = 100
"""MLflow accepts at most 100 parameters per call, and 1000 metrics."""
_LONGEST = 6000
"""Most characters of a parameter's value in MLflow."""


@register("mlflow")
class MlflowConfig(TrackerConfig):
    """MLflow. Needs the extra `mlflow`."""

    uri: str | None = None
    """Address of a tracking server or database, for example `http://host:5000`; default: the folder `mlruns` in the run's folder."""
    experiment: str = "tauon"
    """Name of the experiment; created if it does not exist."""

    def build(self, run_folder: Path, name: str, recipe: Mapping[str, Any]) -> Tracker:
        uri = self.uri
        if uri is None:
            # MLflow 3.7 and later requires this setting to write plain files; a database would need more libraries.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (Path(run_folder).absolute() / "mlruns").as_uri()
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as err:
            raise MissingExtra("the MLflow tracker", "mlflow") from err
        try:
            return MlflowTracker(MlflowClient(tracking_uri=uri), self.experiment, Path(run_folder) / ".mlflow", name, recipe)
        except MlflowException as err:
            raise RunError(f"MLflow at {uri}: {err}. Check tracker.uri and that the server is up, or leave the tracker out.") from err


class MlflowTracker:
    """One MLflow run, whose id is stored in the file `id_file`, so that a resumed run continues it."""

    def __init__(self, client: Any, experiment: str, id_file: Path, name: str, recipe: Mapping[str, Any]) -> None:
        self._client = client
        self._step = 0
        if id_file.exists():
            self._run = id_file.read_text(encoding="utf-8").strip()
            client.update_run(self._run, status="RUNNING")
            return
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else client.create_experiment(experiment)
        self._run = client.create_run(number, run_name=name).info.run_id
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_LONGEST]) for key, value in flatten(recipe).items()]
        for start in range(0, len(params), _BATCH):
            client.log_batch(self._run, params=params[start : start + _BATCH])
        id_file.write_text(self._run + "\n", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log each value as a metric of `step`. MLflow keeps both values of a step that a killed attempt had logged already."""
        from mlflow.entities import Metric

        self._step = step
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, float(value), now, step) for name, value in values.items()])

    def summary(self, values: Mapping[str, float]) -> None:
        """Log each value as a metric `summary/<name>` of the last step logged."""
        self.log(self._step, {f"summary/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)
