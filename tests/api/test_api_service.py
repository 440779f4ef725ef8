"""The service itself over HTTP: models, health, problems, the page, and headers."""

import re
from html import unescape

import pytest

from service import errors
from service.api.problems import problem_kinds
from service.jobs.job import WorkerState
from tests.support.api import Api, running_api, write_model


def test_models_are_listed_with_their_labels(tmp_path):
    write_model(tmp_path / "models")
    write_model(tmp_path / "models", "other", "2.0.0")
    with running_api(tmp_path) as api:
        models = api.client.get("/v1/models").json()["models"]
        compact = next(model for model in models if model["name"] == "viscera-compact")
        assert {"viscera-compact-9.0.0", "other-2.0.0"} <= {model["id"] for model in models}
        assert [model["id"] for model in models if model["default"]] == ["viscera-compact-9.0.0"]
        assert compact["labels"][1]["hosts"] == ["liver"]
        assert compact["spacing_mm"] == [2.0, 2.0, 2.0]
        assert re.fullmatch("[0-9a-f]{64}", compact["sha256"])


def test_a_model_is_found_by_id_and_by_name(api: Api):
    by_name = api.client.get("/v1/models/viscera-compact").json()
    by_id = api.client.get("/v1/models/viscera-compact-9.0.0").json()
    unknown = api.client.get("/v1/models/vista")

    assert by_name == by_id
    assert unknown.status_code == 404
    assert unknown.json()["type"] == "/problems/model-not-found"


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "name": 7}'])
def test_a_bundle_that_cannot_be_read_does_not_hide_the_others(tmp_path, manifest):
    write_model(tmp_path / "models")
    broken = tmp_path / "models" / "broken-1.0.0"
    broken.mkdir()
    (broken / "manifest.json").write_text(manifest)
    with running_api(tmp_path) as api:
        ids = [model["id"] for model in api.client.get("/v1/models").json()["models"]]
    assert "viscera-compact-9.0.0" in ids
    assert not any("broken" in model_id for model_id in ids)


def test_live_as_soon_as_it_answers(api: Api):
    assert api.client.get("/health/live").json() == {"status": "live"}


def test_ready_once_a_worker_has_passed_its_self_test(api: Api):
    waiting = api.client.get("/health/ready")
    api.store.report_worker("one", WorkerState.STARTING)
    starting = api.client.get("/health/ready")
    api.store.report_worker("one", WorkerState.UNHEALTHY, "The bundle was altered.")
    unhealthy = api.client.get("/health/ready")
    api.store.report_worker("two", WorkerState.READY)
    ready = api.client.get("/health/ready")

    assert [response.status_code for response in (waiting, starting, unhealthy, ready)] == [503, 503, 503, 200]
    assert ready.json()["status"] == "ready"
    assert _unready(waiting) == {"worker": "No worker is running."}
    assert _unready(unhealthy) == {"worker": "The bundle was altered."}


def test_not_ready_without_the_default_model(tmp_path):
    with running_api(tmp_path, default_model="vista") as api:
        response = api.client.get("/health/ready")
        assert response.status_code == 503
        assert "vista" in _unready(response)["model"]


def test_not_ready_while_the_database_is_away(api: Api, monkeypatch):
    def away(**_):
        raise errors.StorageUnavailable("The job table cannot be reached at the moment; try again shortly.")

    monkeypatch.setattr(api.store, "list", away)

    assert "database" in _unready(api.client.get("/health/ready"))
    listing = api.client.get("/v1/jobs")
    assert (listing.status_code, listing.headers["Retry-After"]) == (503, "5")


def test_something_unexpected_is_internal_and_says_nothing_of_the_inside(api: Api, monkeypatch):
    def broken(_id, **_):
        raise RuntimeError("secret path /srv/patients")

    monkeypatch.setattr(api.store, "get", broken)

    response = api.client.get("/v1/jobs/00000000-0000-4000-8000-000000000000")

    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/internal"
    assert response.json()["request_id"] == response.headers["X-Request-ID"]
    assert "secret" not in response.text
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/jobs", 404, "not-found"),
        ("PUT", "/v1/jobs", 405, "method-not-allowed"),
        ("GET", "/web/../main.py", 404, "not-found"),
        ("GET", "/web/%2e%2e%2fmain.py", 404, "not-found"),
        ("GET", "/problems/none-such", 404, "not-found"),
    ],
)
def test_http_errors_are_problems_too(api: Api, method, path, status, code):
    response = api.client.request(method, path)

    assert response.status_code == status
    assert response.json()["type"] == f"/problems/{code}"


def test_every_error_of_the_tree_has_a_page(api: Api):
    codes = {error.code for error in _tree(errors.VisceraError)}
    assert codes <= set(problem_kinds())
    for code, kind in problem_kinds().items():
        response = api.client.get(f"/problems/{code}")
        assert response.status_code == 200
        assert kind.title in unescape(response.text)


def test_every_answer_carries_the_security_headers(api: Api):
    for path in ("/", "/v1/models", "/v1/jobs/nowhere", "/nowhere", "/web/app.js"):
        headers = api.client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert re.fullmatch("[0-9a-f]{16}", headers["X-Request-ID"])


def _unready(response) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in response.json()["checks"] if not check["ready"]}


def _tree(error):
    return {error}.union(*(_tree(child) for child in error.__subclasses__()))
