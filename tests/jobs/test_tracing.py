"""Traces: one for a job, from the request to the last stage, and nothing of a patient in it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.jobs.job import JobStatus
from service.jobs.keys import KeyStore
from service.main import create_app
from service.otlp import OtlpTracing, exporter_to
from service.settings import Settings
from service.tasks import WorkContext, run_job
from service.tracing import NO_TRACING, open_tracing
from tests.support.api import write_model
from tests.support.fake_segmenter import FakeSegmenter
from tests.support.http_server import body_of, http_server
from tests.support.jobs import JobSystem, embedded_only, submit
from tests.support.live import live_server
from tests.support.servers import free_port

CALLERS_TRACE, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    """Keeps what comes by OTLP."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> dict[str, tuple[str, Span]]:
        """Each span by its name, with the service that it came from."""
        found = {}
        for body in self.bodies:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = {item.key: item.value.string_value for item in group.resource.attributes}["service.name"]
                found |= {span.name: (service, span) for scope in group.scope_spans for span in scope.spans}
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    def answer(request: BaseHTTPRequestHandler) -> None:
        assert request.path == "/v1/traces"
        collector.bodies.append(body_of(request))
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with http_server(answer) as host:
        collector.url = f"http://{host}"
        yield collector


@embedded_only
def test_one_trace_shows_the_request_the_job_and_its_stages(
    make_system: Callable[..., JobSystem], tmp_path: Path
) -> None:
    write_model(tmp_path / "models")
    with collecting() as collector:
        system = make_system(otlp_endpoint=collector.url, bundles_dir=[tmp_path / "models"])
        worker = system.start_worker()
        key = KeyStore(system.store.engine).create(name="test")[1]
        app = create_app(system.settings, system.store, system.storage, system.queue.dispatch)
        headers = {"Authorization": f"Bearer {key}", "traceparent": f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"}
        with live_server(app) as url, httpx.Client(base_url=url, headers=headers) as client:
            sent = client.post("/v1/jobs", files={"files": ("Doe^Jane.nii.gz", b"voxels of Jane")})
            job_id = sent.json()["id"]
            assert client.get(f"/v1/jobs/{job_id}?name=Jane").status_code == 200
            assert system.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        system.workers.remove(worker)
        worker.stop()  # which sends what it still has

    spans = collector.spans()
    assert {name: service for name, (service, _) in spans.items()} == {
        "POST": "viscera-api",
        "job": "viscera-worker",
        "stage reading": "viscera-worker",
    }
    request, job, stage = (spans[name][1] for name in ("POST", "job", "stage reading"))
    assert {span.trace_id.hex() for span in (request, job, stage)} == {CALLERS_TRACE}
    assert request.parent_span_id.hex() == CALLERS_SPAN
    assert job.parent_span_id == request.span_id
    assert stage.parent_span_id == job.span_id
    attributes = {item.key: item.value.string_value for span in (request, job) for item in span.attributes}
    assert (attributes["http.route"], attributes["viscera.job.id"]) == ("/v1/jobs", job_id)
    assert attributes["viscera.job.status"] == "succeeded"
    assert not any(word in body for body in collector.bodies for word in (b"Jane", key.encode()))


@pytest.fixture
def context(system: JobSystem) -> WorkContext:
    return WorkContext(
        store=system.store,
        storage=system.storage,
        segmenter=FakeSegmenter(system.settings.data_dir / "journal.txt"),
        owner="ann",
        lease_seconds=30.0,
        settings=system.settings,
        time_limit_seconds=3600.0,
        keep_results_for=timedelta(days=1),
        storage_pauses=(),
        kill_process=lambda: pytest.fail("the work did not hear that it was to stop"),
    )


def traced(context: WorkContext, model: str) -> dict[str, ReadableSpan]:
    """The spans of a job, by name."""
    exporter = InMemorySpanExporter()
    tracing = OtlpTracing(exporter, "test")
    job = submit(context.store, context.storage, model)
    run_job(replace(context, tracing=tracing), job.id)
    tracing.close()
    return {span.name: span for span in exporter.get_finished_spans()}


@embedded_only
@pytest.mark.parametrize(("model", "code"), [("bad-input", "too-few-slices"), ("broken", "internal")])
def test_the_span_of_a_failed_job_has_the_code_and_not_the_words(context: WorkContext, model: str, code: str) -> None:
    spans = traced(context, model)
    for name in ("job", "stage reading"):
        assert not spans[name].status.is_ok
        assert (spans[name].attributes or {})["error.type"] == code
        assert not spans[name].events
    assert "Jane" not in "".join(span.to_json() for span in spans.values())


@embedded_only
def test_each_stage_is_a_span_that_ends_when_the_next_begins(context: WorkContext) -> None:
    spans = traced(context, "slow:0.1")
    reading, inference = spans["stage reading"], spans["stage inference"]
    assert reading.end_time is not None
    assert inference.start_time is not None
    assert reading.end_time <= inference.start_time
    assert spans["job"].parent is None  # a job that came from the DICOM network begins a trace


@embedded_only
def test_a_job_does_not_mind_a_collector_that_is_away(context: WorkContext) -> None:
    tracing = OtlpTracing(exporter_to(f"http://127.0.0.1:{free_port()}/"), "test")
    job = submit(context.store, context.storage)
    run_job(replace(context, tracing=tracing), job.id)
    tracing.close()
    assert context.store.get(job.id).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("parent", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\xff\x00" * 999])
def test_a_parent_that_is_none_begins_a_trace(parent: str | None) -> None:
    exporter = InMemorySpanExporter()
    tracing = OtlpTracing(exporter, "test")
    tracing.begin("job", parent=parent).end()
    tracing.close()
    [span] = exporter.get_finished_spans()
    assert span.parent is None


def test_without_a_collector_or_what_it_takes_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracing(Settings(), "test") is NO_TRACING
    monkeypatch.setitem(sys.modules, "service.otlp", None)
    assert open_tracing(Settings(otlp_endpoint="http://127.0.0.1:4318"), "test") is NO_TRACING
    assert NO_TRACING.begin("job").traceparent is None
