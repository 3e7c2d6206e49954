"""Notice that an attempt is about to be ended from outside: who gets it, who is told, and what a second one does."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.attempt import preemption
from trainer.attempt.commands import CommandListener
from trainer.attempt.outcome import outcome_after, read_outcome
from trainer.attempt.worker import Connection, Worker
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import AttemptRequest
from trainer.search import trial
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store

SECONDS = 20.0


class Ended(Exception):
    """What SIGTERM did before: it ended the process."""


class FakeRay:
    """Ray's key-value store and its draining nodes."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.put, self.draining = threading.Event(), set[str]()

    def _internal_kv_put(self, key: str, value: bytes, namespace: str) -> None:  # noqa: ARG002 - Ray's form
        self.keys.add(key)
        self.put.set()

    def _internal_kv_exists(self, key: str, namespace: str) -> bool:  # noqa: ARG002 - Ray's form
        return key in self.keys

    def get_draining_nodes(self) -> dict[str, int]:
        return dict.fromkeys(self.draining, 0)


@pytest.fixture
def ray(monkeypatch) -> Iterator[FakeRay]:
    fake = FakeRay()
    monkeypatch.setattr(preemption, "internal_kv", fake)
    monkeypatch.setattr(preemption, "ray_state", fake)
    monkeypatch.setattr(preemption, "POLL_SECONDS", 0.01)
    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(preemption.ray, "get_runtime_context", lambda: context)
    yield fake
    preemption._noticed.clear()


@pytest.fixture
def request_(tmp_path) -> AttemptRequest:
    resources = {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1}
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}, "resources": resources})
    return AttemptRequest(
        job_id="job-a", attempt=2, run_id="r", tracking_uri="http://m", artifact_uri=str(tmp_path), spec=spec
    )


@pytest.fixture
def terminable() -> Iterator[None]:
    """SIGTERM raises `Ended`, as it does in a driver and in Ray's workers."""

    def end(*_: object) -> None:
        raise Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGALRM)}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def noticed(seconds: float = SECONDS) -> bool:
    return preemption._noticed.wait(seconds)


# --- in a worker ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray", "terminable")
def test_a_worker_takes_sigterm_as_notice_and_a_second_one_as_before():
    preemption.TakeSigterm().after_init_train_context()
    assert preemption.requested_action() is None
    signal.raise_signal(signal.SIGTERM)
    assert preemption.requested_action() == "preempt"
    with pytest.raises(Ended):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_whose_node_is_drained_gets_notice(ray, request_, rank):
    ray.draining = {"elsewhere"}
    with preemption.watching(request_, rank):
        assert not noticed(0.1)
        ray.draining = {"here", "elsewhere"}
        assert noticed()
    assert preemption.requested_action() == "preempt"


def test_only_rank_0_asks_whether_the_driver_got_notice(ray, request_):
    ray.keys.add("job-a-a1")
    with preemption.watching(request_, 0):
        assert not noticed(0.1), "of another attempt"
        ray.keys.add("job-a-a2")
        assert noticed()
    preemption._noticed.clear()
    with preemption.watching(request_, 1):
        assert not noticed(0.1)


def test_training_goes_on_where_ray_cannot_tell(ray, request_, monkeypatch, caplog):
    def refuse() -> dict[str, int]:
        raise ConnectionError("no route to Ray's head")

    with monkeypatch.context() as patch, preemption.watching(request_, 0):
        patch.setattr(ray, "get_draining_nodes", refuse)
        assert not noticed(0.2)
        assert caplog.text.count("no route to Ray's head") == 1
        patch.undo()
        ray.draining = {"here"}
        monkeypatch.setattr(preemption, "ray_state", ray)
        assert noticed()


def test_a_trial_in_its_own_process_stores_a_checkpoint_where_its_node_is_drained(ray, request_, monkeypatch):
    listener = CommandListener(SimpleNamespace(read_command=lambda: None, heartbeat=lambda _: None), 2)
    recorder = SimpleNamespace(drain=lambda: None, close=lambda: None)
    monkeypatch.setattr(trial, "connect_trial", lambda *_, **__: Connection(recorder, listener))
    ray.draining = {"here"}

    def work(worker: Worker) -> Outcome:
        assert noticed()
        return outcome_after(worker.requested_action(), "checkpoints/a2/00000007")

    context = trial.TrialContext(run_id="s", attempt=1, number=0, metrics=("train/loss",), epochs=1)
    trial.run_trial({trial.REQUEST: request_.model_dump_json(), trial.TRIAL: context.model_dump_json()}, work)
    outcome = read_outcome(Store(request_.artifact_uri), 2)
    assert (outcome.reason, outcome.checkpoint) == (Reason.PREEMPTED, "checkpoints/a2/00000007")


@pytest.mark.usefixtures("ray")
def test_a_trial_without_memory_says_what_of_its_spec_to_lower(request_):
    def work(_: Worker) -> Outcome:
        raise MemoryError("Unable to allocate 3 GiB")

    context = trial.TrialContext(run_id="s", attempt=1, number=0, metrics=("train/loss",), epochs=1)
    with pytest.raises(trial.TrialFailed):
        trial.run_trial({trial.REQUEST: request_.model_dump_json(), trial.TRIAL: context.model_dump_json()}, work)
    outcome = read_outcome(Store(request_.artifact_uri), 2)
    assert outcome.reason is Reason.OUT_OF_MEMORY
    assert outcome.message.endswith(
        "ran out of memory: Unable to allocate 3 GiB. Lower optimization.micro_batch_size, or use nodes with more "
        "memory"
    )


# --- in the driver ----------------------------------------------------------------------------------------------------


def workers_run(request: AttemptRequest) -> Store:
    store = Store(request.artifact_uri)
    store.write("attempts/2/workers/rank-0.json", b"{}")
    return store


@pytest.mark.usefixtures("terminable")
def test_a_driver_passes_sigterm_on_and_waits_for_its_workers(ray, request_):
    with preemption.passed_on(request_, workers_run(request_)):
        signal.raise_signal(signal.SIGTERM)
        assert ray.put.wait(SECONDS)
    assert ray.keys == {"job-a-a2"}
    with pytest.raises(Ended):  # the workers have left: from here on it is as before
        signal.raise_signal(signal.SIGTERM)


def stopped(request: AttemptRequest, store: Store, times: int = 1) -> None:
    """A driver that gets SIGTERM, and whose workers do not leave."""
    with preemption.passed_on(request, store):
        for _ in range(times):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(SECONDS)


@pytest.mark.usefixtures("terminable", "ray")
def test_a_driver_whose_workers_have_not_begun_ends_at_once(request_):
    with pytest.raises(Ended):
        stopped(request_, Store(request_.artifact_uri))


@pytest.mark.usefixtures("terminable")
def test_a_driver_ends_at_a_second_sigterm(ray, request_):
    with pytest.raises(Ended):
        stopped(request_, workers_run(request_), times=2)
    assert ray.put.wait(SECONDS), "in a thread"


@pytest.mark.usefixtures("terminable")
def test_a_driver_ends_once_the_grace_time_is_over(ray, request_, monkeypatch):
    monkeypatch.setattr(preemption, "GRACE_SECONDS", 0.1)
    with pytest.raises(Ended):
        stopped(request_, workers_run(request_))
    assert ray.put.wait(SECONDS), "in a thread"


def test_the_outcome_of_a_preempted_attempt_names_the_checkpoint_that_it_stored():
    outcome: Outcome = outcome_after("preempt", "checkpoints/a2/00000007")
    assert (outcome.state, outcome.reason, outcome.checkpoint) == (
        "failed", Reason.PREEMPTED, "checkpoints/a2/00000007",
    )  # fmt: skip
    assert "stored checkpoints/a2/00000007 first" in outcome.message


def test_the_driver_keeps_its_own_handler_of_sigint() -> None:
    """Ray Train's would wait for the workers, while Ray stops a job with SIGINT, to end it at once."""
    from trainer.attempt.workers import _Trainer  # noqa: PLC0415

    before: Any = signal.getsignal(signal.SIGINT)
    _Trainer._register_sigint_handler(object(), None)
    assert signal.getsignal(signal.SIGINT) is before
