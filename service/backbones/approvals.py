"""Previews of approvals, the history of aliases, and changes of the rule for a champion."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth.caller import Caller, has_valid_token
from service.auth.scopes import Scope, roles_with
from service.backbones import approval, registry, service
from service.backbones.approval import Standard
from service.backbones.approval_schemas import AliasMoveView, ChampionCheckView, ChampionRuleBody, ChampionRuleView
from service.backbones.registry import Served
from service.backbones.schemas import CHAMPION, BackboneDetailView
from service.backbones.visibility import hidden_from
from service.context.app_state import AppState
from service.db.tables import AliasMove, BackboneAlias, BackboneVersion, RegisteredBackbone
from service.http.problems import ApiProblem, not_found, spec_problem
from service.http.schemas import Page
from service.jobs import aliases, version_tags
from service.jobs.visibility import tags_of_shown
from trainer.spec.base import Problem


def moves(
    state: AppState, caller: Caller, name: str, alias: str | None, limit: int, cursor: str | None
) -> Page[AliasMoveView]:
    """The moves of a backbone's aliases, or of one alias, newest first. Raises the API's 404."""
    registry.backbone(state, caller, name)
    with state.database.read() as session:
        rows, next_cursor = aliases.moves(session, name, alias, limit, cursor)
    return Page[AliasMoveView](items=[_move(caller, row) for row in rows], next_cursor=next_cursor)


def _move(caller: Caller, row: AliasMove) -> AliasMoveView:
    """A move, with the token's id for those who may see the token."""
    view = AliasMoveView.model_validate(row, from_attributes=True)
    return (
        view if row.actor and caller.may(Scope.READ_TOKENS, row.actor) else view.model_copy(update={"token_id": None})
    )


# --- previews ---------------------------------------------------------------------------------------------------------


def check(state: AppState, caller: Caller, name: str, number: int) -> ChampionCheckView:
    """Whether the caller may make a version the champion now. Raises the API's 404."""
    backbone = registry.backbone(state, caller, name)
    version = backbone.numbered(number)
    if version is None:
        raise not_found("version", f"{name}:{number}")
    return checks(state, caller, [version], approval.sums_sha256(state, backbone.row, version))[0]


def checks(
    state: AppState, caller: Caller, candidates: Sequence[Served], sums: str | None = None
) -> list[ChampionCheckView]:
    """The same for several versions of one backbone, whose checksums are compared with the signed ones if ``sums`` of
    a single one is given.
    """
    if not candidates:
        return []
    with state.database.read() as session:
        name = candidates[0].name
        rule, champion = approval.rule_of(session, name), champion_of(session, name)
        compared = approval.standard(session, name, champion)
        return [_check(session, caller, rule, champion, compared, version, sums) for version in candidates]


def _check(
    session: Session,
    caller: Caller,
    rule: ChampionRuleView | None,
    champion: BackboneVersion | None,
    compared: Standard | None,
    version: Served,
    sums: str | None,
) -> ChampionCheckView:
    problems = [registry.gone_text(version)] if version.gone else []
    verdict = approval.judge(session, rule or ChampionRuleView(), caller, version, compared, sums)
    problems += [*_lacks(session, caller, rule, version.row, champion), *verdict.who, *verdict.what]
    return ChampionCheckView(
        name=version.name,
        version=version.number,
        before=champion.version if champion else None,
        allowed=not problems,
        problems=problems,
        reason_required=bool(rule and rule.reason_required),
        restores=verdict.restores,
    )


def champion_of(session: Session, name: str) -> BackboneVersion | None:
    """The present champion of a backbone."""
    alias = session.get(BackboneAlias, (name, CHAMPION))
    return session.get(BackboneVersion, (name, alias.version)) if alias else None


def _lacks(
    session: Session,
    caller: Caller,
    rule: ChampionRuleView | None,
    version: BackboneVersion,
    champion: BackboneVersion | None,
) -> list[str]:
    """Which right the caller lacks, whatever a rule says."""
    try:
        caller.must(Scope.BACKBONES, caller.owner)  # as the route needs
        service.must_own(session, caller, rule, version, champion)
    except ApiProblem as problem:
        return [problem.detail]
    return []


# --- the rule ---------------------------------------------------------------------------------------------------------


def set_rule(state: AppState, caller: Caller, name: str, rule: ChampionRuleBody) -> BackboneDetailView:
    """Replace the rule. Raises 403 and 404, and 422 for approvers without a token and for metrics that nothing has."""
    registry.backbone(state, caller, name)
    known = _known_metrics(state, caller) if rule.must_not_worsen else set()
    with state.database.session() as session:
        row = _changeable(session, caller, name)
        _must_be_meetable(session, name, rule, known)
        row.champion_rule = rule.model_dump(exclude_defaults=True)
        caller.record(session, name, rule=row.champion_rule)
    return service.show(state, caller, name)


def remove_rule(state: AppState, caller: Caller, name: str) -> BackboneDetailView:
    """Remove the rule. Raises the API's 403 and 404."""
    registry.backbone(state, caller, name)
    with state.database.session() as session:
        row = _changeable(session, caller, name)
        if row.champion_rule is None:
            raise ApiProblem(404, "champion_rule_not_found", f"{name} has no rule for its champion")
        caller.record(session, name, before=row.champion_rule)
        row.champion_rule = None
    return service.show(state, caller, name)


def _changeable(session: Session, caller: Caller, name: str) -> RegisteredBackbone:
    row = session.get(RegisteredBackbone, name)
    if row is None:
        raise not_found("backbone", name)
    caller.must(Scope.BACKBONES, row.owner)
    return row


def _known_metrics(state: AppState, caller: Caller) -> set[str]:
    """The results that some version has which a caller sees. This reads many rows: not within a write transaction."""
    with state.database.read() as session:
        return {key for tags in tags_of_shown(session, caller) for key in version_tags.metrics_of(tags)}


def _must_be_meetable(session: Session, name: str, rule: ChampionRuleBody, known: Collection[str]) -> None:
    """Raises the API's 422 for a part of a rule that could never be met, as after a typing error.

    ``known`` are the results that some version has.
    """
    roles = roles_with([Scope.OWN_BACKBONES])
    hidden = hidden_from(session, name, rule.approvers)
    problems = []
    for index, owner in enumerate(rule.approvers):
        if not session.scalar(select(has_valid_token(owner, roles))):
            text = "nobody of this name has a valid token that may change backbones: name the owner of one"
        elif owner in hidden:
            text = "does not see this private backbone: make them a reader of it first"
        else:
            continue
        problems.append(Problem(f"approvers.{index}", f"/approvers/{index}", owner, text))
    for index, limit in enumerate(rule.must_not_worsen):
        if limit.metric not in known:
            field, pointer = f"must_not_worsen.{index}.metric", f"/must_not_worsen/{index}/metric"
            problems.append(
                Problem(field, pointer, limit.metric, f"no version has this result; {_hint(limit.metric, known)}")
            )
    if problems:
        raise spec_problem(problems)


def _hint(key: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if nearest:
        return f"did you mean {nearest[0]}?"
    return f"known are {', '.join(sorted(known))}" if known else "none has any result yet"
