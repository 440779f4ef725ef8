"""Problems: every error of the API as one RFC 9457 document, and a page that explains each kind.

A problem's `type` is the relative reference `/problems/<code>`, which this service answers with the kind's explanation.
Codes, titles and statuses are those of the error tree (`service.errors`), and a few more that only HTTP knows.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from service.errors import RateLimited, RequestError, Unauthenticated, VisceraError

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_TROUBLE_SECONDS = 5


class ProblemSummary(BaseModel):
    """What went wrong, without the HTTP exchange around it: the error of a failed job."""

    type: str = Field(
        description="Stable kind of the problem; also the address of its explanation.", examples=["/problems/not-hu"]
    )
    title: str = Field(description="The kind in a few words.", examples=["The intensities are not in Hounsfield units"])
    detail: str = Field(
        description="This occurrence: what is wrong and what to do.",
        examples=["The values span 0 to 1; send the CT in Hounsfield units."],
    )


class Problem(ProblemSummary):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    status: int = Field(description="HTTP status of the answer.", examples=[422])
    request_id: str = Field(description="Names the request in the service's log; quote it in a report.")
    cause: ProblemSummary | None = Field(default=None, description="Why the job has no result, when it failed.")


@dataclass(frozen=True)
class ProblemKind:
    """One kind of problem: its stable code, the status it comes with and the words for it."""

    code: str
    status: int
    title: str
    explanation: str

    @property
    def reference(self) -> str:
        """The problem's `type` member."""
        return f"/problems/{self.code}"

    @classmethod
    def of(cls, error: type[VisceraError]) -> "ProblemKind":
        """The kind that a class of the error tree stands for."""
        explanation = inspect.cleandoc(error.__doc__ or error.title)
        return cls(error.code, error.status, error.title, explanation)


NOT_FOUND = ProblemKind("not-found", 404, "Not found", "Nothing is served at this address.")
METHOD_NOT_ALLOWED = ProblemKind(
    "method-not-allowed",
    405,
    "Method not allowed",
    "The address has no such method; see the Allow header.",
)
HTTP_ERROR = ProblemKind("http-error", 400, "The request was refused", "The request does not follow HTTP.")


def problem_kinds() -> dict[str, ProblemKind]:
    """Every kind of problem by its code, in the order of the error tree."""
    kinds = [ProblemKind.of(error) for error in _below(VisceraError)]
    return {kind.code: kind for kind in (*kinds, NOT_FOUND, METHOD_NOT_ALLOWED, HTTP_ERROR)}


def _below(root: type[VisceraError]) -> Iterator[type[VisceraError]]:
    for child in root.__subclasses__():
        if child.__module__ == VisceraError.__module__:
            yield child
            yield from _below(child)


def job_problem(code: str, title: str, detail: str) -> ProblemSummary:
    """The stored error of a job as a problem."""
    return ProblemSummary(type=f"/problems/{code}", title=title, detail=detail)


def problem_response(
    kind: ProblemKind,
    detail: str,
    request_id: str,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    cause: ProblemSummary | None = None,
) -> Response:
    """The problem as an answer; 503 says when to try again."""
    body = Problem(
        type=kind.reference,
        title=kind.title,
        detail=detail,
        status=status or kind.status,
        request_id=request_id,
        cause=cause,
    )
    all_headers = dict(headers or {})
    if body.status == HTTPStatus.SERVICE_UNAVAILABLE:
        all_headers.setdefault("Retry-After", str(RETRY_AFTER_TROUBLE_SECONDS))
    content = body.model_dump(exclude_none=True)
    return JSONResponse(content, status_code=body.status, headers=all_headers, media_type=PROBLEM_JSON)


class ResultMissingError(Exception):
    """Carries a `result-not-ready` together with the problem that a failed job ended with."""

    def __init__(self, error: VisceraError, cause: ProblemSummary | None) -> None:
        super().__init__(error.detail)
        self.error = error
        self.cause = cause


class NothingNewError(Exception):
    """Ends a request with 204: a stream that the caller has heard to its end."""


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every typed error, validation error and HTTP error with a problem; the rest is `RequestBoundary`'s."""

    def on_viscera_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, VisceraError)
        headers = {}
        if isinstance(error, Unauthenticated):
            headers["WWW-Authenticate"] = 'Bearer realm="viscera"'
        if isinstance(error, RateLimited):
            headers["Retry-After"] = str(error.retry_after_seconds)
        return problem_response(ProblemKind.of(type(error)), error.detail, request_id_of(request), headers=headers)

    def on_result_missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, ResultMissingError)
        kind = ProblemKind.of(type(error.error))
        return problem_response(kind, error.error.detail, request_id_of(request), cause=error.cause)

    def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        places = (f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
        return problem_response(ProblemKind.of(RequestError), "; ".join(places)[:1000], request_id_of(request))

    def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}.get(error.status_code, HTTP_ERROR)
        detail = kind.explanation if kind is not HTTP_ERROR else str(error.detail)
        return problem_response(kind, detail, request_id_of(request), status=error.status_code, headers=error.headers)

    def on_nothing_new(_request: Request, _error: Exception) -> Response:
        return Response(status_code=HTTPStatus.NO_CONTENT)

    app.add_exception_handler(VisceraError, on_viscera_error)
    app.add_exception_handler(NothingNewError, on_nothing_new)
    app.add_exception_handler(ResultMissingError, on_result_missing)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)


def request_id_of(request: Request) -> str:
    """The id that `RequestBoundary` gave the request."""
    return str(request.scope.get("viscera.request_id", ""))


def problems(*errors: type[VisceraError] | ProblemKind) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for the kinds of problem that an operation can answer with, each with an example."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        kind = error if isinstance(error, ProblemKind) else ProblemKind.of(error)
        content = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        response = by_status.setdefault(kind.status, {"description": "", "content": {PROBLEM_JSON: content}})
        response["description"] = "; ".join(filter(None, (response["description"], kind.title)))
        response["content"][PROBLEM_JSON]["examples"][kind.code] = {
            "summary": kind.title,
            "value": {
                "type": kind.reference,
                "title": kind.title,
                "detail": kind.explanation,
                "status": kind.status,
                "request_id": "3f0c9b1e5d8a4c67",
            },
        }
    return by_status


def merged(*responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` of several `problems(...)`; where they share a status, all kinds are shown."""
    together: dict[int | str, dict[str, Any]] = {}
    for status, response in (item for some in responses for item in some.items()):
        known = together.setdefault(status, {"description": "", "content": {PROBLEM_JSON: {}}})
        titles = [known["description"], response["description"]]
        known["description"] = "; ".join(dict.fromkeys(filter(None, titles)))
        content, more = known["content"][PROBLEM_JSON], response["content"][PROBLEM_JSON]
        content["schema"] = more["schema"]
        content["examples"] = content.get("examples", {}) | more["examples"]
    return together
