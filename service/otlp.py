"""Traces for an OpenTelemetry collector, sent as OTLP over HTTP by a thread of their own.

The collector may be away: spans are dropped then, and the service goes on.
"""

from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.tracing import Attributes, Span

_SEND_SECONDS = 5.0
_TRACEPARENT = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()


class OtlpSpan:
    """A `service.tracing.Span` of OpenTelemetry."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """Its name for those that it causes."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return carrier.get(_TRACEPARENT)

    def note(self, attributes: Attributes) -> None:
        """Say more about it."""
        self._span.set_attributes({**attributes})

    def end(self, error: str | None = None) -> None:
        """It is over; the code of an error is all that is told of it, since a message may quote the scan."""
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


class OtlpTracing:
    """A `service.tracing.Tracing` of OpenTelemetry."""

    def __init__(self, exporter: SpanExporter, service_name: str) -> None:
        resource = Resource.create({SERVICE_NAME: service_name, SERVICE_VERSION: version("viscera")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("viscera")

    def begin(self, name: str, *, parent: str | None = None, attributes: Attributes | None = None) -> Span:
        """A span from now on."""
        context = _PROPAGATOR.extract(
            {_TRACEPARENT: parent} if parent else {}, trace.set_span_in_context(trace.INVALID_SPAN)
        )
        return OtlpSpan(self._tracer.start_span(name, context, attributes={**(attributes or {})}))

    def close(self) -> None:
        """Send what has ended, and nothing more."""
        self._provider.shutdown()


def exporter_to(endpoint: str) -> SpanExporter:
    """Sends spans to the collector at this base address."""
    return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_SECONDS)
