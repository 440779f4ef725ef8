"""Chaos: clients submit jobs while workers are killed, Redis and PostgreSQL go away and the disk fills up.

Afterwards every accepted job must have ended exactly once, as succeeded with a whole result or as failed with a right
reason, and no file may be left that no job needs. `python -m tests.support.chaos` prints the tally (`make chaos`).
"""

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx

from service.jobs.job import Job, JobStatus
from service.jobs.queue import JobQueue
from service.jobs.store import JobStore
from service.main import create_app
from service.settings import Settings
from service.storage import LocalStorage
from service.supervisor import EmbeddedWorker
from service.sweeper import Sweeper
from tests.support.api import write_model
from tests.support.chaos_segmenter import MASK, SPEC, mask_of, upload_of
from tests.support.jobs import REPOSITORY, wait_until
from tests.support.live import live_server
from tests.support.servers import PostgresServer, RedisServer
from tests.support.stored import stored_files

DISK_BYTES = 96 * 1024**2
DEADLINE_SECONDS = 300.0


@dataclass(frozen=True)
class Plan:
    """How much of what happens."""

    jobs: int = 200
    clients: int = 20
    workers: int = 2
    job_seconds: float = 0.4
    kills: int = 12
    redis_restarts: int = 1  #: with its data
    redis_wipes: int = 1  #: restarts without them
    postgres_away_seconds: float = 10.0
    disk_full_seconds: float = 8.0
    seed: int = 7


@dataclass
class Tally:
    """What was seen; `problems` must be empty."""

    accepted: int = 0
    answers: Counter[str] = field(default_factory=Counter)  #: status of each answer to POST, or why there was none
    outcomes: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    reused: int = 0
    events: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """The tally for a reader."""
        yield f"{self.accepted} jobs accepted in {self.seconds:.0f} s"
        yield "what happened:    " + ", ".join(f"{name} x{n}" for name, n in Counter(self.events).items())
        yield "answers to POST:  " + ", ".join(f"{answer} x{n}" for answer, n in sorted(self.answers.items()))
        yield "how jobs ended:   " + ", ".join(f"{outcome} x{n}" for outcome, n in sorted(self.outcomes.items()))
        yield "attempts per job: " + ", ".join(f"{count} x{n}" for count, n in sorted(self.attempts.items()))
        yield f"results reused:   {self.reused}"
        yield from (f"PROBLEM: {problem}" for problem in self.problems)
        yield "no job lost or done twice, no result torn, no file orphaned" if not self.problems else "FAILED"


@dataclass
class _Submitted:
    job_id: str
    upload: bytes


class Chaos:
    """One run over servers of its own."""

    def __init__(self, plan: Plan, folder: Path, redis: RedisServer, postgres: PostgresServer | None) -> None:
        self.plan = plan
        self.tally = Tally()
        self.random = random.Random(plan.seed)
        self.redis = redis
        self.postgres = postgres
        self.data_dir = folder / "data"
        self.settings = Settings(
            data_dir=self.data_dir,
            bundles_dir=[folder / "models"],
            broker_url=redis.url,
            database_url=postgres.url if postgres else f"sqlite:///{folder / 'jobs.sqlite3'}",
            segmenter=SPEC,
            auth="none",
            lease_seconds=5.0,
            sweep_seconds=0.5,
            redispatch_seconds=5.0,
            log_level="error",
        )
        self._numbers = itertools.count()
        self._submitted: list[_Submitted] = []
        self._noting = threading.Lock()

    def run(self) -> Tally:
        """Do it all; returns the tally."""
        begin = time.monotonic()
        with ExitStack() as opened:
            store = opened.enter_context(closing(JobStore(self.settings.database_url)))
            workers = [EmbeddedWorker(self.settings) for _ in range(self.plan.workers)]
            for worker in workers:
                worker.start()
            # Stopped beside each other, and before the table is closed.
            opened.callback(lambda: _all_at_once([worker.stop for worker in workers]))
            sweeper = opened.enter_context(_sweeper_process(self.settings))
            everyone = self.plan.workers * self.settings.jobs_at_once
            wait_until(lambda: len(store.workers()) == everyone, what="the workers' start")
            url = opened.enter_context(live_server(create_app(self.settings)))
            with ThreadPoolExecutor(self.plan.clients + 1) as pool:
                clients = [pool.submit(self._client, url, number) for number in range(self.plan.clients)]
                trouble = pool.submit(self._make_trouble, workers)
                for task in (*clients, trouble):
                    task.result()
            self._wait_for_ends(store)
            self._check_jobs(store, url)
            if sweeper.poll() is not None:
                self._problem("the sweeper has died")
        self._check_files()
        self.tally.seconds = time.monotonic() - begin
        return self.tally

    @property
    def _work_seconds(self) -> float:
        """How long the workers need for all jobs when nothing happens."""
        return self.plan.jobs * self.plan.job_seconds / self.plan.workers

    # The clients

    def _client(self, url: str, number: int) -> None:
        share = range(number, self.plan.jobs, self.plan.clients)
        choose = random.Random(self.plan.seed * 1000 + number)
        with httpx.Client(base_url=url, timeout=30.0) as client:
            for _ in share:
                # One in ten is a study that was sent before.
                study = 0 if choose.random() < 0.1 else next(self._numbers) + 1
                upload = upload_of(study, self.plan.job_seconds)
                submitted = _Submitted(self._submit(client, upload), upload)
                with self._noting:
                    self._submitted.append(submitted)
                time.sleep(choose.uniform(0.0, 2.0) * self._work_seconds / len(share))

    def _submit(self, client: httpx.Client, upload: bytes) -> str:
        """Submit as a careful client does: with a key, again after every 503 and broken connection."""
        headers = {"Idempotency-Key": str(uuid4())}
        while True:
            try:
                response = client.post("/v1/jobs", headers=headers, files={"files": ("ct.nii.gz", upload)})
            except httpx.TransportError as error:
                self._note_answer(type(error).__name__)
            else:
                self._note_answer(str(response.status_code))
                if response.status_code == 202:
                    return str(response.json()["id"])
                assert response.status_code == 503, f"{response.status_code}: {response.text[:200]}"
                assert "Retry-After" in response.headers
            time.sleep(0.5)

    # The trouble

    def _make_trouble(self, workers: list[EmbeddedWorker]) -> None:
        events = [lambda: self._kill(workers)] * self.plan.kills
        events += [lambda: self._restart_redis(wipe=False)] * self.plan.redis_restarts
        events += [lambda: self._restart_redis(wipe=True)] * self.plan.redis_wipes
        events += [self._stop_postgres] if self.postgres and self.plan.postgres_away_seconds else []
        events += [self._fill_disk] if self.plan.disk_full_seconds else []
        self.random.shuffle(events)
        pause = self._work_seconds / (len(events) + 1)
        for event in events:
            time.sleep(self.random.uniform(0.5, 1.5) * pause)
            event()

    def _kill(self, workers: list[EmbeddedWorker]) -> None:
        """SIGKILL a worker's parent process, or its child, where the job is."""
        parent = self.random.choice(workers).pid
        assert parent is not None
        children = Path(f"/proc/{parent}/task/{parent}/children")
        with suppress(OSError):  # it has just died
            victims = [parent, *map(int, children.read_text().split())]
            os.kill(self.random.choice(victims), signal.SIGKILL)
            self.tally.events.append("worker killed")

    def _restart_redis(self, *, wipe: bool) -> None:
        self.redis.kill()
        if wipe:
            self.redis.wipe()
        time.sleep(1.0)
        self.redis.start()
        self.tally.events.append("Redis restarted without its data" if wipe else "Redis restarted")

    def _stop_postgres(self) -> None:
        assert self.postgres is not None
        self.postgres.stop()
        time.sleep(self.plan.postgres_away_seconds)
        self.postgres.start()
        self.tally.events.append(f"PostgreSQL away for {self.plan.postgres_away_seconds:g} s")

    def _fill_disk(self) -> None:
        filler = self.data_dir / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1024**2))
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        time.sleep(self.plan.disk_full_seconds)
        filler.unlink()
        self.tally.events.append(f"disk full for {self.plan.disk_full_seconds:g} s")

    # The reckoning

    def _wait_for_ends(self, store: JobStore) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any(count for status, count in store.counts().items() if not status.terminal):
            if time.monotonic() > deadline:
                self._problem(
                    f"after {DEADLINE_SECONDS:g} s there are still jobs that have not ended: {store.counts()}"
                )
                return
            time.sleep(0.2)

    def _check_jobs(self, store: JobStore, url: str) -> None:
        self.tally.accepted = len(self._submitted)
        if len(self._submitted) != self.plan.jobs:
            self._problem(f"{len(self._submitted)} of {self.plan.jobs} jobs were accepted")
        ids = {submitted.job_id for submitted in self._submitted}
        if len(ids) != len(self._submitted):
            self._problem("two requests were answered with one job")
        unknown = {job.id for job in store.list(limit=10 * self.plan.jobs)} - ids
        if unknown:
            self._problem(f"{len(unknown)} jobs exist that no client was told of")
        with httpx.Client(base_url=url, timeout=30.0) as client:
            for submitted in self._submitted:
                self._check_job(store.get(submitted.job_id), submitted.upload, client)

    def _check_job(self, job: Job, upload: bytes, client: httpx.Client) -> None:
        self.tally.attempts[job.attempts] += 1
        self.tally.reused += job.reused_from is not None
        reason = f" ({job.error.code})" if job.error else ""
        self.tally.outcomes[f"{job.status}{reason}"] += 1
        if job.status is JobStatus.SUCCEEDED:
            response = client.get(f"/v1/jobs/{job.id}/artifacts/{MASK}")
            if response.content != mask_of(upload):
                self._problem(f"the result of {job.id} is torn or another's: {response.status_code}")
        elif job.error is None or job.error.code not in self._right_reasons(job):
            self._problem(f"{job.id} ended as {job.status}{reason}")

    def _right_reasons(self, job: Job) -> set[str]:
        lost = {"worker-lost"} if job.attempts >= self.settings.max_attempts else set()
        return lost | ({"storage-unavailable"} if self.plan.disk_full_seconds else set())

    def _check_files(self) -> None:
        """After a sweep that spares no orphan, the files of stored results are all there is."""
        patient = self.settings.model_copy(update={"orphan_seconds": 0.0})
        with closing(JobStore(patient.database_url)) as store, closing(JobQueue(patient, store)) as queue:
            Sweeper(patient, store, LocalStorage(patient.data_dir), queue).sweep_once()
            succeeded = {job.id for job in store.list(status=JobStatus.SUCCEEDED, limit=10 * self.plan.jobs)}
        expected = {f"results/{job_id}/{name}" for job_id in succeeded for name in (MASK, "artifacts.json")}
        found = set(stored_files(self.data_dir))
        for path in sorted(found ^ expected):
            self._problem(f"{'orphaned' if path in found else 'missing'}: {path}")

    def _note_answer(self, answer: str) -> None:
        with self._noting:
            self.tally.answers[answer] += 1

    def _problem(self, words: str) -> None:
        with self._noting:
            self.tally.problems.append(words)


def run_chaos(plan: Plan, redis: RedisServer, postgres: PostgresServer | None) -> Tally:
    """Run a plan in a temporary folder; with a full disk in it, on a small disk of its own (which needs root)."""
    with tempfile.TemporaryDirectory(prefix="viscera-chaos-") as folder, ExitStack() as mounted:
        write_model(Path(folder) / "models")
        (Path(folder) / "data").mkdir()
        if plan.disk_full_seconds:
            mounted.enter_context(_small_disk(Path(folder) / "data"))
        os.environ.setdefault("PYTHONPATH", str(REPOSITORY))
        return Chaos(plan, Path(folder), redis, postgres).run()


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    options = f"size={DISK_BYTES},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "viscera-chaos", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def _sweeper_process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, **settings.to_environment()}
    process = subprocess.Popen([sys.executable, "-m", "service.sweeper"], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _all_at_once(actions: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(actions)) as pool:
        for done in [pool.submit(action) for action in actions]:
            done.result()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=Plan.jobs)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--no-full-disk", action="store_true", help="the small disk needs root")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers and disks are taken down
    plan = Plan(jobs=chosen.jobs, seed=chosen.seed, disk_full_seconds=0.0 if chosen.no_full_disk else 8.0)
    with tempfile.TemporaryDirectory(prefix="viscera-redis-") as folder, ExitStack() as opened:
        redis = RedisServer(Path(folder))
        redis.start()
        opened.callback(redis.kill)
        postgres = opened.enter_context(closing(PostgresServer()))
        postgres.start()
        tally = run_chaos(plan, redis, postgres)
    sys.stdout.write("\n".join(tally.lines()) + "\n")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
