"""`run` and `open_run`, and the `Run` that both return: a run's records, its model, predictions and generated text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauon.api.notebook import run_html
from tauon.artifacts import RunFolder, read_json
from tauon.errors import RunError
from tauon.evaluate import Evaluation, Metric
from tauon.generate import Sampling
from tauon.pipeline import run as run_stages
from tauon.predict import Predictor
from tauon.predict.explanations import explain_records
from tauon.recipe import Recipe, folder_of, load_recipe
from tauon.stages.context import Context, null_callback
from tauon.stages.evaluate import evaluation_of
from tauon.stages.export import export_run
from tauon.stages.generate import TextGenerator
from tauon.stages.load import load_model
from tauon.stages.report import write_report
from tauon.tracking import read_events

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

__all__ = ["Run", "open_run", "run"]


def run(
    recipe: Recipe | str | Path, *assignments: str, root: Path | str | None = None, stages: tuple[str, ...] | None = None, fresh: bool = False,
    on_event: Callable[..., None] = null_callback,
) -> Run:  # fmt: skip
    """Run the stages of a recipe in this process and return the run. The same call again skips the stages that are done.

    Args:
        recipe: a `Recipe`, a YAML file, the name of a shipped recipe, or the folder of a run.
        assignments: settings to change, as on the command line: `"train.steps=500"`, `"optim.lr=1e-3"`.
        root: folder of the runs; this run is in `root/<name>`. Default: `runs`, or the parent of the given run.
        stages: names of the stages to run; default: those of the recipe.
        fresh: rename the existing run (it is never deleted) and start over.
        on_event: called with each event: `on_event("step", step=10, loss=2.3, ...)`.

    Returns:
        The run, with its metrics, its model and its records.

    Raises:
        RecipeError: the recipe is wrong; lists every problem with its key.
        DataError: a file or a value in the data is wrong.
        TauonError: any other reason, with how to fix it. No half-written file remains.

    >>> import tauon                                                    # doctest: +SKIP
    >>> run = tauon.run("quickstart", "train.time=1m")                  # doctest: +SKIP
    >>> round(run.metrics["perplexity"].value, 1)                       # doctest: +SKIP
    12.3
    """
    if isinstance(recipe, Recipe):
        if assignments:
            raise TypeError("assignments cannot be applied to a Recipe object: pass them to load_recipe, or change the object")
        tree, given = recipe, None
    else:
        tree, given = load_recipe(recipe, assignments), folder_of(recipe)
    renamed = any(a.partition("=")[0].strip() == "name" for a in assignments)
    where = given if given is not None and root is None and not renamed else Path(root or (given.parent if given else "runs")) / tree.name
    done = run_stages(tree, folder=where, stages=stages, fresh=fresh, on_event=on_event)
    return Run(done.folder)


def open_run(path: Path | str) -> Run:
    """Return the run in a folder, whether it is finished, still training, or was stopped. Only reads.

    Raises:
        RunError: the folder is not a run.
    """
    return Run(RunFolder.read(path).folder)


class Run:
    """A run in its folder. Everything is read on access; no file stays open."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._predictors: dict[tuple[str, str | None], Predictor] = {}

    def __repr__(self) -> str:
        return f"tauon.open_run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        return run_html(self)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def recipe(self) -> Recipe:
        """The complete recipe of the run."""
        return load_recipe(self.folder)

    @property
    def evaluation(self) -> Evaluation | None:
        """The complete evaluation; None if the run has not been evaluated."""
        return evaluation_of(self.folder)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Each figure by name, with its interval: `run.metrics["accuracy"].value`, `.low`, `.high`. Empty before the evaluation. Of a
        cross-validation, means over the folds.
        """
        evaluation, folds = self.evaluation, self.folder / "folds.json"
        if evaluation is not None or not folds.exists():
            return {} if evaluation is None else dict(evaluation.metrics)
        record, first = json.loads(folds.read_text()), self.folds[0].metrics
        return {
            name: _mean_over_folds(first[name], mean, record["std"].get(name), len(record["folds"]))
            for name, mean in record["mean"].items()
        }

    @property
    def folds(self) -> list[Run]:
        """The runs of a cross-validation, one a fold; empty for any other run."""
        found = [p for p in self.folder.glob("fold-*") if (p / "recipe.yaml").is_file()]
        return [Run(p) for p in sorted(found, key=lambda p: int(p.name.removeprefix("fold-")))]

    @property
    def events(self) -> pa.Table:
        """The event log: one row per event, one column per key; nested values are JSON text. `.to_pandas()` if pandas is installed."""
        import pyarrow as pa

        path = self.folder / "events.jsonl"
        rows = list(read_events(path)) if path.exists() else []
        names = dict.fromkeys(key for row in rows for key in row)
        return pa.table({name: _column([row.get(name) for row in rows]) for name in names})

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The record of each finished stage, by name."""
        path = self.folder / "stages.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def report(self) -> Path:
        """The report, one HTML page; it is written now if it does not exist."""
        path = self.folder / "report.html"
        if not path.exists():
            write_report(self.folder, null_callback)
        return path

    def model(self, *, weights: str = "auto") -> nn.Module:
        """Return the trained model in evaluation mode, on the recipe's device. `weights`: auto (ema if training kept it), raw, or ema.

        Raises:
            RunError: the run has no checkpoint yet.
        """
        ctx = self._context
        model: nn.Module = load_model(ctx.final_checkpoint, ctx.recipe, weights=weights)[0]
        return model

    def predict(self, rows: Any, *, weights: str = "auto", device: str | None = None) -> list[dict[str, Any]]:
        """Return a prediction for each row, with probabilities or intervals if the model gives them.

        Args:
            rows: a list of dictionaries by column, a pandas DataFrame or a pyarrow table, with the columns of the training data; the label
                may be missing. For large files: `tauon predict`, or `tauon.predict.predict_file`.
            weights: auto (the moving average if training kept one), raw, or ema.
            device: cpu, cuda, cuda:1, ...; default: the recipe's.

        Raises:
            DataError: a value cannot be read; names the row and column.

        >>> tauon.open_run("runs/loans").predict([{"age": 41, "town": "Bonn"}])      # doctest: +SKIP
        [{'prediction': 'yes', 'probability_no': 0.12, 'probability_yes': 0.88}]
        """
        if (weights, device) not in self._predictors:
            self._predictors[weights, device] = Predictor.open(self.folder, weights=weights, device=device)
        to_records = getattr(rows, "to_pylist", None) or (partial(rows.to_dict, "records") if hasattr(rows, "to_dict") else None)
        return self._predictors[weights, device].records(rows if to_records is None else to_records())

    def explain(self, rows: Any, *assignments: str) -> list[dict[str, Any]]:
        """Return an explanation of the prediction for each row: the answer, what it rests on by each method, and how far that may be believed.

        Args:
            rows: as for `predict`.
            assignments: settings of the section `explain`: `"explain.maps=[kernel_shap]"`.

        Raises:
            DataError: a value cannot be read; names the row and column.

        >>> tauon.open_run("runs/loans").explain([{"age": 41, "town": "Bonn"}])[0]["answer"]      # doctest: +SKIP
        'yes'
        """
        to_records = getattr(rows, "to_pylist", None) or (partial(rows.to_dict, "records") if hasattr(rows, "to_dict") else None)
        return explain_records(self.folder, rows if to_records is None else to_records(), assignments)

    def compress(self, max_drop: float | str = 0.01, *assignments: str) -> dict[str, Any]:
        """Look for a smaller and faster model within a promised loss of quality; it is in `compress` in the run's folder.

        Args:
            max_drop: largest relative drop of quality, of the upper end of its interval.
            assignments: settings of the section `compress`: `"compress.for=mobile"`.

        Returns:
            The record: `best` (None: nothing kept the promise), `reason`, `points`, `side_effects`.

        >>> tauon.open_run("runs/loans").compress("2%")["best"]      # doctest: +SKIP
        'int8 graph, ONNX Runtime'
        """
        recipe = load_recipe(self.folder, [f"compress.max_drop={max_drop}", *assignments])
        run_stages(recipe, folder=self.folder, stages=("compress",))
        return dict(read_json(self.folder / "compress" / "compress.json"))

    def export(self, *formats: str, out: Path | str | None = None, device: str | None = None) -> list[dict[str, Any]]:
        """Write the trained model for other programs; each is compared with the model in its runtime, and kept only if it agrees.

        Args:
            formats: onnx, openvino, executorch, aoti, huggingface, peft, gguf.
            out: the folder to write, which must not exist; of several formats, one in it for each. Default: `export/FORMAT` in the run's folder.
            device: where the model is loaded; default: the recipe's.

        Returns:
            A record for each format: `folder`, `verification`, `latency`, `bytes`, ...

        Raises:
            DataError: the model cannot be written in a format, with the reason, or does not agree.

        >>> tauon.open_run("runs/loans").export("onnx")[0]["folder"]      # doctest: +SKIP
        'runs/loans/export/onnx'
        """
        return export_run(self.folder, formats, out=None if out is None else Path(out), device=device)

    def generate(self, prompt: str = "", *, max_tokens: int = 200, samples: int = 1, plain: bool = False, **sampling: Any) -> list[str]:
        """Return texts that the run's language model generates after `prompt`, one for each sample.

        Args:
            prompt: a text to continue, or a question to a chat model.
            max_tokens: most tokens to generate.
            samples: number of texts.
            plain: continue the prompt as plain text, without the chat template.
            sampling: `temperature` (0.8), `top_k`, `top_p` (0.95), `seed` (0), as in `tauon.generate.Sampling`.

        Raises:
            RunError: the run did not train a language model.
        """
        settings = Sampling(**{"top_p": 0.95, **sampling})
        return self._generator.write(prompt, max_tokens=max_tokens, samples=samples, sampling=settings, plain=plain)

    @cached_property
    def _generator(self) -> TextGenerator:
        return TextGenerator(self._context)

    @property
    def _context(self) -> Context:
        if not (self.folder / "recipe.yaml").is_file():
            raise RunError(f"{self.folder} is not a run: it has no recipe.yaml. `tauon runs list` shows the runs.")
        return Context(self.recipe, RunFolder.read(self.folder), null_callback)


def _mean_over_folds(of_one: Metric, mean: float, std: float | None, folds: int) -> Metric:
    spread = "" if std is None else f", standard deviation {std:.4g}"
    return replace(of_one, value=mean, low=None, high=None, n=folds, method=f"mean over {folds} folds{spread}")


def _column(values: list[Any]) -> Any:
    """Return the values of one key as an array: as they are if all have the same plain type, as JSON text otherwise."""
    import pyarrow as pa

    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) if float in kinds else v for v in values])
    if len(kinds) == 1 and kinds <= {str, bool}:
        return pa.array(values)
    return pa.array([None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values])
