"""One Celery message per job, which only says "look at job N"; the job table is the truth.

The API sends by name and never imports the task, so it needs none of what the worker needs.
"""

import structlog
from celery import Celery
from kombu.exceptions import ChannelError, KombuError

from service.errors import StorageUnavailable
from service.jobs import transport
from service.jobs.job import Priority
from service.jobs.store import JobStore
from service.settings import Settings

QUEUE_NAME = "viscera"
TASK_NAME = "viscera.segment_job"
# 0 comes first, in Redis and in the embedded queue; Redis keeps a list for each of these steps.
_STEPS = {Priority.STAT: 0, Priority.ROUTINE: 3, Priority.BATCH: 6}
_LAST_RESORT_SECONDS = 60.0
_WORKER_MODULES = ("service.tasks", "service.worker_process")

log = structlog.get_logger(__name__)


def make_celery(settings: Settings) -> Celery:
    """The Celery application of these settings; nothing is connected or imported yet."""
    transport.register()
    # kombu warns about a URL without a host.
    broker_url = f"{transport.TRANSPORT_NAME}://localhost//" if settings.embedded_broker else settings.broker_url
    app = Celery("viscera", broker=broker_url, set_as_current=False, include=_WORKER_MODULES)
    app.conf.update(
        # Wait for the broker at start and for ever.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(settings),
        result_backend=None,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=QUEUE_NAME,
        task_default_delivery_mode="persistent",
        # A request does not wait long for a broker that is away: the sweeper sends later.
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1, "interval_max": 0.1},
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # The lease stops a job in time, and does not count the waiting for the jobs beside it; this is for one whose
        # process answers nothing at all.
        task_time_limit=settings.jobs_at_once * settings.job_time_limit_seconds + _LAST_RESORT_SECONDS,
        worker_concurrency=settings.jobs_at_once,
        worker_pool="prefork",
        worker_prefetch_multiplier=1,
        # The job table recovers a lost job; the message need not be held back for it.
        worker_lost_wait=1.0,
        worker_proc_alive_timeout=60.0,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


class JobQueue:
    """Sends jobs to the workers."""

    def __init__(self, settings: Settings, store: JobStore) -> None:
        self._app = make_celery(settings)
        self._store = store

    def dispatch(self, job_id: str, priority: Priority) -> bool:
        """Send the message about a queued job.

        False when the broker is away; the job then stays undispatched in the table and the sweeper sends it later. A
        second message about a job does no harm, so whatever is unclear counts as not sent.
        """
        try:
            self._app.send_task(TASK_NAME, args=(job_id,), queue=QUEUE_NAME, priority=_STEPS[priority])
        except (KombuError, OSError) as error:
            log.warning("job.not_dispatched", job_id=job_id, reason=type(error).__name__)
            return False
        try:
            self._store.mark_dispatched(job_id)
        except StorageUnavailable:
            log.warning("job.dispatch_not_noted", job_id=job_id)
        return True

    def waiting(self) -> int | None:
        """How many messages no worker has taken yet; None when the broker cannot say."""
        try:
            with self._app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                declared = connection.default_channel.queue_declare(QUEUE_NAME, passive=True)
                return int(declared.message_count)
        except ChannelError:
            return 0  # Redis has no such thing as an empty queue
        except (KombuError, OSError) as error:
            log.warning("queue.unreachable", reason=type(error).__name__)
            return None

    def purge(self) -> None:
        """Drop every message that no worker has taken yet; dispatch the queued jobs again afterwards."""
        with self._app.connection_for_write() as connection:
            connection.default_channel.queue_purge(QUEUE_NAME)

    def close(self) -> None:
        """Give the connections back."""
        self._app.close()


def _transport_options(settings: Settings) -> dict[str, object]:
    if settings.embedded_broker:
        return {"folder": str(settings.broker_dir), "polling_interval": 0.05}
    return {
        # A message is gone when a worker has taken it, as in the embedded queue: the job table recovers what is lost.
        # Redis would keep it until it is acknowledged, and a worker that cannot acknowledge because Redis is away at
        # that moment never takes another.
        "ack_emulation": False,
        "priority_steps": sorted(_STEPS.values()),
        "health_check_interval": 25,
        "socket_keepalive": True,
    }
