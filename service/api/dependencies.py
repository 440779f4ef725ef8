"""What the routes work with: one object per application, handed to each route that asks for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.api.metrics import ApiMetrics
from service.api.watch import JobWatch
from service.catalog import Catalog
from service.exchange.instance import Identify
from service.jobs.estimate import Estimator
from service.jobs.job import Priority
from service.jobs.keys import KeyStore
from service.jobs.store import JobStore
from service.settings import Settings
from service.storage import LocalStorage
from service.tracing import Tracing

Dispatch = Callable[[str, Priority], bool]
"""Sends the message about a queued job; False when the broker is away, and then the sweeper sends it later."""


@dataclass(frozen=True)
class Services:
    """The outside world of the API."""

    settings: Settings
    store: JobStore
    storage: LocalStorage
    catalog: Catalog
    dispatch: Dispatch
    identify: Identify
    keys: KeyStore
    watch: JobWatch
    metrics: ApiMetrics
    estimator: Estimator
    tracing: Tracing


async def services_of(request: Request) -> Services:
    """The application's services; async, or each request would go through a thread for it."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
