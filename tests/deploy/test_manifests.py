"""Dockerfiles, Compose files and manifests, checked by others' programs."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
TOOLS = ROOT / "build" / "deploy" / "tools" / "bin"
KUBERNETES = ["1.31", "1.34", "1.37"]


def run(*words, **options):
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("path", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda p: p.name)
def test_hadolint_finds_nothing(path):
    done = run(TOOLS / "hadolint", "--failure-threshold", "style", path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]], ids=len)
def test_docker_compose_takes_the_files(files):
    """Its `config`, which needs no engine."""
    words = [word for name in files for word in ("-f", DOCKER / name)]
    environment = {"TARGET": "/models/target", "SETS": "/srv/sets", "PATH": "/usr/bin:/bin"}
    done = run(TOOLS / "docker-compose", *words, "config", "--format", "json", env=environment)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == {"setup", "server", "gateway", "prometheus", "grafana"}
    assert {s["image"] for s in services.values() if s["image"].startswith("unlearngate:")} == {
        "unlearngate:gateway", "unlearngate:" + ("gpu" if len(files) == 2 else "cpu"),
    }  # fmt: skip
    missing = run(TOOLS / "docker-compose", *words, "config", env={"PATH": "/usr/bin:/bin"})
    assert missing.returncode != 0 and "the target's checkpoint folder" in missing.stderr


@pytest.fixture(scope="module")
def built():
    """What kustomize makes of each overlay."""
    documents = {}
    for overlay in sorted((DOCKER / "kubernetes" / "overlays").iterdir()):
        done = run(TOOLS / "kubectl", "kustomize", overlay)
        assert done.returncode == 0, done.stderr
        documents[overlay.name] = list(yaml.safe_load_all(done.stdout))
    return documents


def validate(documents, version, folder):
    """Against the schemas that kubernetes-validate carries, with no field that a schema does not know."""
    for index, document in enumerate(documents):
        path = folder / f"{index}.json"
        path.write_text(json.dumps(document))
        done = run(TOOLS / "kubernetes-validate", "--strict", "--kubernetes-version", version, path)
        assert done.returncode == 0, f"{document['kind']}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("version", KUBERNETES)
def test_what_kustomize_builds_is_valid(built, version, tmp_path):
    assert set(built) == {"object-store", "volume"}
    for documents in built.values():
        kinds = {d["kind"] for d in documents}
        assert kinds >= {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"}
        validate(documents, version, tmp_path)


def test_the_validator_notices_a_wrong_field(tmp_path):
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"portz": []}}
    with pytest.raises(AssertionError, match="portz"):
        validate([wrong], KUBERNETES[-1], tmp_path)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_pods_of_the_leader_worker_example_are_valid(version, tmp_path):
    """Of LeaderWorkerSet itself there is no schema to be had; its templates are pods'."""
    for document in yaml.safe_load_all((DOCKER / "kubernetes" / "examples" / "leaderworkerset.yaml").read_text()):
        if document["kind"] != "LeaderWorkerSet":
            validate([document], version, tmp_path)
            continue
        group = document["spec"]["leaderWorkerTemplate"]
        for name in ("leaderTemplate", "workerTemplate"):
            template = group[name]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", **template.get("metadata", {})}}
            validate([{**pod, "spec": template["spec"]}], version, tmp_path)


def test_every_pod_is_closed(built):
    """As the namespace's `restricted` level asks, and with a file system that nothing is written to."""
    for documents in built.values():
        pods = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "Deployment"]
        assert len(pods) == 2
        for pod in pods:
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in (*pod["containers"], *pod.get("initContainers", [])):
                closed = container["securityContext"]
                assert closed["readOnlyRootFilesystem"] and not closed["allowPrivilegeEscalation"]
                assert closed["capabilities"] == {"drop": ["ALL"]}
                assert ":" in container["image"] and not container["image"].endswith(":latest")
            mounted = {
                m["name"] for c in (*pod["containers"], *pod.get("initContainers", [])) for m in c["volumeMounts"]
            }
            assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_gateways_files_are_those_that_the_tests_run(built):
    for documents in built.values():
        maps = {d["metadata"]["name"].rpartition("-")[0]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
        for name in ("nginx.conf", "proxy.conf", "errors.conf"):
            assert maps["gateway"][name] == (DOCKER / "gateway" / name).read_text()
        assert set(maps["gateway-site"]) == {p.name for p in (DOCKER / "gateway" / "site").iterdir()}
