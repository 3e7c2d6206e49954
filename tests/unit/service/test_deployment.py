"""`rcmae init-deploy`: secrets are random, only their owner's, and never replaced."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from sqlalchemy import make_url

from service import cli, deployment
from service.adapters.studies import Studies, StudiesUnreachable
from service.settings import Settings

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    shutil.copy(CHECKOUT / deployment.COMPOSE_FILE, tmp_path)
    return tmp_path


def variables(folder):
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_random_and_their_owners_alone(folder, tmp_path_factory):
    deployment.prepare(folder)
    other = tmp_path_factory.mktemp("other")
    shutil.copy(CHECKOUT / deployment.COMPOSE_FILE, other)
    deployment.prepare(other)
    ours, theirs = variables(folder), variables(other)
    secrets = [ours[name] for name in deployment.SECRETS]
    assert len(set(secrets)) == len(secrets)
    assert not set(secrets) & set(theirs.values())
    assert min(map(len, secrets)) >= 20
    assert mode(folder / ".env") == 0o600
    assert mode(folder / ".secrets") == 0o700
    assert {mode(file) for file in (folder / ".secrets").iterdir()} == {0o444}  # in a container the user is another


def test_said_twice_is_said_once(folder):
    first = deployment.prepare(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    second = deployment.prepare(folder)
    assert set(first.added) == set(deployment.SETTINGS) | set(deployment.SECRETS)
    assert (second.added, second.written) == ([], [])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_an_operator_wrote_stays_and_what_is_missing_is_added(folder):
    env = folder / ".env"
    env.write_text("# ours\nRCMAE_PUBLISH=0.0.0.0:80\nRCMAE_RAY_TOKEN=chosen-by-the-operator")
    env.chmod(0o600)
    done = deployment.prepare(folder)
    assert env.read_text().startswith("# ours\nRCMAE_PUBLISH=0.0.0.0:80\nRCMAE_RAY_TOKEN=chosen-by-the-operator\n")
    assert "RCMAE_RAY_TOKEN" not in done.added
    assert done.publish == "0.0.0.0:80"
    assert (folder / ".secrets" / "ray_token").read_text() == "chosen-by-the-operator"


def test_a_changed_secret_reaches_the_files_that_hold_it(folder):
    deployment.prepare(folder)
    env = folder / ".env"
    old = variables(folder)["RCMAE_S3_SECRET"]
    env.write_text(env.read_text().replace(old, "another-secret-of-ours"))
    assert deployment.prepare(folder).written == ["s3_config", "s3_credentials"]
    assert "another-secret-of-ours" in (folder / ".secrets" / "s3_credentials").read_text()


def test_files_have_the_forms_that_their_readers_take(folder):
    deployment.prepare(folder)
    values, files = variables(folder), folder / ".secrets"
    credentials = configparser.ConfigParser()
    credentials.read(files / "s3_credentials")
    assert credentials["default"]["aws_secret_access_key"] == values["RCMAE_S3_SECRET"]
    service = configparser.ConfigParser()
    service.read(files / "rcmae_db_service")
    assert service["rcmae"]["password"] == values["RCMAE_DB_PASSWORD"]
    admin, trains = json.loads((files / "s3_config").read_text())["identities"]
    assert admin["credentials"][0]["accessKey"] == values["RCMAE_S3_ADMIN_KEY"]
    assert "Write:rcmae-datasets" not in trains["actions"]
    assert Settings(database_url="sqlite:///x", artifact_root="/x", signing_key_file=files / "signing_key")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("RCMAE_RAY_TOKEN=", "RCMAE_RAY_TOKEN must not be empty"),
        ("RCMAE_RAY_TOKEN=with space in it x", "RCMAE_RAY_TOKEN must not be empty, and may contain only letters"),
        ("RCMAE_RAY_TOKEN=$HOME/very/long/indeed", "RCMAE_RAY_TOKEN must not be empty, and may contain only letters"),
        ("RCMAE_RAY_TOKEN=short", "fewer than 16 characters"),
        ("RCMAE_SIGNING_KEY=a-secret-that-is-no-key", "RCMAE_SIGNING_KEY is no Ed25519 key"),
        ("export X=1", "line 1 is not NAME=value"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, line, said):
    env = folder / ".env"
    env.write_text(f"{line}\n")
    env.chmod(0o600)
    with pytest.raises(deployment.NotDeployable, match=re.escape(said)):
        deployment.prepare(folder)
    assert env.read_text() == f"{line}\n"
    assert not (folder / ".secrets").exists()


def test_an_env_that_others_may_read_is_refused(folder):
    deployment.prepare(folder)
    (folder / ".env").chmod(0o644)
    with pytest.raises(deployment.NotDeployable, match="chmod 600"):
        deployment.prepare(folder)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(deployment.NotDeployable, match=r"no docker-compose\.yml"):
        deployment.prepare(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_says_where_things_are_and_shows_no_secret(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["init-deploy", "--dir", str(folder)])
    assert ended.value.code in {0, None}
    said = capsys.readouterr().out
    assert str(folder / ".secrets" / "admin_token") in said
    assert "docker compose up" in said
    assert not [name for name in deployment.SECRETS if variables(folder)[name] in said]


def compose():
    return yaml.safe_load((CHECKOUT / deployment.COMPOSE_FILE).read_text())


def test_compose_has_every_file_and_hands_each_to_those_who_need_it(folder):
    """Whoever trains has no way to the database, its password, or the admin's token."""
    deployment.prepare(folder)
    services = compose()["services"]
    assert set(compose()["secrets"]) == {file.name for file in (folder / ".secrets").iterdir()}
    assert set(services["ray-worker"]["secrets"]) == {"ray_token", "s3_credentials"}
    assert [name for name, each in services.items() if "signing_key" in each.get("secrets", [])] == ["controller"]
    assert services["controller"]["environment"]["RCMAE_SIGNING_KEY_FILE"] == "/run/secrets/signing_key"
    assert set(services["ray-worker"]["networks"]) == {"training"}


def test_compose_lets_the_drivers_of_searches_reach_their_trials_and_nothing_else_of_postgres(folder):
    deployment.prepare(folder)
    services = compose()["services"]
    head = services["ray-head"]
    assert set(head["secrets"]) == {"ray_token", "s3_credentials", "rcmae_studies_db_service"}
    assert set(head["networks"]) & set(services["postgres"]["networks"]) == {"studies"}
    url = make_url(head["environment"]["RCMAE_STUDY_URL"])
    assert (url.drivername, url.username, url.database) == ("postgresql+psycopg", "rcmae_studies", "rcmae_studies")
    files, password = folder / ".secrets", variables(folder)["RCMAE_STUDIES_DB_PASSWORD"]
    for name in ("rcmae_studies_db_service", "rcmae_db_service"):
        service = configparser.ConfigParser()
        service.read(files / name)
        assert service[url.query["service"]]["password"] == password
    assert variables(folder)["RCMAE_DB_PASSWORD"] not in (files / "rcmae_studies_db_service").read_text()
    assert (files / "rcmae_studies_db_password").read_text() == password
    for name in ("api", "controller"):
        assert services[name]["environment"]["RCMAE_STUDY_URL"] == head["environment"]["RCMAE_STUDY_URL"]


def test_backups_reach_all_databases_and_nobody_else_has_all_passwords(folder):
    deployment.prepare(folder)
    services, passwords = compose()["services"], configparser.ConfigParser()
    passwords.read(folder / ".secrets" / "admin_db_service")
    environment = services["admin"]["environment"]
    urls = [make_url(environment[f"RCMAE_{name}_URL"]) for name in ("DATABASE", "STUDY", "MLFLOW_DATABASE")]
    for url in urls:
        section = url.query.get("service", environment["PGSERVICE"])
        assert section == url.username
        assert passwords[section]["password"]
    assert [name for name, service in services.items() if "admin_db_service" in service.get("secrets", [])] == ["admin"]
    assert services["admin"]["profiles"] == ["tools"]


def test_postgres_gets_a_database_for_each_and_an_older_one_what_it_lacks(folder, postgres, monkeypatch):
    """The script of Postgres's image, run twice against a server that has a user `rcmae` already."""
    deployment.prepare(folder)
    files = folder / ".secrets"
    script = (CHECKOUT / "deploy" / "docker" / "postgres-init.sh").read_text().replace("/run/secrets", str(files))
    place = make_url(postgres.url("init"))
    monkeypatch.setenv("PGHOST", place.host)
    monkeypatch.setenv("PGPORT", str(place.port))
    monkeypatch.setenv("PGPASSWORD", place.password)
    monkeypatch.setenv("POSTGRES_USER", place.username)
    for _ in range(2):
        subprocess.run(["sh", "-c", script], check=True, capture_output=True)
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGSERVICEFILE", str(files / "rcmae_studies_db_service"))
    url = make_url(compose()["services"]["ray-head"]["environment"]["RCMAE_STUDY_URL"])
    url = url.set(host=place.host, port=place.port)
    studies = Studies(url.render_as_string(hide_password=False))
    assert studies.trials("job-none") == []
    studies.close()
    other = Studies(url.set(database="rcmae").render_as_string(hide_password=False))
    with pytest.raises(StudiesUnreachable, match="permission denied for database"):
        other.trials("job-none")
    other.close()


def test_compose_publishes_the_front_alone_and_keeps_all_else_inside():
    found = compose()
    assert [name for name, service in found["services"].items() if "ports" in service] == ["front"]
    assert [name for name, network in found["networks"].items() if not network.get("internal")] == ["edge"]
    assert [name for name, service in found["services"].items() if "edge" in service["networks"]] == ["front"]


def test_compose_holds_no_secret_and_starts_no_process_as_root():
    text = (CHECKOUT / deployment.COMPOSE_FILE).read_text()
    assert not [name for name in deployment.SECRETS if f"${{{name}" in text]  # as files, not as variables
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        ours = service["image"].startswith("rcmae/")  # their Dockerfiles name a user
        assert ours or int(service["user"].partition(":")[0]) > 0, name
    for file in (CHECKOUT / "deploy" / "docker").glob("*.Dockerfile"):
        assert re.search(r"^USER 10001$", file.read_text(), re.MULTILINE), file.name


def test_bucket_names_are_compose_s():
    assert compose()["services"]["buckets"]["command"][-2:] == [deployment.ARTIFACTS, deployment.DATASETS]
