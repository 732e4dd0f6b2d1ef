"""Teams of OpenMP threads: a thread gives its own back, and others keep theirs."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tauon.distributed import release_openmp_threads


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_a_thread_gives_its_team_back_and_computes_again() -> None:
    code = textwrap.dedent("""
        import os, torch
        from tauon.distributed import release_openmp_threads
        torch.set_num_threads(3)
        x = torch.randn(600, 600)
        want = (x @ x).sum() + x.exp().sum()
        with_team = len(os.listdir("/proc/self/task"))
        assert release_openmp_threads()
        without = len(os.listdir("/proc/self/task"))
        assert without <= with_team - 2, (with_team, without)
        again = (x @ x).sum() + x.exp().sum()
        assert torch.equal(want, again)
        assert len(os.listdir("/proc/self/task")) >= without + 2
        print("fine")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    if "AssertionError" in done.stderr and "release_openmp_threads()" in done.stderr:
        pytest.skip("this torch has no libgomp")
    assert done.stdout.strip() == "fine", done.stderr


def test_it_does_no_harm_twice() -> None:
    before = release_openmp_threads()
    assert release_openmp_threads() == before
