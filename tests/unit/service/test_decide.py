"""What is decided about one attempt, case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from service.adapters.mlflow_runs import RunView
from service.adapters.ray_cluster import RayState
from service.controller.decide import MAX_DELAY_S, STOP_AGAIN, Ended, Hung, Observation, Patience, decide, settle
from service.db.tables import Attempt, Job
from service.jobs.lifecycle import POLICIES
from service.jobs.state import State
from trainer.protocol.names import TAG_ACTIVITY, heartbeat
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.progress import Activity, Phase

CONTINUATION = "continue from the last checkpoint"

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
PATIENCE = Patience(
    command=timedelta(seconds=120),
    heartbeat=timedelta(seconds=100),
    start=timedelta(seconds=900),
    stall=timedelta(seconds=1800),
)
LIVE = ["starting", "running", "pausing", "cancelling"]
GONE = [RayState.SUCCEEDED, RayState.FAILED, RayState.STOPPED, RayState.ABSENT]
PRESENT = [state for state in RayState if state not in {RayState.ABSENT, RayState.UNKNOWN}]
SILENT_RUN = RunView({}, {})


REMOVED_RUN = RunView({}, {}, gone=True)


def job(state: str = "running", failures: int = 0, restarts: int = 0) -> Job:
    return Job(kind="pretrain", state=state, failures=failures, restarts=restarts)


def attempt(**fields: object) -> Attempt:
    return Attempt(**({"number": 2, "accepted": True, "generation": 0, "started_at": ago(60)} | fields))


def beat(seconds_ago: float = 1.0, number: int = 2) -> RunView:
    return RunView({heartbeat(number): str(NOW.timestamp() - seconds_ago)}, {})


def observation(ray: RayState = RayState.RUNNING, **fields: Any) -> Observation:
    """What was seen; the attempt's last heartbeat came when the run says."""
    run = fields.setdefault("run", SILENT_RUN)
    last = run.heartbeat(2) if run else None
    silent = timedelta(seconds=NOW.timestamp() - last) if last else timedelta(0)
    return Observation(**({"now": NOW, "ray": ray, "beat": last, "silent": silent} | fields))


def seconds_of(**lengths: float) -> dict[str, timedelta]:
    """What the controller's own looks have counted."""
    return {name: timedelta(seconds=length) for name, length in lengths.items()}


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


# --- Ray out of reach, and submissions whose answer was lost ----------------------------------------------------------


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("run", [None, SILENT_RUN, beat(9999)])
@pytest.mark.parametrize("asked", [None, ago(9999)])
def test_nothing_follows_from_a_cluster_out_of_reach(state, accepted, run, asked):
    tried = attempt(accepted=accepted, stop_asked_at=asked, command="cancel", commanded_at=asked)
    outcome = Outcome(state="failed", reason=Reason.DATA_ERROR)
    assert decide(job(state), tried, observation(RayState.UNKNOWN, run=run, outcome=outcome), PATIENCE) == "wait"


@pytest.mark.parametrize("state", ["starting", "running"])
def test_a_submission_that_ray_does_not_know_is_sent_again(state):
    assert decide(job(state), attempt(accepted=False), observation(RayState.ABSENT), PATIENCE) == "submit"


@pytest.mark.parametrize("state", ["starting", "running"])
def test_a_submission_that_ray_does_not_know_waits_for_mlflow_which_alone_can_tell_whether_it_ran(state):
    assert decide(job(state), attempt(accepted=False), observation(RayState.ABSENT, run=None), PATIENCE) == "wait"


@pytest.mark.parametrize(("state", "end"), [("cancelling", "cancelled"), ("pausing", "paused")])
def test_a_submission_that_never_arrived_ends_with_its_job(state, end):
    decision = decide(job(state), attempt(accepted=False), observation(RayState.ABSENT, run=None), PATIENCE)
    assert isinstance(decision, Ended)
    assert decision.state == end


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("ray", PRESENT)
def test_a_submission_that_ray_knows_is_accepted_first(state, ray):
    assert decide(job(state), attempt(accepted=False), observation(ray), PATIENCE) == "accept"


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("ray", GONE)
def test_the_end_waits_for_mlflow(state, ray):
    outcome = Outcome(state="succeeded")
    assert decide(job(state), attempt(), observation(ray, run=None, outcome=outcome), PATIENCE) == "wait"


@pytest.mark.parametrize("ray", GONE)
@pytest.mark.parametrize("asked", [None, ago(5)])
@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(state="succeeded", checkpoint="checkpoints/a2/10"),
        Outcome(state="failed", reason=Reason.LOSS_NOT_FINITE, message="step 7", checkpoint="checkpoints/a1/5"),
        Outcome(state="paused"),
    ],
)
def test_the_attempts_own_last_word_counts(ray, asked, outcome):
    decision = decide(job(), attempt(stop_asked_at=asked), observation(ray, outcome=outcome), PATIENCE)
    assert decision == Ended(outcome.state, outcome.reason, outcome.message, outcome.checkpoint)


@pytest.mark.parametrize("ray", GONE)
@pytest.mark.parametrize("asked", [None, ago(5)])
@pytest.mark.parametrize(
    ("hung", "reason", "message"),
    [
        ({}, Reason.DEADLINE_EXCEEDED, "The attempt sent no heartbeat for too long and was stopped."),
        ({"reason": "stalled", "message": "It stood still."}, Reason.STALLED, "It stood still."),
    ],
)
def test_an_attempt_that_obeyed_a_cancel_nobody_asked_for_was_ended_by_our_own_stop(ray, asked, hung, reason, message):
    outcome = Outcome(state="cancelled", checkpoint="checkpoints/a2/10")
    decision = decide(job(), attempt(stop_asked_at=asked, **hung), observation(ray, outcome=outcome), PATIENCE)
    assert decision == Ended("lost", reason, message, "checkpoints/a2/10")
    for state in ("cancelling", "pausing"):
        decision = decide(job(state), attempt(), observation(ray, outcome=outcome), PATIENCE)
        assert decision == Ended("cancelled", None, "", "checkpoints/a2/10"), "somebody asked for it"


@pytest.mark.parametrize("asked", [None, ago(5)])
def test_an_attempt_that_ray_forgot_was_lost_with_the_cluster(asked):
    decision = decide(job(), attempt(stop_asked_at=asked), observation(RayState.ABSENT, run=beat(15)), PATIENCE)
    assert isinstance(decision, Ended)
    assert (decision.state, decision.reason) == ("lost", Reason.CLUSTER_LOST)


@pytest.mark.parametrize("state", LIVE)
def test_an_attempt_that_ray_forgot_is_alive_until_it_misses_heartbeats(state):
    """Its workers may be on nodes that outlived the head."""
    for seconds in (1, 14):
        assert decide(job(state), attempt(), observation(RayState.ABSENT, run=beat(seconds)), PATIENCE) == "wait"
    assert isinstance(decide(job(state), attempt(), observation(RayState.ABSENT), PATIENCE), Ended), "it never lived"


@pytest.mark.parametrize("ray", [RayState.FAILED, RayState.STOPPED, RayState.SUCCEEDED])
@pytest.mark.parametrize("run", [SILENT_RUN, beat(number=1)])
def test_an_attempt_without_outcome_and_heartbeat_failed_to_start(ray, run):
    decision = decide(job("starting"), attempt(), observation(ray, run=run), PATIENCE)
    assert isinstance(decision, Ended)
    assert (decision.state, decision.reason) == ("failed", Reason.START_FAILED)


@pytest.mark.parametrize("ray", [RayState.FAILED, RayState.STOPPED, RayState.SUCCEEDED])
def test_an_attempt_that_ran_and_left_no_outcome_is_lost(ray):
    decision = decide(job(), attempt(), observation(ray, run=beat()), PATIENCE)
    assert isinstance(decision, Ended)
    assert (decision.state, decision.reason) == ("lost", Reason.WORKER_FAILED)


def test_a_silent_attempt_that_was_stopped_says_so():
    decision = decide(job(), attempt(stop_asked_at=ago(5)), observation(RayState.STOPPED, run=beat(500)), PATIENCE)
    assert isinstance(decision, Ended)
    assert decision.reason == Reason.DEADLINE_EXCEEDED
    assert "sent no heartbeat" in decision.message


@pytest.mark.parametrize(
    ("state", "asked", "end", "reason"),
    [
        ("running", None, "failed", Reason.PREEMPTED),
        ("running", ago(5), "lost", Reason.DEADLINE_EXCEEDED),
        ("cancelling", ago(5), "cancelled", None),
        ("pausing", ago(5), "paused", None),
    ],
)
def test_an_attempt_stopped_from_outside_was_preempted_unless_we_stopped_it(state, asked, end, reason):
    outcome = Outcome(state="failed", reason=Reason.PREEMPTED, message="Stopped from outside.")
    found = observation(RayState.FAILED, run=beat(), outcome=outcome)
    decision = decide(job(state), attempt(stop_asked_at=asked), found, PATIENCE)
    assert isinstance(decision, Ended)
    assert (decision.state, decision.reason) == (end, reason)


def test_an_attempt_that_stood_still_and_was_stopped_says_so():
    hung = attempt(stop_asked_at=ago(5), reason="stalled", message="It stood still.")
    for outcome in (None, Outcome(state="failed", reason=Reason.PREEMPTED, message="Stopped from outside.")):
        found = observation(RayState.STOPPED, run=beat(), outcome=outcome)
        assert decide(job(), hung, found, PATIENCE) == Ended("lost", Reason.STALLED, "It stood still.")
        assert decide(job("cancelling"), hung, found, PATIENCE).state == "cancelled"


SILENT = Hung(Reason.DEADLINE_EXCEEDED, "The attempt sent no heartbeat for too long and was stopped.")


def test_an_attempt_that_does_not_start_in_time_is_stopped():
    for seconds, decision in ((900, "wait"), (901, SILENT)):
        found = observation(**seconds_of(starting=seconds))
        assert decide(job("starting"), attempt(started_at=ago(9999)), found, PATIENCE) == decision
    late = observation(run=None, **seconds_of(starting=901))
    assert decide(job("starting"), attempt(), late, PATIENCE) == "wait", "MLflow cannot say"


# --- alive ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "run", "decision"),
    [
        ("starting", None, "wait"),
        ("starting", SILENT_RUN, "wait"),
        ("starting", beat(number=1), "wait"),
        ("starting", beat(), "started"),
        ("running", None, "wait"),
        ("running", SILENT_RUN, "wait"),
        ("running", beat(), "wait"),
        ("running", beat(100), "wait"),
    ],
)
def test_a_live_attempt_starts_with_its_first_heartbeat(state, run, decision):
    assert decide(job(state), attempt(), observation(run=run), PATIENCE) == decision


@pytest.mark.parametrize(("silent", "decision"), [(0, "wait"), (100, "wait"), (101, SILENT)])
def test_a_silent_attempt_is_stopped(silent, decision):
    found = observation(run=beat(9999), silent=timedelta(seconds=silent))  # the worker's clock says nothing
    assert decide(job(), attempt(), found, PATIENCE) == decision


def doing(phase: str, unchanged_s: float, slowest_step_s: float = 1.0, number: int = 2) -> RunView:
    """A run whose attempt sends heartbeats."""
    said = Activity(attempt=number, phase=phase, step=7, unchanged_s=unchanged_s, slowest_step_s=slowest_step_s)
    return RunView({TAG_ACTIVITY: said.model_dump_json(), **beat().tags}, {})


STALLED = Hung(Reason.STALLED, "Training stood still at step 7 for 1801 s, and the attempt was stopped.")


@pytest.mark.parametrize(
    ("run", "decision"),
    [
        (doing("training", 1800), "wait"),
        (doing("training", 1801), STALLED),
        (doing("training", 1801, slowest_step_s=601), "wait"),
        (doing("training", 1801, slowest_step_s=600), STALLED),
        (doing("training", 1801, number=1), "wait"),
        (beat(), "wait"),
        *((doing(phase, 1e6), "wait") for phase in get_args(Phase) if phase != "training"),
        (doing("what a newer version does", 1e6), "wait"),
    ],
)
def test_an_attempt_whose_training_stands_still_is_stopped_and_nothing_else_is_a_stall(run, decision):
    assert decide(job(), attempt(), observation(run=run), PATIENCE) == decision


@pytest.mark.parametrize(
    ("state", "decision"), [("cancelling", "command"), ("pausing", "command"), ("starting", "started")]
)
def test_a_stalled_attempt_is_first_told_what_its_job_is_to_do(state, decision):
    assert decide(job(state), attempt(), observation(run=doing("training", 1e6)), PATIENCE) == decision


@pytest.mark.parametrize("state", LIVE)
def test_a_stop_is_asked_for_again_only_after_a_while(state):
    wait = STOP_AGAIN.total_seconds()
    for seconds, decision in ((0, "wait"), (wait, "wait"), (wait + 1, "stop")):
        found = observation(run=beat(9999), **seconds_of(stopping=seconds))
        assert decide(job(state), attempt(stop_asked_at=ago(9999)), found, PATIENCE) == decision


@pytest.mark.parametrize("state", ["cancelling", "pausing"])
def test_an_attempt_that_has_not_started_is_stopped(state):
    assert decide(job(state), attempt(), observation(RayState.PENDING), PATIENCE) == "stop"


@pytest.mark.parametrize(("state", "action"), [("cancelling", "cancel"), ("pausing", "pause")])
def test_a_running_attempt_is_told_then_stopped_past_the_deadline(state, action):
    assert decide(job(state), attempt(), observation(run=beat()), PATIENCE) == "command"
    for seconds, decision in ((0, "wait"), (120, "wait"), (121, "stop")):
        told = attempt(command=action, commanded_at=ago(9999), generation=1)
        assert decide(job(state), told, observation(run=beat(), **seconds_of(commanded=seconds)), PATIENCE) == decision


def test_a_cancel_after_a_pause_is_a_command_of_its_own():
    told = attempt(command="pause", commanded_at=ago(500), generation=1)
    assert decide(job("cancelling"), told, observation(run=beat()), PATIENCE) == "command"


@pytest.mark.parametrize(("state", "action"), [("cancelling", "cancel"), ("pausing", "pause")])
@pytest.mark.parametrize("run", [None, REMOVED_RUN])
def test_an_attempt_that_cannot_be_told_is_stopped_past_the_deadline(state, action, run):
    for seconds, untold, told in ((0, "command", "wait"), (5, "command", "wait"), (121, "stop", "stop")):
        look = observation(run=run, beat=NOW.timestamp() - 5, **seconds_of(commanded=seconds))
        assert decide(job(state), attempt(), look, PATIENCE) == "command"
        assert decide(job(state), attempt(commanded_at=ago(9999)), look, PATIENCE) == untold
        tried = attempt(command=action, commanded_at=ago(9999), generation=1)
        assert decide(job(state), tried, look, PATIENCE) == told


@pytest.mark.parametrize("state", ["starting", "running"])
def test_an_attempt_whose_run_was_removed_is_left_alone_until_it_ends(state):
    look = {"run": REMOVED_RUN, "beat": NOW.timestamp() - 9999, "silent": timedelta(seconds=9999)}
    assert decide(job(state), attempt(started_at=ago(9999)), observation(**look), PATIENCE) == "wait"
    ended = decide(job(state), attempt(), observation(RayState.FAILED, **look), PATIENCE)
    assert isinstance(ended, Ended)
    outcome = Outcome(state="succeeded")
    assert (
        decide(job(state), attempt(), observation(RayState.SUCCEEDED, outcome=outcome, **look), PATIENCE).state
        == "succeeded"
    )
    forgotten = decide(job(state), attempt(), observation(RayState.ABSENT, **look), PATIENCE)
    assert (forgotten.state, forgotten.reason) == ("lost", Reason.CLUSTER_LOST)
    fresh = decide(job("starting"), attempt(accepted=False), observation(RayState.ABSENT, run=REMOVED_RUN), PATIENCE)
    assert (fresh.state, fresh.reason) == ("lost", Reason.STORAGE_ERROR)


# --- what it means for the job ----------------------------------------------------------------------------------------

# reason, tried again, counted as a failure
RETRIES = [
    (Reason.WORKER_FAILED, True, True),
    (Reason.START_FAILED, True, True),
    (Reason.OUT_OF_MEMORY, True, True),
    (Reason.STORAGE_ERROR, True, True),
    (Reason.DEADLINE_EXCEEDED, True, True),
    (Reason.STALLED, True, True),
    (Reason.NODE_LOST, True, False),
    (Reason.PREEMPTED, True, False),
    (Reason.CLUSTER_LOST, True, False),
    (Reason.LOSS_NOT_FINITE, False, False),
    (Reason.DATA_ERROR, False, False),
    (Reason.SPEC_ERROR, False, False),
    (Reason.TRIALS_FAILED, False, False),
]


def failed(reason: Reason | None = Reason.WORKER_FAILED) -> Ended:
    return Ended("failed", reason, "It broke.")


def test_the_table_of_retries_is_whole():
    assert {row[0] for row in RETRIES} == set(POLICIES)


@pytest.mark.parametrize(("reason", "retried", "charged"), RETRIES)
def test_a_failure_is_tried_again_and_charged_by_its_reason(reason, retried, charged):
    step = settle(job(), failed(reason), max_failures=3, continuation=CONTINUATION)
    assert (step.state is State.RECOVERING) == retried
    assert (step.state is State.FAILED) != retried
    assert (step.charged, step.reason) == (charged, reason)
    assert step.message.startswith("It broke.")
    assert POLICIES[reason].advice.format(continuation=CONTINUATION) in step.message
    assert (step.delay > timedelta(0)) == retried


@pytest.mark.parametrize(("told", "reason"), [(None, Reason.WORKER_FAILED), (Reason.INFEASIBLE, Reason.INFEASIBLE)])
def test_a_failure_of_a_reason_that_ends_no_attempt_is_tried_again_as_the_workers_would_be(told, reason):
    step = settle(job(), failed(told), max_failures=3, continuation=CONTINUATION)
    assert (step.state, step.reason, step.charged) == (State.RECOVERING, reason, True)


@pytest.mark.parametrize(
    ("said", "begin"),
    [
        ("CUDA error", "CUDA error. See the logs"),
        ("Oh!", "Oh! See the logs"),
        ("So what?", "So what? See the logs"),
        ("And then …", "And then … See the logs"),
        ("Stopped.", "Stopped. See the logs"),
        ("X", "X. See the logs"),
        ("", "See the logs"),
    ],
)
def test_what_an_attempt_said_last_reads_as_a_sentence_before_the_advice(said, begin):
    step = settle(job(), Ended("failed", Reason.WORKER_FAILED, said), max_failures=3, continuation=CONTINUATION)
    assert step.message.startswith(begin)


def test_the_delay_doubles_up_to_a_limit():
    delays = [
        settle(job(restarts=n), failed(), max_failures=99, continuation=CONTINUATION).delay.total_seconds()
        for n in range(9)
    ]
    assert delays[:6] == [1, 2, 4, 8, 16, 32]
    assert delays[6:] == [MAX_DELAY_S] * 3


@pytest.mark.parametrize(
    ("failures", "allowed", "state"),
    [(0, 0, "failed"), (0, 1, "recovering"), (1, 1, "failed"), (2, 3, "recovering"), (3, 3, "failed")],
)
def test_charged_failures_run_out(failures, allowed, state):
    step = settle(job(failures=failures), failed(), max_failures=allowed, continuation=CONTINUATION)
    assert (step.state, step.reason, step.charged) == (state, Reason.WORKER_FAILED, True)
    if state == "failed":
        assert f"{failures + 1} failures, {allowed} allowed" in step.message
    else:
        assert f"{allowed - failures - 1} more failures are allowed" in step.message


@pytest.mark.parametrize("reason", [Reason.NODE_LOST, Reason.CLUSTER_LOST, Reason.PREEMPTED])
def test_a_lost_cluster_never_uses_up_failures(reason):
    step = settle(
        job(failures=3, restarts=50), Ended("lost", reason, "Gone."), max_failures=3, continuation=CONTINUATION
    )
    assert (step.state, step.charged) == (State.RECOVERING, False)
    assert "not counted" in step.message


@pytest.mark.parametrize("state", LIVE)
def test_success_is_success_whatever_was_asked(state):
    step = settle(job(state), Ended("succeeded", None, ""), max_failures=3, continuation=CONTINUATION)
    assert (step.state, step.reason, step.charged) == (State.SUCCEEDED, None, False)


@pytest.mark.parametrize("reason", list(POLICIES))
@pytest.mark.parametrize("end", ["failed", "lost", "cancelled", "paused"])
def test_a_job_being_cancelled_is_cancelled_however_its_attempt_ends(end, reason):
    step = settle(
        job("cancelling", failures=9),
        Ended(end, reason, "It broke."),
        max_failures=3,
        continuation=CONTINUATION,
    )
    assert (step.state, step.reason, step.charged) == (State.CANCELLED, Reason.CANCELLED_BY_USER, False)
    assert step.message == "Cancelled. Retry the job to continue from the last checkpoint."


@pytest.mark.parametrize(("reason", "retried", "_charged"), RETRIES)
def test_a_job_being_paused_is_paused_unless_no_attempt_could_help(reason, retried, _charged):
    step = settle(job("pausing", failures=9), failed(reason), max_failures=3, continuation=CONTINUATION)
    assert step.state is (State.PAUSED if retried else State.FAILED)
    assert step.reason == (Reason.PAUSED_BY_USER if retried else reason)
    assert not step.charged


@pytest.mark.parametrize("state", ["pausing", "running", "starting"])
def test_a_paused_attempt_pauses_its_job(state):
    step = settle(job(state), Ended("paused", None, ""), max_failures=3, continuation=CONTINUATION)
    assert step.state is State.PAUSED
    assert step.message == "Paused. Resume the job to continue from the last checkpoint."


def test_an_attempt_stopped_while_pausing_pauses_its_job():
    assert (
        settle(job("pausing"), Ended("lost", Reason.CLUSTER_LOST, ""), max_failures=0, continuation=CONTINUATION).state
        is State.PAUSED
    )


def test_an_attempt_cancelled_while_pausing_pauses_its_job():
    paused = settle(job("pausing"), Ended("cancelled", None, ""), max_failures=0, continuation=CONTINUATION)
    assert paused.state is State.PAUSED


BEGINNING = "start from the beginning"


@pytest.mark.parametrize(
    ("state", "ended", "said"),
    [
        ("cancelling", Ended("cancelled", None, ""), "Cancelled. Retry the job to start from the beginning."),
        ("pausing", Ended("paused", None, ""), "Paused. Resume the job to start from the beginning."),
        ("running", Ended("lost", Reason.NODE_LOST, "Gone."), "Gone. It will start from the beginning. Trying again"),
        ("running", Ended("lost", Reason.PREEMPTED, "Gone."), "Gone. It will start from the beginning. Trying again"),
        ("running", failed(), "0 allowed. Retry the job to start from the beginning."),
    ],
)
def test_no_message_promises_a_checkpoint_that_there_is_not(state, ended, said):
    step = settle(job(state), ended, max_failures=0, continuation=BEGINNING)
    assert said in step.message
    assert "checkpoint" not in step.message
