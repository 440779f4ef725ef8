"""Models over HTTP: what can be asked for."""

from typing import Annotated

from fastapi import APIRouter, Path

from service.api.auth import AUTH_PROBLEMS, needs
from service.api.dependencies import ServicesDep
from service.api.problems import merged, problems
from service.api.schemas import ModelList, ModelView
from service.errors import InternalError, ModelNotFound
from service.jobs.keys import Scope

router = APIRouter(
    prefix="/v1/models",
    tags=["models"],
    responses=merged(AUTH_PROBLEMS, problems(InternalError)),
    dependencies=[needs(Scope.READ)],
)


@router.get("", operation_id="listModels", summary="The models of this service")
def list_models(services: ServicesDep) -> ModelList:
    """Each model with its labels, intended use and licence."""
    default_id = services.catalog.default_id()
    return ModelList(models=[ModelView.of(entry, default_id) for entry in services.catalog.entries()])


@router.get("/{name}", operation_id="getModel", summary="One model", responses=problems(ModelNotFound))
def get_model(
    name: Annotated[str, Path(description="Id or name of the model.", examples=["viscera-compact"])],
    services: ServicesDep,
) -> ModelView:
    """A model by id (`<name>-<version>`), or the newest of a name."""
    return ModelView.of(services.catalog.find(name), services.catalog.default_id())
