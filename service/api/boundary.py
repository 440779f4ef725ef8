"""The outermost layer of the API: a request id, security headers, and `internal` for whatever nobody expected."""

import secrets

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import ProblemKind, problem_response
from service.errors import InternalError

# The page needs its own script and style, its own API and nothing from elsewhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Jobs and results are medical data: no cache on the way keeps them unless a route says otherwise.
    "Cache-Control": "no-store",
}

log = structlog.get_logger(__name__)


class RequestBoundary:
    """ASGI middleware around the whole application.

    Sets `scope["viscera.request_id"]` and the headers above on each answer. An exception that no handler took is logged
    with its traceback and answered with `internal`; a client that hung up is not an error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope["viscera.request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            log.info("request.disconnected", request_id=request_id, method=scope["method"])
        except Exception:
            log.exception("request.failed", request_id=request_id, method=scope["method"])
            if started:
                raise
            response = problem_response(
                ProblemKind.of(InternalError),
                f"The service failed in an unexpected way. Tell its operator the request id {request_id}.",
                request_id,
            )
            await response(scope, receive, send_with_headers)
