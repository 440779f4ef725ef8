"""Start-up in any order: a process waits for the database and the storage instead of ending without them."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from service.errors import StorageUnavailable

_RETRY_SECONDS = 1.0

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


def once_available(open_it: Callable[[], _T]) -> _T:
    """What `open_it` returns, as soon as it raises StorageUnavailable no more."""
    while True:
        try:
            return open_it()
        except StorageUnavailable as problem:
            log.warning("start.waits", reason=problem.detail)
            time.sleep(_RETRY_SECONDS)
