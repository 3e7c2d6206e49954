"""`rcmae controller` with settings that it cannot start with."""

from __future__ import annotations

import pytest

from service import cli


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "RCMAE_DATABASE_URL: Field required"),
        ({"RCMAE_DATABASE_URL": "mysql://rcmae:hidden@db/jobs"}, "RCMAE_DATABASE_URL begins with mysql://"),
        ({"RCMAE_DATABASE_URL": "postgresql://rcmae:hidden@127.0.0.1:1/jobs"}, "cannot be reached: postgresql+psycopg"),
        ({"RCMAE_DATABASE_URL": "sqlite:////none/rcmae.db"}, "unable to open database file"),
        ({"RCMAE_DATABASE_URL": "sqlite:////none/rcmae.db", "RCMAE_LEASE_S": "0"}, "RCMAE_LEASE_S: "),
    ],
)
def test_it_ends_with_a_sentence(variables, said, monkeypatch, capsys, tmp_path):
    for name in ("RCMAE_DATABASE_URL", "RCMAE_LEASE_S"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"RCMAE_ARTIFACT_ROOT": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        cli.main(["controller"])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert "hidden" not in told
