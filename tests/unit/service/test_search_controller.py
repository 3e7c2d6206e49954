"""The controller's part of searches: what they are told, their progress, their end, and what goes with them.

Over stand-ins for Ray and MLflow, a real database and a real study.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from service_fakes import SPEC, attempts_of, events_of, job_of
from service_world import World
from sqlalchemy import create_engine, select, text

from service.adapters.studies import Studies, StudiesUnreachable
from service.auth.caller import Caller
from service.auth.scopes import Role
from service.db.tables import Attempt, Job
from service.jobs import repository
from service.jobs.lifecycle import Verb, transition
from service.jobs.service import delete_job, deletion
from service.jobs.state import State
from trainer.protocol import names
from trainer.protocol.command import SearchOrders
from trainer.protocol.outcome import Outcome, Reason
from trainer.spec import metric_keys

pytestmark = pytest.mark.both_databases

RATE = "optimization.base_lr"
SEARCH: dict[str, Any] = {
    "kind": "search",
    "base": SPEC,
    "space": {RATE: {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}},
    "scheduler": {"name": "none"},
    "budget": {"trials": 5, "concurrency": 4},
}
ALICE = Caller("alice", Role.SUBMITTER)


def begin(world: World, job_id: str) -> int:
    """A trial that runs, with a run and a folder of its own; gives its number."""
    study = world.studies.study(job_id)
    trial = study.ask({RATE: FloatDistribution(1e-5, 1e-3, log=True)})
    run_id, folder = world.mlflow.make_trial_run(job_id, trial.number)
    for name, value in ((names.TRIAL_RUN, run_id), (names.TRIAL_FOLDER, folder), (names.TRIAL_ATTEMPTS, [1])):
        trial.set_user_attr(name, value)
    return trial.number


def complete(world: World, job_id: str, value: float) -> int:
    number = begin(world, job_id)
    world.studies.study(job_id).tell(number, value)
    world.mlflow.end_run(run_of(job_id, number), "FINISHED")
    return number


def run_of(job_id: str, number: int) -> str:
    return f"run-{job_id}-trial-{number}"


def states(world: World, job_id: str) -> list[str]:
    return [trial.state.name for trial in world.studies.trials(job_id)]


def statuses(world: World, job_id: str) -> list[str]:
    """Of the trials' runs."""
    return [run.status for run_id, run in world.mlflow.runs.items() if run_id.startswith(f"run-{job_id}-trial-")]


def orders_of(world: World, job_id: str) -> SearchOrders:
    """What the search's run says now."""
    return SearchOrders.model_validate_json(world.mlflow.runs[f"run-{job_id}"].tags[names.TAG_SEARCH])


def change(world: World, job_id: str, **fields: Any) -> None:
    with world.database.session() as session:
        for name, value in fields.items():
            setattr(repository.get(session, job_id), name, value)


@pytest.fixture
def away(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Takes the studies' database away; call what it gives to bring it back."""

    def take() -> Callable[[], None]:
        def refuse(*_: object) -> Any:
            raise StudiesUnreachable("connection refused")

        monkeypatch.setattr(Studies, "_connect", refuse)
        world.studies.close()
        return monkeypatch.undo

    return take


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_a_search_goes_from_queued_to_succeeded(world):
    job_id = world.running(spec=SEARCH)
    (request,) = world.ray.requests
    assert request.spec.budget.concurrency == 2, "of four trials of two CPUs, two fit on four"
    job = job_of(world.database, job_id)
    assert (job.spec["budget"]["concurrency"], attempts_of(world.database, job_id)[0].workers) == (4, 2)
    assert job.message == (
        "Attempt 1 is searching with 2 trials at a time: no more of the 4 requested fit on the cluster."
    )
    complete(world, job_id, 0.5)
    best = complete(world, job_id, 0.7)
    begin(world, job_id)
    world.studies.study(job_id).set_user_attr(names.STUDY_SECONDS, 60.0)
    world.rounds()
    progress = job_of(world.database, job_id).progress
    assert progress["trials"] == {"waiting": 0, "running": 1, "complete": 2, "pruned": 0, "failed": 0}
    assert {key: progress[key] for key in ("budget", "best_trial", "best_value", "eta_s")} == {
        "budget": 5, "best_trial": best, "best_value": 0.7, "eta_s": 90.0
    }  # fmt: skip
    world.studies.study(job_id).tell(2, 0.6)
    complete(world, job_id, 0.1)
    complete(world, job_id, 0.2)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.state == "succeeded"
    assert job.message == "The search is complete: 5 trials, the best is trial 1 with eval/linear_top1 0.7."
    assert job.result["metrics"] == {metric_keys.LINEAR_TOP1: 0.7}
    assert (job.progress["trials"]["complete"], job.progress["eta_s"]) == (5, None)
    assert world.mlflow.runs[job.run_id].status == "FINISHED"
    events = len(events_of(world.database, job_id))
    world.rounds(3)
    assert len(events_of(world.database, job_id)) == events


def test_a_search_is_told_what_people_ask_for_and_only_when_that_changes(world):
    job_id = world.running(spec=SEARCH)
    assert orders_of(world, job_id) == SearchOrders(trials=5, concurrency=2, max_failed=8)
    world.rounds(3)
    assert len(world.mlflow.orders) == 1, "written once, before the attempt began"
    resolved = job_of(world.database, job_id).resolved_spec
    budget = resolved["budget"] | {"trials": 9, "concurrency": 1, "max_hours": 2.5}
    change(world, job_id, resolved_spec=resolved | {"budget": budget}, stopped_trials=[3, 1])
    world.rounds(3)
    assert orders_of(world, job_id) == SearchOrders(
        trials=9, concurrency=1, max_failed=8, max_hours=2.5, stopped=(1, 3)
    )
    world.verb(job_id, Verb.STOP)
    world.rounds(2)
    assert orders_of(world, job_id).draining
    assert len(world.mlflow.orders) == 3
    job = job_of(world.database, job_id)
    assert (job.state, job.message) == (
        "running", "Attempt 1 lets running trials finish, and starts no more."
    )  # fmt: skip


def test_orders_that_mlflow_does_not_take_are_given_again(world):
    job_id = world.running(spec=SEARCH)
    world.mlflow.reachable = False
    world.verb(job_id, Verb.STOP)
    world.rounds(2)
    assert not orders_of(world, job_id).draining
    world.mlflow.reachable = True
    world.rounds()
    assert orders_of(world, job_id).draining


def test_requests_to_stop_trials_are_forgotten_when_those_have_ended(world):
    """Otherwise each would make the orders longer, which every trial reads."""
    job_id = world.running(spec=SEARCH)
    complete(world, job_id, 0.5)
    running = begin(world, job_id)
    change(world, job_id, stopped_trials=[0, running])
    world.rounds(2)
    assert orders_of(world, job_id).stopped == (running,)
    world.studies.study(job_id).tell(running, state=TrialState.PRUNED)
    world.rounds(2)
    assert orders_of(world, job_id).stopped == ()


@pytest.mark.parametrize("algorithm", ["grid", "tpe"])
def test_a_search_has_no_more_trials_than_its_space_has_points_and_says_that_all_were_tried(world, algorithm):
    space = {RATE: {"type": "categorical", "choices": [1e-4, 2e-4]}}
    job_id = world.running(spec=SEARCH | {"space": space, "algorithm": {"name": algorithm}})
    world.rounds()
    assert orders_of(world, job_id).trials == 2
    assert job_of(world.database, job_id).progress["budget"] == 2
    study = world.studies.study(job_id)
    for rate, value in ((1e-4, 0.5), (2e-4, 0.7)):
        study.add_trial(create_trial(value=value, params={RATE: rate}, distributions=_kinds(space)))
    copied = create_trial(value=0.5, params={RATE: 1e-4}, distributions=_kinds(space))
    copied.user_attrs[names.TRIAL_COPY_OF] = 0
    study.add_trial(copied)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert job_of(world.database, job_id).message == (
        "The search is complete, as all 2 points of its space have been tried: 3 trials, the best is trial 1 with "
        "eval/linear_top1 0.7."
    )


def _kinds(space: dict[str, Any]) -> dict[str, CategoricalDistribution]:
    return {path: CategoricalDistribution(parameter["choices"]) for path, parameter in space.items()}


def test_a_search_waits_for_the_studies_database_and_says_so(world, away):
    back = away()
    job_id, other = world.add(spec=SEARCH | {"budget": {"concurrency": 1}}), world.add()
    world.rounds(2)
    job = job_of(world.database, job_id)
    assert (job.state, job.reason) == ("queued", None)
    assert job.message.startswith("Waits for the studies' database, which stores the search's trials: ")
    assert world.state(other) == "starting"
    back()
    world.rounds()
    assert world.state(job_id) == "starting"


def test_the_studies_database_away_delays_an_end_and_stops_no_other_job(world, away):
    job_id = world.running(spec=SEARCH | {"budget": {"trials": 1, "concurrency": 1}})
    other = world.running()
    complete(world, job_id, 0.5)
    world.rounds()
    back = away()
    for each in (job_id, other):
        world.end_attempt(each, Outcome(state="succeeded"))
    world.rounds(2)
    job = job_of(world.database, job_id)
    assert (job.state, world.state(other)) == ("running", "succeeded")
    assert job.message.startswith("Attempt 1 has ended; its trials are not known yet: ")
    assert job.progress["trials"]["complete"] == 1, "as it was seen last"
    back()
    world.rounds()
    assert world.state(job_id) == "succeeded"


def test_a_cluster_that_shrank_has_fewer_trials_at_a_time(world):
    job_id = world.running(spec=SEARCH)
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST, message="A node was lost."))
    world.rounds()
    world.ray.cpus = 2
    world.due(job_id)
    world.rounds()
    assert [request.spec.budget.concurrency for request in world.ray.requests] == [2, 1]
    assert orders_of(world, job_id).concurrency == 1


def test_a_budget_that_changes_while_an_attempt_is_made_is_not_lost(world):
    job_id = world.add(spec=SEARCH)
    make = world.mlflow.make_run

    def changing(*given: Any) -> Any:
        world.mlflow.make_run = make
        spec = job_of(world.database, job_id).spec
        change(world, job_id, spec=spec | {"budget": spec["budget"] | {"trials": 7}})
        return make(*given)

    world.mlflow.make_run = changing
    world.rounds(2)
    assert world.state(job_id) == "starting"
    assert world.ray.requests[0].spec.budget.trials == 7
    assert orders_of(world, job_id).trials == 7


# --- between attempts, and at the end ---------------------------------------------------------------------------------


def test_trials_stay_open_from_one_attempt_to_the_next(world):
    job_id = world.running(spec=SEARCH)
    complete(world, job_id, 0.5)
    begin(world, job_id)
    world.end_attempt(job_id, None, ray="FAILED")
    world.rounds()
    assert (world.state(job_id), states(world, job_id)) == ("recovering", ["COMPLETE", "RUNNING"])
    world.due(job_id)
    world.rounds()
    world.run_attempt(job_id, 2)
    assert states(world, job_id) == ["COMPLETE", "RUNNING"]
    assert statuses(world, job_id) == ["FINISHED", "RUNNING"]


def test_a_pause_keeps_trials_open_and_cancelling_it_then_closes_them(world):
    job_id = world.running(spec=SEARCH)
    complete(world, job_id, 0.5)
    begin(world, job_id)
    world.verb(job_id, Verb.PAUSE)
    world.rounds()
    world.end_attempt(job_id, Outcome(state="paused"))
    world.rounds(3)
    assert (world.state(job_id), states(world, job_id)) == ("paused", ["COMPLETE", "RUNNING"])
    world.verb(job_id, Verb.CANCEL)
    world.rounds(2)
    assert states(world, job_id) == ["COMPLETE", "FAIL"]
    assert statuses(world, job_id) == ["FINISHED", "KILLED"]
    closed = world.studies.trials(job_id)[1].user_attrs
    assert closed[names.TRIAL_REASON] == "cancelled_by_user"
    assert closed[names.TRIAL_MESSAGE] == "The search was cancelled."
    job = job_of(world.database, job_id)
    assert (job.state, job.progress["trials"]["running"], job.progress["trials"]["failed"]) == ("cancelled", 0, 1)


def test_a_paused_search_that_is_stopped_has_a_result(world):
    job_id = world.running(spec=SEARCH)
    complete(world, job_id, 0.5)
    begin(world, job_id)
    world.verb(job_id, Verb.PAUSE)
    world.end_attempt(job_id, Outcome(state="paused"))
    world.rounds()
    assert world.verb(job_id, Verb.STOP) == "succeeded"
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.message == "The search has ended: 2 trials, the best is trial 0 with eval/linear_top1 0.5."
    assert job.result["metrics"] == {metric_keys.LINEAR_TOP1: 0.5}
    assert states(world, job_id) == ["COMPLETE", "FAIL"]
    events = len(events_of(world.database, job_id))
    world.rounds(2)
    assert len(events_of(world.database, job_id)) == events


def test_a_search_that_is_stopped_before_it_began_has_an_empty_result(world):
    world.ray.cpus = 0
    job_id = world.add(spec=SEARCH)
    world.rounds()
    assert world.verb(job_id, Verb.STOP) == "succeeded"
    world.rounds(2)
    job = job_of(world.database, job_id)
    assert job.result["metrics"] == {}
    assert job.message == "The search has ended: 0 trials, none of them with a value."


@pytest.mark.parametrize("alive", [True, False])
def test_a_search_that_is_cancelled_closes_its_trials(world, alive):
    job_id = world.running(spec=SEARCH)
    begin(world, job_id)
    if not alive:
        world.end_attempt(job_id, None, ray="FAILED")
        world.rounds()
    assert world.verb(job_id, Verb.CANCEL) == "cancelling"
    if alive:
        world.rounds()
        assert states(world, job_id) == ["RUNNING"], "whoever runs it may still end it"
        world.end_attempt(job_id, Outcome(state="cancelled"))
    world.rounds()
    assert world.state(job_id) == "cancelled"
    assert (states(world, job_id), statuses(world, job_id)) == (["FAIL"], ["KILLED"])
    assert job_of(world.database, job_id).progress["trials"]["running"] == 0


def test_a_search_of_which_too_many_trials_fail_says_what_to_do(world):
    job_id = world.running(spec=SEARCH)
    begin(world, job_id)
    outcome = Outcome(state="failed", reason=Reason.TRIALS_FAILED, message="9 trials failed, 8 may.")
    world.end_attempt(job_id, outcome, ray="FAILED")
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("failed", "trials_failed", 0)
    assert job.message.startswith("9 trials failed, 8 may. Look at the failed trials")
    assert (states(world, job_id), statuses(world, job_id)) == (["FAIL"], ["FAILED"])


def test_an_end_cut_off_before_its_trials_are_closed_is_finished_later(world, monkeypatch):
    job_id = world.running(spec=SEARCH)
    begin(world, job_id)
    world.verb(job_id, Verb.CANCEL)
    world.end_attempt(job_id, Outcome(state="cancelled"))
    with monkeypatch.context() as cut:
        cut.setattr(Studies, "close_trials", lambda *_: (_ for _ in ()).throw(StudiesUnreachable("cut off")))
        world.rounds(2)
    assert (world.state(job_id), states(world, job_id)) == ("cancelling", ["RUNNING"])
    world.rounds()
    assert (world.state(job_id), states(world, job_id)) == ("cancelled", ["FAIL"])


def test_several_objectives_end_with_all_that_no_other_beats(world):
    objectives = [{"metric": metric_keys.LINEAR_TOP1}, {"metric": metric_keys.IMAGES_PER_S}]
    job_id = world.running(spec=SEARCH | {"objective": objectives, "budget": {"trials": 3, "concurrency": 1}})
    for values in ([0.5, 100.0], [0.9, 50.0], [0.4, 60.0]):
        number = begin(world, job_id)
        world.studies.study(job_id).tell(number, values)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.message == "The search is complete: 3 trials, 2 of them on the Pareto front: 1, 0."
    assert job.result["metrics"] == {metric_keys.LINEAR_TOP1: 0.9, metric_keys.IMAGES_PER_S: 100.0}
    assert (job.progress["best_trial"], job.progress["best_value"]) == (1, 0.9)


def test_repeats_decide_what_is_called_best(world):
    budget = {"trials": 2, "concurrency": 1}
    job_id = world.running(spec=SEARCH | {"budget": budget, "repeats": {"best": 2, "seeds": 1}})
    for value in (0.9, 0.8):
        complete(world, job_id, value)
    study = world.studies.study(job_id)
    for of, value in ((0, 0.5), (1, 0.82)):
        number = begin(world, job_id)
        study._storage.set_trial_user_attr(study.trials[number]._trial_id, names.TRIAL_REPEAT_OF, of)
        study.tell(number, value)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    job = job_of(world.database, job_id)
    assert "the best is trial 1 with eval/linear_top1 0.81 on average over 2 seeds." in job.message
    assert job.result["metrics"][metric_keys.LINEAR_TOP1] == pytest.approx(0.81)
    assert job.progress["best_trial"] == 1


def test_a_search_that_has_succeeded_goes_on_with_more_trials(world):
    job_id = world.running(spec=SEARCH | {"budget": {"trials": 1, "concurrency": 1}})
    complete(world, job_id, 0.5)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    with world.database.session() as session:
        job = repository.get(session, job_id)
        for name in ("spec", "resolved_spec"):
            document = getattr(job, name)
            setattr(job, name, document | {"budget": document["budget"] | {"trials": 2}})
        transition(session, job, State.QUEUED, None, "Two trials.", "alice")
    world.rounds()
    assert orders_of(world, job_id).trials == 2
    world.run_attempt(job_id, 2)
    complete(world, job_id, 0.6)
    world.end_attempt(job_id, Outcome(state="succeeded"), 2)
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.message == "The search is complete: 2 trials, the best is trial 1 with eval/linear_top1 0.6."
    assert job.result["metrics"] == {metric_keys.LINEAR_TOP1: 0.6}


# --- promotion --------------------------------------------------------------------------------------------------------


def promoted(world: World, job_id: str) -> list[Job]:
    with world.database.read() as session:
        return list(session.scalars(select(Job).where(Job.search_id == job_id)))


@pytest.mark.parametrize("ended_by", ["its attempt", "somebody"])
def test_the_best_trial_is_promoted_once_where_the_spec_says_so(world, ended_by):
    promote = {"overrides": {"optimization.epochs": 7}, "register_as": "tuned"}
    job_id = world.running(spec=SEARCH | {"promote": promote, "budget": {"trials": 2, "concurrency": 1}})
    complete(world, job_id, 0.5)
    best = complete(world, job_id, 0.7)
    if ended_by == "somebody":
        world.verb(job_id, Verb.PAUSE)
        world.end_attempt(job_id, Outcome(state="paused"))
        world.rounds()
        world.verb(job_id, Verb.STOP)
    else:
        world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds(3)
    (made,) = promoted(world, job_id)
    assert (made.kind, made.owner, made.trial) == ("pretrain", "alice", best)
    assert made.spec["optimization"]["epochs"] == 7
    assert made.spec["optimization"]["base_lr"] == world.studies.trials(job_id)[best].params[RATE]
    assert made.spec["register_as"] == "tuned"
    assert [event for event in events_of(world.database, job_id) if made.id in event.message]


def test_a_trial_that_cannot_be_promoted_does_not_keep_its_search_from_ending(world):
    promote = {"overrides": {"optimization.epochs": 0}}
    job_id = world.running(spec=SEARCH | {"promote": promote, "budget": {"trials": 1, "concurrency": 1}})
    complete(world, job_id, 0.5)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds(2)
    job = job_of(world.database, job_id)
    assert job.state == "succeeded"
    assert "Trial 0 was not promoted: " in job.message
    assert "optimization.epochs" in job.message
    assert promoted(world, job_id) == []


# --- deletion and sweeps ----------------------------------------------------------------------------------------------


def finished(world: World) -> str:
    """A search of two trials, with a file of three bytes in the folder of each."""
    job_id = world.running(spec=SEARCH | {"budget": {"trials": 2, "concurrency": 1}})
    for value in (0.5, 0.7):
        number = complete(world, job_id, value)
        folder = Path(world.mlflow.runs[run_of(job_id, number)].artifact_uri)
        (folder / "images").mkdir()
        (folder / "images" / "a.png").write_bytes(b"123")
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(job_id) == "succeeded"
    return job_id


def left_of(world: World, root: Path, job_id: str) -> list[str]:
    with world.database.read() as session:
        rows = list(session.scalars(select(Job.id).where(Job.id == job_id)))
    studies = [job_id] if world.studies.study(job_id) else []
    everywhere = [*world.mlflow.runs, *world.ray.jobs, *(str(path) for path in root.rglob("*"))]
    return rows + studies + [name for name in everywhere if job_id in name]


def test_a_search_goes_with_its_trials_and_nothing_of_another(world, root):
    gone, kept = finished(world), finished(world)
    before, trials = left_of(world, root, kept), world.studies.trials(kept)
    promoted_to = world.add(search_id=gone, trial=1, state="succeeded")
    told = deletion(world.app_state, ALICE, gone)
    own = sum(path.stat().st_size for path in (root / f"run-{gone}").rglob("*") if path.is_file())
    assert (told.files, told.bytes) == (3, own + 6), "its outcome, and a picture of each trial"
    delete_job(world.app_state, ALICE, gone, with_backbones=False)
    world.rounds()
    assert left_of(world, root, gone) == []
    assert left_of(world, root, kept) == before
    world.studies.close()
    assert world.studies.trials(kept) == trials
    rows = {"studies": 1, "study_directions": 1, "trials": 2, "trial_params": 2, "trial_values": 2}
    tables = create_engine(world.context.app.settings.study_url)
    with tables.connect() as connection:
        left = {name: connection.scalar(text(f"SELECT count(*) FROM {name}")) for name in rows}
    tables.dispose()
    assert left == rows, "of the one that was kept"
    assert world.state(promoted_to) == "succeeded"


CALLS = [
    *("trial_runs", "delete_artifacts", "delete_run", "delete_artifacts", "delete_run", "delete_study"),
    *("delete_artifacts", "delete_run", "delete_record"),
]
"""What removing a search of two trials and one attempt does, in this order."""


def test_a_removal_cut_off_at_any_call_is_finished_later(world, root):
    calls: list[str] = []
    at = len(CALLS)

    def cutting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == at:
                raise RuntimeError("cut off")
            return original(*given)

        return call

    parts = [(world.mlflow, "trial_runs", "trial_runs"), (world.mlflow, "delete_run", "delete_run")]
    parts += [(world.context.app.artifacts, "delete", "delete_artifacts"), (world.studies, "delete", "delete_study")]
    for part, method, name in [*parts, (world.ray, "delete", "delete_record")]:
        setattr(part, method, cutting(name, getattr(part, method)))
    for cut in range(len(CALLS) + 1):
        job_id = finished(world)
        delete_job(world.app_state, ALICE, job_id, with_backbones=False)
        calls.clear()
        at = cut
        world.rounds()
        assert calls == CALLS[: cut + 1]
        assert bool(left_of(world, root, job_id)) == (cut < len(CALLS))
        at = -1
        world.rounds()
        assert left_of(world, root, job_id) == []


def test_unfinished_checkpoints_of_trials_go_but_not_where_one_may_be_under_way(world, swept):
    job_id = world.running(spec=SEARCH)
    ended, going = complete(world, job_id, 0.5), begin(world, job_id)
    study = world.studies.study(job_id)
    study._storage.set_trial_user_attr(study.trials[going]._trial_id, names.TRIAL_ATTEMPTS, [1, 2])
    folders = {}
    for number, start in ((ended, 1), (going, 1), (going, 2)):
        place = Path(world.mlflow.runs[run_of(job_id, number)].artifact_uri) / names.checkpoint_folder(start)
        folders[number, start] = place / "00000020"
        folders[number, start].mkdir(parents=True)
        (folders[number, start] / "student.safetensors").write_bytes(b"half of")
    whole = folders[ended, 1].with_name("00000010")
    whole.mkdir()
    (whole / names.MANIFEST).write_text("{}")
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST), ray="FAILED")
    world.rounds()
    with world.database.session() as session:
        session.get(Attempt, (job_id, 1)).ended_at = datetime.now(UTC) - timedelta(hours=2)
    assert {line["event"] for line in swept()} == {"swept_unfinished_checkpoint"}
    assert {key: folder.exists() for key, folder in folders.items()} == {
        (ended, 1): False, (going, 1): False, (going, 2): True
    }  # fmt: skip
    assert whole.exists()
    assert attempts_of(world.database, job_id)[0].swept_at is not None


def test_runs_of_trials_that_are_nobodys_are_closed_an_hour_after_their_search(world, swept):
    """Their driver died before the study knew of them."""
    job_id, running = finished(world), world.running(spec=SEARCH)
    orphan, _ = world.mlflow.make_trial_run(job_id, 9)
    own, _ = world.mlflow.make_trial_run(running, 9)
    assert swept() == []
    change(world, job_id, ended_at=datetime.now(UTC) - timedelta(hours=2))
    assert [(line["run_id"], line["status"]) for line in swept()] == [(orphan, "KILLED")]
    assert (world.mlflow.runs[orphan].status, world.mlflow.runs[own].status) == ("KILLED", "RUNNING")


def test_a_trial_once_closed_is_closed(world):
    """A driver that lives on after all cannot open it again."""
    job_id = world.running(spec=SEARCH)
    number = begin(world, job_id)
    world.verb(job_id, Verb.CANCEL)
    world.end_attempt(job_id, Outcome(state="cancelled"))
    world.rounds()
    world.studies.study(job_id).tell(number, 0.9, skip_if_finished=True)
    assert world.studies.trials(job_id)[number].state is TrialState.FAIL
