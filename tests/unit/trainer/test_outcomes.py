"""Why an attempt failed, as the driver tells it from Ray's errors, dead workers and nodes, and its last word."""

import os
import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from botocore.exceptions import EndpointConnectionError
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, NodeDiedError
from ray.exceptions import OutOfMemoryError as NodeOutOfMemory
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from trainer import main
from trainer.attempt import evidence, outcome
from trainer.attempt.evidence import WorkerRecord, death_of, explain, how_it_died, oom_kills
from trainer.errors import DataError, StorageError
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import ATTEMPT_VARIABLE, AttemptRequest
from trainer.spec.base import Problem, SpecError
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import NoAnswer, Store

PLACE = "s3://bucket/run/checkpoints"
AWAY = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")


TOO_SMALL = SpecError(
    [
        Problem("optimization.global_batch_size", "/optimization/global_batch_size", 4096, "is larger than 90 images"),
        Problem("optimization.epochs", "/optimization/epochs", None, "is missing"),
    ]
)


EXIT = "The actor is dead because its worker process has died. Worker exit type: {} Worker exit detail: {}"
VANISHED = EXIT.format(
    "SYSTEM_ERROR", "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes "
    "include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called"
)  # fmt: skip
TERMINATED = EXIT.format(
    "SYSTEM_ERROR", "Worker exits unexpectedly. Worker exits with an exit code 1. The process receives a SIGTERM."
)  # fmt: skip
BY_MONITOR = EXIT.format("NODE_OUT_OF_MEMORY", "Task was killed due to the node running low on memory.")


def died(text: str, reason: int = NodeDeathInfo.UNSPECIFIED) -> WorkerHealthCheckFailedError:
    """What the controller tells of a worker whose process is gone."""
    context = ActorDiedErrorContext(actor_id=bytes(16), class_name="RayTrainWorker", pid=7, error_message=text)
    context.node_death_info.reason = reason
    error = ActorDiedError(context)
    error.args = ()  # as Ray raises it
    return WorkerHealthCheckFailedError("A worker health check failed.", error)


def workers(*causes: Exception) -> WorkerGroupError:
    """A failed group as it reaches the driver: pickled."""
    failures = {rank: UserExceptionWithTraceback(cause, "") for rank, cause in enumerate(causes)}
    return pickle.loads(pickle.dumps(WorkerGroupError("they failed", failures)))


@pytest.mark.parametrize(
    ("error", "reason", "said"),
    [
        (
            workers(StorageError("s3://bucket/run/checkpoints/a1/7: cannot be reached")),
            Reason.STORAGE_ERROR,
            "a1/7: cannot",
        ),
        (workers(RuntimeError("gloo"), TOO_SMALL), Reason.SPEC_ERROR, f"{TOO_SMALL}"),
        (workers(NoAnswer("no good answer within 60 s")), Reason.STORAGE_ERROR, f"{PLACE}: cannot be reached: no good"),
        (workers(AWAY), Reason.STORAGE_ERROR, f"{PLACE}: cannot be reached"),
        (workers(OSError(28, "No space left on device")), Reason.STORAGE_ERROR, "worker 0 could not read or write"),
        (workers(RuntimeError("gloo"), DataError("no images")), Reason.DATA_ERROR, "no images"),
        (workers(RuntimeError("gloo"), NodeDiedError("gone")), Reason.NODE_LOST, "the node of worker 1"),
        (
            workers(RuntimeError("gloo"), NodeDiedError("its node was drained")),
            Reason.PREEMPTED,
            "of worker 1 was drained",
        ),
        (
            workers(RuntimeError("gloo"), died("node gone", NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)),
            Reason.PREEMPTED,
            "of worker 1 was drained",
        ),
        (
            PreemptionError(PreemptionInfo(None, {"n": [0]})),
            Reason.PREEMPTED,
            "continues by itself when",
        ),
        (workers(RuntimeError("gloo"), MemoryError()), Reason.OUT_OF_MEMORY, "worker 1 ran out of memory"),
        (workers(NodeOutOfMemory("low on memory")), Reason.OUT_OF_MEMORY, "worker 0 ran out of memory: low on memory"),
        (workers(died(BY_MONITOR)), Reason.OUT_OF_MEMORY, "Ray killed worker 0 because its node ran out of memory"),
        (workers(died(VANISHED)), Reason.WORKER_FAILED, "worker 0 died without a message: it was killed (SIGKILL) or"),
        (workers(died(TERMINATED)), Reason.WORKER_FAILED, "worker 0 was ended by SIGTERM"),
        (workers(FileNotFoundError(2, "No such file", "/x")), Reason.WORKER_FAILED, "worker 0: FileNotFoundError"),
        (workers(ConnectionResetError(104, "peer")), Reason.WORKER_FAILED, "worker 0: ConnectionResetError"),
        (ControllerError(NoAnswer("no good answer")), Reason.STORAGE_ERROR, f"{PLACE}: cannot be reached"),
        (ControllerError(PermissionError("denied")), Reason.STORAGE_ERROR, f"{PLACE}: denied"),
        (ControllerError(ValueError("other")), Reason.WORKER_FAILED, "the controller: ValueError: other"),
        (TrainingFailedError("nobody knows"), Reason.WORKER_FAILED, "nobody knows"),
    ],
)
def test_each_cause_has_its_reason(error, reason, said):
    found, message = explain(error, PLACE)
    assert found is reason
    assert said in message


def test_exit_codes_are_told():
    assert how_it_died("Worker exits unexpectedly. Worker exits with an exit code 3.") == "ended with exit code 3"


# --- dead workers, nodes and the kernel -------------------------------------------------------------------------------


def actor(text: str | None, why: str = "WORKER_DIED", node: str = "n1", pid: int = 7) -> SimpleNamespace:
    """A worker as Ray's state lists it; without ``text`` it lives."""
    context = {"reason": why, "error_message": text, "pid": pid, "node_ip_address": "10.0.0.7"}
    return SimpleNamespace(node_id=node, death_cause={"actor_died_error_context": context} if text else None)


def test_only_a_worker_that_nobody_ended_has_died():
    assert death_of(actor(None)) is None
    assert death_of(actor("The actor is dead because it was killed by `ray.kill`.", "RAY_KILL")) is None
    assert death_of(actor(EXIT.format("INTENDED_USER_EXIT", "exit_actor() is called."))) is None
    assert (death_of(actor(VANISHED)).node, death_of(actor(VANISHED)).pid) == ("n1", 7)


@pytest.fixture
def cluster(monkeypatch):
    """What Ray and the nodes answer: workers, lost node, and how many the kernel has killed by now."""
    state = SimpleNamespace(workers=[], lost=None, killed=0)
    monkeypatch.setattr(evidence, "_workers", lambda: state.workers)
    monkeypatch.setattr(evidence, "_lost_node", lambda _: state.lost)
    monkeypatch.setattr(evidence, "_oom_kills_on", lambda _: state.killed)
    return state


def record(store: Store, rank: int, node: str, pid: int, killed: int) -> None:
    text = WorkerRecord(rank=rank, node=node, pid=pid, oom_kills=killed).model_dump_json()
    store.write(f"attempts/2/workers/rank-{rank}.json", text.encode())


def test_a_vanished_worker_where_the_kernel_has_killed_since_ran_out_of_memory(cluster, tmp_path):
    store = Store(str(tmp_path))
    cluster.workers = [actor(None, node="n2", pid=8), actor(VANISHED)]
    for rank, node, pid, before in ((0, "n2", 8, 0), (1, "n1", 7, 3)):
        record(store, rank, node, pid, before)
    cluster.killed = 4
    reason, message = evidence.look_further("worker 0: RuntimeError: gloo", store, 2)
    assert reason is Reason.OUT_OF_MEMORY
    assert message == "the kernel's OOM killer ended the worker process 7 on the node at 10.0.0.7"
    cluster.killed = 3  # all of them before that worker began
    reason, message = evidence.look_further("worker 0: RuntimeError: gloo", store, 2)
    assert reason is Reason.WORKER_FAILED
    assert "died without a message" in message
    assert "the others reported: worker 0: RuntimeError: gloo" in message


def test_without_a_count_from_its_start_nobody_says_out_of_memory(cluster, tmp_path):
    cluster.workers, cluster.killed = [actor(VANISHED)], 9
    assert evidence.look_further("gloo", Store(str(tmp_path)), 2)[0] is Reason.WORKER_FAILED


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED, Reason.PREEMPTED),
        (NodeDeathInfo.EXPECTED_TERMINATION, Reason.PREEMPTED),
        (NodeDeathInfo.UNEXPECTED_TERMINATION, Reason.NODE_LOST),
        (NodeDeathInfo.UNSPECIFIED, Reason.NODE_LOST),
    ],
)
def test_a_node_that_was_taken_away_is_no_accident(cluster, tmp_path, why, reason):
    cluster.workers, cluster.lost = [actor(VANISHED)], {"NodeManagerAddress": "10.0.0.7", "DeathReason": why}
    found, message = evidence.look_further("gloo", Store(str(tmp_path)), 2)
    assert found is reason
    assert "10.0.0.7" in message


def test_workers_that_all_ended_of_themselves_tell_no_more(cluster, tmp_path):
    cluster.workers = [actor(None)]
    assert evidence.look_further("worker 0: ValueError: x", Store(str(tmp_path)), 2) is None


def test_the_kernel_s_count_is_that_of_the_control_group_or_else_the_machine_s(tmp_path):
    group = tmp_path / "sys/fs/cgroup/pods/ours"
    (tmp_path / "proc/self").mkdir(parents=True)
    assert oom_kills(tmp_path) == 0
    (tmp_path / "proc/vmstat").write_text("pgfault 12\noom_kill 5\n")
    assert oom_kills(tmp_path) == 5
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/old\n0::/pods/ours\n")
    assert oom_kills(tmp_path) == 5
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert oom_kills(tmp_path) == 1


# --- the last word ---------------------------------------------------------------------------------------------------

FAILED = Outcome(state="failed", reason=Reason.DATA_ERROR, message="no images")


def test_a_failure_is_stored_unless_the_work_was_done(tmp_path):
    store = Store(str(tmp_path))
    assert outcome.settle_outcome(store, 1, FAILED) == FAILED
    assert Outcome.model_validate_json(store.read("attempts/1/outcome.json")) == FAILED
    done = Outcome(state="succeeded", checkpoint="checkpoints/a2/00000007")
    outcome.write_outcome(store, 2, done)
    assert outcome.settle_outcome(store, 2, FAILED) == done
    assert outcome.settle_outcome(store, 2, Outcome(state="paused")) == done


def test_an_outcome_that_cannot_be_stored_is_the_last_that_is_said(tmp_path, monkeypatch, capfd):
    """The service looks at the end of Ray's log, and log lines that cannot be stored are told there as well."""
    (tmp_path / "attempts").write_bytes(b"in the way")
    monkeypatch.setattr("trainer.attempt.workers.join_cluster", lambda: None)
    monkeypatch.setattr("trainer.kinds.pretrain.run", lambda *_: FAILED)
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}})
    request = AttemptRequest(
        job_id="job-a", attempt=1, run_id="r", tracking_uri="http://m", artifact_uri=str(tmp_path), spec=spec
    )
    monkeypatch.setenv(ATTEMPT_VARIABLE, request.model_dump_json())
    on_stop = {number: signal.getsignal(number) for number in main.STOP_SIGNALS}
    try:
        assert main.main() == 1
    finally:
        for number, handler in on_stop.items():
            signal.signal(number, handler)
    told = capfd.readouterr().err.splitlines()
    assert any("log lines not stored yet" in line for line in told)
    assert f"{tmp_path}/attempts/1/outcome.json" in told[-2]
    assert told[-1] == "data_error: no images"


DRIVER = """
import sys, time
from trainer import main
from trainer.attempt import workers

def join_cluster():
    print("running", flush=True)
    time.sleep(60)

workers.join_cluster = join_cluster
sys.exit(main.main())
"""


def test_what_the_spec_causes_in_a_driver_or_a_trial_is_the_spec_s_fault(tmp_path, monkeypatch):
    def refuse(*_):
        raise TOO_SMALL

    monkeypatch.setattr("trainer.attempt.workers.join_cluster", lambda: None)
    monkeypatch.setattr("trainer.kinds.pretrain.run", refuse)
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}})
    request = AttemptRequest(
        job_id="job-a", attempt=1, run_id="r", tracking_uri="http://m", artifact_uri=str(tmp_path), spec=spec
    )
    found = main._run(request, Store(str(tmp_path)))
    assert (found.state, found.reason, found.message) == ("failed", Reason.SPEC_ERROR, str(TOO_SMALL))
    assert evidence.diagnose(TOO_SMALL, "trial 3", PLACE) == (Reason.SPEC_ERROR, str(TOO_SMALL))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_stopped_from_outside_says_so(tmp_path, number):
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}})
    request = AttemptRequest(
        job_id="job-a", attempt=1, run_id="r", tracking_uri="http://m", artifact_uri=str(tmp_path), spec=spec
    )
    environment = os.environ | {"RCMAE_ATTEMPT": request.model_dump_json()}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], env=environment, stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "running\n"
    driver.send_signal(number)
    assert driver.wait(timeout=60) == 1
    driver.stdout.close()
    told = Outcome.model_validate_json((tmp_path / "attempts/1/outcome.json").read_text())
    assert (told.state, told.reason) == ("failed", Reason.PREEMPTED)
    assert "Stopped from outside" in told.message
