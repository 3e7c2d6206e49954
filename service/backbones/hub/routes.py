"""The hub's routes. `hub.refusals` says what is answered where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import FormData

from service.backbones import registry, service, use
from service.backbones.hub import models, refusals, repositories, trees
from service.backbones.hub.models import ALWAYS, BY_NAME, FULL, LISTED, SORTS
from service.backbones.hub.repositories import moment
from service.backbones.hub.views import (
    HubCallerView,
    HubCommitView,
    HubEntryView,
    HubModelView,
    HubRefsView,
    HubRefView,
)
from service.backbones.schemas import LARGEST, MAIN
from service.context.app_state import MayReadBackbones, StateDep
from service.http.problems import ApiProblem
from service.http.ranges import file_response, not_modified
from service.http.routing import ApiRoute
from trainer.spec import formats

PREFIX: Final = "/hf"
API: Final = "/api/models/{org}/{repo}"
COMMIT_HEADER: Final = "X-Repo-Commit"
MOST_LISTED: Final = 1000
"""Most entries of a page of models."""
NOTHING_HAS: Final = ("apps", "gated", "inference", "inference_provider")
"""Filters of the hub that ask for what no model here is or has."""
PAGE_OF_COMMITS: Final = 50
MOST_PAGES: Final = 10**6


class HubRoute(ApiRoute):
    """A route of the hub's protocol. Its clients send parameters such as `expand`, `blobs` or `securityStatus` that
    depend on their version, and expect a hub to ignore those that it does not know.
    """

    takes_other_parameters = True


router = APIRouter(prefix=PREFIX, tags=["hub"], route_class=HubRoute)
no_route = APIRouter(prefix=PREFIX, include_in_schema=False, route_class=HubRoute)
"""Answers what no other route does: it belongs after all others."""

Recursive = Annotated[bool, Query(description="include the content of subfolders")]
Expand = Annotated[bool, Query(description="say of each entry which version it comes from")]
Fields = Annotated[list[str] | None, Query(alias="expand", description="only these fields; unknown ones are ignored")]
OldFields = Annotated[list[str] | None, Query(alias="expand[]", description="the same, as some clients write it")]


# --- files ------------------------------------------------------------------------------------------------------------


@router.get("/{org}/{repo}/resolve/{revision}/{path:path}", response_class=StreamingResponse)
@router.head("/{org}/{repo}/resolve/{revision}/{path:path}", response_class=StreamingResponse)
@router.get("/{org}/{repo}/raw/{revision}/{path:path}", response_class=StreamingResponse)
@router.head("/{org}/{repo}/raw/{revision}/{path:path}", response_class=StreamingResponse)
def resolve(
    org: str,
    repo: str,
    revision: str,
    path: str,
    state: StateDep,
    caller: MayReadBackbones,
    request: Request,
) -> Response:
    """A file of a repository. `Range` is supported, and `ETag` is the file's sha256.

    `raw` is the same as `resolve`, because no file of this hub is a git LFS pointer. If `RCMAE_PRESIGNED_DOWNLOADS` is
    set, it redirects to a signed link into S3.
    """
    repository = repositories.find(state, caller, org, repo, revision)
    commit = {COMMIT_HEADER: repository.content.commit}
    stored_path = repository.files.get(path)
    if stored_path is None:
        text = f"there is no file {path!r} in {repository.id} at {revision}"
        raise ApiProblem(404, "entry_not_found", text, headers=commit)
    file = registry.stored(state, repository.version, stored_path, repository.content.listed)
    digest = repository.content.sums[stored_path]
    etag = f'"{digest}"'
    use.note_repository_file(caller, repository.version, repository.folder, stored_path)
    link = None if not_modified(request, etag) else service.link(state, file)
    if link:
        # Clients do not send their token to other hosts. They read the file's size and hash here, with HEAD too.
        linked = {"Location": link, "X-Linked-Size": str(file.size), "X-Linked-Etag": etag, "ETag": etag}
        return Response(status_code=302, headers=linked | commit | {"Cache-Control": "no-store"})
    return file_response(request, file, etag, extra_headers=commit)


# --- models -----------------------------------------------------------------------------------------------------------


@router.get("/api/models", response_model_exclude_none=True)
def listing(
    request: Request,
    response: Response,
    state: StateDep,
    caller: MayReadBackbones,
    search: Annotated[str, Query(description="a part of the name")] = "",
    author: str = "",
    filter: Annotated[  # noqa: A002 - the hub's name
        list[str] | None, Query(description="tags, libraries and pipeline tags that a model must have, all of them")
    ] = None,
    pipeline_tag: str = "",
    library: str = "",
    sort: str = "",
    direction: Annotated[str, Query(description="`1` for ascending order; otherwise the greatest comes first")] = "",
    limit: Annotated[int, Query(ge=1, le=LARGEST, description=f"at most {MOST_LISTED} on a page")] = MOST_LISTED,
    full: bool = False,
    card_data: Annotated[bool, Query(alias="cardData")] = False,
    expand: Fields = None,
    expand_old: OldFields = None,
    cursor: str | None = None,
) -> list[HubModelView]:
    """Every format of the `main` version of each backbone; the header `Link` leads to the next page."""
    tags = [part for each in filter or [] for part in each.split(",")] + [pipeline_tag, library]
    fields = {*(expand or ()), *(expand_old or ())} or (FULL if full else LISTED) | (
        {"cardData"} if card_data else set()
    )
    if "num_parameters" in request.query_params:
        raise ApiProblem(422, "parameter_invalid", "num_parameters: this hub cannot filter by it; leave it out")
    if any(request.query_params.get(name, "false").lower() != "false" for name in NOTHING_HAS):
        return []
    if sort and sort not in SORTS:
        raise ApiProblem(422, "parameter_invalid", f"sort: {sort!r} is unknown; use one of {', '.join(SORTS)}")
    ascending = direction == "1" or (direction != "-1" and sort in {"", BY_NAME})
    query = models.Query(search, author, [tag for tag in tags if tag], sort or BY_NAME, ascending, fields)
    found, more = models.listing(state, caller, query, min(limit, MOST_LISTED), cursor)
    if more:
        response.headers["Link"] = _next(request, cursor=more)
    return found


@router.get(API, response_model_exclude_none=True)
def model(
    org: str,
    repo: str,
    state: StateDep,
    caller: MayReadBackbones,
    expand: Fields = None,
    expand_old: OldFields = None,
) -> HubModelView:
    """A repository at the revision `main`."""
    return models.describe(state, repositories.find(state, caller, org, repo, MAIN), _chosen(expand, expand_old))


@router.get(f"{API}/revision/{{revision:path}}", response_model_exclude_none=True)
def model_at(
    org: str,
    repo: str,
    revision: str,
    state: StateDep,
    caller: MayReadBackbones,
    expand: Fields = None,
    expand_old: OldFields = None,
) -> HubModelView:
    """A repository at a revision."""
    return models.describe(state, repositories.find(state, caller, org, repo, revision), _chosen(expand, expand_old))


def _chosen(expand: list[str] | None, expand_old: list[str] | None) -> set[str]:
    """The fields that a client asks for, of those that there are: some clients write `expand=true`."""
    return {*(expand or ()), *(expand_old or ())} & (set(HubModelView.model_fields) - ALWAYS)


@router.get(f"{API}/refs")
def refs(org: str, repo: str, state: StateDep, caller: MayReadBackbones) -> HubRefsView:
    """The names of all versions that can be pulled."""
    backbone, _ = repositories.named(state, caller, org, repo)
    commits = {each.number: registry.commit_of(state, each) for each in backbone.versions if not each.gone}
    named = {MAIN: backbone.main.number} | dict(backbone.aliases)
    heads = {name: commits[number] for name, number in named.items() if number in commits}
    return HubRefsView(
        branches=[HubRefView(name=name, ref=f"refs/heads/{name}", targetCommit=sha) for name, sha in heads.items()],
        tags=[
            HubRefView(name=f"v{number}", ref=f"refs/tags/v{number}", targetCommit=sha)
            for number, sha in commits.items()
        ],
        converts=[],
        pullRequests=[],
    )


@router.get(f"{API}/commits/{{revision:path}}")
def commits(
    org: str,
    repo: str,
    revision: str,
    request: Request,
    response: Response,
    state: StateDep,
    caller: MayReadBackbones,
    p: Annotated[int, Query(ge=0, le=MOST_PAGES, description="the page, from 0")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="commits on a page")] = PAGE_OF_COMMITS,
) -> list[HubCommitView]:
    """The versions up to a revision, newest first; the header `Link` leads to the next page."""
    backbone, _ = repositories.named(state, caller, org, repo)
    version = repositories.version_at(state, backbone, f"{org}/{repo}", revision)
    found = repositories.history(backbone, version)
    response.headers["X-Total-Count"] = str(len(found))
    if len(found) > (p + 1) * limit:
        response.headers["Link"] = _next(request, p=p + 1)
    return [
        HubCommitView(
            id=registry.commit_of(state, each),
            title=repositories.title_of(each),
            message="",
            date=moment(each.row.created_at),
            authors=[{"user": each.row.owner}],
        )
        for each in found[p * limit : (p + 1) * limit]
    ]


def _next(request: Request, **changes: Any) -> str:
    """The `Link` header to the next page of this list."""
    return f'<{request.url.include_query_params(**changes)}>; rel="next"'


# --- trees ------------------------------------------------------------------------------------------------------------


@router.get(f"{API}/tree/{{revision}}", response_model_exclude_none=True)
def tree(
    org: str,
    repo: str,
    revision: str,
    state: StateDep,
    caller: MayReadBackbones,
    recursive: Recursive = False,
    expand: Expand = False,
) -> list[HubEntryView]:
    """The files of a repository, without pagination."""
    return trees.tree(repositories.find(state, caller, org, repo, revision), "", recursive, expand)


@router.get(f"{API}/tree/{{revision}}/{{path:path}}", response_model_exclude_none=True)
def tree_below(
    org: str,
    repo: str,
    revision: str,
    path: str,
    state: StateDep,
    caller: MayReadBackbones,
    recursive: Recursive = False,
    expand: Expand = False,
) -> list[HubEntryView]:
    """The files of a folder in a repository."""
    repository = repositories.find(state, caller, org, repo, revision)
    entries = trees.tree(repository, path.strip("/"), recursive, expand)
    if not entries:
        text = f"there is no folder {path!r} in {repository.id} at {revision}"
        raise ApiProblem(404, "entry_not_found", text, headers={COMMIT_HEADER: repository.content.commit})
    return entries


async def _asked(request: Request) -> tuple[list[str], bool]:
    """The paths of a request and whether to expand them: Python's clients send a form, JavaScript's send JSON."""
    if request.headers.get("Content-Type", "").startswith("application/json"):
        try:
            body = await request.json()
        except ValueError as error:
            raise ApiProblem(422, "json_invalid", f"the body cannot be read as JSON: {error}") from error
    else:
        body = await request.form()
    told: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    values = told.getlist("paths") if isinstance(told, FormData) else told.get("paths")
    several: list[Any] = [values] if isinstance(values, str) else values if isinstance(values, list) else []
    paths = [path for path in several if isinstance(path, str)]
    if not paths or len(paths) < len(several):
        raise ApiProblem(422, "body_invalid", "paths: send at least one path, as a form or as JSON")
    return paths, str(told.get("expand", "")).lower() in {"true", "1"}


@router.post(f"{API}/paths-info/{{revision:path}}", response_model_exclude_none=True)
def paths_info(
    org: str,
    repo: str,
    revision: str,
    state: StateDep,
    caller: MayReadBackbones,
    asked: Annotated[tuple[list[str], bool], Depends(_asked)],
) -> list[HubEntryView]:
    """The files and folders with certain paths; those that do not exist are left out.

    The body is a form or JSON with `paths` and `expand`.
    """
    return trees.at(repositories.find(state, caller, org, repo, revision), *asked)


# --- the caller -------------------------------------------------------------------------------------------------------


@router.get("/api/whoami-v2")
def who_am_i(caller: MayReadBackbones) -> HubCallerView:
    """Whose token this is, as `hf auth login` asks."""
    organisation = formats.HUB_ORGANISATION
    return HubCallerView(
        type="user",
        id=caller.owner,
        name=caller.owner,
        fullname=caller.owner,
        email=None,
        isPro=False,
        orgs=[
            {
                "type": "org",
                "id": organisation,
                "name": organisation,
                "fullname": organisation,
                "isEnterprise": False,
                "roleInOrg": "read",
            }
        ],
        auth={
            "type": "access_token",
            "accessToken": {"displayName": f"{organisation}-{caller.owner}", "role": "read"},
        },
    )


@router.get(f"{API}/auth-check")
def auth_check(org: str, repo: str, state: StateDep, caller: MayReadBackbones) -> dict[str, str]:
    """Whether the caller may read a repository: the answer is empty if so."""
    repositories.named(state, caller, org, repo)
    return {}


@no_route.get("/{path:path}")
def nothing(path: str, caller: MayReadBackbones) -> Response:  # noqa: ARG001 - a token is needed
    """What no other route answers."""
    raise refusals.no_such_route(path)
