"""What a worker does with its time while jobs wait for it: how much of it the network runs, and how many jobs it ends.

    python -m benchmarks.busy [--jobs 8] [--at-once 1 2] [STUDY ...]

A whole service is started as `viscera serve` does it, with the default bundle, once for each number of jobs at once.
All jobs are there before the first one ends; the clock runs from the start of the first to the end of the last. One job
at a time has the network, so the seconds of `inference` never overlap; those of other stages do. Studies are files
(.nii.gz or .zip) that take turns; without one, a phantom of 2 mm as DICOM. Every job is computed anew.
"""

import argparse
import itertools
import tempfile
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path

from service.jobs.job import Job, JobStatus
from service.jobs.store import JobStore
from service.progress import Stage
from service.settings import Settings
from tests.support.phantom_zip import write_phantom_zip
from tests.support.service_process import running_service


def main() -> None:
    """A table for each number of jobs at once."""
    parser = argparse.ArgumentParser(description="What a worker does while jobs wait.")
    parser.add_argument("studies", nargs="*", type=Path, metavar="STUDY")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args()
    for at_once in chosen.at_once:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            studies = chosen.studies or [write_phantom_zip(folder, (0.8, 0.8, 2.0))]
            _print(_run(folder / "data", studies, chosen.jobs, at_once), at_once)


def _run(data_dir: Path, studies: list[Path], count: int, at_once: int) -> list[Job]:
    with running_service(data_dir, VISCERA_JOBS_AT_ONCE=str(at_once)) as (viscera, _):
        turns = itertools.islice(itertools.cycle(studies), count)
        ids = [str(viscera.submit([study], reuse=False)["id"]) for study in turns]
        for job_id in ids:
            viscera.wait(job_id)
    with closing(JobStore(Settings(data_dir=data_dir).database_url)) as store:
        return [store.get(job_id) for job_id in ids]


def _print(jobs: list[Job], at_once: int) -> None:
    seconds: Counter[str] = Counter()
    for job in jobs:
        assert job.status is JobStatus.SUCCEEDED, job.error
        seconds.update(job.stage_seconds)
    wall = max(_seconds(job.finished_at) for job in jobs) - min(_seconds(job.started_at) for job in jobs)
    print(
        f"{at_once} at once: {len(jobs)} jobs in {wall:.1f} s; the network runs {seconds['inference'] / wall:.1%} of it"
    )
    for stage in Stage:
        if seconds[stage]:
            print(f"    {stage:16}{seconds[stage] / len(jobs):6.1f} s a job")


def _seconds(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


if __name__ == "__main__":
    main()
