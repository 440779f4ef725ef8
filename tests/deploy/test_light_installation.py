"""`pip install viscera` without `cpu` or `gpu`: API, sweeper and commands run, and need no numerical library.

Everything is installed here, so a child process is forbidden to import what that installation would lack.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FORBIDDING = """
import json, sys
from importlib.abc import MetaPathFinder

class Forbidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in absent or name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not part of this installation", name=name)

absent = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Forbidden())
"""

SERVING = """
import asyncio, gzip
from pathlib import Path
import httpx, psycopg
from service.jobs.keys import KeyStore
from service.main import create_app
from service.settings import Settings
import service.object_storage
import service.cli.doctor, service.cli.serve, service.cli.submit, service.client, service.sweeper, service.worker_health

async def main():
    # Nobody listens there: what it takes to speak to Redis is imported all the same.
    settings = Settings(data_dir=Path(sys.argv[2]), broker_url="redis://127.0.0.1:1/0")
    app = create_app(settings)
    api = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api")
    async with app.router.lifespan_context(app), api:
        key = KeyStore.open(settings.database_url).create_first()
        api.headers["Authorization"] = f"Bearer {key}"
        for address in ("/health/live", "/openapi.json", "/problems/not-found"):
            assert (await api.get(address)).status_code == 200, address
        checks = {check["name"]: check["ready"] for check in (await api.get("/health/ready")).json()["checks"]}
        assert checks["model"] and checks["database"] and not checks["worker"], checks
        study = bytes([92, 1, 0, 0]) + bytes(340) + b"n+1" + bytes(5)
        sent = await api.post("/v1/jobs", files={"files": ("ct.nii.gz", gzip.compress(study))})
        assert sent.status_code == 202, sent.text
        assert (await api.get(sent.headers["location"])).json()["status"] == "queued"

asyncio.run(main())
"""


def modules_of_the_light_installation() -> set[str]:
    """Top-level modules of `viscera[postgres,s3]`: those of its requirements, and of theirs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    waiting = [Requirement(line) for line in [*project["dependencies"], *extras["postgres"], *extras["s3"]]]
    found: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key not in found and _applies(requirement, extras=()):
            found.add(key)
            required = [Requirement(line) for line in _requires(requirement.name)]
            waiting += [needed for needed in required if _applies(needed, requirement.extras)]
    names = {name for name, _ in found} | {"viscera"}
    return {
        module
        for module, distributions in packages_distributions().items()
        if names & {canonicalize_name(name) for name in distributions}
    }


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _requires(name: str) -> list[str]:
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []  # for another platform


def run_without(absent: set[str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FORBIDDING + code, json.dumps(sorted(absent)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def absent_modules() -> set[str]:
    absent = set(packages_distributions()) - modules_of_the_light_installation()
    assert {"numpy", "torch", "scipy", "nibabel", "openvino", "onnxruntime", "PIL"} <= absent
    assert not {"fastapi", "celery", "sqlalchemy", "service", "psycopg"} & absent
    # FastAPI brings the API of OpenTelemetry, and only the extra `tracing` what sends: one namespace.
    return absent | {"opentelemetry.sdk", "opentelemetry.exporter"}


def test_the_api_runs_without_what_a_worker_needs(tmp_path: Path) -> None:
    done = run_without(absent_modules(), SERVING, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_command_that_needs_a_worker_says_what_to_install(tmp_path: Path) -> None:
    study = tmp_path / "ct.nii"
    study.write_bytes(b"")
    code = f"""
import service.cli
sys.argv[1:] = ["segment", {str(study)!r}, "--out", {str(tmp_path / "out")!r}]
service.cli.main()
"""
    done = run_without(absent_modules(), code)
    assert done.returncode == 2
    assert re.search(r"is not installed; this command needs pip install 'viscera\[cpu\]'", done.stderr)
    assert "Traceback" not in done.stderr
