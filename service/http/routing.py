"""The class of every route: what a request must keep to before its handler runs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.http import json_text


class StrictRequest(Request):
    """A request whose JSON body is read by `json_text`."""

    async def json(self) -> Any:
        """The body's value; raises `json.JSONDecodeError`."""
        if not hasattr(self, "_json"):
            self._json = json_text.read(await self.body())
        return self._json


class ApiRoute(APIRoute):
    """A route that reads JSON bodies strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly
