"""Jobs: the list, and one with its tabs."""

from __future__ import annotations

from fastapi import APIRouter

from service.dashboard.site import PageRoute

router = APIRouter(include_in_schema=False, route_class=PageRoute)
