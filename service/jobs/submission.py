"""Creates jobs: for requests, and for the controller when it promotes a trial."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

import structlog
from sqlalchemy.orm import Session

from service.auth.caller import Caller, sha256
from service.auth.sight import ALL
from service.db.tables import Event, Job, RegisteredBackbone
from service.jobs import repository, versions, visibility
from service.jobs.dataset_images import dataset_images
from service.jobs.registering import registration, registrations
from service.jobs.schemas import PromotedFrom
from service.jobs.state import State
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.inspection import Warned
from trainer.spec.base import Problem, SpecError
from trainer.spec.dataset import Located, misplaced
from trainer.spec.export import ENDINGS_REFUSED
from trainer.spec.formats import HUB_ENDINGS
from trainer.spec.job import JobSpec
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec

S = TypeVar("S", bound=JobSpec)
HASH_PREFIX = "sha256:"
"""Prefix of every stored idempotency key."""
TAKEN = "is the name of a private backbone of others: choose another name"
OTHER_TYPE = {
    None: "is the name of classifiers, and this job registers a backbone: choose another name",
    names.CLASSIFIER: "is the name of backbones, and this job registers a classifier: choose another name",
}
READ_ONLY = (
    "is a private backbone that you may read: only its owner, owners of its versions, operators and admins register "
    "versions of it, which makes owners of them; choose another name"
)


def stored_key(key: str) -> str:
    """An idempotency key as it is stored: hashed, as clients may put anything into it."""
    return f"{HASH_PREFIX}{sha256(key)}"


def insert(
    session: Session,
    owner: str,
    spec: JobSpec,
    dataset_uri: str,
    key: str | None,
    origin: PromotedFrom | None = None,
    fixed: Mapping[str, Any] = MappingProxyType({}),
    follows: str | None = None,
) -> Job:
    """Add a queued job in the caller's transaction; ``key`` is one of `stored_key`, ``fixed`` as of `Subject`.

    ``follows``: the job that it follows, where the service submits it by itself.
    """
    job = Job(
        id=repository.new_id(),
        kind=spec.kind,
        name=spec.name,
        state=State.QUEUED.value,
        owner=owner,
        priority=spec.priority,
        labels=dict(spec.labels),
        spec=with_fixed(spec, fixed).model_dump(mode="json"),
        dataset_uri=dataset_uri,
        idempotency_key=key,
        body_sha256=spec.sha256(),
        request_id=structlog.contextvars.get_contextvars().get("request_id"),  # of the present request
        search_id=origin.search if origin else None,
        trial=origin.trial if origin else None,
        follows=follows,
    )
    session.add(job)
    session.flush()
    session.add(Event(job_id=job.id, state=job.state, message=_beginning(origin, follows), actor=owner))
    return job


def _beginning(origin: PromotedFrom | None, follows: str | None) -> str:
    """The message of a job's first event."""
    if origin:
        return f"Promoted from trial {origin.trial} of {origin.search}."
    return f"Submitted by the service to follow {follows}." if follows else "Submitted."


def with_fixed(spec: S, fixed: Mapping[str, Any]) -> S:
    """The spec with some fields replaced."""
    return cast(S, type(spec).parse({**spec.model_dump(mode="json"), **fixed})) if fixed else spec


def check_dataset_roots(settings: Settings, spec: PretrainSpec) -> None:
    """Raises `SpecError` for a dataset outside the dataset roots of the settings."""
    after = spec.evaluation.following
    check_roots(
        settings,
        {
            "dataset": spec.dataset,
            "evaluation.dataset": spec.evaluation.dataset,
            "evaluation.after.dataset": after.dataset if after else None,
            "evaluation.after.test": after.test if after else None,
        },
    )


def check_roots(settings: Settings, sections: Mapping[str, Located | None]) -> None:
    """The same for sections of any spec that name files to read, by their fields."""
    checked = [misplaced(section, field, settings.dataset_roots) for field, section in sections.items() if section]
    problems = [problem for problem in checked if problem]
    if problems:
        raise SpecError(problems)


def check_backbone_names(session: Session, caller: Caller, document: Mapping[str, Any]) -> None:
    """Raises `SpecError` for the name of a backbone that a caller's job cannot register.

    That is a new name which would be that of another backbone's repository in the hub, the name of a private backbone
    of which the caller owns nothing, or one whose versions are of the other type. ``document`` may nest specs. Older
    specs and backbones keep names of repositories: not all of these endings were taken before.
    """
    named = [*registrations(document)]
    wanted = [each.name for each in named]
    known = visibility.seen_backbones(session, caller, wanted)
    joined = visibility.joined_backbones(session, caller, wanted)
    types = versions.types_of(session, joined)
    problems = []
    for field, name, kind in named:
        if name in joined:
            if types.get(name, kind) != kind:
                problems.append(Problem(field, f"/{field.replace('.', '/')}", name, OTHER_TYPE[kind]))
            continue
        taken = TAKEN if session.get(RegisteredBackbone, name) else None
        reserved = ENDINGS_REFUSED if name.endswith(tuple(HUB_ENDINGS)) else None
        refused = READ_ONLY if name in known else reserved or taken
        if refused:
            problems.append(Problem(field, f"/{field.replace('.', '/')}", name, refused))
    if problems:
        raise SpecError(problems)


def visibility_kept(session: Session, document: Mapping[str, Any], trained: PretrainSpec | None) -> list[Warned]:
    """A warning for each backbone that is open to all already, where a spec asks that its owners alone see it."""
    own = (registration(document).get("export") or {}).get("visibility")
    if (own or (trained.export.visibility if trained else ALL)) == ALL:
        return []
    found = {name: session.get(RegisteredBackbone, name) for _, name, _ in registrations(document)}
    text = (
        "export.visibility is owners, and {} is open to all already: it stays so, this version included. Its owner can "
        "change that: rcmae backbones set {} --visibility owners"
    )
    open_to_all = [name for name, row in found.items() if row and row.visibility == ALL]
    return [Warned(code="visibility_kept", message=text.format(name, name)) for name in open_to_all]


def schedule(session: Session, spec: PretrainSpec) -> Schedule | None:
    """The schedule, where the number of images is known; raises `SpecError` where they do not fill a batch."""
    images = dataset_images(session, spec.dataset)
    return Schedule.of(spec, images) if images else None


def nested(path: str, error: SpecError) -> SpecError:
    """The problems of a document that is nested at ``path`` in another one, with paths of the outer document."""
    head = path.replace(".", "/")
    return SpecError(
        [
            Problem(f"{path}.{each.field}".rstrip("."), f"/{head}{each.pointer}", each.value, each.message)
            for each in error.problems
        ]
    )
