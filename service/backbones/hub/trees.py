"""The files and folders of a repository."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from service.backbones.hub.repositories import Repository, moment, title_of
from service.backbones.hub.views import HubEntryView, HubFileView, LastCommit

POINTER_SIZE: Final = 134
"""Bytes of a git LFS pointer file."""


def siblings(repository: Repository) -> list[HubFileView]:
    """All files, as a model's description lists them."""
    found = []
    for name, path in repository.files.items():
        digest, size = repository.content.sums[path], repository.sizes[path]
        lfs = {"sha256": digest, "size": size, "pointerSize": POINTER_SIZE}
        found.append(HubFileView.model_validate({"rfilename": name, "size": size, "blobId": digest[:40], "lfs": lfs}))
    return found


def tree(repository: Repository, below: str, recursive: bool, expand: bool) -> list[HubEntryView]:
    """What is in a folder, which is empty for the top one; ``recursive`` adds what is in its folders."""
    prefix = f"{below}/" if below else ""
    entries: dict[str, HubEntryView] = {}
    for name in repository.files:
        if not name.startswith(prefix):
            continue
        parts = name.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            entries[folder] = _folder(repository, folder, expand)
        if recursive or len(parts) == 1:
            entries[name] = _file(repository, name, expand)
    return list(entries.values())


def at(repository: Repository, paths: Sequence[str], expand: bool) -> list[HubEntryView]:
    """The files and folders with these paths. Those that do not exist are left out, as the hub does."""
    found = []
    for path in (path.strip("/") for path in dict.fromkeys(paths)):
        if path in repository.files:
            found.append(_file(repository, path, expand))
        elif not path or any(name.startswith(f"{path}/") for name in repository.files):
            found.append(_folder(repository, path, expand))
    return found


def _folder(repository: Repository, path: str, expand: bool) -> HubEntryView:
    commit = repository.content.commit
    return HubEntryView(type="directory", path=path, size=0, oid=commit, lastCommit=_last_commit(repository, expand))


def _file(repository: Repository, name: str, expand: bool) -> HubEntryView:
    path = repository.files[name]
    digest, size = repository.content.sums[path], repository.sizes[path]
    return HubEntryView(
        type="file",
        path=name,
        size=size,
        oid=digest[:40],
        lfs={"oid": digest, "size": size, "pointerSize": POINTER_SIZE},
        lastCommit=_last_commit(repository, expand),
    )


def _last_commit(repository: Repository, expand: bool) -> LastCommit | None:
    if not expand:
        return None
    version = repository.version
    return {"id": repository.content.commit, "title": title_of(version), "date": moment(version.row.created_at)}
