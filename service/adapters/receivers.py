"""Sends requests to addresses that users name, and to no host that they may not reach.

A name is resolved for each request, and every address that it has must be allowed. The connection goes to an address
that was checked: nothing resolves the name a second time, no proxy of the environment is used, and no redirect is
followed.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

import httpcore
import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SETTING: Final = "RCMAE_WEBHOOK_PRIVATE_NETWORKS"
TIMEOUT_S: Final = 15.0
"""For a whole request, however slowly the answer comes."""
READ_BYTES: Final = 4096
"""As much of an answer's body is read."""
LONGEST_URL: Final = 2000
GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
SIX_TO_FOUR: Final = IPv6Network("2002::/16")
"""Addresses that relays send on to an IPv4 address, which may be private."""
NAT64: Final = IPv6Network("64:ff9b::/96")
"""Addresses that a gateway sends on to the IPv4 address in their last four bytes."""


class NotAllowed(Exception):
    """A URL to which nothing is sent. The text says why, and what to do."""


class Undelivered(Exception):
    """A request that got no answer. The text says why."""


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    status: int
    body: bytes
    """At most `READ_BYTES` of it."""
    retry_after: str | None


def check(url: str, private: Sequence[Network]) -> list[Address]:
    """The addresses of a URL's host, by resolving it now. Raises `NotAllowed` where one of them is not allowed.

    ``private``: networks that are allowed although their addresses are not public. Only there the scheme may be http.
    """
    parsed = _parsed(url)
    addresses = _resolved(parsed.raw_host.decode("ascii"), _port(parsed))
    for address in addresses:
        inside = any(address in network for network in private)
        if not inside and not _is_public(address):
            raise NotAllowed(
                f"{parsed.host} has the address {address}, which is not public: an operator can allow its network with "
                f"the setting {SETTING}"
            )
        if not inside and parsed.scheme != "https":
            raise NotAllowed(f"use https: http is allowed only in the networks that the setting {SETTING} names")
    return addresses


def post(url: str, headers: Mapping[str, str], body: bytes, private: Sequence[Network]) -> Answer:
    """Send a POST, which takes at most `TIMEOUT_S` once the name is resolved.

    Raises `NotAllowed` as `check` does, and `Undelivered`.
    """
    addresses, parsed = check(url, private), _parsed(url)
    target = httpcore.URL(
        scheme=parsed.raw_scheme,
        host=parsed.raw_host,
        port=parsed.port,
        target=parsed.raw_path,
    )
    backend = _Checked(addresses, time.monotonic() + TIMEOUT_S)
    with httpcore.ConnectionPool(ssl_context=_tls(), network_backend=backend) as pool:
        try:
            with pool.stream(
                "POST",
                target,
                headers=[("Host", parsed.netloc.decode("ascii")), *headers.items()],
                content=body,
                extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_S)},
            ) as response:
                told = {name.lower(): value for name, value in response.headers}
                return Answer(response.status, _beginning(response), told.get(b"retry-after", b"").decode("latin-1"))
        except (httpcore.TimeoutException, TimeoutError) as error:
            raise Undelivered(f"no whole answer within {TIMEOUT_S:g} s") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise Undelivered(f"{type(error).__name__}: {error}") from error


def _beginning(response: httpcore.Response) -> bytes:
    """The beginning of an answer's body: the status has come, so that trouble with the rest does not matter."""
    read = b""
    try:
        for piece in response.iter_stream():
            read += piece
            if len(read) >= READ_BYTES:
                break
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError):
        return read[:READ_BYTES]
    return read[:READ_BYTES]


def _parsed(url: str) -> httpx.URL:
    """Raises `NotAllowed` for what is no URL of a host."""
    if len(url) > LONGEST_URL:
        raise NotAllowed(f"use a URL of at most {LONGEST_URL} characters")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise NotAllowed(f"this is no URL: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise NotAllowed("use a URL such as https://ci.example.org/hooks/rcmae")
    if parsed.userinfo:
        raise NotAllowed("leave out the user and the password: receivers check the signature of each delivery")
    if parsed.fragment:
        raise NotAllowed("leave out the part after #, which is never sent")
    return parsed


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _resolved(host: str, port: int) -> list[Address]:
    """All addresses of a host. Raises `NotAllowed` if it has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotAllowed(f"{host} cannot be resolved: {error}") from error
    return list(dict.fromkeys(_plain(str(sockaddr[0])) for *_, sockaddr in found))


def _plain(text: str) -> Address:
    """An address, without the zone, and the IPv4 address where IPv6 only wraps one."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and (address not in GLOBAL_UNICAST or address in SIX_TO_FOUR):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


@cache
def _tls() -> ssl.SSLContext:
    """The authorities in `SSL_CERT_FILE`, or those that come with certifi."""
    return httpx.create_ssl_context()


class _Checked(httpcore.NetworkBackend):
    """Connects to the first of some addresses that answers, whatever the host's name, until a deadline."""

    def __init__(self, addresses: Iterable[Address], deadline: float) -> None:
        self._addresses, self._deadline = list(addresses), deadline

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - it was resolved before
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        last: Exception = httpcore.ConnectError("there is no address")
        for index, address in enumerate(self._addresses):
            share = _left(self._deadline, timeout) / (len(self._addresses) - index)  # leaves time for the others
            try:
                stream = httpcore.SyncBackend().connect_tcp(str(address), port, share, local_address, socket_options)
                return _Bounded(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last


class _Bounded(httpcore.NetworkStream):
    """A stream whose every operation ends at a deadline, also if it brings a byte now and then."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline, timeout))
        return _Bounded(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
    """Seconds until a deadline, at most a timeout. Raises `TimeoutError` where none is left."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left if timeout is None else min(left, timeout)
