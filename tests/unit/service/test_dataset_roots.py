"""Where datasets may lie: told by the settings, asked of specs, and looked at where the files are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import token_of
from fastapi.testclient import TestClient
from loops import make_spec
from PIL import Image
from pydantic import ValidationError
from service_fakes import SPEC, add_job, job_of, problem, spec_with
from service_world import World

from service.app import attach
from service.settings import Settings
from trainer.data.cache import Cache
from trainer.data.sources import find_files
from trainer.errors import DataError
from trainer.spec.base import SpecError
from trainer.spec.dataset import DIGITS, DatasetSpec, misplaced
from trainer.storage import Store
from trainer.training.context import WorkerContext
from trainer.training.loop import pretrain

ROOTS = ("/data", "s3://datasets/public", "builtin://")


# --- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("/data", True),
        ("/data/", True),
        ("/data/photos", True),
        ("/data//photos", True),
        ("file:///data/photos", True),
        ("/data/*.tar", True),
        ("s3://datasets/public", True),
        ("s3://datasets/public/cifar10/train-*.parquet", True),
        (DIGITS, True),
        ("/data2", False),
        ("/data2/photos", False),
        ("/data*", False),
        ("/dat", False),
        ("/", False),
        ("//data/photos", False),
        ("/etc/passwd", False),
        ("file:///etc", False),
        ("s3://datasets", False),
        ("s3://datasets/publicity", False),
        ("s3://datasets/public*", False),
        ("s3://datasets//public/x", False),
        ("s3://datasets/private", False),
        ("s3://datasets2/public", False),
        ("s3://data", False),
    ],
)
def test_a_dataset_lies_below_a_root_by_whole_parts_of_its_path(uri, inside):
    dataset = DatasetSpec(uri=uri)
    assert misplaced(dataset, "dataset", None) is None
    found = misplaced(dataset, "dataset", ROOTS)
    assert (found is None) == inside
    if found:
        assert (found.field, found.pointer, found.value) == ("dataset.uri", "/dataset/uri", dataset.uri)
        assert all(root in found.message for root in ROOTS)


def test_no_root_allows_everything_but_anything():
    assert misplaced(DatasetSpec(uri=DIGITS), "dataset", ("/data",)) is not None
    assert misplaced(DatasetSpec(uri="/anything"), "dataset", ("/",)) is None
    assert misplaced(DatasetSpec(uri="s3://one/x"), "dataset", ("s3://one",)) is None
    assert misplaced(DatasetSpec(uri="s3://other/x"), "dataset", ("s3://one/",)) is not None


CLIMBING = [
    "/data/../etc",
    "/data/..",
    "file:///data/../../etc/passwd",
    "/data/%2e%2e/etc",
    "/data/.%2E/etc",
    "/data/..%2fetc",
    "/data%2f..%2fetc",
    "/data/%00",
    "s3://datasets/public/../private",
    "s3://datasets/public/%2e%2e/private",
]


def test_a_path_that_climbs_is_refused_whatever_the_roots(api):
    for uri in CLIMBING:
        (found,) = problem(api.post("/v1/jobs", json=spec_with(dataset={"uri": uri})), 422, "spec_invalid")["problems"]
        assert (found["pointer"], found["value"]) == ("/dataset/uri", uri)
        assert ".." in found["message"]


# --- the setting ------------------------------------------------------------------------------------------------------


def roots_of(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...] | None:
    monkeypatch.setenv("RCMAE_DATASET_ROOTS", text)
    return Settings(database_url="sqlite:////tmp/x.db", artifact_root="/tmp").dataset_roots


def test_the_setting_is_a_list(monkeypatch):
    assert roots_of("/data, s3://datasets/public,builtin://", monkeypatch) == ROOTS
    assert roots_of("file:///data,", monkeypatch) == ("file:///data",)
    assert roots_of("", monkeypatch) is None, "as if it were not set"


@pytest.mark.parametrize(
    "root", ["data", "gs://x", "s3://", "s3:///x", "file://data", "/data/../etc", "/data/*", "/a%2f"]
)
def test_a_root_that_is_none_is_told_at_the_start(monkeypatch, root):
    with pytest.raises(ValidationError, match=r"is not a location: write /folder"):
        roots_of(f"/data,{root}", monkeypatch)


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(settings, database, ray, mlflow) -> World:
    return World(settings.model_copy(update={"dataset_roots": ROOTS}), database, ray, mlflow)


@pytest.fixture
def served(routes, narrow) -> TestClient:
    """Alice's client of a service with roots."""
    attach(routes, narrow.app_state, None)
    return TestClient(routes, headers={"Authorization": f"Bearer {token_of('alice')}"})


OUTSIDE: dict[str, Any] = {"uri": "file:///home/somebody"}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/plan"])
def test_a_spec_outside_is_refused_with_field_value_and_roots(served, path):
    assert served.post(path, json=SPEC).status_code < 300
    for spec, field in (
        (spec_with(dataset=OUTSIDE), "dataset"),
        (spec_with(evaluation={"dataset": OUTSIDE}), "evaluation.dataset"),
    ):
        body = problem(served.post(path, json=spec), 422, "spec_invalid")
        (found,) = body["problems"]
        assert (found["field"], found["value"]) == (f"{field}.uri", OUTSIDE["uri"])
        assert found["pointer"] == f"/{field.replace('.', '/')}/uri"
        for named in (f"{field}.uri", OUTSIDE["uri"], *ROOTS):
            assert named in body["detail"]


@pytest.mark.parametrize(("verb", "state"), [("resume", "paused"), ("retry", "failed")])
def test_a_job_whose_data_lies_outside_now_does_not_go_on(served, database, verb, state):
    job_id = add_job(database, state, spec=spec_with(dataset=OUTSIDE))
    (found,) = problem(served.post(f"/v1/jobs/{job_id}/{verb}"), 422, "spec_invalid")["problems"]
    assert found["field"] == "dataset.uri"
    assert job_of(database, job_id).state == state
    assert served.post(f"/v1/jobs/{add_job(database, state)}/{verb}").status_code == 200


def test_an_attempt_is_told_the_roots(narrow):
    narrow.add()
    narrow.rounds()
    assert [request.dataset_roots for request in narrow.ray.requests] == [ROOTS]


# --- where the files are ----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A root with a folder of two pictures, and a secret one beside the root."""
    for folder in ("data/photos/cats", "private"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
    return tmp_path / "data"


def listed(uri: Path | str, *roots: Path | str) -> list[str]:
    return list(find_files(DatasetSpec(uri=str(uri)), [str(root) for root in roots]).names)


def test_files_below_a_root_are_listed(data):
    names = ["cats/a.png", "cats/b.png"]
    assert listed(data / "photos", data) == listed(data / "photos", "s3://x", f"file://{data}/photos") == names
    assert listed(data / "photos", "/") == names
    assert list(find_files(DatasetSpec(uri=f"{data}/photos")).names) == names


def test_links_that_stay_below_the_roots_are_followed(data, tmp_path):
    (data / "photos/dogs").symlink_to(data / "photos/cats")
    (data / "photos/c.png").symlink_to("cats/a.png")
    assert len(listed(data / "photos", data)) == 5
    (tmp_path / "mount").symlink_to(data)
    assert len(listed(tmp_path / "mount/photos", tmp_path / "mount")) == 5, "the root may be a link itself"
    (data / "pets").mkdir()
    (data / "pets/cats").symlink_to(data / "photos/cats")
    assert len(listed(data / "pets", data / "pets", data / "photos")) == 2, "from one root into another"
    with pytest.raises(DataError, match="outside"):
        listed(data / "pets", data / "pets")


@pytest.mark.parametrize("link", ["photos/evil", "photos/cats/evil", "photos/evil.png", "evil"])
def test_a_link_that_leads_outside_ends_the_job(data, tmp_path, link):
    (data / link).symlink_to(tmp_path / ("private/a.png" if link.endswith(".png") else "private"))
    with pytest.raises(DataError, match=r"dataset.uri: .*evil.* leads to .*private.*outside"):
        listed(data / ("evil" if link == "evil" else "photos"), data)


def test_other_ways_out_end_the_job_too(data, tmp_path):
    (data / "chain").symlink_to(data / "next")
    (data / "next").symlink_to(tmp_path / "private")
    (data / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (data / "one.png").symlink_to(tmp_path / "private/a.png")
    (data / "up").symlink_to("..")
    for uri in (data / "chain", data / "chain/a.png", data / "dangling.png", data / "one.png", data / "up/private"):
        with pytest.raises(DataError, match="outside"):
            listed(uri, data)
    (data / "dangling.png").unlink()


def test_a_dataset_outside_the_roots_ends_the_job_though_nobody_asked_before(data, tmp_path):
    """As one that was submitted before there were roots."""
    with pytest.raises(DataError, match="must be below"):
        listed(tmp_path / "private", data)
    shutil.copytree(tmp_path / "private", tmp_path / "data2")
    with pytest.raises(DataError, match="must be below"):
        listed(tmp_path / "data2", data)


def test_the_loop_looks_at_the_roots_that_its_attempt_was_told(data, tmp_path):
    (data / "photos/evil.png").symlink_to(tmp_path / "private/a.png")
    spec = make_spec(dataset={"uri": str(data / "photos")}, model={"in_chans": 3})
    run = WorkerContext(
        Store(str(tmp_path / "run")), attempt=1, since_attempt=1, recorder=None, cache=Cache(tmp_path / "cache")
    )
    with pytest.raises(DataError, match=r"evil.png leads to .*private"):
        pretrain(spec, replace(run, dataset_roots=(str(data),)))
    with pytest.raises(SpecError, match="global_batch_size"):  # it goes on, to find too few of them
        pretrain(spec, run)
