"""Which versions are served, and their details.

Anybody who can reach MLflow can register anything there. So a version is served only if its job is in our database and
registers under that name, and if its files are below the artifact root.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from service.adapters.mlflow_connection import MlflowUnreachable
from service.adapters.mlflow_registry import Version
from service.adapters.storage import OutsideRoot, StoredFile
from service.backbones import repository
from service.backbones.schemas import CHAMPION, LARGEST, LATEST, MAIN, BackboneView, VersionSummaryView
from service.context.app_state import AppState
from service.db.tables import Job
from service.http.problems import not_found, unavailable
from service.jobs import repository as job_repository
from trainer.protocol import names
from trainer.spec import formats

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
ALIAS: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
RESERVED: Final = re.compile(rf"{MAIN}|{LATEST}|v[0-9]+|{COMMIT.pattern}")
"""Names that match `ALIAS` but have another meaning."""
SUMS_LINE: Final = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True)
class Served:
    """A version that is served."""

    version: Version
    folder: str
    """The folder of its files."""
    owner: str
    """The owner of the job that registered it."""
    trained_by: str
    """The id of the job that pretrained it."""
    dataset_uri: str

    @property
    def name(self) -> str:
        return self.version.name

    @property
    def number(self) -> int:
        return self.version.version

    @property
    def job_id(self) -> str:
        return self.version.tags[names.TAG_JOB]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Evaluation results, by metric key; values that are not finite numbers are left out."""
        prefix, tags = names.TAG_METRIC, self.version.tags
        values = {key.removeprefix(prefix): _finite(text) for key, text in tags.items() if key.startswith(prefix)}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def formats(self) -> list[str]:
        """Its formats; empty for old versions, which have no tag for them."""
        return [name for name in self.version.tags.get(names.TAG_FORMATS, "").split(",") if name]

    def summary(self, aliases: Mapping[str, int]) -> VersionSummaryView:
        """The version as the API shows it; ``aliases`` are all aliases of the backbone."""
        tags = self.version.tags
        return VersionSummaryView(
            name=self.name,
            version=self.number,
            created_at=self.version.created_at,
            job_id=self.job_id,
            trained_by=self.trained_by,
            attempt=_whole(tags.get(names.TAG_ATTEMPT)),
            checkpoint_step=_whole(tags.get(names.TAG_STEP)),
            method=tags.get(names.TAG_METHOD),
            epochs=_finite(tags.get(names.TAG_EPOCHS)),
            dataset_fingerprint=tags.get(names.TAG_DATASET),
            network=tags.get(names.TAG_NETWORK),
            code_version=tags.get(names.TAG_CODE),
            formats=self.formats,
            aliases=sorted(alias for alias, number in aliases.items() if number == self.number),
            metrics=self.metrics,
            tags=dict(tags),
        )


@contextmanager
def asking_mlflow() -> Iterator[None]:
    """Turns MLflow's errors into the API's 503."""
    try:
        yield
    except MlflowUnreachable as error:
        raise unavailable("MLflow", error) from error


def served(state: AppState, name: str | None = None) -> list[Served]:
    """All versions that are served, or one backbone's, by name and number. Raises the API's 503."""
    with asking_mlflow():
        registered = state.mlflow.all_versions() if name is None else state.mlflow.versions(name)
    ids = [version.tags[names.TAG_JOB] for version in registered if names.TAG_JOB in version.tags]
    with state.database.read() as session:
        jobs = job_repository.jobs_by_id(session, ids)
        hidden = {(row.name, row.version) for row in repository.deleted(session)}
    result = []
    for version in registered:
        job = jobs.get(version.tags.get(names.TAG_JOB, ""))
        if job is None or job.spec.get("register_as") != version.name or (version.name, version.version) in hidden:
            continue
        with asking_mlflow():
            folder = state.mlflow.folder(version)
        if folder is not None and state.artifacts.holds(folder):
            result.append(Served(version, folder, job.owner, _trained_by(job), job.dataset_uri))
    return result


def _trained_by(job: Job) -> str:
    """The job that trained what this one registered: a publishing job names it in its spec."""
    return str(job.spec.get("job") or job.id)


def aliases_of(state: AppState, versions: Sequence[Served]) -> dict[str, int]:
    """The aliases of one backbone that point at given versions. Raises the API's 503."""
    with asking_mlflow():
        aliases = state.mlflow.aliases(versions[0].name) if versions else {}
    return among(aliases, versions)


def all_aliases(state: AppState, by_name: Mapping[str, Sequence[Served]]) -> dict[str, dict[str, int]]:
    """Like `aliases_of`, for several backbones at once."""
    with asking_mlflow():
        aliases = state.mlflow.all_aliases() if by_name else {}
    return {name: among(aliases.get(name, {}), versions) for name, versions in by_name.items()}


def among(aliases: Mapping[str, int], versions: Sequence[Served]) -> dict[str, int]:
    """The aliases that point at given versions, sorted."""
    numbers = {version.number for version in versions}
    return {alias: number for alias, number in sorted(aliases.items()) if number in numbers}


def main_of(versions: Sequence[Served], aliases: Mapping[str, int]) -> Served:
    """The champion, otherwise the newest version."""
    by_number = {version.number: version for version in versions}
    return by_number.get(aliases.get(CHAMPION, 0)) or by_number[max(by_number)]


def find(state: AppState, name: str, reference: str) -> Served:
    """The version that a number, `latest`, `main` or an alias means. Raises the API's 404 and 503."""
    versions = served(state, name)
    number: int | None = None
    if reference.isascii() and reference.isdecimal():
        number = int(reference) if len(reference) <= len(str(LARGEST)) else None
    elif versions and reference == LATEST:
        number = versions[-1].number
    elif versions:
        aliases = aliases_of(state, versions)
        number = main_of(versions, aliases).number if reference == MAIN else aliases.get(reference)
    found = next((version for version in versions if version.number == number), None)
    if found is None:
        raise not_found("version", f"{name}:{reference}")
    return found


@dataclass(frozen=True)
class Content:
    """A version's files, according to its checksum file."""

    sums: dict[str, str]
    """The sha256 of each file, by its path."""
    data: bytes
    """The checksum file itself."""

    @property
    def commit(self) -> str:
        """40 hexadecimal digits that identify exactly these files."""
        return hashlib.sha256(self.data).hexdigest()[:40]

    @property
    def listed(self) -> dict[str, str]:
        """The sha256 of each file that is served, including the checksum file."""
        return self.sums | ({names.BACKBONE_SUMS: hashlib.sha256(self.data).hexdigest()} if self.data else {})


def content(state: AppState, version: Served) -> Content:
    """A version's content; empty if it has no checksum file. Raises the API's 404."""
    try:
        data = state.artifacts.read(version.folder, names.BACKBONE_SUMS) or b""
    except OutsideRoot as error:
        raise not_found("version", f"{version.name}:{version.number}") from error
    lines = (SUMS_LINE.fullmatch(line) for line in data.decode(errors="replace").splitlines())
    return Content({line[2]: line[1] for line in lines if line}, data)


def stored(state: AppState, version: Served, path: str, listed: Mapping[str, str]) -> StoredFile:
    """A file of a version. Raises the API's 404 if it is missing, or not in the version's checksums."""
    file = state.artifacts.file(version.folder, path) if path in listed else None
    if file is None:
        raise not_found("file", path)
    return file


def backbone(versions: Sequence[Served], aliases: Mapping[str, int]) -> BackboneView:
    """A backbone as the API shows it."""
    newest, main = versions[-1], main_of(versions, aliases)
    return BackboneView(
        name=newest.name,
        latest_version=newest.number,
        main_version=main.number,
        versions=[version.number for version in versions],
        aliases=dict(aliases),
        metrics=main.metrics,
        formats=main.formats,
        updated_at=newest.version.created_at,
    )


def belongs_to_card(path: str) -> bool:
    """Whether a file is the model card or one of its pictures, which come with every format."""
    return path == names.BACKBONE_CARD or path.startswith(f"{names.BACKBONE_PICTURES}/")


def formats_in(listed: Mapping[str, str]) -> list[str]:
    """The formats among a version's files, in their usual order."""
    folders = {path.partition("/")[0] for path in listed if "/" in path}
    return [form for form in formats.BACKBONE_FORMATS if form in folders]


def _finite(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 19 else None
