"""A span for each request that changes something, below the caller's own where the request says so."""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.tracing import Span, Tracing

# Polls and probes are many and tell nothing of a job.
_TRACED_METHODS = frozenset({"POST", "DELETE"})
_SPAN_KEY = "viscera.span"
_ERROR_STATUS = 500


class RequestTraces:
    """ASGI middleware inside of `RequestBoundary`; `tracing` is asked for once the application runs."""

    def __init__(self, app: ASGIApp, *, tracing: Callable[[], Tracing]) -> None:
        self.app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] not in _TRACED_METHODS:
            await self.app(scope, receive, send)
            return
        callers = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        span = self._tracing().begin(scope["method"], parent=callers.decode("latin-1"))
        scope[_SPAN_KEY] = span
        status = _ERROR_STATUS

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            # The pattern of the address, not the address: that is the caller's.
            route = getattr(scope.get("route"), "path", "unknown")
            span.note(
                {
                    "http.request.method": scope["method"],
                    "http.route": route,
                    "http.response.status_code": status,
                    "viscera.request_id": scope["viscera.request_id"],
                }
            )
            span.end(str(status) if status >= _ERROR_STATUS else None)


def traceparent_of(scope: Scope) -> str | None:
    """The name of the request's span, for the job that it makes."""
    span: Span | None = scope.get(_SPAN_KEY)
    return None if span is None else span.traceparent
