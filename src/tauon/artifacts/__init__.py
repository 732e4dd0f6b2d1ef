"""Files of a run: its folder, its checkpoints, and atomic writes. torch is imported only when it is used."""

from tauon.artifacts.checkpoint import WEIGHTS, Checkpoint, Groups, latest_checkpoint, load_checkpoint, save_checkpoint, steps_in
from tauon.artifacts.environment import code_fingerprint, environment
from tauon.artifacts.files import (
    atomic_write,
    erase,
    folder_atomically,
    read_json,
    remove_folder,
    remove_leftovers,
    sha256_file,
    write_json,
)
from tauon.artifacts.find import find_checkpoint, run_of_compressed
from tauon.artifacts.run import RUN_FORMAT, RunFolder, list_runs
from tauon.artifacts.writer import CheckpointWriter

__all__ = [
    "RUN_FORMAT",
    "WEIGHTS",
    "Checkpoint",
    "CheckpointWriter",
    "Groups",
    "RunFolder",
    "atomic_write",
    "code_fingerprint",
    "environment",
    "erase",
    "find_checkpoint",
    "folder_atomically",
    "latest_checkpoint",
    "list_runs",
    "load_checkpoint",
    "read_json",
    "remove_folder",
    "remove_leftovers",
    "run_of_compressed",
    "save_checkpoint",
    "sha256_file",
    "steps_in",
    "write_json",
]
