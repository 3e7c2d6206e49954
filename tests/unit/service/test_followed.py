"""Evaluations that follow a pretraining by themselves: when, of what, for whom, and how it is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from command_line import rcmae
from kept_checkpoints import refused
from service_fakes import add_job, events_of, job_of, spec_with
from service_world import World
from sqlalchemy import select

from service.app import attach
from service.db.database import Database
from service.db.tables import Job
from service.jobs.lifecycle import Verb
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import Source, VersionSource

KNN = [{"name": "knn"}]
DIGITS = {"uri": "builtin://digits"}
EVALUATION = {"kind": "evaluate", "backbone": "digits:1", "dataset": DIGITS}
LAST = "checkpoints/a1/00000050"
DONE = Outcome(state="succeeded", checkpoint=LAST)


def followed(world: World, after: Any = KNN, **fields: Any) -> str:
    """A running job that asks for an evaluation."""
    spec = spec_with(evaluation={"after": after}, **fields.pop("spec", {}))
    return world.running(spec=spec, **fields)


def followers(world: World, job_id: str) -> list[Job]:
    with world.database.read() as session:
        return list(session.scalars(select(Job).where(Job.follows == job_id)))


@pytest.mark.both_databases
def test_the_version_that_a_job_registers_is_evaluated_for_its_owner(served, world, root, ray):
    job_id = followed(world, spec={"register_as": "digits"}, owner="alice")
    change = {"labels": {"team": "vision"}, "priority": 7}
    served.patch(f"/v1/jobs/{job_id}", json=change).raise_for_status()
    assert followers(world, job_id) == []
    world.mlflow.register("digits", 1, job_id, root)
    world.end_attempt(job_id, DONE)
    world.rounds()
    (follower,) = followers(world, job_id)
    assert (follower.kind, follower.owner, follower.priority) == ("evaluate", "alice", 7)
    assert (follower.labels, follower.spec["backbone"]) == ({"team": "vision"}, "digits:1")
    assert (follower.dataset_uri, follower.spec["protocols"][0]["name"]) == (DIGITS["uri"], "knn")
    source = ray.requests[-1].source
    assert isinstance(source, VersionSource)
    assert (source.name, source.version) == ("digits", 1)

    shown = served.get(f"/v1/jobs/{job_id}").json()
    assert (shown["state"], shown["followed_by"], shown["follows"]) == ("succeeded", [follower.id], None)
    assert served.get(f"/v1/jobs/{follower.id}").json()["follows"] == job_id
    listed = {each["id"]: each for each in served.get("/v1/jobs").json()["items"]}
    assert (listed[job_id]["followed_by"], listed[follower.id]["follows"]) == ([follower.id], job_id)
    assert events_of(world.database, job_id)[-1].message == f"{follower.id} follows it: an evaluation of digits:1."
    assert events_of(world.database, follower.id)[0].message == f"Submitted by the service to follow {job_id}."


@pytest.mark.parametrize("spec", [{}, {"register_as": "digits", "export": {"formats": ["onnx"]}}])
def test_otherwise_its_last_checkpoint_is(world, root, ray, spec):
    """It registers none, or one without weights that can be read."""
    job_id = followed(world, spec=spec)
    if "register_as" in spec:
        world.mlflow.register("digits", 1, job_id, root)
    world.end_attempt(job_id, DONE)
    world.rounds()
    (follower,) = followers(world, job_id)
    assert follower.spec["backbone"] == {"job": job_id, "checkpoint": LAST, "network": None}
    assert isinstance(ray.requests[-1].source, Source)
    assert ray.requests[-1].source.job_id == job_id


def test_nothing_follows_a_job_that_fails_until_a_retry_succeeds_and_then_once(world):
    job_id = followed(world)
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR, message="No images."))
    world.rounds()
    assert (world.state(job_id), followers(world, job_id)) == ("failed", [])
    world.verb(job_id, Verb.RETRY)
    world.rounds()
    world.run_attempt(job_id, 2)
    world.end_attempt(job_id, Outcome(state="succeeded", checkpoint="checkpoints/a2/00000050"), 2)
    world.rounds(3)
    (follower,) = followers(world, job_id)
    assert follower.spec["backbone"]["checkpoint"] == "checkpoints/a2/00000050"


def test_nothing_follows_a_job_that_is_cancelled(world):
    job_id = followed(world)
    world.verb(job_id, Verb.CANCEL)
    world.end_attempt(job_id, Outcome(state="cancelled", checkpoint=LAST))
    world.rounds(2)
    assert (world.state(job_id), followers(world, job_id)) == ("cancelled", [])


def test_a_controller_that_dies_as_the_job_ends_submits_neither_none_nor_two(world, settings, ray, mlflow, monkeypatch):
    """The job succeeds and its evaluation is submitted in one transaction."""
    job_id = followed(world)
    world.end_attempt(job_id, DONE)
    with monkeypatch.context() as patched:
        patched.setattr("service.kinds.following.insert", _dies)
        world.rounds()
    assert (world.state(job_id), followers(world, job_id)) == ("running", [])
    successor = World(settings, world.database, ray, mlflow)
    successor.rounds(3)
    assert successor.state(job_id) == "succeeded"
    assert len(followers(successor, job_id)) == 1


def _dies(*_: Any, **__: Any) -> None:
    raise RuntimeError("killed")


def test_a_deleted_evaluation_is_not_shown_any_more_and_not_submitted_again(served, world):
    job_id = followed(world)
    world.end_attempt(job_id, DONE)
    world.rounds()
    (follower,) = followers(world, job_id)
    world.run_attempt(follower.id)
    world.verb(follower.id, Verb.CANCEL)
    world.end_attempt(follower.id, Outcome(state="cancelled"))
    world.rounds()
    served.delete(f"/v1/jobs/{follower.id}").raise_for_status()
    assert served.get(f"/v1/jobs/{job_id}").json()["followed_by"] == []
    world.rounds(3)
    assert served.get("/v1/jobs?kind=evaluate").json()["items"] == []


def test_what_cannot_be_submitted_any_more_is_told_on_the_job_that_asked(served, world):
    reference = add_job(world.database, "succeeded", EVALUATION)
    job_id = followed(world, [{"name": "robustness", "reference": reference}])
    served.delete(f"/v1/jobs/{reference}").raise_for_status()
    world.end_attempt(job_id, DONE)
    world.rounds(2)
    job = job_of(world.database, job_id)
    assert (job.state, followers(world, job_id)) == ("succeeded", [])
    assert "No evaluation follows it: " in job.message
    assert reference in job.message


def test_the_spec_of_the_evaluation_is_checked_when_the_pretraining_is_submitted(served, routes, settings, world):
    other = add_job(
        world.database, "succeeded", {"kind": "evaluate", "backbone": "digits:1", "dataset": DIGITS}, owner="bob"
    )
    robust = [{"name": "robustness", "reference": other}]
    narrow = settings.model_copy(update={"dataset_roots": ("builtin://",)})
    attach(routes, replace(world.app_state, settings=narrow), None)
    for after, field, text in (
        ([{"name": "knn", "k": [0]}], "evaluation.after.0.k.0", "greater than"),
        (robust, "evaluation.after.0.reference", "there is no evaluation"),
        ({"protocols": robust}, "evaluation.after.protocols.0.reference", "there is no evaluation"),
        ({"dataset": {"uri": "/data/x"}}, "evaluation.after.dataset.uri", "must be below one of"),
    ):
        spec = spec_with(evaluation={"after": after})
        for path in ("/v1/jobs", "/v1/jobs/plan"):
            refused(served.post(path, json=spec), field, text)


@pytest.mark.parametrize(
    ("register", "what"), [("digits", "the version of digits that it registers"), (None, "its last checkpoint")]
)
def test_a_plan_says_what_follows(served, register, what):
    spec = spec_with(evaluation={"after": {"protocols": KNN, "seeds": 2}}, register_as=register)
    message = served.post("/v1/jobs/plan", json=spec).json()["message"]
    text = "3 measurements: 1 of the backbone (1 knn) and 2 of baselines (2 knn)"
    assert f"An evaluation of {what} follows it, on scikit-learn's digits: {text}." in message


def pair(database: Database) -> tuple[str, str]:
    """A pretraining, and the evaluation that followed it."""
    trained = add_job(database, "succeeded")
    return trained, add_job(database, spec=EVALUATION, follows=trained)


def test_the_page_of_each_links_to_the_other(browsers, database):
    trained, follower = pair(database)
    for shown, text, other in ((trained, "followed by", follower), (follower, "follows", trained)):
        assert f'{text} <a href="/jobs/{other}">' in browsers.alice.get(f"/jobs/{shown}/overview").text


@pytest.mark.usefixtures("address")
def test_the_command_line_names_the_other(database, capsys):
    trained, follower = pair(database)
    assert re.search(rf"followed by\s+{follower}", rcmae(capsys, "jobs", "show", trained)[1])
    assert re.search(rf"follows\s+{trained}", rcmae(capsys, "jobs", "show", follower)[1])
