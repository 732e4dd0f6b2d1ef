"""Files to serve a model elsewhere: a Dockerfile, manifests for Kubernetes and KServe, a configuration of Ray Serve, the command of vLLM.

They are plain text to read and change; nothing is built or applied. The model is part of the image, so that a pod needs no volume and each
version of the model is an image of its own.

https://kserve.github.io/website (serving.kserve.io/v1beta1), https://docs.ray.io/en/latest/serve/production-guide/config.html,
https://docs.vllm.ai/en/latest/cli/serve.html.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tauon.config import write_yaml
from tauon.errors import DataError
from tauon.launch.k8s import k8s_name, quantity
from tauon.serve.loading import name_of

__all__ = ["Deployment", "Target", "kserve_manifest", "kubernetes_manifests", "write_deployment"]

Target = Literal["docker", "kubernetes", "kserve", "ray", "vllm"]
PORT = 8000
MODEL = "/opt/model"
"""Folder of models in the image."""
USER = 1000
DRAIN = 5
"""Seconds between the decision to stop a pod and its signal: routers learn of it, and the pod still answers."""
GRACE = 45


@dataclass(frozen=True)
class Deployment:
    """Size of a deployment."""

    image: str = ""
    """Container image with the model, made with the Dockerfile. Default: the model's name, `:latest`."""
    namespace: str = "default"
    replicas: tuple[int, int] = (2, 10)
    """Fewest and most pods."""
    cpu: float = 1.0
    """Cores of a pod."""
    memory: int = 2 * 2**30
    """Bytes of a pod."""
    keys_secret: str = ""
    """Secret with an entry `keys`: one API key a line. Empty: no keys are asked for."""


def write_deployment(target: Target, place: Path, out: Path, deployment: Deployment | None = None) -> list[Path]:
    """Write the files for `target` into `out` and return them. A folder that has other files keeps them.

    Args:
        target: `docker`, `kubernetes`, `kserve`, `ray` or `vllm`.
        place: run, checkpoint or bundle; for `vllm` a folder of `tauon export RUN --to huggingface`.
        out: folder, made if need be.
        deployment: image and size.

    Raises:
        DataError: `vllm` for a folder that is not exported.
    """
    size, name = deployment or Deployment(), name_of(place)
    make = {"docker": _docker, "kubernetes": _kubernetes, "kserve": _kserve, "ray": _ray, "vllm": _vllm}[target]
    written = []
    for file, text in make(place, name, size).items():
        path = out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


# ------------------------------------------------------------------------------------------------------------------------- docker


def _docker(place: Path, name: str, size: Deployment) -> dict[str, str]:
    folder = f"{MODEL}/{k8s_name(name)}"
    command = json.dumps(["serve", folder, "--host", "0.0.0.0", "--port", str(PORT)])  # noqa: S104 - within a container
    check = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/readyz', timeout=3)"
    image = size.image or f"{k8s_name(name)}:latest"
    text = f"""# Serves {name} on the CPU.
#
#   docker build -t tauon .                                              in Tauon's repository: the image below
#   docker build -t {image} -f Dockerfile {shlex.quote(str(place))}      here: the model's folder is the build context
#   docker run --rm -p 127.0.0.1:{PORT}:{PORT} --read-only --tmpfs /tmp --cap-drop ALL {image}
#
# API keys: -v "$PWD/keys:/etc/tauon/keys:ro" {image} serve {folder} --host 0.0.0.0 --keys-file /etc/tauon/keys
ARG TAUON_IMAGE=tauon
FROM ${{TAUON_IMAGE}}
COPY --chown=0:0 . {folder}
ENV HOME=/tmp TAUON_CACHE=/tmp/.cache/tauon
EXPOSE {PORT}
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python3", "-c", {json.dumps(check)}]
STOPSIGNAL SIGTERM
CMD {command}
"""
    return {"Dockerfile": text, "Dockerfile.dockerignore": "**/optim*\n**/*.log\n**/explain\n"}


# ------------------------------------------------------------------------------------------------------------------------- kubernetes


def kubernetes_manifests(name: str, size: Deployment) -> list[dict[str, Any]]:
    """Return Deployment, Service, HorizontalPodAutoscaler, PodDisruptionBudget and NetworkPolicy, in the order of application."""
    pod = _pod(name, size)
    fewest, most = size.replicas
    selector = {"matchLabels": {"app.kubernetes.io/name": k8s_name(name)}}
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}
    deployment = _object("apps/v1", "Deployment", name, size, {
        "selector": selector,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": _labels(name)}, "spec": pod | {"topologySpreadConstraints": [spread]}},
    })  # fmt: skip
    service = _object("v1", "Service", name, size, {
        "selector": selector["matchLabels"], "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
    })  # fmt: skip
    target = {"type": "Utilization", "averageUtilization": 70}
    scaler = _object("autoscaling/v2", "HorizontalPodAutoscaler", name, size, {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": k8s_name(name)},
        "minReplicas": fewest, "maxReplicas": most,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
    })  # fmt: skip
    budget = _object("policy/v1", "PodDisruptionBudget", name, size, {"maxUnavailable": 1, "selector": selector})
    network = _object("networking.k8s.io/v1", "NetworkPolicy", name, size, {
        "podSelector": selector, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": PORT, "protocol": "TCP"}]}],  # pods of the namespace
        "egress": [],
    })  # fmt: skip
    return [deployment, service, scaler, budget, network]


def kserve_manifest(name: str, size: Deployment) -> dict[str, Any]:
    """Return an InferenceService with the same container; KServe makes Service, scaling and routes."""
    fewest, most = size.replicas
    pod = _pod(name, size)
    pod["containers"][0]["name"] = "kserve-container"  # the name that KServe expects
    predictor = {"minReplicas": fewest, "maxReplicas": most, "scaleMetric": "cpu", "scaleTarget": 70, **pod}
    return _object("serving.kserve.io/v1beta1", "InferenceService", name, size, {"predictor": predictor})


def _pod(name: str, size: Deployment) -> dict[str, Any]:
    arguments = ["serve", f"{MODEL}/{k8s_name(name)}", "--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104 - within a pod
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}}]
    if size.keys_secret:
        arguments += ["--keys-file", "/etc/tauon/keys"]
        mounts.append({"name": "keys", "mountPath": "/etc/tauon", "readOnly": True})
        volumes.append({"name": "keys", "secret": {"secretName": size.keys_secret, "defaultMode": 0o440}})
    memory = quantity(size.memory)
    environment = {"HOME": "/tmp", "TAUON_CACHE": "/tmp/.cache/tauon", "OMP_NUM_THREADS": str(max(1, math.ceil(size.cpu)))}  # noqa: S108
    container = {
        "name": "server", "image": size.image or f"{k8s_name(name)}:latest", "args": arguments,
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": [{"name": k, "value": v} for k, v in environment.items()],  # torch would start a thread for each core of the node
        "resources": {"requests": {"cpu": f"{size.cpu:g}", "memory": memory}, "limits": {"memory": memory}},
        "startupProbe": _probe("/readyz", 2, 90), "readinessProbe": _probe("/readyz", 5, 2), "livenessProbe": _probe("/healthz", 10, 6),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(DRAIN)]}}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
        "volumeMounts": mounts,
    }  # fmt: skip
    owner = {
        "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    return {
        "automountServiceAccountToken": False, "securityContext": owner, "terminationGracePeriodSeconds": GRACE,
        "containers": [container], "volumes": volumes,
    }  # fmt: skip


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": k8s_name(name), "app.kubernetes.io/managed-by": "tauon"}


def _object(api: str, kind: str, name: str, size: Deployment, spec: dict[str, Any]) -> dict[str, Any]:
    meta = {"name": k8s_name(name), "namespace": size.namespace, "labels": _labels(name)}
    return {"apiVersion": api, "kind": kind, "metadata": meta, "spec": spec}


def _kubernetes(place: Path, name: str, size: Deployment) -> dict[str, str]:
    head = f"# kubectl apply -f deployment.yaml      the image: see the Dockerfile of `tauon serve {place} --write docker --out .`\n"
    return {"deployment.yaml": head + "---\n".join(write_yaml(m) for m in kubernetes_manifests(name, size))}


def _kserve(place: Path, name: str, size: Deployment) -> dict[str, str]:
    head = f"# kubectl apply -f inference-service.yaml      the image: see the Dockerfile of `tauon serve {place} --write docker --out .`\n"
    return {"inference-service.yaml": head + write_yaml(kserve_manifest(name, size))}


# ------------------------------------------------------------------------------------------------------------------------- Ray, vLLM


def _ray(place: Path, name: str, size: Deployment) -> dict[str, str]:
    fewest, most = size.replicas
    arguments = {"place": str(place.resolve()), "fewest": fewest, "most": most, "cpu": size.cpu}
    application = {"name": k8s_name(name), "route_prefix": "/", "import_path": "tauon.serve.ray_app:application", "args": arguments}
    content = {"proxy_location": "EveryNode", "http_options": {"host": "127.0.0.1", "port": PORT}, "applications": [application]}
    return {"serve.yaml": "# serve run serve.yaml      on a cluster: serve deploy serve.yaml\n" + write_yaml(content)}


def _vllm(place: Path, name: str, size: Deployment) -> dict[str, str]:
    folder = next((p for p in (place, place / "export" / "huggingface") if (p / "config.json").is_file()), None)
    if folder is None:
        raise DataError(f"{place} is not in the Hugging Face format. Export it first: tauon export {place} --to huggingface")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    command = ["vllm", "serve", str(folder.resolve()), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(PORT)]
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    command += ["--max-model-len", str(longest)] if longest else []
    kind = str(config.get("dtype") or config.get("torch_dtype") or "")
    command += ["--dtype", kind] if re.fullmatch(r"float32|float16|bfloat16", kind) else []
    return {
        "vllm.sh": "#!/bin/sh\n# vLLM has the same routes: /v1/completions, /v1/chat/completions, /v1/models\nexec "
        + shlex.join(command)
        + "\n"
    }
