"""Two versions of backbones side by side: over REST, on the command line and on the page."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
from backbone_files import FILES, Registry
from conftest import token_of
from fastapi.testclient import TestClient
from service_fakes import problem

from service.backbones import comparison
from service.backbones.comparison_schemas import ComparisonView
from service.client.console import Console
from service.client.render_backbones import comparison as rendered

PATH = "/v1/backbone-comparison"
SPEC = {"name": "a", "method": {"mask_ratio": 0.75, "teacher": {"momentum": 0.996}}, "model": {"depth": 12}, "seed": 0}


def curves(*values: float) -> dict[str, object]:
    return {"points": [[float(epoch), value] for epoch, value in enumerate(values)]}


def files(spec: object, metrics: object, **more: bytes) -> dict[str, bytes]:
    return FILES | {"spec.json": json.dumps(spec).encode(), "metrics.json": json.dumps(metrics).encode()} | more


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


@pytest.fixture
def two(registry) -> Registry:
    other = SPEC | {"method": {"mask_ratio": 0.6, "teacher": None}, "labels": {"team": "vision"}}
    first = files(SPEC, {"curves": {"train/loss": curves(1.0, 0.5), "eval/linear_top1": curves(0.2)}})
    second = files(
        other, {"curves": {"train/loss": curves(1.5, 0.25)}}, **{"card/more.png": b"\x89PNG", "onnx/m": b"x" * 9}
    )
    shared = {"dataset_fingerprint": "abc", "formats": "timm,hf,hf-mae"}
    registry.add(files=first, metrics={"eval/linear_top1": 0.5, "eval/knn_top1": 0.4}, **shared)
    registry.add("cats", 1, files=second, metrics={"eval/linear_top1": 0.75}, **shared)
    return registry


def compared(api: TestClient, of: str = "digits:1", other: str = "cats@main") -> dict:
    answer = api.get(PATH, params={"of": of, "with": other})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.usefixtures("two")
def test_what_differs_is_shown_and_what_is_the_same_is_not(api):
    found = compared(api)
    assert [(each["path"], each["first"], each["second"]) for each in found["spec"]] == [
        ("method.mask_ratio", 0.75, 0.6),
        ("method.teacher.momentum", 0.996, None),
        ("labels.team", None, "vision"),
    ]
    assert found["metrics"] == [
        {"key": "eval/knn_top1", "first": 0.4, "second": None, "difference": None},
        {"key": "eval/linear_top1", "first": 0.5, "second": 0.75, "difference": 0.25},
    ]
    assert found["same_dataset"] is True
    assert [side["notes"] for side in (found["first"], found["second"])] == [[], []]
    assert found["second"]["sizes"]["onnx"] == 9
    listed = api.get("/v1/backbones/cats/versions/1").json()["files"]
    assert found["second"]["bytes"] == sum(file["size"] for file in listed)
    assert found["curves"] == [
        {"key": "eval/linear_top1", "first": [[0.0, 0.2]], "second": []},
        {"key": "train/loss", "first": [[0.0, 1.0], [1.0, 0.5]], "second": [[0.0, 1.5], [1.0, 0.25]]},
    ]
    url = "/v1/backbones/{}/versions/1/files/card/{}.png"
    assert found["pictures"] == [
        {"path": "card/curves.png", "first": url.format("digits", "curves"), "second": url.format("cats", "curves")},
        {"path": "card/more.png", "first": None, "second": url.format("cats", "more")},
    ]
    assert api.get(found["pictures"][1]["second"]).status_code == 200


def test_versions_are_named_as_on_the_command_line_and_a_wrong_name_names_the_parameter(api, two):
    two.set_alias("cats", "champion", 1)
    for of in ("digits", "digits:1", "digits:latest", "digits@main"):
        for other in ("cats@champion", "cats:1"):
            found = compared(api, of, other)
            assert (found["first"]["version"]["name"], found["second"]["version"]["version"]) == ("digits", 1)
    for query, said in (
        ({"of": "digits:", "with": "cats"}, "of: 'digits:'"),
        ({"of": "cats", "with": "@x"}, "with: '@x'"),
    ):
        assert said in problem(api.get(PATH, params=query), 422, "parameter_invalid")["detail"]
    problem(api.get(PATH, params={"of": "digits"}), 422, "parameter_invalid")
    problem(api.get(PATH, params={"of": "digits:9", "with": "cats"}), 404, "version_not_found")
    problem(api.get(PATH, params={"of": "digits", "with": "nobody"}), 404, "version_not_found")


def test_a_backbone_may_be_called_what_the_pages_and_routes_are_called(api, browsers, registry):
    for name in ("compare", "backbone-comparison"):
        registry.add(name)
        assert api.get(f"/v1/backbones/{name}").json()["name"] == name
        assert f"<h1>{name}" in browsers.alice.get(f"/backbones/{name}").text.replace("<bdi>", "")


def test_what_cannot_be_read_is_told_by_name_and_the_rest_is_compared(api, registry, monkeypatch):
    monkeypatch.setattr(comparison, "LARGEST_FILE", 200)
    registry.add(files=files(SPEC, {}), metrics={"eval/linear_top1": 0.5})
    registry.add(number=2, files=files(SPEC | {"name": "x" * 300}, {}), metrics={"eval/linear_top1": 0.75})
    registry.add(number=3, files=files(SPEC, {}) | {"spec.json": b"{no", "metrics.json": b"\xff"})
    registry.add(number=4, files={name: data for name, data in files(SPEC, {}).items() if name != "metrics.json"})
    registry.add(number=5, files=files(SPEC, {}) | {"spec.json": b"[" * 150})

    def notes(number: int) -> list[str]:
        found = compared(api, "digits:1", f"digits:{number}")
        assert (found["spec"], found["first"]["notes"]) == ([] if number == 4 else None, [])
        return found["second"]["notes"]

    (said,) = notes(2)
    assert re.fullmatch(r"spec\.json has 4\d\d bytes; at most 200 are compared", said)
    spec, metrics = notes(3)
    assert spec.startswith("spec.json cannot be read: Expecting property name")
    assert metrics.startswith("metrics.json cannot be read:")
    assert notes(4) == ["it has no metrics.json"]
    assert "nested too deeply" in notes(5)[0] or "cannot be read" in notes(5)[0]
    assert compared(api, "digits:1", "digits:2")["metrics"][0]["difference"] == 0.25


@pytest.mark.usefixtures("two")
def test_a_version_whose_files_are_gone_is_compared_by_what_is_known_of_it(world, served, mlflow):
    mlflow.registered[:] = [each for each in mlflow.registered if each.name != "cats"]
    world.compare_versions()
    found = compared(served, "digits", "cats:1")
    assert "cats:1 was deleted in MLflow" in found["second"]["notes"][0]
    assert (found["second"]["bytes"], found["spec"]) == (None, None)
    assert found["metrics"][1]["difference"] == 0.25
    assert found["curves"][0]["first"] == [[0.0, 0.2]]


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        {"curves": []},
        {"curves": {"a": 1}},
        {"curves": {"a": {"points": "xy"}}},
        {"curves": {"a": {"points": [[1], [1, "x"], [1, True, 2], [1, 10**400]]}}},
    ],
)
def test_what_is_no_curve_is_left_out(api, registry, metrics):
    registry.add(files=files(SPEC, metrics))
    assert compared(api, "digits", "digits")["curves"] == []


def test_curves_are_bounded(api, registry, monkeypatch):
    monkeypatch.setattr(comparison, "MOST_CURVES", 2)
    monkeypatch.setattr(comparison, "MOST_POINTS", 3)
    registry.add(files=files(SPEC, {"curves": {key: curves(*range(9)) for key in "abc"}}))
    assert [(each["key"], len(each["first"])) for each in compared(api, "digits", "digits")["curves"]] == [
        ("a", 3),
        ("b", 3),
    ]


@pytest.mark.usefixtures("two")
def test_the_command_line_shows_it_in_two_tables(api):
    console = Console(width=200, record=True)
    console.print(rendered(ComparisonView.model_validate(compared(api))))
    text = console.export_text()
    for line in (
        r"eval/linear_top1 +0\.5 +0\.75 +\+0\.25",
        r"dataset +abc +abc +the same images",
        r"method\.mask_ratio +0\.75 +0\.6",
    ):
        assert re.search(line, text), text


@pytest.mark.usefixtures("two")
def test_the_page_has_both_in_one_table_and_every_curve_in_one_figure(api, routes):
    page = TestClient(routes, follow_redirects=False)
    assert page.post("/login", data={"token": token_of("alice")}).status_code == 303
    one = page.get("/backbones/digits").text
    assert re.search(r'action="/backbone-comparison">\s*<input type="hidden" name="of" value="digits:1">', one)
    asked = page.get("/backbone-comparison")
    assert (asked.status_code, "Name two versions." in asked.text) == (200, True)
    shown = page.get("/backbone-comparison", params={"of": "digits", "with": "cats"}).text
    figures = [json.loads(unescape(found)) for found in re.findall(r'data-figure="([^"]*)"', shown)]
    assert [[trace["name"] for trace in figure["data"]] for figure in figures] == [["digits:1"], ["digits:1", "cats:1"]]
    assert "3 values of the spec differ" in shown
    for picture in compared(api)["pictures"]:
        for url in filter(None, (picture["first"], picture["second"])):
            assert f'<img src="{url}"' in shown
    assert page.get("/backbone-comparison", params={"of": "digits", "with": "nobody"}).status_code == 404
