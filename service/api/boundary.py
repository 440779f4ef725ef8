"""The outermost layer of the API: a request id, security headers, limits of the body, and `internal` for whatever
nobody expected."""

import re
import secrets

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from service.api.body import BODY_KEY, BodyPace, GuardedBody
from service.api.problems import ProblemKind, problem_response
from service.errors import InternalError

# The page needs its own script and style, its own API and nothing from elsewhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Jobs and results are medical data: no cache on the way keeps them unless a route says otherwise.
    "Cache-Control": "no-store",
}
# A caller's own id goes into logs and headers, so it is taken only when it is harmless there.
_CALLERS_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger(__name__)


class RequestBoundary:
    """ASGI middleware around the whole application.

    Sets `scope["viscera.request_id"]` (the caller's `X-Request-ID` where it is a plain word) and the headers above on
    each answer. An exception that no handler took is logged with its traceback and answered with `internal`; a client
    that hung up is not an error.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, pace: BodyPace) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["viscera.request_id"] = request_id
        with bound_contextvars(request_id=request_id):
            await self._serve(scope, receive, send, request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        body = GuardedBody(receive, self._pace, self._max_body_bytes)
        scope[BODY_KEY] = body
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                body.release()
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, body, send_with_headers)
        except ClientDisconnect:
            log.info("request.disconnected", method=scope["method"])
        except Exception:
            log.exception("request.failed", method=scope["method"])
            if started:
                raise
            response = problem_response(
                ProblemKind.of(InternalError),
                f"The service failed in an unexpected way. Tell its operator the request id {request_id}.",
                request_id,
            )
            await response(scope, receive, send_with_headers)


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _CALLERS_REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
