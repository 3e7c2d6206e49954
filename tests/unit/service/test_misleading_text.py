"""Control characters and marks of direction are refused wherever text of users comes in, by field and by character."""

from __future__ import annotations

import json
import re

import pytest
from fastapi.routing import iter_route_contexts
from service_fakes import SPEC, add_job, job_of, problem, spec_with
from test_pages_rest import csrf

from service.app import build_app
from service.backbones.hub.routes import PREFIX
from service.dashboard.site import PageRoute
from trainer.spec.text import misleading, visible, visible_json

MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
CONTROLS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
ROUTES = [each for each in iter_route_contexts(build_app(2**20).routes) if hasattr(each.original_route, "dependant")]
RIGHT_TO_LEFT = "דוגמה 👩‍🔬 é"


@pytest.mark.parametrize("char", MARKS + CONTROLS, ids=lambda char: f"U+{ord(char):04X}")
def test_a_name_with_any_of_them_is_refused(char):
    fault = misleading(f"ab{char}c")
    assert f"U+{ord(char):04X}" in fault
    assert "at character 3: remove it" in fault
    assert visible(f"ab{char}c").isprintable() or char in "\n\t"
    assert json.loads(visible_json(json.dumps(f"ab{char}c", ensure_ascii=False))) == f"ab{char}c"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "a\u202eb"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"labels": {"team": "vision\n"}}, "labels.team"),
        ({"labels": {"te\x1bam": "vision"}}, "labels.te\\x1bam"),
        ({"dataset": {"uri": "/data/\u2066x"}}, "dataset.uri"),
        ({"dataset": {"uri": "/data", "include": ["ok", "a\x7f"]}}, "dataset.include.1"),
        ({"register_as": "a\x00"}, "register_as"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/plan"])
def test_a_spec_with_one_is_refused_by_its_field(api, path, change, field):
    (found,) = problem(api.post(path, json=spec_with(**change)), 422, "spec_invalid")["problems"]
    assert found["field"] == field
    assert "remove it" in found["message"]


def test_every_body_is_checked(clients, browsers):
    bodies = [each for each in ROUTES if each.original_route.body_field and each.path != "/login"]
    bodies = [each for each in bodies if each.path != "/logout"]
    assert len(bodies) > 12
    forms = csrf(browsers.alice)
    content = json.dumps({"a": [{"b\u202e": 1}, "x\x1b[31m"]})
    for each in bodies:
        path = re.sub(r"\{[^}]+\}", "1", each.path)
        for method in each.methods:
            client, header = (browsers.alice, forms) if path.startswith("/forms/") else (clients.admin, {})
            headers = {"Content-Type": "application/json"} | header
            answer = client.request(method, path, content=content, headers=headers)
            found = problem(answer, 422, "spec_invalid")["problems"]
            assert [item["field"] for item in found] == ["a.0.b\\u202e", "a.1"], (method, path)
            assert "U+202E (RIGHT-TO-LEFT OVERRIDE)" in found[0]["message"]
            assert "U+001B (a control character)" in found[1]["message"]


def test_every_query_parameter_is_checked(clients, browsers):
    for each in ROUTES:
        if each.path.startswith(f"{PREFIX}/"):
            continue
        path = re.sub(r"\{[^}]+\}", "1", each.path)
        client = browsers.alice if isinstance(each.original_route, PageRoute) else clients.admin
        for name in each.original_route._parameters:
            answer = client.request(next(iter(each.methods)), f"{path}?{name}=a%E2%80%AEb")
            assert answer.status_code == 422, (path, name)
            assert "U+202E" in answer.text or "HEAD" in each.methods


def test_notes_may_have_lines_and_nothing_worse(api, database):
    job_id = api.post("/v1/jobs", json=SPEC).json()["id"]
    notes = f"first\n\tsecond {RIGHT_TO_LEFT}"
    assert api.patch(f"/v1/jobs/{job_id}", json={"notes": notes}).json()["notes"] == notes
    (found,) = problem(api.patch(f"/v1/jobs/{job_id}", json={"notes": "a\rb"}), 422, "spec_invalid")["problems"]
    assert (found["field"], "U+000D" in found["message"]) == ("notes", True)
    assert job_of(database, job_id).notes == notes


def test_letters_of_any_language_are_welcome(api):
    assert api.post("/v1/jobs", json=spec_with(name=RIGHT_TO_LEFT)).json()["name"] == RIGHT_TO_LEFT


def test_what_is_stored_already_can_be_read(api, database):
    job_id = add_job(database, "queued", spec_with(name="old\u202e"), owner="alice", name="old\u202e")
    assert api.get(f"/v1/jobs/{job_id}").json()["name"] == "old\u202e"
    assert api.get(f"/v1/jobs/{job_id}/spec").json()["name"] == "old\u202e"
