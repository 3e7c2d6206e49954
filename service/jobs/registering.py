"""Under which names jobs register versions: the one place that finds them in specs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from service.db.tables import Job
from trainer.protocol import names

FIELD = "register_as"


class Registering(NamedTuple):
    """A field of a spec that names what is registered."""

    path: str
    name: str
    type: str | None
    """`classifier`; None for a backbone."""


def registration(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a job's spec that has `register_as` and `export`: of an evaluation its protocol that registers a
    classifier, of every other job the spec itself.
    """
    return next((each for each in spec.get("protocols") or () if each.get(FIELD)), spec)


def registered_name(job: Job) -> str | None:
    """The name under which a job registers a version; None if it registers none."""
    name: str | None = registration(job.spec).get(FIELD)
    return name


def type_of(tags: Mapping[str, str]) -> str | None:
    """What a version with these tags is: `classifier`; None for a backbone."""
    return tags.get(names.TAG_TYPE)


def registrations(document: Mapping[str, Any], path: str = "") -> Iterator[Registering]:
    """Each field of a document, at any depth, that names what is to be registered."""
    for key, value in document.items():
        if key == FIELD and isinstance(value, str):
            yield Registering(f"{path}{key}", value, None)
        elif key == "protocols":
            for each in value or ():
                if name := each.get(FIELD):
                    yield Registering(f"{path}{key}.{each['name']}.{FIELD}", name, names.CLASSIFIER)
        elif isinstance(value, Mapping):
            yield from registrations(value, f"{path}{key}.")
