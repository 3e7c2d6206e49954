"""The state folder and the choice of ports, without starting anything."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys

import pytest
from live import poll

from service import signing_key
from service.client.server import Home
from service.embedded import locations, parts, processes
from service.embedded.folder import PARTS, Folder, Ports, StackError, StackState
from service.embedded.processes import Identity


@pytest.fixture
def folder(tmp_path):
    made = Folder.at(tmp_path / "state")
    made.make()
    return made


@pytest.fixture
def prepare():
    """`parts.prepare`, with the temporary folders removed afterwards."""
    made = []

    def call(state, port=None):
        prepared = parts.prepare(state, port)
        made.append(prepared.temp_dir)
        return prepared

    yield call
    for path in made:
        shutil.rmtree(path, ignore_errors=True)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_and_its_tokens_are_for_their_owner_alone(folder):
    assert mode(folder.path) == 0o700
    for token in folder.credentials:
        assert mode(token) == 0o600
        assert len(token.read_text()) >= 32
    before = [credential.read_text() for credential in folder.credentials]
    folder.make()
    assert [credential.read_text() for credential in folder.credentials] == before


def test_the_key_that_signs_is_made_with_the_folder_and_reaches_the_api_alone(folder, prepare):
    assert len(signing_key.read(folder.signing_key)) == 32
    state = prepare(StackState())
    named = {part: parts.environment(part, folder, state).get("RCMAE_SIGNING_KEY_FILE") for part in PARTS}
    assert named == {"ray": None, "mlflow": None, "api": str(folder.signing_key)}


@pytest.fixture
def open_umask():
    """The umask of a user who shares everything."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_what_was_there_before_is_closed_to_others(tmp_path):
    folder = Folder.at(tmp_path / "state")
    folder.path.mkdir()
    folder.make()
    with folder.lock():
        pass
    (folder.path / "artifacts" / "run").mkdir(parents=True)
    for name in ("artifacts/run/student.safetensors", "rcmae.db-wal", "logs/ray.log"):
        (folder.path / name).touch()
    outside = tmp_path / "outside"
    outside.touch(0o644)
    (folder.path / "artifacts" / "link").symlink_to(outside)
    folder.path.chmod(0o755)
    folder.make()
    modes = {mode(path) for path in (folder.path, *folder.path.rglob("*")) if not path.is_symlink()}
    assert modes == {0o700, 0o600}
    assert mode(outside) == 0o644


@pytest.mark.usefixtures("open_umask")
def test_a_folder_of_other_things_is_not_taken(tmp_path):
    theirs = tmp_path / "shared" / "photo"
    theirs.parent.mkdir()
    theirs.touch()
    with pytest.raises(StackError, match=r"shared holds other files and is open to other users.*--state-dir"):
        Folder.at(theirs.parent).make()
    assert mode(theirs.parent) == 0o777
    theirs.parent.chmod(0o700)
    Folder.at(theirs.parent).make()
    assert mode(theirs) == 0o666, "it is not ours"


def test_a_temporary_folder_that_others_can_enter_is_not_used_again(prepare):
    first = prepare(StackState())
    first.temp_dir.chmod(0o777)
    second = prepare(first)
    assert second.temp_dir != first.temp_dir
    assert mode(second.temp_dir) == 0o700


def test_the_state_is_read_back_as_written(folder, prepare):
    state = prepare(folder.load()).model_copy(update={"parts": {"ray": Identity.of(os.getpid())}})
    folder.save(state)
    assert folder.load() == state
    assert folder.load().parts["ray"].alive


def test_a_file_of_an_earlier_release_belongs_to_the_folder_it_lies_in(folder):
    old = StackState(artifact_root="/artifacts")
    (folder.path / "stack.json").write_text(old.model_dump_json(exclude={"home"}))
    assert folder.load() == old.model_copy(update={"home": Home.of(folder.path)})


def test_only_one_holds_the_lock(folder):
    with folder.lock() as first, folder.lock() as second:
        assert first
        assert not second
    with folder.lock() as again:
        assert again


def test_the_temporary_folder_is_short_and_private(prepare):
    temp_dir = prepare(StackState()).temp_dir
    assert len(f"{temp_dir}/ray") <= 45
    assert mode(temp_dir) == 0o700


def test_everything_keeps_its_place_from_one_start_to_the_next(prepare):
    first = prepare(StackState())
    assert len(set(first.ports.model_dump().values())) == len(Ports.model_fields)
    assert prepare(first) == first


def test_a_port_that_was_taken_meanwhile_is_replaced(prepare):
    first = prepare(StackState())
    with socket.socket() as other:
        other.bind(("127.0.0.1", first.ports.mlflow))
        other.listen()
        second = prepare(first)
    assert second.ports.mlflow != first.ports.mlflow
    assert second.ports.ray_gcs == first.ports.ray_gcs


def test_the_port_of_a_part_that_lives_is_kept(prepare):
    first = prepare(StackState())
    with socket.socket() as own:
        own.bind(("127.0.0.1", first.ports.mlflow))
        own.listen()
        alive = first.model_copy(update={"parts": {"mlflow": Identity.of(os.getpid())}})
        assert prepare(alive).ports == first.ports


def test_a_port_the_user_names_must_be_free(prepare):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(StackError, match=f"port {taken} .* in use.*--port"):
            prepare(StackState(), taken)
    assert prepare(StackState(), taken).ports.api == taken


def test_the_usual_port_gives_way_when_it_is_taken(prepare, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(parts, "DEFAULT_PORT", other.getsockname()[1])
        assert prepare(StackState()).ports.api != parts.DEFAULT_PORT


def test_an_api_that_lives_keeps_its_port(prepare):
    state = prepare(StackState()).model_copy(update={"parts": {"api": Identity.of(os.getpid())}})
    with pytest.raises(StackError, match="rcmae down"):
        prepare(state, state.ports.api + 1)
    assert prepare(state, state.ports.api).ports == state.ports


def test_another_program_that_answers_in_the_place_of_a_part_is_not_it(prepare, tmp_path):
    (tmp_path / "healthz").touch()
    state = prepare(StackState())
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(state.ports.api)]
    with (
        subprocess.Popen(serve, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL) as server,
        subprocess.Popen(["sleep", "60"], start_new_session=True) as other,
    ):
        try:
            poll(lambda: processes.listens(Identity.of(server.pid), state.ports.api), bool)
            found = [
                parts.works("api", state.model_copy(update={"parts": {"api": Identity.of(pid)}}))
                for pid in (server.pid, other.pid)
            ]
        finally:
            server.kill()
            other.kill()
    assert found == [True, False]


def test_an_api_whose_port_has_been_taken_moves(prepare):
    state = prepare(StackState())
    assert parts.move_api(state) is state
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier server's connections may linger
        other.bind(("127.0.0.1", state.ports.api))
        other.listen()
        moved = parts.move_api(state)
    assert moved.ports.api != state.ports.api
    assert moved.ports.model_copy(update={"api": state.ports.api}) == state.ports


def test_parts_are_not_led_to_another_cluster(folder, prepare, monkeypatch):
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RCMAE_DATABASE_URL", "RCMAE_STUDY_URL"):
        monkeypatch.setenv(name, "http://elsewhere")
    monkeypatch.setenv("RCMAE_POLL_INTERVAL_S", "0.25")
    state = prepare(StackState())
    for part in PARTS:
        variables = parts.environment(part, folder, state)
        assert "RAY_ADDRESS" not in variables
        assert "MLFLOW_TRACKING_URI" not in variables
        assert variables["RCMAE_STACK"] == state.id
        assert variables["RCMAE_PART"] == part
    api = parts.environment("api", folder, state)
    assert api["RCMAE_DATABASE_URL"] == f"sqlite:///{folder.path}/rcmae.db"
    assert api["RCMAE_POLL_INTERVAL_S"] == "0.25"


def test_the_api_and_the_drivers_of_searches_have_the_trials_in_one_file(folder, prepare, monkeypatch):
    monkeypatch.setenv("RCMAE_STUDY_URL", "postgresql://rcmae:hidden@elsewhere/studies")
    state = prepare(StackState())
    found = {part: parts.environment(part, folder, state).get("RCMAE_STUDY_URL") for part in PARTS}
    ours = f"sqlite:///{folder.path}/studies.db"
    assert found == {"ray": ours, "api": ours, "mlflow": None}


def test_the_users_own_variables_reach_the_attempts(folder, prepare, monkeypatch):
    for name in ("PYTHONPATH", "RCMAE_CACHE_DIR", "RCMAE_ANYTHING"):
        monkeypatch.setenv(name, "theirs")
    variables = parts.environment("ray", folder, prepare(StackState()))
    assert [variables[name] for name in ("PYTHONPATH", "RCMAE_CACHE_DIR", "RCMAE_ANYTHING")] == ["theirs"] * 3


def test_no_secret_is_on_a_command_line_or_in_an_environment(folder, prepare):
    state = prepare(StackState())
    for part in PARTS:
        shown = " ".join(parts.command(part, folder, state)) + str(parts.environment(part, folder, state))
        assert folder.token.read_text() not in shown
        assert folder.ray_token.read_text() not in shown
        assert folder.mlflow_password.read_text() not in " ".join(parts.command(part, folder, state))


def test_whoever_talks_to_mlflow_has_its_password_and_not_the_users_own(folder, prepare, monkeypatch):
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "of another server")
    state, password = prepare(StackState()), folder.mlflow_password.read_text()
    for part in ("api", "ray"):
        variables = parts.environment(part, folder, state)
        assert (variables["MLFLOW_TRACKING_USERNAME"], variables["MLFLOW_TRACKING_PASSWORD"]) == ("rcmae", password)
        assert "MLFLOW_TRACKING_TOKEN" not in variables


# --- the artifact root ------------------------------------------------------------------------------------------------


def recorded(folder, wanted) -> str:
    chosen = locations.choose_artifact_root(folder, wanted)
    folder.save(folder.load().model_copy(update={"artifact_root": chosen}))
    return folder.artifact_root


def test_artifacts_lie_in_the_folder_unless_told_otherwise(folder, tmp_path, monkeypatch):
    assert recorded(folder, None) == str(folder.path / "artifacts")
    monkeypatch.chdir(tmp_path)
    for wanted in ("elsewhere", str(tmp_path / "elsewhere"), f"file://{tmp_path}/elsewhere"):
        assert recorded(folder, wanted) == str(tmp_path / "elsewhere")
    assert recorded(folder, "s3://bucket/some/prefix/") == "s3://bucket/some/prefix"
    assert recorded(folder, None) == "s3://bucket/some/prefix"
    command = parts.command("mlflow", folder, StackState(ports=dict.fromkeys(Ports.model_fields, 1)))
    assert command[command.index("--default-artifact-root") + 1] == "s3://bucket/some/prefix"


def test_an_artifact_root_stays_where_runs_are_recorded(folder):
    recorded(folder, "s3://bucket/one")
    (folder.path / "mlflow.db").touch()
    assert recorded(folder, "s3://bucket/one/") == "s3://bucket/one"
    for other in ("s3://bucket/two", "elsewhere", str(folder.path / "artifacts")):
        with pytest.raises(StackError, match=r"keeps its artifacts in s3://bucket/one.*--state-dir"):
            locations.choose_artifact_root(folder, other)


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("gs://bucket/x", "a local path or s3://bucket/prefix"),
        ("s3://", "a local path or s3://bucket/prefix"),
        ("s3:///x", "a local path or s3://bucket/prefix"),
        ("s3://key:hidden@bucket/x", "holds no credentials"),
        ("what?", "must not hold"),
    ],
)
def test_artifact_roots_that_are_refused(folder, root, said):
    with pytest.raises(StackError, match=said) as error:
        locations.choose_artifact_root(folder, root)
    assert "hidden" not in str(error.value)


# --- the database -----------------------------------------------------------------------------------------------------

URL = "postgresql://rcmae:hidden@db:5432/jobs"


def recorded_database(folder, wanted) -> str:
    chosen = locations.choose_database_url(folder, wanted)
    folder.save(folder.load().model_copy(update={"database_url": chosen}))
    return folder.database_url


def test_jobs_are_kept_in_the_folder_unless_told_otherwise(folder, prepare):
    assert (
        recorded_database(folder, None)
        == locations.redacted_database_url(folder)
        == f"sqlite:///{folder.path}/rcmae.db"
    )
    assert recorded_database(folder, URL) == URL
    assert recorded_database(folder, None) == URL
    assert locations.redacted_database_url(folder) == "postgresql+psycopg://rcmae:***@db:5432/jobs"
    assert mode(folder.path / "stack.json") == 0o600
    state = prepare(folder.load())
    assert "hidden" not in str(state)
    assert parts.environment("api", folder, state)["RCMAE_DATABASE_URL"] == URL
    for part in PARTS:
        assert "hidden" not in " ".join(parts.command(part, folder, state))
        assert part == "api" or "hidden" not in str(parts.environment(part, folder, state))


def test_jobs_stay_in_the_database_where_they_are(folder):
    recorded_database(folder, URL)
    other = "postgresql://rcmae:hidden@db:5432/other"
    assert recorded_database(folder, other) == other, "nothing has been stored yet"
    recorded_database(folder, URL)
    (folder.path / "mlflow.db").touch()
    with pytest.raises(StackError, match=r"keeps its jobs in postgresql\+psycopg://rcmae:\*\*\*@db.*--state-dir"):
        locations.choose_database_url(folder, other)
    changed = "postgresql+psycopg://rcmae:new@db:5432/jobs?sslmode=require"
    assert recorded_database(folder, changed) == changed, "a password may change"


def test_jobs_in_sqlite_stay_there(folder):
    (folder.path / "rcmae.db").touch()
    with pytest.raises(StackError, match=r"keeps its jobs in sqlite:///.*--database-url.*--state-dir") as refused:
        locations.choose_database_url(folder, URL)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://rcmae:hidden@db/jobs", "--database-url begins with mysql://"),
        ("db:5432", "--database-url"),
        ("sqlite:////tmp/jobs.db", "is for Postgres"),
    ],
)
def test_databases_that_are_refused(folder, url, said):
    with pytest.raises(StackError, match=said) as refused:
        locations.choose_database_url(folder, url)
    assert "hidden" not in str(refused.value)
    assert "RCMAE_DATABASE_URL" not in str(refused.value)
