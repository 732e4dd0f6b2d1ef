"""Plugins: parts from other packages, found by entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from tauon.config.tree import FAILED_PLUGINS, families

__all__ = ["load_plugin", "load_plugins"]


def load_plugins() -> dict[str, str]:
    """Import every installed package with plugins for Tauon (entry-point groups `tauon.<family>`, `tauon.plugins`).

    A part that fails to import, or registers a name that is taken, is skipped; the others work. Returns the problem of each failed part,
    by package and entry point. A recipe that uses such a part gets the same message.
    """
    installed = entry_points()  # read once: every call reads the files of every package
    for group in ("plugins", *families()):
        for point in installed.select(group=f"tauon.{group}"):
            load_plugin(point)
    return dict(FAILED_PLUGINS)


def load_plugin(point: EntryPoint) -> object | None:
    """Return the object of an entry point; None if it cannot be imported (then `FAILED_PLUGINS` has the reason)."""
    package = point.dist.name if point.dist else "?"
    try:
        loaded: object = point.load()
    except Exception as err:  # third-party code: any exception is possible
        FAILED_PLUGINS[f"{package}: {point.value}"] = (
            f"the installed package {package!r} has plugins for Tauon ({point.group}: {point.value}), but cannot be "
            f"imported: {type(err).__name__}: {err}. Update it, or remove it: pip uninstall {package}"
        )
        return None
    return loaded
