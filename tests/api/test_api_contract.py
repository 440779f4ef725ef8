"""openapi.yaml is the application's own document, and the application keeps what it says."""

import subprocess
import sys
from pathlib import Path

import yaml

from service.api.problems import problem_kinds
from service.jobs.job import WorkerState
from service.main import create_app
from service.openapi import openapi_yaml
from service.settings import Settings
from tests.support.api import Api

OPENAPI_FILE = Path(__file__).parents[2] / "openapi.yaml"


def test_openapi_yaml_is_the_document_of_the_application():
    assert OPENAPI_FILE.read_text(encoding="utf-8") == openapi_yaml(), "run `python -m service.openapi`"


def test_the_document_is_written_the_same_every_time():
    assert openapi_yaml() == openapi_yaml()


def test_it_can_be_read_as_yaml_and_describes_the_findings():
    document = yaml.safe_load(openapi_yaml())

    findings = document["paths"]["/v1/jobs/{job_id}/findings"]["get"]["responses"]["200"]
    assert findings["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Findings"}
    assert "longest_axial_diameter_mm" in document["components"]["schemas"]["LesionFinding"]["properties"]


def test_every_operation_has_a_name_a_tag_a_summary_and_known_problems():
    document = create_app(Settings()).openapi()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]

    assert len(set(names)) == len(names)
    known = {kind.reference for kind in problem_kinds().values()}
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        assert len(operation["tags"]) == 1
        for status, response in operation["responses"].items():
            examples = response.get("content", {}).get("application/problem+json", {}).get("examples", {})
            for example in examples.values():
                assert example["value"]["type"] in known
                assert str(example["value"]["status"]) == status


# Not held against the application, and why:
EXCLUDED_CHECKS = (
    "allow_header_conformance",  # FastAPI has one route for each method; its Allow header names only that one
    "negative_data_rejection",  # to multipart every value is text or a file, so a wrong type cannot be told
    "positive_data_acceptance",  # a schema cannot say which models, labels and cursors exist
)


def test_the_running_application_keeps_its_contract(api: Api, tmp_path: Path):
    for end in (None, api.fail, api.succeed):
        job_id = api.submit()["id"]
        if end is not None:
            end(job_id)
    api.store.report_worker("one", WorkerState.READY)
    # It cannot write multipart/related: tests/exchange/test_stow_door.py does.
    options = [
        "--exclude-path=/dicomweb/studies",
        "--max-examples=10",
        "--seed=1",
        "--no-color",
        f"--exclude-checks={','.join(EXCLUDED_CHECKS)}",
    ]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{api.client.base_url}/openapi.json", *options]

    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)

    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
