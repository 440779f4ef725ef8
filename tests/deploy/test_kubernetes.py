"""What stands in docker/kubernetes/ renders, follows the schema of Kubernetes, fits the images; without a cluster."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import create_engine, text

from service.jobs.job import JobStatus, NewJob, new_job_id
from service.jobs.store import JobStore
from service.request import SegmentationRequest
from service.settings import PREFIX, Settings

DOCKER = Path(__file__).parents[2] / "docker"
KUBERNETES = DOCKER / "kubernetes"
OWN_KINDS = ("ScaledObject", "TriggerAuthentication")  # KEDA's, which Kubernetes' schema does not have


def variables(path: Path) -> set[str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {line.partition("=")[0] for line in lines}


def documents(path: Path) -> list[dict[str, Any]]:
    return [dict(document) for document in yaml.safe_load_all(path.read_text())]


def rendered(folder: Path, components: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send, with components as in a kustomization of one's own."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl; install it: apt-get install kubernetes-client")
    shutil.copytree(KUBERNETES, folder / "base")
    own = {"resources": ["base"], "components": [f"base/{component}" for component in components]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [dict(document) for document in yaml.safe_load_all(done.stdout)]


def worker_of(objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    [worker] = [
        entry for entry in objects if entry["metadata"]["name"] == "viscera-worker" and "template" in entry["spec"]
    ]
    return worker


every_choice = pytest.mark.parametrize("components", [(), ("keda",), ("gpu",), ("keda", "gpu")], ids="-".join)


@every_choice
def test_a_component_changes_what_it_says(tmp_path: Path, components: Sequence[str]) -> None:
    worker = worker_of(rendered(tmp_path, components))
    assert ("replicas" in worker["spec"]) is ("keda" not in components)
    limits = worker["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) is ("gpu" in components)


@every_choice
def test_objects_follow_the_schema(tmp_path: Path, components: Sequence[str]) -> None:
    beside = str(Path(sys.executable).parent)
    validator = shutil.which("kubernetes-validate", path=os.pathsep.join((beside, os.environ["PATH"])))
    if validator is None:
        pytest.skip("no kubernetes-validate; install it: pip install -e '.[cpu,dev]'")
    objects = [entry for entry in rendered(tmp_path, components) if entry["kind"] not in OWN_KINDS]
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(objects))
    done = subprocess.run([validator, "--strict", tmp_path / "objects.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" passed ") + done.stderr.count(" passed ") == len(objects)


def test_every_pod_is_hardened_and_has_the_settings(tmp_path: Path) -> None:
    deployments = [entry for entry in rendered(tmp_path) if entry["kind"] == "Deployment"]
    assert len(deployments) == 3
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert [next(iter(source.values()))["name"].rsplit("-", 1)[0] for source in container["envFrom"]] == [
            "viscera-settings",
            "viscera",
        ]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("name", ["api.Dockerfile", "worker.Dockerfile"])
def test_user_and_folder_are_those_of_the_images(name: str) -> None:
    image = (DOCKER / name).read_text()
    [hardened] = documents(KUBERNETES / "hardened.yaml")
    pod = hardened["spec"]["template"]["spec"]
    user = pod["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in image
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert f"VISCERA_DATA_DIR={mounts['data']}" in image
    assert f"HOME={mounts['tmp']}" in image


def test_every_setting_is_one_of_the_service() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    given = variables(KUBERNETES / "settings.env") | variables(KUBERNETES / "secret.env.example")
    given |= set(re.findall(r"\bVISCERA_\w+", (KUBERNETES / "worker.yaml").read_text()))
    assert {name for name in given if name.startswith(PREFIX)} <= known
    assert {"VISCERA_DATABASE_URL", "VISCERA_BROKER_URL", "VISCERA_STORAGE_URL"} <= given


def test_workers_follow_the_jobs_of_the_table(postgres_url: str) -> None:
    """The query of the scaler, on the real table: jobs that wait or run, not those that have ended."""
    _, scaled = documents(KUBERNETES / "keda" / "scaling.yaml")
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["metadata"]["targetQueryValue"] == str(Settings.model_fields["jobs_at_once"].default)
    store = JobStore(postgres_url)
    ids = [new_job_id() for _ in range(4)]
    for job_id in ids:
        store.create(NewJob(job_id, "m-1.0.0", SegmentationRequest(), upload_bytes=1, upload_files=1))
    store.claim(ids[0], "a:b:1:1", 30.0)
    store.claim(ids[1], "a:b:1:1", 30.0)
    store.succeed(ids[1], "a:b:1:1")
    store.cancel(ids[2])
    left = [JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.CANCELED, JobStatus.QUEUED]
    assert [store.get(job_id).status for job_id in ids] == left
    store.close()
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        assert connection.execute(text(trigger["metadata"]["query"])).scalar_one() == 2
    engine.dispose()
