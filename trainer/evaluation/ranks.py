"""Work shared by all ranks of an attempt, with results that do not depend on how many there are."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from trainer.agreement import Agreement

T = TypeVar("T")


class OtherRankFailed(RuntimeError):
    """Another rank's work failed with an error that cannot be sent; the message says what it was."""


@dataclass(frozen=True)
class _Done(Generic[T]):
    """What became of one rank's work."""

    result: T | None
    error: Exception | None


class Ranks:
    """All ranks of an attempt, which work on the same things in the same order. Every rank makes the same calls.

    The ranks wait for each other in `Agreement`'s patient group, however long one of them takes.
    """

    def __init__(self, agree: Agreement, rank: int, world: int) -> None:
        self._agree, self.rank, self.world = agree, rank, world

    def gather(self, own: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank."""
        return self._agree.gather(own)

    def collect(self, work: Callable[[], T]) -> list[T]:
        """Run ``work`` on every rank; returns every rank's result, in the order of the ranks, on every rank.

        If it fails on some rank, every rank raises: a rank its own error, and the others that of the first that failed.
        """
        done: _Done[T]
        try:
            done = _Done(work(), None)
        except Exception as error:
            if self.world > 1:  # the others learn of it before this rank raises it
                self._agree.gather(_Done(None, _sendable(error, self.rank)))
            raise
        every = self._agree.gather(done)
        failed = next((each.error for each in every if each.error), None)
        if failed:
            raise failed
        return [each.result for each in every]  # type: ignore[misc]  # None only where a result is None

    def spread(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run task i on rank i % world alone; returns all results, in the order of the tasks, on every rank.

        A task must give the same bits on whichever rank it runs. Errors are raised as by `collect`.
        """
        own = tasks[self.rank :: self.world]
        every = self.collect(lambda: [task() for task in own])
        return [every[number % self.world][number // self.world] for number in range(len(tasks))]


def _sendable(error: Exception, rank: int) -> Exception:
    """The error itself if other processes can read it, or one that says what it was."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - this process's own
    except (pickle.PicklingError, TypeError, AttributeError, ValueError):
        return OtherRankFailed(f"rank {rank}: {type(error).__name__}: {error}")
    return error


def alone() -> Ranks:
    """The only rank of a process that works by itself."""
    return Ranks(Agreement(1), 0, 1)
