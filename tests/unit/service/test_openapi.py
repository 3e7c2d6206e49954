"""The API's description: complete, right, and readable without any other server."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.openapi.models import OpenAPI
from search_files import SEARCH
from service_fakes import SPEC, add_job, post, spec_with

import service
from service import examples
from service.api_description import API
from service.http.openapi import EVERYWHERE, PROBLEM_TYPE

SOURCE = Path(service.__file__).parent


@pytest.fixture
def document(clients) -> dict[str, Any]:
    return clients.anonymous.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def conforms(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    whole = schema | {"components": document["components"]}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)


def codes_of(answer: dict[str, Any]) -> list[str]:
    return answer["content"][PROBLEM_TYPE]["schema"]["allOf"][1]["properties"]["code"]["enum"]


def test_every_route_has_its_row_and_every_row_its_route(document):
    assert {name for name, _ in operations(document)} == set(API.operations)
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", name) for name in ids), ids


def test_it_says_what_it_is(document):
    OpenAPI.model_validate(document)
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    assert "contact" not in document["info"]
    assert [server["url"] for server in document["servers"]] == ["/"]
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}
    for name, operation in operations(document):
        assert set(operation["tags"]) <= tags, name
        assert operation["description"], name


def test_names_of_schemas_are_names_in_any_language_and_all_are_there(document):
    schemas = document["components"]["schemas"]
    assert [name for name in schemas if not name.isidentifier() or "_" in name] == []
    referred = set(re.findall(r"'#/components/schemas/([^']*)'", str(document)))
    assert referred == set(schemas)


def test_what_needs_a_token_says_so(document):
    for name, operation in operations(document):
        needs = name.partition(" ")[2].startswith(("/v1/", "/hf/"))
        assert ("security" in operation, "401" in operation["responses"]) == (needs, needs), name


def test_every_refusal_is_a_problem_whose_codes_are_listed(document):
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            content = answer.get("content", {})
            if status < "400" or name.startswith("HEAD") or status == "416" or (name, status) == ("GET /readyz", "503"):
                assert PROBLEM_TYPE not in content, (name, status)
                continue
            for code in codes_of(answer):
                assert API.codes[code][0] == int(status), (name, code)
                assert f"`{code}`" in answer["description"], (name, code)


def codes_in_the_source() -> set[tuple[int, str]]:
    found = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if node.func.id == "ApiProblem" and len(values) > 1:
                found.add((values[0], values[1]))
            if node.func.id == "not_found" and values:
                found.add((404, f"{values[0]}_not_found"))
    return found


def test_every_code_in_the_source_is_described_and_every_one_described_is_used(document):
    known = {(status, code) for code, (status, _) in API.codes.items()}
    assert {found for found in codes_in_the_source() if found[1] not in EVERYWHERE} - known == set()
    assert known - codes_in_the_source() <= {(400, "bad_request"), (404, "not_found")}, "which the framework raises"
    used = {code for _, operation in operations(document) for code in re.findall(r"- `(\w+)`", str(operation))}
    assert used == set(API.codes)


def test_every_example_fits_its_schema(document):
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            if "example" in parameter:
                conforms(document, parameter["schema"], parameter["example"])
        if "requestBody" not in operation:
            continue
        (content,) = operation["requestBody"]["content"].values()
        assert content["examples"], name
        for example in content["examples"].values():
            assert example["summary"], name
            conforms(document, content["schema"], example["value"])
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            conforms(document, {"$ref": f"#/components/schemas/{name}"}, example)


def test_path_parameters_have_examples(document):
    for name, operation in operations(document):
        inside = [parameter for parameter in operation.get("parameters", []) if parameter["in"] == "path"]
        assert [parameter["name"] for parameter in inside if "example" not in parameter] == [], name


@pytest.mark.parametrize("example", examples.SPECS.values(), ids=list(examples.SPECS))
def test_the_examples_of_specs_can_be_sent_as_they_are(clients, document, example):
    for path, status, schema in (("/v1/jobs/plan", 200, "Plan"), ("/v1/jobs", 201, "Job")):
        answer = clients.alice.post(path, json=example["value"])
        assert answer.status_code == status, answer.text
        conforms(document, {"$ref": f"#/components/schemas/{schema}"}, answer.json())


def test_what_is_refused_is_refused_as_described(clients, database, document):
    job_id, ended = add_job(database), add_job(database, "failed")
    key = {"Idempotency-Key": "once"}
    clients.alice.post("/v1/jobs", json=SPEC, headers=key)
    added = f"/v1/searches/{clients.alice.post('/v1/jobs', json=SEARCH).json()['id']}/trials"
    clients.alice.post(added, json={"points": [{}]}, headers=key)
    others = clients.alice.post(added, json={"points": [{}, {}]}, headers=key)
    refused = [
        ("submit_job", "idempotency_key_reused", clients.alice.post("/v1/jobs", json=spec_with(seed=1), headers=key)),
        ("add_trials", "idempotency_key_reused", others),
        ("submit_job", "spec_invalid", clients.alice.post("/v1/jobs", json={})),
        ("submit_job", "body_invalid", clients.alice.post("/v1/jobs")),
        ("submit_job", "json_invalid", post(clients.alice, "{")),
        ("submit_job", "forbidden", clients.viewer.post("/v1/jobs", json=SPEC)),
        ("list_jobs", "parameter_invalid", clients.alice.get("/v1/jobs?cursor=x")),
        ("list_jobs", "unauthorized", clients.anonymous.get("/v1/jobs")),
        ("get_job", "job_not_found", clients.alice.get("/v1/jobs/none")),
        ("change_job", "not_allowed_in_state", clients.alice.patch(f"/v1/jobs/{ended}", json={"priority": 1})),
        ("cancel_job", "not_allowed_in_state", clients.alice.post(f"/v1/jobs/{ended}/cancel")),
        ("stop_job", "not_for_this_kind", clients.alice.post(f"/v1/jobs/{job_id}/stop")),
        ("delete_job", "not_allowed_in_state", clients.alice.delete(f"/v1/jobs/{job_id}")),
        ("get_backbone", "backbone_not_found", clients.alice.get("/v1/backbones/none")),
    ]  # fmt: skip
    by_id = {operation["operationId"]: operation for _, operation in operations(document)}
    for name, code, answer in refused:
        told = by_id[name]["responses"][str(answer.status_code)]
        assert answer.json()["code"] == code, name
        assert code in codes_of(told), name
        conforms(document, told["content"][PROBLEM_TYPE]["schema"], answer.json())


# --- /docs ------------------------------------------------------------------------------------------------------------


class Resources(HTMLParser):
    """What a page loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.found += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_documentation_needs_no_token_and_no_other_server(clients):
    page = clients.anonymous.get("/docs")
    assert page.status_code == 200
    resources = Resources(page.text).found
    assert len(resources) == 4
    assert "//" not in re.sub(r"//.*?\n|<!--.*?-->", "", page.text.replace("<!DOCTYPE html>", ""))
    for resource in resources:
        assert resource.startswith("/docs/assets/"), resource
        loaded = clients.anonymous.get(resource)
        assert loaded.status_code == 200, resource
        if resource.endswith(".css"):
            elsewhere = [
                url for url in re.findall(r"url\(([^)]*)\)|@import\s+([^;]*)", loaded.text) if "data:" not in str(url)
            ]
            assert elsewhere == []
    # Else the page sends the description's address to a validator on the internet.
    assert "validatorUrl: null" in clients.anonymous.get("/docs/assets/start.js").text


def test_the_page_understands_the_version_that_the_description_has(clients, document):
    assert document["openapi"] == "3.1.0"
    script = clients.anonymous.get("/docs/assets/swagger-ui-bundle.js").text
    assert re.search(r"3\\\\?\.1", script), "Swagger UI before 5 shows an error for OpenAPI 3.1"
