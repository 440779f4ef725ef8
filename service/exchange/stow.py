"""STOW-RS, sending: one object at a time to a DICOMweb peer."""

from http import HTTPStatus
from uuid import uuid4

import httpx

from service.errors import PushFailed
from service.exchange.http import describe_failure, open_client
from service.exchange.multipart import DICOM_TYPE
from service.exchange.objects import ResultObject
from service.exchange.peers import DicomWebPeer

_DICOM_JSON = "application/dicom+json"
_FAILED_SOP_SEQUENCE = "00081198"


class StowSender:
    """Stores objects at a peer; use it as a context manager."""

    def __init__(self, peer: DicomWebPeer) -> None:
        self._url = f"{peer.url.rstrip('/')}/studies"
        self._client = open_client(peer)

    def __enter__(self) -> "StowSender":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(self, item: ResultObject) -> None:
        """Store one object.

        Raises:
            PushFailed: the peer did not take it, or could not be reached.
        """
        boundary = uuid4().hex
        head = f"--{boundary}\r\nContent-Type: {DICOM_TYPE}\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Accept": _DICOM_JSON,
            "Content-Type": f'multipart/related; type="{DICOM_TYPE}"; boundary={boundary}',
        }
        try:
            response = self._client.post(self._url, content=head + item.encoded() + tail, headers=headers)
        except httpx.TransportError as error:
            raise PushFailed(describe_failure(error)) from error
        if response.status_code != HTTPStatus.OK or _names_a_failure(response):
            raise PushFailed(f"it answered {response.status_code}")


def _names_a_failure(response: httpx.Response) -> bool:
    """Whether an answer of 200 nevertheless lists a failed instance; one without a dataset is taken at its word."""
    try:
        dataset = response.json()
    except ValueError:
        return False
    return isinstance(dataset, dict) and bool(dataset.get(_FAILED_SOP_SEQUENCE, {}).get("Value"))
