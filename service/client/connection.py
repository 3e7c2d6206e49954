"""The connection to the service: which host gets the token, which redirects are followed, how much an answer may bring.

Every request of the client goes through here. The server may be hostile, and so may anybody between it and the client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self

import httpx

from service.client.errors import ApiError, UnacceptableAnswer

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
ANSWER_BYTES: Final = 64 * 2**20
"""Largest answer that is held in memory: several times the largest that the service sends."""
ERROR_BYTES: Final = 64 * 2**10
"""As much of an error response is read."""
PACE_BYTES: Final = 64 * 2**10
"""A connection that brings less than this within the client's timeout counts as dead."""


class Connection:
    """HTTP requests to one server with one token.

    The token goes only to the origin of ``url``, whatever address the server names. Redirects are refused, except that
    `file` follows one, without the token.
    """

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._origin = _origin(httpx.URL(self.url))
        self._http = httpx.Client(
            base_url=self.url,
            # Compressed answers are neither requested nor accepted: a small one can hold any number of bytes.
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
            timeout=timeout_s,
            trust_env=_uses_proxy(httpx.URL(self.url)),
            follow_redirects=False,
            event_hooks={"request": [self._check_origin]},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of an answer.

        Raises `ApiError` for an error response, `UnacceptableAnswer` for a redirect or more than `ANSWER_BYTES`.
        """
        with self.stream(method, path, params=params, json=json, headers=headers) as response:
            return b"".join(self.body(response, ANSWER_BYTES))

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer whose body can be read with `body`; raises as `request` does."""
        timeout = httpx.Timeout(self.timeout_s, read=read_timeout_s or self.timeout_s)
        with self._http.stream(method, path, params=params, json=json, headers=headers, timeout=timeout) as response:
            if response.has_redirect_location:
                raise UnacceptableAnswer(
                    f"{self.url} redirects to {response.headers['Location']!r}, which does not get the token. If that "
                    "is the service, set RCMAE_URL to its address"
                )
            self.must_succeed(response)
            yield response

    @contextmanager
    def file(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """The response to a GET of a file, also an error response; a redirect is followed once, without the token.

        Raises `UnacceptableAnswer` for a redirect that leads on, from https to http, or into no storage.
        """
        with self._http.stream("GET", path, headers=headers) as response:
            if not response.has_redirect_location:
                yield response
                return
            link = self._link(response)
        # A signed link into the storage, which has ETags of its own.
        headers = {"Accept-Encoding": "identity"} | {name: headers[name] for name in headers if name != "If-Range"}
        with (
            httpx.Client(timeout=self.timeout_s, trust_env=_uses_proxy(link), follow_redirects=False) as storage,
            storage.stream("GET", link, headers=headers) as response,
        ):
            if response.has_redirect_location:
                raise UnacceptableAnswer(f"{path}: the storage at {_origin(link)} redirects; only the service may")
            yield response

    def must_succeed(self, response: httpx.Response) -> None:
        """Raises `ApiError` for an error response, with as much of its body as makes a message."""
        if not response.is_error:
            return
        text = b""
        for piece in self.body(response, None):
            text += piece
            if len(text) >= ERROR_BYTES:
                break
        raise ApiError.of(response, text[:ERROR_BYTES])

    def body(self, response: httpx.Response, most: int | None) -> Iterator[bytes]:
        """The bytes of a body as they come, at most ``most``.

        Raises `UnacceptableAnswer` before the first byte too many is passed on and for a compressed body, and
        `httpx.ReadTimeout` for a server that sends too slowly.
        """
        must_be_plain(response)
        received, due, end = 0, PACE_BYTES, time.monotonic() + self.timeout_s
        for piece in response.iter_raw():
            received += len(piece)
            if most is not None and received > most:
                raise UnacceptableAnswer(
                    f"{_place(response)} sent more than the {most} bytes that are expected; nothing of it is kept"
                )
            if received >= due:
                due, end = received + PACE_BYTES, time.monotonic() + self.timeout_s
            elif time.monotonic() > end:
                text = f"{_place(response)} sent less than {PACE_BYTES} bytes in {self.timeout_s:g} s"
                raise httpx.ReadTimeout(text, request=response.request)
            yield piece

    def _check_origin(self, request: httpx.Request) -> None:
        """Called for every request with the token, before it is sent."""
        if _origin(request.url) != self._origin:
            raise UnacceptableAnswer(
                f"{self.url} names an address on another server, {_origin(request.url)}, which does not get the token"
            )

    def _link(self, response: httpx.Response) -> httpx.URL:
        """Where a redirect of a file leads."""
        location = response.headers["Location"]
        link = response.url.join(location)  # httpx has refused what is no address at all
        if link.scheme not in {"http", "https"} or not link.host or _origin(link) == self._origin:
            raise UnacceptableAnswer(f"{_place(response)} redirects to {location!r}, which is no link into a storage")
        if link.scheme == "http" and response.url.scheme == "https":
            raise UnacceptableAnswer(
                f"{_place(response)} redirects to {_origin(link)}, which is not encrypted: the storage needs https, or "
                "the service has to send files itself, without RCMAE_PRESIGNED_DOWNLOADS"
            )
        return link


def must_be_plain(response: httpx.Response) -> None:
    """Raises `UnacceptableAnswer` for a compressed body."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnacceptableAnswer(
            f"{_place(response)} is sent with the Content-Encoding {encoding!r}, although the client asked for none: "
            "does a proxy compress it on the way?"
        )


def _origin(url: httpx.URL) -> str:
    """Scheme, host and port, which together say whom a request goes to."""
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return f"{url.scheme}://{url.host}:{port}"


def _uses_proxy(url: httpx.URL) -> bool:
    """A proxy from the environment cannot reach this machine's loopback addresses."""
    return url.host not in LOOPBACK


def _place(response: httpx.Response) -> str:
    """A response's address without the query, which may be a signature."""
    return str(response.url.copy_with(query=None))
