"""Logs as events with fields: `job.succeeded job_id=... seconds=...`, for a terminal or as JSON lines, on stderr.

An event never holds a patient's data, the name of an uploaded file or a path below the data folder.
"""

import logging
import sys

import structlog
from structlog.typing import Processor

# pydicom and nibabel quote values of the file in their warnings, and those may be a patient's.
# py.warnings: where Python's own warnings go.
_QUOTING_LOGGERS = ("pydicom", "nibabel", "nibabel.global", "pynetdicom", "py.warnings")
# One line for each message of a job says nothing that our own events do not.
_CHATTY_LOGGERS = ("celery.worker.strategy", "celery.app.trace", "httpx", "httpcore")

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
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
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


def _quieten() -> None:
    for name in _QUOTING_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
