"""Which addresses the service sends webhooks to, decided where the connection is made.

A name is resolved once, each address it has is judged, and the connection goes to a judged address: a name that changes
its answer in between (DNS rebinding) gains nothing. Redirects are not followed.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

import httpcore

from service.errors import CallbackRefused

MAX_URL_LENGTH = 2000
# Addresses that stand for an IPv4 address at the far side of a translator, and so perhaps for a private one.
_TRANSLATED = tuple(ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class CallbackPolicy:
    """Public addresses by https; addresses of the allowed networks also when they are private, and by http."""

    def __init__(self, allowed: Iterable[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def check_url(self, url: str) -> None:
        """What can be told without asking a name server.

        Raises:
            CallbackRefused: the address can never be called.
        """
        if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable() or " " in url:
            raise CallbackRefused(f"A callback_url has at most {MAX_URL_LENGTH} printable ASCII characters.")
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise CallbackRefused("The callback_url is not a URL.") from error
        if parts.scheme not in ("https", "http") or not host or port == 0 or parts.fragment:
            raise CallbackRefused("The callback_url must be an https address, without a fragment.")
        if parts.username is not None or parts.password is not None:
            raise CallbackRefused("The callback_url must not hold a user or password; webhooks are signed.")
        if parts.scheme == "http" and not self._allowed:
            raise CallbackRefused("The callback_url must be an https address.")
        literal = _literal(host)
        if literal is not None and not self.allows(literal, encrypted=parts.scheme == "https"):
            raise CallbackRefused("The callback_url leads to an address that webhooks may not reach.")

    def allows(self, address: Address, *, encrypted: bool) -> bool:
        """Whether a connection to the address may be made."""
        plain = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
        if any(plain in network for network in self._allowed):
            return True
        translated = any(plain in network for network in _TRANSLATED)
        return encrypted and plain.is_global and not plain.is_multicast and not plain.is_reserved and not translated


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves, judges and then connects; for one callback, so that it knows whether that is encrypted."""

    def __init__(self, policy: CallbackPolicy, *, encrypted: bool) -> None:
        self._policy = policy
        self._encrypted = encrypted
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address that answers.

        Raises:
            CallbackRefused: one of the addresses may not be reached.
            httpcore.ConnectError: the name is unknown, or nothing answers.
        """
        addresses = await _resolve(host, port)
        if any(not self._policy.allows(address, encrypted=self._encrypted) for address in addresses):
            raise CallbackRefused("The callback_url leads to an address that webhooks may not reach.")
        failure: Exception = httpcore.ConnectError("The name has no address.")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never: a callback has a host."""
        raise CallbackRefused("A callback goes to a host.")

    async def sleep(self, seconds: float) -> None:
        """Part of the protocol."""
        await asyncio.sleep(seconds)


async def _resolve(host: str, port: int) -> Sequence[Address]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError("The name cannot be resolved.") from error
    return list(dict.fromkeys(ip_address(str(address[0]).partition("%")[0]) for *_, address in found))


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
