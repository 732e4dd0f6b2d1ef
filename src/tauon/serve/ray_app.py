"""A Ray Serve application of a run: `serve run serve.yaml`, with the file of `tauon serve RUN --write ray`, or

    from ray import serve
    from tauon.serve.ray_app import application
    serve.run(application({"place": "runs/patients"}))

Each replica has its own copy of the model and its own queue, as a process of `tauon serve` has; Ray starts, places and scales them. Keys are read from
`keys_file` on the replica's machine, so that they are not part of the configuration, which Ray's dashboard shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauon.errors import MissingExtra, RecipeError

__all__ = ["application"]

_KNOWN = ("place", "fewest", "most", "cpu", "keys_file", "latency_target", "rate")


def application(args: Mapping[str, Any]) -> Any:
    """Return the application.

    Args:
        args: `place` (folder, on every node), `fewest` and `most` replicas, `cpu` (cores of each), `keys_file`, `latency_target` (seconds),
            `rate` (requests a second for each client and replica).

    Raises:
        MissingExtra: without ray[serve].
        RecipeError: an unknown argument.
    """
    try:
        from ray import serve
    except ImportError as err:
        raise MissingExtra("Ray Serve", "ray") from err
    unknown = sorted(set(args) - {*_KNOWN})
    if unknown or "place" not in args:
        raise RecipeError(f"{', '.join(unknown) or 'place is missing'}: the arguments are {', '.join(_KNOWN)}")
    given = dict(args)

    def build() -> Any:
        return _app(given)

    fewest, most = int(given.get("fewest", 1)), int(given.get("most", 1))
    scaling: Any = {"num_replicas": fewest}
    if most > fewest:
        scaling = {"autoscaling_config": {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": 16}}

    @serve.deployment(  # type: ignore[untyped-decorator, unused-ignore]
        name="tauon", ray_actor_options={"num_cpus": float(given.get("cpu", 1))}, max_ongoing_requests=256, graceful_shutdown_timeout_s=30, **scaling
    )  # fmt: skip
    @serve.ingress(build)  # type: ignore[untyped-decorator, unused-ignore]
    class Replica:
        """The server's routes."""

    bindable: Any = Replica
    return bindable.bind()


def _app(given: Mapping[str, Any]) -> Any:
    from tauon.serve import ServeSettings, build_app, open_server

    keys: tuple[str, ...] = ()
    if given.get("keys_file"):
        keys = tuple(line.strip() for line in Path(given["keys_file"]).read_text(encoding="utf-8").splitlines() if line.strip())
    chosen: dict[str, Any] = {k: float(given[k]) for k in ("latency_target", "rate") if k in given}
    return build_app(open_server(Path(given["place"]), ServeSettings(keys=keys, **chosen)))
