"""Validation errors of requests, as problems that name the field, the value and the remedy."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from service.http.problems import ApiProblem, spec_problem
from trainer.spec.base import Problem, problems


def validation_problem(request: Request, error: RequestValidationError) -> ApiProblem:
    """The API's 422 for a request. The matched route says which model the body should have."""
    errors: Any = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiProblem(422, "json_invalid", f"the body cannot be read as JSON: {first['ctx']['error']}")
    if first["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return _tag_problem(request, first)
    if first["loc"] == ("body",):
        return ApiProblem(422, "body_invalid", f"the body: {first['msg']} (send application/json)")
    if first["loc"][0] == "body":
        body = request.scope["route"].body_field.field_info
        tagged = _tagged_models(body)
        if tagged:  # pydantic puts the tag before the field's path
            return spec_problem(problems(errors, tagged[first["loc"][1]], skip=2))
        (model,) = _models(body)
        return spec_problem(problems(errors, model, skip=1))
    return _parameter_problem(errors)


def _tag_problem(request: Request, error: dict[str, Any]) -> ApiProblem:
    """The problem of a body that may have one of several models, and names none of them."""
    body = request.scope["route"].body_field.field_info
    field, choices, tag = body.discriminator, ", ".join(_tagged_models(body)), error["ctx"].get("tag")
    text = f"must be one of: {choices}" if tag else f"is required: one of {choices}"
    return spec_problem([Problem(field, f"/{field}", tag, text)])


def _models(body: Any) -> list[type[BaseModel]]:
    """The models that a body may have."""
    return [each for each in get_args(body.annotation) or (body.annotation,) if each is not NoneType]


def _tagged_models(body: Any) -> dict[str, type[BaseModel]]:
    """The models of a union by their tags; empty if the body always has the same model."""
    field = body.discriminator
    if field is None:
        return {}
    return {tag: model for model in _models(body) for tag in get_args(model.model_fields[field].annotation)}


def _parameter_problem(errors: Any) -> ApiProblem:
    invalid = [
        # The value of a header is left out: it may be confidential.
        Problem(
            str(each["loc"][-1]),
            "",
            None if each["loc"][0] == "header" else each.get("input"),
            each["msg"].replace("Input should", "must"),
        )
        for each in errors
    ]
    return ApiProblem(422, "parameter_invalid", "; ".join(map(str, invalid)), tuple(invalid))
