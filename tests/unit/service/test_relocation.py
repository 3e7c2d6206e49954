"""State folders that were moved or copied: what their databases say about artifacts, with real databases."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from search_files import SEARCH
from service_fakes import add_job

from service.adapters.mlflow_store import MlflowStore
from service.adapters.studies import Studies
from service.db.database import Database
from service.db.tables import BackboneVersion
from service.embedded import relocation
from service.embedded.folder import Folder, StackError
from service.embedded.locations import require_nothing_shared
from service.embedded.relocation import relocate
from trainer.spec.search import SearchSpec
from trainer.tracking.registry import About, BackboneRegistry

NAME = "with a 'quote' and ü"
"""SQL and JSON write these in ways of their own."""


def fill(folder: Folder) -> None:
    """A job, its run, its registered backbone and a search's trial, as the service records them."""
    run_folder = Path(folder.artifact_root, "1", "run")
    run_folder.mkdir(parents=True)
    (run_folder / "weights").write_text("weights")
    database, studies = Database(folder.database_url), Studies(folder.study_url)
    database.migrate()
    trained = add_job(database, "succeeded", artifact_uri=str(run_folder), run_id="run")
    with database.session() as session:
        session.add(
            BackboneVersion(
                name="digits", version=1, state="ready", job_id=trained, owner="anna", trained_by=trained,
                dataset_uri="builtin://digits", source="models:/m-1", folder=f"{run_folder}/backbone", tags={},
                created_at=datetime.now(UTC),
            )
        )  # fmt: skip
    search = add_job(database, "succeeded", SEARCH, artifact_uri="s3://elsewhere/artifacts")
    studies.make(search, SearchSpec.parse(SEARCH))
    studies.enqueue(search, [{}], {"folder": str(run_folder), "other": f"{folder.artifact_root}-of-another/1"})
    database.close()
    studies.close()
    SqlAlchemyStore(folder.mlflow_url, folder.artifact_root)  # as the server makes it
    client = MlflowClient(folder.mlflow_url)
    experiment = client.create_experiment("rcmae", artifact_location=f"{folder.artifact_root}/1")
    run = client.create_run(experiment).info.run_id
    (folder.path / "backbone").mkdir()
    (folder.path / "backbone" / "config.json").write_text("{}")
    BackboneRegistry(folder.mlflow_url, "job", 1).register(
        "digits", folder.path / "backbone", About({}, run, {}, {}, 0)
    )


def location_of_backbone(folder: Folder) -> Path:
    store = MlflowStore(folder.mlflow_url)
    (version,) = store.all_versions()
    return Path(store.folders([version])[version.source])


def texts(folder: Folder) -> str:
    """All text of all databases."""
    found: list[str] = []
    for file in sorted(folder.path.glob("*.db")):
        with closing(sqlite3.connect(file)) as connection:
            found += connection.iterdump()
    return "\n".join(found)


@pytest.fixture
def original(tmp_path, monkeypatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    folder = Folder.at(tmp_path / NAME)
    folder.make()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folder.mlflow_url)  # its registry looks logged models up there
    fill(folder)
    folder.save(folder.load())
    return folder


def test_a_folder_that_was_moved_finds_its_artifacts(original, tmp_path, monkeypatch):
    assert relocate(original) is None
    moved = Folder(original.path.rename(tmp_path / "moved"))
    done = relocate(moved)
    assert done is not None
    assert (done.before, done.now) == (f"{original.path}/artifacts", f"{moved.path}/artifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", moved.mlflow_url)
    assert (location_of_backbone(moved) / "config.json").read_text() == "{}"
    left = [line for line in texts(moved).splitlines() if NAME.partition("'")[0] in line]
    assert len(left) == 1, left
    assert "artifacts-of-another/1" in left[0], "it lies beside the artifacts, not in them"
    assert texts(moved).count(f"{moved.path}/artifacts") == done.rows
    assert f"'{moved.path}/artifacts/1/run/backbone'" in texts(moved), "what the API serves"
    assert "s3://elsewhere/artifacts" in texts(moved)
    assert relocate(moved) is None


def test_a_relocation_that_was_interrupted_is_done_again(original, tmp_path, monkeypatch):
    moved = Folder(original.path.rename(tmp_path / "moved"))
    rewrite = relocation._rewrite

    def interrupted(url: str, before: str, now: str) -> int:
        if url == moved.mlflow_url:
            raise KeyboardInterrupt
        return rewrite(url, before, now)

    with monkeypatch.context() as patch:
        patch.setattr(relocation, "_rewrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            relocate(moved)
    assert relocate(moved) is not None
    assert f"{original.path}/artifacts/".replace("'", "''") not in texts(moved)


def test_a_copy_has_its_own_artifacts_and_the_original_is_untouched(original, tmp_path, monkeypatch):
    before = texts(original)
    copy = Folder.at(shutil.copytree(original.path, tmp_path / "copy"))
    require_nothing_shared(copy)
    assert relocate(copy) is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copy.mlflow_url)
    assert location_of_backbone(copy).is_relative_to(copy.path)
    assert texts(original) == before


def test_a_copy_without_the_artifacts_is_refused(original, tmp_path):
    """Its jobs would write into those of the original."""
    copy = Folder.at(shutil.copytree(original.path, tmp_path / "copy", ignore=shutil.ignore_patterns("artifacts")))
    with pytest.raises(StackError, match=r"artifacts, and .*copy/artifacts is empty: copy .* as well"):
        relocate(copy)


def test_another_path_to_the_same_folder_changes_nothing(original, tmp_path):
    (tmp_path / "link").symlink_to(original.path)
    assert relocate(Folder.at(tmp_path / "link")) is None


def test_an_artifact_root_in_the_folder_moves_along(original, tmp_path):
    inside, outside = original.path / "files", tmp_path / "files"
    for root, moves in ((inside, True), (outside, False)):
        original.save(original.load().model_copy(update={"artifact_root": str(root)}))
        copy = Folder.at(shutil.copytree(original.path, tmp_path / f"copy-{moves}"))
        assert copy.artifact_root == str(copy.path / "files" if moves else outside)
        if moves:
            require_nothing_shared(copy)
