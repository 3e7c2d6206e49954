"""Searches through the REST interface: submitting, planning, stopping, their budgets, and promoting trials."""

from __future__ import annotations

import math

import pytest
from conftest import Clients, token_of
from fastapi.testclient import TestClient
from optuna.trial import TrialState
from search_files import CHOICES, MOMENTUM, RATE, SEARCH, search_with
from service_fakes import SPEC, add_job, events_of, job_of, problem, spec_with
from verb_table import ROWS, STATES

from service.app import create_app
from service.jobs.schemas import JobView
from service.searches import analysis
from trainer.protocol import names
from trainer.spec.search import SearchSpec

ALICE = {"Authorization": f"Bearer {token_of('alice')}"}


def fields_of(body):
    return [found["field"] for found in body["problems"]]


# --- submitting -------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_search_is_submitted_as_any_job_and_begins_without_trials(api, database):
    answer = api.post("/v1/jobs", json=SEARCH, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert (job["kind"], job["name"], job["state"], job["promoted_from"]) == ("search", "tune", "queued", None)
    assert job_of(database, job["id"]).dataset_uri == "builtin://digits"
    again = api.post("/v1/jobs", json=SEARCH, headers={"Idempotency-Key": "once"})
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    search = api.get(f"/v1/searches/{job['id']}").json()
    assert search["trials"] == {"waiting": 0, "running": 0, "complete": 0, "pruned": 0, "failed": 0}
    assert (search["best"], search["elapsed_s"], search["eta_s"]) == ([], 0.0, None)
    assert api.get(f"/v1/searches/{job['id']}/trials").json() == {"items": [], "next_cursor": None}
    assert [row["id"] for row in api.get("/v1/jobs", params={"kind": "search"}).json()["items"]] == [job["id"]]


def test_a_service_without_a_studies_database_has_no_searches(settings, database):
    app = create_app(settings.model_copy(update={"study_url": None}))
    client = TestClient(app, headers=ALICE)
    for path in ("/v1/jobs", "/v1/jobs/plan"):
        found = problem(client.post(path, json=SEARCH), 422, "spec_invalid")
        assert fields_of(found) == ["kind"]
        assert "set RCMAE_STUDY_URL" in found["detail"]
    job_id = add_job(database, "running", SEARCH)
    assert "RCMAE_STUDY_URL" in problem(client.get(f"/v1/searches/{job_id}"), 503, "unavailable")["detail"]


def test_datasets_of_a_search_lie_where_they_may(settings):
    app = create_app(settings.model_copy(update={"dataset_roots": ("/data",)}))
    client = TestClient(app, headers=ALICE)
    base = SEARCH["base"] | {
        "dataset": {"uri": "/elsewhere"},
        "evaluation": {"every_epochs": 3, "dataset": {"uri": "/home"}},
    }
    found = problem(client.post("/v1/jobs", json=search_with(base=base)), 422, "spec_invalid")
    assert fields_of(found) == ["base.dataset.uri", "base.evaluation.dataset.uri"]
    assert [each["pointer"] for each in found["problems"]] == ["/base/dataset/uri", "/base/evaluation/dataset/uri"]


def test_a_batch_that_does_not_fit_is_told_at_the_base(api):
    base = SEARCH["base"] | {"optimization": {"epochs": 9, "global_batch_size": 4096}}
    found = problem(api.post("/v1/jobs", json=search_with(base=base)), 422, "spec_invalid")
    assert fields_of(found) == ["base.optimization.global_batch_size"]


@pytest.mark.parametrize(
    ("earlier", "why"),
    [
        (None, "there is no job"),
        (SPEC, "is a pretrain job"),
        (search_with(space={RATE: SEARCH["space"][RATE]}), "has another space"),
        (search_with(objective={"metric": "eval/reconstruction_ratio"}), "has another objective"),
        (search_with(name="like it", budget={"trials": 3}), None),
    ],
    ids=["none", "no search", "space", "objective", "fits"],
)
def test_a_search_learns_from_earlier_ones_like_it(api, database, earlier, why):
    job_id = add_job(database, "succeeded", earlier) if earlier else "job-none"
    answer = api.post("/v1/jobs", json=search_with(warm_start=[job_id]))
    if why is None:
        assert answer.status_code == 201, answer.text
    else:
        found = problem(answer, 422, "spec_invalid")
        assert fields_of(found) == ["warm_start.0"]
        assert why in found["detail"]


def test_nobody_learns_from_searches_that_are_not_there_for_them(clients, database):
    job_id = add_job(database, "succeeded", SEARCH, owner="alice")
    found = problem(clients.bob.post("/v1/jobs", json=search_with(warm_start=[job_id])), 422, "spec_invalid")
    assert "there is no job" in found["detail"]
    assert clients.operator.post("/v1/jobs", json=search_with(warm_start=[job_id])).status_code == 201


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_a_plan_says_how_many_trials_run_at_a_time_and_why(api, ray):
    ray.cpus = 4
    plan = api.post("/v1/jobs/plan", json=search_with(budget={"trials": 8, "concurrency": 5})).json()
    assert (plan["fits"], plan["gang"]) == ("now", {"cpus": 4, "gpus": 0})
    assert plan["spec"]["budget"]["concurrency"] == 2
    assert plan["message"].endswith(
        "It runs 8 trials, 2 at a time. 5 were requested: the cluster has room for 2 trials of this size."
    )
    alone = api.post("/v1/jobs/plan", json=SEARCH["base"]).json()
    assert (plan["parameters"], plan["steps"]) == (alone["parameters"], alone["steps"])
    assert plan["memory_per_worker_bytes"] == alone["memory_per_worker_bytes"]


@pytest.mark.parametrize("algorithm", ["grid", "tpe"])
def test_the_plan_of_a_finite_space_says_how_many_points_it_has(api, algorithm):
    space = CHOICES | {"method.mask_ratio": {"type": "float", "low": 0.5, "high": 0.7, "step": 0.1}}
    plan = api.post("/v1/jobs/plan", json=search_with(space=space, algorithm={"name": algorithm})).json()
    told = "It runs 6 trials, 2 at a time. Its space has 6 points, and none is trained twice."
    assert (plan["points"], told in plan["message"]) == (6, True)


def test_the_plan_counts_the_points_of_a_space_with_conditions(api):
    space = {
        "method.name": {"type": "categorical", "choices": ["mae", "rc_mae"]},
        "optimization.warmup_epochs": {"type": "int", "low": 1, "high": 3, "when": {"method.name": "rc_mae"}},
    }
    assert api.post("/v1/jobs/plan", json=search_with(space=space)).json()["points"] == 4
    assert api.post("/v1/jobs/plan", json=SEARCH).json()["points"] is None
    assert api.post("/v1/jobs/plan", json=SEARCH["base"]).json()["points"] is None


# --- stop, resume, retry ----------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_stop_does_what_the_table_says_also_twice(api, searches, database):
    for state in STATES:
        cell = ROWS["stop"][state]
        job_id = searches.add(state)
        answer = api.post(f"/v1/jobs/{job_id}/stop")
        if cell == "409":
            problem(answer, 409, "not_allowed_in_state")
            assert events_of(database, job_id) == []
            continue
        assert answer.json()["state"] == (state if cell == "drain" else cell)
        assert api.get(f"/v1/searches/{job_id}").json()["draining"]
        assert len(events_of(database, job_id)) == 1
        again = api.post(f"/v1/jobs/{job_id}/stop")
        assert again.status_code == (200 if cell == "drain" else 409)
        assert len(events_of(database, job_id)) == 1, "the same again is no news"


@pytest.mark.both_databases
def test_a_search_that_is_resumed_gives_its_trials_other_resources(api, searches, database):
    resolved = SearchSpec.parse(SEARCH).model_dump(mode="json")
    job_id = searches.add("paused", resolved_spec=resolved)
    answer = api.post(f"/v1/jobs/{job_id}/resume", json={"resources": {"cpus_per_worker": 1}})
    assert answer.status_code == 200, answer.text
    job = job_of(database, job_id)
    assert job.spec["base"]["resources"] == SPEC["resources"] | {"cpus_per_worker": 1}
    assert job.resolved_spec is None
    wrong = api.post(f"/v1/jobs/{searches.add('paused')}/resume", json={"resources": {"gpu": 1}})
    found = problem(wrong, 422, "spec_invalid")
    assert fields_of(found) == ["base.resources.gpu"]


@pytest.mark.both_databases
def test_a_retried_search_makes_trials_again_and_never_from_scratch(api, searches, database):
    job_id = searches.add("cancelled", draining=True)
    found = problem(api.post(f"/v1/jobs/{job_id}/retry", json={"from_scratch": True}), 422, "spec_invalid")
    assert fields_of(found) == ["from_scratch"]
    assert api.post(f"/v1/jobs/{job_id}/retry").json()["state"] == "queued"
    assert not job_of(database, job_id).draining


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_search_is_shown_with_what_is_best_so_far(api, searches):
    job_id = searches.add(progress={"trials": {}, "budget": 8, "gpu_hours": 1.5})
    searches.trial(job_id, values=[0.5])
    best = searches.trial(job_id, TrialState.PRUNED, curve=[0.9, 0.8], **{names.TRIAL_EPOCH: 6})
    searches.trial(job_id, TrialState.FAIL, curve=[0.99])
    searches.trial(job_id, TrialState.RUNNING, curve=[0.95])
    searches.studies.study(job_id).set_user_attr(names.STUDY_SECONDS, 90.0)
    search = api.get(f"/v1/searches/{job_id}").json()
    assert search["trials"] == {"waiting": 0, "running": 1, "complete": 1, "pruned": 1, "failed": 1}
    assert [(trial["number"], trial["values"], trial["best"]) for trial in search["best"]] == [(best, [0.8], True)]
    assert search["objectives"] == [{"metric": "eval/linear_top1", "mode": "max"}]
    assert (search["elapsed_s"], search["eta_s"], search["gpu_hours"]) == (90.0, 150.0, 1.5)
    assert search["budget"] == {
        "trials": 8, "concurrency": 2, "concurrency_wanted": 2, "max_failed": 8, "max_hours": None,
    }  # fmt: skip
    assert search["space"][RATE]["log"] is True


def test_several_objectives_have_a_front_that_nothing_beats(api, searches):
    sought = [{"metric": "eval/linear_top1"}, {"metric": "throughput/images_per_s"}]
    job_id = searches.add(spec=search_with(objective=sought, scheduler={"name": "none"}))
    for values in ([0.5, 300.0], [0.9, 100.0], [0.4, 200.0], [0.9, 90.0], [0.7, 200.0], [0.7, 200.0]):
        searches.trial(job_id, values=values)
    measured = {"eval/linear_top1": 1.0, "throughput/images_per_s": 1e3}
    searches.trial(job_id, TrialState.RUNNING, **{names.TRIAL_METRICS: measured})
    search = api.get(f"/v1/searches/{job_id}").json()
    assert [trial["number"] for trial in search["best"]] == [1, 4, 5, 0]
    assert api.get(f"/v1/searches/{job_id}/trials/6").json()["values"] == [1.0, 1000.0]


def test_repeats_tell_the_best_from_the_lucky(api, searches):
    job_id = searches.add()
    lucky, steady = searches.trial(job_id, values=[0.9]), searches.trial(job_id, values=[0.85])
    for of, values in ((lucky, [0.6, 0.6]), (steady, [0.85, 0.85, 0.85])):
        for value in values:
            searches.trial(job_id, values=[value], **{names.TRIAL_REPEAT_OF: of, names.TRIAL_SEED: 1})
    searches.trial(job_id, TrialState.RUNNING, curve=[0.1], **{names.TRIAL_REPEAT_OF: steady})
    search = api.get(f"/v1/searches/{job_id}").json()
    assert [(repeat["number"], repeat["values"]) for repeat in search["repeats"]] == [
        (steady, [0.85] * 4),
        (lucky, [0.9, 0.6, 0.6]),
    ]
    second = search["repeats"][1]
    assert second["mean"] == pytest.approx(0.7)
    assert (second["low"], second["high"]) == (pytest.approx(0.26973, abs=1e-5), pytest.approx(1.13027, abs=1e-5))
    assert search["best"][0]["number"] == lucky, "repeats are no trials of their own"


def test_intervals_are_students():
    assert analysis.interval([1.0]) == (None, None)
    low, high = analysis.interval([1.0, 2.0])
    assert (low, high) == (pytest.approx(1.5 - 12.7062 * 0.5, abs=1e-4), pytest.approx(1.5 + 12.7062 * 0.5, abs=1e-4))
    many = [float(index % 2) for index in range(40)]
    low, high = analysis.interval(many)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(10 / 39 / 40), rel=1e-6)


def test_a_job_that_is_no_search_is_none(clients, database):
    job_id = add_job(database)
    for path in ("", "/trials", "/trials/0", "/trials.csv", "/plots/history"):
        found = problem(clients.alice.get(f"/v1/searches/{job_id}{path}"), 409, "not_for_this_kind")
        assert f"/v1/jobs/{job_id}" in found["detail"]
    problem(clients.alice.patch(f"/v1/searches/{job_id}", json={"trials": 3}), 409, "not_for_this_kind")
    problem(clients.alice.get("/v1/searches/job-none"), 404, "job_not_found")
    search = add_job(database, spec=SEARCH, owner="carol")
    problem(clients.alice.get(f"/v1/searches/{search}"), 404, "job_not_found")
    problem(clients.viewer.patch(f"/v1/searches/{search}", json={"trials": 3}), 403, "forbidden")


# --- the budget -------------------------------------------------------------------------------------------------------


def test_the_budget_can_be_changed_in_every_state(api, searches, database):
    for state in STATES:
        job_id = searches.add(state)
        answer = api.patch(f"/v1/searches/{job_id}", json={"trials": 12, "max_failed": 2, "max_hours": 1.5})
        assert answer.status_code == 200, answer.text
        budget = answer.json()["budget"]
        assert (budget["trials"], budget["max_failed"], budget["max_hours"]) == (12, 2, 1.5)
        assert answer.json()["state"] == ("queued" if state == "succeeded" else state)
        (event,) = events_of(database, job_id)
        said = "Changed trials from 8 to 12, max_failed from 8 to 2, max_hours from None to 1.5."
        assert event.message.startswith(said)
        assert api.patch(f"/v1/searches/{job_id}", json={"trials": 12}).status_code == 200
        assert len(events_of(database, job_id)) == 1, "the same again is no news"


def test_a_running_search_is_given_as_many_at_a_time_as_fit(api, searches, ray, database):
    ray.cpus = 6
    job_id = searches.add(resolved_spec=SearchSpec.parse(SEARCH).model_dump(mode="json"))
    answer = api.patch(f"/v1/searches/{job_id}", json={"concurrency": 5})
    budget = answer.json()["budget"]
    assert (budget["concurrency"], budget["concurrency_wanted"]) == (3, 5)
    assert "concurrency from 2 to 5, of which 3 fit" in events_of(database, job_id)[0].message
    assert job_of(database, job_id).resolved_spec["budget"]["concurrency"] == 3
    ray.reachable = False
    problem(api.patch(f"/v1/searches/{job_id}", json={"concurrency": 1, "trials": 9}), 503, "unavailable")
    assert job_of(database, job_id).spec["budget"]["trials"] == 8
    assert api.patch(f"/v1/searches/{job_id}", json={"trials": 9}).json()["budget"]["trials"] == 9


@pytest.mark.parametrize(
    ("fields", "body", "goes_on"),
    [
        ({}, {"trials": 9}, True),
        ({}, {"trials": 8}, False),
        ({}, {"trials": 3}, False),
        ({}, {"concurrency": 4}, False),
        ({"draining": True}, {"trials": 8}, True),
        ({"draining": True}, {"trials": 2}, False),
        ({"draining": True}, {"concurrency": 4}, False),
    ],
)
def test_a_search_that_has_succeeded_goes_on_when_there_is_more_to_do(api, searches, database, fields, body, goes_on):
    job_id = searches.add("succeeded", **fields)
    for _ in range(3):
        searches.trial(job_id, values=[0.5])
    search = api.patch(f"/v1/searches/{job_id}", json=body).json()
    assert (search["state"], search["draining"]) == (
        ("queued", False) if goes_on else ("succeeded", bool(fields.get("draining")))
    )
    if goes_on:
        assert events_of(database, job_id)[-1].message.endswith("The search continues.")


@pytest.mark.both_databases
def test_more_hours_let_a_search_go_on_that_had_run_out_of_them(api, searches):
    job_id = searches.add("succeeded", search_with(budget={"trials": 8, "concurrency": 2, "max_hours": 1}))
    assert api.patch(f"/v1/searches/{job_id}", json={"max_hours": 0.5}).json()["state"] == "succeeded"
    assert api.patch(f"/v1/searches/{job_id}", json={"max_hours": None}).json()["state"] == "queued"


@pytest.mark.parametrize(
    ("body", "code", "fields"),
    [
        ({}, "body_invalid", []),
        ({"trials": None}, "body_invalid", []),
        ({"trials": 0}, "spec_invalid", ["trials"]),
        ({"trails": 3}, "spec_invalid", ["trails"]),
        ({"max_hours": 0}, "spec_invalid", ["max_hours"]),
    ],
)
def test_a_wrong_budget_is_refused_and_changes_nothing(api, searches, database, body, code, fields):
    job_id = searches.add()
    found = problem(api.patch(f"/v1/searches/{job_id}", json=body), 422, code)
    assert fields_of(found) == fields
    assert events_of(database, job_id) == []


# --- promoting --------------------------------------------------------------------------------------------------------


def test_a_promoted_trial_is_a_job_of_its_own_linked_both_ways(api, searches, database):
    resolved = SearchSpec.parse(SEARCH).model_dump(mode="json")
    resolved["base"]["resources"]["cpus_per_worker"] = 1
    job_id = searches.add(resolved_spec=resolved)
    number = searches.trial(job_id, point={MOMENTUM: 0.95, RATE: 2e-4}, values=[0.9])
    answer = api.post(f"/v1/searches/{job_id}/trials/{number}/promote")
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["labels"]) == ("pretrain", "queued", {"team": "vision"})
    assert job["promoted_from"] == {"search": job_id, "trial": number}
    spec = job["spec"]
    assert (spec["method"]["teacher"]["momentum"], spec["optimization"]["base_lr"]) == (0.95, 2e-4)
    assert (spec["register_as"], spec["resources"]["cpus_per_worker"]) == ("walk", 2), "as the base was written"
    assert api.get(f"/v1/jobs/{job['id']}").json() == job
    assert api.get("/v1/jobs", params={"kind": "pretrain"}).json()["items"] == [job]
    assert api.get(f"/v1/searches/{job_id}").json()["promoted"] == {str(number): [job["id"]]}
    assert api.get(f"/v1/searches/{job_id}/trials").json()["items"][0]["promoted"] == [job["id"]]
    assert api.get(f"/v1/searches/{job_id}/trials/{number}").json()["promoted"] == [job["id"]]
    assert events_of(database, job["id"])[0].message == f"Promoted from trial {number} of {job_id}."
    assert events_of(database, job_id)[-1].message == f"Trial {number} was promoted to {job['id']}."


def test_the_same_promotion_makes_one_job_and_another_makes_another(clients: Clients, searches):
    job_id = searches.add()
    number = searches.trial(job_id, values=[0.9])
    path = f"/v1/searches/{job_id}/trials/{number}/promote"
    longer = {"overrides": {"optimization.epochs": 40}, "register_as": "walk-long"}
    first, again = clients.alice.post(path, json=longer), clients.alice.post(path, json=longer)
    assert (first.status_code, again.status_code, first.json()["id"]) == (201, 200, again.json()["id"])
    assert again.headers["location"] == first.headers["location"]
    spec = first.json()["spec"]
    assert (spec["optimization"]["epochs"], spec["register_as"]) == (40, "walk-long")
    plain = clients.alice.post(path, json={})
    assert plain.json()["id"] != first.json()["id"]
    others = clients.operator.post(path, json=longer)
    assert (others.status_code, others.json()["owner"]) == (201, "operator")
    assert clients.alice.get(f"/v1/searches/{job_id}").json()["promoted"] == {
        str(number): [first.json()["id"], plain.json()["id"]]
    }, "jobs of others are not there for a submitter"
    problem(clients.viewer.post(path, json={}), 403, "forbidden")
    problem(clients.bob.post(path, json={}), 404, "job_not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"overrides": {"optimization.epocs": 3}}, "overrides.optimization.epocs"),
        ({"overrides": {"optimization.epochs": 0}}, "overrides.optimization.epochs"),
        ({"overrides": {"seed.x": 3}}, "overrides.seed.x"),
        ({"overrides": {"optimization.global_batch_size": 4096}}, "overrides.optimization.global_batch_size"),
        ({"overrides": {"dataset": {"uri": "relative"}}}, "overrides.dataset"),
        ({"register_as": "Not A Name"}, "register_as"),
        ({"override": {}}, "override"),
    ],
)
def test_wrong_overrides_are_told_where_they_were_written(api, searches, body, field):
    job_id = searches.add()
    number = searches.trial(job_id, values=[0.9])
    found = problem(api.post(f"/v1/searches/{job_id}/trials/{number}/promote", json=body), 422, "spec_invalid")
    assert fields_of(found) == [field]
    assert found["problems"][0]["pointer"] == "/" + field.replace(".", "/", 1)
    assert api.get(f"/v1/searches/{job_id}").json()["promoted"] == {}


def test_what_is_no_spec_or_not_known_yet_cannot_be_promoted(api, searches):
    space = SEARCH["space"] | {"optimization.warmup_epochs": {"type": "int", "low": 1, "high": 12}}
    job_id = searches.add(spec=search_with(space=space))
    infeasible = searches.trial(
        job_id, TrialState.FAIL, {MOMENTUM: 0.99, RATE: 1e-4, "optimization.warmup_epochs": 12},
        **{names.TRIAL_REASON: "infeasible"},
    )  # fmt: skip
    (waiting,) = searches.studies.enqueue(job_id, [{MOMENTUM: 0.95}], {})
    for number in (infeasible, waiting):
        problem(api.post(f"/v1/searches/{job_id}/trials/{number}/promote"), 409, "trial_not_settled")
    failed = searches.trial(job_id, TrialState.FAIL, {MOMENTUM: 0.99, RATE: 1e-4, "optimization.warmup_epochs": 2})
    answer = api.post(f"/v1/searches/{job_id}/trials/{failed}/promote")
    assert answer.status_code == 201
    JobView.model_validate(answer.json())


def test_a_promotion_of_a_deleted_job_makes_a_new_one(api, searches):
    job_id = searches.add()
    path = f"/v1/searches/{job_id}/trials/{searches.trial(job_id, values=[0.9])}/promote"
    first = api.post(path).json()["id"]
    searches.change(first, state="failed")
    assert api.delete(f"/v1/jobs/{first}").status_code == 200
    second = api.post(path)
    assert (second.status_code, second.json()["id"] == first) == (201, False)


def test_jobs_that_are_no_promotions_say_so(api):
    job = api.post("/v1/jobs", json=spec_with()).json()
    assert job["promoted_from"] is None
