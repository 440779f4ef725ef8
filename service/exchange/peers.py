"""The systems that the operator has named: where results may be sent, and the credentials that a reference may use.

A request only ever says a name. Addresses and secrets are in the settings, so nobody outside chooses where data go.
"""

import re
from collections.abc import Generator, Mapping
from typing import Annotated

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr, StringConstraints, model_validator

from service.errors import UnknownPeer

#: PS3.5 6.2, value representation AE: no control characters, no backslash; leading and trailing spaces mean nothing.
AeTitle = Annotated[
    str, StringConstraints(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")
]

_DEFAULT_PORTS = {"http": 80, "https": 443}


class DicomWebPeer(BaseModel):
    """A DICOMweb service: `url` is its root, to which `/studies` is added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(max_length=2048)
    username: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = Field(default=None, description="Bearer token, instead of username and password.")

    @model_validator(mode="after")
    def _makes_sense(self) -> "DicomWebPeer":
        origin_of(self.url)
        if (self.username is None) != (self.password is None):
            raise ValueError("A peer has both username and password, or neither.")
        if self.token is not None and self.username is not None:
            raise ValueError("A peer has a token or a username, not both.")
        return self

    def to_json(self) -> dict[str, JsonValue]:
        """The peer with its secrets, as another process is told of it."""
        secrets = {"password": self.password, "token": self.token}
        shown = {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}
        return self.model_dump(mode="json", exclude_none=True) | shown

    @property
    def auth(self) -> httpx.Auth | None:
        """What adds the credentials to a request; None without any."""
        if self.token is not None:
            return _BearerAuth(self.token.get_secret_value())
        if self.username is not None and self.password is not None:
            return httpx.BasicAuth(self.username, self.password.get_secret_value())
        return None


class _BearerAuth(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


class DicomNode(BaseModel):
    """An application entity of the DICOM network that takes C-STORE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ae_title: AeTitle
    host: str = Field(min_length=1, max_length=255)
    port: int = Field(ge=1, le=65535)

    def to_json(self) -> dict[str, JsonValue]:
        """The node as another process is told of it."""
        return self.model_dump(mode="json")


Peer = DicomWebPeer | DicomNode


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an absolute http(s) URL, normalized; httpx reads it, as it does to connect.

    Raises:
        ValueError: another scheme, no host, userinfo, or characters that programs read differently.
    """
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ValueError("The URL holds spaces, control characters or backslashes.")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError("The URL cannot be read.") from error
    if parsed.scheme not in _DEFAULT_PORTS:
        raise ValueError("The URL begins with neither http:// nor https://.")
    if "@" in url:
        raise ValueError("The URL holds a user name or password.")
    host = parsed.raw_host.decode("ascii").lower().rstrip(".")
    if not host:
        raise ValueError("The URL names no host.")
    if parsed.query or parsed.fragment:
        raise ValueError("The URL has a query or a fragment.")
    return parsed.scheme, host, parsed.port or _DEFAULT_PORTS[parsed.scheme]


def find_peer(peers: Mapping[str, Peer], name: str) -> Peer:
    """The peer of that name.

    Raises:
        UnknownPeer: the settings name none so.
    """
    if name not in peers:
        known = ", ".join(sorted(peers)) or "none"
        raise UnknownPeer(f"There is no peer {name[:64]!r}; known are: {known}. The setting VISCERA_PEERS names them.")
    return peers[name]
