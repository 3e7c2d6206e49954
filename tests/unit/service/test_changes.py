"""What people change about a job: other resources on resume and retry, priority, labels and notes."""

from __future__ import annotations

from typing import Any

import pytest
from service_fakes import SPEC, add_job, events_of, job_of, problem, spec_with
from service_world import World

from service.jobs.lifecycle import Verb
from trainer.protocol.outcome import Outcome, Reason

STOPPED = {"resume": "paused", "retry": "failed"}


def stopped(world: World, verb: str, **spec: Any) -> str:
    """A job after its first attempt, that the verb brings back."""
    job_id = world.running(spec=spec_with(**spec))
    if verb == "resume":
        world.verb(job_id, Verb.PAUSE)
        world.end_attempt(job_id, Outcome(state="paused", checkpoint="checkpoints/a1/9"))
    else:
        world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR, checkpoint="checkpoints/a1/9"))
    world.rounds()
    assert world.state(job_id) == STOPPED[verb]
    return job_id


# --- other resources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", STOPPED)
def test_the_next_attempt_has_the_other_resources(world, served, verb):
    job_id = stopped(world, verb)
    first = world.ray.requests[0].spec
    assert (first.resources.workers, first.optimization.micro_batch_size) == (1, 64)
    answer = served.post(f"/v1/jobs/{job_id}/{verb}", json={"resources": {"workers": 4, "cpus_per_worker": 1}})
    assert answer.status_code == 200
    resources = answer.json()["spec"]["resources"]
    assert (resources["workers"], resources["cpus_per_worker"], resources["gpus_per_worker"]) == (4, 1, 0)
    assert "Resources: workers 4, cpus_per_worker 1." in events_of(world.database, job_id)[-1].message
    world.rounds()
    first, second = world.ray.requests
    assert (second.attempt, second.since_attempt, second.run_id) == (2, 1, first.run_id)
    assert (second.spec.resources.workers, second.spec.resources.cpus_per_worker) == (4, 1)
    assert second.spec.optimization.micro_batch_size == 16, "derived anew for four workers"
    same = {"resources", "optimization"}
    assert second.spec.model_dump(exclude=same) == first.spec.model_dump(exclude=same)
    assert second.spec.optimization.global_batch_size == 64
    shown = served.get(f"/v1/jobs/{job_id}").json()["spec"]
    assert (shown["resources"]["workers"], shown["optimization"]["micro_batch_size"]) == (4, 16)


@pytest.mark.both_databases
def test_a_micro_batch_that_was_written_stays(world, served):
    written = SPEC["optimization"] | {"micro_batch_size": 8}
    job_id = stopped(world, "resume", optimization=written)
    served.post(f"/v1/jobs/{job_id}/resume", json={"resources": {"workers": 2, "cpus_per_worker": 1}})
    world.rounds()
    assert world.ray.requests[-1].spec.optimization.micro_batch_size == 8


def test_without_other_resources_the_next_attempt_runs_as_the_one_before(world, served):
    """Also on a cluster that has grown meanwhile."""
    job_id = stopped(world, "resume", resources={"gpus_per_worker": 0})
    world.ray.cpus = 16
    assert served.post(f"/v1/jobs/{job_id}/resume").status_code == 200
    world.rounds()
    first, second = world.ray.requests
    assert second.spec == first.spec


@pytest.mark.both_databases
@pytest.mark.parametrize("verb", STOPPED)
def test_auto_is_what_the_cluster_has_now(world, served, verb):
    job_id = stopped(world, verb)
    world.ray.cpus = 8
    answer = served.post(f"/v1/jobs/{job_id}/{verb}", json={"resources": {"cpus_per_worker": "auto"}})
    assert answer.json()["spec"]["resources"]["cpus_per_worker"] == "auto"
    world.rounds()
    assert [request.spec.resources.cpus_per_worker for request in world.ray.requests] == [2, 8]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"workers": 3}, "/resources/workers", "64"),
    ({"workers": 0}, "/resources/workers", "greater than or equal to"),
    ({"workers": -1}, "/resources/workers", "greater than or equal to"),
    ({"workers": "many"}, "/resources/workers", "auto"),
    ({"workers": 1.5}, "/resources/workers", ""),
    ({"workers": None}, "/resources/workers", ""),
    ({"gpus_per_worker": 2}, "/resources/gpus_per_worker", ""),
    ({"worker": 2}, "/resources/worker", "'workers'"),
    ({"memory": 2}, "/resources/memory", ""),
]


@pytest.mark.parametrize("verb", STOPPED)
@pytest.mark.parametrize(("resources", "pointer", "said"), WRONG)
def test_resources_that_do_not_fit_are_refused_and_change_nothing(api, database, verb, resources, pointer, said):
    job_id = add_job(database, STOPPED[verb])
    before = api.get(f"/v1/jobs/{job_id}").json()
    body = problem(api.post(f"/v1/jobs/{job_id}/{verb}", json={"resources": resources}), 422, "spec_invalid")
    (found,) = body["problems"]
    assert (found["pointer"], found["value"]) == (pointer, next(iter(resources.values())))
    assert said in found["message"]
    assert api.get(f"/v1/jobs/{job_id}").json() == before
    assert events_of(database, job_id) == []


def test_a_verb_that_the_state_does_not_allow_is_refused_whatever_resources_it_names(api, database):
    job_id = add_job(database, "running")
    problem(api.post(f"/v1/jobs/{job_id}/resume", json={"resources": {"workers": 2}}), 409, "not_allowed_in_state")
    assert job_of(database, job_id).spec["resources"]["workers"] == 1


# --- priority, labels, notes ------------------------------------------------------------------------------------------


def test_a_priority_reorders_those_that_wait(world, served):
    world.running()
    world.running()
    first, second, third = world.add(), world.add(), world.add()
    world.rounds()
    assert {world.state(job_id) for job_id in (first, second, third)} == {"queued"}
    assert served.patch(f"/v1/jobs/{third}", json={"priority": 5}).json()["priority"] == 5
    served.patch(f"/v1/jobs/{first}", json={"priority": -5})
    for started in (third, second, first):
        live = next(identity for identity, state in world.ray.jobs.items() if not state.ended)
        world.mlflow.beat(live.rpartition("-a")[0], 1, 1.0)
        world.end_attempt(live.rpartition("-a")[0], Outcome(state="succeeded"))
        world.rounds()
        assert world.state(started) == "starting"


@pytest.mark.both_databases
def test_only_what_is_given_changes(api, database):
    job_id = add_job(database, labels={"team": "vision"}, priority=3, notes="the first")
    for body in ({"priority": 4}, {"labels": {"team": "audio"}}, {"notes": "the second"}, {"labels": {}}):
        before = api.get(f"/v1/jobs/{job_id}").json()
        after = api.patch(f"/v1/jobs/{job_id}", json=body).json()
        assert {name: after[name] for name in before if after[name] != before[name]} == body
        assert api.get(f"/v1/jobs/{job_id}").json() == after


@pytest.mark.both_databases
def test_an_event_says_what_changed_from_what_to_what(api, database):
    job_id = add_job(database, "running", labels={"team": "vision"}, priority=3)
    api.patch(f"/v1/jobs/{job_id}", json={"priority": 4, "labels": {}, "notes": ""})
    (event,) = events_of(database, job_id)
    assert event.message == "Changed priority from 3 to 4, labels from {'team': 'vision'} to {}."
    assert (event.state, event.reason, event.actor) == ("running", None, "alice")
    assert job_of(database, job_id).message == "", "why it is in its state has not changed"


REFUSED: list[tuple[Any, str, list[str]]] = [
    ({}, "body_invalid", ["priority", "labels", "notes"]),
    ({"priority": None}, "spec_invalid", ["priority"]),
    ({"labels": None}, "spec_invalid", ["labels"]),
    ({"notes": None}, "spec_invalid", ["notes"]),
    ({"priority": 1, "notes": None}, "spec_invalid", ["notes"]),
    ({"priority": 101}, "spec_invalid", ["priority"]),
    ({"priority": -101}, "spec_invalid", ["priority"]),
    ({"priority": "high"}, "spec_invalid", ["priority"]),
    ({"priority": 1.5}, "spec_invalid", ["priority"]),
    ({"labels": {"team": 1}}, "spec_invalid", ["team"]),
    ({"labels": {"te am": "vision"}}, "spec_invalid", ["te am"]),
    ({"labels": {"team": "x" * 64}}, "spec_invalid", ["team"]),
    ({"labels": {f"l{n}": "1" for n in range(33)}}, "spec_invalid", ["labels"]),
    ({"notes": "x" * 10_001}, "spec_invalid", ["notes"]),
    ({"prioritie": 1}, "spec_invalid", ["prioritie", "'priority'"]),
    ({"state": "queued"}, "spec_invalid", ["state"]),
    ({"spec": {}}, "spec_invalid", ["spec"]),
]


@pytest.mark.parametrize(("body", "code", "named"), REFUSED, ids=[str(row[0])[:40] for row in REFUSED])
def test_a_change_that_cannot_be_made_is_refused_by_name(api, database, body, code, named):
    job_id = add_job(database, priority=3, notes="kept")
    before = api.get(f"/v1/jobs/{job_id}").json()
    found = problem(api.patch(f"/v1/jobs/{job_id}", json=body), 422, code)
    for name in named:
        assert name in found["detail"]
    if code == "spec_invalid":
        assert all(p["pointer"].startswith("/") and len(p["pointer"]) > 1 for p in found["problems"])
    assert api.get(f"/v1/jobs/{job_id}").json() == before
    assert events_of(database, job_id) == []


@pytest.mark.parametrize("edge", [-100, 100])
def test_the_edges_of_a_priority_are_allowed(api, database, edge):
    job_id = add_job(database)
    assert api.patch(f"/v1/jobs/{job_id}", json={"priority": edge}).json()["priority"] == edge


def test_notes_may_be_any_text(api, database):
    job_id = add_job(database)
    text = "Ünïcode, 'quotes', \"more\"\n" + "x" * 9_000
    assert api.patch(f"/v1/jobs/{job_id}", json={"notes": text}).json()["notes"] == text


@pytest.mark.both_databases
def test_a_job_is_found_by_the_labels_that_it_has_now(api):
    job_id = api.post("/v1/jobs", json=SPEC | {"labels": {"team": "vision", "stage": "try"}}).json()["id"]

    def found(*labels: str) -> list[str]:
        return [job["id"] for job in api.get("/v1/jobs", params={"label": labels}).json()["items"]]

    assert found("team:vision") == found("team:vision", "stage:try") == [job_id]
    assert found("team:vision", "stage:done") == []
    api.patch(f"/v1/jobs/{job_id}", json={"labels": {"team": "audio"}})
    assert (found("team:vision"), found("stage:try"), found("team:audio")) == ([], [], [job_id])
