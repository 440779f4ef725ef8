"""When a job will be done, from how long the stages of the latest runs of its model took."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from service.jobs.job import Job, JobStatus
from service.jobs.store import JobStore
from service.progress import Stage, stage_fraction

_REMEMBER_SECONDS = 10.0


@dataclass(frozen=True)
class StageSpeeds:
    """Seconds that each stage of a run takes."""

    seconds: Mapping[Stage, float]

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, float]]) -> "StageSpeeds":
        """The median of each stage over some runs; there must be one."""
        return cls({stage: median(run.get(stage.value, 0.0) for run in runs) for stage in Stage})

    @property
    def whole(self) -> float:
        """Seconds of a whole run."""
        return sum(self.seconds.values())

    def remaining(self, stage: Stage, fraction: float) -> float:
        """Seconds from the point where `fraction` (0 to 1) of the stage is done to the end."""
        stages = [*Stage]
        later = stages[stages.index(stage) + 1 :]
        return (1.0 - fraction) * self.seconds[stage] + sum(self.seconds[after] for after in later)


class Estimator:
    """Estimates, with what they rest on remembered for some seconds: callers poll often."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._known: dict[str, tuple[float, StageSpeeds | None]] = {}
        self._workers = (float("-inf"), 1)

    def eta_seconds(self, job: Job, queue_position: int | None) -> float | None:
        """Seconds until the job has ended; None when it has, or nothing is known about its model yet."""
        if job.status.terminal or (speeds := self._speeds(job.model)) is None:
            return None
        if job.status is JobStatus.QUEUED:
            # Those ahead run beside each other, and each worker is on average halfway through what it does now.
            return speeds.whole * (1.5 + ((queue_position or 1) - 1) / self._worker_count())
        if job.stage is None:
            return speeds.whole
        stage = Stage(job.stage)
        return speeds.remaining(stage, stage_fraction(stage, job.percent))

    def _speeds(self, model: str) -> StageSpeeds | None:
        now = time.monotonic()
        asked_at, speeds = self._known.get(model, (float("-inf"), None))
        if now - asked_at > _REMEMBER_SECONDS:
            runs = self._store.stage_seconds(model)
            speeds = StageSpeeds.of(runs) if runs else None
            self._known[model] = (now, speeds)
        return speeds

    def _worker_count(self) -> int:
        now = time.monotonic()
        asked_at, count = self._workers
        if now - asked_at > _REMEMBER_SECONDS:
            count = max(1, len(self._store.workers()))
            self._workers = (now, count)
        return count
