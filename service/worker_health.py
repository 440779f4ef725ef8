"""Whether the worker of this container is ready, for its health check. `python -m service.worker_health`."""

import sys
from contextlib import closing

from service.cli.console import print_problem
from service.errors import VisceraError
from service.jobs.job import WorkerState
from service.jobs.owner import is_here
from service.jobs.store import JobStore
from service.settings import Settings


def main() -> int:
    """0 when a worker that lives beside this process is ready; else 1, and one line that says why."""
    try:
        with closing(JobStore(Settings().database_url)) as store:
            workers = [worker for worker in store.workers() if is_here(worker.owner)]
    except VisceraError as problem:
        print_problem(problem.detail)
        return 1
    if any(worker.state is WorkerState.READY for worker in workers):
        return 0
    print_problem(" ".join(worker.detail or f"The worker is {worker.state}." for worker in workers) or "No worker.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
