"""A receiver of webhooks behind a real socket."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.support.http_server import body_of, http_server


@dataclass
class Receiver:
    """Takes notes of what comes and answers as told."""

    url: str
    statuses: list[int] = field(default_factory=list)  #: answered in turn; then 204
    location: str | None = None  #: of a redirect
    answer_bytes: int = 0  #: length of the body of each answer
    hold: threading.Event | None = None  #: no answer until it is set
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of this machine."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        receiver.received.append(({name.lower(): value for name, value in request.headers.items()}, body_of(request)))
        if receiver.hold is not None:
            receiver.hold.wait(30)
        request.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
        if receiver.location:
            request.send_header("Location", receiver.location)
        request.send_header("Content-Length", str(receiver.answer_bytes))
        request.end_headers()
        try:
            request.wfile.write(bytes(receiver.answer_bytes))
        except OSError:
            return  # nobody listens that long

    with http_server(answer) as host:
        receiver = Receiver(f"http://{host}/hook")
        try:
            yield receiver
        finally:
            if receiver.hold is not None:
                receiver.hold.set()
