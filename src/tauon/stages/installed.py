"""Whether an installed package may bring stages, without `importlib.metadata`: importing and asking it takes half of `tauon --help`."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

__all__ = ["may_be_installed"]


def may_be_installed(group: str) -> bool:
    """Return False if no installed package has entry points in `group`. True: one has, or only `importlib.metadata` can know (zip files, eggs,
    finders of other packages).
    """
    if any(hasattr(finder, "find_distributions") for finder in sys.meta_path if finder is not PathFinder):
        return True
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except NotADirectoryError:  # a zip file
            return True
        except OSError:
            continue
        if place.lower().endswith(".egg"):
            return True
        for name in names:
            if name.lower().endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(place, name, "entry_points.txt"), "rb") as file:
                        if group.encode() in file.read():
                            return True
                except OSError:  # most packages have none
                    continue
    return False
