"""`python -m trainer.main`: one attempt of one job, inside a Ray job."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from trainer.logs import logger, start_logging, stop_logging
from trainer.outcome import write_outcome
from trainer.spec.job import ATTEMPT_VARIABLE, AttemptRequest, Outcome, Reason
from trainer.storage import Store


def main() -> int:
    """Exit status 0 unless the attempt failed; the outcome file says why."""
    request = AttemptRequest.model_validate_json(os.environ[ATTEMPT_VARIABLE])
    store = Store(request.artifact_uri)
    log = start_logging(store, request.attempt, "driver")
    signal.signal(signal.SIGTERM, _leave)
    try:
        logger.info("Attempt %d of %s begins", request.attempt, request.job_id)
        outcome = _run(request, store)
        logger.info("Attempt %d ends: %s %s", request.attempt, outcome.state, outcome.message)
    finally:
        stop_logging(log)
    return int(outcome.state == "failed")


def _run(request: AttemptRequest, store: Store) -> Outcome:
    try:
        from trainer.ray_train import run_attempt  # noqa: PLC0415 - a failing import of Ray is an outcome too

        return run_attempt(request, store)
    except Exception as error:  # noqa: BLE001 - whatever it is, the outcome must say so
        logger.exception("The driver failed")
        outcome = Outcome(state="failed", reason=Reason.WORKER_FAILED, message=f"{type(error).__name__}: {error}")
        write_outcome(store, request.attempt, outcome)
        return outcome


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's form
    logger.warning("Stopped from outside (signal %d)", number)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
