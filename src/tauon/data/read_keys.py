"""Which recipe keys a preparation read: saved with its result, so that reusing the result does not make its keys look unused."""

from __future__ import annotations

from typing import Any

from tauon.config import Config, children

__all__ = ["count_as_read", "reads"]


def reads(config: Config) -> list[list[str]]:
    """Return the path of every key that has been read, to save with the result."""
    mine = [[name] for name in sorted(getattr(config, "_reads", set()))]
    return mine + [[*key.split("."), *below] for key, node in children(config) for below in reads(node)]


def count_as_read(config: Config, paths: list[list[str]]) -> None:
    """Count as read the keys that the preparation had read, so that reusing its result does not make them look unused."""
    for path in paths:
        node: Any = config
        for part in path:
            node = node[int(part)] if part.isdigit() else getattr(node, part, None)
            if node is None:
                break
