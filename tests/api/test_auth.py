"""Who may pass: keys, scopes, tenants, limits."""

from pathlib import Path

import httpx
import pytest

from service.api.auth import OPEN_PATHS
from service.errors import KeyNotFound, Unauthenticated
from service.jobs.keys import FIRST_KEY_ID, Scope
from tests.support.api import Api, running_api
from tests.support.routes import routes_of
from tests.support.servers import PostgresServer

JOB = "/v1/jobs/00000000-0000-4000-8000-000000000000"


def test_every_route_but_the_open_ones_asks_for_a_key(api: Api):
    routes = routes_of(api.app)
    assert {path for path, _ in routes} >= OPEN_PATHS | {"/v1/jobs", "/metrics"}
    with api.client_with(None) as stranger:
        for path, methods in routes:
            for method in methods - {"HEAD", "OPTIONS"}:
                address = (
                    path.replace("{job_id}", JOB.rpartition("/")[2]).replace("{name:path}", "a").replace("{name}", "a")
                )
                status = stranger.request(method, address).status_code
                assert (status == 401) is (path not in OPEN_PATHS), (method, path, status)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer nonsense",
        "Bearer vsc_first_" + "A" * 43,
        "Bearer vsc_" + "x" * 5000,
        "Basic dXNlcjpwYXNz",
        "Bearer ey.J.x",
    ],
)
def test_no_key_and_a_wrong_key_are_the_same_problem(api: Api, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    response = httpx.get(f"{api.client.base_url}/v1/jobs", headers=headers)

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert response.json()["type"] == "/problems/unauthenticated"


def test_a_key_with_one_letter_changed_is_wrong(api: Api):
    changed = api.key[:-1] + ("A" if api.key[-1] != "A" else "B")
    with api.client_with(changed) as client:
        assert client.get("/v1/jobs").status_code == 401


def test_an_upload_without_a_key_leaves_nothing(api: Api):
    with api.client_with(None) as stranger:
        response = stranger.post("/v1/jobs", files={"files": ("a.nii", b"x" * 100_000)})
    assert response.status_code == 401
    assert api.stored_files() == []


def test_a_revoked_key_is_refused_from_then_on(api: Api):
    key, text = api.keys.create(name="viewer")
    with api.client_with(text) as client:
        assert client.get("/v1/jobs").status_code == 200
        api.keys.revoke(key.id)
        refused = client.get("/v1/jobs")
    assert refused.status_code == 401
    assert "revoked" in refused.json()["detail"]
    with pytest.raises(KeyNotFound):
        api.keys.revoke(key.id)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/jobs", Scope.SUBMIT),
        ("POST", f"{JOB}/cancel", Scope.SUBMIT),
        ("DELETE", JOB, Scope.SUBMIT),
        ("GET", "/v1/jobs", Scope.READ),
        ("GET", JOB, Scope.READ),
        ("GET", f"{JOB}/events", Scope.READ),
        ("GET", f"{JOB}/findings", Scope.READ),
        ("GET", "/v1/models", Scope.READ),
        ("GET", "/metrics", Scope.ADMIN),
    ],
)
def test_each_operation_needs_its_scope(api: Api, method, path, scope):
    others = set(Scope) - {scope}
    with api.client_of("default", *others) as without, api.client_of("default", scope) as client:
        refused = without.request(method, path)
        assert client.request(method, path).status_code not in (401, 403)
    assert refused.status_code == 403
    assert refused.json()["type"] == "/problems/insufficient-scope"
    assert scope in refused.json()["detail"]


def test_another_tenants_job_does_not_exist(api: Api):
    job_id = api.submit()["id"]
    api.succeed(job_id)
    mine = api.client.get(f"/v1/jobs/{job_id}")
    with api.client_of("other") as other:
        for method, tail in [
            ("GET", ""),
            ("GET", "?wait=1"),
            ("GET", "/events"),
            ("GET", "/findings"),
            ("GET", "/artifacts"),
            ("GET", "/artifacts/overview.png"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ]:
            response = other.request(
                method, f"/v1/jobs/{job_id}{tail}", headers={"If-None-Match": mine.headers["ETag"]}
            )
            assert (response.status_code, response.json()["type"]) == (404, "/problems/job-not-found"), (method, tail)
        assert other.get("/v1/jobs").json()["jobs"] == []
        assert other.get("/v1/jobs", params={"cursor": job_id}).status_code == 400
    assert api.client.get(f"/v1/jobs/{job_id}").status_code == 200


def test_a_job_belongs_to_the_tenant_and_the_key_it_came_with(api: Api):
    with api.client_of("radiology") as client:
        job_id = client.post("/v1/jobs", files={"files": ("a.nii", b"scan")}).json()["id"]
    job = api.store.get(job_id)
    assert job.tenant == "radiology"
    assert job.key_id in {key.id for key in api.keys.list()}


def test_a_key_with_a_rate_limit_is_slowed_down_and_others_are_not(api: Api):
    with api.client_of("default", rate_limit=3) as client:
        answers = [client.get("/v1/jobs") for _ in range(7)]  # seven, since a minute may end in between
    limited = [answer for answer in answers if answer.status_code == 429]
    assert limited
    assert 1 <= int(limited[0].headers["Retry-After"]) <= 60
    assert limited[0].json()["type"] == "/problems/rate-limited"
    assert api.client.get("/v1/jobs").status_code == 200


def test_a_limit_holds_over_all_api_processes(tmp_path: Path, postgres_url: str):
    with (
        running_api(tmp_path / "one", database_url=postgres_url) as one,
        running_api(tmp_path / "two", database_url=postgres_url) as two,
    ):
        text = one.keys.create(name="trial", rate_limit=10)[1]
        with one.client_with(text) as first, two.client_with(text) as second:
            answers = [client.get("/v1/jobs").status_code for _ in range(20) for client in (first, second)]
        assert answers.count(200) in (10, 20)  # a minute may end in between
        assert set(answers) == {200, 429}


def test_a_database_that_is_away_lets_nobody_in_and_is_no_500(tmp_path: Path, postgres: PostgresServer):
    with running_api(tmp_path, database_url=postgres.url) as api, api.client_of("default", rate_limit=1000) as client:
        assert client.get("/v1/jobs").status_code == 200
        postgres.stop()
        away = client.get("/v1/models")  # which the database has no part in
        postgres.start()
        assert client.get("/v1/models").status_code == 200
    assert (away.status_code, away.json()["type"]) == (503, "/problems/storage-unavailable")
    assert "Retry-After" in away.headers


def test_a_request_that_cannot_be_counted_is_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.jobs.database._SQLITE_BUSY_SECONDS", 0.1)
    with running_api(tmp_path) as api, api.client_of("default", rate_limit=1000) as client:
        assert client.get("/v1/models").status_code == 200
        with api.store.engine.connect() as writer:  # others may read, and not write
            writer.exec_driver_sql("BEGIN IMMEDIATE")
            busy = client.get("/v1/models")
        assert client.get("/v1/models").status_code == 200
    assert (busy.status_code, busy.json()["type"]) == (503, "/problems/storage-unavailable")


def test_a_quota_counts_jobs_that_have_not_ended(api: Api):
    with api.client_of("default", quota=2) as client:
        first, _ = (client.post("/v1/jobs", files={"files": ("a.nii", b"scan")}).json()["id"] for _ in range(2))
        refused = client.post("/v1/jobs", files={"files": ("a.nii", b"scan")})
        api.succeed(first)
        accepted = client.post("/v1/jobs", files={"files": ("a.nii", b"scan")})
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/quota-exceeded")
    assert int(refused.headers["Retry-After"]) > 0
    assert accepted.status_code == 202


def test_without_authentication_everyone_is_the_default_tenant(tmp_path: Path):
    with running_api(tmp_path, auth="none") as api, api.client_with(None) as anyone:
        job_id = anyone.post("/v1/jobs", files={"files": ("a.nii", b"scan")}).json()["id"]
        assert api.store.get(job_id).tenant == "default"
        assert anyone.get("/metrics").status_code == 200


def test_metrics_may_be_public(tmp_path: Path):
    with running_api(tmp_path, metrics_public=True) as api, api.client_with(None) as prometheus:
        assert prometheus.get("/metrics").status_code == 200
        assert prometheus.get("/v1/jobs").status_code == 401


def test_only_a_hash_of_a_key_is_stored(api: Api):
    text = api.keys.create(name="pacs", rate_limit=5)[1]
    api.keys.authenticate(text)
    stored = b"".join(path.read_bytes() for path in api.settings.data_dir.glob("jobs.sqlite3*"))
    assert text.rpartition("_")[2].encode() not in stored
    assert len(text.split("_", 2)[2]) >= 43  # 256 bits in base64
    newest = next(key for key in api.keys.list() if key.name == "pacs")
    assert newest.last_used_at is not None
    assert newest.rate_limit == 5


def test_the_first_key_is_made_once(tmp_path: Path):
    with running_api(tmp_path) as api:
        assert api.keys.create_first() is None  # the test's own key was first
        with pytest.raises(Unauthenticated):
            api.keys.authenticate(f"vsc_{FIRST_KEY_ID}_{'A' * 43}")
