"""A process that used OpenVINO survives a signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tauon.runtimes.signal_stack import signal_stack, signal_stack_kept

pytestmark = pytest.mark.long

PROGRAM = """
import faulthandler, gc, os, signal, sys, threading
from pathlib import Path
from families import traced
from tauon.runtimes import FORMATS
from tauon.runtimes.signal_stack import signal_stack

faulthandler.enable()  # as pytest does: it has a signal stack of its own
before = signal_stack()
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
program, folder = traced("mlp")[2], Path(sys.argv[1])
held = [FORMATS["openvino"].write(program, folder) and FORMATS["openvino"].load(folder, program.signature)]
assert signal_stack() == before, "changed"
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
print(heard)
"""


def test_a_process_that_used_openvino_survives_a_signal(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout) == (0, "['SIGTERM']\n"), done.stderr[-2000:]


def test_the_signal_stack_is_kept_after_an_error_too() -> None:
    before = signal_stack()
    with pytest.raises(KeyError), signal_stack_kept():
        raise KeyError
    assert signal_stack() == before
