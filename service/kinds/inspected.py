"""What an inspection of its dataset says against a pretraining spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import Job
from service.jobs.dataset_images import LOOKED_AT, same_images
from service.jobs.schemas import Result
from service.jobs.state import State
from service.kinds.subjects import TRAINED
from trainer.protocol.inspection import Inspection, Warned
from trainer.spec.dataset import DatasetSpec
from trainer.spec.job import Kind, parse_spec
from trainer.spec.plan import held_out_images
from trainer.spec.pretrain import PretrainSpec

GREY, GREY_ALPHA = 1, 2
"""Numbers of channels of images without colour."""
SHOWN_BEFORE: Final = frozenset({"unreadable", "one_class"})
"""Codes of an inspection's warnings that are told in other words here."""
OF_SCALE: Final = "value_range_"
"""How codes of warnings about the scale begin."""


def newest_inspection(session: Session, dataset: DatasetSpec) -> Inspection | None:
    """The result of the newest inspection of the images and labels that a spec uses; None if there is none.

    It has no warnings about another scale than the spec's.
    """
    query = select(Job).where(
        Job.dataset_uri == dataset.uri,
        Job.kind == Kind.INSPECT,
        Job.state == State.SUCCEEDED,
        Job.deleted_at.is_(None),
    )
    for job in session.scalars(query.order_by(Job.created_at.desc()).limit(LOOKED_AT)):
        if not same_images(job, dataset):
            continue
        inspected = parse_spec(job.spec).dataset_used
        found = Result.model_validate(job.result or {}).inspection
        if found and inspected and inspected.label_column == dataset.label_column:
            same_scale = inspected.value_range == dataset.value_range
            told = [each for each in found.warnings if same_scale or not each.code.startswith(OF_SCALE)]
            return found.model_copy(update={"warnings": told})
    return None


def warnings(session: Session, spec: PretrainSpec) -> list[Warned]:
    """What inspections of its datasets say against a spec; nothing before there is one."""
    inspection = newest_inspection(session, spec.dataset)
    found = [*_warnings(spec, inspection)] if inspection else []
    return [*found, *_of_following(session, spec)]


def _of_following(session: Session, spec: PretrainSpec) -> Iterator[Warned]:
    following = spec.following(TRAINED)
    found = newest_inspection(session, following.dataset) if following else None
    if following and found and found.class_count < 2:
        what = "one class only" if found.class_count else "no labels"
        text = f"evaluation.after asks for an evaluation on {following.dataset.uri}, whose images have {what}"
        advice = "it would end with data_error. Name labelled images in evaluation.after.dataset"
        yield Warned(code="after_without_labels", message=f"{text}: {advice}")


def _warnings(spec: PretrainSpec, found: Inspection) -> Iterator[Warned]:
    readable = sum(found.formats.values())
    chans, widest = spec.model.in_chans, max(found.channels, default=0)
    fitting = found.fitting_channels.get(chans, 0)
    if fitting < readable:
        text = f"model.in_chans is {chans}, and {readable - fitting} of {readable} readable images cannot have so many"
        yield Warned(code="channels_do_not_fit", message=f"{text}: they have {_shown(found.channels)}")
    elif chans == GREY and widest > GREY_ALPHA:
        text = (
            f"model.in_chans is 1, so the colours of the images, which have {_shown(found.channels)} channels, are lost"
        )
        yield Warned(code="colour_lost", message=text)
    train = readable if spec.evaluation.dataset else readable - held_out_images(readable)
    batch = spec.optimization.global_batch_size
    if found.fingerprint and batch > train:  # a sample has none
        text = f"optimization.global_batch_size {batch} is larger than the {train} training images: lower it"
        yield Warned(code="batch_larger_than_data", message=text)
    probes = spec.evaluation.probes
    if probes not in {"auto", ()} and found.class_count < 2:
        what = "one class only" if found.class_count else "no labels"
        text = f"evaluation.probes asks for a probe, and the images have {what}: the job would end with data_error"
        yield Warned(code="probes_without_labels", message=text)
    unreadable = sum(each.count for each in found.unreadable.values())
    if unreadable > spec.dataset.max_bad_fraction * found.inspected:
        text = f"{unreadable} of {found.inspected} images cannot be read, more than dataset.max_bad_fraction allows"
        yield Warned(code="too_many_unreadable", message=text)
    yield from (each for each in found.warnings if each.code not in SHOWN_BEFORE)


def _shown(channels: dict[int, int]) -> str:
    return " or ".join(map(str, sorted(channels)))
