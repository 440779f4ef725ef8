"""Webhooks: told once, signed, tried again, and never to an address inside."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from service.callbacks import CallbackPolicy, GuardedBackend
from service.errors import CallbackRefused
from service.jobs.deliveries import DeliveryStore
from service.settings import Settings
from service.signatures import signature_headers
from service.webhooks import Deliverer, next_attempt
from tests.support.api import OWNER, Api, running_api
from tests.support.receiver import Receiver, receiving

SECRET = "whsec_" + base64.b64encode(b"the secret of every test here").decode()
OTHERS_SECRET = "whsec_" + base64.b64encode(b"the secret of another tenant!").decode()
LOOPBACK = ["127.0.0.0/8"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A service whose own deliverer sleeps, so that a test does its work step by step."""
    with running_api(tmp_path, **settings()) as api:
        yield api


def settings(**changes) -> dict:
    return {
        "webhook_secret": SECRET,
        "webhook_tenant_secrets": {"other": OTHERS_SECRET},
        "webhook_allowed_networks": LOOPBACK,
        **changes,
    }


@pytest.fixture(autouse=True)
def _no_deliverer_of_its_own(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    async def sleep(_self) -> None:
        await asyncio.sleep(3600)

    if "its_own_deliverer" not in request.keywords:
        monkeypatch.setattr(Deliverer, "run", sleep)


def submit(api: Api, url: str, client=None) -> str:
    files = {"files": ("Doe^Jane.nii", b"scan")}
    response = (client or api.client).post("/v1/jobs", files=files, data={"callback_url": url})
    assert response.status_code == 202, response.text
    return response.json()["id"]


def deliver(api: Api, **changes) -> int:
    chosen = api.settings.model_copy(update=changes)
    return asyncio.run(Deliverer(chosen, DeliveryStore(api.store.engine)).deliver_once())


def make_due(api: Api) -> None:
    """Let the time until the next attempt pass."""
    with api.store.engine.begin() as connection:
        now = datetime.now(UTC).replace(tzinfo=None)
        connection.exec_driver_sql(
            "UPDATE deliveries SET next_attempt_at = ? WHERE next_attempt_at IS NOT NULL", (str(now),)
        )


def rows(api: Api) -> list[dict]:
    with api.store.engine.begin() as connection:
        return [dict(row) for row in connection.exec_driver_sql("SELECT * FROM deliveries").mappings()]


# Delivery


@pytest.mark.parametrize("end", ["succeeded", "failed", "canceled"])
def test_each_end_of_a_job_is_told_once_and_signed(api: Api, receiver: Receiver, end: str):
    job_id = submit(api, receiver.url)
    assert deliver(api) == 0
    {"succeeded": api.succeed, "failed": api.fail, "canceled": api.store.cancel}[end](job_id)

    assert deliver(api) == 1
    assert deliver(api) == 0

    ((headers, body),) = receiver.received
    message = Webhook(SECRET).verify(body, headers)
    assert message["type"] == f"job.{end}"
    assert message["data"]["id"] == job_id
    assert message["data"]["status"] == end
    assert message["data"]["error"] == ("/problems/not-hu" if end == "failed" else None)
    assert rows(api)[0]["delivered_at"] is not None


def test_a_message_holds_only_ids_and_states(api: Api, receiver: Receiver):
    api.succeed(submit(api, receiver.url))
    deliver(api)
    message = json.loads(receiver.received[0][1])
    assert set(message) == {"type", "timestamp", "data"}
    assert set(message["data"]) == {"id", "status", "error", "links"}


def test_a_tenant_with_a_secret_of_its_own_gets_that_signature(api: Api, receiver: Receiver):
    with api.client_of("other") as client:
        api.succeed(submit(api, receiver.url, client))
    deliver(api)
    headers, body = receiver.received[0]
    assert Webhook(OTHERS_SECRET).verify(body, headers)


def test_our_signature_is_that_of_the_library():
    now = datetime.now(UTC)
    ours = signature_headers(SECRET, "msg_1", int(now.timestamp()), b'{"a":1}')
    assert ours["webhook-signature"] == Webhook(SECRET).sign("msg_1", now, '{"a":1}')


def test_what_is_not_taken_is_sent_again_with_the_same_id_and_body(api: Api, receiver: Receiver):
    receiver.statuses = [500, 404]
    api.succeed(submit(api, receiver.url))
    assert deliver(api) == 1
    assert deliver(api) == 0  # not yet due again
    for _ in range(2):
        make_due(api)
        assert deliver(api) == 1
    make_due(api)
    assert deliver(api) == 0
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert len({body for _, body in receiver.received}) == 1
    assert len(receiver.received) == 3
    assert (rows(api)[0]["attempts"], rows(api)[0]["last_error"]) == (3, None)


def test_attempts_come_ever_more_rarely_for_a_day():
    created = now = datetime(2026, 1, 1, tzinfo=UTC)
    pauses = []
    for attempts in range(1, 100):
        following = next_attempt(created, attempts, now, jitter=lambda: 0.0)
        if following is None:
            break
        pauses.append((following - now).total_seconds())
        now = following
    assert pauses[:4] == [5, 15, 45, 135]
    assert max(pauses) == 4 * 3600
    assert timedelta(hours=20) <= now - created <= timedelta(hours=24)


def test_it_is_given_up_after_a_day(api: Api, receiver: Receiver):
    receiver.statuses = [503]
    api.succeed(submit(api, receiver.url))
    DeliveryStore(api.store.engine).enroll(datetime.now(UTC) - timedelta(hours=1))
    with api.store.engine.begin() as connection:
        long_ago = str(datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=25))
        connection.exec_driver_sql("UPDATE deliveries SET created_at = ?", (long_ago,))
    assert deliver(api) == 1
    make_due(api)
    assert deliver(api) == 0
    assert (rows(api)[0]["next_attempt_at"], rows(api)[0]["last_error"]) == (None, "HTTP status 503")


def test_several_processes_send_it_once(api: Api, receiver: Receiver):
    for _ in range(8):
        api.succeed(submit(api, receiver.url))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: [deliver(api) for _ in range(3)], range(4)))
    ids = [json.loads(body)["data"]["id"] for _, body in receiver.received]
    assert len(ids) == len(set(ids)) == 8


def test_who_dies_in_the_middle_leaves_it_to_another(api: Api, receiver: Receiver):
    api.succeed(submit(api, receiver.url))
    deliveries = DeliveryStore(api.store.engine)
    deliveries.enroll(datetime.now(UTC) - timedelta(hours=1))
    claimed = deliveries.claim(datetime.now(UTC), timedelta(minutes=1), 10)
    assert len(claimed) == 1
    assert deliver(api) == 0
    make_due(api)
    assert deliver(api) == 1
    assert len(receiver.received) == 1


def test_a_job_that_is_deleted_is_not_told(api: Api, receiver: Receiver):
    job_id = submit(api, receiver.url)
    api.succeed(job_id)
    DeliveryStore(api.store.engine).enroll(datetime.now(UTC) - timedelta(hours=1))
    api.client.delete(f"/v1/jobs/{job_id}")
    deliver(api)
    assert receiver.received == []
    assert rows(api) == []


@pytest.mark.its_own_deliverer
def test_the_service_delivers_by_itself(tmp_path: Path, receiver: Receiver):
    with running_api(tmp_path, **settings()) as api:
        arrived = threading.Event()
        api.succeed(submit(api, receiver.url))
        for _ in range(200):
            if receiver.received:
                break
            arrived.wait(0.1)
    assert len(receiver.received) == 1


# What a receiver may not do


def test_redirects_are_not_followed(api: Api, receiver: Receiver):
    with receiving() as inside:
        receiver.statuses, receiver.location = [302, 307], inside.url
        api.succeed(submit(api, receiver.url))
        deliver(api)
        make_due(api)
        deliver(api)
        assert inside.received == []
    assert rows(api)[0]["last_error"] == "HTTP status 307"


def test_a_receiver_that_does_not_answer_is_left(api: Api, receiver: Receiver):
    receiver.hold = threading.Event()
    api.succeed(submit(api, receiver.url))
    deliver(api, webhook_timeout_seconds=0.5)
    assert rows(api)[0]["last_error"] == "no answer in time"


def test_a_huge_answer_is_not_read(api: Api, receiver: Receiver):
    receiver.answer_bytes = 200_000_000
    receiver.statuses = [200]
    api.succeed(submit(api, receiver.url))
    assert deliver(api) == 1
    assert rows(api)[0]["delivered_at"] is not None


# Where webhooks may go


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hook",
        "ftp://example.org/hook",
        "https://",
        "https:///hook",
        "https://user:word@example.org/hook",
        "https://example.org/hook#part",
        "https://example.org:0/hook",
        "https://example.org:port/hook",
        "https://exämple.org/hook",
        "https://example.org/a b",
        "https://example.org/\r\nX-Evil: 1",
        "https://127.0.0.1/hook",
        "https://[::1]/hook",
        "https://[::ffff:127.0.0.1]/hook",
        "https://10.1.2.3/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://[fd00::1]/hook",
        "https://" + "a" * 2000 + ".example.org",
    ],
)
def test_an_address_that_can_never_be_called_is_refused_at_once(tmp_path: Path, url: str):
    with running_api(tmp_path, **settings(webhook_allowed_networks=[])) as api:
        response = api.client.post("/v1/jobs", files={"files": ("a.nii", b"scan")}, data={"callback_url": url})
        assert (response.status_code, response.json()["type"]) == (422, "/problems/callback-refused")
        assert api.stored_files() == []


def test_without_a_secret_there_are_no_webhooks(tmp_path: Path):
    with running_api(tmp_path) as api:
        data = {"callback_url": "https://example.org/hook"}
        response = api.client.post("/v1/jobs", files={"files": ("a.nii", b"scan")}, data=data)
        assert response.json()["type"] == "/problems/callback-refused"
        assert "secret" in response.json()["detail"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "198.18.0.1", "192.0.2.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1",
        "fc00::1", "fd12::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::10.0.0.1", "64:ff9b::a00:1",
        "2002:a00:1::", "2001::a00:1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_reached(address: str):
    assert not CallbackPolicy().allows(ip_address(address), encrypted=True)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_outside_are_reached_and_only_encrypted(address: str):
    assert CallbackPolicy().allows(ip_address(address), encrypted=True)
    assert not CallbackPolicy().allows(ip_address(address), encrypted=False)


def test_an_allowed_network_may_be_private_and_plain_but_no_other():
    policy = CallbackPolicy([ip_network("10.1.0.0/16")])
    assert policy.allows(ip_address("10.1.2.3"), encrypted=False)
    assert policy.allows(ip_address("::ffff:10.1.2.3"), encrypted=False)
    assert not policy.allows(ip_address("10.2.0.1"), encrypted=True)


def test_a_name_is_judged_by_what_it_resolves_to_when_the_connection_is_made(api: Api, receiver: Receiver):
    """`localhost` passes the look at the URL, as an attacker's name would; the connection is refused."""
    url = receiver.url.replace("127.0.0.1", "localhost")
    api.succeed(submit(api, url))
    deliver(api, webhook_allowed_networks=[ip_network("10.0.0.0/8")])
    assert receiver.received == []
    assert (rows(api)[0]["next_attempt_at"], "may not reach" in rows(api)[0]["last_error"]) == (None, True)


def test_one_inside_address_among_several_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch):
    async def two_faces(_host, _port):
        return [ip_address("8.8.8.8"), ip_address("127.0.0.1")]

    monkeypatch.setattr("service.callbacks._resolve", two_faces)
    backend = GuardedBackend(CallbackPolicy(), encrypted=True)
    with pytest.raises(CallbackRefused):
        asyncio.run(backend.connect_tcp("two-faces.example", 443))


# Settings


@pytest.mark.parametrize("secret", ["", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64"])
def test_a_weak_secret_is_refused_and_not_repeated(secret: str):
    with pytest.raises(ValueError, match="whsec_") as refused:
        Settings(webhook_secret=secret)
    assert not secret or f"'{secret}'" not in str(refused.value)


def test_secrets_are_shown_to_child_processes_only():
    chosen = Settings(**settings())
    assert SECRET not in repr(chosen) + str(chosen.model_dump()) + chosen.model_dump_json()
    assert chosen.to_environment()["VISCERA_WEBHOOK_SECRET"] == SECRET
    assert OTHERS_SECRET in chosen.to_environment()["VISCERA_WEBHOOK_TENANT_SECRETS"]


def test_a_job_that_another_worker_ended_is_told_too(api: Api, receiver: Receiver):
    job_id = submit(api, receiver.url)
    api.store.claim(job_id, OWNER, 30.0)
    api.store.requeue_expired(datetime.now(UTC), max_attempts=1, dead_owners=[OWNER])
    deliver(api)
    assert json.loads(receiver.received[0][1])["data"]["error"] == "/problems/worker-lost"
