"""The API as an application; a factory, so that importing does nothing."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from importlib.metadata import version

from fastapi import FastAPI

from service.api import dicomweb, health, jobs, models, pages, results
from service.api.boundary import RequestBoundary
from service.api.dependencies import Dispatch, Services
from service.api.documentation import openapi_document
from service.api.problems import install_problem_handlers
from service.catalog import Catalog
from service.exchange.head import identify
from service.jobs.queue import JobQueue
from service.jobs.store import JobStore
from service.settings import Settings
from service.storage import LocalStorage


def create_app(
    settings: Settings,
    store: JobStore | None = None,
    storage: LocalStorage | None = None,
    dispatcher: Dispatch | None = None,
) -> FastAPI:
    """The API over a job table, a storage and a queue; those not given are opened from `settings` when it starts.

    Raises:
        StorageUnavailable: on start, when the database or the data folder cannot be used.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as opened:
            own_store = store or opened.enter_context(closing(JobStore(settings.database_url)))
            app.state.services = Services(
                settings=settings,
                store=own_store,
                storage=storage or LocalStorage(settings.data_dir),
                catalog=Catalog.from_settings(settings),
                dispatch=dispatcher or opened.enter_context(closing(JobQueue(settings, own_store))).dispatch,
                identify=identify,
            )
            yield

    app = FastAPI(
        title="Viscera",
        version=version("viscera"),
        lifespan=lifespan,
        # The interactive documentation pages load scripts from elsewhere; openapi.json is enough for any local viewer.
        docs_url=None,
        redoc_url=None,
    )
    for routes in (jobs, results, dicomweb, models, health, pages):
        app.include_router(routes.router)
    install_problem_handlers(app)
    app.add_middleware(RequestBoundary)
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app
