"""Tells callback addresses that a job has ended: signed, tried again for a day, and never to a private address.

A message says which job has ended and how. It holds no finding and nothing of a patient; the receiver fetches the job
with its own key. Signatures follow Standard Webhooks (`service.signatures`).
"""

import asyncio
import json
import random
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import httpcore
import structlog
from anyio import to_thread

from service.callbacks import CallbackPolicy, GuardedBackend
from service.errors import CallbackRefused, StorageUnavailable
from service.jobs.deliveries import Delivery, DeliveryStore
from service.settings import Settings
from service.signatures import signature_headers

GIVE_UP_AFTER = timedelta(hours=24)
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 4 * 3600.0
_IDLE_SECONDS = 1.0
_TROUBLE_SECONDS = 5.0
_AT_ONCE = 10  # deliveries under way in one process
_HOUSEKEEPING_SECONDS = 3600.0

log = structlog.get_logger(__name__)


class DeliveryFailed(Exception):
    """One attempt did not reach the receiver; says why in a few words of ours."""


class WebhookSender:
    """Makes one attempt."""

    def __init__(self, policy: CallbackPolicy, timeout_seconds: float) -> None:
        self._policy = policy
        self._timeout_seconds = timeout_seconds
        self._tls = ssl.create_default_context()

    async def send(self, delivery: Delivery, secret: str) -> None:
        """Deliver, or raise.

        Only the status line and headers of the answer are read, within one time limit for everything, so a receiver can
        neither fill the memory nor hold the connection. A redirect is an answer like any other: not 2xx, so not taken.

        Raises:
            CallbackRefused: the address may not be reached.
            DeliveryFailed: it was not reached, or did not take the message.
        """
        self._policy.check_url(delivery.url)
        body = _body(delivery)
        signature = signature_headers(secret, delivery.id, int(time.time()), body)
        headers = [("content-type", "application/json"), ("user-agent", "viscera-webhooks"), *signature.items()]
        url = httpcore.URL(delivery.url)
        backend = GuardedBackend(self._policy, encrypted=url.scheme == b"https")
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=backend) as pool,
                pool.stream("POST", url, headers=headers, content=body) as response,
            ):
                status = response.status
        except TimeoutError as error:
            raise DeliveryFailed("no answer in time") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise DeliveryFailed(f"no connection ({type(error).__name__})") from error
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise DeliveryFailed(f"HTTP status {status}")


def _body(delivery: Delivery) -> bytes:
    data = {
        "id": delivery.job_id,
        "status": delivery.event.removeprefix("job."),
        "error": None if delivery.error_code is None else f"/problems/{delivery.error_code}",
        "links": {"self": f"/v1/jobs/{delivery.job_id}"},
    }
    message = {"type": delivery.event, "timestamp": delivery.created_at.isoformat(), "data": data}
    return json.dumps(message, separators=(",", ":")).encode()


class Deliverer:
    """Delivers what is due, in the event loop of the API; every API process may have one."""

    def __init__(self, settings: Settings, deliveries: DeliveryStore) -> None:
        self._settings = settings
        self._deliveries = deliveries
        self._sender = WebhookSender(
            CallbackPolicy(settings.webhook_allowed_networks), settings.webhook_timeout_seconds
        )
        self._kept_house_at: float | None = None

    async def run(self) -> None:
        """Deliver until the task is canceled."""
        while True:
            try:
                pause = 0.0 if await self.deliver_once() else _IDLE_SECONDS
            except StorageUnavailable:
                pause = _TROUBLE_SECONDS
            except Exception:
                log.exception("webhooks.failed")
                pause = _TROUBLE_SECONDS
            await asyncio.sleep(pause)

    async def deliver_once(self) -> int:
        """Make one attempt for everything that is due, up to a handful; returns for how many."""
        await to_thread.run_sync(self._keep_house)
        await to_thread.run_sync(self._deliveries.enroll, datetime.now(UTC) - GIVE_UP_AFTER)
        hold = timedelta(seconds=2 * self._settings.webhook_timeout_seconds + _TROUBLE_SECONDS)
        due = await to_thread.run_sync(self._deliveries.claim, datetime.now(UTC), hold, _AT_ONCE)
        async with asyncio.TaskGroup() as attempts:
            for delivery in due:
                attempts.create_task(self._attempt(delivery))
        return len(due)

    async def _attempt(self, delivery: Delivery) -> None:
        secret = self._settings.webhook_secret_of(delivery.tenant)
        fields = {"job_id": delivery.job_id, "delivery": delivery.id, "attempt": delivery.attempts}
        try:
            if secret is None:
                raise CallbackRefused("The tenant has no webhook secret any more.")
            await self._sender.send(delivery, secret)
        except CallbackRefused as refusal:
            log.warning("webhook.refused", **fields)
            await to_thread.run_sync(self._deliveries.failed, delivery.id, refusal.detail, None)
        except DeliveryFailed as failure:
            retry_at = next_attempt(delivery.created_at, delivery.attempts, datetime.now(UTC))
            log.warning("webhook.failed", reason=str(failure), given_up=retry_at is None, **fields)
            await to_thread.run_sync(self._deliveries.failed, delivery.id, str(failure), retry_at)
        else:
            log.info("webhook.delivered", **fields)
            await to_thread.run_sync(self._deliveries.succeeded, delivery.id)

    def _keep_house(self) -> None:
        if self._kept_house_at is None or time.monotonic() - self._kept_house_at > _HOUSEKEEPING_SECONDS:
            self._kept_house_at = time.monotonic()
            self._deliveries.forget_deleted_jobs()


def next_attempt(
    created_at: datetime,
    attempts: int,
    now: datetime,
    jitter: Callable[[], float] = random.random,
) -> datetime | None:
    """When to try again: 5 s, 15 s, 45 s ... up to 4 h later, a little spread; None when a day is over."""
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 3.0 ** (attempts - 1))
    at = now + timedelta(seconds=pause * (1 + jitter() / 10))
    return at if at <= created_at + GIVE_UP_AFTER else None
