"""Removing what jobs left from a real MLflow store, with real files."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow_files import copy_run, remove_for_good, tracking_store
from service_fakes import events_of, job_of, spec_with
from service_world import World
from sqlalchemy import select

from service.adapters.mlflow_connection import MlflowRefused
from service.adapters.mlflow_runs import EXPERIMENT
from service.adapters.mlflow_store import MlflowStore
from service.auth.caller import Caller
from service.auth.scopes import Role
from service.backbones import service as backbones
from service.backbones.filters import Filters
from service.db.tables import Job
from service.http.problems import ApiProblem
from service.jobs.service import delete_job, deletion
from trainer.protocol import names
from trainer.protocol.command import SearchOrders

pytestmark = pytest.mark.both_databases

ALICE = Caller("alice", Role.SUBMITTER)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def uri(place: Path) -> Iterator[str]:
    """A real tracking store in a file; its runs' artifacts lie below the artifact root."""
    (place / "artifacts").mkdir()
    with tracking_store(place, place / "artifacts" / "1") as uri:
        yield uri


@pytest.fixture
def root(place: Path) -> Path:
    return place / "artifacts"


@pytest.fixture
def store(uri: str) -> MlflowStore:
    return MlflowStore(uri)


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


@pytest.fixture
def world(settings, database, ray, store) -> World:
    return World(settings, database, ray, store)


def registered(client: MlflowClient, name: str, job_id: str) -> Path:
    """A version of a job's backbone, as an attempt makes it; gives its folder."""
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    model = client.create_logged_model(experiment, name="backbone")
    client.create_registered_model(name)
    client.create_model_version(name, f"models:/{model.model_id}", tags={names.TAG_JOB: job_id})
    folder = Path(model.artifact_location)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text("{}")
    return folder


def test_a_run_is_deleted_once(store, client, root):
    run_id, folder = store.make_run("job-run", "digits", {})
    for _ in range(2):
        store.delete_run(run_id)
        assert client.get_run(run_id).info.lifecycle_stage == LifecycleStage.DELETED
    store.delete_run("0123456789abcdef0123456789abcdef")
    assert Path(folder).is_relative_to(root)


def test_a_run_that_somebody_deleted_by_hand_is_restored_for_the_next_attempt(store, client):
    first = store.make_run("job-hand", "digits", {})
    client.delete_run(first[0])
    with pytest.raises(MlflowRefused):
        store.fence(first[0], 2)
    assert store.make_run("job-hand", "digits", {}) == first
    store.fence(first[0], 2)
    assert client.get_run(first[0]).info.lifecycle_stage == LifecycleStage.ACTIVE


@pytest.mark.parametrize("fate", ["there", "deleted", "gone"])
def test_a_job_resumes_in_its_own_folder_whatever_became_of_its_run_and_of_copies_of_it(world, client, fate):
    job_id = world.add()
    world.rounds()
    before = job_of(world.database, job_id)
    copy = copy_run(client, before.run_id)
    if fate == "deleted":
        client.delete_run(before.run_id)
    elif fate == "gone":
        remove_for_good(client, before.run_id)
    world.end_attempt(job_id, None, ray="FAILED")
    world.rounds(2)  # it is accepted, then over
    world.due(job_id)
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.attempts, job.artifact_uri) == ("starting", 2, before.artifact_uri)
    assert world.ray.requests[-1].artifact_uri == before.artifact_uri
    assert job.run_id != copy
    assert (job.run_id != before.run_id) == (fate == "gone")
    assert ("MLflow run was removed" in events_of(world.database, job_id)[-1].message) == (fate == "gone")
    run = client.get_run(job.run_id)
    assert (run.info.lifecycle_stage, run.data.tags[names.TAG_ATTEMPT]) == (LifecycleStage.ACTIVE, "2")


def test_a_run_that_is_not_there_is_gone_and_needs_no_end(store):
    view = store.run("0123456789abcdef0123456789abcdef")
    assert (view.gone, view.tags, view.metrics) == (True, {}, {})
    store.end_run("0123456789abcdef0123456789abcdef", "FINISHED")
    with pytest.raises(MlflowRefused, match="0123"):
        store.fence("0123456789abcdef0123456789abcdef", 1)


def test_a_deleted_run_is_not_gone_and_stays_as_it_is(store, client):
    run_id, _ = store.make_run("job-deleted", "digits", {})
    store.delete_run(run_id)
    store.end_run(run_id, "FINISHED")
    assert not store.run(run_id).gone
    assert client.get_run(run_id).info.status == "RUNNING"


def test_a_version_is_deleted_with_the_logged_model_behind_it(store, client):
    folder = registered(client, "cats", "job-cats")
    (version,) = store.versions_of_job("cats", "job-cats")
    for _ in range(2):
        store.delete_version("cats", 1, version.source)
        assert store.versions_of_job("cats", "job-cats") == []
        assert store.folders([version]) == {}
    assert (folder / "spec.json").exists()


def test_a_version_whose_model_is_gone_is_deleted_too(store, client):
    registered(client, "dogs", "job-dogs")
    (version,) = store.versions_of_job("dogs", "job-dogs")
    client.delete_logged_model(version.source.removeprefix("models:/"))
    store.delete_version("dogs", 1, version.source)
    assert store.versions_of_job("dogs", "job-dogs") == []


def test_a_version_that_has_another_ones_number_is_not_deleted_for_it(store, client):
    """MLflow counts from 1 again once somebody has deleted the whole registered model."""
    registered(client, "mice", "job-before")
    (before,) = store.versions_of_job("mice", "job-before")
    client.delete_registered_model("mice")
    registered(client, "mice", "job-after")
    store.delete_version("mice", 1, before.source)
    (after,) = store.versions_of_job("mice", "job-after")
    assert after.version == before.version
    assert store.folders([before, after]).keys() == {after.source}


def test_open_runs_are_those_of_jobs_that_are_marked_as_running_or_paused(store, client):
    runs = {status: store.make_run(f"job-{status}", "digits", {})[0] for status in ("FINISHED", "KILLED", "FAILED")}
    for status, run_id in runs.items():
        store.end_run(run_id, status)
    gone = store.make_run("job-gone", "digits", {})[0]
    store.delete_run(gone)
    own = client.create_run(client.get_experiment_by_name(EXPERIMENT).experiment_id).info.run_id
    open_, _ = store.make_run("job-open", "digits", {})
    paused, _ = store.make_run("job-paused", "digits", {})
    store.end_run(paused, "SCHEDULED")
    found = {run.run_id: run for run in store.open_runs()}
    assert {open_, paused} <= set(found)
    assert found[open_].job_id == "job-open"
    assert found[open_].started_at.timestamp() == pytest.approx(client.get_run(open_).info.start_time / 1000)
    assert not {*runs.values(), gone, own} & set(found)


def test_a_trials_run_is_found_by_its_search_and_is_open_until_it_ends(store, client):
    search, _ = store.make_run("job-search", "tune", {})
    store.make_run("job-beside", "tune", {})
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = {names.TAG_TRIAL_OF: "job-search", names.TAG_PARENT: search}
    runs = [client.create_run(experiment, tags=tags | {names.TAG_TRIAL: str(number)}).info for number in range(3)]
    store.end_run(runs[0].run_id, "FINISHED")
    store.delete_run(runs[1].run_id)
    found = {run.run_id: run.artifact_uri for run in store.trial_runs("job-search")}
    assert found == {run.run_id: run.artifact_uri for run in runs}, "a deleted one's files may be there still"
    assert store.trial_runs("job-beside") == []
    client.set_tag(runs[2].run_id, names.TAG_STEPS, "90")
    client.set_tag(runs[2].run_id, names.heartbeat(1), "12.5")
    views = store.views([run.run_id for run in runs])
    assert set(views) == {runs[0].run_id, runs[2].run_id}, "the other one is deleted"
    assert (views[runs[2].run_id].tags[names.TAG_STEPS], views[runs[2].run_id].heartbeat(1)) == ("90", 12.5)
    assert store.views([]) == {}
    open_ = {run.run_id: run for run in store.open_runs()}
    assert (open_[runs[2].run_id].job_id, open_[runs[2].run_id].trial) == ("job-search", True)
    assert (open_[search].job_id, open_[search].trial) == ("job-search", False)
    assert not {runs[0].run_id, runs[1].run_id} & set(open_)
    assert store.make_run("job-search", "tune", {})[0] == search, "and never one of its trials"


def test_what_a_search_is_told_replaces_what_it_was_told_before(store):
    run_id, _ = store.make_run("job-told", "tune", {})
    for orders in (
        SearchOrders(trials=4, concurrency=2, max_failed=1),
        SearchOrders(trials=9, concurrency=1, max_failed=1),
    ):
        store.order(run_id, orders)
        assert SearchOrders.model_validate_json(store.run(run_id).tags[names.TAG_SEARCH]) == orders


def test_a_fence_names_the_attempt_that_counts_and_clears_the_trouble_of_the_one_before(store, client):
    run_id, _ = store.make_run("job-fence", "digits", {})
    store.fence(run_id, 1)
    client.set_tag(run_id, names.TAG_NOTICE, "The checkpoint was not stored.")
    assert store.run(run_id).tags[names.TAG_ATTEMPT] == "1"
    store.fence(run_id, 2)
    tags = store.run(run_id).tags
    assert (tags[names.TAG_ATTEMPT], tags[names.TAG_NOTICE]) == ("2", "")


def test_a_job_goes_with_its_run_version_and_files(world, store, client, root):
    name = "birds-sqlite" if world.database.is_sqlite else "birds-postgres"
    job_id = world.add(spec=spec_with(register_as=name))
    world.rounds()
    with world.database.session() as session:
        job = session.scalar(select(Job).where(Job.id == job_id))
        job.state = "succeeded"
        run_id, folder = job.run_id, Path(job.artifact_uri)
        world.ray.jobs[f"{job_id}-a1"] = world.ray.jobs[f"{job_id}-a1"].__class__("SUCCEEDED")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "a.png").write_bytes(b"123")
    model = registered(client, name, job_id)
    world.compare_versions()
    told = deletion(world.app_state, ALICE, job_id)
    assert (told.files, told.bytes) == (2, 5)
    assert [(backbone.name, backbone.version) for backbone in told.backbones] == [(name, 1)]
    delete_job(world.app_state, ALICE, job_id, with_backbones=True)
    world.rounds()
    assert client.get_run(run_id).info.lifecycle_stage == LifecycleStage.DELETED
    assert store.versions_of_job(name, job_id) == []
    with pytest.raises(MlflowException):
        client.get_logged_model(model.parent.name)
    assert not [path for path in root.rglob("*") if run_id in str(path) or path.is_relative_to(model.parent)]
    with world.database.read() as session:
        assert session.get(Job, job_id) is None
    world.rounds()


def test_a_deleted_version_leaves_neither_mlflow_nor_files(world, store, client):
    name = f"owls-{secrets.token_hex(4)}"
    job_id = world.add(state="succeeded", spec=spec_with(register_as=name))
    folder = registered(client, name, job_id)
    (folder / names.BACKBONE_SUMS).write_text("")
    world.compare_versions()
    backbones.set_alias(world.app_state, ALICE, name, "champion", 1)
    assert store.all_models()[name].aliases == {"champion": 1}
    with pytest.raises(ApiProblem, match=f"has the alias {name}@champion"):
        backbones.delete_version(world.app_state, ALICE, name, 1)
    assert backbones.delete_alias(world.app_state, ALICE, name, "champion").aliases == {}
    assert backbones.delete_version(world.app_state, ALICE, name, 1).files == 2
    with pytest.raises(ApiProblem, match="there is no backbone"):
        backbones.show(world.app_state, ALICE, name)
    world.rounds()
    assert not folder.exists()
    assert (store.versions_of_job(name, job_id), store.all_models()[name].aliases) == ([], {})
    assert backbones.listing(world.app_state, ALICE, Filters(), None, 10, None).items == []
