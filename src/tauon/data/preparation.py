"""The package's entry point: `prepare(config)` turns a `data` section into data sets for training, validation and test.

Each kind of data implements reading, splitting and fitting (`kinds/`). Nothing here depends on a kind by name.
"""

from __future__ import annotations

from tauon.data.cache import cache_in
from tauon.data.config import DataConfig
from tauon.data.kinds.base import Request
from tauon.data.kinds.rules import kind_for, problems_for
from tauon.data.progress import Progress, listening
from tauon.data.shadow_split import shadow_split
from tauon.data.sources.base import SourceConfig
from tauon.data.spec_file import without_rows
from tauon.data.split import Part
from tauon.data.splits import DataSplits
from tauon.errors import Problem, RecipeError

__all__ = ["prepare"]


def prepare(config: DataConfig, *, seed: int, input_kind: str, scale_targets: bool = False, progress: Progress | None = None) -> DataSplits:
    """Read, split, tokenise or normalise the data of a recipe. What was prepared before is found by its fingerprint and reused.

    Args:
        config: the recipe's `data` section.
        seed: the run's seed: it shifts windows and augmentation, not the split (that is `split.seed`).
        input_kind: what the task learns from (`Task.input_kind`): tokens, arrays, series, or the name of an installed kind of data.
        scale_targets: for arrays whose targets are numbers: scale them as `data.normalize_targets` says (a task says whether it wants that).
        progress: called with (what, done, total) during long steps.

    Returns:
        Data sets for training, validation and test, and what is needed to prepare new data in the same way.

    Raises:
        RecipeError: settings that cannot work with such a task.
        DataError: a problem in the data, with file and place.

    >>> from tauon.config import parse
    >>> splits = prepare(parse(DataConfig, {"source": {"kind": "sklearn", "name": "iris"}}), seed=0, input_kind="arrays")
    >>> splits.spec.labels, splits.spec.input_shape
    (('setosa', 'versicolor', 'virginica'), (4,))
    """
    if config.half is not None:
        whole = config.model_copy(update={"half": None})
        return shadow_split(prepare(whole, seed=seed, input_kind=input_kind, scale_targets=scale_targets, progress=progress), config.half)
    wrong = [Problem(f"data.{name}", message) for name, message in problems_for(config, input_kind)]
    if wrong:
        raise RecipeError(wrong)
    if not config.rows:
        return without_rows(config)
    with listening(progress), cache_in(config.cache):
        return kind_for(input_kind, config.source)().prepare(Request(config, sources_of(config), seed, scale_targets))


def sources_of(config: DataConfig) -> dict[Part, SourceConfig]:
    """Return each part with a source of its own: set in the recipe, or published with the training set."""
    sources: dict[Part, SourceConfig] = {"train": config.source}
    for name in ("validation", "test"):
        own = getattr(config, name)
        if own is None and not (name == "test" and config.split.folds is not None):
            own = config.source.part(name)
        if own is not None:
            sources[name] = own
    return sources
