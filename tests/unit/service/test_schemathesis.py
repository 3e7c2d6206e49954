"""The API held to its own description: requests made out of it, right and wrong ones, and what is answered to them.

A real server over a real database, with stand-ins for Ray and MLflow at its edges; the reconciler is off. Schemathesis
asks as an administrator, with all its checks: no 5xx, no status, header, type or schema that is not described, wrong
requests refused, right ones not, no route without a token.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from backbone_files import compare_with_mlflow
from conftest import token_of
from fastapi import FastAPI
from optuna.trial import TrialState
from search_files import MOMENTUM, RATE, SearchFiles
from service_fakes import SPEC, add_job, spec_with

from service import examples
from service.auth.caller import sha256
from service.db.database import Database
from service.db.tables import Attempt, Event, Token
from trainer.protocol import names
from trainer.protocol.logs import LogLine

CONFIG = Path(__file__).with_name("schemathesis.toml")
SEED = 20260301
LINE = LogLine(time=1.0, level="info", source="rank-0", message="Trains.").model_dump_json()
CASES = re.compile(r"([\d,]+) generated")


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of an application that answers over HTTP."""
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def own_token(database: Database) -> str:
    """The id of the token that it uses."""
    with database.read() as session:
        return session.get_one(Token, sha256(token_of("admin"))).id


@pytest.fixture(autouse=True)
def _filled(database: Database, mlflow, searches: SearchFiles) -> None:
    """Jobs in every state, and what the examples speak of: a job with all that a job can have, a backbone, a search
    with trials.
    """
    for state in ("queued", "paused", "succeeded", "failed", "cancelled"):
        add_job(database, state, SPEC, labels={"team": "vision"})
    job_id = examples.JOB_ID
    run_id, folder = mlflow.make_run(job_id, "walk", {})
    add_job(database, "running", spec_with(register_as="imagenet-base"), id=job_id, attempts=1, run_id=run_id,
            artifact_uri=folder)  # fmt: skip
    with database.session() as session:
        session.add(Attempt(job_id=job_id, number=1, submission_id=names.submission_id(job_id, 1), state="running"))
        session.add(Event(job_id=job_id, state="running", message="Trains.", actor="controller"))
    files = {
        names.picture_file(480): b"\x89PNG",
        f"{names.log_folder(1)}/rank-0.0001.jsonl": LINE.encode() + b"\n",
        "backbone/hf/model.safetensors": b"weights",
        f"backbone/{names.BACKBONE_SUMS}": b"0" * 64 + b"  hf/model.safetensors\n",
    }
    for name, content in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    mlflow.register("imagenet-base", 1, job_id, f"file://{folder}/backbone")
    compare_with_mlflow(database, mlflow)
    search = searches.add("running", id=examples.SEARCH_ID)
    for number in range(7):
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[number % 3]
        values = [0.1 * number] if state is TrialState.COMPLETE else None
        searches.trial(search, state, {MOMENTUM: 0.9 + 0.01 * number, RATE: 1e-4}, values, [0.1, 0.1 * number])
    searches.with_run(search, {names.picture_file(480): b"\x89PNG"})


def schemathesis(url: str, own_token: str, folder: Path, *options: str) -> str:
    """What a run says; it must find nothing."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json",
               "--seed", str(SEED), *options]  # fmt: skip
    environment = os.environ | {
        "RCMAE_TEST_TOKEN": token_of("admin"),
        "RCMAE_TEST_TOKEN_ID": own_token,
        "PYTHONPATH": str(CONFIG.parent),
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    return done.stdout


def cases(said: str) -> int:
    return int(CASES.search(said)[1].replace(",", ""))


def test_the_api_does_what_its_description_says(app, own_token, tmp_path):
    with serving(app) as url:
        said = schemathesis(url, own_token, tmp_path, "--max-examples", "5", "--phases", "examples,coverage")
    sys.stdout.write(f"seed {SEED}: {cases(said)} cases\n")
    assert cases(said) > 1000


@pytest.mark.both_databases
@pytest.mark.slow
def test_the_api_does_it_in_more_cases(app, own_token, tmp_path):
    with serving(app) as url:
        said = schemathesis(url, own_token, tmp_path, "--max-examples", "60")
    sys.stdout.write(f"seed {SEED}: {cases(said)} cases\n")
    assert cases(said) > 4000
