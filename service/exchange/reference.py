"""Which references the service follows: only http(s) to hosts that the operator has allowed.

A reference is checked when it is submitted, and again by the worker before it connects.
"""

import re
from typing import Final

import httpx

from service.errors import ReferenceRefused
from service.exchange.peers import DicomWebPeer, find_peer, origin_of
from service.exchange.plan import Exchange, StudyReference
from service.settings import Settings

_UID = r"[0-9]+(?:\.[0-9]+)*"
_STUDY_PATH: Final = re.compile(rf"(?:/[A-Za-z0-9._~%-]+)*/studies/{_UID}(?:/series/{_UID})?/?")


def check_exchange(exchange: Exchange, settings: Settings) -> None:
    """Refuse a job whose study could not be fetched, or whose results could not be sent.

    Raises:
        ReferenceRefused: see `check_reference`.
        UnknownPeer: no peer has a name that the job uses.
    """
    if exchange.source is not None:
        check_reference(exchange.source, settings)
    for name in exchange.push:
        find_peer(settings.peers, name)


def check_reference(reference: StudyReference, settings: Settings) -> DicomWebPeer | None:
    """The peer whose credentials open the reference, None without credentials; returns only when it may be followed.

    Raises:
        ReferenceRefused: the address is no study or series, or its host is not allowed, or the credentials are for
            another address.
        UnknownPeer: no peer has the name of the credentials.
    """
    if not settings.reference_hosts:
        raise ReferenceRefused(
            "This service follows no references. Its operator allows hosts with the setting VISCERA_REFERENCE_HOSTS, "
            'a JSON list such as ["pacs.example.org:8042"]. Or upload the study.'
        )
    try:
        scheme, host, port = origin_of(reference.url)
    except ValueError as error:
        raise ReferenceRefused(f"{error} Send the address of a study, https://host/.../studies/<uid>.") from error
    path = httpx.URL(reference.url).path
    if not _STUDY_PATH.fullmatch(path) or ".." in path.split("/"):
        raise ReferenceRefused(
            "The address is that of no study or series; it must end in /studies/<uid>, or in "
            "/studies/<uid>/series/<uid>."
        )
    if not any(_allows(entry, scheme, host, port) for entry in settings.reference_hosts):
        raise ReferenceRefused(
            f"The host {host}:{port} is not allowed. The operator allows it with the setting VISCERA_REFERENCE_HOSTS."
        )
    if reference.credentials is None:
        return None
    peer = find_peer(settings.peers, reference.credentials)
    if not isinstance(peer, DicomWebPeer) or origin_of(peer.url) != (scheme, host, port):
        raise ReferenceRefused(
            f"The credentials {reference.credentials!r} are for another address: scheme, host and port must be those "
            "of the peer in the setting VISCERA_PEERS."
        )
    return peer


def _allows(entry: str, scheme: str, host: str, port: int) -> bool:
    """Whether an entry `host:port`, or `host` with the scheme's own port, of the settings means this address."""
    return origin_of(f"{scheme}://{entry}") == (scheme, host, port)
