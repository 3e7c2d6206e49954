"""What the hub's clients get. The names are the hub's."""
# ruff: noqa: N815

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from service.http.schemas import View


class LargeFile(TypedDict):
    """The LFS entry of a file in a tree. Every file has one, so that clients know its sha256."""

    oid: str
    size: int
    pointerSize: int


class LargeSibling(TypedDict):
    """The LFS entry of a file in a model's description."""

    sha256: str
    size: int
    pointerSize: int


class LastCommit(TypedDict):
    """The version that a file or folder comes from."""

    id: str
    title: str
    date: str


class HubFileView(View):
    """A file of a repository."""

    rfilename: str
    size: int
    blobId: str
    lfs: LargeSibling


class HubModelView(View):
    """A repository at a revision. Lists leave out what was not asked for."""

    model_config = ConfigDict(protected_namespaces=(), json_schema_serialization_defaults_required=False)

    object_id: str = Field(serialization_alias="_id")
    """24 digits that identify the repository."""
    id: str
    modelId: str
    author: str | None = None
    sha: str | None = None
    """The commit."""
    createdAt: str | None = None
    """When the backbone's first version was registered."""
    lastModified: str | None = None
    """When this version was registered."""
    private: bool | None = None
    gated: bool | None = None
    disabled: bool | None = None
    downloads: int | None = None
    """Of this format, in all versions, in the last 30 days: a token counts once a day for each version."""
    downloadsAllTime: int | None = None
    """The same since downloads are counted."""
    likes: int | None = None
    """Always 0: nobody can like a model here."""
    tags: list[str] | None = None
    pipeline_tag: str | None = None
    library_name: str | None = None
    cardData: dict[str, Any] | None = None
    """The front matter of the model card."""
    siblings: list[HubFileView] | None = None
    usedStorage: int | None = None
    """Bytes of this version's files."""


class HubEntryView(View):
    """A file or a folder of a repository."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    type: Literal["file", "directory"]
    path: str
    size: int
    oid: str
    lfs: LargeFile | None = None
    lastCommit: LastCommit | None = None
    """With `expand`."""


class HubRefView(View):
    """A name of a version."""

    name: str
    ref: str
    targetCommit: str


class HubRefsView(View):
    """All names of versions: `main` and the aliases are branches, since they move; numbers are tags."""

    branches: list[HubRefView]
    tags: list[HubRefView]
    converts: list[HubRefView]
    pullRequests: list[HubRefView]


class HubAuthor(TypedDict):
    """Who registered a version."""

    user: str


class HubCommitView(View):
    """A version as a commit."""

    id: str
    title: str
    message: str
    date: str
    authors: list[HubAuthor]


class HubOrganisation(TypedDict):
    """The organisation of all repositories."""

    type: Literal["org"]
    id: str
    name: str
    fullname: str
    isEnterprise: bool
    roleInOrg: Literal["read"]


class HubAccessToken(TypedDict):
    """The token of a request."""

    displayName: str
    role: Literal["read"]


class HubAuthentication(TypedDict):
    """How a caller has identified itself."""

    type: Literal["access_token"]
    accessToken: HubAccessToken


class HubCallerView(View):
    """Who sends a token."""

    type: Literal["user"]
    id: str
    name: str
    fullname: str
    email: str | None
    isPro: bool
    orgs: list[HubOrganisation]
    auth: HubAuthentication
