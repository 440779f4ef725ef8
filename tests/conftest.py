"""What holds for every test."""

import os

import pytest
import structlog

# One BLAS thread: the tests multiply small matrices, and threads that wait for each other on a busy machine make
# phantoms many times slower to draw. It must be set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _plain_tracebacks() -> None:
    """As the service logs: structlog's own default draws every frame with its variables, for seconds."""
    structlog.configure(
        processors=[structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    )
