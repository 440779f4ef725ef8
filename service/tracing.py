"""Traces: a span for the request that makes a job, one for each attempt at the job, and one for each stage of it.

The job's row carries the name of the request's span, so the spans of whichever workers run the job belong to the same
trace. An attribute is an id, a name of a model or stage, a status or a code: nothing that a caller or a scan says.
"""

from collections.abc import Mapping
from typing import Protocol

import structlog

from service.progress import Progress, Stage
from service.settings import Settings

Attributes = Mapping[str, str | int]

log = structlog.get_logger(__name__)


class Span(Protocol):
    """Something that takes time, from `Tracing.begin` on."""

    @property
    def traceparent(self) -> str | None:
        """Its name for those that it causes, as in the W3C header of that name; None when nothing is recorded."""

    def note(self, attributes: Attributes) -> None:
        """Say more about it."""

    def end(self, error: str | None = None) -> None:
        """It is over; `error` is the code of what went wrong."""


class Tracing(Protocol):
    """Where spans go. Safe for threads, not across a fork."""

    def begin(self, name: str, *, parent: str | None = None, attributes: Attributes | None = None) -> Span:
        """A span from now on; below `parent`, a traceparent, where that is one."""

    def close(self) -> None:
        """Send what has ended, and nothing more."""


class _NoSpan:
    traceparent = None

    def note(self, attributes: Attributes) -> None:
        pass

    def end(self, error: str | None = None) -> None:
        pass


class _NoTracing:
    def begin(self, name: str, *, parent: str | None = None, attributes: Attributes | None = None) -> Span:
        return _NO_SPAN

    def close(self) -> None:
        pass


_NO_SPAN: Span = _NoSpan()
NO_TRACING: Tracing = _NoTracing()


class StageSpans:
    """A Progress that passes each report on, and makes a span of each stage."""

    def __init__(self, tracing: Tracing, parent: Span, report: Progress) -> None:
        self._tracing = tracing
        self._parent = parent
        self._report = report
        self._stage: Stage | None = None
        self._span: Span = _NO_SPAN

    def __call__(self, stage: Stage, fraction: float) -> None:
        """One report; whatever `report` raises (JobCanceled) comes through."""
        if stage is not self._stage:
            self._span.end()
            self._stage = stage
            self._span = self._tracing.begin(f"stage {stage}", parent=self._parent.traceparent)
        self._report(stage, fraction)

    def end(self, error: str | None = None) -> None:
        """The last stage is over."""
        self._span.end(error)
        self._span = _NO_SPAN


def open_tracing(settings: Settings, service_name: str) -> Tracing:
    """Traces to the collector of the settings; none where they name none, or what it takes is not installed."""
    if settings.otlp_endpoint is None:
        return NO_TRACING
    try:
        # Of the extra `tracing`: neither installed nor loaded where nobody asks for it.
        from service.otlp import OtlpTracing, exporter_to
    except ModuleNotFoundError as error:
        log.error("tracing.not_started", missing=error.name, remedy="pip install 'viscera[tracing]'")
        return NO_TRACING
    return OtlpTracing(exporter_to(settings.otlp_endpoint), service_name)
