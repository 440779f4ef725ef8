"""What holds for every test."""

import logging
import os
from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = ["tests.support.backends"]

# One BLAS thread: the tests multiply small matrices, and threads that wait for each other on a busy machine make
# phantoms many times slower to draw. It must be set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Logging as it was before a test that configures it."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers, root.level, structlog.get_config()
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.configure(**configuration)


@pytest.fixture(autouse=True, scope="session")
def _plain_tracebacks() -> None:
    """As the service logs: structlog's own default draws every frame with its variables, for seconds."""
    structlog.configure(
        processors=[structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    )
