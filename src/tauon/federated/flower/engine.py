"""Flower 1.41, imported with everything off that a hospital did not ask for: telemetry, update checks, installation at run time.

Tauon uses Flower's link state, Fleet API (protobuf over HTTPS, signed requests) and message objects. It never uses the part that sends programs to
sites: an unmodified SuperNode installs and runs whatever Python package a run names, ours asks for messages only.
"""

from __future__ import annotations

import logging
import os
import warnings

from tauon.errors import LaunchError, MissingExtra

__all__ = ["VERSION", "load_flower"]

VERSION = "1.41"
"""The release whose modules are used here: many of them are not part of Flower's public API and may move in the next one."""
OFF = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}


def load_flower() -> str:
    """Import Flower quietly and return its version. Raises `MissingExtra`, or `LaunchError` for another release than 1.41.

    Call this before any other import of `flwr`: its telemetry reads the environment when it is imported.
    """
    os.environ.update(OFF)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'click", category=DeprecationWarning)  # typer 0.2x imports what click 8.2 deprecates
        try:
            from flwr.supercore.version import package_version
        except ImportError as err:
            raise MissingExtra("federated training over a network", "federated") from err
    version = str(package_version)
    if not version.startswith(VERSION + "."):
        raise LaunchError(f"Flower {version} is installed, but Tauon needs {VERSION}. Run: pip install 'tauon[federated]'")
    if "FLWR_LOG_LEVEL" not in os.environ:  # Flower logs every request at INFO and expected refusals at ERROR: ours are said by `note`
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
    return version
