"""Read-only access to backbones by the Hugging Face Hub's protocol: `HF_ENDPOINT=<this server>/hf`.

Each format is a repository: `rcmae/<name>` is the folder `hf`, `rcmae/<name>-mae` is `hf-mae` and `rcmae/<name>-timm`
is `timm`, each with the version's card. A revision is `main` (the champion, otherwise the newest version), `v<number>`,
an alias, or a commit: 40 digits derived from the version's checksums, which always identify the same files.
`problem_headers` gives the headers by which the hub's clients distinguish errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict
from typing_extensions import TypedDict

from service.backbones import registry, service
from service.backbones.registry import COMMIT, Backbone, Content, Served
from service.backbones.schemas import MAIN
from service.context.app_state import AppState, MayReadBackbones, StateDep
from service.http.problems import ApiProblem, not_found
from service.http.ranges import file_response, not_modified
from service.http.routing import ApiRoute
from service.http.schemas import View
from trainer.spec import formats

PREFIX: Final = "/hf"


class HubRoute(ApiRoute):
    """A route of the hub's protocol. Its clients send parameters such as `expand`, `blobs` or `securityStatus` that
    depend on their version, and expect a hub to ignore those that it does not know.
    """

    takes_other_parameters = True


router = APIRouter(prefix=PREFIX, tags=["hub"], route_class=HubRoute)

LONGEST_MESSAGE: Final = 1000
"""Longest error message in a header, in characters."""
ERROR_CODES: Final = {
    "unauthorized": "GatedRepo",
    "forbidden": "GatedRepo",
    "repo_not_found": "RepoNotFound",
    "not_found": "RepoNotFound",
    "revision_not_found": "RevisionNotFound",
    "entry_not_found": "EntryNotFound",
    "file_not_found": "EntryNotFound",
}
"""The hub's codes for our errors. A missing token is reported as a gated repository: for one that is not found, the
hub's clients would say that its name is wrong."""

LIBRARIES: Final = {formats.BACKBONE_TIMM: "timm"}
COMMIT_HEADER: Final = "X-Repo-Commit"
COMMITS: Final[dict[str, str]] = {}
"""Cache of the versions' commits, by version folder."""
COMMITS_KEPT: Final = 10_000
"""Largest size of that cache."""
Recursive = Annotated[bool, Query(description="include the content of subfolders")]
POINTER_SIZE: Final = 134
"""Bytes of a git LFS pointer file."""


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
    """The headers with an error's code and message, which the hub's clients read and show."""
    hint = ". Set HF_TOKEN to a token of this service, or pass token=" if code == "unauthorized" else ""
    message = "".join(char if " " <= char <= "~" else "?" for char in f"{detail}{hint}")  # headers allow only ASCII
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
        """The path of each file in the version's folder, by its path in the repository."""
        prefix = f"{self.folder}/"
        paths = {path: path for path in self.content.sums if registry.belongs_to_card(path)}
        # Last, since the format's own card is that of its repository; old versions have one card for all formats.
        paths |= {path.removeprefix(prefix): path for path in self.content.sums if path.startswith(prefix)}
        return {name: path for name, path in sorted(paths.items()) if path in self.sizes}


@router.get("/{org}/{repo}/resolve/{revision}/{path:path}", response_class=StreamingResponse)
@router.head("/{org}/{repo}/resolve/{revision}/{path:path}", response_class=StreamingResponse)
def resolve(
    org: str,
    repo: str,
    revision: str,
    path: str,
    state: StateDep,
    caller: MayReadBackbones,  # noqa: ARG001 - a token is needed
    request: Request,
) -> Response:
    """A file of a repository. `Range` is supported, and `ETag` is the file's sha256.

    If `RCMAE_PRESIGNED_DOWNLOADS` is set, it redirects to a signed link into S3.
    """
    repository = _repository(state, org, repo, revision)
    commit = {COMMIT_HEADER: repository.content.commit}
    stored_path = repository.files.get(path)
    if stored_path is None:
        text = f"there is no file {path!r} in {repository.id} at {revision}"
        raise ApiProblem(404, "entry_not_found", text, headers=commit)
    file = registry.stored(state, repository.version, stored_path, repository.content.listed)
    digest = repository.content.sums[stored_path]
    etag = f'"{digest}"'
    link = None if not_modified(request, etag) else service.link(state, file)
    if link:
        # Clients do not send their token to other hosts. They read the file's size and hash here, with HEAD too.
        linked = {"Location": link, "X-Linked-Size": str(file.size), "X-Linked-Etag": etag, "ETag": etag}
        return Response(status_code=302, headers=linked | commit | {"Cache-Control": "no-store"})
    return file_response(request, file, etag, extra_headers=commit)


@router.get("/api/models/{org}/{repo}")
def model(org: str, repo: str, state: StateDep, caller: MayReadBackbones) -> HubModelView:  # noqa: ARG001
    """A repository at the revision `main`."""
    return _model(_repository(state, org, repo, MAIN))


@router.get("/api/models/{org}/{repo}/revision/{revision}")
def model_at(
    org: str,
    repo: str,
    revision: str,
    state: StateDep,
    caller: MayReadBackbones,  # noqa: ARG001 - a token is needed
) -> HubModelView:
    """A repository at a revision."""
    return _model(_repository(state, org, repo, revision))


@router.get("/api/models/{org}/{repo}/tree/{revision}")
def tree(
    org: str,
    repo: str,
    revision: str,
    state: StateDep,
    caller: MayReadBackbones,  # noqa: ARG001 - a token is needed
    recursive: Recursive = False,
) -> list[HubEntryView]:
    """The files of a repository, without pagination."""
    return _tree(_repository(state, org, repo, revision), "", recursive)


@router.get("/api/models/{org}/{repo}/tree/{revision}/{path:path}")
def tree_below(
    org: str,
    repo: str,
    revision: str,
    path: str,
    state: StateDep,
    caller: MayReadBackbones,  # noqa: ARG001 - a token is needed
    recursive: Recursive = False,
) -> list[HubEntryView]:
    """The files of a folder in a repository."""
    repository = _repository(state, org, repo, revision)
    entries = _tree(repository, path.strip("/"), recursive)
    if not entries:
        text = f"there is no folder {path!r} in {repository.id} at {revision}"
        raise ApiProblem(404, "entry_not_found", text, headers={COMMIT_HEADER: repository.content.commit})
    return entries


def _tree(repository: Repository, below: str, recursive: bool) -> list[HubEntryView]:
    prefix = f"{below}/" if below else ""
    entries: dict[str, HubEntryView] = {}
    for name, path in repository.files.items():
        if not name.startswith(prefix):
            continue
        rest = name.removeprefix(prefix)
        if "/" in rest:
            folder = prefix + rest.partition("/")[0]
            entries[folder] = HubEntryView(type="directory", path=folder, size=0, oid=repository.content.commit)
        if recursive or "/" not in rest:
            digest, size = repository.content.sums[path], repository.sizes[path]
            entries[name] = HubEntryView(
                type="file",
                path=name,
                size=size,
                oid=digest[:40],
                lfs={"oid": digest, "size": size, "pointerSize": POINTER_SIZE},
            )
    return list(entries.values())


def _repository(state: AppState, org: str, repo: str, revision: str) -> Repository:
    """A repository at a revision. Raises the API's 404 if there is no such repository or revision."""
    name, folder = repo, formats.BACKBONE_HF
    for ending, format_folder in formats.HUB_ENDINGS.items():
        if repo.endswith(ending):
            name, folder = repo.removesuffix(ending), format_folder
    found = registry.named(state, name) if org == formats.HUB_ORGANISATION else None
    if found is None:
        raise not_found("repo", f"{org}/{repo}")
    resolved = _resolve_revision(state, found, revision)
    if resolved is None:
        number = found.latest.number
        text = f"{org}/{repo} has no revision {revision!r}: use main, v{number}, an alias or a commit"
        raise ApiProblem(404, "revision_not_found", text)
    version, content = resolved
    sizes = dict(state.artifacts.files(version.folder))
    repository = Repository(f"{org}/{repo}", version, folder, content, sizes)
    if not any(path.startswith(f"{folder}/") for path in repository.files.values()):
        text = f"{name}:{version.number} was registered without the format {folder!r}"
        raise ApiProblem(404, "revision_not_found", text)
    return repository


def _resolve_revision(state: AppState, backbone: Backbone, revision: str) -> tuple[Served, Content] | None:
    """The version that a revision means, with its content. Raises the API's 404 for one that is gone."""
    if COMMIT.fullmatch(revision):
        return _find_commit(state, [version for version in backbone.versions if not version.gone], revision)
    number = revision.removeprefix("v")
    if number != revision and number.isascii() and number.isdecimal() and len(number) < 11:
        version = backbone.numbered(int(number))
    else:
        version = backbone.main if revision == MAIN else backbone.numbered(backbone.aliases.get(revision))
    if version is None:
        return None
    if version.gone:  # the hub's clients do not know 410
        raise ApiProblem(404, "revision_not_found", registry.gone_text(version))
    return version, registry.content(state, version)


def _find_commit(state: AppState, versions: Sequence[Served], commit: str) -> tuple[Served, Content] | None:
    """The newest version with a commit. A cache avoids reading each version's checksums more than once."""
    cached = [version for version in versions if COMMITS.get(version.folder) == commit]
    for version in cached + [version for version in reversed(versions) if version.folder not in COMMITS]:
        content = registry.content(state, version)
        if len(COMMITS) >= COMMITS_KEPT:
            COMMITS.clear()
        COMMITS[version.folder] = content.commit
        if content.commit == commit:
            return version, content
    return None


def _model(repository: Repository) -> HubModelView:
    moment = repository.version.row.created_at
    return HubModelView(
        id=repository.id,
        modelId=repository.id,
        author=formats.HUB_ORGANISATION,
        sha=repository.content.commit,
        lastModified=f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z",
        private=True,
        gated=False,
        disabled=False,
        library_name=LIBRARIES.get(repository.folder, "transformers"),
        pipeline_tag="image-feature-extraction",
        tags=["rcmae", f"v{repository.version.number}"],
        siblings=[
            HubFileView(
                rfilename=name,
                size=repository.sizes[path],
                blobId=repository.content.sums[path][:40],
                lfs={
                    "sha256": repository.content.sums[path],
                    "size": repository.sizes[path],
                    "pointerSize": POINTER_SIZE,
                },
            )
            for name, path in repository.files.items()
        ],
    )
