"""For the operator: what Prometheus reads."""

from fastapi import APIRouter, Response

from service.api.auth import AUTH_PROBLEMS, admit_to_metrics
from service.api.dependencies import ServicesDep
from service.api.metrics import CONTENT_TYPE
from service.api.problems import merged, problems
from service.errors import InternalError

EXAMPLE = """\
# HELP viscera_queue_depth Jobs that wait, by priority.
# TYPE viscera_queue_depth gauge
viscera_queue_depth{priority="stat"} 0.0
viscera_queue_depth{priority="routine"} 3.0
viscera_queue_depth{priority="batch"} 120.0
"""

router = APIRouter(tags=["operation"], responses=merged(AUTH_PROBLEMS, problems(InternalError)))


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Metrics for Prometheus",
    dependencies=[admit_to_metrics],
    response_class=Response,
    responses={
        200: {
            "description": "The text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": EXAMPLE}},
        }
    },
)
def get_metrics(services: ServicesDep) -> Response:
    """Jobs by status, queue depth by priority, failures by code, workers by state, uploaded bytes.

    Needs the scope `admin`, unless the settings make it public. Workers have metrics of their own, on a port of their
    own.
    """
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)
