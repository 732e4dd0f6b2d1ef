"""`k8s`: manifests for a Kubernetes cluster, as a Kubeflow TrainJob, a JobSet, or a KubeRay RayJob, applied with kubectl.

The recipe is in a ConfigMap, so that the cluster needs only the image and the volume. Restarts are done by the engine:
JobSet's failurePolicy (a TrainJob is made of a JobSet), RayJob's backoffLimit and, inside it, Ray's FailureConfig. The API
server checks the manifests against its schemas first (kubectl apply --dry-run=server); nothing is applied if it refuses.

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
from tauon.launch.config import TORCHRUN, Cluster, EventCallback
from tauon.launch.job import Job

__all__ = ["K8s", "k8s_name"]

RECIPE = "/etc/tauon/recipe.yaml"
"""Path of the recipe in a pod."""
PORT = 29400
"""torchrun's default rendezvous port; each job has its own pods, and so its own addresses."""
_DNS = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"


@register("k8s")
class K8s(Cluster):
    """Pods in a Kubernetes cluster, through the engine that is installed there. `nodes` are pods."""

    engine: Literal["trainjob", "jobset", "rayjob"] = "trainjob"
    """What the cluster has installed: Kubeflow Trainer, JobSet, or KubeRay."""
    image: str = Field(min_length=1, max_length=500, pattern=r"^\S+$")
    """Container image with Tauon (the Dockerfile builds one)."""
    namespace: str = Field("default", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Namespace of all objects."""
    gpus_per_node: Count | None = Field(None, ge=1)
    """GPUs of each pod (nvidia.com/gpu). Default: none."""
    cpu: float | None = Field(None, gt=0, le=4096)
    """Cores of each pod. Default: no request."""
    memory: Bytes | None = Field(None, ge=2**20)
    """Memory of each pod (64GiB). Default: no request."""
    shared_memory: Bytes | None = Field(None, ge=2**20)
    """Size of /dev/shm, which workers in one pod use for communication. Default: 2 GiB per GPU of a pod with several, otherwise the 64 MiB
    of the container runtime. It counts as memory of the pod."""
    user: Count = Field(1000, ge=0, le=2**31 - 2)
    """Id of the user and group of the pods, who also own the volume. The Dockerfile's image has 1000."""
    volume: str | None = Field(None, pattern=_DNS)
    """PersistentVolumeClaim for data and runs: without one, files of a pod are deleted with it. ReadWriteMany for several pods."""
    mount: str = Field("/data", pattern=r"^/[^\s:]*$")
    """Mount path of the volume; the runs are in `<mount>/runs`."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Required labels of the nodes."""
    service_account: str | None = Field(None, pattern=_DNS)
    """Service account of the pods. Default: none, without a token for the API server."""
    read_only: bool = True
    """Pods can write only to their volume, /tmp and /dev/shm. Set false for an image that writes elsewhere."""
    secrets: tuple[str, ...] = ()
    """Secrets whose entries become environment variables of the workers."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for i, name in enumerate(self.raw_value("secrets")):
            if not re.fullmatch(_DNS, name):
                yield f"secrets.{i}", f"{name!r} is not a valid Secret name: use lower case letters, digits, - and dots."
        elastic = any(self.raw_value(k) is not None for k in ("min_workers", "max_workers"))
        if elastic and self.raw_value("engine") == "trainjob":
            yield "engine", "trainjob has a fixed size. Remove min_workers and max_workers, or set engine=jobset or engine=rayjob."
        if (
            self.raw_value("engine") == "jobset"
            and self.raw_value("max_workers") is not None
            and self.raw_value("max_workers") != self.raw_value("workers")
        ):
            yield "max_workers", "is not supported by a jobset, which starts `workers` and continues with at least min_workers. Remove it."
        if self.raw_value("volume") is None and "mount" in self.model_fields_set:
            yield "mount", "needs launch.volume. Set it, or remove mount."

    def show(self, job: Job) -> str:
        input_kind = ", ".join(extras_of(read_yaml(job.recipe, "recipe"), self.engine)) or "none"
        head = f"# optional libraries that the image needs (docker build --build-arg EXTRAS=...): {input_kind}\n"
        return head + "---\n".join(as_yaml(m) for m in self.manifests(job))

    def start(self, job: Job, on_event: EventCallback) -> None:
        text = self.show(job)
        if shutil.which("kubectl") is None:
            raise LaunchError(
                "kubectl is not installed on this machine, so nothing was applied. Install it, or print the manifests with --dry-run."
            )
        if self.volume is None:
            on_event("warning", message="launch.volume is not set: checkpoints are deleted with the pods, and a restart begins at step 0")
        for words in (["--dry-run=server"], []):
            command = ["kubectl", "apply", "--request-timeout=30s", *words, "-f", "-"]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode != 0:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()
                what = "the API server refused the manifests" if words else "kubectl apply failed"
                if any(re.search(r"refused|no such host|timeout|current-context|Unable to connect", line) for line in said):
                    what = "no API server answers (kubectl config current-context shows which one is used)"
                raise LaunchError(f"nothing was started: {what}:\n" + "\n".join(f"  {line}" for line in said[:12]))
        name = k8s_name(job.name)
        label = f"job-name={name}" if self.engine == "rayjob" else f"jobset.sigs.k8s.io/jobset-name={name}"
        here = f"kubectl -n {self.namespace}"
        made = " ".join(f"{m['kind'].lower()}/{name}" for m in reversed(self.manifests(job)))
        on_event("note", message=f"applied. Status: {here} get {made}")
        on_event("note", message=f"logs: {here} logs -f -l {label} --prefix --max-log-requests 50")
        on_event("note", message=f"to stop: {here} delete {made}")

    # ------------------------------------------------------------------------------------------ manifests

    def manifests(self, job: Job) -> list[dict[str, Any]]:
        """Manifests of all objects as plain data, in the order of application."""
        name = k8s_name(job.name)
        make = {"trainjob": self.train_job, "jobset": self.job_set, "rayjob": self.ray_job}[self.engine]
        recipe = read_yaml(job.recipe, "recipe")
        recipe["launch"] = self.inside()
        return [self.object("v1", "ConfigMap", name, data={"recipe.yaml": write_yaml(recipe)}), *make(job, name)]

    def inside(self) -> dict[str, Any]:
        """The recipe's `launch` section for the pods: workers are started by the engine, or by Ray."""
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
        """The torchrun command of a pod."""
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
        """Folder of the runs in a pod."""
        return f"{self.mount.rstrip('/')}/runs" if self.volume else "/tmp/runs"  # noqa: S108

    def pod(self, name: str, container: dict[str, Any], **rest: Any) -> dict[str, Any]:
        """Pod spec with one container."""
        mounts = [{"name": "recipe", "mountPath": "/etc/tauon", "readOnly": True}]
        volumes: list[dict[str, Any]] = [{"name": "recipe", "configMap": {"name": name}}]
        if self.volume:
            mounts.append({"name": "data", "mountPath": self.mount})
            volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": self.volume}})
        gpus = self.gpus_per_node or 0
        shared = self.shared_memory or (gpus * 2 * 2**30 if gpus > 1 else None)  # NCCL does not start with less
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
        elif self.engine != "rayjob":  # an elastic Ray cluster gets KubeRay's account, whose token its autoscaler needs
            spec["automountServiceAccountToken"] = False
        return spec

    def resources(self) -> dict[str, Any]:
        """Resource requests of a pod; memory and GPUs are also limits, cores are not, so that idle cores can be used."""
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
        kept = {"TAUON_LEDGER": f"{self.mount.rstrip('/')}/ledger"} if self.volume else {}  # a pod's home is deleted with it
        home = {"HOME": "/tmp", **({} if self.volume else {"TAUON_CACHE": "/tmp/.cache/tauon"})} if self.read_only else {}  # noqa: S108
        values = {**agent, **kept, **home, **self.environment()}
        found: dict[str, Any] = {
            "env": [{"name": k, "value": v.replace("$(", "$$(")} for k, v in values.items()]
        }  # $(X) is expanded by Kubernetes
        if self.secrets:
            found["envFrom"] = [{"secretRef": {"name": s}} for s in self.secrets]
        return found

    def train_job(self, job: Job, name: str) -> list[dict[str, Any]]:
        """A TrainingRuntime and a TrainJob that uses it: the volume fields of the TrainJob itself differ between versions."""
        _, nodes, _, each = self.layout()
        # The trainer sets nodes, processes, rank and address for torchrun with PET_* variables.
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
        """One indexed Job. Without `min_workers` a failed pod restarts all; with it the others continue and the pod is replaced."""
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
        """A Ray cluster for this run; the entry point runs on its head and starts workers with `--on ray`."""
        from importlib.metadata import PackageNotFoundError, version

        fewest, nodes, most, _ = self.layout()
        try:
            ray = {"rayVersion": version("ray")}
        except PackageNotFoundError:
            ray = {}  # the version in the image
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
"""Kinds that need an optional library, and its extra; trackers have the same name as their extra."""


def extras_of(recipe: dict[str, Any], engine: str) -> list[str]:
    """Return the extras of Tauon that an image needs for a recipe."""
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
    """Return a manifest as YAML, with the recipe in a ConfigMap as readable text."""
    if manifest["kind"] != "ConfigMap":
        return write_yaml(manifest)
    head = write_yaml({k: v for k, v in manifest.items() if k != "data"})
    files = (f"  {name}: |\n" + "".join(f"    {line}\n" for line in text.splitlines()) for name, text in manifest["data"].items())
    return head + "data:\n" + "".join(files)


def k8s_name(name: str) -> str:
    """Return a valid Kubernetes name for a run: at most 40 lower case letters, digits and -; changed names get a hash to stay unique.

    >>> k8s_name("quickstart"), k8s_name("My_run.2")
    ('quickstart', 'my-run-2-3209c5')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"run-{plain}"
    if plain == name and len(plain) <= 40:
        return plain
    return f"{plain[:33].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def quantity(size: int) -> str:
    """Return a size in bytes in Kubernetes' notation.

    >>> quantity(64 * 2**30), quantity(10**9)
    ('64Gi', '1000000000')
    """
    for unit, power in (("Gi", 30), ("Mi", 20)):
        if size % 2**power == 0:
            return f"{size >> power}{unit}"
    return str(size)
