"""Specs that were stored before numbers had bounds: their jobs are shown, ended and deleted as any others."""

from __future__ import annotations

import copy

import pytest
from service_fakes import SPEC, add_job, spec_with
from service_world import World

from service.db.database import Database
from service.db.tables import Job
from service.jobs.lifecycle import Verb
from trainer.protocol.outcome import Outcome
from trainer.spec.base import SpecError
from trainer.spec.job import parse_spec

FOREVER = 10**7
"""Epochs of a job that somebody meant to end by hand."""


def trains_forever(database: Database, job_id: str) -> str:
    """The job, as an earlier version of the service may have stored it."""
    with database.session() as session:
        job = session.get(Job, job_id)
        job.spec = copy.deepcopy(job.spec)
        job.spec["optimization"]["epochs"] = FOREVER
        job.resolved_spec = job.resolved_spec and job.resolved_spec | {"optimization": job.spec["optimization"]}
        with pytest.raises(SpecError):
            parse_spec(job.spec)
    return job_id


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_they_are_shown(browsers, database, state):
    job_id = trains_forever(database, add_job(database, state, spec_with(register_as="digits"), owner="alice"))
    tabs = [f"/jobs/{job_id}/{tab}" for tab in ("overview", "spec", "events", "logs", "metrics", "checkpoints")]
    for path in ("/", "/jobs", "/cluster", *tabs, f"/jobs/new?like={job_id}"):
        page = browsers.alice.get(path)
        assert page.status_code == 200, (path, page.text)
    assert str(FOREVER) in page.text, "the copy can be mended"


@pytest.mark.parametrize(
    ("verb", "outcome", "state"),
    [(Verb.CANCEL, "cancelled", "cancelled"), (Verb.PAUSE, "paused", "paused"), (None, "succeeded", "succeeded")],
)
def test_a_running_one_ends(world: World, verb, outcome, state):
    job_id = trains_forever(world.database, world.running())
    if verb:
        world.verb(job_id, verb)
    world.end_attempt(job_id, Outcome(state=outcome, reason=None, message=""))
    world.rounds(2)
    assert world.state(job_id) == state


def test_a_waiting_one_is_cancelled_and_deleted_and_holds_up_nobody(api, world: World):
    job_id, other = trains_forever(world.database, world.add()), world.add(spec=SPEC)
    world.rounds()
    assert world.state(other) == "starting"
    assert api.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    assert api.delete(f"/v1/jobs/{job_id}").status_code == 200
    world.rounds(2)
    assert api.get(f"/v1/jobs/{job_id}").status_code == 404
