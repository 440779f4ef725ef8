"""Health: is the process up, and can it take work?"""

from fastapi import APIRouter, Response

from service.api.dependencies import Services, ServicesDep
from service.api.schemas import Liveness, Readiness, ReadinessCheck
from service.errors import ModelNotFound, VisceraError
from service.jobs.job import WorkerState

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", operation_id="getLiveness", summary="Is the process up?")
def get_liveness() -> Liveness:
    """Answers as long as the process does; ask `/health/ready` before sending work."""
    return Liveness(status="live")


@router.get(
    "/ready",
    operation_id="getReadiness",
    summary="Can jobs be accepted and worked on?",
    responses={503: {"description": "Not ready; the checks say why.", "model": Readiness}},
)
def get_readiness(response: Response, services: ServicesDep) -> Readiness:
    """Ready when table and storage answer, the default model exists and a worker has passed the model's self-test."""
    checks = [_check_database(services), _check_storage(services), _check_model(services), _check_worker(services)]
    ready = all(check.ready for check in checks)
    if not ready:
        response.status_code = 503
    return Readiness(status="ready" if ready else "not-ready", checks=checks)


def _check_database(services: Services) -> ReadinessCheck:
    try:
        services.store.list(limit=1)
    except VisceraError as error:
        return ReadinessCheck(name="database", ready=False, detail=error.detail)
    return ReadinessCheck(name="database", ready=True, detail="")


def _check_storage(services: Services) -> ReadinessCheck:
    try:
        services.storage.job_ids()
    except OSError:
        return ReadinessCheck(name="storage", ready=False, detail="The data folder cannot be read.")
    return ReadinessCheck(name="storage", ready=True, detail="")


def _check_model(services: Services) -> ReadinessCheck:
    try:
        services.catalog.find()
    except ModelNotFound as error:
        return ReadinessCheck(name="model", ready=False, detail=error.detail)
    return ReadinessCheck(name="model", ready=True, detail="")


def _check_worker(services: Services) -> ReadinessCheck:
    try:
        workers = services.store.workers()
    except VisceraError as error:
        return ReadinessCheck(name="worker", ready=False, detail=error.detail)
    if any(worker.state is WorkerState.READY for worker in workers):
        return ReadinessCheck(name="worker", ready=True, detail="")
    reasons = [worker.detail or f"A worker is {worker.state}." for worker in workers]
    return ReadinessCheck(name="worker", ready=False, detail=" ".join(reasons) or "No worker is running.")
