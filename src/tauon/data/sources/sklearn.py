"""scikit-learn's built-in tables: small, real, no download."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from tauon.config import register
from tauon.data.sources.base import Arrays, Kind, SourceConfig
from tauon.errors import MissingExtra

__all__ = ["SklearnConfig"]


@register("sklearn")
class SklearnConfig(SourceConfig):
    """A table that scikit-learn includes."""

    name: Literal["breast_cancer", "iris", "wine", "digits", "diabetes"]
    """Classification: breast_cancer (569 x 30), iris (150 x 4), wine (178 x 13), digits (1,797 images of 8 x 8). Regression:
    diabetes (442 x 10)."""

    provides: ClassVar[Kind] = "arrays"

    def arrays(self) -> Arrays:
        try:
            from sklearn import datasets
        except ImportError as err:
            raise MissingExtra("source: sklearn", "sklearn") from err
        name = self.name
        table = getattr(datasets, f"load_{name}")()
        features = table.images[:, None].astype(np.float32) if name == "digits" else table.data.astype(np.float64)
        if name == "diabetes":
            return Arrays(features, table.target.astype(np.float64), tuple(table.feature_names), ("progression",))
        names = () if name == "digits" else tuple(map(str, table.feature_names))
        return Arrays(features, table.target.astype(np.int64), names, tuple(map(str, table.target_names)))

    def describe(self) -> dict[str, Any]:
        try:
            import sklearn
        except ImportError as err:
            raise MissingExtra("source: sklearn", "sklearn") from err
        return {"kind": self.kind_, "name": self.name, "scikit-learn": sklearn.__version__, "licence": "BSD-3-Clause"}
