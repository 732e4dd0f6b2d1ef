"""The package's verb: `prepare(config)` turns a `data` section into data sets for training, validation and test.

How one kind of data is read, split and fitted is its own file's business (`kinds/`). Nothing here knows a kind by name.
"""

from __future__ import annotations

from tauon.data.cache import cache_in
from tauon.data.config import DataConfig
from tauon.data.kinds.base import Request
from tauon.data.kinds.rules import kind_for, problems_for
from tauon.data.progress import Progress, listening
from tauon.data.shadow_split import shadow_split
from tauon.data.sources.base import SourceConfig
from tauon.data.split import Part
from tauon.data.splits import DataSplits
from tauon.errors import Problem, RecipeError

__all__ = ["prepare"]


def prepare(config: DataConfig, *, seed: int, input_kind: str, scale_targets: bool = False, progress: Progress | None = None) -> DataSplits:
    """Read, split, tokenise or normalise. Done work is found by its fingerprint and not done again.

    Args:
        config: the recipe's `data` section.
        seed: the run's seed: moves windows and augmentation, not the split (that is `split.seed`).
        input_kind: what the task learns from (`Task.input_kind`): tokens, arrays, series, or what an installed kind of data is called.
        scale_targets: of arrays whose targets are numbers: put them on the scale of `data.normalize_targets` (a task says whether it wants that).
        progress: told (what, done, total) during long steps.

    Raises:
        RecipeError: settings that cannot work with such a task.
        DataError: whatever is wrong with the data, by file and place.
    """
    if config.half is not None:
        whole = config.model_copy(update={"half": None})
        return shadow_split(prepare(whole, seed=seed, input_kind=input_kind, scale_targets=scale_targets, progress=progress), config.half)
    wrong = [Problem(f"data.{name}", message) for name, message in problems_for(config, input_kind)]
    if wrong:
        raise RecipeError(wrong)
    with listening(progress), cache_in(config.cache):
        return kind_for(input_kind, config.source)().prepare(Request(config, sources_of(config), seed, scale_targets))


def sources_of(config: DataConfig) -> dict[Part, SourceConfig]:
    """Each part that has a source of its own: named in the recipe, or published with the training set."""
    sources: dict[Part, SourceConfig] = {"train": config.source}
    for name in ("validation", "test"):
        own = getattr(config, name)
        if own is None and not (name == "test" and config.split.folds is not None):
            own = config.source.part(name)
        if own is not None:
            sources[name] = own
    return sources
