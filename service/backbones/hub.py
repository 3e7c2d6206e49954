"""Backbones by the protocol of the Hugging Face Hub, to read: `HF_ENDPOINT=<this server>/hf`.

One repository a format: `rcmae/<name>` is the folder `hf`, `rcmae/<name>-mae` is `hf-mae` and `rcmae/<name>-timm` is
`timm`, each with the version's card. A revision is `main` (the champion, else the newest), `v<number>`, an alias, or a
commit: 40 digits made of the version's checksums, which name the same files for ever. `problem_headers` are the headers
by which the hub's clients tell refusals apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict
from typing_extensions import TypedDict

from service.backbones import registry, service
from service.backbones.registry import COMMIT, Content, Served
from service.backbones.schemas import MAIN
from service.context.app_state import AppState, CallerDep, StateDep
from service.http.problems import ApiProblem, not_found
from service.http.ranges import file_response, not_modified
from service.http.schemas import View
from trainer.spec import formats

PREFIX: Final = "/hf"
router = APIRouter(prefix=PREFIX, tags=["hub"])

LONGEST_MESSAGE: Final = 1000
"""Characters of an error's message in a header."""
ERROR_CODES: Final = {
    "unauthorized": "GatedRepo",
    "forbidden": "GatedRepo",
    "repo_not_found": "RepoNotFound",
    "not_found": "RepoNotFound",
    "revision_not_found": "RevisionNotFound",
    "entry_not_found": "EntryNotFound",
    "file_not_found": "EntryNotFound",
}
"""The hub's codes of our errors. A missing token is reported as a gated repository: of a repository that is not found
the hub's clients say that its name is wrong."""

LIBRARIES: Final = {formats.BACKBONE_TIMM: "timm"}
COMMIT_HEADER: Final = "X-Repo-Commit"
COMMITS: Final[dict[str, str]] = {}
"""Of versions that were looked at, by their folders: where to look first for a commit."""
COMMITS_KEPT: Final = 10_000
Recursive = Annotated[bool, Query(description="also what lies in folders")]
POINTER_SIZE: Final = 134
"""Bytes of the file that would stand for a large one in git."""


class LargeFile(TypedDict):
    """What git would keep elsewhere, as a tree tells of it. Told of every file, so that clients know its sha256."""

    oid: str
    size: int
    pointerSize: int


class LargeSibling(TypedDict):
    """The same as a model tells of it."""

    sha256: str
    size: int
    pointerSize: int


class HubFileView(View):
    """A file of a repository."""

    rfilename: str
    size: int
    blobId: str  # noqa: N815 - the hub's names, here and below
    lfs: LargeSibling


class HubModelView(View):
    """A repository at a revision."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    modelId: str  # noqa: N815
    author: str
    sha: str
    """The commit."""
    lastModified: str  # noqa: N815
    private: bool
    gated: bool
    disabled: bool
    library_name: str
    pipeline_tag: str
    tags: list[str]
    siblings: list[HubFileView]


class HubEntryView(View):
    """A file or a folder of a repository."""

    type: Literal["file", "directory"]
    path: str
    size: int
    oid: str
    lfs: LargeFile | None = None


def problem_headers(code: str, detail: str) -> dict[str, str]:
    """What the hub's clients read of an error, and show."""
    hint = ". Set HF_TOKEN to a token of this service, or pass token=" if code == "unauthorized" else ""
    message = "".join(char if " " <= char <= "~" else "?" for char in f"{detail}{hint}")  # all that a header may hold
    return {"X-Error-Message": message[:LONGEST_MESSAGE]} | (
        {"X-Error-Code": ERROR_CODES[code]} if code in ERROR_CODES else {}
    )


@dataclass(frozen=True)
class Repository:
    """A repository at a revision."""

    id: str
    version: Served
    folder: str
    content: Content
    sizes: Mapping[str, int]

    @property
    def files(self) -> dict[str, str]:
        """Where each of its files is in the version's folder, by its path in the repository."""
        begin = f"{self.folder}/"
        found = {path.removeprefix(begin): path for path in self.content.sums if path.startswith(begin)}
        found |= {path: path for path in self.content.sums if registry.of_the_card(path)}
        return {name: path for name, path in sorted(found.items()) if path in self.sizes}


@router.get("/{org}/{repo}/resolve/{revision}/{path:path}", response_class=StreamingResponse)
@router.head("/{org}/{repo}/resolve/{revision}/{path:path}", response_class=StreamingResponse)
def resolve(
    org: str,
    repo: str,
    revision: str,
    path: str,
    state: StateDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    request: Request,
) -> Response:
    """A file of a repository; `Range` is understood, `ETag` is its sha256.

    Where the service is set so, it is sent on to a signed link into S3.
    """
    found = _repository(state, org, repo, revision)
    commit = {COMMIT_HEADER: found.content.commit}
    stored_at = found.files.get(path)
    if stored_at is None:
        text = f"there is no file {path!r} in {found.id} at {revision}"
        raise ApiProblem(404, "entry_not_found", text, headers=commit)
    file = registry.stored(state, found.version, stored_at, found.content.listed)
    digest = found.content.sums[stored_at]
    etag = f'"{digest}"'
    link = None if not_modified(request, etag) else service.link(state, file)
    if link:
        # Clients send their token to no other host than this; size and sum of the file are told here, to HEAD too.
        linked = {"Location": link, "X-Linked-Size": str(file.size), "X-Linked-Etag": etag, "ETag": etag}
        return Response(status_code=302, headers=linked | commit | {"Cache-Control": "no-store"})
    return file_response(request, file, etag, extra_headers=commit)


@router.get("/api/models/{org}/{repo}")
def model(org: str, repo: str, state: StateDep, caller: CallerDep) -> HubModelView:  # noqa: ARG001
    """A repository as `main` has it."""
    return _model(_repository(state, org, repo, MAIN))


@router.get("/api/models/{org}/{repo}/revision/{revision}")
def model_at(
    org: str,
    repo: str,
    revision: str,
    state: StateDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
) -> HubModelView:
    """A repository at a revision."""
    return _model(_repository(state, org, repo, revision))


@router.get("/api/models/{org}/{repo}/tree/{revision}")
def tree(
    org: str,
    repo: str,
    revision: str,
    state: StateDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    recursive: Recursive = False,
) -> list[HubEntryView]:
    """The files of a repository, all on one page."""
    return _tree(_repository(state, org, repo, revision), "", recursive)


@router.get("/api/models/{org}/{repo}/tree/{revision}/{path:path}")
def tree_below(
    org: str,
    repo: str,
    revision: str,
    path: str,
    state: StateDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    recursive: Recursive = False,
) -> list[HubEntryView]:
    """The files of a folder in a repository."""
    found = _repository(state, org, repo, revision)
    entries = _tree(found, path.strip("/"), recursive)
    if not entries:
        text = f"there is no folder {path!r} in {found.id} at {revision}"
        raise ApiProblem(404, "entry_not_found", text, headers={COMMIT_HEADER: found.content.commit})
    return entries


def _tree(found: Repository, below: str, recursive: bool) -> list[HubEntryView]:
    begin = f"{below}/" if below else ""
    entries: dict[str, HubEntryView] = {}
    for name, place in found.files.items():
        if not name.startswith(begin):
            continue
        rest = name.removeprefix(begin)
        if "/" in rest:
            folder = begin + rest.partition("/")[0]
            entries[folder] = HubEntryView(type="directory", path=folder, size=0, oid=found.content.commit)
        if recursive or "/" not in rest:
            oid = found.content.sums[place][:40]
            entries[name] = HubEntryView(
                type="file",
                path=name,
                size=found.sizes[place],
                oid=oid,
                lfs={"oid": found.content.sums[place], "size": found.sizes[place], "pointerSize": POINTER_SIZE},
            )
    return list(entries.values())


def _repository(state: AppState, org: str, repo: str, revision: str) -> Repository:
    """Raises the API's 404 where there is no such repository, or no such revision of it."""
    name, folder = repo, formats.BACKBONE_HF
    for ending, place in formats.HUB_ENDINGS.items():
        if repo.endswith(ending):
            name, folder = repo.removesuffix(ending), place
    versions = registry.served(state, name) if org == formats.HUB_ORGANISATION else []
    if not versions:
        raise not_found("repo", f"{org}/{repo}")
    found = _at(state, versions, revision)
    if found:
        version, content = found
        sizes = dict(state.artifacts.files(version.folder))
        made = Repository(f"{org}/{repo}", version, folder, content, sizes)
        if any(path.startswith(f"{folder}/") for path in made.files.values()):
            return made
        text = f"{name}:{version.number} was registered without the format {folder!r}"
        raise ApiProblem(404, "revision_not_found", text)
    text = f"{org}/{repo} has no revision {revision!r}; there are main, v{versions[-1].number}, aliases"
    raise ApiProblem(404, "revision_not_found", f"{text} and commits")


def _at(state: AppState, versions: list[Served], revision: str) -> tuple[Served, Content] | None:
    """The version that a revision means, with what it consists of."""
    if COMMIT.fullmatch(revision):
        return _at_commit(state, versions, revision)
    number: int | None = None
    if revision.startswith("v") and revision[1:].isascii() and revision[1:].isdecimal() and len(revision) < 12:
        number = int(revision[1:])
    else:
        aliases = registry.aliases_of(state, versions)
        number = registry.main_of(versions, aliases).number if revision == MAIN else aliases.get(revision)
    version = next((version for version in versions if version.number == number), None)
    return (version, registry.content(state, version)) if version else None


def _at_commit(state: AppState, versions: list[Served], commit: str) -> tuple[Served, Content] | None:
    """The newest version of exactly these files; each version's checksums are read once in a process for it."""
    known = [version for version in versions if COMMITS.get(version.folder) == commit]
    for version in known + [version for version in reversed(versions) if version.folder not in COMMITS]:
        content = registry.content(state, version)
        if len(COMMITS) >= COMMITS_KEPT:
            COMMITS.clear()
        COMMITS[version.folder] = content.commit
        if content.commit == commit:
            return version, content
    return None


def _model(found: Repository) -> HubModelView:
    moment = found.version.version.created_at
    return HubModelView(
        id=found.id,
        modelId=found.id,
        author=formats.HUB_ORGANISATION,
        sha=found.content.commit,
        lastModified=f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z",
        private=True,
        gated=False,
        disabled=False,
        library_name=LIBRARIES.get(found.folder, "transformers"),
        pipeline_tag="image-feature-extraction",
        tags=["rcmae", f"v{found.version.number}"],
        siblings=[
            HubFileView(
                rfilename=name,
                size=found.sizes[path],
                blobId=found.content.sums[path][:40],
                lfs={"sha256": found.content.sums[path], "size": found.sizes[path], "pointerSize": POINTER_SIZE},
            )
            for name, path in found.files.items()
        ],
    )
