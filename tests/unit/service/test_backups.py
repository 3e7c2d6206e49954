"""Backups of state folders and of Postgres databases, and what they become again."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from service_fakes import add_job, job_of
from typer.testing import CliRunner

from service.backup import databases
from service.backup.databases import copy_database, require_known, restore_postgres
from service.backup.making import Source, make_backup
from service.backup.manifest import BackupError, DatabaseCopy, file_sha256, read_manifest
from service.backup.restoring import restore_deployment, restore_stack
from service.cli import app
from service.db.database import Database
from service.db.tables import BackboneVersion, RegisteredBackbone, now
from service.embedded.folder import Folder
from service.settings import Settings


def nothing(done: int, total: int) -> None:
    """No progress is shown."""


@pytest.fixture
def folder(tmp_path) -> Folder:
    """A state folder with a job, two of its files, and MLflow's database in name only."""
    made = Folder.at(tmp_path / "state")
    made.make()
    with made.lock():
        pass
    database = Database(made.database_url)
    database.migrate()
    add_job(database, "succeeded", run_id="run", name="kept")
    database.close()
    with closing(sqlite3.connect(made.path / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        connection.execute("INSERT INTO runs VALUES ('run')")
        connection.commit()
    for name in ("1/run/weights", "1/run/log.jsonl"):
        file = Path(made.artifact_root, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    made.save(made.load())
    return made


def backed_up(folder: Folder, target: Path, *, copy_artifacts: bool = True) -> Path:
    make_backup(Source.of_stack(folder), target, nothing, copy_artifacts=copy_artifacts)
    return target


def names(folder: Folder) -> list[str]:
    """Of its jobs."""
    with closing(sqlite3.connect(folder.path / "rcmae.db")) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM job ORDER BY name")]


def test_a_destroyed_folder_comes_back_at_another_path(folder, tmp_path):
    token = folder.token.read_text()
    backup = backed_up(folder, tmp_path / "backup")
    shutil.rmtree(folder.path)
    restored = Folder.at(tmp_path / "elsewhere")
    done = restore_stack(backup, restored, nothing)
    assert done.kept is None
    assert names(restored) == ["kept"]
    assert restored.token.read_text() == token
    assert restored.artifact_root == str(restored.path / "artifacts")
    assert Path(restored.artifact_root, "1/run/weights").read_text() == "1/run/weights"
    assert restored.load().parts == {}
    open_to_others = [path for path in restored.path.rglob("*") if path.stat().st_mode & 0o077]
    assert open_to_others == []


def announced(database: Database) -> None:
    """A version that its retention rule deletes soon, and that nobody has needed for long."""
    job, long_ago = add_job(database, "succeeded"), datetime(2025, 1, 1, tzinfo=UTC)
    with database.session() as session:
        session.add(RegisteredBackbone(name="digits", owner="alice", created_at=long_ago))
        session.add(
            BackboneVersion(
                name="digits", version=1, state="ready", job_id=job, owner="alice", trained_by=job, dataset_uri="d",
                source="s", folder="f", tags={}, created_at=long_ago, counted_since=long_ago, expires_at=long_ago,
                unneeded_since=long_ago,
            )
        )  # fmt: skip


def spared(url: str, since: datetime) -> bool:
    """Whether what was announced of that version is withdrawn, and its days begin at a moment, or later."""
    database = Database(url)
    with database.read() as session:
        row = session.get_one(BackboneVersion, ("digits", 1))
    database.close()
    return row.expires_at is row.unneeded_since is None and row.counted_since >= since


def test_a_restored_version_is_not_deleted_for_what_the_backup_cannot_know(folder, tmp_path):
    """After the backup somebody has named or downloaded it."""
    database = Database(folder.database_url)
    announced(database)
    database.close()
    backup, restored, before = backed_up(folder, tmp_path / "backup"), Folder.at(tmp_path / "elsewhere"), now()
    restore_stack(backup, restored, nothing)
    assert spared(restored.database_url, before)
    assert not spared(folder.database_url, before), "the original stays as it is"
    assert [path.name for path in restored.path.glob("rcmae.db?*")] == []


def test_a_backup_from_before_versions_had_rows_is_restored(folder, tmp_path):
    with closing(sqlite3.connect(folder.path / "rcmae.db")) as connection:
        connection.execute("DROP TABLE backbone_version")
    restored = Folder.at(tmp_path / "elsewhere")
    restore_stack(backed_up(folder, tmp_path / "backup"), restored, nothing)
    assert names(restored) == ["kept"]


def test_a_backup_is_private_and_says_what_it_holds(folder, tmp_path):
    backup = backed_up(folder, tmp_path / "backup")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (backup, *backup.rglob("*"))} == {0o700, 0o600}
    manifest = read_manifest(backup)
    assert [copy.name for copy in manifest.databases] == ["rcmae", "mlflow"], "there are no searches yet"
    taken = [copy.taken_at for copy in manifest.databases]
    assert taken == sorted(taken)
    with closing(sqlite3.connect(folder.path / "rcmae.db")) as connection:
        assert [(manifest.databases[0].revision,)] == connection.execute("SELECT * FROM alembic_version").fetchall()
    assert manifest.files["secrets/token"] == file_sha256(folder.token)
    indexed = [json.loads(line) for line in (backup / "artifacts.jsonl").read_text().splitlines()]
    assert [(entry["name"], entry["sha256"]) for entry in indexed] == [
        (name, file_sha256(Path(folder.artifact_root, name))) for name in ("1/run/log.jsonl", "1/run/weights")
    ]
    with pytest.raises(BackupError, match="exists: name a folder that does not"):
        backed_up(folder, backup)


def test_a_copy_is_whole_while_others_write(folder, tmp_path):
    """Also what lies in the log beside the file, and nothing of a transaction that is not committed."""
    with closing(sqlite3.connect(folder.path / "rcmae.db")) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("UPDATE job SET name = 'renamed'")
        writer.commit()
        writer.execute("UPDATE job SET name = 'not committed'")
        backup = backed_up(folder, tmp_path / "backup")
    restored = Folder.at(tmp_path / "elsewhere")
    restore_stack(backup, restored, nothing)
    assert names(restored) == ["renamed"]


def test_a_backup_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.backup.making._list_artifacts", full)
    with pytest.raises(OSError, match="No space left"):
        backed_up(folder, tmp_path / "backups" / "one")
    assert list((tmp_path / "backups").iterdir()) == []


@pytest.mark.parametrize("name", ["rcmae.db", "secrets/token", "artifacts/1/run/weights", "artifacts.jsonl"])
def test_a_damaged_backup_is_refused_before_anything_is_written(folder, tmp_path, name):
    backup = backed_up(folder, tmp_path / "backup")
    with (backup / name).open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    with pytest.raises(BackupError, match=f"damaged: .*{name} has the sha256"):
        restore_stack(backup, Folder.at(tmp_path / "elsewhere"), nothing)
    (backup / name).unlink()
    with pytest.raises(BackupError, match=f"incomplete: .*{name}"):
        restore_stack(backup, Folder.at(tmp_path / "elsewhere"), nothing)
    assert not (tmp_path / "elsewhere").exists()


def test_what_has_no_checksum_is_refused(folder, tmp_path):
    """A link, which would bring in a file of the reader's, or a file that somebody has added."""
    backup = backed_up(folder, tmp_path / "backup")
    (tmp_path / "private").write_text("private")
    (backup / "artifacts" / "link").symlink_to(tmp_path / "private")
    with pytest.raises(BackupError, match=r"artifacts/link is a link"):
        restore_stack(backup, Folder.at(tmp_path / "elsewhere"), nothing)
    (backup / "artifacts" / "link").unlink()
    for name in ("secrets/studies.db", "artifacts/1/run/added"):
        (backup / name).write_text("added")
        with pytest.raises(BackupError, match=f"{name} is not of the backup"):
            restore_stack(backup, Folder.at(tmp_path / "elsewhere"), nothing)
        (backup / name).unlink()
    manifest = json.loads((backup / "manifest.json").read_text())
    manifest["databases"][0]["file"] = "../private"
    (backup / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BackupError, match=r"no checksum of '\.\./private'"):
        restore_stack(backup, Folder.at(tmp_path / "elsewhere"), nothing)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/../../escaped"])
def test_an_artifact_that_leads_out_of_the_backup_is_refused(folder, tmp_path, name):
    backup = backed_up(folder, tmp_path / "backup")
    index = backup / "artifacts.jsonl"
    index.write_text(json.dumps({"name": name, "size": 1, "sha256": "0"}))
    manifest = json.loads((backup / "manifest.json").read_text())
    manifest["files"]["artifacts.jsonl"] = file_sha256(index)
    (backup / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BackupError, match="leads out of it"):
        restore_stack(backup, Folder.at(tmp_path / "elsewhere"), nothing)


def test_a_stack_of_an_earlier_release_is_backed_up_before_its_first_start(folder, tmp_path):
    key = folder.signing_key.read_text()
    folder.mlflow_password.unlink()
    restored = Folder.at(tmp_path / "elsewhere")
    restore_stack(backed_up(folder, tmp_path / "backup"), restored, nothing)
    restored.make()
    assert restored.mlflow_password.read_text()
    assert restored.signing_key.read_text() == key, "the copy signs with the key that clients know"


@pytest.mark.parametrize("within", ["", "artifacts/"])
def test_a_backup_lies_outside_of_what_it_copies(folder, within):
    with pytest.raises(BackupError, match=f"lies in {folder.path}.*elsewhere"):
        backed_up(folder, folder.path / f"{within}backup")
    assert not (folder.path / f"{within}backup").exists()


def test_what_a_database_refuses_is_said_in_a_sentence(folder, tmp_path, postgres):
    (folder.path / "rcmae.db").write_bytes(b"no database" * 1000)
    with pytest.raises(BackupError, match=r"rcmae\.db cannot be copied to .*: file is not a database"):
        backed_up(folder, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    with pytest.raises(BackupError, match=r"127\.0\.0\.1:\d+/none: .*does not exist"):
        databases.is_empty(postgres.url("any").rpartition("/")[0] + "/none")


def test_listed_artifacts_survive_a_restore_that_is_interrupted(folder, tmp_path, monkeypatch):
    """By a signal, at any moment after the old folder was set aside."""
    backup = backed_up(folder, tmp_path / "backup", copy_artifacts=False)
    move = shutil.move

    def interrupted(source, target):
        move(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore_stack(backup, folder, nothing, replace=True)
    assert [path.read_text() for path in tmp_path.rglob("1/run/weights")] == ["1/run/weights"]


def test_options_of_a_stack_are_not_ignored_for_a_deployment(tmp_path):
    done = CliRunner().invoke(app, ["admin", "backup", str(tmp_path / "b"), "--deployment", "--state-dir", "x"])
    assert done.exit_code == 1
    assert "--state-dir is for a stack" in str(done.exception)


def test_a_folder_that_is_not_empty_is_kept(folder, tmp_path):
    backup = backed_up(folder, tmp_path / "backup")
    with pytest.raises(BackupError, match=r"is not empty: .*--replace"):
        restore_stack(backup, folder, nothing)
    (folder.path / "rcmae.db").write_text("damaged")
    kept = restore_stack(backup, folder, nothing, replace=True).kept
    assert kept is not None
    assert (kept / "rcmae.db").read_text() == "damaged"
    assert names(folder) == ["kept"]


def test_artifacts_that_were_only_listed_stay_where_they_are(folder, tmp_path):
    backup = backed_up(folder, tmp_path / "backup", copy_artifacts=False)
    assert not (backup / "artifacts").exists()
    elsewhere = Folder.at(tmp_path / "elsewhere")
    with pytest.raises(BackupError, match="still exists and keeps its artifacts"):
        restore_stack(backup, elsewhere, nothing)
    restore_stack(backup, folder, nothing, replace=True)
    assert Path(folder.artifact_root, "1/run/weights").read_text() == "1/run/weights"
    shutil.rmtree(folder.path)
    with pytest.raises(BackupError, match=r"2 artifacts .* are not in .*--without-artifacts"):
        restore_stack(backup, elsewhere, nothing)
    restore_stack(backup, elsewhere, nothing, without_artifacts=True)
    assert names(elsewhere) == ["kept"]


def test_a_newer_schema_or_format_is_refused(folder, tmp_path):
    newer = DatabaseCopy(name="rcmae", engine="sqlite", file="", revision="9999", taken_at=datetime.now(UTC))
    with pytest.raises(BackupError, match="schema 9999, which this release does not know"):
        require_known(newer)
    backup = backed_up(folder, tmp_path / "backup")
    text_ = (backup / "manifest.json").read_text()
    (backup / "manifest.json").write_text(text_.replace('"format": 1', '"format": 2'))
    with pytest.raises(BackupError, match="has format 2, and this release reads format 1"):
        restore_stack(backup, Folder.at(tmp_path / "elsewhere"), nothing)


def test_what_is_no_backup_or_no_stack_is_refused(tmp_path):
    for arguments, said in (
        (["restore", str(tmp_path)], "is no backup"),
        (["backup", str(tmp_path / "backup")], "is not the state folder of a stack"),
    ):
        done = CliRunner().invoke(app, ["admin", *arguments, "--state-dir", str(tmp_path / "none")])
        assert done.exit_code == 1
        assert said in str(done.exception)


# --- Postgres ---------------------------------------------------------------------------------------------------------


def test_a_deployment_comes_back_in_other_databases(postgres, tmp_path):
    """With rows in all three databases, of which MLflow's and the trials' are stood for by a table each."""
    (tmp_path / "artifacts" / "1").mkdir(parents=True)
    (tmp_path / "artifacts" / "1" / "weights").write_text("weights")
    before, after = ({name: postgres.url(f"backup_{name}") for name in ("rcmae", "studies", "mlflow")} for _ in "ab")
    database = Database(before["rcmae"])
    database.migrate()
    job = add_job(database, "running", name="trained")
    announced(database)
    database.close()
    for name in ("studies", "mlflow"):
        with databases._connect(databases.parse_database_url(before[name])) as connection:
            connection.execute("CREATE TABLE kept (text TEXT)")
            connection.execute("INSERT INTO kept VALUES (%s)", [name])
    settings = Settings(
        database_url=before["rcmae"], study_url=before["studies"], artifact_root=str(tmp_path / "artifacts")
    )
    backup = tmp_path / "backup"
    make_backup(Source.of_deployment(settings, before["mlflow"]), backup, nothing, copy_artifacts=True)
    with pytest.raises(BackupError, match=r"is not empty: .*--replace"):
        restore_deployment(backup, before, settings.artifact_root, None, nothing)

    shutil.rmtree(tmp_path / "artifacts")
    (tmp_path / "artifacts").mkdir()
    restored_at = now()
    restore_deployment(backup, after, settings.artifact_root, None, nothing)
    assert (tmp_path / "artifacts" / "1" / "weights").read_text() == "weights"
    assert spared(after["rcmae"], restored_at)
    database = Database(after["rcmae"])
    database.migrate()
    assert job_of(database, job).name == "trained"
    database.close()
    for name in ("studies", "mlflow"):
        with databases._connect(databases.parse_database_url(after[name])) as connection:
            assert connection.execute("SELECT text FROM kept").fetchall() == [(name,)]


def test_replacing_a_postgres_database_removes_what_it_holds(postgres, tmp_path):
    url = postgres.url("replaced")
    parsed = databases.parse_database_url(url)
    with databases._connect(parsed) as connection:
        connection.execute("CREATE TABLE old (number INT)")
    copy = copy_database("studies", url, tmp_path)
    with databases._connect(parsed) as connection:
        connection.execute("CREATE TABLE newer (number INT)")
    with pytest.raises(BackupError, match=r"holds 2 tables: .*--replace"):
        restore_postgres(tmp_path / copy.file, url, replace=False)
    restore_postgres(tmp_path / copy.file, url, replace=True)
    with databases._connect(parsed) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("old",)]


def test_nothing_is_removed_before_the_program_that_restores_is_found(postgres, tmp_path, monkeypatch):
    url = postgres.url("kept")
    with databases._connect(databases.parse_database_url(url)) as connection:
        connection.execute("CREATE TABLE kept (number INT)")
    copy = copy_database("studies", url, tmp_path)
    monkeypatch.setattr(databases, "PROGRAMS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match="pg_restore is not installed"):
        restore_postgres(tmp_path / copy.file, url, replace=True)
    assert not databases.is_empty(url)


def test_a_role_without_rights_restores_where_a_superuser_made_the_extension(postgres, tmp_path):
    """As the log of the service tells its operator to."""
    before, after = (databases.parse_database_url(postgres.url("owned")) for _ in "ab")
    database = Database(before.render_as_string(hide_password=False))
    database.migrate()
    add_job(database, "succeeded", name="kept")
    database.close()
    copy = copy_database("rcmae", before.render_as_string(hide_password=False), tmp_path)
    with databases._connect(after) as connection:
        connection.execute("CREATE EXTENSION pg_trgm")
        connection.execute("CREATE ROLE limited LOGIN PASSWORD 'limited'")
        connection.execute("GRANT ALL ON SCHEMA public TO limited")
    limited = after.set(username="limited", password="limited").render_as_string(hide_password=False)
    restore_postgres(tmp_path / copy.file, limited, replace=False)
    with databases._connect(after) as connection:
        assert connection.execute("SELECT name FROM job").fetchall() == [("kept",)]
    with pytest.raises(BackupError, match="must be owner of schema public"):
        restore_postgres(tmp_path / copy.file, limited, replace=True)


def test_programs_older_than_the_server_are_refused(tmp_path, monkeypatch):
    program = tmp_path / "9" / "bin" / "pg_dump"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n")
    program.chmod(0o755)
    monkeypatch.setattr(databases, "PROGRAMS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        BackupError, match="PostgreSQL 15, and only pg_dump 9 is installed: install postgresql-client-15"
    ):
        databases._client("pg_dump", 150004)
    program.unlink()
    with pytest.raises(BackupError, match="pg_dump is not installed"):
        databases._client("pg_dump", 150004)


def test_no_password_is_on_a_command_line():
    shown = databases._conninfo(databases.parse_database_url("postgresql://rcmae:hidden@db:5432/jobs?sslmode=require"))
    assert shown == "postgresql://rcmae@db:5432/jobs?sslmode=require"


# --- S3 ---------------------------------------------------------------------------------------------------------------


def test_artifacts_in_s3_are_listed_or_copied_and_come_back(s3, use_s3, tmp_path):
    use_s3(s3.environment())
    root, fs = f"{s3.bucket('backups')}/runs", s3.filesystem()
    contents = {"1/run/weights": bytes(range(256)) * 40_000, "1/run/log.jsonl": b"{}"}
    for name, data in contents.items():
        fs.pipe_file(f"{root}/{name}", data)
    listed, copied = (
        make_backup(Source({}, root, None), tmp_path / name, nothing, copy_artifacts=name == "copied")
        for name in ("listed", "copied")
    )
    assert (listed.artifacts, listed.artifact_bytes) == (copied.artifacts, copied.artifact_bytes) == (2, 10_240_002)
    restore_deployment(tmp_path / "listed", {}, root, None, nothing)
    fs.rm(root, recursive=True)
    with pytest.raises(BackupError, match=r"2 artifacts .* are not in .*--without-artifacts"):
        restore_deployment(tmp_path / "listed", {}, root, None, nothing)
    restore_deployment(tmp_path / "copied", {}, root, None, nothing)
    assert {name: fs.cat_file(f"{root}/{name}") for name in contents} == contents
