"""What stands in docker/ is what the service understands; whether containers start is not tried here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE_FILE = DOCKER / "compose.yaml"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
OURS = ("setup", "api", "worker", "worker-gpu", "sweeper", "scp")
PROFILES = ("gpu", "s3", "observability", "pacs")
VARIABLE = re.compile(r"\$\{(\w+)(:[?-])([^}]*)\}")  # a name, whether it must be given, and its default

every_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def tool(name: str) -> str:
    """A program beside this Python or on the path; the test is skipped where it is not installed."""
    path = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if path is None:
        pytest.skip(f"no {name}; install it: pip install -e '.[cpu,dev]'")
    return path


def compose() -> dict[str, Any]:
    """The file with its anchors and merges resolved, and variables as they stand."""
    document = yaml.safe_load(COMPOSE_FILE.read_text())
    assert isinstance(document, dict)
    return document


def services() -> dict[str, dict[str, Any]]:
    return dict(compose()["services"])


def environment_of(dockerfile: Path) -> dict[str, str]:
    [block] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", dockerfile.read_text(), re.MULTILINE)
    return dict(item.split("=", 1) for item in shlex.split(block.replace("\\\n", " ")))


@every_dockerfile
def test_linter_has_nothing_to_say(dockerfile: Path) -> None:
    done = subprocess.run([tool("hadolint"), dockerfile], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_file_follows_the_specification() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def docker_compose(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Docker's own reading of the file, in a copy of docker/; needs the plugin and no engine."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("no docker compose; install it: apt-get install docker-compose-plugin")
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    command = [docker, "compose", "--project-directory", str(folder), "-f", str(folder / "compose.yaml"), *arguments]
    return subprocess.run(command, env=clean, capture_output=True, text=True)


def test_docker_reads_the_file_and_asks_for_passwords(tmp_path: Path) -> None:
    folder = shutil.copytree(DOCKER, tmp_path / "docker")
    refused = docker_compose(folder, "config", "--quiet")
    assert refused.returncode != 0
    assert "_PASSWORD in .env" in refused.stderr
    subprocess.run(["sh", folder / "make-env.sh"], check=True)
    started = {name for name, service in services().items() if "profiles" not in service}
    for profile in ("", *PROFILES):
        more = {name for name, service in services().items() if profile in service.get("profiles", ())}
        listed = docker_compose(folder, *(("--profile", profile) if profile else ()), "config", "--services")
        assert set(listed.stdout.split()) == started | more


def test_every_password_is_asked_for_and_made(tmp_path: Path) -> None:
    used = {name: kind for name, kind, _ in VARIABLE.findall(COMPOSE_FILE.read_text())}
    passwords = {name for name in used if name.endswith("_PASSWORD")}
    assert all(used[name] == ":?" for name in passwords)
    assert all(used[name] == ":-" for name in used.keys() - passwords)

    folder = shutil.copytree(DOCKER, tmp_path / "docker")
    subprocess.run(["sh", folder / "make-env.sh"], check=True)
    written = folder / ".env"
    assert written.stat().st_mode & 0o077 == 0
    values = dict(line.split("=", 1) for line in written.read_text().splitlines() if line and line[0] != "#")
    assert values.keys() == used.keys() | {"COMPOSE_PROFILES"}
    made = [values[name] for name in passwords]
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in made)
    assert len(set(made)) == len(made)
    assert subprocess.run(["sh", folder / "make-env.sh"], capture_output=True).returncode == 1
    assert values == dict(line.split("=", 1) for line in written.read_text().splitlines() if line and line[0] != "#")


def test_every_setting_is_one_of_the_service() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    given = {name for service in services().values() for name in service.get("environment", {})}
    given |= {name for dockerfile in DOCKERFILES for name in environment_of(dockerfile)}
    ours = {name for name in given if name.startswith(PREFIX)}
    assert ours
    assert ours <= known


def test_the_settings_of_the_worker_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of(DOCKER / "worker.Dockerfile") | services()["worker"]["environment"]
    for name, value in environment.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, VARIABLE.sub(lambda found: found[3] if found[2] == ":-" else "secret", value))
    assert not Settings().embedded_broker


@every_dockerfile
def test_images_run_without_root_and_look_after_themselves(dockerfile: Path) -> None:
    last_stage = dockerfile.read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last_stage, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", last_stage, re.MULTILINE)
    assert environment_of(dockerfile)[f"{PREFIX}DATA_DIR"] == "/var/lib/viscera"


@every_dockerfile
def test_bases_are_pinned_by_digest(dockerfile: Path) -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=python:\S+@sha256:[0-9a-f]{64}$", dockerfile.read_text(), re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)) == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("name", [name for name in services() if name != "orthanc"])
def test_services_are_hardened(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "ipc", "pid", "network_mode"} & service.keys()


def test_only_this_host_reaches_a_port() -> None:
    ports = {port for service in services().values() for port in service.get("ports", ())}
    assert ports
    assert all(
        port.startswith(("127.0.0.1:", "${HTTP_ADDRESS:-127.0.0.1}:", "${DICOM_ADDRESS:-127.0.0.1}:")) for port in ports
    )
    assert not {"postgres", "redis"} & {name for name, service in services().items() if "ports" in service}


def test_images_of_others_are_pinned() -> None:
    images = {service["image"] for name, service in services().items() if name not in OURS}
    assert all(re.fullmatch(r"\S+:v?\d+\.\d+\S*@sha256:[0-9a-f]{64}", image) for image in images)


def test_images_of_ours_are_built_from_the_files_here() -> None:
    for name in OURS:
        build = services()[name]["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() in DOCKERFILES
    extras = {services()[name]["build"]["args"]["VARIANT"] for name in ("worker", "worker-gpu")}
    assert extras == {"cpu", "gpu"}


def test_every_mounted_file_is_there() -> None:
    volumes = [volume for service in services().values() for volume in service.get("volumes", ())]
    mounted = [DOCKER / volume.split(":")[0] for volume in volumes if volume.startswith("./")]
    assert mounted
    assert all(path.exists() for path in mounted)
    assert {volume.split(":")[0] for volume in volumes if volume[0] != "."} == set(compose()["volumes"])


def test_health_check_of_the_api_asks_its_own_port() -> None:
    dockerfile = (DOCKER / "api.Dockerfile").read_text()
    [check] = re.findall(r"^HEALTHCHECK .*\n\s+CMD (.*)$", dockerfile, re.MULTILINE)
    port = Settings.model_fields["port"].default
    assert f"http://127.0.0.1:{port}/health/live" in json.loads(check)[2]
    assert f"EXPOSE {port}" in dockerfile
    assert services()["api"]["ports"][0].endswith(f":{port}")
