"""What the machines have, who uses it and who waits for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from service_fakes import SPEC, add_job, problem, spec_with

from service.adapters.ray_cluster import Machine
from service.db.tables import Attempt, Job
from service.jobs.state import State
from trainer.spec.cluster import NodeShape

TWO = (NodeShape(4, 0, "node-a", "10.0.0.1"), NodeShape(4, 2, "node-b", "10.0.0.2"))
THEN = datetime(2026, 1, 1, tzinfo=UTC)


def needing(workers: int, cpus: int = 1, gpus: int = 0) -> dict[str, Any]:
    return spec_with(resources={"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus})


def add_running(database, spec, **fields):
    """A job with an attempt under way."""
    job_id = add_job(database, "running", spec, attempts=1, **fields)
    with database.session() as session:
        session.add(Attempt(job_id=job_id, number=1, submission_id=f"{job_id}-a1", state="running"))
    return job_id


def cluster(client) -> dict[str, Any]:
    answer = client.get("/v1/cluster")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_nodes_say_what_they_have_and_what_jobs_hold_of_them(clients, ray, database):
    ray.nodes = TWO
    ray.dead = (Machine(NodeShape(64, 8, "node-c", "10.0.0.3"), alive=False, message="Terminated."),)
    job_id = add_running(database, needing(2, cpus=2, gpus=1))
    ray.placed = {f"{job_id}-a1": ["node-b", "node-b"]}
    seen = cluster(clients.alice)
    nodes = {node.pop("id"): node for node in seen["nodes"]}
    amounts = {
        name: tuple(node[key] for key in ("cpus", "cpus_used", "cpus_free", "gpus", "gpus_used", "gpus_free"))
        for name, node in nodes.items()
    }
    assert amounts == {"node-a": (4, 0, 4, 0, 0, 0), "node-b": (4, 4, 0, 2, 2, 0), "node-c": (0, 0, 0, 0, 0, 0)}
    assert [(node["address"], node["state"]) for node in nodes.values()] == [
        ("10.0.0.1", "alive"),
        ("10.0.0.2", "alive"),
        ("10.0.0.3", "dead"),
    ]
    assert nodes["node-c"]["message"] == "Terminated."
    assert seen["totals"] == {
        "nodes": 2, "cpus": 8, "cpus_used": 4, "cpus_free": 4, "gpus": 2, "gpus_used": 2, "gpus_free": 0,
    }  # fmt: skip
    (job,) = seen["running"]
    assert (job["id"], job["owner"], job["state"], job["attempt"]) == (job_id, "alice", "running", 1)
    assert (job["workers"], job["cpus"], job["gpus"], job["nodes"]) == (2, 4, 2, ["node-b", "node-b"])
    assert seen["queue"] == []


def test_the_queue_is_the_controllers_own(world, clients):
    """Positions, reasons and messages are those that the next round writes, and who starts is who is started."""
    world.ray.nodes = TWO
    add = lambda spec, **fields: world.add(spec=spec, **fields)  # noqa: E731
    late = add(needing(4, cpus=1), waiting_since=THEN + timedelta(hours=2))
    early = add(needing(8, cpus=1), waiting_since=THEN + timedelta(hours=1))
    never = add(needing(64, cpus=1), priority=5, waiting_since=THEN)
    first = add(needing(4, cpus=1), priority=9, waiting_since=THEN + timedelta(hours=3))
    queue = cluster(clients.operator)["queue"]
    assert [(entry["position"], entry["id"]) for entry in queue] == [(1, first), (2, never), (3, early), (4, late)]
    assert [entry["starts"] for entry in queue] == [True, False, False, False]
    assert (queue[1]["cpus"], queue[1]["gpus"], queue[1]["workers"]) == (64, 0, 64)
    assert {entry["reason"] for entry in queue[1:]} == {"insufficient_resources"}
    world.rounds()
    for entry in queue:
        job = clients.operator.get(f"/v1/jobs/{entry['id']}").json()
        assert (job["state"] == "starting") == entry["starts"]
        if not entry["starts"]:
            assert (job["reason"], job["message"]) == (entry["reason"], entry["message"])


def test_a_job_that_backs_off_says_why_itself(clients, ray, database):
    soon = datetime.now(UTC) + timedelta(minutes=5)
    ray.cpus = 2
    waits = add_job(
        database, "recovering", SPEC, not_before=soon, reason="worker_failed", message="Tries again in 300 s."
    )
    behind = add_job(database, "queued", SPEC)
    queue = cluster(clients.alice)["queue"]
    assert [(entry["id"], entry["state"], entry["starts"]) for entry in queue] == [
        (waits, "recovering", False),
        (behind, "queued", False),
    ]
    assert (queue[0]["reason"], queue[0]["message"]) == ("worker_failed", "Tries again in 300 s.")
    assert waits in queue[1]["message"]


def test_others_jobs_have_a_place_and_a_size_and_no_name(clients, ray, database):
    add_running(database, needing(2), owner="alice", name="secret-run")
    add_job(database, "queued", needing(1), owner="alice", name="secret-wish", priority=1, waiting_since=THEN)
    own = add_job(database, "queued", needing(1), owner="bob", name="mine")
    ray.cpus = 2
    seen = cluster(clients.bob)
    (running,), (other, mine) = seen["running"], seen["queue"]
    for entry in (running, other):
        assert (entry["id"], entry["name"], entry["owner"]) == (None, None, None)
    assert (running["cpus"], other["position"], other["cpus"]) == (2, 1, 1)
    assert (other["message"], other["reason"]) == (None, "insufficient_resources")
    assert (mine["id"], mine["name"], mine["position"]) == (own, "mine", 2)
    assert "secret" not in str(seen)
    told = cluster(clients.operator)
    assert [entry["name"] for entry in told["running"] + told["queue"]] == ["secret-run", "secret-wish", "mine"]


def test_a_spec_that_is_none_any_more_leaves_the_others_in_the_queue(clients, database):
    broken = add_job(database, "queued")
    with database.session() as session:
        session.get_one(Job, broken).spec = {"kind": "pretrain"}
    whole = add_job(database, "queued")
    assert [entry["id"] for entry in cluster(clients.alice)["queue"]] == [whole]
    assert clients.alice.post("/v1/jobs/plan", json=SPEC).status_code == 200


def test_a_cluster_that_does_not_answer_is_told_as_such(clients, ray):
    ray.reachable = False
    assert "Ray" in problem(clients.alice.get("/v1/cluster"), 503, "unavailable")["detail"]


def test_an_empty_cluster_is_empty(clients, ray, database):
    ray.nodes = (NodeShape(0, 0, "head", "10.0.0.1"),)
    waits = add_job(database, "queued")
    seen = cluster(clients.alice)
    assert seen["totals"]["cpus"] == 0
    assert [(entry["id"], entry["state"], entry["starts"]) for entry in seen["queue"]] == [(waits, State.QUEUED, False)]
