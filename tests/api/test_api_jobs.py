"""Jobs over HTTP: what is accepted, how a job is followed, listed, canceled and deleted."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from service.jobs.estimate import Estimator
from service.jobs.table import JOBS
from service.progress import Stage, overall_percent
from tests.support.api import OWNER, Api, running_api, write_model

UNKNOWN_JOB = "00000000-0000-4000-8000-000000000000"


def test_a_submitted_study_is_stored_queued_and_dispatched(api: Api):
    response = api.client.post("/v1/jobs", files={"files": ("Doe^John.NII.GZ", b"voxels")})

    job = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert int(response.headers["Retry-After"]) >= 1
    assert job["status"] == "queued"
    assert job["queue_position"] == 1
    assert job["model"] == "viscera-compact-9.0.0"
    assert (job["upload_bytes"], job["upload_files"]) == (6, 1)
    assert api.dispatched == [job["id"]]
    assert (api.storage.upload_dir(job["id"]) / "00001.nii.gz").read_bytes() == b"voxels"


def test_many_dicom_files_keep_their_number_and_lose_their_names(api: Api):
    files = [("files", (f"../../patient {n}.IMA", bytes([n]) * n)) for n in range(1, 60)]

    job = api.client.post("/v1/jobs", files=files).json()

    stored = sorted(api.storage.upload_dir(job["id"]).iterdir())
    assert [path.name for path in stored] == [f"{n:05d}.dcm" for n in range(1, 60)]
    assert stored[6].read_bytes() == b"\x07" * 7
    assert job["upload_files"] == 59


def test_the_field_may_be_called_file(api: Api):
    response = api.client.post("/v1/jobs", files={"file": ("study.zip", b"PK")})

    assert response.status_code == 202
    assert (api.storage.upload_dir(response.json()["id"]) / "00001.zip").exists()


def test_labels_may_be_repeated_or_comma_separated_before_or_after_the_files(api: Api):
    boundary = "frontier"
    body = (
        '--frontier\r\nContent-Disposition: form-data; name="targets"\r\n\r\nliver, liver_tumor\r\n'
        '--frontier\r\nContent-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\nscan\r\n'
        '--frontier\r\nContent-Disposition: form-data; name="targets"\r\n\r\nliver\r\n'
        '--frontier\r\nContent-Disposition: form-data; name="overlap"\r\n\r\n0.25\r\n'
        '--frontier\r\nContent-Disposition: form-data; name="mode"\r\n\r\nfast\r\n--frontier--\r\n'
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}

    job = api.client.post("/v1/jobs", content=body, headers=headers).json()

    assert job["targets"] == ["liver", "liver_tumor"]
    request = api.store.get(job["id"]).request
    assert (request.mode, request.overlap) == ("fast", 0.25)


def test_a_model_is_named_by_id_or_by_name_and_pinned_to_its_version(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        write_model(tmp_path / "models", "other", version)
    write_model(tmp_path / "models")
    with running_api(tmp_path) as api:
        assert api.submit(model="other")["model"] == "other-1.10.0"
        assert api.submit(model="other-1.9.0")["model"] == "other-1.9.0"


def test_a_broker_that_is_away_loses_nothing(api: Api, monkeypatch):
    services = api.app.state.services
    api.app.state.services = replace(services, dispatch=lambda job_id, priority: False)

    job = api.submit()

    assert [*api.store.undispatched()] == [job["id"]]


def test_a_job_is_followed_from_queue_to_result(api: Api):
    first, second = api.submit()["id"], api.submit()["id"]
    assert api.client.get(f"/v1/jobs/{second}").json()["queue_position"] == 2

    api.store.claim(first, OWNER, 30.0)
    api.store.renew(first, OWNER, stage="inference", percent=41.46, lease_seconds=30.0)
    response = api.client.get(f"/v1/jobs/{first}")
    running = response.json()
    assert (running["status"], running["stage"], running["percent"]) == ("running", "inference", 41.5)
    assert running["attempts"] == 1
    assert running["queue_position"] is None
    assert running["links"]["findings"] is None
    assert response.headers["Retry-After"] == "1"

    api.succeed(second)
    response = api.client.get(f"/v1/jobs/{second}")
    done = response.json()
    assert (done["status"], done["percent"], done["error"]) == ("succeeded", 100.0, None)
    assert done["warnings"] == [{"code": "anisotropic", "message": "Thick slices.", "subject": None}]
    assert done["links"]["cancel"] is None
    assert done["finished_at"] is not None
    assert "Retry-After" not in response.headers
    assert response.headers["Cache-Control"] == "no-store"


def test_a_failed_job_says_why(api: Api):
    job_id = api.submit()["id"]
    api.fail(job_id)

    job = api.client.get(f"/v1/jobs/{job_id}").json()

    assert job["status"] == "failed"
    assert job["error"]["type"] == "/problems/not-hu"
    assert api.client.get(job["error"]["type"]).status_code == 200


def test_jobs_are_listed_newest_first_in_pages(api: Api):
    ids = [api.submit()["id"] for _ in range(5)]
    api.fail(ids[0])

    first = api.client.get("/v1/jobs", params={"limit": 2}).json()
    rest = api.client.get("/v1/jobs", params={"cursor": first["next_cursor"]}).json()
    failed = api.client.get("/v1/jobs", params={"status": "failed"}).json()

    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == ids[::-1]
    assert rest["next_cursor"] is None
    assert [job["id"] for job in failed["jobs"]] == [ids[0]]


@pytest.mark.parametrize("query", [{"cursor": "nonsense"}, {"limit": "0"}, {"limit": "many"}, {"status": "lost"}])
def test_a_listing_that_makes_no_sense_is_an_invalid_request(api: Api, query):
    response = api.client.get("/v1/jobs", params=query)

    assert response.status_code == 400
    assert response.json()["type"] == "/problems/invalid-request"


def test_cancel_takes_a_queued_job_at_once_and_asks_a_running_one(api: Api):
    queued, running = api.submit()["id"], api.submit()["id"]
    api.store.claim(running, OWNER, 30.0)

    assert api.client.post(f"/v1/jobs/{queued}/cancel").json()["status"] == "canceled"
    asked = api.client.post(f"/v1/jobs/{running}/cancel").json()

    assert (asked["status"], asked["cancel_requested"]) == ("running", True)
    assert api.client.post(f"/v1/jobs/{queued}/cancel").status_code == 200


def test_an_ended_job_cannot_be_canceled(api: Api):
    job_id = api.submit()["id"]
    api.succeed(job_id)

    response = api.client.post(f"/v1/jobs/{job_id}/cancel")

    assert response.status_code == 409
    assert response.json()["type"] == "/problems/illegal-transition"


def test_delete_removes_the_job_and_all_its_files(api: Api):
    job_id = api.submit()["id"]
    api.succeed(job_id)

    assert api.client.delete(f"/v1/jobs/{job_id}").status_code == 204

    assert api.client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert api.client.get(f"/v1/jobs/{job_id}/findings").status_code == 404
    assert api.stored_files() == []


def test_a_running_job_must_be_canceled_before_it_is_deleted(api: Api):
    job_id = api.submit()["id"]
    api.store.claim(job_id, OWNER, 30.0)

    response = api.client.delete(f"/v1/jobs/{job_id}")

    assert response.status_code == 409
    assert api.storage.upload_dir(job_id).exists()


@pytest.mark.parametrize("job_id", [UNKNOWN_JOB, "..", "%2e%2e%2fetc", "x" * 500, "7"])
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/findings")])
def test_a_job_that_does_not_exist_is_not_found(api: Api, job_id, method, tail):
    response = api.client.request(method, f"/v1/jobs/{job_id}{tail}")

    assert response.status_code in (404, 405)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert len(response.json()["detail"]) < 200


def test_outputs_are_chosen_by_name(api: Api):
    job_id = api.submit(outputs="seg, sr", seg_type="labelmap", deidentify="true")["id"]
    request = api.store.get(job_id).request
    assert (request.outputs, request.seg_type, request.deidentify) == (("seg", "sr"), "labelmap", True)
    assert api.store.get(api.submit()["id"]).request.outputs is None


@pytest.mark.parametrize("field", [{"outputs": "docx"}, {"seg_type": "fractional"}, {"deidentify": "perhaps"}])
def test_an_unknown_output_is_an_invalid_request(api: Api, field):
    files = {"files": ("a.nii.gz", b"x" * 400)}
    response = api.client.post("/v1/jobs", files=files, data=field)
    assert response.status_code == 400
    assert response.json()["type"] == "/problems/invalid-request"
    assert next(iter(field)) in response.json()["detail"]


def test_same_request_with_the_same_idempotency_key_is_the_same_job(api: Api):
    def send(key: str, content: bytes = b"scan", **fields: str):
        return api.client.post(
            "/v1/jobs", headers={"Idempotency-Key": key}, files={"files": ("ct.nii.gz", content)}, data=fields
        )

    first = send("order-7", targets="liver")
    again = send("order-7", targets="liver")
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert api.dispatched == [first.json()["id"]]
    for other in (send("order-7"), send("order-7", b"another scan", targets="liver")):
        assert (other.status_code, other.json()["type"]) == (409, "/problems/idempotency-conflict")
    assert send("order-8").json()["id"] != first.json()["id"]
    assert len([path for path in api.stored_files() if path.is_file()]) == 2
    assert send("two words").status_code == 400


def test_handling_of_a_job_is_chosen_and_shown(api: Api):
    job = api.submit(priority="stat", batch_id="trial-7", time_limit_seconds="60", reuse="false")
    assert (job["priority"], job["batch_id"], job["time_limit_seconds"]) == ("stat", "trial-7", 60.0)
    assert api.store.get(job["id"]).reuse is False
    api.submit()
    listed = api.client.get("/v1/jobs", params={"batch_id": "trial-7"}).json()["jobs"]
    assert [entry["id"] for entry in listed] == [job["id"]]


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": "now"},
        {"batch_id": "a b"},
        {"time_limit_seconds": "0"},
        {"time_limit_seconds": "nan"},
        {"time_limit_seconds": "1e9"},
        {"reuse": "perhaps"},
    ],
)
def test_impossible_handling_is_refused_and_leaves_nothing(api: Api, fields: dict[str, str]):
    response = api.client.post("/v1/jobs", files={"files": ("ct.nii.gz", b"scan")}, data=fields)
    assert response.status_code == 400
    assert next(iter(fields)) in response.json()["detail"]
    assert [path for path in api.stored_files() if path.is_file()] == []


def test_same_study_and_choices_have_the_same_result_key_whatever_the_order_and_names_of_files(api: Api):
    def key(*contents: bytes, **fields: str) -> str | None:
        files = [("files", (f"{content.decode()}.dcm", content)) for content in contents]
        job = api.client.post("/v1/jobs", files=files, data=fields).json()
        return api.store.get(job["id"]).result_key

    same = key(b"1", b"2")
    assert same == key(b"2", b"1") == key(b"1", b"2", priority="stat", mode="accurate")
    assert len({same, key(b"1", b"3"), key(b"12"), key(b"1", b"2", mode="fast"), key(b"1", b"2", outputs="seg")}) == 5


def test_estimate_rests_on_the_latest_jobs_of_the_model(api: Api):
    first, second, third = (api.submit()["id"] for _ in range(3))
    assert api.client.get(f"/v1/jobs/{first}").json()["eta_seconds"] is None
    api.store.claim(first, OWNER, 30.0)
    api.store.succeed(first, OWNER, stage_seconds={"reading": 10.0, "inference": 80.0, "writing": 10.0})
    api.app.state.services = replace(api.app.state.services, estimator=Estimator(api.store))

    assert api.client.get(f"/v1/jobs/{second}").json()["eta_seconds"] == 150  # half a run is under way, and its own
    assert api.client.get(f"/v1/jobs/{third}").json()["eta_seconds"] == 250
    api.store.claim(second, OWNER, 30.0)
    halfway = overall_percent(Stage.INFERENCE, 0.5)
    api.store.renew(second, OWNER, stage="inference", percent=halfway, lease_seconds=30.0)
    assert api.client.get(f"/v1/jobs/{second}").json()["eta_seconds"] == 50
    assert api.client.get(f"/v1/jobs/{first}").json()["eta_seconds"] is None


def test_expired_result_is_gone_and_says_so(api: Api):
    job_id = api.submit()["id"]
    api.succeed(job_id)
    with api.store._transaction() as connection:
        connection.execute(update(JOBS).values(expires_at=datetime.now(UTC)))
    api.store.expire_results(datetime.now(UTC))
    for path in ("findings", "artifacts", "artifacts/masks/liver.nii.gz"):
        response = api.client.get(f"/v1/jobs/{job_id}/{path}")
        assert (response.status_code, response.json()["type"]) == (410, "/problems/result-expired")
    job = api.client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["expired"], job["links"]["artifacts"]) == ("succeeded", True, None)
