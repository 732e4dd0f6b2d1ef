"""`python -m tauon`: the command line. What launchers start as a worker, which first takes its place (`launch/worker.py`)."""

import os

__all__: list[str] = []

if __name__ == "__main__":
    if "RANK" in os.environ:
        from tauon.launch.worker import enter

        enter()
    from tauon.cli import main

    main()
