"""Parts from other packages, which announce them by entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from tauon.config.tree import FAILED_PLUGINS, families

__all__ = ["load_plugin", "load_plugins"]


def load_plugins() -> dict[str, str]:
    """Import every installed package that announces parts for Tauon (entry-point groups `tauon.<family>`, `tauon.plugins`).

    One that cannot be imported, or takes a name that is taken, is left out and the others work: returned is, by package, what is wrong
    with it. A recipe that asks for one of its parts is told the same.
    """
    for group in ("plugins", *families()):
        for point in entry_points(group=f"tauon.{group}"):
            load_plugin(point)
    return dict(FAILED_PLUGINS)


def load_plugin(point: EntryPoint) -> object | None:
    """What an entry point names; None where it cannot be imported, which `FAILED_PLUGINS` then says."""
    package = point.dist.name if point.dist else "?"
    try:
        loaded: object = point.load()
    except Exception as err:  # another's code: anything may be wrong with it
        FAILED_PLUGINS[package] = (
            f"the installed package {package!r} announces parts for Tauon ({point.group}: {point.value}) and cannot be "
            f"imported: {type(err).__name__}: {err}. Update it, or: pip uninstall {package}"
        )
        return None
    return loaded
