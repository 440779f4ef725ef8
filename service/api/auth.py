"""Who may pass: every route but the few of `OPEN_PATHS` stands behind `needs(scope)`.

    router = APIRouter(prefix="/v1/things", dependencies=[needs(Scope.READ)])

    @router.post("", dependencies=[needs(Scope.SUBMIT)])
    def make_thing(caller: CallerDep, services: ServicesDep) -> Thing: ...

A test holds every route of the application against that list.
"""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection
from structlog.contextvars import bind_contextvars

from service.api.caller import ANYONE, Caller
from service.api.dependencies import Services
from service.api.problems import problems
from service.api.tokens import TokenVerifier
from service.errors import (
    IdentityProviderUnavailable,
    InsufficientScope,
    QuotaExceeded,
    RateLimited,
    StorageUnavailable,
    Unauthenticated,
)
from service.jobs.keys import PREFIX, KeyStore, Scope
from service.settings import Settings

#: What a stranger may see: health for load balancers, the page, and the explanations of problems.
OPEN_PATHS = frozenset({"/", "/web/{name}", "/problems/{code}", "/health/live", "/health/ready", "/openapi.json"})
AUTH_PROBLEMS = problems(
    Unauthenticated, InsufficientScope, RateLimited, StorageUnavailable, IdentityProviderUnavailable
)
QUOTA_RETRY_SECONDS = 30


class Gate:
    """Recognizes callers."""

    def __init__(self, settings: Settings, keys: KeyStore) -> None:
        self._open = settings.auth == "none"
        self._keys = keys
        self._tokens = TokenVerifier(settings) if settings.oidc_issuer else None

    def admit(self, credentials: HTTPAuthorizationCredentials | None) -> Caller:
        """The caller who holds the credentials.

        Raises:
            Unauthenticated: nobody does.
            RateLimited: too often, at whichever API process.
            StorageUnavailable, IdentityProviderUnavailable: nobody can tell at the moment.
        """
        if self._open:
            return ANYONE
        if credentials is None:
            raise Unauthenticated("Send an API key in the header `Authorization: Bearer <key>`.")
        caller = self._recognize(credentials.credentials)
        if caller.key_id is not None and caller.rate_limit is not None:
            self._keys.count_request(caller.key_id, caller.rate_limit)
        return caller

    def _recognize(self, text: str) -> Caller:
        if self._tokens is not None and not text.startswith(f"{PREFIX}_"):
            return self._tokens.caller_of(text)
        return Caller.of_key(self._keys.authenticate(text))


class _Door(HTTPBearer):
    """One dependency that recognizes the caller and asks for a scope: a poll must not cost more than its answer."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(
            scheme_name="HTTPBearer",  # one scheme in the API's description, whatever the scope
            description="An API key (`viscera keys create`), or a JWT of the settings' issuer.",
            auto_error=False,
        )
        self._scope = scope

    async def __call__(self, request: HTTPConnection) -> None:
        credentials = await super().__call__(request)
        gate = request.app.state.gate
        assert isinstance(gate, Gate)
        caller = await to_thread.run_sync(gate.admit, credentials)
        bind_contextvars(tenant=caller.tenant, key_id=caller.key_id)
        if self._scope not in caller.scopes:
            raise InsufficientScope(f"This needs the scope {self._scope.value!r}, which the key does not have.")
        request.state.caller = caller


class _MetricsDoor(_Door):
    """Open to everyone where the settings say so."""

    async def __call__(self, request: HTTPConnection) -> None:
        services = request.app.state.services
        assert isinstance(services, Services)
        if not services.settings.metrics_public:
            await super().__call__(request)


def needs(scope: Scope) -> Any:  # noqa: ANN401 - FastAPI's own marker
    """The dependency of a router or route that only callers with this scope may use."""
    return Depends(_Door(scope))


admit_to_metrics = Depends(_MetricsDoor(Scope.ADMIN))
"""The dependency of the metrics: for callers with the scope `admin`, or everyone where the settings say so."""


async def caller_of(request: Request) -> Caller:
    """The caller that the route's door has recognized."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


CallerDep = Annotated[Caller, Depends(caller_of)]


def check_quota(caller: Caller, keys: KeyStore) -> None:
    """Let a caller submit one more job.

    Raises:
        QuotaExceeded: its key has as many unfinished jobs as it may.
    """
    if caller.quota is None or caller.key_id is None:
        return
    if keys.unfinished_jobs(caller.key_id) >= caller.quota:
        raise QuotaExceeded(
            f"This key may have {caller.quota} unfinished jobs; wait until one has ended.", QUOTA_RETRY_SECONDS
        )
