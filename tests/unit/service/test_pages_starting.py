"""The form and YAML as two views of one spec."""

import re

import pytest
from service_fakes import SPEC, add_job

from service.dashboard.specform import FormField, groups, pruned, searchable
from trainer.spec.base import document_with_lines
from trainer.spec.job import parse_spec
from trainer.spec.pretrain import PretrainSpec

SEARCH = {
    "kind": "search",
    "base": SPEC,
    "space": {"method.mask_ratio": {"type": "categorical", "choices": [0.5, 0.75]}},
    "objective": {"metric": "eval/linear_top1", "mode": "max"},
    "scheduler": {"name": "none"},
    "budget": {"trials": 2},
}


def fields(kind: str, document: dict) -> dict[str, FormField]:
    return {each.path: each for group in groups(kind, document) for each in group.fields}


def csrf(browser) -> dict[str, str]:
    page = browser.get("/jobs/new").text
    return {"X-CSRF-Token": re.search(r'name="csrf" content="([^"]+)"', page)[1]}


def test_every_field_of_a_spec_is_in_its_form():
    document = PretrainSpec.parse(SPEC).model_dump(mode="json")
    names = fields("pretrain", document)

    def leaves(value: dict, path: str):
        for name, each in value.items():
            if isinstance(each, dict) and each and name != "labels":
                yield from leaves(each, f"{path}{name}.")
            else:
                yield f"{path}{name}"

    expected = set(leaves(document, "")) - {"kind", "evaluation.dataset", "method.teacher"}
    assert expected <= set(names)
    assert "evaluation.dataset.uri" in names, "also of a part that may be absent"


def test_a_field_shows_what_was_given_and_what_it_would_be():
    found = fields(
        "pretrain", {"dataset": {"uri": "/data"}, "labels": {"team": "vision"}, "augmentation": {"hflip": False}}
    )
    assert (found["dataset.uri"].value, found["dataset.uri"].required) == ("/data", True)
    assert (found["optimization.epochs"].value, found["optimization.epochs"].default) == ("", "1600")
    assert (found["augmentation.hflip"].value, found["augmentation.hflip"].options) == ("false", ("true", "false"))
    assert (found["labels"].value, found["labels"].type) == ("team:vision", "labels")
    assert found["dataset.format"].options == ["auto", "folder", "tar", "parquet"]


def test_what_can_be_searched_is_offered():
    assert {"method.teacher.momentum", "optimization.base_lr", "method.mask_ratio"} <= set(searchable())
    assert not {"dataset.uri", "name", "priority"} & set(searchable())


def test_a_clone_says_what_was_meant_and_means_the_same():
    whole = parse_spec(SPEC).model_dump(mode="json")
    short = pruned("pretrain", whole)
    assert parse_spec(short).model_dump(mode="json") == whole
    assert len(str(short)) < len(str(whole)) / 2


def test_a_clone_of_a_search_means_the_same():
    spec = parse_spec(SEARCH)
    short = pruned("search", spec.model_dump(mode="json"))
    again = parse_spec(short)
    assert again.base_spec == spec.base_spec
    assert again.model_copy(update={"base": spec.base}) == spec
    assert "algorithm" not in short


def test_lines_of_fields():
    text = "kind: pretrain\ndataset:\n  uri: /data\noptimization:\n  betas: [0.9,\n    0.95]\n"
    assert document_with_lines(text)[1] == {
        "kind": 1, "dataset": 2, "dataset.uri": 3, "optimization": 4, "optimization.betas": 5,
        "optimization.betas.0": 5, "optimization.betas.1": 6,
    }  # fmt: skip


def test_a_viewer_is_told_why_there_is_no_form(browsers):
    page = browsers.viewer.get("/jobs/new")
    assert page.status_code == 200
    assert "You need a token of the role submitter" in page.text
    assert "data-spec-form" not in page.text


@pytest.mark.parametrize(
    "path", ["/jobs/new", "/searches/new", "/searches/new?ready=masking", "/jobs/new?preset=vit_tiny_patch16_224"]
)
def test_what_is_offered_first_is_a_spec(browsers, path):
    page = browsers.alice.get(path).text
    text = (
        re.search(r'<textarea id="yaml"[^>]*>(.*?)</textarea>', page, re.DOTALL)[1]
        .replace("&#34;", '"')
        .replace("&#39;", "'")
    )
    headers = csrf(browsers.alice)
    kind = "search" if "searches" in path else "pretrain"
    answer = browsers.alice.post("/forms/document", json={"kind": kind, "text": text}, headers=headers)
    assert answer.status_code == 200, answer.text
    parse_spec(answer.json()["document"])


def test_a_clone_and_a_search_from_a_job(browsers, database):
    job_id = add_job(
        database,
        "succeeded",
        owner="alice",
        name="mine",
        spec=PretrainSpec.parse({**SPEC, "name": "mine", "seed": 77}).model_dump(mode="json"),
    )
    assert 'value="77"' in browsers.alice.get(f"/jobs/new?like={job_id}").text
    search = browsers.alice.get(f"/searches/new?job={job_id}").text
    assert f"A search based on the spec of job {job_id}." in search
    assert 'name="base.seed" data-type="value" value="77"' in search
    assert browsers.bob.get(f"/jobs/new?like={job_id}").status_code == 404


def test_one_view_becomes_the_other(browsers):
    headers = csrf(browsers.alice)
    text = browsers.alice.post("/forms/yaml", json={"document": SEARCH}, headers=headers).json()["text"]
    html = browsers.alice.post("/forms/form", json={"kind": "search", "text": text}, headers=headers).json()["html"]
    assert 'data-part="path" value="method.mask_ratio"' in html
    assert 'data-part="choices" value="0.5, 0.75"' in html


@pytest.mark.parametrize(
    ("text", "told"),
    [("kind: [", "line 1"), ("- a\n- b", "must be a mapping"), ("kind: pretrain", "must be search on this page")],
)
def test_text_that_is_no_spec_is_told(browsers, text, told):
    answer = browsers.alice.post("/forms/form", json={"kind": "search", "text": text}, headers=csrf(browsers.alice))
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_conversions_are_for_our_own_pages(browsers):
    answer = browsers.alice.post("/forms/yaml", json={"document": SPEC})
    assert answer.status_code == 401
    assert browsers.anonymous.post("/forms/yaml", json={"document": SPEC}).status_code == 401


@pytest.mark.parametrize("path", ["/forms/document", "/forms/form"])
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("name: 2024-05-01", "name: line 2, column 7"),
        ("seed: .inf", "seed: line 2, column 7"),
        ("kind: search", "kind: line 2, column 1"),
        ("labels: &x {a: *x}", "labels.a: line 2, column 9"),
        ("labels: " + "[" * 3000, "line 2, column 58"),
    ],
)
def test_yaml_that_json_cannot_hold_is_refused_at_its_line(browsers, path, line, told):
    body = {"kind": "search", "text": f"kind: search\n{line}\n"}
    answer = browsers.alice.post(path, json=body, headers=csrf(browsers.alice))
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_a_document_too_deep_for_yaml_is_refused(browsers):
    body = '{"document": {"a": ' + "[" * 400 + "]" * 400 + "}}"
    answer = browsers.alice.post(
        "/forms/yaml", content=body, headers=csrf(browsers.alice) | {"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "json_invalid")
