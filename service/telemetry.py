"""Logs as events with fields: `job.succeeded job_id=... seconds=...`, for a terminal or as JSON lines, on stderr.

An event never holds a patient's data, the name of an uploaded file or a path below the data folder. What a caller sent
cannot forge a line or move the cursor: control characters are written as escapes.
"""

import io
import logging
import re
import sys
import textwrap
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

# pydicom and nibabel quote values of the file in their warnings, and those may be a patient's.
# py.warnings: where Python's own warnings go.
_QUOTING_LOGGERS = ("pydicom", "nibabel", "nibabel.global", "pynetdicom", "py.warnings")
# One line for each message of a job says nothing that our own events do not.
_CHATTY_LOGGERS = ("alembic", "celery.worker.strategy", "celery.app.trace", "httpx", "httpcore")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_IN_A_BLOCK = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # all but tab and line feed

# structlog would print every local variable of each frame, and there the patient is.
_FRAMES_WITHOUT_LOCALS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def configure_logging(*, as_json: bool, level: str = "info") -> None:
    """Route structlog, Celery, uvicorn and every other logger of this process through one handler."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    rendering: list[Processor] = (
        [structlog.processors.ExceptionRenderer(_FRAMES_WITHOUT_LOCALS), structlog.processors.JSONRenderer()]
        if as_json
        else [
            escape_control_characters,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_indented_traceback),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    _quieten()


def escape_control_characters(_logger: object, _method: str, event: EventDict) -> EventDict:
    """The event with control characters in its texts as escapes; a JSON line has them escaped anyway."""
    for name, value in event.items():
        event[name] = _escaped(value)
    return event


def _escaped(value: Any) -> Any:  # noqa: ANN401 - whatever was logged
    return _CONTROL.sub(_as_escape, value) if isinstance(value, str) else value


def _as_escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _indented_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """The traceback as a block set off from the lines of the log, which an exception's message cannot leave."""
    buffer = io.StringIO()
    structlog.dev.plain_traceback(buffer, exc_info)
    block = _CONTROL_IN_A_BLOCK.sub(_as_escape, buffer.getvalue())
    out.write(textwrap.indent(block, "  | ", lambda _line: True))


def _quieten() -> None:
    for name in _QUOTING_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
