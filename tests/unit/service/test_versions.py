"""Rows of registered versions: written with their job, compared with MLflow, and changed by one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from backbone_files import FILES, WEIGHTS, Registry, compare_with_mlflow, write
from fastapi.testclient import TestClient
from service_fakes import add_job, job_of, problem, spec_with
from sqlalchemy import delete

from service.auth.caller import Caller, Role
from service.backbones import service
from service.db.tables import RegistryCheck
from service.http.problems import ApiProblem
from service.jobs.service import delete_job
from service.jobs.work import Work
from trainer.protocol.outcome import Outcome, Reason

BASE = "/v1/backbones"
ALICE = Caller("alice", Role.SUBMITTER)


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def numbers(api: TestClient, name: str = "digits") -> tuple[list[int], list[int]]:
    """The versions that can be pulled, and those that are gone."""
    shown = api.get(f"{BASE}/{name}").json()
    return shown["versions"], shown["gone"]


# --- two requests at once ---------------------------------------------------------------------------------------------


def at_once(*requests: Callable[[], object]) -> list[int]:
    """The status of each of several requests that begin together: 200, or that of its problem."""
    barrier = threading.Barrier(len(requests))

    def run(request: Callable[[], object]) -> int:
        barrier.wait()
        try:
            request()
        except ApiProblem as error:
            return error.status
        return 200

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(run, requests))


@pytest.mark.both_databases
@pytest.mark.parametrize("what", ["version", "job"])
def test_a_version_is_deleted_or_gets_an_alias_and_never_both(world, served, registry, mlflow, what):
    """Whichever comes second is refused, and a version that has its alias keeps its files."""
    kept = 0
    for number in range(1, 9):
        name = f"digits-{number}"
        registry.add(name)

        def remove(name: str = name) -> object:
            if what == "version":
                return service.delete_version(world.app_state, ALICE, name, 1)
            return delete_job(world.app_state, ALICE, registry.jobs[name], with_backbones=True)

        def point(name: str = name) -> object:
            return service.set_alias(world.app_state, ALICE, name, "champion", 1)

        statuses = at_once(remove, point)
        assert statuses in ([200, 404], [409, 200]), name
        world.rounds()
        found = served.get(f"{BASE}/{name}/versions/champion")
        assert found.status_code == (200 if statuses[1] == 200 else 404)
        assert registry.folder(name, 1).exists() == (statuses[1] == 200)
        assert mlflow.all_aliases().get(name, {}) == ({"champion": 1} if statuses[1] == 200 else {})
        kept += statuses[1] == 200
    assert len(mlflow.registered) == kept


@pytest.mark.both_databases
def test_of_two_aliases_at_once_mlflow_has_the_one_that_the_service_has(world, served, registry, mlflow):
    for number in (1, 2):
        registry.add(number=number)
    for _ in range(4):
        moves = [lambda n=n: service.set_alias(world.app_state, ALICE, "digits", "champion", n) for n in (1, 2)]
        assert at_once(*moves) == [200, 200]
        assert mlflow.all_aliases()["digits"] == served.get(f"{BASE}/digits").json()["aliases"]


def test_a_version_that_is_registered_after_its_jobs_deletion_goes_too(world, served, registry, mlflow, root):
    registry.add()
    job_id = registry.jobs["digits"]
    assert served.delete(f"/v1/jobs/{job_id}?with_backbones=true").status_code == 200
    late = write(root / "late" / "artifacts", FILES)
    mlflow.register("digits", 2, job_id, late)
    world.compare_versions()
    problem(served.get(f"{BASE}/digits/versions/2"), 404, "version_not_found")
    world.rounds()
    assert mlflow.registered == []
    assert not late.exists()


# --- while MLflow is away ---------------------------------------------------------------------------------------------


def test_everything_is_read_and_changed_while_mlflow_is_away(served, world, registry, mlflow):
    for number in (1, 2):
        registry.add(number=number)
    mlflow.reachable = False
    assert [item["name"] for item in served.get(BASE).json()["items"]] == ["digits"]
    assert served.get(f"{BASE}/digits/versions/2/files/hf/model.safetensors").content == WEIGHTS
    assert served.get("/hf/rcmae/digits/resolve/v1/config.json").status_code == 200
    assert served.put(f"{BASE}/digits/aliases/best", json={"version": 1}).json()["aliases"] == {"best": 1}
    assert served.put(f"{BASE}/digits/aliases/old", json={"version": 1}).status_code == 200
    assert served.delete(f"{BASE}/digits/aliases/old").json()["aliases"] == {"best": 1}
    assert served.delete(f"{BASE}/digits/versions/2").status_code == 200
    world.rounds()
    mlflow.reachable = True
    world.rounds()
    world.compare_versions()
    assert mlflow.all_aliases()["digits"] == {"best": 1}
    assert [version.version for version in mlflow.registered] == [1]


# --- compared with MLflow ---------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_after_an_upgrade_lists_wait_until_all_versions_are_read_and_nothing_is_missing(
    served, world, registry, mlflow
):
    for number in range(1, 4):
        registry.add(number=number)
    older = add_job(world.database, "succeeded", spec=spec_with(register_as="cats"))
    mlflow.register("cats", 7, older, registry.folder("digits", 1))
    mlflow.set_alias("cats", "Best.Of", 7)
    with world.database.session() as session:
        session.execute(delete(RegistryCheck))  # as a migration leaves it
    for path in (BASE, f"{BASE}/cats", f"{BASE}/cats/versions/7", "/hf/api/models/rcmae/cats"):
        detail = problem(served.get(path), 503, "unavailable")["detail"]
        assert "the controller is reading the registered versions" in detail
    problem(served.put(f"{BASE}/digits/aliases/a", json={"version": 1}), 503, "unavailable")
    problem(served.delete(f"/v1/jobs/{older}"), 503, "unavailable")
    mlflow.reachable = False
    world.reconciler.removals.run_all((Work.COMPARE_VERSIONS,))
    problem(served.get(BASE), 503, "unavailable")
    mlflow.reachable = True
    world.rounds()
    world.reconciler.removals.run_all((Work.COMPARE_VERSIONS,))
    assert [item["name"] for item in served.get(BASE).json()["items"]] == ["cats", "digits"]
    shown = served.get(f"{BASE}/cats").json()
    assert (shown["versions"], shown["aliases"]) == ([7], {"Best.Of": 7}), "with the alias that MLflow had"
    problem(served.delete(f"/v1/jobs/{older}"), 409, "backbones_would_go")


@pytest.mark.both_databases
def test_a_version_that_somebody_deleted_in_mlflow_is_shown_as_gone(served, world, registry, mlflow):
    for number in (1, 2):
        registry.add(number=number)
    deleted = mlflow.registered.pop()
    world.compare_versions()
    assert numbers(served) == ([1], [2])
    assert [each["state"] for each in served.get(f"{BASE}/digits").json()["details"]] == ["gone", "ready"]
    assert served.get(f"{BASE}/digits/versions/latest").json()["version"] == 1
    for path in ("2", "2/files/hf/model.safetensors", "2/archive"):
        assert "digits:2 was deleted in MLflow" in problem(
            served.get(f"{BASE}/digits/versions/{path}"), 410, "version_gone"
        )["detail"]  # fmt: skip
    hub = served.get("/hf/rcmae/digits/resolve/v2/config.json")
    assert "digits:2 was deleted in MLflow" in problem(hub, 404, "revision_not_found")["detail"]
    problem(served.put(f"{BASE}/digits/aliases/best", json={"version": 2}), 410, "version_gone")
    job_id = registry.jobs["digits"]
    problem(served.delete(f"/v1/jobs/{job_id}"), 409, "backbones_would_go")
    assert [
        each["version"] for each in served.delete(f"/v1/jobs/{job_id}", params={"preview": True}).json()["backbones"]
    ] == [1, 2]
    mlflow.registered.append(deleted)  # from a backup of MLflow's database
    world.compare_versions()
    assert numbers(served) == ([1, 2], [])
    mlflow.registered.remove(deleted)
    world.compare_versions()
    assert served.delete(f"{BASE}/digits/versions/2").status_code == 200
    world.rounds()
    assert numbers(served) == ([1], [])
    assert not registry.folder("digits", 2).exists()


def test_a_champion_that_is_gone_is_not_replaced_by_other_weights(served, world, registry, mlflow):
    for number in (1, 2):
        registry.add(number=number)
    registry.set_alias("digits", "champion", 1)
    mlflow.delete_version("digits", 1, mlflow.registered[0].source)
    world.compare_versions()
    assert served.get(f"{BASE}/digits").json()["main_version"] == 1
    for reference in ("main", "champion"):
        problem(served.get(f"{BASE}/digits/versions/{reference}"), 410, "version_gone")
    assert served.put(f"{BASE}/digits/aliases/champion", json={"version": 2}).status_code == 200
    assert served.get(f"{BASE}/digits/versions/main").json()["version"] == 2
    assert mlflow.all_aliases()["digits"] == {"champion": 2}


def test_aliases_that_somebody_changed_in_mlflow_are_reset(served, world, registry, mlflow):
    for number in (1, 2):
        registry.add(number=number)
    mlflow.register("digits", 3, None, registry.folder("digits", 1))  # somebody else's
    for alias in ("champion", "old"):
        registry.set_alias("digits", alias, 1)
    mlflow.set_alias("digits", "champion", 2)
    mlflow.set_alias("digits", "mine", 2)
    mlflow.set_alias("digits", "theirs", 3)
    mlflow.delete_alias("digits", "old")
    world.compare_versions()
    assert served.get(f"{BASE}/digits").json()["aliases"] == {"champion": 1, "old": 1}
    assert mlflow.all_aliases()["digits"] == {"champion": 1, "old": 1, "theirs": 3}


def test_what_an_old_list_of_mlflow_says_undoes_nothing(served, world, registry, mlflow, monkeypatch):
    """A deletion and a registration that happen while MLflow's versions are being listed."""
    for number in (1, 2):
        registry.add(number=number)
    listed = mlflow.all_versions()

    def old_list() -> object:
        monkeypatch.undo()
        service.delete_version(world.app_state, ALICE, "digits", 2)
        world.rounds()
        assert [version.version for version in mlflow.registered] == [1]
        registry.add(number=3)
        return listed

    monkeypatch.setattr(mlflow, "all_versions", old_list)
    world.compare_versions()
    assert numbers(served) == ([1, 3], [])
    world.compare_versions()
    assert numbers(served) == ([1, 3], [])
    mlflow.registered.append(listed[1])  # from a backup of MLflow's database; its files are removed
    world.compare_versions()
    assert numbers(served) == ([1, 3], [])


def test_a_number_that_mlflow_has_given_again_means_the_new_version(served, world, registry, mlflow, root, database):
    """As after somebody has deleted the whole registered model in MLflow."""
    registry.add()
    registry.set_alias("digits", "champion", 1)
    mlflow.registered.clear()
    mlflow.named.clear()
    second = add_job(database, "succeeded", spec=spec_with(register_as="digits"))
    mlflow.register("digits", 1, second, write(root / "second" / "artifacts", FILES))
    world.compare_versions()
    shown = served.get(f"{BASE}/digits").json()
    assert (shown["versions"], shown["aliases"]) == ([1], {}), "the alias stood for other weights"
    assert shown["details"][0]["job_id"] == second


def test_tags_that_change_in_mlflow_are_shown(served, world, registry):
    version = registry.add(method="mae")
    version.tags["note"] = "the best so far"
    world.compare_versions()
    assert served.get(f"{BASE}/digits/versions/1").json()["tags"]["note"] == "the best so far"


def test_a_version_of_an_attempt_that_failed_later_is_there_when_the_job_has_ended(served, world, mlflow, root):
    job_id = world.running(spec=spec_with(register_as="digits", retry={"max_failures": 0}))
    mlflow.register("digits", 1, job_id, write(root / "m-1", FILES))
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR), ray="FAILED")
    world.rounds()
    assert job_of(world.database, job_id).state == "failed"
    assert numbers(served) == ([1], [])
    problem(served.delete(f"/v1/jobs/{job_id}"), 409, "backbones_would_go")


def test_a_comparison_asks_mlflow_no_question_a_version(api, database, mlflow, root, monkeypatch):
    """Nor do lists afterwards, in a process that has just started."""
    job_id = add_job(database, "succeeded", spec=spec_with(register_as="digits"))
    for number in range(1, 31):
        mlflow.register("digits", number, job_id, root / "models")
    asked: list[str] = []
    for name in ("all_versions", "all_models", "folders", "versions_of_job", "set_alias", "delete_alias", "describe"):
        original = getattr(mlflow, name)
        monkeypatch.setattr(mlflow, name, lambda *args, n=name, f=original: asked.append(n) or f(*args))
    compare_with_mlflow(database, mlflow)
    assert asked == ["all_versions", "all_models", "folders"]
    compare_with_mlflow(database, mlflow)
    assert asked[3:] == ["all_versions", "all_models"]
    assert len(numbers(api)[0]) == 30
    assert asked[5:] == []
