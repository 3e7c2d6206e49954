"""Response models of use and space. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import date

from service.http.schemas import View


class VersionUserView(View):
    """Somebody whose tokens have used a version."""

    owner: str
    downloads: int
    """Days on which one of the tokens downloaded weights, added up over them; 0 for somebody who only asked for files,
    as clients that load from a cache do.
    """
    last_used_on: date
    """The last day on which one of them downloaded weights or asked for a file, in UTC."""
    formats: list[str]
    """What was downloaded, and what was asked for first on a day; `all`: an archive of all formats."""


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
