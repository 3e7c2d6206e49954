"""Who starts next: cases that people know, and random queues against models of Ray and of the rules written here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_fakes import add_job, spec_with

from service.jobs import repository
from service.queue.scheduler import Admission, Limits, Running, Waiting, admit, fits, free_nodes
from service.settings import Settings
from trainer.protocol.outcome import Reason
from trainer.spec.cluster import ClusterShape, Gang, NodeShape
from trainer.spec.plan import gang
from trainer.spec.pretrain import PretrainSpec

NOW = datetime(2025, 6, 1, tzinfo=UTC)
LIMITS = Limits(running_per_user=None, passing_s=1800.0)
BEHIND = "Waits behind large, which has waited for 30 minutes or more: no job that would delay it may start before it."
NEVER = "Cannot start on this cluster"
ADVICE = "lower resources.workers or resources.cpus_per_worker, or add nodes."


@cache
def spec_of(workers: int, cpus: int, gpus: int) -> PretrainSpec:
    resources = {"workers": workers, "gpus_per_worker": gpus, "cpus_per_worker": cpus}
    optimization = {"epochs": 1, "global_batch_size": 840}  # divisible by all numbers of workers below
    return PretrainSpec.parse(spec_with(resources=resources, optimization=optimization))


def waiting(name: str, cpus: int = 1, workers: int = 1, gpus: int = 0, minutes: float = 0, **fields) -> Waiting:
    """A job that has waited for so many minutes."""
    spec, since = spec_of(workers, cpus, gpus), NOW - timedelta(minutes=minutes)
    return Waiting(name, **{"owner": "alice", "spec": spec, "priority": 0, "since": since} | fields)


def running(*gangs: Gang, owner: str = "bob") -> list[Running]:
    return [Running(f"running-{number}", owner, needs) for number, needs in enumerate(gangs)]


def cluster(*nodes: tuple[int, int]) -> ClusterShape:
    return ClusterShape(tuple(NodeShape(cpus, gpus, f"node-{n}") for n, (cpus, gpus) in enumerate(nodes)))


def decided(
    jobs: Sequence[Waiting], shape: ClusterShape, taken: Sequence[Running] = (), limits: Limits = LIMITS
) -> dict[str, Admission]:
    found = admit(jobs, taken, shape, NOW, limits)
    assert len({admission.job_id for admission in found}) == len(found)
    for admission in found:
        assert admission.start == (admission.reason is None)
    return {admission.job_id: admission for admission in found}


def started(
    jobs: Sequence[Waiting], shape: ClusterShape, taken: Sequence[Running] = (), limits: Limits = LIMITS
) -> str:
    return " ".join(name for name, admission in decided(jobs, shape, taken, limits).items() if admission.start)


# --- cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "taken", "jobs", "start"),
    [
        pytest.param(
            cluster((4, 0)), [], [waiting("a", 2), waiting("b", 2), waiting("c")], "a b", id="while there is room"
        ),
        pytest.param(cluster((4, 0)), [Gang(1, 3)], [waiting("a", 2)], "", id="what runs takes its room"),
        pytest.param(cluster((4, 0)), [Gang(1, 2)], [waiting("a", 2)], "a", id="and no more than that"),
        pytest.param(cluster((4, 0)), [Gang(1, 1)], [waiting("a", workers=4)], "", id="a gang whole or not at all"),
        pytest.param(cluster((2, 0), (2, 0)), [], [waiting("a", workers=4)], "a", id="a gang over two nodes"),
        pytest.param(cluster((3, 0), (3, 0)), [], [waiting("a", 2, workers=3)], "", id="no worker on two nodes"),
        pytest.param(cluster((8, 0), (2, 1)), [], [waiting("a", 4, gpus=1)], "", id="CPUs and GPU on one node"),
        pytest.param(cluster((2, 0)), [Gang(1, 4)], [waiting("a")], "", id="a cluster that shrank"),
        pytest.param(cluster(), [Gang(1, 4)], [waiting("a")], "", id="a cluster without nodes"),
        pytest.param(
            cluster((4, 0)),
            [],
            [waiting("huge", 64, minutes=600), waiting("gpu", gpus=1, minutes=600), waiting("small", 4)],
            "small",
            id="a job that never fits is passed for ever",
        ),
        pytest.param(
            cluster((4, 0)),
            [Gang(1, 2)],
            [waiting("large", 4, minutes=29), waiting("small", 2)],
            "small",
            id="passed within the bound",
        ),
        pytest.param(
            cluster((4, 0)),
            [Gang(1, 2)],
            [waiting("large", 4, minutes=30), waiting("small", 1)],
            "",
            id="not passed after it",
        ),
        pytest.param(
            cluster((8, 2)),
            [Gang(1, 1, 1)],
            [waiting("gpus", workers=2, gpus=1, minutes=600), waiting("gpu", gpus=1), waiting("cpu", 5)],
            "cpu",
            id="passed after it by what leaves all it needs",
        ),
        pytest.param(
            cluster((8, 2)),
            [Gang(1, 1, 1)],
            [waiting("gpus", workers=2, gpus=1, minutes=600), waiting("cpu", 6)],
            "",
            id="but not by what takes a CPU that it will need",
        ),
        pytest.param(
            cluster((8, 2)),
            [Gang(1, 1, 1)],
            [waiting("gpus", workers=2, gpus=1, minutes=600), waiting("small-gpu", gpus=1)],
            "",
            id="nor by what takes a GPU that it will need",
        ),
        pytest.param(
            cluster((8, 1), (8, 1)),
            [Gang(1, 1, 1)],
            [waiting("gpus", workers=2, gpus=1, minutes=600), waiting("cpu", 7)],
            "cpu",
            id="it needs no more CPUs of a node than beside that node's GPUs",
        ),
        pytest.param(
            cluster((4, 0)),
            [Gang(1, 2)],
            [waiting("high", 4, minutes=1, priority=9), waiting("low", 3, minutes=40), waiting("small", 2)],
            "",
            id="each waiting job has its own bound",
        ),
        pytest.param(
            cluster((8, 2)),
            [Gang(1, 1, 1)],
            [waiting("cpus", 8, minutes=50), waiting("gpus", workers=2, gpus=1, minutes=40), waiting("small")],
            "",
            id="nor may the first be delayed when the second is not",
        ),
        pytest.param(
            cluster((4, 0)),
            [],
            [waiting("back", 3, recovering=True, not_before=NOW + timedelta(seconds=9)), waiting("b", 2)],
            "",
            id="a back-off keeps its room",
        ),
        pytest.param(
            cluster((4, 0)),
            [],
            [waiting("back", 3, recovering=True, not_before=NOW + timedelta(seconds=9)), waiting("b", 1)],
            "b",
            id="and no more than that room",
        ),
        pytest.param(
            cluster((4, 0)),
            [Gang(1, 2)],
            [waiting("back", 3, recovering=True, not_before=NOW + timedelta(seconds=9)), waiting("b", 2)],
            "b",
            id="a back-off without room keeps none",
        ),
        pytest.param(
            cluster((4, 0)),
            [],
            [waiting("later", 3, minutes=60, not_before=NOW + timedelta(seconds=9)), waiting("b", 4)],
            "b",
            id="only one that recovers keeps room",
        ),
        pytest.param(
            cluster((4, 0)), [], [waiting("due", 3, recovering=True, not_before=NOW)], "due", id="a back-off ends"
        ),
    ],
)
def test_who_starts(shape, taken, jobs, start):
    assert started(jobs, shape, running(*taken)) == start


@pytest.mark.parametrize(
    ("shape", "taken", "jobs", "message"),
    [
        (cluster((4, 0)), [], [waiting("a", 4)], "It takes 1 worker of 4 CPUs."),
        (cluster((4, 2)), [], [waiting("a", workers=2, gpus=1)], "It takes 2 workers of 1 GPU and 1 CPU each."),
        (
            cluster((16, 8)),
            [Gang(6, 1, 1)],
            [waiting("a", workers=4, gpus=1)],
            "Waits for resources: needs 4 GPUs, 2 free, 8 in the cluster.",
        ),
        (
            cluster((16, 8)),
            [Gang(8, 1, 1)],
            [waiting("a", gpus=1)],
            "Waits for resources: needs 1 GPU, 0 free, 8 in the cluster.",
        ),
        (
            cluster((4, 0)),
            [Gang(1, 2)],
            [waiting("a", 3)],
            "Waits for resources: needs 3 CPUs, 2 free, 4 in the cluster.",
        ),
        (
            cluster((4, 0), (4, 0)),
            [Gang(1, 2)],
            [waiting("a", 3, workers=2)],
            "Waits for resources: needs 2 workers of 3 CPUs each; 1 fits on the nodes now.",
        ),
        (
            cluster((4, 0), (3, 0)),
            [Gang(1, 1)],
            [waiting("a", 2, workers=3)],
            "Waits for resources: needs 3 workers of 2 CPUs each; 2 fit on the nodes now.",
        ),
        (
            cluster((4, 1), (8, 1)),
            [Gang(1, 7)],
            [waiting("a", 2, workers=2, gpus=1)],
            "Waits for resources: needs 2 workers of 1 GPU and 2 CPUs each; 1 fits on the nodes now.",
        ),
        (
            cluster((4, 0), (4, 0)),
            [Gang(1, 2), Gang(1, 2)],
            [waiting("a", 3)],
            "Waits for resources: needs 1 worker of 3 CPUs; none fits on the nodes now.",
        ),
        (
            cluster((4, 0)),
            [Gang(1, 2)],
            [waiting("large", 4, minutes=40), waiting("a", 1)],
            BEHIND,
        ),
        (
            cluster((4, 0)),
            [],
            [waiting("r", 4, recovering=True, not_before=NOW + timedelta(seconds=1)), waiting("a", 1)],
            "Waits behind r, which keeps its place while it recovers.",
        ),
        (
            cluster((4, 0)),
            [],
            [waiting("a", 64)],
            f"{NEVER}: needs 64 CPUs, 4 in the cluster: {ADVICE}",
        ),
        (
            cluster((4, 0)),
            [],
            [waiting("a", gpus=1)],
            f"{NEVER}: needs 1 GPU, 0 in the cluster: lower resources.workers or add nodes.",
        ),
        (
            cluster((3, 0), (3, 0)),
            [],
            [waiting("a", 2, workers=3)],
            f"{NEVER}: needs 3 workers of 2 CPUs each, and the cluster's nodes have room for 2: {ADVICE}",
        ),
    ],
)
def test_every_decision_says_why_with_numbers(shape, taken, jobs, message):
    assert decided(jobs, shape, running(*taken))["a"].message == message


def test_a_job_that_backs_off_gets_no_word_so_that_its_own_stands():
    back = waiting("back", recovering=True, not_before=NOW + timedelta(seconds=1))
    assert list(decided([back, waiting("a")], cluster((4, 0)))) == ["a"]


def test_a_users_jobs_beyond_the_limit_wait_and_hold_back_nobody():
    limits, shape = replace(LIMITS, running_per_user=2), cluster((4, 0))
    jobs = [waiting("a1", minutes=90), waiting("a2", 3, minutes=90), waiting("b1", 2, owner="bob")]
    found = decided(jobs, shape, running(Gang(1, 1), owner="alice"), limits)
    assert [admission.start for admission in found.values()] == [True, False, True]
    assert found["a2"].reason is Reason.USER_LIMIT
    assert found["a2"].message == "alice runs 2 jobs, and 2 are allowed at a time."
    one = decided([waiting("a1"), waiting("a2")], shape, limits=replace(LIMITS, running_per_user=1))
    assert one["a2"].message == "alice runs 1 job, and 1 is allowed at a time."


def test_recovering_jobs_count_for_the_limit_but_are_not_stopped_by_it():
    limits, later = replace(LIMITS, running_per_user=1), NOW + timedelta(seconds=5)
    jobs = [waiting("r1", recovering=True), waiting("r2", recovering=True), waiting("new")]
    found = decided(jobs, cluster((4, 0)), running(Gang(1, 1), owner="alice"), limits)
    assert [name for name, admission in found.items() if admission.start] == ["r1", "r2"]
    assert found["new"].message == "alice runs 3 jobs, and 1 is allowed at a time."
    backs_off = [waiting("r1", recovering=True, not_before=later), waiting("new")]
    assert decided(backs_off, cluster((4, 0)), (), limits)["new"].reason is Reason.USER_LIMIT


def test_workers_take_their_room_where_they_are():
    shape, jobs = cluster((4, 0), (4, 0)), [waiting("a", 3)]
    apart = [Running("x", "bob", Gang(2, 2), ["node-0", "node-1"])]
    together = [Running("x", "bob", Gang(2, 2), ["node-1", "node-1"])]
    assert started(jobs, shape, apart) == ""
    assert started(jobs, shape, together) == "a"
    first = Running("x", "bob", Gang(2, 3), ["node-0", "node-0"])
    unequal, unknown = cluster((6, 0), (4, 0), (6, 0)), running(Gang(1, 3))
    assert (
        started([waiting("a", 6)], unequal, [*unknown, first]) == ""
    )  # whose nodes are not known is beside the others
    assert started([waiting("b", 2)], shape, [Running("x", "bob", Gang(3, 2), ["node-0"] * 3)]) == "b"  # it shrank
    assert started([waiting("c", 3)], shape, [Running("x", "bob", Gang(3, 2), ["node-0"] * 3)]) == ""


def test_what_a_gang_lacks_where_it_is_reported_is_taken_elsewhere():
    """As on a cluster that shrank: a node has fewer GPUs than run on it, or the node of a worker is gone."""
    shape = cluster((4, 2), (4, 2))
    crowded = Running("x", "bob", Gang(3, 1, 1), ["node-0"] * 3)
    assert free_nodes([crowded], shape) == [NodeShape(1, 0, "node-0"), NodeShape(4, 1, "node-1")]
    gone = Running("x", "bob", Gang(2, 1, 1), ["node-1", "node-9"])
    assert free_nodes([gone], shape) == [NodeShape(3, 1, "node-0"), NodeShape(3, 1, "node-1")]


def test_a_plan_goes_by_the_rules_for_jobs():
    shape, small = cluster((4, 0)), spec_with(resources={"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 2})
    spec, taken = PretrainSpec.parse(small), running(Gang(1, 2))
    overdue = [waiting("large", 4, minutes=60)]

    def plan(spec: PretrainSpec, jobs: Sequence[Waiting] = (), limits: Limits = LIMITS) -> tuple[str, str]:
        return fits(spec, "alice", jobs, taken, shape, NOW, limits)

    assert plan(spec) == ("now", "It takes 1 worker of 2 CPUs.")
    assert plan(spec, [waiting("large", 4)])[0] == "now"
    when, why = plan(spec, overdue)
    assert (when, why[:19]) == ("later", "Waits behind large,")
    assert plan(spec, [waiting("same", 2)]) == ("later", "Waits for resources: needs 2 CPUs, 0 free, 4 in the cluster.")
    assert plan(spec.model_copy(update={"priority": 1}), [*overdue, waiting("same", 2)])[0] == "now"
    assert plan(spec_of(1, 64, 0))[0] == "never"
    when, why = fits(spec, "bob", (), taken, shape, NOW, replace(LIMITS, running_per_user=1))
    assert (when, why) == ("later", "bob runs 1 job, and 1 is allowed at a time.")
    auto = PretrainSpec.parse(spec_with(resources={"workers": 1}))
    assert fits(auto, "alice", (), (), shape, NOW, LIMITS) == ("now", "It takes 1 worker of 4 CPUs.")


def test_an_operator_says_how_many_a_user_runs_and_how_long_a_job_may_be_passed():
    def set_to(running_per_user: int | None, passing_s: float) -> Limits:
        named = {"running_per_user": running_per_user, "passing_s": passing_s}
        return Limits.of(Settings(database_url="sqlite://", artifact_root="/artifacts", **named))

    limits = set_to(1, 60.0)
    two = [waiting("a1", minutes=2), waiting("a2")]
    assert started(two, cluster((4, 0)), limits=limits) == "a1"
    behind = [waiting("large", 4, owner="bob", minutes=2), waiting("small")]
    assert started(behind, cluster((4, 0)), running(Gang(1, 1), owner="eve"), limits) == ""
    patient = set_to(None, 600.0)
    assert started(behind, cluster((4, 0)), running(Gang(1, 1), owner="eve"), patient) == "small"
    assert started(two, cluster((4, 0)), limits=patient) == "a1 a2"


# --- random queues ----------------------------------------------------------------------------------------------------

GANGS = st.builds(Gang, st.integers(1, 4), st.integers(1, 4), st.integers(0, 1))
NODES = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=3)


@st.composite
def queues(draw: st.DrawFn, most: int = 7) -> list[Waiting]:
    """Jobs of all kinds; some have waited past the bound of half an hour, some back off."""
    jobs = []
    for number in range(draw(st.integers(0, most))):
        needs, recovering = draw(GANGS), draw(st.integers(0, 4)) == 0
        backs_off = recovering and draw(st.booleans())
        jobs.append(
            waiting(
                f"job-{number}",
                needs.cpus,
                needs.workers,
                needs.gpus,
                minutes=draw(st.sampled_from([0, 1, 29, 30, 300])),
                owner=draw(st.sampled_from(["alice", "bob"])),
                priority=draw(st.integers(-1, 1)),
                recovering=recovering,
                not_before=NOW + timedelta(seconds=5) if backs_off else None,
            )
        )
    return jobs


def in_turn(jobs: Sequence[Waiting]) -> list[Waiting]:
    ordered = sorted(jobs, key=lambda job: (job.since, job.job_id))
    ordered.sort(key=lambda job: job.priority, reverse=True)
    return [job for job in ordered if job.recovering] + [job for job in ordered if not job.recovering]


Room = tuple[tuple[int, int], ...]
"""Free CPUs and GPUs of each node."""


def added(room: Room, places: Sequence[int], needs: Gang, sign: int = 1) -> Room:
    """With the workers on these nodes gone, or there for a sign of -1."""
    count = Counter(places)
    return tuple(
        (cpus + sign * count[n] * needs.cpus, gpus + sign * count[n] * needs.gpus)
        for n, (cpus, gpus) in enumerate(room)
    )


@cache
def placeable(room: Room, workers: int, cpus: int, gpus: int) -> bool:
    """Whether there is any way at all to put so many workers on nodes."""
    if not workers:
        return True
    for n, (has_cpus, has_gpus) in enumerate(room):
        if has_cpus >= cpus and has_gpus >= gpus:
            left = (*room[:n], (has_cpus - cpus, has_gpus - gpus), *room[n + 1 :])
            if placeable(left, workers - 1, cpus, gpus):
                return True
    return False


def can_place(room: Room, needs: Gang) -> bool:
    return placeable(room, needs.workers, needs.cpus, needs.gpus)


def by_ray(room: Room, needs: Gang) -> list[int] | None:
    """The node of each worker as Ray's PACK strategy chooses: the best one until it is full, then the next best."""
    places: list[int] = []
    candidates = list(range(len(room)))
    while len(places) < needs.workers:
        able = [n for n in candidates if can_place((room[n],), replace(needs, workers=1))]
        if not able:
            return None
        best = max(able, key=lambda n: (share_left(room[n], needs), -n))
        candidates.remove(best)
        while len(places) < needs.workers and can_place((room[best],), replace(needs, workers=1)):
            places.append(best)
            room = added(room, [best], needs, -1)
    return places


def share_left(node: tuple[int, int], needs: Gang) -> float:
    cpus, gpus = node
    return (cpus - needs.cpus) / cpus + ((gpus - needs.gpus) / gpus if needs.gpus else 0)


Placed = list[tuple[Gang, list[int]]]


def delays(room: Room, placed: Placed, first: Gang, newcomer: Gang, places: list[int]) -> bool:
    """Whether a newcomer on these nodes ever keeps a gang from starting: some of what runs may end, in any way."""
    for ended in chain.from_iterable(combinations(placed, size) for size in range(len(placed) + 1)):
        later = room
        for needs, where in ended:
            later = added(later, where, needs)
        if can_place(later, first) and not can_place(added(later, places, newcomer, -1), first):
            return True
    return False


def filled(room: Room, gangs: Sequence[Gang]) -> tuple[Room, Placed]:
    """What is left when Ray has placed those of these gangs that fit."""
    placed: Placed = []
    for needs in gangs:
        places = by_ray(room, needs)
        if places is not None:
            room = added(room, places, needs, -1)
            placed.append((needs, places))
    return room, placed


@given(nodes=NODES, gangs=st.lists(GANGS, max_size=4), jobs=queues())
@settings(max_examples=300, deadline=None, print_blob=True)
def test_random_queues_against_every_way_to_place_workers(nodes, gangs, jobs):
    """No node is given away twice, all that can start does, and nobody whose bound is over is delayed by others."""
    whole: Room = tuple(nodes)
    room, placed = filled(whole, gangs)
    found = decided(jobs, cluster(*nodes), running(*(needs for needs, _ in placed)))
    overdue: list[Gang] = []
    for job in in_turn(jobs):
        needs, admission = gang(job.spec), found.get(job.job_id)
        ever, now = can_place(whole, needs), can_place(room, needs)
        if admission and admission.start:
            places = by_ray(room, needs)
            assert places is not None
            assert not any(delays(room, placed, first, needs, places) for first in overdue)
            room = added(room, places, needs, -1)
            placed.append((needs, places))
        elif admission:
            assert admission.message.startswith("Cannot start") == (not ever)
            assert admission.message.startswith("Waits for resources") == (ever and not now)
        if ever and not (admission and admission.start) and job.since <= NOW - timedelta(minutes=30):
            overdue += [] if admission is None and now else [needs]


def expected(node: tuple[int, int], taken: Sequence[Gang], jobs: Sequence[Waiting], limit: int | None) -> set[str]:
    """The rules, word by word, on one node: sums are all there is to know of it."""
    free = [node[0] - sum(g.all_cpus for g in taken), node[1] - sum(g.all_gpus for g in taken)]
    free = [max(0, amount) for amount in free]
    kept, overdue, starts = [0, 0], [], set()
    runs = Counter(["bob"] * len(taken) + [job.owner for job in jobs if job.recovering])
    for job in in_turn(jobs):
        needs = [gang(job.spec).all_cpus, gang(job.spec).all_gpus]
        if needs[0] > node[0] or needs[1] > node[1]:
            continue
        if not job.recovering and limit is not None and runs[job.owner] >= limit:
            continue
        fit = all(free[r] >= needs[r] for r in (0, 1))
        leaves_kept = all(free[r] - kept[r] >= needs[r] for r in (0, 1))
        harmless = all(needs[r] == 0 or free[r] - needs[r] >= first[r] for first in overdue for r in (0, 1))
        if fit and leaves_kept and harmless:
            if job.not_before:
                kept = [kept[r] + needs[r] for r in (0, 1)]
                continue
            free = [free[r] - needs[r] for r in (0, 1)]
            runs[job.owner] += not job.recovering
            starts.add(job.job_id)
        elif NOW - job.since >= timedelta(minutes=30):
            overdue.append(needs)
    return starts


@given(
    node=st.tuples(st.integers(0, 16), st.integers(0, 4)),
    gangs=st.lists(GANGS, max_size=4),
    jobs=queues(most=10),
    limit=st.sampled_from([None, 1, 2, 3]),
)
@settings(max_examples=300, deadline=None, print_blob=True)
def test_random_queues_on_one_node_start_exactly_who_the_rules_say(node, gangs, jobs, limit):
    found = decided(jobs, cluster(node), running(*gangs), replace(LIMITS, running_per_user=limit))
    assert {name for name, a in found.items() if a.start} == expected(node, gangs, jobs, limit)


@given(jobs=queues(most=10), order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, print_blob=True)
def test_jobs_of_one_size_start_in_the_promised_order(jobs, order):
    left = [replace(job, spec=spec_of(1, 4, 0), not_before=None) for job in jobs]
    turns = []
    while left:
        order.shuffle(left)
        turns.append(started(left, cluster((4, 0))))
        left = [job for job in left if job.job_id != turns[-1]]
    assert turns == [job.job_id for job in in_turn(jobs)]


# --- over time --------------------------------------------------------------------------------------------------------

BOUND, LONGEST = 5, 4
"""Minutes for which a job may be passed, and that an attempt lasts at most."""


@dataclass
class Simulation:
    """Ray with attempts that end, minute by minute. What it has no room for it starts when it has."""

    room: Room
    pending: list[tuple[str, Gang, int]] = field(default_factory=list)
    placed: dict[str, tuple[Gang, list[int], int]] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    """The minute of each attempt's start."""

    def running(self) -> list[Running]:
        known = [
            Running(name, "alice", needs, [f"node-{n}" for n in places])
            for name, (needs, places, _) in self.placed.items()
        ]
        return known + [Running(name, "alice", needs) for name, needs, _ in self.pending]

    def end_those_due(self, minute: int) -> None:
        for name, (needs, places, end) in list(self.placed.items()):
            if end <= minute:
                self.room = added(self.room, places, needs)
                del self.placed[name]

    def place(self, minute: int) -> None:
        still: list[tuple[str, Gang, int]] = []
        for name, needs, lasts in self.pending:
            places = by_ray(self.room, needs)
            if places is None:
                still.append((name, needs, lasts))
                continue
            self.room = added(self.room, places, needs, -1)
            self.placed[name] = (needs, places, minute + lasts)
            self.begun[name] = minute
        self.pending = still


def simulate(nodes: list[tuple[int, int]], gangs: list[Gang], lasts: list[int], small: Gang) -> tuple[list[str], dict]:
    """Jobs that all wait from the beginning, and a small one that comes every minute.

    Gives the names of the first that can run at all, in their order, and when each began.
    """
    shape, ray, limits = cluster(*nodes), Simulation(tuple(nodes)), Limits(None, BOUND * 60.0)
    queue = {f"job-{n}": waiting(f"job-{n}", g.cpus, g.workers, g.gpus) for n, g in enumerate(gangs)}
    possible = [name for name, job in queue.items() if can_place(tuple(nodes), gang(job.spec))]
    for minute in range(BOUND + LONGEST * (len(gangs) + 1) + 1):
        moment, newcomer = NOW + timedelta(minutes=minute), f"small-{minute:02}"
        queue[newcomer] = replace(waiting(newcomer, small.cpus, small.workers, small.gpus), since=moment)
        ray.end_those_due(minute)
        ray.place(minute)
        for admission in admit(list(queue.values()), ray.running(), shape, moment, limits):
            if admission.start:
                needs = gang(queue.pop(admission.job_id).spec)
                ray.pending.append((admission.job_id, needs, lasts[len(ray.begun) % len(lasts)]))
        ray.place(minute)
    return possible, ray.begun


TIMES = st.lists(st.integers(1, LONGEST), min_size=1, max_size=7)


@given(nodes=NODES, gangs=st.lists(GANGS, min_size=1, max_size=5), lasts=TIMES, small=GANGS)
@settings(max_examples=150, deadline=None, print_blob=True)
def test_every_job_that_can_run_starts_within_its_bound_and_the_time_to_drain(nodes, gangs, lasts, small):
    possible, begun = simulate(nodes, gangs, lasts, small)
    for number, name in enumerate(possible):
        assert begun[name] <= BOUND + LONGEST * (number + 1)


# --- who waits, by the database ---------------------------------------------------------------------------------------


def test_queued_and_recovering_jobs_wait(database):
    for state in ("queued", "starting", "running", "recovering", "paused", "succeeded"):
        add_job(database, state, id=state)
    with database.read() as session:
        assert [job.id for job in repository.waiting(session)] == ["queued", "recovering"]


def test_recovering_jobs_come_first_then_priority_then_the_longest_waiting():
    jobs = [
        waiting("new", minutes=1),
        waiting("old", minutes=2),
        waiting("urgent", priority=5),
        waiting("lesser", minutes=9, priority=-5),
        waiting("recovering", priority=-9, recovering=True),
    ]
    assert started(jobs, cluster((8, 0))) == "recovering urgent old new lesser"
