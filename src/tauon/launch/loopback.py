"""A port on this machine's loopback interface, which other machines cannot reach."""

from __future__ import annotations

import socket

from tauon.errors import LaunchError

__all__ = ["listen"]


def listen(port: int | None) -> socket.socket:
    """A socket that listens at 127.0.0.1. Raises `LaunchError` where the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port or 0))
        listener.listen(512)
    except OSError as err:
        listener.close()
        raise LaunchError(
            f"launch.port {port} cannot be used: {err.strerror}. Take another, or leave it out: then a free one is taken."
        ) from None
    return listener
