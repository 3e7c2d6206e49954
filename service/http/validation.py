"""Requests that do not validate, as problems that name the field, the value and the remedy."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from service.http.problems import ApiProblem, spec_problem
from trainer.spec.base import Problem, problems


def validation_problem(request: Request, error: RequestValidationError) -> ApiProblem:
    """The API's 422. What the body should have been is told by the route that the request was for."""
    errors: Any = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiProblem(422, "json_invalid", f"the body is not JSON: {first['ctx']['error']}")
    if first["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return _tag_problem(request, first)
    if first["loc"] == ("body",):
        return ApiProblem(422, "body_invalid", f"the body: {first['msg']} (send application/json)")
    if first["loc"][0] == "body":
        body = request.scope["route"].body_field.field_info
        tagged = _tagged_models(body)
        if tagged:  # the tag stands before the place in the document
            return spec_problem(problems(errors, tagged[first["loc"][1]], skip=2))
        (model,) = _models(body)
        return spec_problem(problems(errors, model, skip=1))
    return _parameter_problem(errors)


def _tag_problem(request: Request, error: dict[str, Any]) -> ApiProblem:
    """A body that may be one of several models, and does not say which one it is."""
    body = request.scope["route"].body_field.field_info
    field, known, given = body.discriminator, ", ".join(_tagged_models(body)), error["ctx"].get("tag")
    text = f"must be one of: {known}" if given else f"is required: one of {known}"
    return spec_problem([Problem(field, f"/{field}", given, text)])


def _models(body: Any) -> list[type[BaseModel]]:
    """The models that a body may be."""
    return [each for each in get_args(body.annotation) or (body.annotation,) if each is not NoneType]


def _tagged_models(body: Any) -> dict[str, type[BaseModel]]:
    """Those of a union by their tags; none where the body is always of the same model."""
    field = body.discriminator
    if field is None:
        return {}
    return {tag: model for model in _models(body) for tag in get_args(model.model_fields[field].annotation)}


def _parameter_problem(errors: Any) -> ApiProblem:
    found = [
        # A header's value is not shown: it may be meant for others.
        Problem(
            str(each["loc"][-1]),
            "",
            None if each["loc"][0] == "header" else each.get("input"),
            each["msg"].replace("Input should", "must"),
        )
        for each in errors
    ]
    return ApiProblem(422, "parameter_invalid", "; ".join(map(str, found)), tuple(found))
