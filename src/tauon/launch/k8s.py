"""`k8s`: manifests for a Kubernetes cluster, as a Kubeflow TrainJob, a JobSet, or a KubeRay RayJob, applied with kubectl.

The recipe travels in a ConfigMap, so that nothing but the image and the volume need be in the cluster. Restarts are the engine's own:
JobSet's failurePolicy (a TrainJob is made of a JobSet), RayJob's backoffLimit and, inside it, Ray's FailureConfig. Where an API server
answers, it checks the manifests against its schemas first (kubectl apply --dry-run=server); nothing is applied that it refuses.

https://github.com/kubeflow/trainer (trainer.kubeflow.org/v1alpha1), https://github.com/kubernetes-sigs/jobset (jobset.x-k8s.io/v1alpha2),
https://github.com/ray-project/kuberay (ray.io/v1).
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from tauon.config import Bytes, Count, read_yaml, register, write_yaml
from tauon.errors import LaunchError
from tauon.launch.config import TORCHRUN, Cluster, Tell
from tauon.launch.job import Job

__all__ = ["K8s", "k8s_name"]

RECIPE = "/etc/tauon/recipe.yaml"
"""Where a pod sees the recipe."""
PORT = 29400
"""torchrun's usual port of its rendezvous; each job has pods, and so addresses, of its own."""
_DNS = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"


@register("k8s")
class K8s(Cluster):
    """Pods in a Kubernetes cluster, through the engine that is installed there. `nodes` are pods."""

    engine: Literal["trainjob", "jobset", "rayjob"] = "trainjob"
    """What the cluster has installed: Kubeflow Trainer, JobSet, or KubeRay."""
    image: str = Field(min_length=1, max_length=500, pattern=r"^\S+$")
    """Container image with Tauon in it (the Dockerfile makes one)."""
    namespace: str = Field("default", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Namespace of everything that is made."""
    gpus_per_node: Count | None = Field(None, ge=1)
    """GPUs of each pod (nvidia.com/gpu). Left out: none."""
    cpu: float | None = Field(None, gt=0, le=4096)
    """Cores of each pod. Left out: no request."""
    memory: Bytes | None = Field(None, ge=2**20)
    """Memory of each pod (64GiB). Left out: no request."""
    shared_memory: Bytes | None = Field(None, ge=2**20)
    """Size of /dev/shm, through which workers in one pod talk. Left out: 2 GiB for each GPU of a pod that has several, else the 64 MiB of
    the container runtime. It counts as memory of the pod."""
    user: Count = Field(1000, ge=0, le=2**31 - 2)
    """Number of the user and group that the pods run as; the volume is made theirs. The Dockerfile's image has 1000."""
    volume: str | None = Field(None, pattern=_DNS)
    """PersistentVolumeClaim that holds data and runs: without one, what a pod wrote is gone with it. ReadWriteMany for several pods."""
    mount: str = Field("/data", pattern=r"^/[^\s:]*$")
    """Where the pods see the volume; the runs are in `<mount>/runs`."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the machines must have."""
    service_account: str | None = Field(None, pattern=_DNS)
    """Account that the pods run under. Left out: none; they get no token for the API server."""
    read_only: bool = True
    """The pods may write to their volume, /tmp and /dev/shm alone. False for an image that writes elsewhere."""
    secrets: tuple[str, ...] = ()
    """Secrets whose entries become environment variables of the workers."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for i, name in enumerate(self.raw_value("secrets")):
            if not re.fullmatch(_DNS, name):
                yield f"secrets.{i}", f"{name!r} is no name of a Secret: lower case letters, digits, - and dots."
        elastic = any(self.raw_value(k) is not None for k in ("min_workers", "max_workers"))
        if elastic and self.raw_value("engine") == "trainjob":
            yield "engine", "trainjob cannot grow or shrink. Drop min_workers and max_workers, or take engine: jobset or rayjob."
        if (
            self.raw_value("engine") == "jobset"
            and self.raw_value("max_workers") is not None
            and self.raw_value("max_workers") != self.raw_value("workers")
        ):
            yield "max_workers", "a jobset does not grow: it starts `workers`, and goes on with min_workers. Drop max_workers."
        if self.raw_value("volume") is None and "mount" in self.model_fields_set:
            yield "mount", "needs volume. Set it, or drop this."

    def show(self, job: Job) -> str:
        input_kind = ", ".join(extras_of(read_yaml(job.recipe, "recipe"), self.engine)) or "none"
        head = f"# optional libraries that the image needs (docker build --build-arg EXTRAS=...): {input_kind}\n"
        return head + "---\n".join(as_yaml(m) for m in self.manifests(job))

    def start(self, job: Job, on_event: Tell) -> None:
        text = self.show(job)
        if shutil.which("kubectl") is None:
            raise LaunchError("kubectl is not on this machine, so nothing was applied. Install it, or print the manifests with --dry-run.")
        if self.volume is None:
            on_event("warning", message="launch.volume is not set: checkpoints are gone with the pods, and a restart begins at step 0")
        for words in (["--dry-run=server"], []):
            command = ["kubectl", "apply", "--request-timeout=30s", *words, "-f", "-"]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode != 0:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()
                what = "the API server refused the manifests" if words else "kubectl apply failed"
                if any(re.search(r"refused|no such host|timeout|current-context|Unable to connect", line) for line in said):
                    what = "no API server answers (kubectl config current-context says which one is asked)"
                raise LaunchError(f"nothing was started: {what}:\n" + "\n".join(f"  {line}" for line in said[:12]))
        name = k8s_name(job.name)
        label = f"job-name={name}" if self.engine == "rayjob" else f"jobset.sigs.k8s.io/jobset-name={name}"
        here = f"kubectl -n {self.namespace}"
        made = " ".join(f"{m['kind'].lower()}/{name}" for m in reversed(self.manifests(job)))
        on_event("note", message=f"applied. To look: {here} get {made}")
        on_event("note", message=f"logs of all: {here} logs -f -l {label} --prefix --max-log-requests 50")
        on_event("note", message=f"to stop: {here} delete {made}")

    # ------------------------------------------------------------------------------------------ manifests

    def manifests(self, job: Job) -> list[dict[str, Any]]:
        """Plain data of every object, in the order in which they are applied."""
        name = k8s_name(job.name)
        make = {"trainjob": self.train_job, "jobset": self.job_set, "rayjob": self.ray_job}[self.engine]
        recipe = read_yaml(job.recipe, "recipe")
        recipe["launch"] = self.inside()
        return [self.object("v1", "ConfigMap", name, data={"recipe.yaml": write_yaml(recipe)}), *make(job, name)]

    def inside(self) -> dict[str, Any]:
        """The `launch` section of the recipe as the pods get it: workers are started by the engine, or by Ray."""
        if self.engine != "rayjob":
            return {"kind": "here"}
        fewest, nodes, most, each = self.layout()
        words = {"kind": "ray", "address": "auto", "workers": nodes * each, "max_restarts": self.max_restarts}
        words |= {"min_workers": fewest * each} if fewest < nodes else {}
        words |= {"max_workers": most * each} if most > nodes else {}
        words |= {"cpus_per_worker": max(0.01, round(self.cpu / each, 2))} if self.cpu else {}
        words |= {"gpus_per_worker": 1.0} if self.gpus_per_node else {}
        return {**words, "timeout": self.timeout, "grace": self.grace, **({"env": dict(self.env)} if self.env else {})}

    def object(self, api: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
        meta = {"name": name, "namespace": self.namespace, "labels": {"app.kubernetes.io/managed-by": "tauon"}}
        return {"apiVersion": api, "kind": kind, "metadata": meta, **rest}

    def command(self, job: Job, *, rendezvous: list[str], nodes: str, each: int) -> list[str]:
        """The torchrun of a pod."""
        worker = job.command(RECIPE, root=self.root(), python="python3")
        after = worker[1:] if worker[1:2] == ["-m"] else ["--no-python", *worker]
        return [
            "python3",
            "-m",
            "torch.distributed.run",
            *([f"--nnodes={nodes}", f"--nproc-per-node={each}"] if nodes else []),
            *rendezvous,
            *after,
        ]

    def root(self) -> str:
        """Folder of the runs, as a pod sees it."""
        return f"{self.mount.rstrip('/')}/runs" if self.volume else "/tmp/runs"  # noqa: S108

    def pod(self, name: str, container: dict[str, Any], **rest: Any) -> dict[str, Any]:
        """A pod's spec around one container."""
        mounts = [{"name": "recipe", "mountPath": "/etc/tauon", "readOnly": True}]
        volumes: list[dict[str, Any]] = [{"name": "recipe", "configMap": {"name": name}}]
        if self.volume:
            mounts.append({"name": "data", "mountPath": self.mount})
            volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": self.volume}})
        gpus = self.gpus_per_node or 0
        shared = self.shared_memory or (gpus * 2 * 2**30 if gpus > 1 else None)  # NCCL does not start with less than it asks for
        if shared:
            mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
            volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(shared)}})
        if self.read_only and self.mount != "/tmp":  # noqa: S108
            mounts.append({"name": "tmp", "mountPath": "/tmp"})  # noqa: S108
            volumes.append({"name": "tmp", "emptyDir": {}})
        rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": self.read_only}
        whole = {
            "image": self.image, **container, "securityContext": rights, "volumeMounts": mounts, **self.resources(),
            **self.environment_of_pods(),
        }  # fmt: skip
        owner = {
            "runAsNonRoot": self.user > 0, "runAsUser": self.user, "runAsGroup": self.user, "fsGroup": self.user,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        }  # fmt: skip
        spec: dict[str, Any] = {
            "containers": [whole], "volumes": volumes, "securityContext": owner,
            "terminationGracePeriodSeconds": int(self.grace) + 30, **rest,
        }  # fmt: skip
        if self.node_selector:
            spec["nodeSelector"] = dict(self.node_selector)
        if self.service_account:
            spec["serviceAccountName"] = self.service_account
        elif self.engine != "rayjob":  # an elastic Ray cluster gets an account of KubeRay's, whose token its autoscaler needs
            spec["automountServiceAccountToken"] = False
        return spec

    def resources(self) -> dict[str, Any]:
        """What a pod asks for; memory and GPUs are limits too, cores are not, as unused ones do no harm to others."""
        ask: dict[str, Any] = {}
        if self.cpu:
            ask["cpu"] = f"{self.cpu:g}"
        limits: dict[str, Any] = {}
        if self.memory:
            ask["memory"] = limits["memory"] = quantity(self.memory)
        if self.gpus_per_node:
            ask["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(self.gpus_per_node)
        return {"resources": {"requests": ask, **({"limits": limits} if limits else {})}} if ask else {}

    def environment_of_pods(self) -> dict[str, Any]:
        agent = {} if self.engine == "rayjob" else {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(self.grace)), **TORCHRUN}
        kept = {"TAUON_LEDGER": f"{self.mount.rstrip('/')}/ledger"} if self.volume else {}  # a pod's home is gone with it
        home = {"HOME": "/tmp", **({} if self.volume else {"TAUON_CACHE": "/tmp/.cache/tauon"})} if self.read_only else {}  # noqa: S108
        values = {**agent, **kept, **home, **self.environment()}
        found: dict[str, Any] = {
            "env": [{"name": k, "value": v.replace("$(", "$$(")} for k, v in values.items()]
        }  # $(X) is expanded by Kubernetes
        if self.secrets:
            found["envFrom"] = [{"secretRef": {"name": s}} for s in self.secrets]
        return found

    def train_job(self, job: Job, name: str) -> list[dict[str, Any]]:
        """A runtime of its own and a TrainJob that uses it: fields for volumes in the TrainJob itself changed from version to version."""
        _, nodes, _, each = self.layout()
        # The trainer tells torchrun nodes, processes, rank and address through PET_* variables.
        command = self.command(job, rendezvous=["--tee=3"], nodes="", each=each)
        pod = self.pod(name, {"name": "node", "command": command}, restartPolicy="Never")
        work = {"template": {"spec": pod}, "backoffLimit": 0}
        label = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
        template = {
            "failurePolicy": {"maxRestarts": self.max_restarts},
            "replicatedJobs": [{"name": "node", "template": {"metadata": {"labels": label}, "spec": work}}],
        }
        runtime = self.object(
            "trainer.kubeflow.org/v1alpha1", "TrainingRuntime", name,
            spec={"mlPolicy": {"numNodes": nodes, "torch": {}}, "template": {"spec": template}},
        )  # fmt: skip
        runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] = "torch"
        ref = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name}
        trainer = {"numNodes": nodes, "numProcPerNode": each}
        return [runtime, self.object("trainer.kubeflow.org/v1alpha1", "TrainJob", name, spec={"runtimeRef": ref, "trainer": trainer})]

    def job_set(self, job: Job, name: str) -> list[dict[str, Any]]:
        """One indexed Job. Without `min_workers` a dead pod starts all again; with it the others go on and the pod comes back."""
        fewest, nodes, _, each = self.layout()
        elastic = fewest < nodes
        head = f"{name}-workers-0-0.{name}"  # JobSet's names: <set>-<job>-<index>-<pod>.<subdomain>
        meeting = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={head}:{PORT}",
            f"--rdzv-id={name}",
            f"--max-restarts={self.max_restarts}",
            "--tee=3",
        ]
        command = self.command(job, rendezvous=meeting, nodes=f"{fewest}:{nodes}" if elastic else str(nodes), each=each)
        ports = [{"containerPort": PORT}]
        pod = self.pod(name, {"name": "worker", "command": command, "ports": ports}, restartPolicy="OnFailure" if elastic else "Never")
        work = {
            "parallelism": nodes, "completions": nodes, "completionMode": "Indexed",
            "backoffLimit": self.max_restarts if elastic else 0, "template": {"spec": pod},
        }  # fmt: skip
        spec = {
            "failurePolicy": {"maxRestarts": self.max_restarts},
            "network": {"enableDNSHostnames": True, "subdomain": name, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": work}}],
        }
        return [self.object("jobset.x-k8s.io/v1alpha2", "JobSet", name, spec=spec)]

    def ray_job(self, job: Job, name: str) -> list[dict[str, Any]]:
        """A Ray cluster for this run alone; the entry point runs on its head and starts workers by `--on ray`."""
        from importlib.metadata import PackageNotFoundError, version

        fewest, nodes, most, _ = self.layout()
        try:
            ray = {"rayVersion": version("ray")}
        except PackageNotFoundError:
            ray = {}  # what the image has
        head = self.pod(name, {"name": "ray-head"})
        head["containers"][0].pop("resources", None)  # the head trains nothing
        group = {
            "groupName": "workers", "replicas": nodes, "minReplicas": fewest, "maxReplicas": most, "rayStartParams": {},
            "template": {"spec": self.pod(name, {"name": "ray-worker"})},
        }  # fmt: skip
        cluster = {
            **ray,
            **({"enableInTreeAutoscaling": True} if most > fewest else {}),
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": {"spec": head}},
            "workerGroupSpecs": [group],
        }
        entry = shlex.join(job.command(RECIPE, root=self.root(), python="python3"))
        spec = {"entrypoint": entry, "backoffLimit": self.max_restarts, "shutdownAfterJobFinishes": True, "rayClusterSpec": cluster}
        return [self.object("ray.io/v1", "RayJob", name, spec=spec)]


EXTRAS = {"sklearn": "sklearn", "folder": "images", "adamw8bit": "torchao", "parameter-server": "ray"}
"""Kinds of parts that need an optional library, and the extra that brings it; trackers are called as their extras are."""


def extras_of(recipe: dict[str, Any], engine: str) -> list[str]:
    """Extras of Tauon that an image needs for a recipe."""
    kinds: set[str] = set()
    stack: list[Any] = [{k: v for k, v in recipe.items() if k != "launch"}]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            kinds |= {node["kind"]} if isinstance(node.get("kind"), str) else set()
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    found = {extra for kind, extra in EXTRAS.items() if kind in kinds} | ({"rayjob"} if engine == "rayjob" else set())
    found |= {t["kind"] for t in recipe.get("track") or () if t.get("kind") in ("tensorboard", "mlflow", "wandb")}
    if recipe.get("privacy"):
        found.add("privacy")
    if ((recipe.get("data") or {}).get("chat") or {}).get("jinja") is not None:
        found.add("chat")
    return sorted(found - ({"ray"} if "rayjob" in found else set()))


def as_yaml(manifest: dict[str, Any]) -> str:
    """A manifest as YAML, the recipe in a ConfigMap as text that can be read."""
    if manifest["kind"] != "ConfigMap":
        return write_yaml(manifest)
    head = write_yaml({k: v for k, v in manifest.items() if k != "data"})
    files = (f"  {name}: |\n" + "".join(f"    {line}\n" for line in text.splitlines()) for name, text in manifest["data"].items())
    return head + "data:\n" + "".join(files)


def k8s_name(name: str) -> str:
    """A run's name as Kubernetes takes it: at most 40 of lower case letters, digits and -; what had to change is told apart by a hash.

    >>> k8s_name("quickstart"), k8s_name("My_run.2")
    ('quickstart', 'my-run-2-3209c5')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"run-{plain}"
    if plain == name and len(plain) <= 40:
        return plain
    return f"{plain[:33].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def quantity(size: int) -> str:
    """Bytes as Kubernetes writes them.

    >>> quantity(64 * 2**30), quantity(10**9)
    ('64Gi', '1000000000')
    """
    for unit, power in (("Gi", 30), ("Mi", 20)):
        if size % 2**power == 0:
            return f"{size >> power}{unit}"
    return str(size)
