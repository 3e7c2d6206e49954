"""JSON bodies: what JSON cannot hold is refused by name, and at a cost that grows no faster than the body."""

from __future__ import annotations

import json

import pytest
from service_fakes import problem

from service.http import json_text
from trainer.spec.yaml_text import DEEPEST

JSON = {"Content-Type": "application/json"}
MANY = 60_000
"""Fields of an object. Comparing each with all others would take minutes, on the thread that answers all requests."""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"kind": "pretrain", "kind": "search"}', "the field 'kind' appears twice"),
        ('{"seed": NaN}', "NaN is not a JSON value"),
        ('{"seed": 1e999}', "beyond the range"),
        ('{"seed": ' + "9" * 5000 + "}", "5000 digits"),
        ("[" * 3000, "nested too deeply"),
        ('{"a": ' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "nested too deeply"),
        ('{\n"a": tru}', "line 2, column 6"),
    ],
    ids=["twice", "nan", "infinite", "digits", "brackets", "objects", "syntax"],
)
def test_a_body_that_is_not_json_is_refused(api, body, told):
    found = problem(api.post("/v1/jobs", content=body, headers=JSON), 422, "json_invalid")
    assert told in found["detail"]


def test_the_last_of_many_fields_may_be_the_second_of_its_name():
    fields = ",".join(f'"k{number}":1' for number in range(MANY))
    with pytest.raises(json.JSONDecodeError, match=f"'k{MANY - 1}' appears twice"):
        json_text.read(f'{{{fields},"k{MANY - 1}":2}}'.encode())
    assert len(json_text.read(f"{{{fields}}}".encode())) == MANY
