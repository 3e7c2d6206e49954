"""Notice that the processes of an attempt are about to be ended from outside: SIGTERM, or the drain of a node.

Whichever process gets the notice, all ranks agree at their next step to store a checkpoint and to leave. The reason is
`preempted`. The driver passes its own notice on to rank 0 through Ray's key-value store.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import ray
from ray._private.state import state as ray_state
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.train.v2._internal.execution.callback import WorkerCallback

from trainer.errors import StorageError
from trainer.logger import logger
from trainer.protocol.command import Action
from trainer.protocol.names import submission_id, worker_folder
from trainer.protocol.request import AttemptRequest
from trainer.storage import Store, patience

GRACE_SECONDS: Final = 20.0
"""How long the driver waits for its workers to leave. Whoever sends SIGTERM usually kills after 30 s: that leaves time
to store the outcome."""
PATIENCE_SECONDS: Final = 5.0
"""How long the driver asks the storage whether its workers have begun."""
POLL_SECONDS: Final = 2.0
NAMESPACE: Final = "rcmae-preempted"
"""Of the keys in Ray's key-value store: the submission ids of attempts whose driver got notice."""

_noticed = threading.Event()
"""Set once this process has got notice."""


def requested_action() -> Action | None:
    """`preempt` once this process has got notice."""
    return "preempt" if _noticed.is_set() else None


def _take_sigterm(notice: Callable[[], None]) -> None:
    """Make SIGTERM call ``notice``, once: a second one does what SIGTERM did before. Only in a main thread."""
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
        signal.signal(signal.SIGTERM, before)
        notice()

    signal.signal(signal.SIGTERM, handle)


# --- in a worker ------------------------------------------------------------------------------------------------------


class TakeSigterm(WorkerCallback):
    """Makes SIGTERM a notice in a worker's process: Ray calls it in the main thread, while the work runs in another."""

    def after_init_train_context(self) -> None:
        _take_sigterm(_noticed.set)


@contextmanager
def watching(request: AttemptRequest, rank: int) -> Iterator[None]:
    """Inside, a thread looks for notice: of the driver's, on rank 0, and of a drain of this worker's node."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(request, rank, ended), name="preemption", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _watch(request: AttemptRequest, rank: int, ended: threading.Event) -> None:
    notice, down = None, False
    while not notice and not ended.wait(POLL_SECONDS):
        try:
            notice = _notice(request, rank)
            down = False
        except Exception as error:  # noqa: BLE001 - training goes on without the watch, whatever its error
            if not down:
                logger.warning("Ray cannot tell whether this attempt is about to be preempted: %s", error)
            down = True
    if notice:
        logger.warning("This attempt is about to be preempted: %s", notice)
        _noticed.set()


def _notice(request: AttemptRequest, rank: int) -> str | None:
    """Why this attempt is about to be ended from outside; None if nothing is known."""
    if _noticed.is_set():
        return "this worker got SIGTERM"
    if rank == 0 and internal_kv._internal_kv_exists(_key(request), namespace=NAMESPACE):  # noqa: SLF001 - Ray has no public one
        return "the driver was told to stop"
    node = ray.get_runtime_context().get_node_id()
    return f"the node {node} is drained" if node in ray_state.get_draining_nodes() else None


def _key(request: AttemptRequest) -> str:
    return submission_id(request.job_id, request.attempt)


# --- in the driver ----------------------------------------------------------------------------------------------------


@contextmanager
def passed_on(request: AttemptRequest, store: Store) -> Iterator[None]:
    """Inside, the driver passes SIGTERM on to its workers and waits for them to leave by themselves.

    A second SIGTERM, and the end of the grace time, do what SIGTERM did before. Only in a main thread.
    """
    before = signal.getsignal(signal.SIGTERM)

    def notice() -> None:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        # On a thread: a signal's handler interrupts the main thread wherever it is.
        threading.Thread(target=_pass_on, args=(request, store), name="preemption", daemon=True).start()

    _take_sigterm(notice)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before)


def _pass_on(request: AttemptRequest, store: Store) -> None:
    logger.warning("Stopped from outside: the workers are to store a checkpoint and to leave")
    try:
        with patience(PATIENCE_SECONDS):
            working = store.exists(f"{worker_folder(request.attempt)}/rank-0.json")
        if working:
            internal_kv._internal_kv_put(_key(request), b"1", namespace=NAMESPACE)  # noqa: SLF001 - as above
    except (StorageError, RayError) as error:
        logger.warning("The workers cannot be told: %s", error)
        working = False
    if not working:  # nobody has anything to store
        os.kill(os.getpid(), signal.SIGTERM)
