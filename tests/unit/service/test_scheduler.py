"""Who starts next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from service_fakes import add_job, spec_with

from service.db import Attempt
from service.jobs import repository
from service.jobs.scheduler import Waiting, admit
from trainer.spec.plan import ClusterShape, gang, impossible
from trainer.spec.pretrain import PretrainSpec

NOW = datetime(2025, 6, 1, tzinfo=UTC)


def waiting(name: str, cpus: int = 1, workers: int = 1, gpus: int = 0, not_before: datetime | None = None) -> Waiting:
    resources = {"workers": workers, "gpus_per_worker": gpus, "cpus_per_worker": cpus}
    optimization = {"epochs": 1, "global_batch_size": 840}  # divisible by all numbers of workers below
    spec = PretrainSpec.parse(spec_with(resources=resources, optimization=optimization))
    return Waiting(name, spec, not_before)


def admitted(jobs: list[Waiting], cluster: ClusterShape, taken: list[ClusterShape] | None = None) -> dict[str, bool]:
    return {a.job_id: a.start for a in admit(jobs, taken or [], cluster, NOW)}


def message(jobs: list[Waiting], cluster: ClusterShape, taken: list[ClusterShape] | None = None) -> str:
    return admit(jobs, taken or [], cluster, NOW)[-1].message


def test_jobs_start_in_their_order_while_there_is_room():
    jobs = [waiting("a", 2), waiting("b", 2), waiting("c", 1)]
    assert admitted(jobs, ClusterShape(4, 0)) == {"a": True, "b": True, "c": False}


def test_running_gangs_take_their_room():
    assert admitted([waiting("a", 2)], ClusterShape(4, 0), [ClusterShape(3, 0)]) == {"a": False}
    assert admitted([waiting("a", 2)], ClusterShape(4, 0), [ClusterShape(2, 0)]) == {"a": True}


def test_a_gang_starts_whole_or_not_at_all():
    gang_of_four = waiting("a", cpus=1, workers=4)
    assert admitted([gang_of_four], ClusterShape(4, 0), [ClusterShape(1, 0)]) == {"a": False}
    assert admitted([gang_of_four], ClusterShape(4, 0)) == {"a": True}


def test_no_job_passes_a_blocked_one():
    jobs = [waiting("large", 4), waiting("small", 1)]
    found = admit(jobs, [ClusterShape(2, 0)], ClusterShape(4, 0), NOW)
    assert [a.start for a in found] == [False, False]
    assert "behind large" in found[1].message


def test_a_job_that_never_fits_is_passed_and_says_why():
    jobs = [waiting("huge", 64), waiting("gpu", gpus=1), waiting("small", 1)]
    found = admit(jobs, [], ClusterShape(4, 0), NOW)
    assert [a.start for a in found] == [False, False, True]
    assert "Cannot start on this cluster: needs 64 CPUs, 4 in the cluster" in found[0].message
    assert "needs 1 GPUs, 0 in the cluster" in found[1].message


def test_what_is_short_is_said_with_numbers():
    assert "needs 3 CPUs, 2 free, 4 in the cluster" in message([waiting("a", 3)], ClusterShape(4, 0), [gang_of(2)])
    two_gpus = waiting("b", workers=2, gpus=1)
    assert "needs 2 GPUs, 1 free, 2 in the cluster" in message([two_gpus], ClusterShape(8, 2), [gang_of(1, 1)])
    assert "4 CPUs" in message([waiting("c", 4)], ClusterShape(4, 0))
    assert "2 GPUs and 2 CPUs" in message([two_gpus], ClusterShape(8, 2))


def gang_of(cpus: int, gpus: int = 0) -> ClusterShape:
    return ClusterShape(cpus, gpus)


def test_a_job_that_backs_off_neither_starts_nor_blocks():
    later, due = NOW + timedelta(seconds=1), NOW
    jobs = [waiting("later", 4, not_before=later), waiting("due", 4, not_before=due)]
    assert admitted(jobs, ClusterShape(4, 0)) == {"due": True}


def test_nothing_starts_on_a_cluster_that_shrank_below_what_runs():
    assert admitted([waiting("a", 1)], ClusterShape(2, 0), [ClusterShape(4, 0)]) == {"a": False}


@given(
    cluster=st.builds(ClusterShape, st.integers(0, 12), st.integers(0, 4)),
    taken=st.lists(st.builds(ClusterShape, st.integers(0, 4), st.integers(0, 1)), max_size=4),
    gangs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1)), max_size=8),
)
def test_a_cluster_is_never_given_away_twice(cluster, taken, gangs):
    jobs = [waiting(f"job-{n}", *shape) for n, shape in enumerate(gangs)]
    found = admit(jobs, taken, cluster, NOW)
    assert [a.job_id for a in found] == [job.job_id for job in jobs]
    started = [gang(job.spec) for job, a in zip(jobs, found, strict=True) if a.start]
    if started:
        assert sum(g.cpus for g in started + taken) <= cluster.cpus
        assert sum(g.gpus for g in started + taken) <= cluster.gpus
    held_back = False
    for job, admission in zip(jobs, found, strict=True):
        assert not (admission.start and held_back)
        held_back = held_back or (not admission.start and impossible(job.spec, cluster) is None)


def test_recovering_jobs_come_first_then_priority_then_age(database):
    def add(name: str, state: str = "queued", minute: int = 0, **fields: int) -> None:
        add_job(database, state, id=name, created_at=NOW + timedelta(minutes=minute), **fields)

    add("old", minute=1)
    add("new", minute=2)
    add("urgent", minute=3, priority=5)
    add("lesser", minute=0, priority=-5)
    add("recovering", "recovering", minute=9, priority=-9, attempts=1)
    add("still-ending", "recovering", minute=8, attempts=1)
    for state in ("starting", "running", "paused", "succeeded"):
        add(state, state)
    with database.session() as session:
        for name, ended in (("recovering", NOW), ("still-ending", None)):
            submission = f"{name}-a1"
            session.add(Attempt(job_id=name, number=1, submission_id=submission, state="lost", ended_at=ended))
    with database.read() as session:
        order = [job.id for job in repository.waiting(session)]
    assert order == ["recovering", "urgent", "old", "new", "lesser"]
