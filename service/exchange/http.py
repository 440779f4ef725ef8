"""The HTTP client that talks to DICOMweb peers."""

import ssl
from importlib.metadata import version

import httpx

from service.exchange.peers import DicomWebPeer

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0  # a PACS may need a while to find a study in its archive


def open_client(peer: DicomWebPeer | None) -> httpx.Client:
    """A client with the peer's credentials. It follows no redirect and takes no proxy or password from elsewhere.

    Certificates are checked against those that the machine trusts; `SSL_CERT_FILE` adds a hospital's own.
    """
    return httpx.Client(
        auth=None if peer is None else peer.auth,
        headers={"Accept-Encoding": "identity", "User-Agent": f"viscera/{version('viscera')}"},
        follow_redirects=False,
        timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
        trust_env=False,
        verify=ssl.create_default_context(),
    )


def describe_failure(error: httpx.TransportError) -> str:
    """What happened on the way, without the address."""
    reasons: tuple[tuple[type[httpx.TransportError], str], ...] = (
        (httpx.ConnectTimeout, "nothing answers at its address"),
        (httpx.ConnectError, "nothing answers at its address, or its certificate is not trusted"),
        (httpx.TimeoutException, "it stopped answering"),
    )
    return next((text for kind, text in reasons if isinstance(error, kind)), "the connection broke")
