"""The root command: imports a verb only when it is called, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any, NoReturn

import click

from tauon import __version__
from tauon.cli.interrupt import interruptible
from tauon.errors import TauonError

__all__ = ["main"]

BY_HAND = {
    "run": ("tauon.cli.run", "Run all stages of a recipe: prepare data, train, evaluate, report."),
    "train": ("tauon.cli.run", "Prepare the data and train; resumes where it stopped."),
    "predict": ("tauon.cli.predict", "Apply a trained model to new data: rows, images, recordings, texts, a time series."),
    "generate": ("tauon.cli.generate", "Continue a text with a trained language model."),
    "federate": ("tauon.cli.federate", "Train where the data is: simulated sites here, or real ones that share no data."),
    "export": ("tauon.cli.export", "Write a trained model for other programs: ONNX, OpenVINO, ExecuTorch, transformers, llama.cpp."),
    "adapter": ("tauon.cli.export", "Merge trained adapters into the weights of their base model."),
    "explain": ("tauon.cli.explain", "Explain a trained model: what it looks at, and how far that may be believed."),
    "audit": ("tauon.cli.audit", "Attack a trained model to measure what it reveals about its training data."),
    "compress": ("tauon.cli.compress", "Make a trained model smaller and faster within a promised loss of quality."),
    "serve": ("tauon.cli.serve", "Serve a trained model over HTTP: predictions, texts, and a page to try it."),
    "trace": ("tauon.cli.trace", "Say where training data came from: source, file, record, licence of a token or a text."),
    "data": ("tauon.cli.data", "Look at data before training; write it for other programs: Parquet, WebDataset, Hugging Face datasets."),
    "runs": ("tauon.cli.runs", "List runs; compare two."),
    "check": ("tauon.cli.check", "Check that a parallel layout computes the same as one process."),
    "tune": ("tauon.cli.tune", "Find settings before training: learning-rate range test."),
    "privacy": ("tauon.cli.privacy", "Privacy budget of a data set, spent and remaining; epsilon of settings."),
    "recipe": ("tauon.cli.recipe", "Write a recipe for your data; list, show and check recipes; print their JSON Schema."),
}

EPILOG = """\b
First steps:
  tauon run quickstart                      train a small GPT on Python's own source
  tauon run quickstart name=mine train.time=10m
  tauon recipe list                         the recipes that ship with Tauon
  tauon runs list                           the runs in ./runs

\b
RECIPE is a YAML file, the name of a shipped recipe, or the folder of a run.
a.b=c changes one setting of it: optim.lr=1e-3, train.steps=2k, data.split.validation=5%.

\b
Exit codes: 0 done; 1 a bug in Tauon; 2 the recipe or the command line is wrong; 3 the data;
4 a checkpoint; 5 the run's folder; 6 training cannot continue; 7 an optional library is missing;
8 workers cannot be started; 9 privacy: a guarantee is refuted, or the budget is exceeded;
130 stopped by Ctrl-C or SIGTERM, after saving: the same command resumes.

\b
Shell completion: eval "$(_TAUON_COMPLETE=bash_source tauon)"   (or zsh_source, fish_source)
"""


def verbs() -> dict[str, str]:
    """Return every verb and what it does: those written by hand and one for each other stage, in the order of a typical project."""
    from tauon.stages.table import stage_table

    stages = {stage.name: stage.help for stage in stage_table().values() if stage.name not in BY_HAND}
    first = {name: about for name, (_, about) in BY_HAND.items() if name in ("run", "train")}
    return first | stages | {name: about for name, (_, about) in BY_HAND.items()}


class LazyVerbs(click.Group):
    """A group that imports a verb only when it is called, so that `tauon --help` and completion are fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(verbs())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BY_HAND:
            command: click.Command = getattr(importlib.import_module(BY_HAND[cmd_name][0]), f"{cmd_name}_command")
            return command
        if cmd_name not in verbs():
            return None
        from tauon.cli.run import stage_command

        return stage_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(verbs().items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        name, known = args[0], verbs()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            ctx.fail(f"no verb {name!r}" + (f"; did you mean {close[0]!r}?" if close else f". Available: {', '.join(known)}"))
        return super().resolve_command(ctx, args)


@click.group(cls=LazyVerbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tauon")
def cli() -> None:
    """Tauon trains models from one recipe: from raw data to a trained and evaluated model with a report."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `tauon` command. Ends the process with an exit code (`tauon --help` lists them)."""
    # Read by OpenMP when torch is imported: threads that wait for one another soon sleep instead of spinning. On two cores shared
    # with another program, a training step took 8 times as long without this (docs/experiments.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for stream in (sys.stdout, sys.stderr):  # characters that the locale cannot write, and file names that are not UTF-8, print as \u4e2d
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with interruptible():
        try:
            _main(argv)
        finally:
            _name_failed_plugins()


def _name_failed_plugins() -> None:
    """Warn about installed packages whose parts or stages could not be loaded."""
    config, stages = sys.modules.get("tauon.config"), sys.modules.get("tauon.stages.table")
    for message in [*getattr(config, "FAILED_PLUGINS", {}).values(), *getattr(stages, "FAILED_STAGES", {}).values()]:
        click.echo(f"{click.style('warning', fg='yellow')}: {message}", err=True)


def _main(argv: list[str] | None) -> NoReturn:
    try:
        result: Any = cli.main(args=argv, prog_name="tauon", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.ClickException as err:
        err.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; no file is half-written, and the same command resumes", err=True)
        sys.exit(130)
    except TauonError as err:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {err}", err=True)
        for note in getattr(err, "__notes__", ()):  # further failures
            click.echo(note, err=True)
        sys.exit(err.exit_code)
    except BrokenPipeError:  # `tauon runs list | head`
        sys.stderr.close()
        sys.exit(0)
