"""The command line against a real HTTP server."""

from __future__ import annotations

import importlib.util
import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from scripted_server import Answer, ScriptedServer, deletion, job, line, problem

from service import cli
from service.client import errors, shell
from service.client.server import find_server
from service.jobs.state import State

SPEC = "kind: pretrain\ndataset: {uri: builtin://digits}\n"


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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"kind: pretrain\nname: 2024-05-01\n", "line 2, column 7"),
        (b"kind: pretrain\nkind: pretrain\n", "line 2, column 1"),
        (b"kind: pretrain\nlabels: &x {a: *x}\n", "line 2, column 9"),
        (b"kind: pretrain\nlabels: " + b"[" * 3000, "line 2, column 58"),
        (b"kind: pretrain\nname: \xff\n", "line 2"),
    ],
)
def test_a_file_that_json_could_not_hold_is_refused_at_its_line(server, tmp_path, capsys, content, told):
    (tmp_path / "odd.yaml").write_bytes(content)
    for command in (["submit"], ["searches", "new", "teacher", "--base"], ["searches", "add", "job-1", "--points"]):
        assert run(*command, str(tmp_path / "odd.yaml")) == 2
        assert told in capsys.readouterr().err
    assert server.asked == []


def test_an_override_that_json_could_not_hold_is_refused(server, spec, capsys):
    for command in (["submit", spec], ["data", "inspect", "/data"], ["searches", "promote", "job-1", "3"]):
        assert run(*command, "--set", "optimization.epochs=.nan") == 2
        assert "optimization.epochs: line 1, column 1" in capsys.readouterr().err
    assert server.asked == []


BAD = "a\x1b[31mb\u202ec\rd\x9b1m\x00\u2066"
SHOWN = r"a\x1b[31mb\u202ec\x0dd\x9b1m\x00\u2066"


def test_text_from_outside_moves_no_cursor_and_shows_what_it_has(server, capsys, monkeypatch):
    monkeypatch.setattr(shell.out, "_width", 1000)
    monkeypatch.setattr(shell.err, "_width", 1000)
    shown = job("failed", name=BAD, message=BAD, owner=BAD, labels={"team": BAD}, notes=BAD)
    refused = [{"field": BAD, "pointer": "/n", "value": BAD, "message": BAD}]
    server.on("GET", "/v1/jobs", Answer(200, {"items": [shown], "next_cursor": None}))
    server.on("GET", "/v1/jobs/job-1", Answer(200, shown))
    page = {"items": [line(1, message=BAD, source=BAD)], "next_cursor": "x", "more": False}
    server.on("GET", "/v1/jobs/job-1/logs", Answer(200, page))
    server.on("POST", "/v1/jobs/job-1/pause", problem(409, "not_allowed_in_state", BAD))
    server.on("POST", "/v1/jobs/job-1/cancel", problem(422, "spec_invalid", BAD, refused))
    server.on("POST", "/v1/jobs/job-1/resume", Answer(500, BAD.encode(), {"Content-Type": "text/plain"}))
    for command in (
        ["list"],
        ["show", "job-1"],
        ["logs", "job-1"],
        *([each, "job-1"] for each in ("pause", "cancel", "resume")),
    ):
        run("jobs", *command)
        told = "".join(capsys.readouterr())
        assert SHOWN in told, command
        assert not set(BAD) & set(told) - set("ab[31mcd"), command
        if command[0] in {"list", "show", "logs"}:
            run("jobs", *command, "--json")
            told = capsys.readouterr().out
            assert BAD in _strings(json.loads(told))
            assert not set(BAD) & set(told) - set("ab[31mcd"), command


def _strings(value):
    """All text in a JSON value."""
    if isinstance(value, dict | list):
        return [text for each in (value.values() if isinstance(value, dict) else value) for text in _strings(each)]
    return [value]


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
    assert "cannot be changed: only" in capsys.readouterr().err
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


BACKBONE = {
    "name": "digits", "owner": "alice", "description": "Shelf [b]cameras[/b].", "labels": {"team": "vision"},
    "latest_version": 2, "main_version": 2, "versions": [2], "updated_at": "2026-01-02T03:04:05Z",
}  # fmt: skip
VERSION = {
    "name": "digits", "version": 2, "created_at": "2026-01-02T03:04:05Z", "job_id": "job-1", "owner": "bob",
    "labels": {"site": "north"}, "files": [],
}  # fmt: skip


def test_backbones_are_found_by_words_labels_owners_and_results(server, capsys):
    server.on("GET", "/v1/backbones", Answer(200, {"items": [BACKBONE], "next_cursor": None}))
    filters = ("--search", "shelf x", "--label", "team:vision", "--owner", "alice", "--filter", "eval/a>=1")
    assert run("backbones", "list", *filters, "--filter", "eval/b<1", "--limit", "5") == 0
    told = capsys.readouterr().out
    assert "alice" in told
    assert "team:vision" in told
    query = server.asked[0].query
    assert (query["search"], query["label"], query["owner"]) == (["shelf x"], ["team:vision"], ["alice"])
    assert query["filter"] == ["eval/a>=1", "eval/b<1"]


def test_set_describes_a_backbone_or_a_version_and_keeps_other_labels(server, capsys):
    server.on("GET", "/v1/backbones/digits", Answer(200, BACKBONE))
    server.on("GET", "/v1/backbones/digits/versions/2", Answer(200, VERSION))
    server.on("PATCH", "/v1/backbones/digits", Answer(200, BACKBONE | {"details": [VERSION]}))
    server.on("PATCH", "/v1/backbones/digits/versions/2", Answer(200, VERSION))
    assert run("backbones", "set", "digits", "--label", "env:test", "--owner", "bob") == 0
    told = capsys.readouterr().out
    assert "Shelf [b]cameras[/b]." in told
    assert "owner" in told
    assert run("backbones", "set", "digits:2", "--remove-label", "site", "--description", "") == 0
    assert "bob" in capsys.readouterr().out
    assert run("backbones", "set", "digits:2", "--description", "x", "--json") == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"site": "north"}
    assert [asked.body for asked in server.asked if asked.method == "PATCH"] == [
        {"labels": {"team": "vision", "env": "test"}, "owner": "bob"},
        {"labels": {}, "description": ""},
        {"description": "x"},
    ]


def test_set_says_who_sees_a_backbone_and_adds_and_removes_readers(server, capsys):
    private = BACKBONE | {"visibility": "readers", "readers": ["bob", "carol"]}
    server.on("GET", "/v1/backbones/digits", Answer(200, private))
    server.on("PATCH", "/v1/backbones/digits", Answer(200, private))
    assert run("backbones", "set", "digits", "--visibility", "owners") == 0
    assert "its owners, bob, carol" in capsys.readouterr().out
    assert run("backbones", "set", "digits", "--reader", "dora", "--remove-reader", "bob") == 0
    assert run("backbones", "set", "digits", "--visibility", "readers", "--reader", "bob") == 0
    assert [asked.body for asked in server.asked if asked.method == "PATCH"] == [
        {"visibility": "owners"},
        {"readers": ["carol", "dora"]},
        {"visibility": "readers", "readers": ["bob", "carol"]},
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("digits",), 2, "--description"),
        (("digits:2", "--reader", "bob"), 2, "all versions are seen by the same people"),
        (("digits", "--label", "team=vision"), 2, "name:value"),
        (("digits:2", "--owner", "bob"), 2, "a version keeps its owner"),
        (("digits@champion", "--description", "x"), 2, "digits:NUMBER"),
        (("digits:2", "--remove-label", "team"), 1, "digits:2 has no label team; it has site"),
    ],
)
def test_set_of_a_backbone_says_what_it_cannot_do(server, capsys, arguments, status, told):
    server.on("GET", "/v1/backbones/digits/versions/2", Answer(200, VERSION))
    assert run("backbones", "set", *arguments) == status
    assert told in " ".join(capsys.readouterr().err.split())
    assert [asked.method for asked in server.asked if asked.method != "GET"] == []


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
    assert "digits:2 would be deleted too: nothing is deleted without --with-backbones" in capsys.readouterr().err
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
    first, second = told.splitlines()[-2:]
    assert first.split() == ["1", "lost", "node_lost", "2", "1", "m", "35", "s", "-", "a1/40"]
    assert second.split()[:4] + second.split()[-2:] == ["2", "running", "-", "4", "ago", "a1/40"]


def test_logs_are_read_to_their_end_with_every_filter(server, capsys):
    pages = [([line(1)], "c1", True), ([], "c2", True), ([line(2, level="error")], "c3", False)]
    answers = [Answer(200, {"items": items, "next_cursor": c, "more": more}) for items, c, more in pages]
    server.on("GET", "/v1/jobs/job-1/logs", *answers)
    filters = ("--attempt", "2", "--source", "rank-1", "--level", "warning", "--search", "[x")
    assert run("jobs", "logs", "job-1", *filters, "--tail", "50", "--json") == 0
    assert [json.loads(text)["message"] for text in capsys.readouterr().out.splitlines()] == ["Line 1.", "Line 2."]
    wanted = {"attempt": ["2"], "source": ["rank-1"], "level": ["warning"], "search": ["[x"], "limit": ["500"]}
    assert [asked.query for asked in server.asked] == [
        wanted | {"tail": ["50"]},
        wanted | {"cursor": ["c1"]},
        wanted | {"cursor": ["c2"]},
    ]


def test_a_log_line_is_shown_as_it_is(server, capsys):
    page = {"items": [line(1, message="loss [red]0.5[/] of [rank 1]")], "next_cursor": "c", "more": False}
    server.on("GET", "/v1/jobs/job-1/logs", Answer(200, page))
    assert run("jobs", "logs", "job-1") == 0
    assert capsys.readouterr().out.endswith(" a1 rank-0 loss [red]0.5[/] of [rank 1]\n")


def test_a_log_is_downloaded_whole(server, tmp_path, capsys):
    file = tmp_path / "rank-0.jsonl"
    server.on("GET", "/v1/jobs/job-1/logs/2/rank-0", Answer(200, b'{"a": 1}\n'))
    arguments = ("jobs", "logs", "job-1", "--download", str(file))
    assert run(*arguments, "--attempt", "2", "--source", "rank-0") == 0
    assert file.read_bytes() == b'{"a": 1}\n'
    assert "9 B" in capsys.readouterr().err
    assert run(*arguments, "--attempt", "2", "--source", "rank-0") == 1
    assert "exists" in capsys.readouterr().err
    assert run(*arguments) == 2
    assert "--attempt 1 --source rank-0" in capsys.readouterr().err
    assert run(*arguments, "--attempt", "2", "--source", "rank-0", "--level", "error") == 2
    assert "downloads one whole log" in capsys.readouterr().err


def _point(step: int, value: float) -> dict[str, object]:
    return {"step": step, "value": value, "min": value - 1, "max": value + 1, "time": "2026-01-02T03:04:05Z"}


def test_metrics_are_a_line_a_curve_or_their_points(server, capsys):
    curves = {"job-1": {"train/loss": [_point(1, 4.0), _point(90, 2.5)]}, "job-2": {"train/loss": [_point(7, 9.0)]}}
    server.on("GET", "/v1/metrics", Answer(200, {"jobs": curves}))
    server.on("GET", "/v1/jobs/job-1/metrics", Answer(200, {"series": curves["job-1"]}))
    assert run("jobs", "metrics", "job-1", "job-2", "--key", "train/loss") == 0
    head, first, second = (text.split() for text in capsys.readouterr().out.splitlines())
    assert head == ["METRIC", "JOB", "STEP", "LAST", "MIN", "MAX", "CURVE"]
    assert first == ["train/loss", "job-1", "90", "2.5", "1.5", "5", "█▁"]
    assert second == ["train/loss", "job-2", "7", "9", "8", "10", "▁"]
    assert run("jobs", "metrics", "job-1", "job-2", "--key", "train/loss", "--points", "5") == 0
    assert [text.split()[1:4] for text in capsys.readouterr().out.splitlines()[1:]] == [
        ["job-1", "1", "4"], ["job-1", "90", "2.5"], ["job-2", "7", "9"],
    ]  # fmt: skip
    assert run("jobs", "metrics", "job-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["jobs"]["job-1"]["train/loss"][1]["value"] == 2.5
    both = {"job": ["job-1", "job-2"], "key": ["train/loss"]}
    assert [asked.query for asked in server.asked] == [both | {"points": ["24"]}, both | {"points": ["5"]}, {}]
    assert run("jobs", "metrics", "job-1", "job-2") == 2
    assert "name the metrics to compare" in capsys.readouterr().err


def test_checkpoints_say_which_is_best(server, capsys):
    date = "2026-01-02T03:04:05Z"
    first = {
        "attempt": 1, "step": 1200, "epoch": 2.5, "path": "checkpoints/a1/1200", "bytes": 3 * 2**20, "best": True,
        "created_at": date, "metrics": {"eval/reconstruction_ratio": 0.61234},
    }  # fmt: skip
    second = first | {"step": 2400, "path": "checkpoints/a1/2400", "epoch": None, "metrics": {}, "best": False}
    server.on("GET", "/v1/jobs/job-1/checkpoints", Answer(200, {"items": [first, second], "next_cursor": None}))
    assert run("jobs", "checkpoints", "job-1") == 0
    rows = [text.split() for text in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0][:5] == ["a1/1200", "1,200", "2.5", "3.0", "MiB"]
    assert rows[0][-2:] == ["0.6123", "best"]
    assert rows[1][-1] == "-"


TOKEN = {
    "id": "tok-1", "name": "the laptop's", "owner": "alice", "role": "submitter", "state": "active",
    "created_at": "2026-01-02T03:04:05Z", "expires_at": "2026-02-02T03:04:05Z", "last_used_at": None,
    "revoked_at": None,
}  # fmt: skip


def test_a_new_token_s_text_alone_goes_to_standard_output(server, capsys):
    server.on("POST", "/v1/tokens", Answer(201, TOKEN | {"token": "the-text-itself"}))
    arguments = ("--role", "submitter", "--owner", "alice", "--name", "the laptop's", "--expires-in-days", "31")
    assert run("tokens", "create", *arguments) == 0
    shown, told = capsys.readouterr()
    assert shown == "the-text-itself\n"
    assert "tok-1 is alice's, as submitter, until 2026-02-02" in told
    assert "never again" in told
    assert f"RCMAE_URL={server.url} RCMAE_TOKEN=" in told
    assert "the-text-itself" not in told
    assert run("tokens", "create", "--role", "viewer", "--json") == 0
    assert json.loads(capsys.readouterr().out)["token"] == "the-text-itself"
    assert [asked.body for asked in server.asked] == [
        {"role": "submitter", "owner": "alice", "name": "the laptop's", "expires_in_days": 31},
        {"role": "viewer", "name": ""},
    ]
    assert run("tokens", "create", "--role", "king") == 2
    assert "viewer" in capsys.readouterr().err


def test_tokens_are_listed_replaced_and_ended(server, capsys):
    server.on("GET", "/v1/tokens", Answer(200, {"items": [TOKEN], "next_cursor": None}))
    server.on("POST", "/v1/tokens/tok-1/rotate", Answer(201, TOKEN | {"id": "tok-2", "token": "another-text"}))
    server.on("DELETE", "/v1/tokens/tok-1", Answer(200, TOKEN | {"state": "revoked"}))
    assert run("tokens", "list", "--owner", "alice") == 0
    assert "tok-1  the laptop's  alice  submitter  active" in capsys.readouterr().out
    assert run("tokens", "rotate", "tok-1", "--grace", "60") == 0
    assert capsys.readouterr().out == "another-text\n"
    assert run("tokens", "revoke", "tok-1") == 0
    assert "revoked" in capsys.readouterr().out
    assert [(asked.query, asked.body) for asked in server.asked] == [
        ({"owner": ["alice"]}, None), ({}, {"grace_s": 60}), ({}, None),
    ]  # fmt: skip


def test_the_audit_log_passes_its_filters_on(server, capsys):
    entry = {
        "id": 7, "time": "2026-01-02T03:04:05Z", "actor": "bob", "token_id": "tok-1", "action": "job.cancel",
        "target": "job-1", "status": 403, "request_id": "r-9", "address": "10.0.0.7", "detail": None,
    }  # fmt: skip
    server.on("GET", "/v1/audit", Answer(200, {"items": [entry] * 3, "next_cursor": "more"}))
    filters = ("--actor", "bob", "--action", "job.cancel", "--target", "job-1", "--after", "2026-01-01")
    assert run("audit", *filters, "--limit", "2") == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert rows[1].split()[2:] == ["bob", "job.cancel", "job-1", "403", "10.0.0.7", "r-9"]
    (asked,) = server.asked
    assert (asked.query["actor"], asked.query["limit"]) == (["bob"], ["2"])
    assert datetime.fromisoformat(asked.query["after"][0]).utcoffset() is not None


def test_the_cluster_is_shown_with_its_queue(server, capsys):
    amounts = {"cpus": 8, "cpus_used": 3, "cpus_free": 5, "gpus": 2, "gpus_used": 1, "gpus_free": 1}
    node = amounts | {"id": "n" * 56, "address": "10.0.0.1", "state": "alive", "gpu_model": "H100", "message": ""}
    began = str(datetime.now(UTC) - timedelta(seconds=65))
    held = {
        "id": "job-1", "name": "digits", "owner": "me", "state": "running", "priority": 0, "workers": 2, "cpus": 3,
        "gpus": 1, "since": began,
    }  # fmt: skip
    waiting = held | {
        "id": None, "name": None, "owner": None, "state": "queued", "position": 1, "starts": False,
        "reason": "insufficient_resources", "message": None,
    }  # fmt: skip
    found = {
        "totals": amounts | {"nodes": 1}, "nodes": [node], "running": [held | {"attempt": 1, "nodes": []}],
        "queue": [waiting],
    }  # fmt: skip
    server.on("GET", "/v1/cluster", Answer(200, found))
    assert run("cluster") == 0
    told = capsys.readouterr().out
    assert "1 node; in use: 3/8 CPUs, 1/2 GPUs" in told
    assert "nnnnnnnnnnnn  10.0.0.1  alive  3/8   1/2   H100" in told
    assert "job-1    digits  me     2        3     1" in told
    assert "(not yours)" in told
    assert told.rstrip().endswith("insufficient_resources")
    assert run("cluster", "--json") == 0
    assert json.loads(capsys.readouterr().out)["queue"][0]["position"] == 1


@pytest.mark.parametrize("width", [40, 80, 200])
def test_names_are_shown_whole_however_narrow_the_terminal(server, monkeypatch, capsys, width):
    long = "a-name-[with-brackets]-" + "x" * 80
    server.on("GET", "/v1/jobs", Answer(200, {"items": [job(id="job-0123456789abcd", name=long)], "next_cursor": None}))
    monkeypatch.setattr(shell.out, "width", width)
    assert run("jobs", "list") == 0
    rows = capsys.readouterr().out.splitlines()
    assert max(map(len, rows)) <= width
    assert any(row.startswith("job-0123456789abcd") for row in rows)
    assert sum(row.count("x") for row in rows) == 80


def test_an_error_is_a_sentence_and_status_1(server, capsys):
    server.on("GET", "/v1/jobs/job-9", problem(404, "job_not_found", "there is no job 'job-9'"))
    assert run("jobs", "show", "job-9") == 1
    assert capsys.readouterr().err == "error: job_not_found: there is no job 'job-9' (request r-1)\n"


def test_a_backbone_reference_is_checked(server, tmp_path, capsys):
    for wrong in ("digits:Last", "digits:", "digits@", "@champion", ":3", "digits:-1", "a:b@c", "digits@3.0"):
        assert run("backbones", "pull", wrong, "--out", str(tmp_path / "o")) == 2
        assert "is not a backbone" in capsys.readouterr().err
    assert run("backbones", "pull", "digits", "--format", "pickle", "--out", str(tmp_path / "o")) == 2
    assert "torch_export" in capsys.readouterr().err
    for command in ("delete", "alias"):
        assert run("backbones", command, "digits", *(["best"] if command == "alias" else [])) == 2
        assert "names no version" in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(
    ("written", "asked"),
    [(f"digits{separator}{version}", meant) for separator in "@:" for version, meant in {
        "3": "3", "v3": "3", "latest": "latest", "main": "main", "champion": "champion", "0a" * 20: "0a" * 20,
    }.items()],
)  # fmt: skip
def test_either_separator_takes_whatever_names_a_version(server, written, asked):
    server.on("GET", f"/v1/backbones/digits/versions/{asked}", problem(404, "version_not_found", "there is none"))
    assert run("backbones", "show", written) == 1
    assert [request.path for request in server.asked] == [f"/v1/backbones/digits/versions/{asked}"]


def test_the_server_is_found_from_the_state_of_a_local_stack(tmp_path, monkeypatch):
    monkeypatch.delenv("RCMAE_URL", raising=False)
    monkeypatch.delenv("RCMAE_TOKEN", raising=False)
    monkeypatch.setenv("RCMAE_STATE_DIR", str(tmp_path))
    (tmp_path / "token").write_text("from-the-folder\n")
    (tmp_path / "stack.json").write_text(json.dumps({"ports": {"api": 8123}}))
    assert find_server() == ("http://127.0.0.1:8123", "from-the-folder", tmp_path / "token")
    monkeypatch.setenv("RCMAE_URL", "https://rcmae.example")
    monkeypatch.setenv("RCMAE_TOKEN", "from-the-environment")
    assert find_server() == ("https://rcmae.example", "from-the-environment", None)
    monkeypatch.delenv("RCMAE_TOKEN")
    with pytest.raises(errors.ClientError, match="RCMAE_TOKEN is not"):
        find_server()


def test_a_local_stack_whose_token_was_revoked_says_how_to_make_another(server, tmp_path, monkeypatch, capsys):
    server.routes["GET", "/v1/jobs"] = lambda _: problem(401, "unauthorized", "this token was revoked")
    assert run("jobs", "list") == 1
    assert "rcmae up" not in capsys.readouterr().err, "of another server's token it knows no more"
    port = int(server.url.rpartition(":")[2])
    monkeypatch.delenv("RCMAE_URL")
    monkeypatch.delenv("RCMAE_TOKEN")
    monkeypatch.setenv("RCMAE_STATE_DIR", str(tmp_path))
    (tmp_path / "token").write_text("the-one-that-was-revoked")
    (tmp_path / "stack.json").write_text(json.dumps({"ports": {"api": port}}))
    assert run("jobs", "list") == 1
    told = capsys.readouterr().err
    assert f"this token was revoked. It is the token in {tmp_path / 'token'}." in told
    assert "`rcmae down`, delete that file, and `rcmae up` makes a new one" in told


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
