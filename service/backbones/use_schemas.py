"""Response models of use and space. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import date

from service.http.schemas import View


class VersionUserView(View):
    """Somebody whose tokens have downloaded weights of a version."""

    owner: str
    downloads: int
    """Days on which one of the tokens did, added up over them."""
    last_used_on: date
    """The last of these days, in UTC."""
    formats: list[str]
    """What was downloaded; `all`: an archive of all formats."""


class OwnerSpaceView(View):
    """What the backbones of an owner take in the artifact storage."""

    owner: str
    backbones: int
    versions: int
    """Versions of these backbones, whoever registered them."""
    bytes: int
    """Of all their files, as far as the sizes of the versions are known."""
    unmeasured: int
    """Versions of unknown size."""
