"""`run` and `open_run`, and the `Run` that both return: a run's records, its model and what the model can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauon.api.notebook import run_html
from tauon.artifacts import Run as RunFolder
from tauon.errors import RunError
from tauon.evaluate import Evaluation, Metric
from tauon.generate import Sampling
from tauon.pipeline import run as run_stages
from tauon.predict import Predictor
from tauon.recipe import Recipe, find_recipe, folder_of, load_recipe
from tauon.stages.context import Context, null_callback
from tauon.stages.evaluate import evaluation_of
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
    """Take a recipe through its stages, here, and return the run. The same call again does only what is not done.

    Args:
        recipe: a tree (`Recipe`, `load_recipe`), a YAML file, the name of a shipped recipe, or the folder of a run.
        assignments: settings to change, as on the command line: `"train.steps=500"`, `"optim.lr=1e-3"`.
        root: folder of the runs: `root/<name>` is this one's. Default: `runs`, or where the given run lies.
        stages: some stages, by name; those of the recipe if left out.
        fresh: set the existing run aside (renamed, never deleted) and start over.
        on_event: called with what happens, as it happens: `on_event("step", step=10, loss=2.3, ...)`.

    Returns:
        The run, with its figures, its model and its records.

    Raises:
        RecipeError: the recipe is wrong: every problem, with its key.
        DataError: a file or a value in the data is wrong.
        TauonError: any other reason, with the way out. Nothing half-written stays.

    >>> import tauon                                                    # doctest: +SKIP
    >>> run = tauon.run("quickstart", "train.time=1m")                  # doctest: +SKIP
    >>> round(run.metrics["perplexity"].value, 1)                       # doctest: +SKIP
    12.3
    """
    if isinstance(recipe, Recipe):
        if assignments:
            raise TypeError("assignments are for a recipe that is loaded here: give them to load_recipe, or change the tree")
        tree, given = recipe, None
    else:
        tree, given = load_recipe(recipe, assignments), folder_of(recipe)
    renamed = any(a.partition("=")[0].strip() == "name" for a in assignments)
    where = given if given is not None and root is None and not renamed else Path(root or (given.parent if given else "runs")) / tree.name
    done = run_stages(tree, folder=where, stages=stages, fresh=fresh, on_event=on_event)
    return Run(done.folder)


def open_run(path: Path | str) -> Run:
    """The run in a folder, whether it is finished, going on, or was stopped. Only reads.

    Raises:
        RunError: no run is there.
    """
    return Run(RunFolder.read(path).folder)


class Run:
    """A run's folder as Python sees it. Everything is read when it is asked for; nothing is kept open."""

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
        return load_recipe(find_recipe(str(self.folder)))

    @property
    def evaluation(self) -> Evaluation | None:
        """All that the evaluation found; None before it."""
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
        """The event log: a row an event, a column a key; what is nested is JSON text. `.to_pandas()` where pandas is installed."""
        import pyarrow as pa

        path = self.folder / "events.jsonl"
        rows = list(read_events(path)) if path.exists() else []
        names = dict.fromkeys(key for row in rows for key in row)
        return pa.table({name: _column([row.get(name) for row in rows]) for name in names})

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What each stage that is done says of itself, by name."""
        path = self.folder / "stages.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def report(self) -> Path:
        """The report, one HTML page; written now where it is not there yet."""
        path = self.folder / "report.html"
        if not path.exists():
            write_report(self.folder, null_callback)
        return path

    def model(self, *, weights: str = "auto") -> nn.Module:
        """The trained model, in evaluation mode: on the recipe's device, averaged weights where training kept them (`weights`: ema, raw).

        Raises:
            RunError: nothing was trained yet.
        """
        ctx = self._context
        model: nn.Module = load_model(ctx.final_checkpoint, ctx.recipe, weights=weights)[0]
        return model

    def predict(self, rows: Any, *, weights: str = "auto", device: str | None = None) -> list[dict[str, Any]]:
        """What the trained model makes of new rows: for each its prediction, and probabilities or intervals where the model gives them.

        Args:
            rows: a list of dictionaries by column, a pandas DataFrame or a pyarrow table, as the training data had them; the label may be
                missing. For files of any size: `tauon predict`, or `tauon.predict.predict_file`.
            weights: auto (the moving average where training kept one), raw, or ema.
            device: cpu, cuda, cuda:1, ...; left out: the recipe's.

        Raises:
            DataError: a value that cannot be read, by row and column.

        >>> tauon.open_run("runs/loans").predict([{"age": 41, "town": "Bonn"}])      # doctest: +SKIP
        [{'prediction': 'yes', 'probability_no': 0.12, 'probability_yes': 0.88}]
        """
        if (weights, device) not in self._predictors:
            self._predictors[weights, device] = Predictor.open(self.folder, weights=weights, device=device)
        to_records = getattr(rows, "to_pylist", None) or (partial(rows.to_dict, "records") if hasattr(rows, "to_dict") else None)
        return self._predictors[weights, device].records(rows if to_records is None else to_records())

    def generate(self, prompt: str = "", *, max_tokens: int = 200, samples: int = 1, plain: bool = False, **sampling: Any) -> list[str]:
        """What the language model of this run writes after `prompt`, or answers to it; one text a sample.

        Args:
            prompt: a text to continue, or a question to a model that was tuned to answer.
            max_tokens: most tokens that are written.
            samples: how many texts.
            plain: continue the text as it is, also where the model was tuned to answer.
            sampling: `temperature` (0.8), `top_k`, `top_p` (0.95), `seed` (0), as `tauon.generate.Sampling` has them.

        Raises:
            RunError: the run trained another kind of model.
        """
        how = Sampling(**{"top_p": 0.95, **sampling})
        return self._generator.write(prompt, max_tokens=max_tokens, samples=samples, sampling=how, plain=plain)

    @cached_property
    def _generator(self) -> TextGenerator:
        return TextGenerator(self._context)

    @property
    def _context(self) -> Context:
        if not (self.folder / "recipe.yaml").is_file():
            raise RunError(f"{self.folder} has no recipe.yaml: it is the folder of no run. `tauon runs list` shows the runs.")
        return Context(self.recipe, RunFolder.read(self.folder), null_callback)


def _mean_over_folds(of_one: Metric, mean: float, std: float | None, folds: int) -> Metric:
    spread = "" if std is None else f", standard deviation {std:.4g}"
    return replace(of_one, value=mean, low=None, high=None, n=folds, method=f"mean over {folds} folds{spread}")


def _column(values: list[Any]) -> Any:
    """Values of one key as they are where they are all of one plain kind; as JSON text otherwise."""
    import pyarrow as pa

    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) if float in kinds else v for v in values])
    if len(kinds) == 1 and kinds <= {str, bool}:
        return pa.array(values)
    return pa.array([None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values])
