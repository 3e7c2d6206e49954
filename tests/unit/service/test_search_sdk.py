"""The typed client's calls about searches against a real HTTP server."""

from __future__ import annotations

import pytest
from scripted_server import Answer, Asked, ScriptedServer, job, line, problem, search, trial

from service.client.errors import ApiError
from service.client.sdk import Client
from service.jobs.schemas import Progress, SearchProgress
from service.jobs.state import State
from service.searches.schemas import TrialState

SEARCH = "/v1/searches/job-1"


@pytest.fixture
def client(server):
    with Client(server.url, "secret", patience_s=5) as made:
        yield made


def test_a_search_is_read_and_its_budget_changed(server, client):
    away = problem(503, "unavailable", "soon")
    server.on("GET", SEARCH, away, Answer(200, search()))
    server.on("PATCH", SEARCH, away, Answer(200, search()))
    assert client.search("job-1").best[0].number == 7
    client.change_search("job-1", trials=64, max_failed=0)
    client.change_search("job-1", concurrency=8, max_hours=1.5)
    client.change_search("job-1", max_hours="none")
    assert [asked.body for asked in server.asked if asked.method == "PATCH"] == [
        {"trials": 64, "max_failed": 0},
        {"trials": 64, "max_failed": 0},
        {"concurrency": 8, "max_hours": 1.5},
        {"max_hours": None},
    ]


def test_trials_come_page_by_page(server, client):
    pages = {None: ([trial(0), trial(1)], "next"), "next": ([trial(2)], None)}

    def listing(asked: Asked) -> Answer:
        items, cursor = pages[asked.query.get("cursor", [None])[0]]
        return Answer(200, {"items": items, "next_cursor": cursor})

    server.routes["GET", f"{SEARCH}/trials"] = listing
    wanted = client.trials("job-1", states=[TrialState.PRUNED, TrialState.FAILED], sort="-value", page_size=2)
    assert [found.number for found in wanted] == [0, 1, 2]
    for asked in server.asked:
        assert (asked.query["state"], asked.query["sort"]) == (["pruned", "failed"], ["-value"])
        assert asked.query["limit"] == ["2"]


def test_a_promotion_is_asked_for_again_while_the_service_is_away(server, client):
    promoted = job(promoted_from={"search": "job-0", "trial": 7})
    server.on("POST", f"{SEARCH}/trials/7/promote", problem(503, "unavailable", "soon"), Answer(201, promoted))
    made = client.promote("job-1", 7, overrides={"optimization.epochs": 400}, register_as="best")
    assert (made.promoted_from.search, made.promoted_from.trial) == ("job-0", 7)
    client.promote("job-1", 7)
    told = {"overrides": {"optimization.epochs": 400}, "register_as": "best"}
    assert [asked.body for asked in server.asked] == [told, told, {"overrides": {}}]


def test_trials_are_added_with_one_key_however_often_it_is_asked(server, client):
    added = Answer(201, {"items": [trial(9, "waiting", values=None)], "next_cursor": None})
    server.on("POST", f"{SEARCH}/trials", problem(503, "unavailable", "soon"), added, added, added)
    for key in (None, None, "my-key"):
        client.add_trials("job-1", [{"method.mask_ratio": 0.8}], idempotency_key=key)
    first, again, other, own = (asked.headers["idempotency-key"] for asked in server.asked)
    assert (first, own) == (again, "my-key")
    assert other != first


@pytest.mark.parametrize(
    ("path", "call"),
    [
        (f"{SEARCH}/trials/3/stop", lambda client: client.stop_trial("job-1", 3)),
        (f"{SEARCH}/trials/3/retry", lambda client: client.retry_trial("job-1", 3)),
        ("/v1/jobs/job-1/stop", lambda client: client.stop("job-1")),
    ],
)
def test_what_may_not_be_repeated_is_sent_once(server, client, path, call):
    server.on("POST", path, problem(503, "unavailable", "soon"))
    with pytest.raises(ApiError, match="soon"):
        call(client)
    assert len(server.asked) == 1


def test_verbs_answer_what_became_of_it(server, client):
    added = {"items": [trial(9, "waiting", values=None)], "next_cursor": None}
    server.on("POST", f"{SEARCH}/trials", Answer(201, added))
    server.on("POST", f"{SEARCH}/trials/3/stop", Answer(200, trial(3, "running")))
    server.on("POST", f"{SEARCH}/trials/4/retry", Answer(200, trial(10, "waiting", retry_of=4)))
    server.on("POST", "/v1/jobs/job-1/stop", Answer(200, job("running")))
    (made,) = client.add_trials("job-1", [{"method.mask_ratio": 0.8}], beyond_budget=True)
    assert (made.number, made.state, made.values) == (9, TrialState.WAITING, None)
    assert client.stop_trial("job-1", 3).state is TrialState.RUNNING
    assert client.retry_trial("job-1", 4).retry_of == 4
    assert client.stop("job-1").state is State.RUNNING
    assert server.asked[0].body == {"points": [{"method.mask_ratio": 0.8}], "beyond_budget": True}


def test_what_a_trial_left(server, client):
    detail = trial(3) | {
        "intermediate": [{"epoch": 5, "value": 0.5}], "metrics": {"train/loss": 0.4}, "attempts": [1], "spec": {},
        "difference": {"optimization.base_lr": {"value": 2e-5, "best": 3e-5}},
    }  # fmt: skip
    at = f"{SEARCH}/trials/3"
    point = {"step": 5, "value": 1.0, "min": 1.0, "max": 1.0, "time": "2026-01-02T03:04:05Z"}
    picture = {"step": 5, "name": "a.png", "url": f"{at}/images/a.png"}
    server.on("GET", at, Answer(200, detail))
    server.on("GET", f"{at}/logs", Answer(200, {"items": [line(1)], "next_cursor": "c", "more": False}))
    server.on("GET", f"{at}/metrics", Answer(200, {"series": {"train/loss": [point]}}))
    server.on("GET", f"{at}/images", Answer(200, {"items": [picture], "next_cursor": None}))
    server.on("GET", f"{at}/images/a.png", Answer(200, b"\x89PNG"))
    assert client.trial("job-1", 3).difference["optimization.base_lr"].best == 3e-5
    assert client.trial_logs("job-1", 3, level="error", tail=5).items[0].message == "Line 1."
    assert client.trial_metrics("job-1", 3, ["train/loss"], points=9).series["train/loss"][0].value == 1.0
    assert [client.trial_image("job-1", 3, each.name) for each in client.trial_images("job-1", 3)] == [b"\x89PNG"]
    queries = {asked.path: asked.query for asked in server.asked}
    assert queries[f"{at}/logs"] == {"level": ["error"], "tail": ["5"], "limit": ["500"]}
    assert queries[f"{at}/metrics"] == {"key": ["train/loss"], "points": ["9"]}


def test_all_trials_as_a_table_and_as_a_figure(server, client):
    figure = {"name": "contour", "data": [{"type": "contour"}], "layout": {}, "trials": 12, "note": None}
    server.on("GET", f"{SEARCH}/trials.csv", Answer(200, b"number,state\r\n0,complete\r\n"))
    server.on("GET", f"{SEARCH}/plots/contour", Answer(200, figure))
    assert client.trials_csv("job-1") == "number,state\r\n0,complete\r\n"
    assert client.plot("job-1", "contour", ["seed", "method.mask_ratio"]).trials == 12
    assert server.asked[-1].query == {"param": ["seed", "method.mask_ratio"]}


def test_progress_is_of_the_job_s_kind(server: ScriptedServer, client):
    counts = {"waiting": 0, "running": 1, "complete": 3, "pruned": 2, "failed": 1}
    kinds = [{"trials": counts, "budget": 8}, {"epoch": 1.5, "epochs": 4, "step": 9}]
    server.on("GET", "/v1/jobs/job-1", *[Answer(200, job(progress=kind)) for kind in kinds])
    searched, trained = client.job("job-1").progress, client.job("job-1").progress
    assert isinstance(searched, SearchProgress)
    assert searched.trials.ended == 6
    assert isinstance(trained, Progress)
