"""Backbones: the list, and one with its card, files, aliases and lineage."""

from __future__ import annotations

from fastapi import APIRouter

from service.dashboard.site import PageRoute

router = APIRouter(include_in_schema=False, route_class=PageRoute)
