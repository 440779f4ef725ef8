"""The body of a request while it arrives: how much of it, and how fast.

Every route reads through this. What is not an upload is small, so the limit is that of JSON until a route that streams
its body to storage raises it with `allow_body`.
"""

import asyncio
import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Message, Receive

from service.errors import BodyTooLarge, RequestTooSlow

BODY_KEY = "viscera.body"


@dataclass(frozen=True)
class BodyPace:
    """How slowly a body may arrive."""

    idle_seconds: float  #: without a single byte
    bytes_per_second: int  #: on average, once the body has taken longer than `idle_seconds`


@dataclass
class GuardedBody:
    """Stands before `receive`; stored in the scope under `BODY_KEY`.

    Time counts only while the application waits for bytes, so a disk that is slow is not the client's fault.
    """

    receive: Receive
    pace: BodyPace
    max_bytes: int
    received: int = 0
    _waited_seconds: float = field(default=0.0, init=False)
    _complete: bool = field(default=False, init=False)

    def release(self) -> None:
        """The answer has begun: who listens now listens for the client's hanging up."""
        self._complete = True

    async def __call__(self) -> Message:
        """The next message of the server.

        Raises:
            BodyTooLarge: the body is longer than this route reads.
            RequestTooSlow: the client has stopped sending, or nearly.
        """
        if self._complete:
            return await self.receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.pace.idle_seconds):
                message = await self.receive()
        except TimeoutError as error:
            raise RequestTooSlow(
                f"Nothing arrived for {self.pace.idle_seconds:g} seconds; send the request again."
            ) from error
        self._waited_seconds += time.monotonic() - began
        if message["type"] != "http.request":
            return message
        self.received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self.received > self.max_bytes:
            raise BodyTooLarge(f"The body of the request is larger than {self.max_bytes} bytes.")
        if not self._complete:
            self._check_pace()
        return message

    def _check_pace(self) -> None:
        least = self._waited_seconds * self.pace.bytes_per_second
        if self._waited_seconds > self.pace.idle_seconds and self.received < least:
            raise RequestTooSlow(
                f"The request arrives at less than {self.pace.bytes_per_second} bytes per second; send it faster."
            )


def allow_body(request: Request, max_bytes: int) -> None:
    """Let this request have a body of `max_bytes`; for a route that does not keep the body in memory."""
    body = request.scope[BODY_KEY]
    assert isinstance(body, GuardedBody)
    body.max_bytes = max_bytes
