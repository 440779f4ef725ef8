"""How long each stage of a job took, told by the progress reports themselves."""

import time

from service.progress import Progress, Stage


class Stopwatch:
    """A Progress that passes each report on and books the time since the last one to the stage that was running."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._stage: Stage | None = None
        self._since = time.perf_counter()
        self._seconds: dict[Stage, float] = {}

    def __call__(self, stage: Stage, fraction: float) -> None:
        """One report; whatever `report` raises (JobCanceled) comes through."""
        self._book()
        self._stage = stage
        self._report(stage, fraction)

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds per stage so far, to the millisecond."""
        self._book()
        return {stage.value: round(seconds, 3) for stage, seconds in self._seconds.items()}

    def _book(self) -> None:
        now = time.perf_counter()
        if self._stage is not None:
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._since = now
