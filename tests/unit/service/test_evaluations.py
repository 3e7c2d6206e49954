"""What evaluations have found: how it is kept, who sees it, and how it is listed and compared."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

import pytest
from backbone_files import Registry
from evaluations import FINISHED, SPEC, TEST, TRAIN, add_evaluation, evaluation, score
from httpx import Response
from service_fakes import add_job, problem
from sqlalchemy import select

from service.db.database import Database
from service.db.tables import EvaluationRow, EvaluationScore, RegisteredBackbone
from service.evaluations.recording import record
from service.jobs import repository
from service.jobs.work import Work
from trainer.protocol import names
from trainer.protocol.evaluation import EvaluationPicture
from trainer.protocol.inspection import Warned

PATH: Final = "/v1/evaluations"
VERSION: Final = "/v1/backbones/digits/versions/1"


def scores_of(database: Database, job_id: str) -> dict[str, float]:
    with database.read() as session:
        rows = session.scalars(select(EvaluationScore).where(EvaluationScore.job_id == job_id))
        return {row.key: row.top1 for row in rows}


# --- keeping ----------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_what_is_recorded_again_replaces_what_was_there_and_goes_with_the_job(database):
    job_id = add_evaluation(database)
    assert scores_of(database, job_id) == {"eval/knn_top1": 0.9, "eval/knn_top1_random_init": 0.7}
    with database.session() as session:
        record(session, repository.get(session, job_id), evaluation({"eval/linear_top1": 0.95}))
    assert scores_of(database, job_id) == {"eval/linear_top1": 0.95}
    with database.session() as session:
        session.delete(repository.get(session, job_id))
    assert scores_of(database, job_id) == {}
    with database.read() as session:
        assert session.scalars(select(EvaluationRow)).all() == []


# --- the list ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def jobs_in(answer: Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["job"] for item in answer.json()["items"]]


@pytest.mark.both_databases
def test_the_list_is_filtered_by_what_was_measured_and_by_the_job(database, registry, api):
    registry.add(number=1)
    registry.add(number=2)
    registry.set_alias("digits", "champion", 2)
    trainer = registry.jobs["digits"]
    cifar = TRAIN.model_copy(update={"uri": "/data/cifar", "title": "CIFAR-10", "fingerprint": "sha256:cifar"})
    first = add_evaluation(database, labels={"team": "vision"})
    second = add_evaluation(database, evaluation({"eval/linear_top1": 0.8}, version=2, test=cifar, held_out=None))
    checkpoint = add_evaluation(database, evaluation(name=None, version=None, job=trainer, title="a checkpoint"))
    assert {*jobs_in(api.get(PATH))} == {first, second, checkpoint}
    expected = {
        "backbone=digits": {first, second},
        "backbone=digits:1": {first},
        "backbone=digits@champion": {second},
        "backbone=digits@none": set(),
        f"job={trainer}": {first, second, checkpoint},
        "test=CIFAR-10": {second},
        "test=/data/cifar": {second},
        "test=sha256:cifar": {second},
        "dataset=digits": {first, second, checkpoint},
        "protocol=linear": {second},
        "protocol=linear&protocol=knn": {first, second, checkpoint},
        "label=team:vision": {first},
        "owner=bob": set(),
        "created_after=2026-03-01T12:00:00Z": set(),
    }
    assert {query: {*jobs_in(api.get(f"{PATH}?{query}"))} for query in expected} == expected
    assert "NAME@alias" in problem(api.get(f"{PATH}?backbone=A%20B"), 422, "parameter_invalid")["detail"]


@pytest.mark.both_databases
@pytest.mark.parametrize("sort", ["created_at", "-finished_at", "eval/knn_top1", "-eval/knn_top1", "-eval/mce", None])
def test_pages_of_a_sorted_list_have_each_evaluation_once(database, registry, api, sort):
    registry.add()
    values = [0.5, 0.9, 0.7, 0.9, None]
    for place, value in enumerate(values):
        found = evaluation({"eval/knn_top1": value} if value else {"eval/linear_top1": 0.5}, mce=value)
        add_evaluation(database, found, finished_at=FINISHED + timedelta(minutes=place), id=f"job-{place}")
    listed, cursor = [], ""
    while cursor is not None:
        query = {"limit": 2} | ({"sort": sort} if sort else {}) | ({"cursor": cursor} if cursor else {})
        answer = api.get(PATH, params=query)
        listed += jobs_in(answer)
        cursor = answer.json()["next_cursor"]
    assert listed == [
        f"job-{place}"
        for place in {
            "created_at": [0, 1, 2, 3, 4],
            "-finished_at": [4, 3, 2, 1, 0],
            "eval/knn_top1": [0, 2, 3, 1, 4],
            "-eval/knn_top1": [3, 1, 2, 0, 4],
            "-eval/mce": [3, 1, 2, 0, 4],
            None: [4, 3, 2, 1, 0],
        }[sort]
    ]


def test_a_score_that_nothing_has_is_refused_with_the_nearest(database, registry, api):
    registry.add()
    assert jobs_in(api.get(f"{PATH}?sort=eval/linear_top1")) == []
    add_evaluation(database, evaluation({"eval/linear_top1": 0.8}))
    detail = problem(api.get(f"{PATH}?sort=-eval/linaer_top1"), 422, "parameter_invalid")["detail"]
    assert "eval/linear_top1" in detail
    cursor = "WyItY3JlYXRlZF9hdCIsMSwieCJd"  # of numbers, where the list has moments
    problem(api.get(f"{PATH}?cursor={cursor}"), 422, "parameter_invalid")


def test_an_item_has_what_was_measured_and_each_score(database, registry, api):
    registry.add()
    scores = [score("eval/knn_top1", 0.9), score("eval/knn_top1_random_init", 0.6, seeds_interval=(0.5, 0.7))]
    job_id = add_evaluation(database, evaluation(scores))
    item = api.get(PATH).json()["items"][0]
    assert item["backbone"] == {
        "title": "digits:1",
        "name": "digits",
        "version": 1,
        "job": registry.jobs["digits"],
    }
    assert (item["job"], item["owner"], item["test"]["images"], item["classes"]) == (job_id, "alice", 360, 10)
    assert [(each["key"], each["weights"], each["seeds_interval"]) for each in item["scores"]] == [
        ("eval/knn_top1", "backbone", None),
        ("eval/knn_top1_random_init", "random", [0.5, 0.7]),
    ]


# --- one evaluation, and who sees it ----------------------------------------------------------------------------------


def test_one_evaluation_has_its_classes_and_links_to_its_files(database, registry, api, clients):
    registry.add()
    picture = EvaluationPicture(file="evaluation/nearest.png", title="Neighbours", caption="Images.")
    scores = [score("eval/knn_top1", 0.9, confusion="evaluation/confusion.json")]
    notices = [Warned(code="classes_left_out", message="Two classes of wolves are left out.")]
    found = evaluation(scores, pictures=[picture], notices=notices)
    job_id = add_evaluation(database, found, labels={"team": "secret"})
    view = api.get(f"{PATH}/{job_id}").json()
    assert (view["labels"], view["evaluation"]["classes"][:2]) == ({"team": "secret"}, ["0", "1"])
    assert view["evaluation"]["scores"][0]["per_class"] == [0.9] * 10
    assert view["files"] == {
        file: f"/v1/jobs/{job_id}/files/{file}"
        for file in ("evaluation.json", "evaluation/nearest.png", "evaluation/confusion.json")
    }
    # Bob sees the backbone and so how good it is, but not alice's images.
    others = clients.bob.get(f"{PATH}/{job_id}").json()
    assert (others["files"], others["evaluation"]["pictures"]) == ({}, [])
    assert (others["job_name"], others["labels"], others["evaluation"]["notices"]) == ("", {}, [])
    assert others["evaluation"]["classes"] == [f"class {at}" for at in range(10)]
    (listed,) = clients.bob.get(PATH).json()["items"]
    assert (listed["job_name"], listed["labels"], listed["owner"]) == ("", {}, "alice")
    assert jobs_in(clients.bob.get(f"{PATH}?label=team:secret")) == []
    assert jobs_in(api.get(f"{PATH}?label=team:secret")) == [job_id]
    assert others["evaluation"]["scores"] == view["evaluation"]["scores"]
    problem(api.get(f"{PATH}/job-none"), 404, "evaluation_not_found")


@pytest.mark.both_databases
def test_who_sees_an_evaluation(database, registry, clients):
    registry.add("open")
    registry.add("private")
    with database.session() as session:
        session.get_one(RegisteredBackbone, "private").visibility = "owners"
    bobs = add_job(database, "succeeded", owner="bob")
    ids = {
        "open": add_evaluation(database, evaluation(name="open")),
        "private": add_evaluation(database, evaluation(name="private"), owner="bob"),
        "own": add_evaluation(database, evaluation(name=None, version=None, title="own weights")),
        "of bob's job": add_evaluation(database, evaluation(name=None, version=None, job=bobs, title="bob's")),
    }
    expected = {
        "alice": {"open", "private", "own"},
        "bob": {"open"},
        "viewer": {"open", "own", "of bob's job"},
        "operator": {*ids},
    }
    for owner, seen in expected.items():
        client = getattr(clients, owner)
        assert {*jobs_in(client.get(PATH))} == {ids[name] for name in seen}, owner
        shown = {name for name, job_id in ids.items() if client.get(f"{PATH}/{job_id}").status_code == 200}
        assert shown == seen, owner
        rows = client.get(f"{PATH}/table").json()["rows"]
        assert len(rows) == len(seen), owner


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_the_newest_score_of_each_version_and_marks_the_best_only_where_intervals_part(
    database, registry, api
):
    for number in (1, 2, 3):
        registry.add(number=number)
    later = FINISHED + timedelta(hours=1)
    add_evaluation(database, evaluation({"eval/knn_top1": 0.1, "eval/linear_top1": 0.5}))
    newest = add_evaluation(database, finished_at=later)
    add_evaluation(database, evaluation({"eval/knn_top1": 0.93}, version=2))
    table = api.get(f"{PATH}/table").json()
    assert [column["key"] for column in table["columns"]] == ["eval/knn_top1", "eval/linear_top1"]
    assert [row["backbone"]["title"] for row in table["rows"]] == ["digits:2", "digits:1"]
    (second, none), (first, linear) = (row["cells"] for row in table["rows"])
    assert (first["job"], first["top1"], none, linear["top1"]) == (newest, 0.9, None, 0.5)
    assert first["baselines"] == [{"weights": "random", "key": "eval/knn_top1_random_init", "top1": 0.7}]
    assert [second["best"], first["best"], linear["best"]] == [False, False, False]
    add_evaluation(database, evaluation([score("eval/knn_top1", 0.99)], version=3))
    cells = [row["cells"][0] for row in api.get(f"{PATH}/table?protocol=knn").json()["rows"]]
    assert [(cell["top1"], cell["best"]) for cell in cells] == [(0.99, True), (0.93, False), (0.9, False)]


def test_a_column_has_only_what_can_be_compared_and_an_interval_is_the_wider_one(database, registry, api):
    registry.add()
    other = TRAIN.model_copy(update={"fingerprint": "sha256:other"})
    add_evaluation(database, evaluation([score("eval/knn_top1", 0.9, seeds_interval=(0.5, 1.0))]))
    add_evaluation(database, evaluation(held_out=0.5), finished_at=FINISHED + timedelta(hours=1))
    add_evaluation(database, evaluation(train=other), finished_at=FINISHED + timedelta(hours=2))
    table = api.get(f"{PATH}/table").json()
    assert sorted((column["held_out"], column["train"]["fingerprint"]) for column in table["columns"]) == [
        (0.2, "sha256:digits"),
        (0.2, "sha256:other"),
        (0.5, "sha256:digits"),
    ]
    intervals = [cell["interval"] for cell in table["rows"][0]["cells"]]
    assert {each["of"] for each in intervals} == {"seeds", "test"}
    assert {"low": 0.5, "high": 1.0, "of": "seeds"} in intervals


def test_scores_that_were_measured_otherwise_are_not_ranked_and_say_how(database, registry, api):
    for number in (1, 2):
        registry.add(number=number)
    paper = {"name": "linear", "solver": "paper"}
    scores = {"eval/linear_top1": 0.9, "eval/knn_top1": 0.9}
    first = add_evaluation(database, evaluation(scores))
    second = add_evaluation(database, evaluation({"eval/linear_top1": 0.5, "eval/knn_top1": 0.5}, version=2))
    with database.session() as session:
        job = repository.get(session, second)
        others = [each for each in job.spec["protocols"] if each["name"] != "linear"]
        job.spec = job.spec | {"protocols": [*others, paper]}
    table = api.get(f"{PATH}/table").json()
    assert [(each["key"], each["differs"]) for each in table["columns"]] == [
        ("eval/knn_top1", []),
        ("eval/linear_top1", ["solver"]),
    ]
    found = {cell["job"]: (cell["best"], cell["settings"]) for row in table["rows"] for cell in row["cells"][1:]}
    assert found == {first: (False, {"solver": "lbfgs"}), second: (False, {"solver": "paper"})}
    assert [row["cells"][0]["best"] for row in table["rows"]] == [False, True]
    pairs = api.get("/v1/backbone-comparison?of=digits:1&with=digits:2").json()["evaluations"]
    assert [(each["key"], each["apart"], each["differs"]) for each in pairs] == [
        ("eval/knn_top1", True, []),
        ("eval/linear_top1", False, ["solver"]),
    ]
    add_evaluation(database, evaluation({"eval/knn_top1": 0.1}, pooling="cls"), finished_at=FINISHED + timedelta(1))
    assert api.get(f"{PATH}/table").json()["columns"][0]["differs"] == ["pooling"]


def test_a_table_of_many_evaluations_is_bounded_and_fast(database, api):
    keys = [f"eval/linear_top1_{number}pct" for number in range(9)]
    for number in range(1000):
        images = TRAIN.model_copy(update={"fingerprint": f"sha256:{number}"})
        found = evaluation(dict.fromkeys(keys, 0.5), name=None, version=None, title=f"w{number}", train=images)
        add_evaluation(database, found, finished_at=FINISHED + timedelta(minutes=number))
    begin = time.process_time()
    table = api.get(f"{PATH}/table").json()
    assert time.process_time() - begin < 2
    assert (len(table["columns"]), len(table["rows"]), table["left_out"]) == (200, 23, 978)
    assert {column["train"]["fingerprint"] for column in table["columns"]} >= {"sha256:999", "sha256:978"}


def test_weights_of_one_title_from_two_places_are_two_rows(database, api):
    for place in ("a", "b"):
        job_id = add_evaluation(database, evaluation(name=None, version=None, title="model.safetensors"))
        with database.session() as session:
            job = repository.get(session, job_id)
            job.spec = job.spec | {"backbone": {"uri": f"/weights/{place}/model.safetensors"}}
    assert len(api.get(f"{PATH}/table").json()["rows"]) == 2


# --- what is known of a version ---------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_version_has_its_newest_results_and_its_card_an_addendum(database, registry, api):
    registry.add()
    assert api.get(f"{VERSION}/evaluations.md").text == ""
    odd = TEST.model_copy(update={"title": "digits | <b>mine</b>"})
    add_evaluation(database, evaluation({"eval/knn_top1": 0.5}, test=odd))
    newest = add_evaluation(database, evaluation(test=odd), finished_at=FINISHED + timedelta(hours=1))
    view = api.get(VERSION).json()
    assert [(each["key"], each["top1"], each["job"]) for each in view["evaluations"]] == [
        ("eval/knn_top1", 0.9, newest)
    ]
    answer = api.get(f"{VERSION}/evaluations.md")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert "### digits \\| \\<b\\>mine\\</b\\> (360 images), of which 0.2 of each class is held out" in answer.text
    row = "| `eval/knn_top1` | 0.9000 | 0.8800 to 0.9200 (of the number of test images) | 0.7000 (random) |"
    assert answer.text.splitlines()[-1] == f"{row} mean, layer last | {newest} |"
    assert "README.md" in [file["path"] for file in view["files"]], "the files of the version stay as they were"


def test_an_evaluation_never_becomes_one_of_another_version_with_the_same_number(database, registry, mlflow, api):
    registry.add()
    job_id = add_evaluation(database)
    mlflow.registered.clear()  # somebody has deleted the registered model, and MLflow counts from 1 again
    registry.add()
    assert api.get(VERSION).json()["evaluations"] == []
    item = api.get(f"{PATH}/{job_id}").json()
    assert (item["backbone"]["title"], item["backbone"]["name"]) == ("digits:1", None)


def test_results_are_tags_of_the_version_in_mlflow_and_follow_what_is_newest(served, world, database, registry, mlflow):
    registry.add()
    tag = f"{names.TAG_EVALUATED}eval/knn_top1"
    first = add_evaluation(database)
    world.reconciler.removals.run_all([Work.DESCRIBE_VERSION])
    assert mlflow.all_versions()[0].tags[tag] == f"0.9000 on digits, {first}"
    assert f"{tag}_random_init" not in mlflow.all_versions()[0].tags
    second = add_evaluation(database, evaluation({"eval/knn_top1": 0.95}), finished_at=FINISHED + timedelta(hours=1))
    world.compare_versions()
    assert mlflow.all_versions()[0].tags[tag] == f"0.9500 on digits, {second}"
    assert tag not in served.get(VERSION).json()["tags"], "copies are no tags of its own"
    with database.session() as session:
        session.delete(repository.get(session, second))
    world.compare_versions()
    assert mlflow.all_versions()[0].tags[tag] == f"0.9000 on digits, {first}"


def test_two_versions_are_compared_by_what_was_measured_alike(database, registry, api):
    registry.add(number=1)
    registry.add(number=2)
    add_evaluation(database, evaluation({"eval/knn_top1": 0.9, "eval/linear_top1": 0.90}))
    add_evaluation(database, evaluation({"eval/knn_top1": 0.8, "eval/linear_top1": 0.91}, version=2))
    add_evaluation(database, evaluation({"eval/knn_top1": 0.7}, version=2, held_out=0.5))
    pairs = api.get("/v1/backbone-comparison?of=digits:1&with=digits:2").json()["evaluations"]
    found = [(each["key"], each["held_out"], each["difference"], each["apart"]) for each in pairs]
    assert sorted(found, key=str) == [
        ("eval/knn_top1", 0.2, pytest.approx(-0.1), True),
        ("eval/knn_top1", 0.5, None, False),
        ("eval/linear_top1", 0.2, pytest.approx(0.01), False),
    ]
    assert [each["first"] is None for each in pairs if each["held_out"] == 0.5] == [True]


# --- versions that are being measured ---------------------------------------------------------------------------------


@pytest.mark.both_databases
@pytest.mark.parametrize("state", ["queued", "running", "pausing", "recovering"])
def test_a_version_that_a_job_measures_stays_until_that_has_ended(database, registry, api, state):
    registry.add(number=1)
    registry.add(number=2)
    registry.add("digits-more", number=1)
    spec = SPEC | {"backbone": "digits:1"}
    job_id = add_job(database, state, spec, owner="bob")
    add_job(database, "succeeded", SPEC | {"backbone": "digits:2"})
    rule = {"expire_unused_days": 1, "keep_newest": 1}
    kept = api.put("/v1/backbones/digits/retention?preview=true", json=rule).json()["versions"]
    why = {each["version"]: each["why"] for each in kept}
    assert f"{job_id}, which needs it, has not ended" in why[1]
    assert not [text for text in why[2] if "needs it" in text]
    assert job_id in api.delete(f"{VERSION}?preview=true").json()["kept"]
    told = problem(api.delete(VERSION), 409, "version_needed")["detail"]
    assert f"{job_id} (evaluate, {state}, of bob)" in told
    job = registry.jobs["digits"]
    problem(api.delete(f"/v1/jobs/{job}?with_backbones=true"), 409, "version_needed")
    assert api.delete("/v1/backbones/digits/versions/2").status_code == 200
    with database.session() as session:
        repository.get(session, job_id).state = "cancelled"
    assert api.delete(f"{VERSION}?preview=true").json()["kept"] == ""
    assert api.delete(VERSION).status_code == 200


@pytest.mark.both_databases
def test_a_job_that_others_need_stays_until_they_have_ended_or_are_paused(database, clients):
    source, reference = add_job(database, "succeeded"), add_evaluation(database)
    robust = [{"name": "knn"}, {"name": "robustness", "reference": reference}]
    users = {
        add_job(database, "queued", SPEC | {"backbone": {"job": source}}, owner="bob"): source,
        add_job(database, "recovering", {"kind": "publish", "job": source, "register_as": "x"}, owner="bob"): source,
        add_job(database, "running", SPEC | {"protocols": robust}, owner="bob"): reference,
    }
    for user, needed in users.items():
        told = problem(clients.alice.delete(f"/v1/jobs/{needed}"), 409, "job_needed")["detail"]
        assert f"{user} (" in told
        assert "pause or cancel it" in told
        with database.session() as session:
            repository.get(session, user).state = "paused"
    for needed in (source, reference):
        assert clients.alice.delete(f"/v1/jobs/{needed}").status_code == 200
