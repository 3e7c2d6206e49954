"""Requests to the service: one HTTP client, typed responses, retries of what may be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from service.client.connection import Connection
from service.client.errors import ClientError, UnacceptableAnswer, with_retries
from service.http.schemas import Page

Model = TypeVar("Model", bound=BaseModel)
Params = Mapping[str, Any]


class Transport:
    """HTTP requests to one server with one token; the base of `Client`."""

    def __init__(self, url: str, token: str, *, timeout_s: float = 30.0, patience_s: float = 30.0) -> None:
        self._patience_s = patience_s
        self._connection = Connection(url, token, timeout_s)
        self.url = self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _request(
        self,
        model: type[Model],
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        retried: bool = False,
    ) -> Model:
        body = self._send(method, path, params=params, json=json, headers=headers, retried=retried)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise ClientError(
                f"this client cannot read the answer to {method} {self.url}{path}: is this the service's address, and "
                f"do client and service have the same version? {error.errors(include_url=False)[0]['msg']}"
            ) from error

    def _get(self, model: type[Model], path: str, params: Params | None = None) -> Model:
        return self._request(model, "GET", path, params=params, retried=True)

    def _pages(self, model: type[Page[Model]], path: str, params: Params) -> Iterator[Model]:
        cursor: str | None = None
        while True:
            page = self._get(model, path, {**params, "cursor": cursor})
            yield from page.items
            if page.next_cursor is not None and page.next_cursor == cursor:
                raise UnacceptableAnswer(f"{self.url}{path}: a page of the list names itself as the next one")
            cursor = page.next_cursor
            if cursor is None:
                return

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        retried: bool = False,
    ) -> bytes:
        """The body of an answer."""

        def send_once() -> bytes:
            return self._connection.request(method, path, params=without_none(params), json=json, headers=headers)

        return with_retries(send_once, self._patience_s if retried else 0.0, self.url)


def label_texts(labels: Mapping[str, str] | None) -> list[str]:
    """Labels as a list's parameter has them."""
    return [f"{name}:{value}" for name, value in (labels or {}).items()]


def without_none(params: Params | None) -> dict[str, Any]:
    """Only the parameters that have a value."""
    return {name: value for name, value in (params or {}).items() if value is not None}
