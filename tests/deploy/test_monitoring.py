"""What the dashboard and the alerts ask Prometheus for is what API and workers tell it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from service.api.metrics import ApiMetrics
from service.jobs.job import JobStatus, Priority, WorkerState
from service.jobs.store import JobStore
from service.metrics import observe_job

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "viscera.json"
ALERTS = DOCKER / "prometheus" / "alerts.yml"
VALUES = {"status": set(JobStatus), "state": set(WorkerState), "priority": set(Priority)}


def dashboard() -> dict[str, Any]:
    document = json.loads(DASHBOARD.read_text())
    assert isinstance(document, dict)
    return document


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def told(tmp_path: Path) -> set[str]:
    """Names of the samples of an API and of a worker that has done a job."""
    observe_job("failed", "not-hu", {"reading": 1.0})
    api = ApiMetrics(JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")).render().decode()
    of_api = {sample.name for family in text_string_to_metric_families(api) for sample in family.samples}
    of_api |= {family.name for family in text_string_to_metric_families(api)}
    families = [*REGISTRY.collect()]
    of_worker = {sample.name for family in families for sample in family.samples}
    return of_api | of_worker | {family.name for family in families if family.type == "gauge"}  # a GPU's, where one is


def test_every_metric_asked_for_is_told(tmp_path: Path) -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\bviscera_\w+", expression)}
    assert asked
    assert asked <= told(tmp_path)


def test_every_label_value_asked_for_exists() -> None:
    asked = {pair for expression in expressions() for pair in re.findall(r'(\w+)="([^"]*)"', expression)}
    assert {(label, value) for label, value in asked if label in VALUES and value not in VALUES[label]} == set()


def test_panels_have_their_own_places() -> None:
    cells = [
        (x, y)
        for panel in dashboard()["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24  # the width of Grafana's grid
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


def test_grafana_finds_dashboard_and_source() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "viscera.yaml").read_text())["providers"]
    volumes = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in volumes
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard()["panels"]} == {source["uid"]}


def test_prometheus_takes_its_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool; install it: apt-get install prometheus")
    command = [promtool, "check", "config", "prometheus.yml"]
    done = subprocess.run(command, cwd=ALERTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
