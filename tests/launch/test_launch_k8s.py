"""Manifests: golden files, the published definitions, names, and what kubectl answers."""

from __future__ import annotations

import copy
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from places import HERE, PLACES, RECIPE, golden, shown

from tauon.config import parse, read_yaml
from tauon.errors import LaunchError
from tauon.launch import Job, LaunchConfig, launch
from tauon.launch.k8s import extras_of, k8s_name
from tauon.recipe import load_recipe, shipped_recipes, to_yaml

MANIFESTS = [name for name in PLACES if name.endswith(".yaml")]
SCHEMA = json.loads((HERE / "crds" / "kubernetes.json").read_text())


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(golden(name)))


def validate(manifest: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**SCHEMA["$defs"][manifest["kind"]], "$defs": SCHEMA["$defs"]}).validate(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_the_golden_ones(name: str) -> None:
    """After a change that is meant: python tests/launch/places.py, and read the difference."""
    assert shown(PLACES[name]) == golden(name)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_our_schemas(name: str) -> None:
    for manifest in objects(name):
        validate(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_schemas_refuse_a_changed_manifest(name: str) -> None:
    """Else the test above could pass on anything."""
    for change in ("misspelt", "type", "missing"):
        manifest = copy.deepcopy(objects(name)[-1])
        spec = manifest["spec"]
        if change == "misspelt":
            spec["replicas_"] = 1
        elif change == "type":
            key = next(iter(spec))
            spec[key] = [spec[key]]
        else:
            del manifest["metadata"]["name"]
        with pytest.raises(jsonschema.ValidationError):
            validate(manifest)


PUBLISHED = {"TrainJob": "TrainerV1alpha1TrainJob", "TrainingRuntime": "TrainerV1alpha1TrainingRuntime", "JobSet": "JobsetV1alpha2JobSet"}
"""Kind -> the class of kubeflow-trainer-api, which is generated from the published OpenAPI of Kubeflow Trainer and JobSet. No package
publishes KubeRay's: of a RayJob only the pods are validated here; its own fields are in crds/kubernetes.json, written by hand."""


def validate_published(manifest: dict[str, Any]) -> None:
    """Raises for a field that the published definitions do not have, or that has another type there: pods, jobs and ConfigMaps by
    Kubernetes' own JSON schemas (strict: an unknown field is refused), the rest by the Python models of the custom resources.
    """
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (pip install 'tauon[dev]')")
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed (pip install 'tauon[dev]')")
    kind = manifest["kind"]
    core = [manifest] if kind == "ConfigMap" else []
    core += [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job} for job in templates(manifest, "replicatedJobs")]
    core += [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec} for spec in pods(yaml.safe_dump(manifest))]
    for each in core:
        kubernetes.validate(each, "1.35", strict=True)
    if kind in PUBLISHED:
        there = getattr(models, PUBLISHED[kind]).from_dict(copy.deepcopy(manifest)).to_dict()
        unknown = lost(manifest, there)
        if unknown:
            raise ValueError(f"unknown fields {unknown}")


def templates(node: Any, key: str) -> list[dict[str, Any]]:
    """The `template` of each entry of every list called `key`."""
    if isinstance(node, list):
        return [t for x in node for t in templates(x, key)]
    if not isinstance(node, dict):
        return []
    return [x["template"] for x in node.get(key, [])] + [t for k, x in node.items() if k != key for t in templates(x, key)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_the_published_definitions(name: str) -> None:
    for manifest in objects(name):
        validate_published(manifest)


@pytest.mark.parametrize(
    "change", ["unknown field of the resource", "type of a field of the resource", "unknown field of a pod", "type in a pod"]
)
@pytest.mark.parametrize("name", [n for n in MANIFESTS if "rayjob" not in n])
def test_the_published_definitions_refuse_a_changed_manifest(name: str, change: str) -> None:
    """Else the test above could pass on anything."""
    manifest = next(m for m in objects(name) if m["kind"] in ("JobSet", "TrainingRuntime"))
    (job,) = (manifest["spec"] if manifest["kind"] == "JobSet" else manifest["spec"]["template"]["spec"])["replicatedJobs"]
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    if change == "unknown field of the resource":
        job["replica"] = 1
    elif change == "type of a field of the resource":
        job["replicas"] = "one"
    elif change == "unknown field of a pod":
        container["volumesMounts"] = []
    else:
        container["command"] = "python3"
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        validate_published(manifest)


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Keys of ours that are not in theirs, or have another value; what theirs adds are defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [x for k, v in ours.items() for x in (lost(v, theirs[k], f"{path}.{k}") if k in theirs else [f"{path}.{k}"])]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [x for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for x in lost(a, b, f"{path}.{i}")]
    return [] if ours == theirs else [path]


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_recipe_travels_in_the_config_map_and_workers_are_not_launched_again(name: str) -> None:
    config, *_, last = objects(name)
    recipe = yaml.safe_load(config["data"]["recipe.yaml"])
    assert recipe["seed"] == 7 and recipe["data"] == {"source": {"kind": "sklearn", "name": "iris"}}
    assert recipe["launch"]["kind"] == ("ray" if last["kind"] == "RayJob" else "here")
    parse(LaunchConfig, recipe["launch"])


def test_restarts_are_the_engines_own() -> None:
    runtime = objects("k8s-trainjob.yaml")[1]
    assert runtime["spec"]["template"]["spec"]["failurePolicy"] == {"maxRestarts": 5}
    assert objects("k8s-jobset.yaml")[1]["spec"]["failurePolicy"] == {"maxRestarts": 3}
    ray = objects("k8s-rayjob.yaml")
    assert ray[1]["spec"]["backoffLimit"] == 3 and yaml.safe_load(ray[0]["data"]["recipe.yaml"])["launch"]["max_restarts"] == 3


@pytest.mark.parametrize("name", [n for n in MANIFESTS if "rayjob" not in n])
def test_torchrun_takes_the_command_of_the_pods(name: str) -> None:
    from torch.distributed.run import get_args_parser

    manifest = next(m for m in objects(name) if m["kind"] in ("JobSet", "TrainingRuntime"))
    spec = manifest["spec"] if manifest["kind"] == "JobSet" else manifest["spec"]["template"]["spec"]
    command = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    args = get_args_parser().parse_args(command[3:])
    assert (args.module, args.training_script, args.training_script_args[:2]) == (True, "tauon", ["train", "/etc/tauon/recipe.yaml"])


def test_the_address_of_the_first_pod_is_made_as_jobset_names_it() -> None:
    jobset = objects("k8s-jobset-elastic.yaml")[1]
    name, job = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"][0]["name"]
    command = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert f"--rdzv-endpoint={name}-{job}-0-0.{jobset['spec']['network']['subdomain']}:29400" in command
    assert "--nnodes=2:4" in command


def test_kubernetes_does_not_expand_what_the_user_wrote() -> None:
    spec = objects("k8s-trainjob.yaml")[1]["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert {"name": "PRICE", "value": "$$(HOME)"} in spec["containers"][0]["env"]


def test_names_are_valid_short_and_apart() -> None:
    names = ["a", "A", "a_b", "a-b", "a.b", "7", "x" * 100, "x" * 99 + "y", "run--", "quickstart"]
    made = [k8s_name(n) for n in names]
    assert len(set(made)) == len(names) and k8s_name("quickstart") == "quickstart"
    for n in made:
        jsonschema.validate(n, SCHEMA["$defs"]["label"])
        assert len(n) <= 40  # JobSet adds its own parts, up to 63 in all


# ---------------------------------------------------------------------------------------------- applying


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that notes how it was called; `answer` in its folder is what it says on --dry-run=server, and makes it fail."""
    (tmp_path / "kubectl").write_text(
        f"""#!{sys.executable}
import pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls.txt", "a") as calls: calls.write(" ".join(sys.argv[1:]) + "\\n")
(here / "stdin.yaml").write_text(sys.stdin.read())
if (here / "answer").exists():
    sys.stderr.write((here / "answer").read_text()); sys.exit(1)
"""
    )
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def apply(folder: Path) -> list[str]:
    told: list[str] = []
    section = {"kind": "k8s", "image": "i", "volume": "v", "workers": 2}
    launch(parse(LaunchConfig, section), Job("toy", "train", RECIPE, folder), on_event=lambda _kind, message: told.append(message))
    return told


def test_the_server_checks_first_and_then_it_is_applied(kubectl: Path) -> None:
    told = "\n".join(apply(kubectl))
    first, second = (kubectl / "calls.txt").read_text().splitlines()
    assert "--dry-run=server" in first and "--dry-run" not in second
    assert [m["kind"] for m in yaml.safe_load_all((kubectl / "stdin.yaml").read_text())] == ["ConfigMap", "TrainingRuntime", "TrainJob"]
    assert "kubectl -n default logs" in told and "delete trainjob/toy trainingruntime/toy configmap/toy" in told


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('Error: strict decoding error: unknown field "spec.trainer.numNode"', "the API server refused the manifests"),
        ("The connection to the server localhost:8080 was refused", "no API server answers"),
        ('error: resource mapping not found for name: "toy": no matches for kind "TrainJob"', 'no matches for kind "TrainJob"'),
    ],
)
def test_nothing_is_applied_that_the_server_refuses(kubectl: Path, answer: str, says: str) -> None:
    (kubectl / "answer").write_text(answer)
    with pytest.raises(LaunchError, match="nothing was started") as err:
        apply(kubectl)
    assert says in str(err.value) and answer in str(err.value)
    assert len((kubectl / "calls.txt").read_text().splitlines()) == 1


def test_without_kubectl_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="--dry-run"):
        apply(tmp_path)


def test_pods_without_a_volume_are_warned_of(kubectl: Path) -> None:
    told: list[tuple[str, str]] = []
    launch(
        parse(LaunchConfig, {"kind": "k8s", "image": "i"}),
        Job("toy", "train", RECIPE, kubectl),
        on_event=lambda kind, message: told.append((kind, message)),
    )
    assert told[0][0] == "warning" and "launch.volume" in told[0][1]


# ---------------------------------------------------------------------------------------------- what the image and the pods need


def pods(manifests: str) -> list[dict[str, Any]]:
    """The specs of all pods in it."""
    found: list[dict[str, Any]] = []
    stack: list[Any] = list(yaml.safe_load_all(manifests))
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if "containers" in node:
                found.append(node)
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    return found


@pytest.mark.parametrize("engine", ["trainjob", "jobset", "rayjob"])
@pytest.mark.parametrize(
    ("gpus", "asked", "size"), [(8, None, "16Gi"), (2, None, "4Gi"), (1, None, None), (None, None, None), (8, "1GiB", "1Gi")]
)
def test_pods_with_several_gpus_have_shared_memory_for_nccl(engine: str, gpus: int | None, asked: str | None, size: str | None) -> None:
    section: dict[str, Any] = {"kind": "k8s", "engine": engine, "image": "x", "nodes": 2, "gpus_per_node": gpus, "shared_memory": asked}
    for pod in pods(shown(section)):
        sizes = [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm"]
        assert sizes == ([] if size is None else [size])
        assert [m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == "shm"] == (["/dev/shm"] if size else [])


@pytest.mark.parametrize("engine", ["trainjob", "jobset", "rayjob"])
def test_pods_own_their_volume(engine: str) -> None:
    section = {"kind": "k8s", "engine": engine, "image": "x", "volume": "d"}
    for user in (1000, 4711):
        for pod in pods(shown(section | ({"user": user} if user != 1000 else {}))):
            assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (user, user)
    assert "--uid 1000" in (HERE.parents[1] / "Dockerfile").read_text()


@pytest.mark.parametrize("engine", ["trainjob", "jobset", "rayjob"])
def test_pods_have_no_more_rights_than_they_need(engine: str) -> None:
    section: dict[str, Any] = {"kind": "k8s", "engine": engine, "image": "x"}
    for more in ({}, {"volume": "d"}, {"read_only": False}, {"user": 0}, {"service_account": "trainer"}):
        for pod in pods(shown(section | more)):
            (container,) = pod["containers"]
            rights, owner = container["securityContext"], pod["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}
            assert owner["runAsNonRoot"] is (more != {"user": 0}) and owner["seccompProfile"] == {"type": "RuntimeDefault"}
            if engine != "rayjob":
                assert pod.get("automountServiceAccountToken") is (None if "service_account" in more else False)
            may_write = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            environment = {e["name"]: e["value"] for e in container["env"]}
            if more == {"read_only": False}:
                assert rights["readOnlyRootFilesystem"] is False and "/tmp" not in may_write and "HOME" not in environment
                continue
            # everything that is written by default lies where the pod may write
            assert rights["readOnlyRootFilesystem"] is True and "/tmp" in may_write and environment["HOME"] == "/tmp"
            if "volume" in more:
                assert "/data" in may_write and "TAUON_CACHE" not in environment  # the image's: /data/.cache/tauon
            else:
                assert environment["TAUON_CACHE"].startswith("/tmp/")


def test_the_projects_image_can_submit_a_rayjob_and_run_every_shipped_recipe() -> None:
    root = HERE.parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (has,) = [
        line.partition("=")[2].split(",") for line in (root / "Dockerfile").read_text().splitlines() if line.startswith("ARG EXTRAS=")
    ]
    assert set(has) <= set(extras)
    assert "rayjob" in has and any(need.startswith("ray[default]") for need in extras["rayjob"])
    for name in shipped_recipes():
        for engine in ("trainjob", "rayjob"):
            assert set(extras_of(read_yaml(to_yaml(load_recipe(name))), engine)) <= set(has), name


def test_the_manifests_say_what_the_image_needs() -> None:
    recipe = to_yaml(
        load_recipe("traffic-signs", ["track=[wandb]", "privacy.noise_multiplier=1", "data.sampling=shuffle", "model.norm=group"])
    )
    text = parse(LaunchConfig, {"kind": "k8s", "engine": "rayjob", "image": "x"}).show(Job("x", "train", recipe, Path("/r")))
    assert text.splitlines()[0].endswith(": images, privacy, rayjob, wandb")
    assert next(yaml.safe_load_all(text))["kind"] == "ConfigMap"
