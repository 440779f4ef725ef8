"""openapi.yaml is the application's own document, and the application keeps what it says."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from service.api import following
from service.api.auth import OPEN_PATHS
from service.api.examples import EXAMPLES
from service.api.following import see_change
from service.api.problems import problem_kinds
from service.api.schemas import (
    ArtifactList,
    ArtifactView,
    JobLinks,
    JobPage,
    JobView,
    Liveness,
    ModelList,
    ModelView,
    Readiness,
)
from service.client import ArtifactDocument, JobDocument, JobLinksDocument, JobPageDocument
from service.errors import (
    KeyNotFound,
    RequestError,
    VisceraError,
)
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


def test_every_operation_shows_what_it_takes_and_answers():
    document = create_app(Settings()).openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                for media_type, content in response.get("content", {}).items():
                    shown = content.get("example") or content.get("examples") or _shown_by_schema(content["schema"])
                    assert shown, (method, path, status, media_type)
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), (method, path, parameter["name"])


def _shown_by_schema(schema: dict) -> bool:
    """A file of bytes is no text to show, and the schema of the findings has examples at its fields."""
    return schema.get("format") == "binary" or schema.get("$ref", "").endswith("/Findings")


def test_examples_are_valid():
    schemas = {model.__name__: model for model in (JobView, JobPage, ArtifactList, ModelView, ModelList)}
    schemas |= {"Liveness": Liveness, "Readiness": Readiness}
    assert set(EXAMPLES) == set(schemas)
    for name, example in EXAMPLES.items():
        made = schemas[name].model_validate(example)
        assert json.loads(made.model_dump_json()) == example


def test_the_client_knows_every_field_of_a_job():
    documents = {
        JobDocument: JobView,
        JobLinksDocument: JobLinks,
        JobPageDocument: JobPage,
        ArtifactDocument: ArtifactView,
    }
    for document, view in documents.items():
        assert set(document.__annotations__) == set(view.model_fields)


def test_every_operation_but_the_open_ones_says_that_it_needs_a_key():
    document = create_app(Settings()).openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            is_open = path in OPEN_PATHS
            assert ("security" in operation) is not is_open, path
            assert {"401", "403"} <= set(operation["responses"]) or is_open, path
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


NOT_OF_AN_OPERATION = {
    KeyNotFound.code: "for `viscera keys`",
}


def test_every_problem_of_a_request_is_shown_somewhere():
    shown = re.findall(r"type: /problems/([a-z-]+)", openapi_yaml())
    requests = {error.code for error in _below(RequestError)} | {"storage-unavailable", "internal"}
    assert requests - set(shown) - set(NOT_OF_AN_OPERATION) == set()


def _below(error: type[VisceraError]) -> set[type[VisceraError]]:
    return {error}.union(*(_below(child) for child in error.__subclasses__()))


# Not held against the application, and why:
EXCLUDED_CHECKS = (
    "allow_header_conformance",  # FastAPI has one route for each method; its Allow header names only that one
    "negative_data_rejection",  # to multipart every value is text or a file, so a wrong type cannot be told
    "positive_data_acceptance",  # a schema cannot say which models, labels and cursors exist
)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that wait and streams end soon: the documented answers are the same."""

    async def see_change_soon(services, caller, known, until):
        return await see_change(services, caller, known, min(until, time.monotonic() + 0.1))

    monkeypatch.setattr(following, "see_change", see_change_soon)
    monkeypatch.setattr(following, "STREAM_SECONDS", 0.1)


@pytest.fixture
def _living_worker(api: Api) -> Iterator[None]:
    """A worker that gives signs of life however long the test takes."""
    ended = threading.Event()

    def live() -> None:
        while True:
            api.store.report_worker("one", WorkerState.READY)
            if ended.wait(5):
                return

    thread = threading.Thread(target=live)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.usefixtures("_impatient", "_living_worker")
def test_the_running_application_keeps_its_contract(api: Api, tmp_path: Path):
    for end in (None, api.fail, api.succeed):
        job_id = api.submit()["id"]
        if end is not None:
            end(job_id)
    authorization = f"--header=Authorization: Bearer {api.key}"
    # It cannot write multipart/related: tests/exchange/test_stow_door.py does.
    options = [
        "--exclude-path=/dicomweb/studies",
        "--max-examples=10",
        authorization,
        "--seed=1",
        "--no-color",
        f"--exclude-checks={','.join(EXCLUDED_CHECKS)}",
    ]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{api.client.base_url}/openapi.json", *options]

    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)

    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
