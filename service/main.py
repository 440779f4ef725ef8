"""The API as an application; a factory, so that importing does nothing."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from importlib.metadata import version

from anyio import to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from service.api import dicomweb, following, health, jobs, models, operation, pages, results
from service.api.auth import Gate
from service.api.body import BodyPace
from service.api.boundary import RequestBoundary
from service.api.dependencies import Dispatch, Services
from service.api.documentation import openapi_document
from service.api.metrics import ApiMetrics
from service.api.problems import install_problem_handlers
from service.api.traces import RequestTraces
from service.api.watch import JobWatch
from service.catalog import Catalog
from service.exchange.head import identify
from service.jobs.deliveries import DeliveryStore
from service.jobs.estimate import Estimator
from service.jobs.keys import KeyStore
from service.jobs.queue import JobQueue
from service.jobs.store import JobStore
from service.settings import Settings
from service.storage import LocalStorage, open_storage
from service.tracing import open_tracing
from service.webhooks import Deliverer


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
        async with AsyncExitStack() as opened:
            own_store = store or opened.enter_context(closing(JobStore(settings.database_url)))
            keys = KeyStore(own_store.engine)
            services = Services(
                settings=settings,
                store=own_store,
                storage=storage or open_storage(settings.data_dir, settings.storage_url),
                catalog=Catalog.from_settings(settings),
                dispatch=dispatcher or opened.enter_context(closing(JobQueue(settings, own_store))).dispatch,
                identify=identify,
                keys=keys,
                watch=JobWatch(own_store.glimpses),
                metrics=ApiMetrics(own_store),
                estimator=Estimator(own_store),
                tracing=open_tracing(settings, "viscera-api"),
            )
            opened.push_async_callback(to_thread.run_sync, services.tracing.close)  # it waits for the collector
            app.state.services = services
            app.state.gate = Gate(settings, keys)
            if settings.webhook_secret is not None or settings.webhook_tenant_secrets:
                deliverer = Deliverer(settings, DeliveryStore(own_store.engine))
                await opened.enter_async_context(_running(deliverer.run()))
            opened.callback(services.watch.close)
            yield

    app = FastAPI(
        title="Viscera",
        version=version("viscera"),
        lifespan=lifespan,
        # The interactive documentation pages load scripts from elsewhere; openapi.json is enough for any local viewer.
        docs_url=None,
        redoc_url=None,
    )
    for routes in (jobs, following, results, dicomweb, models, health, operation, pages):
        app.include_router(routes.router)
    install_problem_handlers(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "If-None-Match", "Idempotency-Key", "Last-Event-ID", "X-Request-ID"],
            expose_headers=["ETag", "Location", "Retry-After", "X-Request-ID"],
        )
    app.add_middleware(RequestTraces, tracing=lambda: app.state.services.tracing)
    app.add_middleware(
        RequestBoundary,
        max_body_bytes=settings.max_json_bytes,
        pace=BodyPace(settings.request_idle_seconds, settings.request_bytes_per_second),
    )
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


@asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """The work goes on beside the block and ends with it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
