"""What the controller needs from elsewhere: asked again with a back-off, told once."""

from __future__ import annotations

import threading
from datetime import timedelta

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from service.adapters import breaker
from service.adapters.breaker import Breaker, Gate, Unreachable
from service.adapters.ray_cluster import ClusterRefused, ClusterUnreachable, RayCluster
from service.controller.dependencies import Dependency, Unavailable


class Broken(Unreachable):
    """It does not answer."""

    dependency = "Ray"


class Clock:
    """Time that passes as a test says."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ray(clock, monkeypatch) -> Dependency:
    monkeypatch.setattr(breaker, "log", structlog.get_logger())  # a cached logger cannot be captured
    return Dependency("Ray", Broken, clock)


def reaches(dependency: Dependency, error: str) -> bool:
    """Whether a question gets through to it, while it does not answer."""
    questions = []

    def ask() -> None:
        with dependency.call():
            questions.append(error)
            raise Broken(error)

    with pytest.raises(Unavailable, match="Ray does not answer: "):
        ask()
    return bool(questions)


def fails(dependency: Dependency, error: str = "refused") -> None:
    assert reaches(dependency, error)


def refuses(dependency: Dependency) -> bool:
    return not reaches(dependency, "again")


def test_it_is_asked_again_after_longer_and_longer_pauses(ray, clock):
    for pause in (1, 2, 4, 8, 10, 10, 10):
        fails(ray)
        clock.seconds += pause - 0.01
        with pytest.raises(Unavailable, match="Ray does not answer: refused"), ray.call():
            pytest.fail("it was asked too early")
        clock.seconds += 0.01


def test_an_answer_begins_the_pauses_anew(ray, clock):
    for pause in (1, 2, 4):
        fails(ray)
        clock.seconds += pause
    with ray.call():
        pass
    with ray.call():
        pass
    fails(ray)
    clock.seconds += 1
    assert not refuses(ray)


def test_its_going_and_its_coming_back_are_logged_once_each(ray, clock):
    with capture_logs() as lines:
        with ray.call():
            pass
        for error in ("refused", "refused", "timed out"):
            fails(ray, error)
            assert refuses(ray)
            clock.seconds += 10
        assert ray.error == "timed out"
        for _ in range(3):
            with ray.call():
                pass
        fails(ray)
    told = [(line["event"], line["part"], line.get("error")) for line in lines]
    assert told == [
        ("unreachable", "Ray", "refused"),
        ("reachable_again", "Ray", None),
        ("unreachable", "Ray", "refused"),
    ]
    assert ray.error == "refused"


def test_how_long_it_has_answered_begins_with_the_first_answer_after_a_break(ray, clock):
    assert ray.available_for() == timedelta(0), "never asked"
    clock.seconds += 5
    with ray.call():
        pass
    clock.seconds += 60
    with ray.call():
        pass
    assert ray.available_for() == timedelta(seconds=60)
    fails(ray)
    clock.seconds += 30
    assert ray.available_for() == timedelta(0)
    with ray.call():
        pass
    clock.seconds += 7
    assert ray.available_for() == timedelta(seconds=7)


def test_one_call_finds_out_whether_it_is_back(ray, clock):
    fails(ray)
    clock.seconds += 1
    with ray.call():
        assert refuses(ray), "another call is finding out"
    with ray.call(), ray.call():
        pass


def test_a_call_that_finds_out_nothing_leaves_that_to_the_next(ray, clock):
    fails(ray)
    clock.seconds += 1
    with pytest.raises(ZeroDivisionError), ray.call():
        1 / 0  # noqa: B018
    assert reaches(ray, "still away")


def test_calls_that_fail_together_count_once(ray, clock):
    together = [ray.call() for _ in range(5)]
    for call in together:
        call.__enter__()
    for call in together:
        with pytest.raises(Unavailable):
            call.__exit__(Broken, Broken("timed out"), None)
    assert ray.error == "timed out"
    clock.seconds += 1
    assert reaches(ray, "again"), "after the first pause, not a longer one"


# --- the gate of requests -------------------------------------------------------------------------------------------


def test_so_many_requests_call_it_at_a_time_and_more_fail_at_once():
    gate, inside, over = (
        Gate(Breaker("Ray", Broken), Broken, calls=2, waiting=0),
        threading.Barrier(3),
        threading.Event(),
    )

    def hang() -> None:
        with gate():
            inside.wait(60)
            over.wait(60)

    threads = [threading.Thread(target=hang) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(60)
    with pytest.raises(Broken, match="it has not answered 2 other requests yet"), gate():
        pytest.fail("a third one called it")
    over.set()
    for thread in threads:
        thread.join()
    with gate():
        pass


def test_a_request_that_waits_has_its_turn_when_another_ends():
    gate, inside, over, done = Gate(Breaker("Ray", Broken), Broken, 1, 1), threading.Event(), threading.Event(), []

    def hang() -> None:
        with gate():
            inside.set()
            over.wait(60)

    def wait() -> None:
        with gate():
            done.append(1)

    threads = [threading.Thread(target=hang), threading.Thread(target=wait)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    over.set()
    for thread in threads:
        thread.join()
    assert done == [1]


def test_while_it_does_not_answer_requests_fail_without_calling_it(clock):
    gate = Gate(Breaker("Ray", Broken, clock), Broken, calls=1, waiting=0)
    with pytest.raises(Broken, match="refused"), gate():
        raise Broken("refused")
    with pytest.raises(Broken, match="refused") as told, gate():
        pytest.fail("it was called")
    assert told.value.retry_after_s == 1
    clock.seconds += 1
    with gate():
        pass
    with gate():
        pass


def test_an_error_of_another_kind_says_nothing_about_it(ray):
    with pytest.raises(ZeroDivisionError), ray.call():
        1 / 0  # noqa: B018
    assert ray.error is None
    with ray.call():
        pass


def test_a_refusal_is_an_answer(clock):
    """One job's trouble keeps nobody else from being answered."""

    class Refused(Broken):
        """It does not do that."""

    mlflow = Dependency("MLflow", Broken, clock, refusal=Refused)

    def ask() -> None:
        with mlflow.call():
            raise Refused("no such run")

    for _ in range(3):
        with pytest.raises(Unavailable, match="MLflow refuses: no such run"):
            ask()
    with mlflow.call():
        pass
    clock.seconds += 5
    assert mlflow.error is None
    assert mlflow.available_for() == timedelta(seconds=5)


@pytest.mark.parametrize(("status", "kind"), [(500, ClusterRefused), (404, ClusterRefused), (503, ClusterUnreachable)])
def test_what_ray_refuses_one_job_is_an_answer(status, kind):
    cluster = RayCluster("http://ray.test", None, "python")
    cluster._http = httpx.Client(
        base_url="http://ray.test", transport=httpx.MockTransport(lambda _: httpx.Response(status, text="no"))
    )
    with pytest.raises(ClusterUnreachable, match=f"Ray answered {status}") as told:
        cluster.delete("job-1-a1")
    assert type(told.value) is kind
