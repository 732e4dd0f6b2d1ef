"""`tauon serve`: a trained model behind HTTP."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import click

from tauon.cli.quantities import size_in_bytes, time_in_seconds

__all__ = ["serve_command"]

EPILOG = """\b
Examples:
  tauon serve runs/patients                       then open http://127.0.0.1:8000 in a browser
  tauon serve runs/patients --port 0              a free port; the first line says which
  tauon serve runs/quickstart                     a language model: OpenAI's API under /v1
  tauon serve runs/patients --keys-file keys.txt --rate 10 --host 0.0.0.0

\b
Ask it:
  curl http://127.0.0.1:8000/predict -H 'content-type: application/json' -d '{"rows": [{"age": 41, "dose": 0.3}]}'
  curl http://127.0.0.1:8000/predict -F file=@photo.png
  curl http://127.0.0.1:8000/predict -H 'content-type: text/csv' -H 'accept: text/csv' --data-binary @patients.csv

\b
Routes: /predict or /v1/chat/completions, /v1/completions, /v1/models; /info, /docs, /healthz, /readyz, /metrics; with --admin-keys-file also
/admin/swap. The batch size is not set: it follows from --latency-target and from the measured speed of the model.
Ctrl-C or SIGTERM: running requests are answered first. SIGHUP: newer weights of the run are loaded and swapped in.
"""


@click.command("serve", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address. 0.0.0.0: reachable from other machines.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one.")
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="Also answer to this name (Host header). On 127.0.0.1 only localhost is answered."
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes, each with its own copy of the model.")
@click.option(
    "--latency-target",
    default="50ms",
    show_default=True,
    help="Time in which nearly every request should be answered: sets the batch size.",
)
@click.option(
    "--keys-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with one API key a line; every request needs one.",
)
@click.option(
    "--admin-keys-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="File with keys for /admin: swap, canary."
)
@click.option("--rate", default=0.0, type=click.FloatRange(0), help="Requests a second for each key or address. Default: no limit.")
@click.option("--most-body", default="32MiB", show_default=True, help="Largest body of a request.")
@click.option("--timeout", default="60s", show_default=True, help="Longest time for an answer.")
@click.option("--kv-cache", default="512MiB", show_default=True, help="Language models: memory of the key-value cache.")
@click.option("--watch", default="0s", show_default=True, help="Look for newer weights of RUN so often, and swap to them. 0s: never.")
@click.option("--explain", is_flag=True, help="Explain an answer on request: /predict?explain=true. Needs the run's data.")
@click.option(
    "--write",
    type=click.Choice(["docker", "kubernetes", "kserve", "ray", "vllm"]),
    help="Do not serve: write the files to serve it elsewhere into --out.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for --write.")
@click.option("--image", default="", help="For --write: container image with the model. Default: its name.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing.")
def serve_command(run: Path, host: str, port: int, workers: int, quiet: bool, **options: Any) -> None:
    """Serve the model of RUN (a run, a checkpoint, or an exported bundle) over HTTP, with a page to try it."""
    target, out, image = (options.pop(name) for name in ("write", "out", "image"))
    if target is not None:
        return _write(target, run, out, image)
    gc.disable()  # starting makes many objects and little garbage: a sixth of the time would go into looking for it
    try:
        _serve(run, host, port, workers, quiet, options)
    finally:
        gc.enable()


def _serve(run: Path, host: str, port: int, workers: int, quiet: bool, options: dict[str, Any]) -> None:
    from tauon.serve import run_server

    settings = _settings(options)

    def ready(url: str) -> None:
        if not quiet:
            click.echo(f"serving {run} on {url}   (Ctrl-C stops; {url}/docs has the API)")
            if host not in ("127.0.0.1", "localhost", "::1") and not settings.keys:
                click.secho(
                    "warning: everybody who can reach this address can use the model; --keys-file asks for a key", fg="yellow", err=True
                )

    run_server(run, settings, host=host, port=port, workers=workers, ready=ready)


def _write(target: Any, run: Path, out: Path | None, image: str) -> None:
    from tauon.serve.deploy import Deployment, write_deployment

    if out is None:
        raise click.UsageError("--write needs --out FOLDER")
    for path in write_deployment(target, run, out, Deployment(image=image)):
        click.echo(f"wrote {path}")


def _settings(options: dict[str, Any]) -> Any:
    from tauon.serve import ServeSettings

    return ServeSettings(
        latency_target=time_in_seconds(options["latency_target"], "--latency-target"), keys=_keys(options["keys_file"]),
        admin_keys=_keys(options["admin_keys_file"]), rate=options["rate"], most_body=size_in_bytes(options["most_body"], "--most-body"),
        answer_seconds=time_in_seconds(options["timeout"], "--timeout"), kv_cache=size_in_bytes(options["kv_cache"], "--kv-cache"),
        watch=time_in_seconds(options["watch"], "--watch"), explain=options["explain"], hosts=tuple(options["allow_host"]),
    )  # fmt: skip


def _keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    keys = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#"))
    if not keys:
        raise click.UsageError(f"{path} has no key; write one a line")
    return keys
