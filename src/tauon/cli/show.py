"""Output while a run works: a live progress line on a terminal, plain lines in a log file, JSON lines for a script."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from tauon.cli.hints import next_steps, shown_path

if TYPE_CHECKING:
    from tauon.artifacts import RunFolder
    from tauon.evaluate import Evaluation

__all__ = ["LOG_WIDTH", "Show", "format_duration", "metrics_table", "pick_show"]

_COLOURS = {"good": "green", "warn": "yellow", "bad": "red", "plain": "default"}
LOG_WIDTH = 10_000
"""Columns of output that is not a terminal (a pipe, a log file): nothing is cut or wrapped there."""
_LONG = 60.0
"""Seconds of training that are announced."""


def pick_show(quiet: bool, as_json: bool) -> Show:
    """Return the output that fits: JSON, quiet, live on a terminal, or plain lines. Of several processes only rank 0 prints."""
    if os.environ.get("RANK", "0") != "0":
        return QuietShow()
    if as_json:
        return JsonShow()
    return QuietShow() if quiet else LiveShow() if sys.stdout.isatty() else PlainShow()


class Show:
    """Receives events; prints warnings, and the figures at the end."""

    flags: tuple[str, ...] = ()
    """The command-line flags that select this output; workers are started with the same."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
        self.errors = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else LOG_WIDTH)

    def __enter__(self) -> Show:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Put the terminal back in order."""

    def on_event(self, kind: str, /, **facts: Any) -> None:
        getattr(self, f"on_{kind}", lambda **_: None)(**facts)

    def on_warning(self, message: str, **_: Any) -> None:
        self.errors.print(f"[yellow]warning[/]: {_plain(message)}")

    def on_skip(self, step: int, reason: str, **_: Any) -> None:
        self.on_warning(f"step {step} skipped: {reason}")

    def on_evaluation(self, result: Evaluation, **_: Any) -> None:
        self.console.print(metrics_table(result))
        from tauon.report.baselines import verdict_line  # not when the command line starts

        found = verdict_line(result.to_json())
        if found is not None:
            self.console.print(f"[{_COLOURS[found[0]]}]{_plain(found[1])}[/]")

    def on_folds(self, mean: dict[str, float], std: dict[str, float], folds: int, **_: Any) -> None:
        table = Table(box=None, padding=(0, 2))
        for head in (f"over {folds} folds", "mean", "standard deviation"):
            table.add_column(head, justify="left" if head.startswith("over") else "right")
        for name, value in mean.items():
            table.add_row(name.replace("_", " "), f"{value:.4f}", f"{std[name]:.4f}" if name in std else "")
        self.console.print(table)

    def finish(self, run: RunFolder, *, trained: bool, whole: bool) -> None:
        """The end of a verb."""


class QuietShow(Show):
    """Prints only warnings and the final figures."""

    flags = ("--quiet",)


class PlainShow(Show):
    """Prints lines for a log file, at most one every few seconds."""

    seconds = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.last = time.monotonic()

    def line(self, text: str) -> None:
        self.console.print(text)

    def on_aside(self, folder: str, **_: Any) -> None:
        self.line(f"the old run was renamed to {_plain(folder)}")

    def on_recipe(self, path: str, data: str, about: str | None, why: list[str], seconds: float | None, **_: Any) -> None:
        """The recipe of a file or a folder that was named in place of a recipe."""
        if about is None:
            self.line(f"using {_plain(path)}, which was written for {_plain(data)} before. To have it written again, delete it.")
            return
        self.line(f"[bold]{_plain(about)}[/]")
        for sentence in why:
            self.console.print(f"  [dim]{_plain(sentence)}[/]", soft_wrap=True)
        self.line(f"wrote {_plain(path)}: every choice can be changed there; the same command then runs it.")
        if seconds is not None and seconds > _LONG:
            from tauon.starter.timing import in_words

            self.line(
                f"[yellow]Training takes {in_words(seconds)}[/] on this machine. It may be stopped with Ctrl-C: the same command resumes."
            )

    def on_note(self, message: str, **_: Any) -> None:
        self.line(f"[dim]{_plain(message)}[/]")

    def on_stage(self, name: str, state: str, seconds: float | None = None, **_: Any) -> None:
        took = f" in {format_duration(seconds)}" if seconds is not None else ""
        if state == "done before":
            self.line(f"[bold]{name}[/]: done before")
        elif state == "begins":
            self.line(f"[bold]{name}[/]")
        elif took:
            self.line(f"[dim]{name} done{took}[/]")

    def on_derived(self, settings: list[dict[str, Any]], **_: Any) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2))
        for s in settings:
            value = f"{s['value']:,}" if isinstance(s["value"], int) and not isinstance(s["value"], bool) else str(s["value"])
            table.add_row(s["path"], value, f"[dim]{_plain(s['source'])}[/]")
        self.console.print(table)

    def on_resume(self, step: int, total_steps: int, **_: Any) -> None:
        self.line(f"resuming at step {step:,} of {total_steps:,}")

    def on_progress(self, what: str, done: int, total: int | None, **_: Any) -> None:
        now = time.monotonic()
        if now - self.last >= self.seconds:  # short work is not worth a line
            self.last = now
            self.line(f"{what}: {done:,}" + (f" of {total:,}" if total else ""))

    def on_step(self, step: int, total_steps: int, **m: Any) -> None:
        now = time.monotonic()
        if step == 1 or step == total_steps or now - self.last >= self.seconds:
            self.last = now
            self.line(f"step {step:,}/{total_steps:,}  {_facts(m)}")

    def on_validate(self, step: int, loss: float, **_: Any) -> None:
        self.line(f"step {step:,}  validation loss {loss:.4f}")

    def on_sample(self, prompt: str, text: str, **_: Any) -> None:
        self.line(f"[dim]----- sample{' after ' + _plain(repr(prompt)) if prompt else ''}[/]")
        self.console.print(prompt + text, markup=False)

    def on_report(self, path: str, **_: Any) -> None:
        self.line(f"report: {_plain(path)}")

    def finish(self, run: RunFolder, *, trained: bool, whole: bool) -> None:
        hints = list(next_steps(run, trained=trained, whole=whole))
        if run.report_path.exists():
            self.line(f"\nThe report is [bold]{_plain(shown_path(run.report_path))}[/]: open it in a browser.")
        self.line("Try next:")
        width = max(len(command) for command, _ in hints) + 2
        for command, about in hints:
            self.console.print(f"  [bold]{_plain(command)}[/]{' ' * (width - len(command))}[dim]{about}[/]", soft_wrap=True)


class LiveShow(PlainShow):
    """Prints a live progress line on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.task_name = ""

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def line(self, text: str) -> None:
        (self.bar.console if self.bar is not None else self.console).print(text)

    def _track(self, name: str, done: int, total: int | None, facts: str) -> None:
        if self.bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[facts]}"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = None
        if self.task is None or name != self.task_name:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task, self.task_name = self.bar.add_task(name, total=total, facts=""), name
        self.bar.update(self.task, completed=done, total=total, facts=facts)

    def on_stage(self, name: str, state: str, seconds: float | None = None, **rest: Any) -> None:
        self.stop()
        super().on_stage(name, state, seconds, **rest)

    def on_progress(self, what: str, done: int, total: int | None, **_: Any) -> None:
        self._track(what, done, total, f"{done:,}" + (f"/{total:,}" if total else ""))

    def on_step(self, step: int, total_steps: int, **m: Any) -> None:
        self._track("training", step, total_steps, f"{step:,}/{total_steps:,}  {_facts(m)}")

    def on_evaluation(self, result: Evaluation, **rest: Any) -> None:
        self.stop()
        super().on_evaluation(result, **rest)


class JsonShow(Show):
    """Prints one JSON object per line on standard output: {"kind": ..., facts}."""

    flags = ("--json",)

    def on_event(self, kind: str, /, **facts: Any) -> None:
        from tauon.artifacts.files import to_json

        if kind == "evaluation":
            facts = {"result": facts["result"].to_json()}
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(json.dumps(to_json({"kind": kind, **facts}), ensure_ascii=not utf8), flush=True)

    def finish(self, run: RunFolder, *, trained: bool, whole: bool) -> None:
        self.on_event("finished", folder=str(run.folder))


def _plain(text: str) -> str:
    """Escape text that rich must not read as markup."""
    return text.replace("[", r"\[")


def _facts(m: dict[str, Any]) -> str:
    parts = [f"loss {m['loss']:.4f}"]
    if "tokens_per_s" in m:
        parts.append(f"{m['tokens_per_s']:,.0f} tokens/s")
    elif "examples_per_s" in m:
        parts.append(f"{m['examples_per_s']:,.0f} examples/s")
    if "tflops" in m:
        parts.append(f"{m['tflops']:.3f} TFLOP/s")
    if "memory_mb" in m:
        parts.append(f"{m['memory_mb'] / 1000:.1f} GB")
    if "eta_s" in m:
        parts.append(f"{format_duration(m['eta_s'])} left")
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """Format a duration: 7 s, 2 min 05 s, 3 h 20 min.

    >>> format_duration(125)
    '2 min 05 s'
    """
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes} min {s:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def metrics_table(result: Evaluation) -> Table:
    """Return a table of every metric with its interval."""
    table = Table(box=None, padding=(0, 2), title=None)
    for head in (f"on {result.split}", "value", f"{result.confidence:.0%} interval"):
        table.add_column(head, justify="left" if head.startswith("on ") else "right")
    for name, m in result.metrics.items():
        if m.value is None:
            table.add_row(name.replace("_", " "), "-", f"[dim]{_plain(m.method)}[/]")
            continue
        interval = f"{m.low:.4f} to {m.high:.4f}" if m.low is not None and m.high is not None else ""
        table.add_row(name.replace("_", " "), f"{m.value:.4f}", interval)
    return table
