"""The page of a backbone's retention rule: what it does with each version, and what another rule would do."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import ValidationError

from service.auth.scopes import Scope
from service.backbones import registry, retention
from service.backbones.retention_schemas import RetentionBody
from service.dashboard.site import BackbonesPage, PageRoute
from trainer.spec.base import problems

router = APIRouter(include_in_schema=False, route_class=PageRoute)

Days = Annotated[str | None, Query(max_length=10)]


@router.get("/backbones/{name}/retention")
def one(page: BackbonesPage, name: str, expire_unused_days: Days = None, keep_newest: Days = None) -> Response:
    """The rule, or with the fields of another one its preview. Fields that make no rule are told beside the form."""
    edits = page.caller.may(Scope.BACKBONES, registry.backbone(page.state, page.caller, name).row.owner)
    found, tried, wrong = retention.show(page.state, page.caller, name), None, ""
    texts = {"expire_unused_days": expire_unused_days, "keep_newest": keep_newest}
    if expire_unused_days is not None or keep_newest is not None:
        try:
            tried = RetentionBody.model_validate({field: _number(text) for field, text in texts.items() if text})
        except ValidationError as error:
            wrong = "; ".join(map(str, problems(error.errors(), RetentionBody)))
    if tried:
        found = retention.preview(page.state, page.caller, name, tried)
    return page.render("backbones/retention.html", found=found, tried=tried, wrong=wrong, edits=edits, texts=texts)


def _number(text: str) -> int | str:
    """The whole number that a field holds, or its text, which the rule's own check refuses."""
    return int(text) if text.isascii() and text.isdecimal() else text
