"""Specs that another version stored and this one refuses: their jobs say so, end, and disturb nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from service_fakes import SPEC, job_of
from service_world import World
from test_search_controller import SEARCH, begin

from service.db.tables import Job
from service.jobs import repository
from service.jobs.dataset_images import dataset_images
from service.jobs.lifecycle import Verb, delete
from trainer.protocol.outcome import Outcome, Reason
from trainer.spec.job import parse_pretrain

pytestmark = pytest.mark.both_databases

FAR = 10**12
NEVER = {"evaluation": {"every_epochs": FAR}}
"""People write this for "never", with a number that lies beyond a limit which came later."""


def outdated(world: World, job_id: str) -> str:
    """As if an earlier version had stored the job's spec."""
    with world.database.session() as session:
        job = repository.get(session, job_id)
        job.spec = _with_never(job.spec)
        job.resolved_spec = _with_never(job.resolved_spec) if job.resolved_spec else None
    return job_id


def _with_never(document: dict[str, Any]) -> dict[str, Any]:
    if document["kind"] == "search":
        return document | {"base": document["base"] | NEVER}
    return document | {"evaluation": document["evaluation"] | NEVER["evaluation"]}


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_its_pages_are_shown(browsers, world, state):
    job_id = outdated(world, world.add(state=state, owner="alice"))
    tabs = [f"/jobs/{job_id}/{tab}" for tab in ("overview", "spec", "events", "logs", "metrics", "checkpoints")]
    for path in ("/", "/jobs", "/cluster", *tabs, f"/jobs/new?like={job_id}"):
        page = browsers.alice.get(path)
        assert page.status_code == 200, (path, page.text)
    assert str(FAR) in page.text, "the copy can be mended"


def test_a_waiting_job_says_which_field_to_change_and_can_be_cancelled(world):
    first, second = outdated(world, world.add()), world.add()
    world.rounds()
    job = job_of(world.database, first)
    assert (job.state, job.reason) == ("queued", "spec_error")
    assert "evaluation.every_epochs" in job.message
    assert "submit it as a new job" in job.message
    assert world.state(second) == "starting"
    assert world.verb(first, Verb.CANCEL) == "cancelled"


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "paused", "cancelled"])
def test_a_running_job_ends_as_its_attempt_did(world, outcome):
    job_id = outdated(world, world.running())
    if outcome in {"cancelled", "paused"}:
        world.verb(job_id, Verb.CANCEL if outcome == "cancelled" else Verb.PAUSE)
    world.end_attempt(job_id, Outcome(state=outcome, reason=Reason.DATA_ERROR if outcome == "failed" else None))
    world.rounds()
    assert world.state(job_id) == outcome


@pytest.mark.parametrize("verb", [Verb.CANCEL, Verb.PAUSE, None])
def test_a_search_ends_though_its_trials_cannot_be_read(world, verb):
    job_id = world.running(spec=SEARCH)
    begin(world, job_id)
    outdated(world, job_id)
    if verb:
        world.verb(job_id, verb)
    world.end_attempt(job_id, Outcome(state="cancelled" if verb is Verb.CANCEL else "succeeded"))
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason) == ("cancelled" if verb is Verb.CANCEL else "failed", "spec_error")
    assert "every_epochs" in job.message


def test_a_deleted_job_is_removed(world):
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR))
    world.rounds()
    outdated(world, job_id)
    folder = Path(job_of(world.database, job_id).artifact_uri)
    with world.database.session() as session:
        delete(repository.get(session, job_id))
    world.rounds()
    with world.database.read() as session:
        assert session.get(Job, job_id) is None
    assert not folder.exists()


def test_another_job_of_the_same_dataset_can_be_submitted(world):
    spec = SPEC | {"dataset": {"uri": "/data/images"}}
    world.add(spec=spec, dataset_images=90)
    outdated(world, world.add(spec=spec, dataset_images=100))
    with world.database.read() as session:
        assert dataset_images(session, parse_pretrain(spec).dataset) == 90
