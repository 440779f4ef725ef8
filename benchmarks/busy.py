"""What a worker does with its time while jobs wait for it: the share of each stage, and what lies between two jobs.

    python -m benchmarks.busy [--jobs 6] [STUDY ...]

A whole service is started as `viscera serve` does it, with the default bundle. All jobs are there before the first one
ends; the clock runs from the start of the first to the end of the last. Studies are files (.nii.gz or .zip) that take
turns; without one, a phantom of 2 mm as DICOM. Every job is computed anew.
"""

import argparse
import itertools
import tempfile
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path

from service.jobs.job import JobStatus
from service.jobs.store import JobStore
from service.progress import Stage
from service.settings import Settings
from tests.support.phantom_zip import write_phantom_zip
from tests.support.service_process import running_service

#: Between reading the files and writing new ones: where the masks and the measurements come from.
COMPUTING = (Stage.PREPROCESSING, Stage.INFERENCE, Stage.POSTPROCESSING, Stage.MEASURING)


def main() -> None:
    """One line per stage."""
    parser = argparse.ArgumentParser(description="What a worker does while jobs wait.")
    parser.add_argument("studies", nargs="*", type=Path, metavar="STUDY")
    parser.add_argument("--jobs", type=int, default=6)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        studies = chosen.studies or [write_phantom_zip(folder, (0.8, 0.8, 2.0))]
        with running_service(folder / "data") as (viscera, _):
            turns = itertools.islice(itertools.cycle(studies), chosen.jobs)
            ids = [str(viscera.submit([study], reuse=False)["id"]) for study in turns]
            for job_id in ids:
                viscera.wait(job_id)
        with closing(JobStore(Settings(data_dir=folder / "data").database_url)) as store:
            jobs = [store.get(job_id) for job_id in ids]
    seconds: Counter[str] = Counter()
    for job in jobs:
        assert job.status is JobStatus.SUCCEEDED, job.error
        seconds.update(job.stage_seconds)
    wall = max(_seconds(job.finished_at) for job in jobs) - min(_seconds(job.started_at) for job in jobs)
    for stage in Stage:
        if seconds[stage]:
            print(f"{stage:16}{seconds[stage]:8.1f} s {100 * seconds[stage] / wall:6.1f} %")
    between = wall - sum(seconds.values())
    print(f"{'else':16}{between:8.1f} s {100 * between / wall:6.1f} %")
    computing = sum(seconds[stage] for stage in COMPUTING)
    print(f"{len(jobs)} jobs in {wall:.1f} s; computing {100 * computing / wall:.1f} %: {', '.join(COMPUTING)}")


def _seconds(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


if __name__ == "__main__":
    main()
