"""The walks with curl in the service's pages work as they stand there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live import poll
from pages import script_of

from service.adapters.mlflow_store import MlflowStore


@pytest.mark.slow
@pytest.mark.timeout(900)  # four attempts, each with processes that start; and the stack, where it is not up yet
def test_a_walk_through_every_verb(stack, tmp_path):
    printed = stack.bash(script_of(stack.url, "api.md", "A walk with curl"), tmp_path, timeout=800)
    lines = printed.splitlines()
    answers: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]

    assert [a["code"] for a in answers if "code" in a] == [
        "spec_invalid", "idempotency_key_reused", "not_allowed_in_state", "not_for_this_kind", "not_allowed_in_state",
        "job_not_found", "backbones_would_go",
    ]  # fmt: skip
    assert '"fits":"never"' in lines
    reached = [line for line in lines if line.startswith('"state":"')]
    for state in ("running", "paused", "queued", "cancelled", "succeeded"):
        assert f'"state":"{state}"' in reached

    patched = next(a for a in answers if a.get("notes"))
    assert (patched["priority"], patched["labels"], patched["notes"]) == (5, {"team": "vision"}, "A walk.")

    attempts, events, first_logs, more_logs = _items(answers)
    assert [(a["state"], a["workers"]) for a in attempts] == [
        ("paused", 2), ("cancelled", 1), ("cancelled", 2),
    ]  # fmt: skip
    steps = [int(a["checkpoint"].rpartition("/")[2]) for a in attempts]
    assert 0 < steps[0] <= steps[1]
    assert any("Retried from scratch" in event["message"] for event in events)
    assert any(f"at step {steps[0]} " in line["message"] for line in first_logs + more_logs), "it went on from there"
    assert first_logs[-1]["time"] <= more_logs[0]["time"]

    (curve,) = (a["series"]["eval/reconstruction_ratio"] for a in answers if "series" in a)
    assert [point["step"] for point in curve] == [0, 20]
    assert (tmp_path / "walk.png").read_bytes().startswith(b"\x89PNG")
    _nothing_is_left(stack, [a for a in answers if "files" in a])


def _items(answers: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], ...]:
    """Attempts, events, and two pages of logs."""
    pages = [a["items"] for a in answers if a.get("items")]
    attempts = next(page for page in pages if "submission_id" in page[0])
    events = next(page for page in pages if "actor" in page[0])
    first_logs, more_logs = (page for page in pages if "source" in page[0])
    return attempts, events, first_logs, more_logs


def _nothing_is_left(stack, deletions: list[dict[str, Any]]) -> None:
    """Of two jobs, each with a preview and a deletion that say the same."""
    (long, same_long), (short, same_short) = deletions[:2], deletions[2:]
    assert (long, short) == (same_long, same_short)
    assert (long["backbones"], short["backbones"][0]["name"]) == ([], "walk")
    mlflow = MlflowStore(stack.mlflow_url)
    for deletion in (long, short):
        assert deletion["files"] > 0
        poll(lambda folder=deletion["artifact_uri"]: Path(folder).exists(), lambda there: not there)
    poll(lambda: mlflow.versions_of_job("walk", short["job_id"]), lambda versions: not versions)
    assert "walk" not in [backbone.name for backbone in stack.client.backbones()]
