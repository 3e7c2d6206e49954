"""`python -m trainer.main`: one attempt of one job, inside a Ray job."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from trainer.attempt.logs import start_logging, stop_logging
from trainer.attempt.outcome import settle_outcome
from trainer.errors import StorageError, reason_of
from trainer.logger import logger
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import ATTEMPT_VARIABLE, AttemptRequest
from trainer.storage import Store

STOPPED = "Stopped from outside, not by a command. Nothing to do: the job continues by itself"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""SIGINT is Ray's, when somebody stops the job through it: it ends the driver at once. SIGTERM comes from the system,
and lets workers that train store a checkpoint first."""


def main() -> int:
    """Exit status 0 unless the attempt failed; the outcome file says why."""
    request = AttemptRequest.model_validate_json(os.environ[ATTEMPT_VARIABLE])
    store = Store(request.artifact_uri)
    log = start_logging(store, request, "driver")
    _handle_stop(_exit_on_signal)
    try:
        outcome = _run(request, store)
        _handle_stop(signal.SIG_IGN)  # nothing may interrupt the storing of the outcome
        outcome, storage_error = _settle(request, store, outcome)
        logger.info("Attempt %d ended: %s %s", request.attempt, outcome.state, outcome.message)
    finally:
        stop_logging(log)
    if storage_error:
        # For an attempt without an outcome the service shows the end of Ray's own log, so this must be the last output.
        print(f"The outcome could not be stored: {storage_error}\n{outcome.reason}: {outcome.message}", file=sys.stderr)  # noqa: T201
    return int(outcome.state == "failed")


def _run(request: AttemptRequest, store: Store) -> Outcome:
    try:
        # Imported here: if importing Ray fails, that is an outcome too.
        from trainer.attempt.workers import join_cluster  # noqa: PLC0415
        from trainer.kinds.registry import find_run  # noqa: PLC0415

        join_cluster()
        return find_run(request.spec.kind)(request, store)
    except (SystemExit, KeyboardInterrupt):  # `_exit_on_signal` raises the first; Ray's calls turn it into the second
        return Outcome(state="failed", reason=Reason.PREEMPTED, message=STOPPED)
    except Exception as error:  # noqa: BLE001 - the outcome must report any error
        logger.exception("The driver failed")
        reason = reason_of(error)
        message = str(error) if reason else f"{type(error).__name__}: {error}"
        return Outcome(state="failed", reason=reason or Reason.WORKER_FAILED, message=message)


def _settle(request: AttemptRequest, store: Store, outcome: Outcome) -> tuple[Outcome, StorageError | None]:
    """Store the outcome; returns the one that counts, and why it could not be stored."""
    try:
        return settle_outcome(store, request.attempt, outcome), None
    except StorageError as error:
        if outcome.state == "failed":
            return outcome, error
        return Outcome(state="failed", reason=error.reason, message=str(error)), error


def _handle_stop(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, handler)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
    logger.warning("Stopped from outside (signal %d)", number)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
