"""One small job, and the places that the golden files show it at: shared by the tests of launchers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.config import parse
from tauon.launch import Job, LaunchConfig

HERE = Path(__file__).parent
RECIPE = """\
name: quick_start
seed: 7
data:
  source: {kind: sklearn, name: iris}
"""

PLACES: dict[str, dict[str, Any]] = {
    "slurm-one-node.sbatch": {"kind": "slurm", "workers": 2, "cpus_per_task": 8},
    "slurm-pyxis.sbatch": {
        "kind": "slurm", "workers": 16, "gpus_per_node": 8, "partition": "gpu", "account": "lab", "qos": "high", "time": "30h",
        "cpus_per_task": 64, "memory": "512GiB", "constraint": "a100", "container": "registry/tauon:1",
        "mounts": ["/scratch:/scratch"], "setup": ["module load cuda"], "max_restarts": 9, "grace": "5m", "env": {"NCCL_DEBUG": "WARN", "SAY": "it's $HOME"},
    },
    "slurm-apptainer-seeds-elastic.sbatch": {
        "kind": "slurm", "nodes": 4, "workers_per_node": 2, "min_workers": 4, "seeds": [1, 2, 3], "container": "/images/tauon.sif",
        "container_engine": "apptainer", "requeue": False,
    },
    "k8s-trainjob.yaml": {
        "kind": "k8s", "workers": 16, "gpus_per_node": 8, "image": "registry/tauon:1", "namespace": "lab", "cpu": 32, "memory": "256GiB",
        "shared_memory": "16GiB", "volume": "datasets", "node_selector": {"gpu": "a100"}, "service_account": "trainer", "secrets": ["wandb"],
        "max_restarts": 5, "env": {"PRICE": "$(HOME)"},
    },
    "k8s-jobset.yaml": {"kind": "k8s", "engine": "jobset", "workers": 4, "image": "registry/tauon:1", "volume": "datasets", "mount": "/mnt/d"},
    "k8s-jobset-elastic.yaml": {
        "kind": "k8s", "engine": "jobset", "nodes": 4, "workers_per_node": 2, "min_workers": 4, "image": "registry/tauon:1", "max_restarts": 7,
    },
    "k8s-rayjob.yaml": {
        "kind": "k8s", "engine": "rayjob", "workers": 2, "min_workers": 1, "max_workers": 4, "image": "registry/tauon:1", "cpu": 4, "memory": "8GiB",
        "volume": "datasets",
    },
}  # fmt: skip
"""Golden file to `launch` section."""


def golden(name: str) -> str:
    """What a golden file holds."""
    return (HERE / "golden" / name).read_text(encoding="utf-8")


def shown(section: dict[str, Any], verb: str = "train") -> str:
    """What --dry-run prints, with the parts that depend on the machine made equal."""
    import sys
    from importlib.metadata import version

    job = Job("quick_start", verb, RECIPE, Path("/shared/runs"), options=("--quiet",))
    text = parse(LaunchConfig, section).show(job)
    text = text.replace(f"cd {Path.cwd()}\n", "cd /work\n").replace(f"--container-workdir={Path.cwd()}", "--container-workdir=/work")
    return text.replace(sys.executable, "/opt/python").replace(f"rayVersion: {version('ray')}", "rayVersion: 2.55.1")


if __name__ == "__main__":  # python tests/launch/places.py writes them anew
    for file, section in PLACES.items():
        (HERE / "golden" / file).write_text(shown(section), encoding="utf-8")
