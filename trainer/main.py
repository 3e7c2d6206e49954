"""`python -m trainer.main`: one attempt of one job, inside a Ray job."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from trainer.attempt.logs import start_logging, stop_logging
from trainer.attempt.outcome import settle_outcome
from trainer.errors import StorageError, TrainingError
from trainer.logger import logger
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import ATTEMPT_VARIABLE, AttemptRequest
from trainer.storage import Store

STOPPED = "Stopped from outside (SIGTERM), and not by a command: nothing to do, it goes on from the last checkpoint"


def main() -> int:
    """Exit status 0 unless the attempt failed; the outcome file says why."""
    request = AttemptRequest.model_validate_json(os.environ[ATTEMPT_VARIABLE])
    store = Store(request.artifact_uri)
    log = start_logging(store, request, "driver")
    signal.signal(signal.SIGTERM, _leave)
    try:
        failed = _train(request, store)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing comes between an attempt and its last word
        outcome, unstored = _settle(request, store, failed)
        logger.info("Attempt %d ends: %s %s", request.attempt, outcome.state, outcome.message)
    finally:
        stop_logging(log)
    if unstored:
        # The service shows the end of Ray's own log for an attempt that left no outcome: nothing is printed after this.
        print(f"The outcome could not be stored: {unstored}\n{outcome.reason}: {outcome.message}", file=sys.stderr)  # noqa: T201
    return int(outcome.state == "failed")


def _train(request: AttemptRequest, store: Store) -> Outcome | None:
    """How the attempt failed; None where all work is done."""
    try:
        from trainer.attempt.workers import run_attempt  # noqa: PLC0415 - a failing import of Ray is an outcome too

        return run_attempt(request, store)
    except (SystemExit, KeyboardInterrupt):  # what `_leave` raises; inside of Ray's calls it becomes the other
        return Outcome(state="failed", reason=Reason.PREEMPTED, message=STOPPED)
    except TrainingError as error:
        logger.exception("The driver failed")
        return Outcome(state="failed", reason=error.reason, message=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the outcome must say so
        logger.exception("The driver failed")
        return Outcome(state="failed", reason=Reason.WORKER_FAILED, message=f"{type(error).__name__}: {error}")


def _settle(request: AttemptRequest, store: Store, failed: Outcome | None) -> tuple[Outcome, StorageError | None]:
    """Store the last word; gives it, and why it could not be stored."""
    try:
        return settle_outcome(store, request.attempt, failed), None
    except StorageError as error:
        return failed or Outcome(state="failed", reason=error.reason, message=str(error)), error


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's form
    logger.warning("Stopped from outside (signal %d)", number)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
