"""What a job does once it is queued again: when it starts, from where, and that its messages say so."""

from __future__ import annotations

import pytest
from conftest import Clients
from service_fakes import SPEC, FakeRay, events_of, job_of, spec_with
from service_world import World

from service.db.tables import Attempt
from service.jobs.lifecycle import Verb
from service.jobs.schemas import RetryBody
from trainer.protocol import names
from trainer.protocol.outcome import Outcome, Reason
from trainer.spec.cluster import NodeShape

CHECKPOINT = f"{names.checkpoint_folder(1)}/00000100"
BEGINNING, LAST = "start from the beginning", "continue from the last checkpoint"
BROKE = Outcome(state="failed", reason=Reason.WORKER_FAILED, message="It broke.")


def backing_off(world: World) -> str:
    """A recovering job whose next attempt is far away."""
    job_id = world.running()
    world.end_attempt(job_id, BROKE)
    world.rounds()
    world.not_due(job_id)
    assert world.state(job_id) == "recovering"
    return job_id


# --- when -------------------------------------------------------------------------------------------------------------


def test_a_job_that_was_paused_while_it_backed_off_starts_at_once_when_it_is_resumed(world: World):
    job_id = backing_off(world)
    world.verb(job_id, Verb.PAUSE)
    world.rounds()
    assert world.state(job_id) == "paused"
    world.verb(job_id, Verb.RESUME)
    world.rounds()
    assert world.state(job_id) == "starting"
    job = job_of(world.database, job_id)
    assert (job.restarts, job.failures) == (0, 1), "what failed stays counted, unless the job is retried"


def test_a_job_that_was_cancelled_while_it_backed_off_starts_at_once_when_it_is_retried(world: World):
    job_id = backing_off(world)
    world.verb(job_id, Verb.CANCEL)
    world.rounds()
    world.verb(job_id, Verb.RETRY)
    world.rounds()
    assert world.state(job_id) == "starting"


# --- from where -------------------------------------------------------------------------------------------------------


def stored_checkpoint(world: World, job_id: str) -> None:
    """The attempt stores a checkpoint, and its run names it."""
    world.mlflow.runs[f"run-{job_id}"].tags[names.TAG_CHECKPOINT] = CHECKPOINT


@pytest.mark.parametrize(("stored", "continuation"), [(False, BEGINNING), (True, LAST)])
def test_a_lost_attempt_goes_on_from_what_there_is(world: World, stored, continuation):
    job_id = world.running()
    if stored:
        stored_checkpoint(world, job_id)  # no round sees it before the attempt has ended
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST, message="A node is gone."))
    world.rounds()
    assert job_of(world.database, job_id).message.startswith(f"A node is gone. It will {continuation}.")


@pytest.mark.parametrize(("stored", "continuation"), [(False, BEGINNING), (True, LAST)])
@pytest.mark.parametrize(
    ("verb", "state", "said"),
    [
        (Verb.CANCEL, "cancelled", "Cancelled. Retry the job to {}."),
        (Verb.PAUSE, "paused", "Paused. Resume the job to {}."),
    ],
)
def test_a_job_that_is_ended_says_from_where_it_would_go_on(world: World, verb, state, said, stored, continuation):
    """While an attempt runs, and while none does."""
    running, recovering = world.running(), backing_off(world)
    for job_id in (running, recovering):
        if stored:
            stored_checkpoint(world, job_id)
            with world.database.session() as session:
                session.get(Attempt, (job_id, 1)).checkpoint = CHECKPOINT
        world.verb(job_id, verb)
    world.end_attempt(running, Outcome(state=state, reason=None, message=""))
    world.rounds(2)
    for job_id in (running, recovering):
        job = job_of(world.database, job_id)
        assert (job.state, job.message) == (state, said.format(continuation))


@pytest.mark.parametrize("path", ["cancel", "pause"])
def test_a_job_that_never_ran_starts_from_the_beginning(clients: Clients, database, path):
    job_id = clients.alice.post("/v1/jobs", json=SPEC).json()["id"]
    answer = clients.alice.post(f"/v1/jobs/{job_id}/{path}")
    assert answer.json()["message"].endswith("the job to start from the beginning.")
    assert events_of(database, job_id)[-1].message == answer.json()["message"]


def test_a_job_that_is_retried_from_scratch_has_no_checkpoint_any_more(world: World):
    job_id = world.running()
    stored_checkpoint(world, job_id)
    world.verb(job_id, Verb.CANCEL)
    world.end_attempt(job_id, Outcome(state="cancelled", reason=None, message=""))
    world.rounds()
    assert LAST in job_of(world.database, job_id).message
    world.verb(job_id, Verb.RETRY, RetryBody(from_scratch=True))
    world.verb(job_id, Verb.CANCEL)
    assert job_of(world.database, job_id).message == f"Cancelled. Retry the job to {BEGINNING}."


# --- without nodes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [(NodeShape(0, 0, "head"),), None], ids=["a head without CPUs", "none at all"])
def test_while_no_node_has_joined_nobody_is_told_to_change_a_spec(clients: Clients, world: World, ray: FakeRay, nodes):
    ray.cpus, ray.nodes = 0, nodes or ()
    spec = spec_with(resources={"workers": 2, "cpus_per_worker": 2})
    plan = clients.alice.post("/v1/jobs/plan", json=spec).json()
    assert plan["fits"] == "later"
    job_id = world.add(spec=spec)
    world.rounds()
    waits = clients.alice.get(f"/v1/jobs/{job_id}").json()
    queued = clients.alice.get("/v1/cluster").json()["queue"][0]
    assert (waits["state"], waits["reason"]) == ("queued", "insufficient_resources")
    for message in (plan["message"], waits["message"], queued["message"]):
        assert message.startswith("Waits for nodes: none has joined the cluster yet.")
        assert "lower" not in message
    ray.cpus, ray.nodes = 4, ()
    world.rounds()
    assert world.state(job_id) == "starting"
