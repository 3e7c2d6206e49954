"""Starting work: a job or a search as a form and as YAML, which are two views of one spec."""

from __future__ import annotations

from fastapi import APIRouter

from service.dashboard.site import PageRoute

router = APIRouter(include_in_schema=False, route_class=PageRoute)
