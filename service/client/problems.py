"""What a caller of the client can get instead of an answer."""

from http import HTTPStatus

import httpx

_AWAY = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_NOTHING_WAS_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class UnreachableError(Exception):
    """No Viscera service answers at the address.

    Attributes:
        may_have_arrived: True when the request was under way already, and only its answer may be missing.
    """

    def __init__(self, message: str, *, may_have_arrived: bool = False) -> None:
        super().__init__(message)
        self.may_have_arrived = may_have_arrived


class ProblemError(Exception):
    """The service answered with an RFC 9457 problem.

    Attributes:
        status: the HTTP status.
        code: the stable kind of problem, such as `not-hu`.
        title: the kind in a few words.
        detail: what is wrong and what to do.
        retry_after_seconds: when the service asks to be asked again; None when it does not.
    """

    def __init__(
        self, status: int, code: str, title: str, detail: str, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(f"{title} ({code}): {detail}")
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


def is_away(error: UnreachableError | ProblemError) -> bool:
    """True when the same request may do later: nothing answers, or what answers cannot serve it now."""
    return isinstance(error, UnreachableError) or error.status in _AWAY


def problem_of(response: httpx.Response) -> ProblemError:
    """The problem that an answer states; one that is no problem document, as of a proxy, gets the code `http-error`."""
    again = retry_after_seconds(response)
    try:
        body = response.json()
        code = str(body["type"]).rpartition("/")[2]
        cause = body.get("cause")
        detail = f"{body['detail']} {cause['detail']}" if cause else str(body["detail"])
        return ProblemError(response.status_code, code, str(body["title"]), detail, again)
    except (ValueError, KeyError, TypeError):
        return ProblemError(response.status_code, "http-error", response.reason_phrase, response.text[:200], again)


def unreachable(url: httpx.URL, error: httpx.TransportError) -> UnreachableError:
    """What a broken connection means to the caller."""
    reason = str(error) or type(error).__name__
    return UnreachableError(
        f"No Viscera service answers at {url} ({reason}). Start one with `viscera serve`.",
        may_have_arrived=not isinstance(error, _NOTHING_WAS_SENT),
    )


def retry_after_seconds(response: httpx.Response) -> float | None:
    """The header Retry-After in seconds; None where there is none, or a date."""
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
