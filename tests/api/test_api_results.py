"""Results over HTTP: findings, the listing, and files whole, in part or not at all."""

from urllib.parse import quote

import pytest

from tests.support.api import OWNER, Api
from tests.support.findings import example_findings


@pytest.fixture
def done(api: Api) -> str:
    job_id = api.submit()["id"]
    api.succeed(job_id)
    return f"/v1/jobs/{job_id}"


def test_findings_are_those_the_job_wrote(api: Api, done):
    response = api.client.get(f"{done}/findings")

    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == example_findings()


def test_every_artifact_of_the_listing_can_be_fetched(api: Api, done):
    artifacts = api.client.get(f"{done}/artifacts").json()["artifacts"]

    assert {artifact["name"] for artifact in artifacts} == {"findings.json", "overview.png", "masks/liver.nii.gz"}
    for artifact in artifacts:
        response = api.client.get(artifact["href"])
        assert response.status_code == 200
        assert response.headers["Content-Type"] == artifact["media_type"]
        assert response.headers["ETag"] == f'"{artifact["sha256"]}"'
        assert len(response.content) == artifact["bytes"]


def test_masks_are_saved_and_pictures_are_shown(api: Api, done):
    mask = api.client.get(f"{done}/artifacts/masks/liver.nii.gz")
    picture = api.client.get(f"{done}/artifacts/overview.png")

    assert mask.headers["Content-Disposition"] == 'attachment; filename="liver.nii.gz"'
    assert picture.headers["Content-Disposition"] == 'inline; filename="overview.png"'
    assert mask.headers["X-Content-Type-Options"] == "nosniff"


def test_a_part_of_a_file_can_be_fetched(api: Api, done):
    address = f"{done}/artifacts/masks/liver.nii.gz"
    etag = api.client.get(address).headers["ETag"]

    part = api.client.get(address, headers={"Range": "bytes=2-4", "If-Range": etag})
    outside = api.client.get(address, headers={"Range": "bytes=50-60"})

    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["Content-Range"] == "bytes 2-4/10"
    assert outside.status_code == 416


def test_a_file_that_the_caller_has_is_not_sent_again(api: Api, done):
    address = f"{done}/artifacts/overview.png"
    etag = api.client.get(address).headers["ETag"]

    same = api.client.get(address, headers={"If-None-Match": f'"other", W/{etag}'})
    other = api.client.get(address, headers={"If-None-Match": '"other"'})

    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", etag)
    assert other.status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "masks/spleen.nii.gz",
        "masks",
        "../artifacts.json",
        "artifacts.json",
        "../../../jobs.sqlite3",
        "/etc/passwd",
        "masks/../../../../jobs.sqlite3",
        "..\\..\\jobs.sqlite3",
        "overview.png\x00.txt",
        "",
    ],
)
def test_a_name_outside_the_listing_is_not_found(api: Api, done, name):
    response = api.client.get(f"{done}/artifacts/{quote(name, safe='')}")

    assert response.status_code == 404
    assert response.json()["type"] in ("/problems/artifact-not-found", "/problems/not-found")


@pytest.mark.parametrize("tail", ["findings", "artifacts", "artifacts/findings.json"])
def test_a_job_that_has_not_ended_has_no_result(api: Api, tail):
    job_id = api.submit()["id"]
    queued = api.client.get(f"/v1/jobs/{job_id}/{tail}")
    api.store.claim(job_id, OWNER, 30.0)
    running = api.client.get(f"/v1/jobs/{job_id}/{tail}")

    for response, status in ((queued, "queued"), (running, "running")):
        assert response.status_code == 409
        assert response.json()["type"] == "/problems/result-not-ready"
        assert status in response.json()["detail"]
        assert "cause" not in response.json()


def test_a_failed_job_answers_with_its_own_problem_as_the_cause(api: Api):
    job_id = api.submit()["id"]
    api.fail(job_id)

    response = api.client.get(f"/v1/jobs/{job_id}/findings")

    assert response.status_code == 409
    assert response.json()["cause"] == {
        "type": "/problems/not-hu",
        "title": "The intensities are not in Hounsfield units",
        "detail": "The values span 0 to 1; send HU.",
    }


def test_a_canceled_job_has_no_result(api: Api):
    job_id = api.submit()["id"]
    api.client.post(f"/v1/jobs/{job_id}/cancel")

    response = api.client.get(f"/v1/jobs/{job_id}/artifacts")

    assert response.status_code == 409
    assert "canceled" in response.json()["detail"]
