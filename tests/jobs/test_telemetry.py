"""Logs: events with fields, from every logger, and nothing of a patient."""

import json
import logging
import warnings

import pytest
import structlog

from service.telemetry import configure_logging

pytestmark = pytest.mark.usefixtures("restored_logging")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_line_has_the_event_its_fields_and_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    with structlog.contextvars.bound_contextvars(job_id="42"):
        structlog.get_logger("service.tasks").info("job.succeeded", seconds=1.5)
        logging.getLogger("celery.worker").warning("consumer lost")
    ours, celery = lines(capsys)
    assert (ours["event"], ours["seconds"], ours["job_id"], ours["level"]) == ("job.succeeded", 1.5, "42", "info")
    assert (celery["event"], celery["logger"], celery["job_id"]) == ("consumer lost", "celery.worker", "42")
    assert str(ours["timestamp"]).endswith("Z")


def test_less_severe_events_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True, level="warning")
    structlog.get_logger().info("small")
    structlog.get_logger().error("big")
    assert [line["event"] for line in lines(capsys)] == ["big"]


@pytest.mark.parametrize("as_json", [True, False])
def test_traceback_has_no_local_variables(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    configure_logging(as_json=as_json)
    patient = "DOE" + "^" + "JANE"
    try:
        raise ValueError(len(patient))
    except ValueError:
        structlog.get_logger().exception("read.failed")
    written = capsys.readouterr().err
    assert "test_traceback_has_no_local_variables" in written
    assert "DOE^JANE" not in written


def test_libraries_that_quote_the_file_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    logging.getLogger("pydicom").warning("Invalid value DOE^JANE")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("Invalid value DOE^JANE", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
