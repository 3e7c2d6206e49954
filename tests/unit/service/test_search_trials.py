"""The trials of searches through the REST interface: reading, sorting, adding, stopping and trying them again."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from optuna.trial import TrialState
from search_files import BETAS, CHOICES, MOMENTUM, RATE, SEARCH, search_with
from service_fakes import FakeMlflow, events_of, job_of, problem
from sqlalchemy import select
from verb_table import STATES

from service.adapters.mlflow_runs import MetricPoint
from service.adapters.studies import Studies, StudiesUnreachable
from service.db.tables import Audit, now
from trainer.protocol import names
from trainer.protocol.logs import LogLine
from trainer.protocol.progress import Newest
from trainer.spec import metric_keys

OVER = {"cancelling", "failed", "cancelled"}
"""States in which a search takes no trials."""


def numbers_of(api, job_id, **query):
    """Numbers of a whole list, page by page."""
    found, cursor = [], None
    while True:
        answer = api.get(f"/v1/searches/{job_id}/trials", params=query | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        found += [trial["number"] for trial in answer.json()["items"]]
        cursor = answer.json()["next_cursor"]
        if not cursor:
            return found


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(searches):
    """A search with a trial of every sort."""
    job_id = searches.add(spec=search_with(space=SEARCH["space"] | CHOICES))
    betas = [0.9, 0.95], [0.9, 0.999]
    searches.trial(job_id, values=[0.5], point={MOMENTUM: 0.95, RATE: 1e-4, BETAS: betas[1]}, minutes=3)
    searches.trial(
        job_id, TrialState.PRUNED, {MOMENTUM: 0.91, RATE: 5e-4, BETAS: betas[0]}, curve=[0.1, 0.2], minutes=2,
        **{names.TRIAL_EPOCH: 6, names.TRIAL_REASON: "scheduler", names.TRIAL_MESSAGE: "Worse than others."},
    )  # fmt: skip
    searches.trial(
        job_id, TrialState.FAIL, {MOMENTUM: 0.99, RATE: 2e-4, BETAS: betas[0]}, minutes=1,
        **{names.TRIAL_REASON: "loss_not_finite", names.TRIAL_SEED: 5},
    )  # fmt: skip
    searches.trial(job_id, values=[0.8], point={MOMENTUM: 0.97, RATE: 1e-3, BETAS: betas[1]}, minutes=4,
                   **{names.TRIAL_REPEAT_OF: 0})  # fmt: skip
    searches.trial(job_id, TrialState.RUNNING, {MOMENTUM: 0.92, RATE: 3e-4, BETAS: betas[1]}, curve=[0.3])
    searches.studies.enqueue(job_id, [{MOMENTUM: 0.93, BETAS: json.dumps(betas[0])}], {})
    return job_id


def test_a_trial_is_shown_as_its_study_has_it(api, mixed):
    newest, running, repeat, failed, pruned, first = api.get(f"/v1/searches/{mixed}/trials").json()["items"]
    assert [trial["state"] for trial in (first, pruned, failed, repeat, running, newest)] == [
        "complete", "pruned", "failed", "complete", "running", "waiting",
    ]  # fmt: skip
    assert (first["values"], first["best"], repeat["best"]) == ([0.5], True, False)
    assert (pruned["values"], pruned["epoch"], pruned["reason"]) == ([0.2], 6, "scheduler")
    assert (failed["values"], failed["reason"], repeat["repeat_of"]) == (None, "loss_not_finite", 0)
    assert (running["values"], running["ended_at"]) == ([0.3], None)
    assert newest["params"] == {MOMENTUM: 0.93, BETAS: [0.9, 0.95]}
    assert (newest["started_at"], newest["duration_s"]) == (None, None)
    assert (first["duration_s"], first["started_at"][-1]) == (180.0, "Z")


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (None, [5, 4, 3, 2, 1, 0]),
        ("number", [0, 1, 2, 3, 4, 5]),
        ("value", [1, 4, 0, 3, 2, 5]),
        ("-value", [3, 0, 4, 1, 5, 2]),
        ("-epoch", [1, 5, 4, 3, 2, 0]),
        ("duration", [2, 1, 0, 3, 4, 5]),
        ("-duration", [3, 0, 1, 2, 5, 4]),
        ("-started", [4, 3, 2, 1, 0, 5]),
        (f"param:{RATE}", [0, 2, 4, 1, 3, 5]),
        (f"-param:{MOMENTUM}", [2, 3, 0, 5, 4, 1]),
        (f"param:{BETAS}", [1, 2, 5, 0, 3, 4]),
    ],
)
def test_trials_are_sorted_here_page_by_page(api, mixed, sort, order):
    for limit in (1, 4, 500):
        assert numbers_of(api, mixed, limit=limit, **({"sort": sort} if sort else {})) == order


@pytest.mark.both_databases
def test_trials_are_narrowed_to_states(api, mixed):
    assert numbers_of(api, mixed, state=["complete", "failed"], sort="number") == [0, 2, 3]
    assert numbers_of(api, mixed, state="waiting") == [5]


def test_a_list_goes_on_while_trials_are_added(api, searches, mixed):
    first = api.get(f"/v1/searches/{mixed}/trials", params={"limit": 3}).json()
    searches.trial(mixed, values=[0.6], point={MOMENTUM: 0.95, RATE: 1e-4, BETAS: [0.9, 0.95]})
    rest = api.get(f"/v1/searches/{mixed}/trials", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [trial["number"] for trial in first["items"] + rest["items"]] == [5, 4, 3, 2, 1, 0]
    for query in ({"sort": "value"}, {"sort": "-number", "cursor": "x"}):
        wrong = {"cursor": first["next_cursor"]} | query
        problem(api.get(f"/v1/searches/{mixed}/trials", params=wrong), 422, "parameter_invalid")


@pytest.mark.parametrize(
    "query", [{"sort": "param:seed"}, {"sort": "best"}, {"state": "ended"}, {"limit": 0}, {"sort": "--value"}]
)
def test_what_a_list_is_asked_wrong_is_refused(api, mixed, query):
    problem(api.get(f"/v1/searches/{mixed}/trials", params=query), 422, "parameter_invalid")


def test_one_trial_is_shown_beside_the_best_one(api, mixed):
    trial = api.get(f"/v1/searches/{mixed}/trials/1").json()
    assert trial["intermediate"] == [{"epoch": 3.0, "value": 0.1}, {"epoch": 6.0, "value": 0.2}]
    assert trial["difference"] == {
        MOMENTUM: {"value": 0.91, "best": 0.95},
        RATE: {"value": 5e-4, "best": 1e-4},
        BETAS: {"value": [0.9, 0.95], "best": [0.9, 0.999]},
    }
    assert trial["spec"]["optimization"]["betas"] == [0.9, 0.95]
    assert "register_as" not in {key for key, value in trial["spec"].items() if value}
    assert api.get(f"/v1/searches/{mixed}/trials/0").json()["difference"] == {}
    failed = api.get(f"/v1/searches/{mixed}/trials/2").json()
    assert (failed["spec"]["seed"], failed["metrics"]) == (5, {})
    assert api.get(f"/v1/searches/{mixed}/trials/5").json()["spec"] == {}, "the algorithm has not chosen all of it"
    problem(api.get(f"/v1/searches/{mixed}/trials/6"), 404, "trial_not_found")
    problem(api.get(f"/v1/searches/{mixed}/trials/-1"), 422, "parameter_invalid")


def test_values_that_are_no_numbers_are_left_out(api, searches):
    job_id = searches.add()
    measured = {"eval/linear_top1": float("nan"), "train/loss": 0.5}
    searches.trial(job_id, TrialState.FAIL, curve=[0.5, float("nan")], **{names.TRIAL_METRICS: measured})
    trial = api.get(f"/v1/searches/{job_id}/trials/0").json()
    assert (trial["values"], trial["metrics"]) == (None, {"train/loss": 0.5})
    assert trial["intermediate"] == [{"epoch": 3.0, "value": 0.5}]


def test_all_trials_can_be_had_as_a_table(api, mixed):
    answer = api.get(f"/v1/searches/{mixed}/trials.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert f'filename="{mixed}-trials.csv"' in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    known = ["number", "state", "reason", "eval/linear_top1", "epoch", "started", "ended", "duration_s"]
    assert list(rows[0]) == [*known, MOMENTUM, RATE, BETAS]
    assert [row["number"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    pruned, waiting = rows[1], rows[5]
    assert (pruned["state"], pruned["reason"], float(pruned["eval/linear_top1"])) == ("pruned", "scheduler", 0.2)
    assert (float(pruned["duration_s"]), json.loads(pruned[BETAS])) == (120.0, [0.9, 0.95])
    assert (waiting["eval/linear_top1"], waiting["started"], waiting[RATE]) == ("", "", "")


def test_a_table_of_many_trials_is_whole(api, searches):
    job_id = searches.add()
    assert len(api.get(f"/v1/searches/{job_id}/trials.csv").text.splitlines()) == 1
    searches.studies.enqueue(job_id, [{}] * 450, {})
    rows = list(csv.DictReader(io.StringIO(api.get(f"/v1/searches/{job_id}/trials.csv").text)))
    assert [int(row["number"]) for row in rows] == list(range(450))


def test_a_trial_has_the_logs_pictures_and_curves_of_its_own_run(api, searches, mlflow: FakeMlflow):
    job_id = searches.add(attempts=2)
    line = LogLine(time=1.0, level="info", source="rank-0", message="Trains.").model_dump_json().encode() + b"\n"
    files = {f"{names.log_folder(2)}/rank-0.0001.jsonl": line, names.picture_file(480): b"\x89PNG"}
    measured = {metric_keys.EPOCH: 3.0, metric_keys.SAMPLES: 3 * 160 * 64.0}
    number = searches.with_run(job_id, files, **{names.TRIAL_ATTEMPTS: [1, 2], names.TRIAL_METRICS: measured})
    place = f"/v1/searches/{job_id}/trials/{number}"
    logs = api.get(f"{place}/logs").json()
    assert [(each["attempt"], each["message"]) for each in logs["items"]] == [(2, "Trains.")]
    assert api.get(f"{place}/logs", params={"attempt": 1}).json()["items"] == []
    (picture,) = api.get(f"{place}/images").json()["items"]
    assert (picture["step"], picture["epoch"]) == (480, 3)
    assert api.get(picture["url"]).content == b"\x89PNG"
    problem(api.get(f"{place}/images/reconstruction_00000481.png"), 404, "image_not_found")
    mlflow.points["train/loss"] = [MetricPoint(3, 0.5, now())]
    assert api.get(f"{place}/metrics", params={"key": "train/loss"}).json()["series"]["train/loss"][0]["value"] == 0.5
    mlflow.reachable = False
    problem(api.get(f"{place}/metrics", params={"key": "train/loss"}), 503, "unavailable")
    without = searches.trial(job_id, TrialState.FAIL)
    place = f"/v1/searches/{job_id}/trials/{without}"
    assert api.get(f"{place}/logs").json()["items"] == api.get(f"{place}/images").json()["items"] == []
    assert api.get(f"{place}/metrics", params={"key": "x"}).json() == {"series": {"x": []}}


def test_files_elsewhere_are_not_a_trials(api, searches, tmp_path):
    job_id = searches.add()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / names.IMAGES).mkdir(parents=True)
    (elsewhere / names.picture_file(1)).write_bytes(b"secret")
    number = searches.trial(job_id, **{names.TRIAL_FOLDER: str(elsewhere)}, values=[0.5])
    for path in ("images", "images/reconstruction_00000001.png"):
        problem(api.get(f"/v1/searches/{job_id}/trials/{number}/{path}"), 404, "artifacts_not_here")


def test_a_figure_is_drawn_of_the_trials(api, mixed):
    figure = api.get(f"/v1/searches/{mixed}/plots/history")
    assert (figure.status_code, figure.json()["name"]) == (200, "history")
    assert api.get(f"/v1/searches/{mixed}/plots/slice", params={"param": RATE}).status_code == 200
    problem(api.get(f"/v1/searches/{mixed}/plots/slice", params={"param": "seed"}), 422, "parameter_invalid")
    problem(api.get(f"/v1/searches/{mixed}/plots/pie"), 422, "parameter_invalid")


def test_while_the_record_of_trials_is_away_it_says_so(api, searches, monkeypatch):
    job_id = searches.add()

    def away(*_: object) -> None:
        raise StudiesUnreachable("connection refused")

    monkeypatch.setattr(Studies, "trials", away)
    for path in ("", "/trials", "/trials/0", "/trials.csv"):
        problem(api.get(f"/v1/searches/{job_id}{path}"), 503, "unavailable")
    problem(api.post(f"/v1/searches/{job_id}/trials", json={"points": [{}]}), 503, "unavailable")
    assert api.get(f"/v1/jobs/{job_id}").status_code == 200


# --- adding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [False, True])
def test_points_are_added_where_they_can_be_tried(api, searches, database, beyond):
    body = {"points": [{MOMENTUM: 0.95, RATE: 1e-4}, {MOMENTUM: 0.96}], "beyond_budget": beyond}
    for state in STATES:
        job_id = searches.add(state)
        answer = api.post(f"/v1/searches/{job_id}/trials", json=body)
        if state in OVER or (state == "succeeded" and not beyond):
            problem(answer, 409, "not_allowed_in_state")
            assert (searches.states(job_id), events_of(database, job_id)) == ([], []), state
            continue
        assert answer.status_code == 201, answer.text
        assert [(trial["number"], trial["state"], trial["params"]) for trial in answer.json()["items"]] == [
            (0, "waiting", {MOMENTUM: 0.95, RATE: 1e-4}),
            (1, "waiting", {MOMENTUM: 0.96}),
        ]
        search = api.get(f"/v1/searches/{job_id}").json()
        assert (search["budget"]["trials"], search["trials"]["waiting"]) == (10 if beyond else 8, 2)
        assert search["state"] == ("queued" if state == "succeeded" else state)
        (event,) = events_of(database, job_id)
        assert event.message.startswith("Added 2 trials: 0, 1.")


def test_a_search_needs_no_study_before_points_are_added(api):
    job_id = api.post("/v1/jobs", json=SEARCH).json()["id"]
    assert api.post(f"/v1/searches/{job_id}/trials", json={"points": [{}]}).status_code == 201
    assert api.get(f"/v1/searches/{job_id}").json()["trials"]["waiting"] == 1


@pytest.mark.parametrize(
    ("point", "field"),
    [
        ({MOMENTUM: 2.0}, MOMENTUM),
        ({"optimization.base_lrr": 1e-4}, "optimization.base_lrr"),
        ({RATE: "much"}, RATE),
        ({BETAS: [0.1, 0.2]}, BETAS),
    ],
)
def test_points_that_are_none_of_the_space_are_refused_whole(api, searches, point, field):
    job_id = searches.add(spec=search_with(space=SEARCH["space"] | CHOICES))
    answer = api.post(f"/v1/searches/{job_id}/trials", json={"points": [{MOMENTUM: 0.95}, point]})
    found = problem(answer, 422, "spec_invalid")
    assert [(each["field"], each["pointer"]) for each in found["problems"]] == [
        (f"points.1.{field}", f"/points/1/{field}")
    ]
    assert searches.states(job_id) == []


def test_points_are_added_within_the_budget_or_on_top_of_it(api, searches):
    job_id = searches.add()
    for _ in range(7):
        searches.trial(job_id, values=[0.5])
    searches.trial(job_id, values=[0.5], **{names.TRIAL_REPEAT_OF: 0})
    two = {"points": [{MOMENTUM: 0.95}, {MOMENTUM: 0.96}]}
    detail = problem(api.post(f"/v1/searches/{job_id}/trials", json=two), 409, "budget_spent")["detail"]
    assert "room for 1 more of its 8 trials, not for 2" in detail
    assert api.post(f"/v1/searches/{job_id}/trials", json=two | {"beyond_budget": True}).status_code == 201
    assert api.get(f"/v1/searches/{job_id}").json()["budget"]["trials"] == 10
    many = {"points": [{}] * 1000, "beyond_budget": True}
    searches.change(job_id, spec=job_of(searches.database, job_id).spec | {"budget": {"trials": 9500}})
    assert problem(api.post(f"/v1/searches/{job_id}/trials", json=many), 422, "spec_invalid")


@pytest.mark.parametrize("algorithm", ["grid", "tpe"])
def test_a_finite_space_has_no_points_beyond_its_own(api, searches, algorithm):
    space = {"method.mask_ratio": {"type": "float", "low": 0.5, "high": 0.7, "step": 0.1}}
    job_id = searches.add(spec=search_with(space=space, algorithm={"name": algorithm}))
    for ratio in (0.5, 0.6, 0.7):
        searches.trial(job_id, point={"method.mask_ratio": ratio}, values=[ratio])
    body = {"points": [{"method.mask_ratio": 0.5}], "beyond_budget": True}
    detail = problem(api.post(f"/v1/searches/{job_id}/trials", json=body), 409, "budget_spent")["detail"]
    assert "its space has no more points" in detail


@pytest.mark.both_databases
def test_a_search_that_was_stopped_takes_points_beyond_its_budget_alone(api, searches, database):
    job_id = searches.add(draining=True)
    problem(api.post(f"/v1/searches/{job_id}/trials", json={"points": [{}]}), 409, "not_allowed_in_state")
    answer = api.post(f"/v1/searches/{job_id}/trials", json={"points": [{}], "beyond_budget": True})
    assert answer.status_code == 201
    assert not job_of(database, job_id).draining


# --- adding once ------------------------------------------------------------------------------------------------------

TWO = {"points": [{MOMENTUM: 0.95}, {MOMENTUM: 0.96}], "beyond_budget": True}
KEY = {"Idempotency-Key": "once"}


@pytest.mark.both_databases
def test_the_same_key_adds_the_same_trials_once(clients, searches, database):
    job_id = searches.add()
    path = f"/v1/searches/{job_id}/trials"
    first = clients.alice.post(path, json=TWO, headers=KEY)
    searches.change(job_id, state="cancelled")
    again = clients.alice.post(path, json=TWO, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 200), again.text
    assert again.json() == first.json()
    assert (
        "other trials"
        in problem(
            clients.alice.post(path, json=TWO | {"beyond_budget": False}, headers=KEY), 422, "idempotency_key_reused"
        )["detail"]
    )
    searches.change(job_id, state="running")
    assert searches.states(job_id) == ["WAITING"] * 2
    assert job_of(database, job_id).spec["budget"]["trials"] == 10
    assert len(events_of(database, job_id)) == 1
    others = clients.operator.post(path, json=TWO, headers=KEY)
    assert [trial["number"] for trial in others.json()["items"]] == [2, 3], "a key is its owner's"
    other = searches.add()
    assert clients.alice.post(f"/v1/searches/{other}/trials", json=TWO, headers=KEY).status_code == 201
    assert clients.alice.post(path, json=TWO).json()["items"][0]["number"] == 4, "without a key it is another request"


def test_a_key_whose_request_was_refused_is_free(api, searches):
    job_id = searches.add()
    for _ in range(8):
        searches.trial(job_id, values=[0.5])
    path = f"/v1/searches/{job_id}/trials"
    problem(api.post(path, json=TWO | {"beyond_budget": False}, headers=KEY), 409, "budget_spent")
    assert api.post(path, json=TWO, headers=KEY).status_code == 201


@pytest.mark.both_databases
def test_what_a_request_that_broke_off_has_added_is_not_added_again(api, searches, database, monkeypatch):
    job_id = searches.add()
    path, enqueue = f"/v1/searches/{job_id}/trials", Studies.enqueue

    def breaks(self, job, points, attributes):
        enqueue(self, job, points[:1], attributes)
        raise StudiesUnreachable("connection lost")

    monkeypatch.setattr(Studies, "enqueue", breaks)
    problem(api.post(path, json=TWO, headers=KEY), 503, "unavailable")
    monkeypatch.undo()
    answer = api.post(path, json=TWO, headers=KEY)
    assert answer.status_code == 201, answer.text
    assert [(trial["number"], trial["params"][MOMENTUM]) for trial in answer.json()["items"]] == [(0, 0.95), (1, 0.96)]
    assert searches.states(job_id) == ["WAITING"] * 2
    assert job_of(database, job_id).spec["budget"]["trials"] == 10


# --- while they run ---------------------------------------------------------------------------------------------------


def show_life(mlflow, searches, job_id, start=1, **values):
    """A trial that has trained 30 of 90 steps, in its run as its worker writes it."""
    number = searches.with_run(job_id, {}, **{names.TRIAL_ATTEMPTS: list(range(1, start + 1))})
    run = mlflow.runs[searches.studies.trials(job_id)[number].user_attrs[names.TRIAL_RUN]]
    measured = {metric_keys.EPOCH: 1.5, metric_keys.SAMPLES: 30 * 64.0, metric_keys.LOSS: 0.75} | values
    newest = Newest(attempt=start, step=30, values=measured, images_per_s=500.0)
    run.tags |= {names.TAG_NEWEST: newest.model_dump_json(), names.TAG_STEPS: "90"}
    run.tags[names.heartbeat(start)] = str(datetime(2026, 3, 1, 12, 5, tzinfo=UTC).timestamp())
    return number


@pytest.mark.parametrize("resources", [SEARCH["base"]["resources"], {}], ids=["given", "auto"])
def test_a_running_trial_shows_how_far_it_is_before_it_has_any_value(api, searches, mlflow, resources):
    job_id = searches.add(spec=search_with(base=SEARCH["base"] | {"resources": resources}))
    number = show_life(mlflow, searches, job_id, start=2, **{metric_keys.IMAGES_PER_S: 640.0})
    searches.trial(job_id, values=[0.5], **{names.TRIAL_RUN: "run-ended"})
    for path in ("trials?sort=number", f"trials/{number}"):
        answer = api.get(f"/v1/searches/{job_id}/{path}").json()
        trial = answer["items"][0] if "items" in answer else answer
        progress = trial["progress"]
        assert (progress["step"], progress["steps"], progress["epoch"], progress["epochs"]) == (30, 90, 1.5, 9)
        assert (progress["loss"], progress["images_per_s"]) == (0.75, 640.0)
        assert trial["heartbeat_at"] == "2026-03-01T12:05:00Z"
        assert (trial["state"], trial["values"], trial["epoch"]) == ("running", None, None)
    ended = api.get(f"/v1/searches/{job_id}/trials/{number + 1}").json()
    assert (ended["progress"], ended["heartbeat_at"]) == (None, None)


def test_trials_are_listed_also_while_mlflow_is_away(api, searches, mlflow):
    job_id = searches.add()
    show_life(mlflow, searches, job_id)
    mlflow.reachable = False
    (trial,) = api.get(f"/v1/searches/{job_id}/trials").json()["items"]
    assert (trial["state"], trial["progress"], trial["heartbeat_at"]) == ("running", None, None)


def test_a_trial_that_was_stopped_by_hand_differs_from_one_that_the_scheduler_stopped(api, searches):
    job_id = searches.add()
    by_hand = {names.TRIAL_REASON: "stopped_by_user", names.TRIAL_MESSAGE: "Stopped by hand."}
    searches.trial(job_id, TrialState.PRUNED, curve=[0.5], **by_hand)
    searches.trial(job_id, TrialState.PRUNED, curve=[0.4], **{names.TRIAL_MESSAGE: "Stopped by asha"})
    one, other = api.get(f"/v1/searches/{job_id}/trials", params={"sort": "number"}).json()["items"]
    assert [(trial["state"], trial["reason"]) for trial in (one, other)] == [
        ("pruned", "stopped_by_user"), ("pruned", None),
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(api.get(f"/v1/searches/{job_id}/trials.csv").text)))
    assert [row["reason"] for row in rows] == ["stopped_by_user", ""]


def test_a_copy_is_shown_as_one_and_is_not_the_best(api, searches):
    job_id = searches.add()
    searches.trial(job_id, values=[0.5])
    searches.trial(job_id, values=[0.5], **{names.TRIAL_COPY_OF: 0})
    one, copied = api.get(f"/v1/searches/{job_id}/trials", params={"sort": "number"}).json()["items"]
    assert [(trial["copy_of"], trial["best"]) for trial in (one, copied)] == [(None, True), (0, False)]


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_running_trial_is_stopped_and_no_other(api, searches, database):
    for state in STATES:
        job_id = searches.add(state)
        running, complete = searches.trial(job_id, TrialState.RUNNING), searches.trial(job_id, values=[0.5])
        searches.studies.enqueue(job_id, [{}], {})
        for number in (complete, 2):
            problem(api.post(f"/v1/searches/{job_id}/trials/{number}/stop"), 409, "not_allowed_in_state")
        answer = api.post(f"/v1/searches/{job_id}/trials/{running}/stop")
        if state in {"succeeded", "failed", "cancelled"}:
            problem(answer, 409, "not_allowed_in_state")
            continue
        assert (answer.json()["number"], answer.json()["state"]) == (running, "running"), state
        assert api.post(f"/v1/searches/{job_id}/trials/{running}/stop").status_code == 200
        assert job_of(database, job_id).stopped_trials == [running]
        assert [event.message for event in events_of(database, job_id)] == [f"Trial {running} was told to stop."]
        problem(api.post(f"/v1/searches/{job_id}/trials/9/stop"), 404, "trial_not_found")


# --- trying again -----------------------------------------------------------------------------------------------------


def test_a_failed_trial_is_tried_again_beyond_the_budget(api, searches, database):
    for state in STATES:
        job_id = searches.add(state)
        failed = searches.trial(job_id, TrialState.FAIL, {MOMENTUM: 0.95, RATE: 2e-4}, **{names.TRIAL_SEED: 7})
        answer = api.post(f"/v1/searches/{job_id}/trials/{failed}/retry")
        if state in OVER:
            assert "retry it first" in problem(answer, 409, "not_allowed_in_state")["detail"]
            continue
        new = answer.json()
        assert (new["number"], new["state"], new["retry_of"]) == (1, "waiting", failed), state
        assert new["params"] == {MOMENTUM: 0.95, RATE: 2e-4}
        assert searches.studies.trials(job_id)[1].user_attrs == {names.TRIAL_SEED: 7, names.TRIAL_RETRY_OF: failed}
        search = api.get(f"/v1/searches/{job_id}").json()
        assert (search["budget"]["trials"], search["state"]) == (8, "queued" if state == "succeeded" else state)
        again = api.post(f"/v1/searches/{job_id}/trials/{failed}/retry")
        assert (again.status_code, again.json()["number"]) == (200, 1), "it waits already"
        assert len(events_of(database, job_id)) == 1


@pytest.mark.both_databases
@pytest.mark.parametrize("state", ["running", "succeeded"])
def test_a_failed_point_of_a_grid_whose_budget_is_spent_is_tried_again(api, searches, state):
    path = "method.mask_ratio"
    space = {path: {"type": "float", "low": 0.5, "high": 0.7, "step": 0.1}}
    job_id = searches.add(state, search_with(space=space, algorithm={"name": "grid"}))
    failed = searches.trial(job_id, TrialState.FAIL, {path: 0.6})
    for ratio in (0.5, 0.7):
        searches.trial(job_id, point={path: ratio}, values=[ratio])
    answer = api.post(f"/v1/searches/{job_id}/trials/{failed}/retry")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["params"], answer.json()["retry_of"]) == ({path: 0.6}, failed)
    search = api.get(f"/v1/searches/{job_id}").json()
    assert (search["budget"]["trials"], search["state"]) == (3, "queued" if state == "succeeded" else state)


def test_a_failed_trial_of_a_search_that_was_stopped_is_tried_again(api, searches, database):
    job_id = searches.add("succeeded", draining=True)
    failed = searches.trial(job_id, TrialState.FAIL)
    assert api.post(f"/v1/searches/{job_id}/trials/{failed}/retry").status_code == 200
    assert (job_of(database, job_id).state, job_of(database, job_id).draining) == ("queued", False)


def test_other_trials_are_not_tried_again(api, searches):
    job_id = searches.add()
    infeasible = searches.trial(job_id, TrialState.FAIL, **{names.TRIAL_REASON: "infeasible"})
    others = [
        infeasible,
        searches.trial(job_id, values=[0.5]),
        searches.trial(job_id, TrialState.PRUNED),
        searches.trial(job_id, TrialState.RUNNING),
    ]
    for number in others:
        problem(api.post(f"/v1/searches/{job_id}/trials/{number}/retry"), 409, "not_allowed_in_state")
    assert len(searches.states(job_id)) == 4


def test_a_failed_repeat_stays_one_when_it_is_tried_again(api, searches):
    job_id = searches.add("succeeded")
    searches.trial(job_id, values=[0.5])
    repeat = searches.trial(job_id, TrialState.FAIL, **{names.TRIAL_REPEAT_OF: 0, names.TRIAL_SEED: 3})
    assert api.post(f"/v1/searches/{job_id}/trials/{repeat}/retry").json()["repeat_of"] == 0
    search = api.get(f"/v1/searches/{job_id}").json()
    assert (search["budget"]["trials"], search["state"]) == (8, "queued")


# --- the audit log ----------------------------------------------------------------------------------------------------


def test_what_is_done_to_trials_has_its_lines(api, searches, database):
    job_id = searches.add()
    failed, running = searches.trial(job_id, TrialState.FAIL), searches.trial(job_id, TrialState.RUNNING)
    api.patch(f"/v1/searches/{job_id}", json={"trials": 9})
    api.post(f"/v1/searches/{job_id}/trials", json={"points": [{}]})
    api.post(f"/v1/searches/{job_id}/trials/{running}/stop")
    api.post(f"/v1/searches/{job_id}/trials/{failed}/retry")
    made = api.post(f"/v1/searches/{job_id}/trials/{failed}/promote").json()["id"]
    api.post(f"/v1/searches/{job_id}/trials/{failed}/promote")
    api.post(f"/v1/searches/{job_id}/trials/99/stop")
    with database.read() as session:
        lines = list(session.scalars(select(Audit).order_by(Audit.id)))
    assert {line.target for line in lines} == {job_id}
    assert [(line.action, line.status, line.detail) for line in lines] == [
        ("search.change", 200, {"trials": 9}),
        ("trial.add", 201, {"trials": [2]}),
        ("trial.stop", 200, {"trial": running}),
        ("trial.retry", 200, {"trials": [3]}),
        ("trial.promote", 201, {"trial": failed, "job": made}),
        ("trial.promote", 200, None),
        ("trial.stop", 404, {"code": "trial_not_found"}),
    ]
