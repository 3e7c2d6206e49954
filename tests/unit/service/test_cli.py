"""The command line against a real HTTP server."""

from __future__ import annotations

import importlib.util
import io
import json
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from scripted_server import Answer, ScriptedServer, deletion, job, problem

from service import cli
from service.client import errors, progress
from service.client.sdk import Client
from service.client.server import find_server
from service.jobs.schemas import State

SPEC = "kind: pretrain\ndataset: {uri: builtin://digits}\n"


@pytest.fixture
def server(monkeypatch):
    made = ScriptedServer()
    monkeypatch.setenv("RCMAE_URL", made.url)
    monkeypatch.setenv("RCMAE_TOKEN", "secret")
    monkeypatch.setattr(errors, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    yield made
    made.close()


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return str(path)


def run(*arguments: str) -> int:
    """The exit status of the console script."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def test_submit_sends_the_file_with_overrides(server, spec, capsys):
    server.on("POST", "/v1/jobs", Answer(201, job()))
    assert (
        run("submit", spec, "--set", "optimization.epochs=5", "--set", "seed=3", "--idempotency-key", "k", "--json")
        == 0
    )
    (asked,) = server.asked
    assert asked.body == {
        "kind": "pretrain",
        "dataset": {"uri": "builtin://digits"},
        "optimization": {"epochs": 5},
        "seed": 3,
    }
    assert asked.headers["idempotency-key"] == "k"
    assert json.loads(capsys.readouterr().out)["id"] == "job-1"


def test_a_refused_spec_names_each_field_and_the_remedy(server, spec, capsys):
    found = [
        {
            "field": "optimization.epoch",
            "pointer": "/o",
            "value": 5,
            "message": "unknown field; did you mean 'epochs'?",
        },
        {"field": "model.patch_size", "pointer": "/m", "value": 7, "message": "must divide the image"},
    ]
    server.on("POST", "/v1/jobs", problem(422, "spec_invalid", "two problems", found))
    assert run("submit", spec) == 2
    told = capsys.readouterr().err
    assert "optimization.epoch: unknown field; did you mean 'epochs'?" in told
    assert "given: 5" in told
    assert "model.patch_size: must divide the image" in told


def test_a_file_that_is_no_spec_is_refused_before_anything_is_sent(server, tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    assert run("submit", str(tmp_path / "list.yaml")) == 2
    assert "must be a mapping" in capsys.readouterr().err
    assert server.asked == []


PLAN = {
    "spec": {"resources": {"workers": 2}},
    "parameters": {"encoder": 1000, "decoder": 100},
    "steps": {"train_images": 1618, "held_out_images": 179, "steps_per_epoch": 12, "steps": 240},
    "memory_per_worker_bytes": 3 * 2**20,
    "gang": {"cpus": 2, "gpus": 0},
    "fits": "now",
    "message": "It fits.",
}


@pytest.mark.parametrize(("fits", "status"), [("now", 0), ("later", 0), ("never", 1)])
def test_a_plan_says_what_the_job_needs(server, spec, capsys, fits, status):
    server.on("POST", "/v1/jobs/plan", Answer(200, PLAN | {"fits": fits}))
    assert run("submit", spec, "--plan") == status
    told = capsys.readouterr().out
    assert "240, 12 an epoch" in told
    assert "about 3.0 MiB a worker" in told
    assert [asked.path for asked in server.asked] == ["/v1/jobs/plan"]


RUNNING = {"epoch": 3.5, "epochs": 10, "step": 42, "images_per_s": 321.4, "loss": 0.91234, "eta_s": 75}


def _life(server: ScriptedServer, last: str) -> None:
    """A job that runs and ends, while the service goes away once."""
    server.on("POST", "/v1/jobs", Answer(201, job()))
    server.on(
        "GET",
        "/v1/jobs/job-1",
        Answer(200, job("running", progress=RUNNING)),
        Answer(503, b"restarting"),
        Answer(200, job("running", progress=RUNNING), cut_after=5),
        Answer(200, job(last, message="That is all.")),
    )
    event = {"time": "2026-01-02T03:04:05Z", "reason": None, "actor": "controller"}
    events = [event | {"id": 1, "state": "running", "message": "It trains."}]
    later = [*events, event | {"id": 2, "state": last, "message": "That is all."}]
    pages = [Answer(200, {"items": items, "next_cursor": None}) for items in (events, later)]
    server.on("GET", "/v1/jobs/job-1/events", *pages)


@pytest.mark.parametrize(("last", "status"), [("succeeded", 0), ("failed", 1), ("cancelled", 1), ("paused", 1)])
def test_following_survives_a_restart_and_tells_how_it_ended(server, spec, capsys, last, status):
    _life(server, last)
    assert run("submit", spec, "--follow") == status
    told = capsys.readouterr().err
    assert "epoch 3.5/10  321 images/s  loss 0.9123  ETA 1:15" in told
    assert told.count("It trains.") == 1
    assert told.count("That is all.") == 1


def test_following_goes_on_after_the_client_has_lost_patience(server, spec, monkeypatch, capsys):
    monkeypatch.setattr(cli.commands, "Client", partial(Client, patience_s=0))
    server.on("POST", "/v1/jobs", Answer(201, job()))
    server.on("GET", "/v1/jobs/job-1", *[Answer(503, b"")] * 5, Answer(200, job("succeeded")))
    server.on("GET", "/v1/jobs/job-1/events", Answer(200, {"items": [], "next_cursor": None}))
    assert run("submit", spec, "--follow", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "succeeded"


def test_ctrl_c_ends_the_following_and_not_the_job(server, spec, monkeypatch, capsys):
    server.on("POST", "/v1/jobs", Answer(201, job()))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands, "follow", interrupted)
    assert run("submit", spec, "--follow") == 130
    told = capsys.readouterr().err
    assert "job job-1 goes on" in told
    assert "rcmae jobs cancel job-1" in told
    assert [asked.path for asked in server.asked] == ["/v1/jobs"]


@pytest.mark.parametrize(("last", "status"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_wait_ends_with_0_only_for_success(server, last, status):
    server.on("GET", "/v1/jobs/job-1", Answer(200, job("running")), Answer(200, job(last)))
    server.on("GET", "/v1/jobs/job-1/events", Answer(200, {"items": [], "next_cursor": None}))
    assert run("jobs", "wait", "job-1") == status


def test_wait_with_a_timeout_gives_up(server, capsys):
    server.on("GET", "/v1/jobs/job-1", Answer(200, job("running")))
    assert run("jobs", "wait", "job-1", "--timeout", "0") == 1
    assert "job-1 is running after 0 s" in capsys.readouterr().err


def test_list_passes_its_filters_on(server, capsys):
    server.on("GET", "/v1/jobs", Answer(200, {"items": [job(id=f"job-{n}") for n in range(5)], "next_cursor": "more"}))
    arguments = ("--state", "running", "--label", "team:vision", "--owner", "me", "--limit", "3", "--json")
    assert run("jobs", "list", *arguments) == 0
    assert [item["id"] for item in json.loads(capsys.readouterr().out)] == ["job-0", "job-1", "job-2"]
    (asked,) = server.asked
    assert (asked.query["state"], asked.query["label"], asked.query["owner"]) == (["running"], ["team:vision"], ["me"])


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry"])
def test_verbs(server, capsys, verb):
    server.on("POST", f"/v1/jobs/job-1/{verb}", Answer(200, job("cancelling")))
    assert run("jobs", verb, "job-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == State.CANCELLING


def test_retry_from_scratch_says_so(server):
    server.on("POST", "/v1/jobs/job-1/retry", Answer(200, job()))
    assert run("jobs", "retry", "job-1", "--from-scratch") == 0
    assert server.asked[0].body == {"from_scratch": True}


@pytest.mark.parametrize("verb", ["resume", "retry"])
def test_other_resources_are_passed_on(server, verb):
    server.on("POST", f"/v1/jobs/job-1/{verb}", Answer(200, job()))
    assert run("jobs", verb, "job-1", "--workers", "4", "--set", "resources.cpus_per_worker=auto") == 0
    assert server.asked[0].body == {"resources": {"workers": 4, "cpus_per_worker": "auto"}}


def test_other_resources_that_do_not_fit_are_told_like_a_spec_s(server, capsys):
    found = [{"field": "resources.workers", "pointer": "/resources/workers", "value": "all", "message": "must be…"}]
    server.on("POST", "/v1/jobs/job-1/resume", problem(422, "spec_invalid", "resources.workers: must be…", found))
    assert run("jobs", "resume", "job-1", "--workers", "all") == 2
    assert "resources.workers: must be…" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["optimization.epochs=5", "resources=4"])
def test_only_resources_are_changed_on_the_way(server, capsys, override):
    assert run("jobs", "resume", "job-1", "--set", override) == 2
    assert "cannot be changed here" in capsys.readouterr().err
    assert server.asked == []


def test_set_changes_what_is_named(server):
    server.on("GET", "/v1/jobs/job-1", Answer(200, job(labels={"team": "vision", "stage": "try"})))
    server.on("PATCH", "/v1/jobs/job-1", Answer(200, job()))
    changes = ("--label", "team:audio", "--label", "env:test", "--remove-label", "stage")
    assert run("jobs", "set", "job-1", *changes) == 0
    assert run("jobs", "set", "job-1", "--priority", "0", "--notes", "") == 0
    patches = [asked.body for asked in server.asked if asked.method == "PATCH"]
    assert patches == [{"labels": {"team": "audio", "env": "test"}}, {"priority": 0, "notes": ""}]


def test_set_says_what_it_cannot_do(server, capsys):
    server.on("GET", "/v1/jobs/job-1", Answer(200, job(labels={"team": "vision"})))
    assert run("jobs", "set", "job-1") == 2
    assert "--priority" in capsys.readouterr().err
    assert run("jobs", "set", "job-1", "--label", "team=vision") == 2
    assert "name:value" in capsys.readouterr().err
    assert run("jobs", "set", "job-1", "--remove-label", "stage") == 1
    assert "no label stage; it has team" in capsys.readouterr().err
    assert [asked.method for asked in server.asked] == ["GET"]


def _asked_to_delete(server: ScriptedServer) -> list[dict[str, list[str]]]:
    return [asked.query for asked in server.asked if asked.method == "DELETE" and "preview" not in asked.query]


def test_delete_shows_what_goes_and_asks(server, monkeypatch, capsys):
    server.on("DELETE", "/v1/jobs/job-1", Answer(200, deletion()))
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run("jobs", "delete", "job-1") == 1
    told = capsys.readouterr().err
    assert "1,200, 3.0 MiB" in told
    assert "run-1" in told
    assert "nothing is deleted" in told
    assert _asked_to_delete(server) == []
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run("jobs", "delete", "job-1") == 0
    assert _asked_to_delete(server) == [{"with_backbones": ["false"]}]
    assert "deleted job-1" in capsys.readouterr().out


def test_delete_without_anybody_to_ask_deletes_nothing(server, monkeypatch):
    server.on("DELETE", "/v1/jobs/job-1", Answer(200, deletion()))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("jobs", "delete", "job-1") == 1
    assert _asked_to_delete(server) == []
    assert run("jobs", "delete", "job-1", "--yes") == 0
    assert len(_asked_to_delete(server)) == 1


def test_backbones_go_only_when_they_are_named(server, capsys):
    server.on("DELETE", "/v1/jobs/job-1", Answer(200, deletion(("digits", 2))))
    assert run("jobs", "delete", "job-1", "--yes") == 1
    assert "digits:2 would go with it: nothing is deleted without --with-backbones" in capsys.readouterr().err
    assert _asked_to_delete(server) == []
    assert run("jobs", "delete", "job-1", "--preview", "--json") == 0
    assert json.loads(capsys.readouterr().out)["backbones"] == [{"name": "digits", "version": 2}]
    assert _asked_to_delete(server) == []
    assert run("jobs", "delete", "job-1", "--yes", "--with-backbones", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == 1200
    assert _asked_to_delete(server) == [{"with_backbones": ["true"]}]


def test_show_has_notes_and_attempts(server, capsys):
    moment = datetime.now(UTC)
    ended = {
        "number": 1, "submission_id": "job-1-a1", "state": "lost", "reason": "node_lost", "message": "", "workers": 2,
        "heartbeat_at": str(moment - timedelta(seconds=80)), "started_at": str(moment - timedelta(seconds=170)),
        "ended_at": str(moment - timedelta(seconds=75)), "checkpoint": "checkpoints/a1/40",
    }  # fmt: skip
    live = ended | {"number": 2, "state": "running", "reason": None, "workers": 4, "ended_at": None}
    server.on("GET", "/v1/jobs/job-1", Answer(200, job("running", attempts=2, notes="try [2] of /it")))
    server.on("GET", "/v1/jobs/job-1/attempts", Answer(200, {"items": [ended, live], "next_cursor": None}))
    assert run("jobs", "show", "job-1") == 0
    told = capsys.readouterr().out
    assert "try [2] of /it" in told
    first, second = [line.split() for line in told.splitlines()[-2:]]
    assert first == ["1", "lost", "node_lost", "2", "1:35", "-", "a1/40"]
    assert second[:4] + second[6:] == ["2", "running", "-", "4", "ago", "a1/40"]


def test_logs_follow_until_the_job_has_ended(server, capsys):
    line = {"time": 0.0, "level": "info", "source": "driver", "attempt": 1}
    server.on("GET", "/v1/jobs/job-1", Answer(200, job("succeeded")))
    pages = [([line | {"message": "one"}], "c1"), ([line | {"message": "two"}], "c2"), ([], "c2")]
    server.on("GET", "/v1/jobs/job-1/logs", *[Answer(200, {"items": i, "next_cursor": c}) for i, c in pages])
    assert run("jobs", "logs", "job-1", "--follow", "--json") == 0
    assert [json.loads(text)["message"] for text in capsys.readouterr().out.splitlines()] == ["one", "two"]
    cursors = [asked.query.get("cursor") for asked in server.asked if asked.path.endswith("/logs")]
    assert cursors == [None, ["c1"], ["c2"]]


def test_an_error_is_a_sentence_and_status_1(server, capsys):
    server.on("GET", "/v1/jobs/job-9", problem(404, "job_not_found", "there is no job 'job-9'"))
    assert run("jobs", "show", "job-9") == 1
    assert capsys.readouterr().err == "error: job_not_found: there is no job 'job-9' (request r-1)\n"


def test_a_backbone_reference_is_checked(server, tmp_path, capsys):
    assert run("backbones", "pull", "digits:last", "--out", str(tmp_path / "o")) == 2
    assert "is not a version" in capsys.readouterr().err
    assert run("backbones", "pull", "digits", "--format", "onnx", "--out", str(tmp_path / "o")) == 2
    assert "is not a format" in capsys.readouterr().err
    assert server.asked == []


def test_the_server_is_found_from_the_state_of_a_local_stack(tmp_path, monkeypatch):
    monkeypatch.delenv("RCMAE_URL", raising=False)
    monkeypatch.delenv("RCMAE_TOKEN", raising=False)
    monkeypatch.setenv("RCMAE_STATE_DIR", str(tmp_path))
    (tmp_path / "token").write_text("from-the-folder\n")
    (tmp_path / "stack.json").write_text(json.dumps({"ports": {"api": 8123}}))
    assert find_server() == ("http://127.0.0.1:8123", "from-the-folder")
    monkeypatch.setenv("RCMAE_URL", "https://rcmae.example")
    monkeypatch.setenv("RCMAE_TOKEN", "from-the-environment")
    assert find_server() == ("https://rcmae.example", "from-the-environment")
    monkeypatch.delenv("RCMAE_TOKEN")
    with pytest.raises(errors.ClientError, match="RCMAE_TOKEN is not"):
        find_server()


def test_without_a_server_it_says_how_to_name_one(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RCMAE_URL", raising=False)
    monkeypatch.setenv("RCMAE_STATE_DIR", str(tmp_path / "none"))
    assert run("jobs", "list") == 1
    told = capsys.readouterr().err
    assert "rcmae up" in told
    assert "RCMAE_URL" in told


def test_a_base_install_says_what_the_local_stack_needs(monkeypatch, tmp_path, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in {"ray", "mlflow"} else found(name))
    assert run("up", "--state-dir", str(tmp_path / "state")) == 1
    told = capsys.readouterr().err
    assert "needs mlflow, ray: pip install 'rcmae[server,trainer]'" in told
    assert not (tmp_path / "state").exists()


def test_a_bad_state_dir_and_a_stack_that_never_was(tmp_path, capsys):
    assert run("up", "--state-dir", str(tmp_path / "a?b")) == 1
    assert "must not hold" in capsys.readouterr().err
    assert run("down", "--state-dir", str(tmp_path / "never")) == 0
    assert "nothing runs" in capsys.readouterr().out
    assert run("status", "--state-dir", str(tmp_path / "never"), "--json") == 1
    assert json.loads(capsys.readouterr().out)["up"] is False
    assert list(tmp_path.iterdir()) == []
