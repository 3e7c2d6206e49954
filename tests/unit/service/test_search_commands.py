"""The command line about searches against a real HTTP server."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from scripted_server import Answer, event, job, line, problem, search, search_progress, sent, streamed, trial

from service import cli
from service.client import shell
from trainer.spec.search import SearchSpec

SEARCH = "/v1/searches/job-1"
BASE = "kind: pretrain\ndataset: {uri: builtin://digits}\noptimization: {epochs: 20, base_lr: 3e-3}\n"


def run(*arguments: str) -> int:
    """The exit status of the console script."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def cells(text: str) -> list[list[str]]:
    """A table's lines, each as its cells."""
    return [re.split(r"\s{2,}", row.strip()) for row in text.splitlines()]


def detail(number: int, **over):
    return trial(number) | {
        "intermediate": [{"epoch": 5, "value": 0.3}, {"epoch": 20, "value": 0.9}], "attempts": [1, 2], "spec": {},
        "metrics": {"eval/linear_top1": 0.9123456789, "train/loss": 0.41},
        "difference": {"optimization.base_lr": {"value": 2e-5, "best": 0.0003}},
    } | over  # fmt: skip


def test_a_search_says_how_far_it_is_and_what_is_best(server, capsys):
    repeats = [
        {"number": 7, "params": trial(7)["params"], "values": [0.9, 0.8], "mean": 0.85, "low": 0.2, "high": 1.5},
        {"number": 3, "params": {}, "values": [0.7], "mean": 0.7, "low": None, "high": None},
    ]
    server.on("GET", SEARCH, Answer(200, search(repeats=repeats, promoted={"7": ["job-9"]}, draining=True)))
    assert run("searches", "show", "job-1") == 0
    told = capsys.readouterr().out
    for text in (
        "tune [1]",
        "running, starts no other trial",
        "eval/linear_top1 (max)",
        "9 complete, 4 pruned, 1 failed, 2 running",
        "32 trials, 2 at a time (4 wanted), 8 may fail",
        "1 h 02 m",
        "10 m 00 s",
        "trial 7 to job-9",
    ):
        assert text in told
    rows = cells(told)
    assert ["method.teacher.momentum", "0.9 to 0.9999"] in rows
    assert ["optimization.base_lr", "1e-05 to 0.001, by its logarithm"] in rows
    assert ["7 best", "complete", "0.912346", "20", "1 m 05 s", "0.996123", "2e-05"] in rows
    assert ["7", "0.85", "0.2 to 1.5", "0.9, 0.8", "0.996123", "2e-05"] in rows
    assert ["3", "0.7", "-", "0.7", "-", "-"] in rows
    assert run("searches", "show", "job-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["best"][0]["number"] == 7


def test_a_search_without_a_value_shows_its_space(server, capsys):
    space = {
        "method.name": {"type": "categorical", "choices": ["rc_mae", "mae"], "when": None},
        "model.depth": {"type": "int", "low": 2, "high": 8, "log": False, "step": 2, "when": {"method.name": ["mae"]}},
    }
    server.on("GET", SEARCH, Answer(200, search(best=[], space=space, grid_size=8, trials={}, eta_s=None)))
    assert run("searches", "show", "job-1") == 0
    told = capsys.readouterr().out
    assert "no trial has a value yet" in told
    assert "32 trials of 8 points" in told
    assert ["model.depth", "2 to 8, step 2; where method.name is mae"] in cells(told)
    assert ["method.name", "rc_mae, mae"] in cells(told)
    assert "ETA" not in told


def test_trials_are_a_table_with_a_column_for_each_parameter(server, capsys):
    failed = trial(8, "failed", values=None, epoch=None, duration_s=None, params={"method.teacher.momentum": 1234567.0})
    server.on("GET", SEARCH, Answer(200, search()))
    page = {"items": [trial(7, best=True), failed, trial(9)], "next_cursor": "more"}
    server.on("GET", f"{SEARCH}/trials", Answer(200, page))
    filters = ("--state", "complete", "--state", "failed", "--sort", "-value", "--limit", "2")
    assert run("searches", "trials", "job-1", *filters) == 0
    assert cells(capsys.readouterr().out) == [
        ["TRIAL", "STATE", "eval/linear_top1", "EPOCH", "TOOK", "momentum", "base_lr"],
        ["7 best", "complete", "0.912346", "20", "1 m 05 s", "0.996123", "2e-05"],
        ["8", "failed", "-", "-", "-", "1.23457e+06", "-"],
    ]
    asked = server.asked[0]
    assert (asked.query["state"], asked.query["sort"]) == (["complete", "failed"], ["-value"])
    assert asked.query["limit"] == ["2"]
    assert run("searches", "trials", "job-1", "--limit", "3", "--json") == 0
    assert [each["number"] for each in json.loads(capsys.readouterr().out)] == [7, 8, 9]


def test_running_trials_show_how_far_they_are_and_stopped_ones_that_somebody_stopped_them(server, capsys):
    progress = {"epoch": 1.5, "epochs": 9, "step": 30, "steps": 90, "loss": 0.75, "images_per_s": 640.4}
    progress["eta_s"] = 12.0
    seen = (datetime.now(UTC) - timedelta(seconds=3)).isoformat()
    alive = trial(8, "running", values=None, epoch=None, progress=progress, heartbeat_at=seen)
    begun = trial(9, "running", values=None, epoch=None)
    stopped = trial(7, "pruned", reason="stopped_by_user")
    server.on("GET", SEARCH, Answer(200, search()))
    server.on("GET", f"{SEARCH}/trials", Answer(200, {"items": [begun, alive, stopped], "next_cursor": None}))
    assert run("searches", "trials", "job-1") == 0
    head, *rows = cells(capsys.readouterr().out)
    assert head[:9] == ["TRIAL", "STATE", "eval/linear_top1", "EPOCH", "STEP", "LOSS", "IMAGES/S", "SEEN", "TOOK"]
    assert rows[0][:8] == ["9", "running", "-", "-", "-", "-", "-", "-"]
    assert rows[1][:7] == ["8", "running", "-", "1.5", "30/90", "0.75", "640"]
    assert re.fullmatch(r"[345] s ago", rows[1][7])
    assert rows[2][:4] == ["7", "stopped by hand", "0.912346", "20"]
    server.on("GET", f"{SEARCH}/trials/8", Answer(200, detail(8) | alive))
    assert run("searches", "trial", "job-1", "8") == 0
    rows = cells(capsys.readouterr().out)
    assert ["epochs", "1.5"] in rows
    assert ["step", "30/90"] in rows


def test_several_objectives_have_a_column_each(server, capsys):
    objectives = [{"metric": "eval/linear_top1", "mode": "max"}, {"metric": "throughput/images_per_s", "mode": "max"}]
    server.on("GET", SEARCH, Answer(200, search(objectives=objectives)))
    page = {"items": [trial(0, values=[0.5, 812.0]), trial(1, "waiting", values=None)], "next_cursor": None}
    server.on("GET", f"{SEARCH}/trials", Answer(200, page))
    assert run("searches", "trials", "job-1") == 0
    head, first, second = cells(capsys.readouterr().out)
    assert head[2:4] == ["eval/linear_top1", "throughput/images_per_s"]
    assert (first[2:4], second[2:4]) == (["0.5", "812"], ["-", "-"])


def test_all_trials_go_into_a_new_file(server, tmp_path, capsys):
    text = "number,state\r\n0,complete\r\n"
    server.on("GET", f"{SEARCH}/trials.csv", Answer(200, text.encode()))
    file = tmp_path / "trials.csv"
    assert run("searches", "trials", "job-1", "--csv", str(file)) == 0
    assert file.read_bytes() == text.encode()
    file.write_text("mine")
    assert run("searches", "trials", "job-1", "--csv", str(file)) == 1
    assert "File exists: name a new file" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert run("searches", "trials", "job-1", "--csv", "-") == 0
    assert capsys.readouterr().out.splitlines() == ["number,state", "0,complete"]
    assert run("searches", "trials", "job-1", "--csv", "-", "--sort", "value") == 2


def test_a_refused_table_leaves_no_file(server, tmp_path):
    server.on("GET", f"{SEARCH}/trials.csv", problem(404, "search_not_found", "there is no search"))
    assert run("searches", "trials", "job-1", "--csv", str(tmp_path / "trials.csv")) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_shown_beside_the_best(server, capsys):
    pruned = detail(3, state="pruned", reason="stopped_by_user", message="Somebody [me] stopped it.", retry_of=1)
    server.on("GET", SEARCH, Answer(200, search()))
    server.on("GET", f"{SEARCH}/trials/3", Answer(200, pruned))
    assert run("searches", "trial", "job-1", "3") == 0
    rows = cells(capsys.readouterr().out)
    for row in (
        ["state", "stopped by hand"],
        ["reason", "stopped_by_user"],
        ["message", "Somebody [me] stopped it."],
        ["eval/linear_top1", "0.912346"],
        ["retry of", "trial 1"],
        ["took", "1 m 05 s"],
        ["attempts", "1, 2"],
        ["curve", "▁█", "0.3 at epoch 5, 0.9 at 20"],
        ["train/loss", "0.41"],
        ["method.teacher.momentum", "0.996123", "the same"],
        ["optimization.base_lr", "2e-05", "0.0003"],
    ):
        assert row in rows
    assert run("searches", "trial", "job-1", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["difference"]["optimization.base_lr"]["best"] == 0.0003


def test_a_trial_is_stopped_and_another_tried_again(server, capsys):
    server.on("POST", f"{SEARCH}/trials/3/stop", Answer(200, trial(3, "running")))
    server.on("POST", f"{SEARCH}/trials/4/retry", Answer(200, trial(12, "waiting", retry_of=4)))
    assert run("searches", "stop-trial", "job-1", "3") == 0
    assert "trial 3 ends" in capsys.readouterr().out
    assert run("searches", "retry-trial", "job-1", "4") == 0
    assert "trial 12 has the values of trial 4" in capsys.readouterr().out
    assert run("searches", "stop-trial", "job-1", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "running"


def test_the_best_trial_is_promoted_unless_one_is_named(server, capsys):
    server.on("GET", SEARCH, Answer(200, search()))
    for number in (3, 7):
        server.on("POST", f"{SEARCH}/trials/{number}/promote", Answer(201, job(id="job-9")))
    told = ("--set", "optimization.epochs=400", "--set", "resources.workers=auto", "--register-as", "best")
    assert run("searches", "promote", "job-1", *told) == 0
    assert "trial 7 is job job-9, which is queued" in capsys.readouterr().out
    assert run("searches", "promote", "job-1", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "job-9"
    bodies = {asked.path: asked.body for asked in server.asked if asked.method == "POST"}
    overrides = {"optimization.epochs": 400, "resources.workers": "auto"}
    assert bodies[f"{SEARCH}/trials/7/promote"] == {"overrides": overrides, "register_as": "best"}
    assert bodies[f"{SEARCH}/trials/3/promote"] == {"overrides": {}}


@pytest.mark.parametrize(
    ("best", "told"),
    [([], "no trial of job-1 has a value yet"), ([trial(3), trial(5)], "none of the trials 3, 5 of job-1 beats")],
)
def test_without_one_best_trial_a_promotion_asks_for_a_name(server, capsys, best, told):
    server.on("GET", SEARCH, Answer(200, search(best=best)))
    assert run("searches", "promote", "job-1") == 1
    assert told in capsys.readouterr().err
    assert [asked.method for asked in server.asked] == ["GET"]


def test_a_budget_is_changed_where_it_is_named(server, capsys):
    server.on("PATCH", SEARCH, Answer(200, search()))
    assert run("searches", "set", "job-1", "--trials", "64", "--max-failed", "0", "--max-hours", "1.5") == 0
    assert run("searches", "set", "job-1", "--concurrency", "8", "--max-hours", "none", "--json") == 0
    assert [asked.body for asked in server.asked] == [
        {"trials": 64, "max_failed": 0, "max_hours": 1.5},
        {"concurrency": 8, "max_hours": None},
    ]
    capsys.readouterr()
    assert run("searches", "set", "job-1") == 2
    assert "--trials" in capsys.readouterr().err
    assert run("searches", "set", "job-1", "--max-hours", "soon") == 2
    assert "a number or none" in capsys.readouterr().err


def test_chosen_points_are_added(server, tmp_path, capsys):
    made = {"items": [trial(12, "waiting"), trial(13, "waiting")], "next_cursor": None}
    server.on("POST", f"{SEARCH}/trials", Answer(201, made))
    file = tmp_path / "points.json"
    file.write_text(json.dumps([{"optimization.base_lr": 1e-05}]))
    chosen = ("--set", "optimization.base_lr=2e-4", "--set", "method.teacher.momentum=0.99")
    assert run("searches", "add", "job-1", "--points", str(file), *chosen, "--beyond-budget") == 0
    assert "trials 12, 13" in capsys.readouterr().out
    points = [{"optimization.base_lr": 1e-5}, {"optimization.base_lr": 2e-4, "method.teacher.momentum": 0.99}]
    assert [asked.body for asked in server.asked] == [{"points": points, "beyond_budget": True}]
    assert run("searches", "add", "job-1", *chosen, "--json", "--idempotency-key", "k") == 0
    assert server.asked[-1].headers["idempotency-key"] == "k"
    assert [each["number"] for each in json.loads(capsys.readouterr().out)] == [12, 13]


def test_what_is_no_point_is_refused(server, tmp_path, capsys):
    file = tmp_path / "points.yaml"
    file.write_text("optimization.base_lr: 0.1\n")
    assert run("searches", "add", "job-1", "--points", str(file)) == 2
    assert "must be a list of trials" in capsys.readouterr().err
    assert run("searches", "add", "job-1") == 2
    assert server.asked == []
    found = [{"field": "params.seed", "pointer": "/params/seed", "value": 1, "message": "is no parameter"}]
    server.on("POST", f"{SEARCH}/trials", problem(422, "spec_invalid", "one problem", found))
    assert run("searches", "add", "job-1", "--set", "seed=1") == 2
    assert "params.seed: is no parameter" in capsys.readouterr().err


def test_a_search_is_stopped(server, capsys):
    server.on("POST", "/v1/jobs/job-1/stop", Answer(200, job("running", kind="search", progress=search_progress())))
    assert run("searches", "stop", "job-1") == 0
    assert (
        "14/32 trials  2 running  4 pruned  1 failed  best 0.912346 (trial 7)  ETA 10 m 00 s" in capsys.readouterr().out
    )


def test_a_trial_s_logs_are_read_to_their_end(server, capsys):
    pages = [([line(1)], "c1", True), ([line(2, level="error")], "c2", False)]
    answers = [Answer(200, {"items": items, "next_cursor": c, "more": more}) for items, c, more in pages]
    server.on("GET", f"{SEARCH}/trials/3/logs", *answers)
    filters = ("--attempt", "2", "--source", "rank-0", "--level", "warning", "--search", "x", "--tail", "5")
    assert run("searches", "logs", "job-1", "3", *filters, "--json") == 0
    assert [json.loads(text)["message"] for text in capsys.readouterr().out.splitlines()] == ["Line 1.", "Line 2."]
    wanted = {"attempt": ["2"], "source": ["rank-0"], "level": ["warning"], "search": ["x"], "limit": ["500"]}
    assert [asked.query for asked in server.asked] == [wanted | {"tail": ["5"]}, wanted | {"cursor": ["c1"]}]


# -- Searches among jobs


def test_jobs_say_how_far_a_search_is_and_where_a_job_came_from(server, capsys):
    found = [
        job("running", kind="search", progress=search_progress()),
        job(id="job-2", progress={"epoch": 3.5, "epochs": 10, "step": 42}),
        job(id="job-3", kind="search", progress=search_progress(budget=9)),
    ]
    server.on("GET", "/v1/jobs", Answer(200, {"items": found, "next_cursor": None}))
    assert run("jobs", "list", "--kind", "search") == 0
    told = [row[3] for row in cells(capsys.readouterr().out)[1:]]
    assert told == ["14/32 trials", "3.5/10 epochs", "14 trials"], "repeats come on top of the budget"
    assert server.asked[0].query["kind"] == ["search"]
    server.on("GET", "/v1/jobs/job-2", Answer(200, job(promoted_from={"search": "job-1", "trial": 7})))
    assert run("jobs", "show", "job-2") == 0
    assert ["promoted from", "trial 7 of job-1"] in cells(capsys.readouterr().out)


@pytest.mark.parametrize(("width", "shown"), [(300, "best 0.912346 (trial 7)  ETA 10 m 00 s"), (60, "14/32 trials")])
def test_a_search_is_followed_by_its_trials(server, tmp_path, monkeypatch, capsys, width, shown):
    monkeypatch.setattr(shell.err, "width", width)
    (tmp_path / "spec.yaml").write_text("kind: search\n")
    over = job("succeeded", kind="search", progress=search_progress(eta_s=None))
    pieces = [
        sent("job", job("running", kind="search", progress=search_progress()), 1),
        sent("event", event(1, "running", "Two trials run."), 2), sent("job", over, 3), sent("end", {}, "end"),
    ]  # fmt: skip
    server.on("POST", "/v1/jobs", Answer(201, job(kind="search")))
    server.on("GET", "/v1/jobs/job-1/stream", streamed(pieces))
    assert run("submit", str(tmp_path / "spec.yaml"), "--follow") == 0
    out, err = capsys.readouterr()
    assert shown in err
    assert "Two trials run." in err
    assert "best 0.912346 (trial 7)" in out


def test_submitting_a_search_says_where_its_trials_are(server, tmp_path, capsys):
    (tmp_path / "spec.yaml").write_text("kind: search\n")
    server.on("POST", "/v1/jobs", Answer(201, job(kind="search")))
    assert run("submit", str(tmp_path / "spec.yaml")) == 0
    assert "rcmae searches trials job-1" in capsys.readouterr().out


def test_a_search_s_plan_says_how_many_trials_run_at_a_time(server, tmp_path, capsys):
    (tmp_path / "spec.yaml").write_text("kind: search\n")
    budget = {"trials": 32, "concurrency": 2}
    planned = {
        "spec": {"kind": "search", "base": {"resources": {"workers": 1}}, "budget": budget},
        "parameters": {"encoder": 1000, "decoder": 100}, "steps": None, "memory_per_worker_bytes": 3 * 2**20,
        "gang": {"cpus": 2, "gpus": 0}, "fits": "now", "message": "Two at a time fit.",
    }  # fmt: skip
    server.on("POST", "/v1/jobs/plan", Answer(200, planned))
    assert run("submit", str(tmp_path / "spec.yaml"), "--plan") == 0
    rows = cells(capsys.readouterr().out)
    assert ["trials", "32, 2 at a time"] in rows
    assert ["workers", "1 a trial, together 2 CPUs and 0 GPUs"] in rows


# -- Ready-made searches


def test_ready_searches_are_listed(capsys):
    assert run("searches", "presets") == 0
    names = [row[0] for row in cells(capsys.readouterr().out)[1:]]
    assert names == ["teacher", "masking", "learning-rate"]
    assert run("searches", "presets", "--json") == 0
    assert json.loads(capsys.readouterr().out)[1]["varies"] == ["method.mask_ratio"]


def test_a_ready_search_can_be_submitted_as_it_is_printed(server, tmp_path, capsys):
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    changes = ("--set", "budget.trials=16", "--set", "base.optimization.epochs=30", "--set", "labels.team=vision")
    made = ("searches", "new", "learning-rate", "--base", str(base), *changes)
    assert run(*made) == 0
    printed = capsys.readouterr().out
    assert run(*made, "--json") == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(printed)
    spec = SearchSpec.parse(yaml.safe_load(printed))
    assert (spec.budget.trials, spec.epochs, spec.labels) == (16, 30, {"team": "vision"})
    assert spec.scheduler.grace_epochs == 20, "what the changed base has room for"
    (tmp_path / "search.yaml").write_text(printed)
    server.on("POST", "/v1/jobs", Answer(201, job(kind="search")))
    assert run("submit", str(tmp_path / "search.yaml")) == 0
    assert SearchSpec.parse(server.asked[0].body) == spec


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("teachers",), "there are teacher, masking, learning-rate"),
        (("teacher", "--set", "budget.trial=3"), "did you mean 'trials'?"),
        (("teacher", "--set", "base.method.name=mae"), "method mae has no teacher"),
        (("masking", "--set", "space.method.mask_ratio.high=0.8"), "cannot change space"),
        (("masking", "--set", "base.dataset.url=x"), "dataset.url: unknown field; did you mean 'uri'?"),
    ],
)
def test_a_ready_search_that_cannot_be_is_refused(tmp_path, capsys, arguments, told):
    (tmp_path / "base.yaml").write_text(BASE)
    assert run("searches", "new", *arguments, "--base", str(tmp_path / "base.yaml")) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""
