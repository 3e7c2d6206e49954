"""Jobs whose attempt succeeded and whose result file is missing or malformed: they fail, and a retry mends them."""

from __future__ import annotations

from pathlib import Path

import pytest
from backbone_files import Registry
from service_fakes import job_of

from trainer.protocol.embeddings import SCHEMA
from trainer.protocol.evaluation import EVALUATION
from trainer.protocol.inspection import INSPECTION
from trainer.protocol.outcome import Outcome

DIGITS = {"uri": "builtin://digits"}
FILES = {"evaluate": EVALUATION, "embed": SCHEMA, "inspect": INSPECTION}


@pytest.mark.parametrize("stored", [None, b'{"backbone": ', b'{"images": "many"}'], ids=["missing", "cut off", "other"])
@pytest.mark.parametrize("kind", FILES)
def test_a_job_without_a_readable_result_fails_with_the_file_and_what_to_do(served, world, mlflow, root, kind, stored):
    Registry(world.database, mlflow, root).add("digits", 1)
    subject = {} if kind == "inspect" else {"backbone": "digits:1"}
    answer = served.post("/v1/jobs", json={"kind": kind, "dataset": DIGITS} | subject)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    world.rounds()
    world.run_attempt(job_id)
    if stored is not None:
        path = Path(job_of(world.database, job_id).artifact_uri.removeprefix("file://")) / FILES[kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    job = served.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["reason"], job["result"]) == ("failed", "storage_error", None)
    assert FILES[kind] in job["message"]
    assert "retry the job" in job["message"]
    served.post(f"/v1/jobs/{job_id}/retry").raise_for_status()
    world.rounds()
    world.run_attempt(job_id, 2)
    assert world.state(job_id) == "running"
