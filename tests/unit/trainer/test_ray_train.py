"""Why an attempt failed, as the driver reads it out of Ray's errors, and its last word."""

import pickle

import pytest
from botocore.exceptions import EndpointConnectionError
from ray.exceptions import NodeDiedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from trainer import main, outcome
from trainer.errors import DataError, StorageError
from trainer.ray_train import explain
from trainer.spec.job import AttemptRequest, Outcome, Reason
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import NoAnswer, Store

PLACE = "s3://bucket/run/checkpoints"
AWAY = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")


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
        (workers(NoAnswer("no good answer within 60 s")), Reason.STORAGE_ERROR, f"{PLACE}: cannot be reached: no good"),
        (workers(AWAY), Reason.STORAGE_ERROR, f"{PLACE}: cannot be reached"),
        (workers(OSError(28, "No space left on device")), Reason.STORAGE_ERROR, "worker 0 could not write"),
        (workers(RuntimeError("gloo"), DataError("no images")), Reason.DATA_ERROR, "no images"),
        (workers(RuntimeError("gloo"), NodeDiedError("gone")), Reason.NODE_LOST, "the node of worker 1"),
        (workers(RuntimeError("gloo"), MemoryError()), Reason.OUT_OF_MEMORY, "worker 1 ran out of memory"),
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


# --- the last word ---------------------------------------------------------------------------------------------------

FAILED = Outcome(state="failed", reason=Reason.DATA_ERROR, message="no images")


def test_a_failure_is_stored_unless_the_work_was_done(tmp_path):
    store = Store(str(tmp_path))
    assert outcome.settle_outcome(store, 1, FAILED) == FAILED
    assert Outcome.model_validate_json(store.read("attempts/1/outcome.json")) == FAILED
    done = Outcome(state="succeeded", checkpoint="checkpoints/a2/00000007")
    outcome.write_outcome(store, 2, done)
    assert outcome.settle_outcome(store, 2, FAILED) == done
    assert outcome.settle_outcome(store, 2, None) == done


def test_an_outcome_that_cannot_be_stored_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "attempts").write_bytes(b"in the way")
    monkeypatch.setattr("trainer.ray_train.run_attempt", lambda *_: FAILED)
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}})
    request = AttemptRequest(
        job_id="job-a", attempt=1, run_id="r", tracking_uri="http://m", artifact_uri=str(tmp_path), spec=spec
    )
    assert main._run(request, Store(str(tmp_path))) == FAILED
    told = capsys.readouterr().err
    assert f"{tmp_path}/attempts/1/outcome.json" in told
    assert "data_error: no images" in told
