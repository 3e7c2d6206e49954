"""Silence and deadlines are counted by the controller's own looks, whatever clocks say."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from service_fakes import attempts_of
from service_world import World

from service.controller import attempts, observing
from service.controller.watch import LONGEST_GAP_S, Watch
from service.jobs.lifecycle import Verb

ATTEMPT = ("job-1", 1)


class Clock:
    """Time that passes as a test says."""

    def __init__(self) -> None:
        self.seconds = time.monotonic()

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def look(clock: Clock) -> Callable[..., float]:
    watch = Watch(clock)

    def look(after_s: float, value: object, what: str = "beat") -> float:
        clock.seconds += after_s
        return watch.look(ATTEMPT, what, value).total_seconds()

    return look


def test_time_between_looks_at_the_same_is_counted(look):
    assert [look(after, "a") for after in (0, 1, 5, LONGEST_GAP_S)] == [0, 1, 6, 6 + LONGEST_GAP_S]


def test_a_new_value_begins_anew_and_other_things_are_counted_by_themselves(look):
    assert [look(0, "a"), look(9, "a"), look(1, "b"), look(2, "b")] == [0, 9, 0, 2]
    assert [look(1, "x", "command"), look(4, "x", "command"), look(0, "b")] == [0, 4, 7]


def test_a_gap_in_which_nobody_looked_does_not_count(look):
    """A laptop was suspended, or MLflow was away."""
    assert [look(0, "a"), look(3, "a"), look(8 * 3600, "a"), look(2, "a")] == [0, 3, 3, 5]


def test_what_is_no_longer_looked_at_is_forgotten(clock):
    watch = Watch(clock)
    watch.look(ATTEMPT, "beat", 1)
    clock.seconds += 10
    watch.keep([])
    assert watch.look(ATTEMPT, "beat", 1) == timedelta(0)


def test_rounds_that_the_settings_put_far_apart_count(settings, database, ray, mlflow):
    world = World(settings.model_copy(update={"poll_interval_s": 60.0}), database, ray, mlflow)
    watch, clock = world.reconciler.observer.watch, Clock()
    watch._clock = clock
    watch.look(ATTEMPT, "beat", 1)
    clock.seconds += 65
    assert watch.look(ATTEMPT, "beat", 1) == timedelta(seconds=65)


# --- in rounds --------------------------------------------------------------------------------------------------------


@pytest.fixture
def step(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets this host's clock forward; MLflow has answered all the time."""

    def forward(seconds: float) -> None:
        later = lambda: datetime.now(UTC) + timedelta(seconds=seconds)  # noqa: E731
        for module in (attempts, observing):
            monkeypatch.setattr(module, "now", later)
        world.context.dependencies.mlflow._since = -1e9

    return forward


def test_a_clock_that_is_set_forward_ends_no_running_attempt(world, step):
    job_id = world.running()
    world.rounds()
    step(3600)
    world.rounds(3)
    assert world.ray.stopped == []
    assert world.state(job_id) == "running"


def test_a_clock_that_is_set_forward_ends_no_starting_attempt(world, step):
    job_id = world.add()
    world.rounds(2)
    step(365 * 86_400)
    world.rounds(3)
    assert world.ray.stopped == []
    assert world.state(job_id) == "starting"


def test_a_clock_that_is_set_forward_leaves_an_attempt_the_time_to_obey(world, step):
    job_id = world.running()
    world.verb(job_id, Verb.PAUSE)
    world.rounds(2)
    step(3600)
    world.rounds(3)
    assert world.ray.stopped == []
    assert world.state(job_id) == "pausing"


@pytest.mark.parametrize("seen", ["after a night", "by another process"])
def test_a_silence_that_this_process_has_not_watched_ends_no_attempt(world, settings, ray, mlflow, clock, seen):
    job_id = world.running()
    world.reconciler.observer.watch._clock = clock
    world.rounds()
    world.context.dependencies.mlflow._since = -1e9
    clock.seconds += LONGEST_GAP_S
    world.rounds()
    if seen == "by another process":
        world.context.lease.release()
        world = World(settings, world.database, ray, mlflow)
        world.reconciler.observer.watch._clock = clock
        world.rounds()
        world.context.dependencies.mlflow._since = -1e9
    else:
        clock.seconds += 9 * 3600
    for _ in range(2):
        world.rounds()
        clock.seconds += LONGEST_GAP_S
    world.rounds()
    assert ray.stopped == []
    for _ in range(5):
        clock.seconds += LONGEST_GAP_S
        world.rounds()
    assert ray.stopped == [f"{job_id}-a1"], "it has been silent for longer than the limit, under watch"
    assert attempts_of(world.database, job_id)[0].stop_asked_at is not None
