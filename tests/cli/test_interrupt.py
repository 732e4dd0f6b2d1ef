"""Ctrl-C at any moment of the start ends with 130, in the middle of an import, too; Latin-1 and C locales print what they can."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toy import nothing_half_written, text_recipe

pytestmark = pytest.mark.long

MAIN = "from tauon.cli import main; main()"
EARLY = 130  # lines of -X importtime before the command line is there, about: Python itself ends by the signal, a shell calls that 130, too


def stopped_at_import(folder: Path, line: int, number: signal.Signals) -> tuple[int, str, list[str]]:
    """(exit code, what was printed besides, modules that were imported by then) of `tauon train`, stopped at a line of -X importtime."""
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", MAIN, "train", str(folder / "recipe.yaml"), "--root", str(folder / "runs"), "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stdout is not None
        seen: list[str] = []
        rest: list[str] = []
        for text in process.stderr:
            if not text.startswith("import time:"):
                rest.append(text)
                continue
            seen.append(text.split("|")[-1].strip())
            if len(seen) == line:
                process.send_signal(number)
        rest.append(process.stdout.read())
        return process.wait(timeout=60), "".join(rest), seen


def moments(n: int) -> list[int]:
    return [EARLY + 1, *sorted(random.Random(n).sample(range(EARLY + 2, 2400), n - 1))]


def check(folder: Path, line: int, number: signal.Signals) -> None:
    code, printed, seen = stopped_at_import(folder, line, number)
    assert len(seen) >= line, "the command ended before"
    assert code == 130, (code, seen[line - 1], printed)
    assert "Traceback" not in printed and "cannot load module" not in printed
    assert "stopped" in printed or "saved" in printed, printed
    nothing_half_written(folder / "runs")


@pytest.mark.parametrize("line", moments(2))
def test_ctrl_c_during_imports_ends_with_130(tmp_path: Path, line: int) -> None:
    text_recipe(tmp_path, train={"steps": 1_000_000})
    check(tmp_path, line, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", moments(40))
def test_a_signal_at_many_moments_of_the_start_ends_with_130(tmp_path: Path, line: int, number: signal.Signals) -> None:
    text_recipe(tmp_path, train={"steps": 1_000_000})
    check(tmp_path, line, number)
