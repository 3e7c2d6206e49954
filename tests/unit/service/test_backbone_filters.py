"""Backbones found by words, labels, owners and results, over REST."""

from __future__ import annotations

import pytest
from backbone_files import Registry
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from service_fakes import add_job, problem, spec_with
from sqlalchemy import event

from service.db.tables import BackboneVersion
from service.http.filters import Comparison, comparisons

BASE = "/v1/backbones"


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def found(api: TestClient, **query: object) -> dict[str, list[int]]:
    """The matching versions of each backbone."""
    answer = api.get(BASE, params=query)
    assert answer.status_code == 200, answer.text
    return {item["name"]: item["versions"] for item in answer.json()["items"]}


def add_two(registry: Registry, clients) -> None:
    """Cats by Alice, in two versions, and dogs by Bob, both described and labelled."""
    registry.add("cats", metrics={"eval/linear_top1": 0.5, "eval/knn_top1": 0.25}, method="mae")
    registry.add("cats", 2, metrics={"eval/linear_top1": 0.75}, method="rc_mae")
    registry.add("dogs", owner="bob", metrics={"eval/linear_top1": 0.625}, method="rc_mae")
    for client, path, body in (
        (clients.alice, "cats", {"description": "Whiskers, 100 % sure.", "labels": {"team": "vision"}}),
        (clients.alice, "cats/versions/2", {"description": "Größe L", "labels": {"site": "north"}}),
        (clients.bob, "dogs/versions/1", {"description": "Tails", "labels": {"team": "vision-2", "site": "north"}}),
    ):
        assert client.patch(f"{BASE}/{path}", json=body).status_code == 200


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"search": "CAT"}, {"cats": [1, 2]}),
        ({"search": "digits"}, {"cats": [1, 2], "dogs": [1]}),
        ({"search": "builtin://DIG tails"}, {"dogs": [1]}),
        ({"search": "whiskers größe"}, {"cats": [2]}),
        ({"search": "  GRÖSSE  "}, {"cats": [2]}),
        ({"search": "vision-2"}, {"dogs": [1]}),
        ({"search": "team:vision"}, {"cats": [1, 2], "dogs": [1]}),
        ({"search": "%"}, {"cats": [1, 2]}),
        ({"search": "_"}, {}),
        ({"search": "whiskers tails"}, {}),
        ({"label": "team:vision"}, {"cats": [1, 2]}),
        ({"label": ["team:vision", "site:north"]}, {"cats": [2]}),
        ({"label": "site:north"}, {"cats": [2], "dogs": [1]}),
        ({"label": "team:vis"}, {}),
        ({"label": "whiskers:"}, {}),
        ({"owner": "bob"}, {"dogs": [1]}),
        ({"owner": "nobody"}, {}),
        ({"filter": "eval/linear_top1 >= 0.625"}, {"cats": [2], "dogs": [1]}),
        ({"filter": "eval/linear_top1>0.625"}, {"cats": [2]}),
        ({"filter": ["eval/linear_top1 > 5e-1", "eval/linear_top1 < .7"]}, {"dogs": [1]}),
        ({"filter": "eval/linear_top1 = 0.5"}, {"cats": [1]}),
        ({"filter": "eval/knn_top1 <= 1"}, {"cats": [1]}),
        ({"filter": "eval/knn_top1 < -1"}, {}),
        ({"filter": "eval/linear_top1 > 0", "owner": "alice", "label": "team:vision", "search": "whiskers",
          "method": "mae"}, {"cats": [1]}),
        ({"search": "l", "name_contains": "DOG", "sort": "-eval/linear_top1"}, {"dogs": [1]}),
    ],
)  # fmt: skip
def test_filters_narrow_to_the_versions_that_match_all(clients, registry, query, names):
    add_two(registry, clients)
    assert found(clients.viewer, **query) == names


def test_an_owner_has_its_backbones_and_its_versions_of_others(clients, registry, database):
    registry.add()
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    registry.add(number=2)
    assert found(clients.viewer, owner="alice") == {"digits": [1, 2]}
    assert found(clients.viewer, owner="bob") == {"digits": [2]}


def test_labels_are_told_from_words_that_look_like_them(api, registry):
    registry.add()
    api.patch(f"{BASE}/digits", json={"description": "no\nteam:vision\n"})
    assert found(api, search="team:vision") == {"digits": [1]}
    assert found(api, label="team:vision") == {}


@pytest.mark.both_databases
def test_a_page_of_what_is_searched_reads_only_what_may_match(api, registry):
    for number in range(12):
        registry.add(f"b-{number:02}")
        if number > 8:
            api.patch(f"{BASE}/b-{number:02}", json={"labels": {"team": "vision"}})
    read: list[str] = []

    def loaded(row: BackboneVersion, _: object) -> None:
        read.append(row.name)

    event.listen(BackboneVersion, "load", loaded)
    try:
        for query in ({"label": "team:vision"}, {"search": "VISION"}, {"search": "b-09 b-"}, {"owner": "bob"}):
            read.clear()
            names = list(found(api, **query))
            assert read == names
        first = api.get(BASE, params={"label": "team:vision", "limit": 2}).json()
        rest = api.get(BASE, params={"label": "team:vision", "cursor": first["next_cursor"]}).json()
    finally:
        event.remove(BackboneVersion, "load", loaded)
    assert [item["name"] for page in (first, rest) for item in page["items"]] == ["b-09", "b-10", "b-11"]


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_result_that_no_version_has_is_no_empty_list(api, registry):
    assert found(api, filter="eval/linear_top1 > 0") == {}, "no version has any result"
    registry.add(metrics={"eval/linear_top1": 0.5, "eval/knn_top1": 0.25})
    detail = problem(api.get(BASE, params={"filter": "eval/linear_top5 > 0"}), 422, "parameter_invalid")["detail"]
    assert "did you mean eval/linear_top1?" in detail
    detail = problem(api.get(BASE, params={"filter": "loss/x > 0"}), 422, "parameter_invalid")["detail"]
    assert "known are eval/knn_top1, eval/linear_top1" in detail
    assert found(api, filter="eval/linear_top1 > 0.9", name_contains="zebra") == {}, "known, and nothing matches"


@pytest.mark.parametrize(
    "text",
    [
        "", "eval/linear_top1", "eval/linear_top1 >=", ">= 0.5", "eval/linear_top1 => 0.5", "eval/linear_top1 == 0.5",
        "eval/linear_top1 >= nan", "eval/linear_top1 >= 0,5", "eval/linear_top1 > 0.5 and x", "linear_top1 > 0.5",
        "eval/a b > 1", "eval/linear_top1 > 1e9999", "eval/linear_top1 > 1e999",
        "eval/linear_top1 > 1_0", "eval/linear_top1 > ٣", "a" * 300,
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_read_says_how_to_write_it(api, text):
    found = problem(api.get(BASE, params={"filter": text}), 422, "parameter_invalid")
    assert "for example eval/linear_top1 >= 0.5" in found["detail"]
    assert found["problems"][0]["field"] == "filter"


def test_a_label_without_a_colon_is_refused_as_on_jobs(api):
    for path in (BASE, "/v1/jobs"):
        assert "write name:value" in problem(api.get(path, params={"label": "x"}), 422, "parameter_invalid")["detail"]


@given(
    key=st.from_regex(r"[a-z]+/[A-Za-z0-9_./-]{1,20}", fullmatch=True),
    operator=st.sampled_from(["<", "<=", ">", ">=", "="]),
    value=st.floats(allow_nan=False, allow_infinity=False, width=32),
    gap=st.sampled_from(["", " ", "  "]),
)
def test_every_condition_is_read_as_it_is_written(key, operator, value, gap):
    assert comparisons([f"{gap}{key}{gap}{operator}{gap}{value!r}{gap}"]) == [Comparison(key, operator, value)]
