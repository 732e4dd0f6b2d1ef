"""Files for Docker, Kubernetes, KServe, Ray Serve and vLLM: checked by the schemas that they are read with, and run where that is possible here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import worlds
import yaml
from click.testing import CliRunner

from tauon.cli.serve import serve_command
from tauon.serve.deploy import Deployment, kserve_manifest, kubernetes_manifests


def written(tmp_path: Path, target: str, place: Path, *more: str) -> dict[str, str]:
    done = CliRunner().invoke(serve_command, [str(place), "--write", target, "--out", str(tmp_path / "out"), *more])
    assert done.exit_code == 0, done.output
    return {p.name: p.read_text() for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("size", [Deployment(), Deployment("registry/x:1", "ml", (1, 1), 0.5, 512 * 2**20, "keys")], ids=["usual", "small"])
def test_manifests_are_valid_for_kubernetes(size: Deployment) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    manifests = kubernetes_manifests("My model.v2", size)
    assert [m["kind"] for m in manifests] == ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"]
    for manifest in manifests:
        kubernetes.validate(manifest, "1.34", strict=True)
    pod = manifests[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert manifests[0]["spec"]["selector"]["matchLabels"].items() <= manifests[0]["spec"]["template"]["metadata"]["labels"].items()
    assert manifests[1]["spec"]["selector"] == manifests[0]["spec"]["selector"]["matchLabels"]
    assert manifests[2]["spec"]["scaleTargetRef"]["name"] == manifests[0]["metadata"]["name"]
    assert ("--keys-file" in container["args"]) == bool(size.keys_secret)
    assert pod["terminationGracePeriodSeconds"] > 5 + 30, "the pause before the signal, and the time of running requests"


def test_an_inference_service_is_a_pod_and_what_kserve_adds() -> None:
    """KServe's predictor is a PodSpec and ComponentExtensionSpec; the first is checked by Kubernetes' schema, the second by hand."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    service = kserve_manifest("patients", Deployment())
    predictor = dict(service["spec"]["predictor"])
    added = {name: predictor.pop(name) for name in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")}
    assert added["scaleMetric"] in ("cpu", "memory", "concurrency", "rps") and all(
        isinstance(added[n], int) for n in added if n != "scaleMetric"
    )
    assert predictor["containers"][0]["name"] == "kserve-container" and service["apiVersion"] == "serving.kserve.io/v1beta1"
    pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": predictor}
    kubernetes.validate(pod, "1.34", strict=True)


def test_the_command_writes_each_kind_of_file(tmp_path: Path) -> None:
    run = worlds.run_of("table")
    docker = written(tmp_path / "docker", "docker", run)["Dockerfile"]
    steps = [line.split()[0] for line in docker.splitlines() if line and not line.startswith("#")]
    assert steps == ["ARG", "FROM", "COPY", "ENV", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "CMD"]
    command = json.loads(next(line for line in docker.splitlines() if line.startswith("CMD")).removeprefix("CMD "))
    assert command[:2] == ["serve", "/opt/model/table"]
    manifests = list(yaml.safe_load_all(written(tmp_path / "k8s", "kubernetes", run, "--image", "registry/table:3")["deployment.yaml"]))
    assert len(manifests) == 5 and manifests[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/table:3"
    assert yaml.safe_load(written(tmp_path / "kserve", "kserve", run)["inference-service.yaml"])["kind"] == "InferenceService"
    ray = yaml.safe_load(written(tmp_path / "ray", "ray", run)["serve.yaml"])
    assert ray["applications"][0]["args"]["place"] == str(run.resolve())
    refused = CliRunner().invoke(serve_command, [str(run), "--write", "vllm", "--out", str(tmp_path / "v")])
    assert "Export it first" in str(refused.exception)


def test_the_command_of_vllm_follows_the_exported_folder(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "dtype": "bfloat16"}))
    script = written(tmp_path, "vllm", folder)["vllm.sh"]
    assert f"vllm serve {folder.resolve()} --served-model-name hf" in script and "--max-model-len 512 --dtype bfloat16" in script


RAY = """
import sys, time, json, urllib.request, logging
import ray
from ray import serve
from tauon.serve.ray_app import application
ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, _temp_dir=sys.argv[2])
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[3])})
serve.run(application({"place": sys.argv[1], "cpu": 1}), name="table", route_prefix="/")
body = json.dumps([{"age": 50, "town": "Ulm"}]).encode()
request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[3]}/predict", body, {"content-type": "application/json"})
print("ANSWER", urllib.request.urlopen(request, timeout=60).read().decode(), flush=True)
print("READY", urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[3]}/readyz", timeout=60).read().decode(), flush=True)
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_ray_serve_answers_as_the_server_does(serve: Any) -> None:
    pytest.importorskip("ray.serve")
    import socket
    from tempfile import TemporaryDirectory

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # a short path: Ray's sockets are in it
        done = subprocess.run(
            [sys.executable, "-c", RAY, str(worlds.run_of("table")), folder, str(port)], capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.split("ANSWER ")[1].splitlines()[0])
    assert answer == serve("table").post("/predict", json=[{"age": 50, "town": "Ulm"}]).json()
