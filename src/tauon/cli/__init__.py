"""The command line: `tauon VERB RECIPE [a.b=c ...]`, one thin file a verb. Imports a verb only when it is called."""

from tauon.cli.main import main

__all__ = ["main"]
