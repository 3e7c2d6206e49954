"""The rule for a backbone's champion: whether a version may become it, and whoever asks may make it so.

`service.set_alias` asks this in the transaction that moves the alias; `approvals` asks it for previews.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.backbones import registry, signing
from service.backbones.approval_schemas import ChampionRuleView, MetricLimitView
from service.backbones.registry import Served
from service.backbones.schemas import CHAMPION
from service.context.app_state import AppState
from service.db.tables import BackboneVersion, Job, RegisteredBackbone
from service.http.problems import ApiProblem
from service.jobs import aliases, version_tags


@dataclass(frozen=True)
class Verdict:
    """What speaks against a version as the champion."""

    who: Sequence[str] = field(default=())
    """Why the caller may not approve it."""
    what: Sequence[str] = field(default=())
    """Why nobody may."""
    restores: bool = False
    """Whether somebody has approved it before."""


@dataclass(frozen=True)
class Standard:
    """What the results of a version are compared with."""

    whose: str
    version: int | None
    metrics: Mapping[str, float]


def standard(session: Session, name: str, champion: BackboneVersion | None) -> Standard | None:
    """The results of the present champion; without one those of the last, as they were when it became that.

    So a champion that MLflow loses, with its number, does not take the comparison with it.
    """
    if champion is not None:
        return Standard("the champion's", champion.version, version_tags.metrics_of(champion.tags))
    last = aliases.last_set(session, name, CHAMPION)
    return Standard("the last champion's", last.version, last.metrics or {}) if last else None


def rule_of(session: Session, name: str) -> ChampionRuleView | None:
    """A backbone's rule, if it has one."""
    row = session.get(RegisteredBackbone, name)
    return rule_in(row) if row else None


def rule_in(row: RegisteredBackbone) -> ChampionRuleView | None:
    """The rule in a backbone's row, if there is one."""
    return ChampionRuleView.model_validate(row.champion_rule) if row.champion_rule else None


def sums_sha256(state: AppState, backbone: RegisteredBackbone, version: Served) -> str | None:
    """The sha256 of a version's checksum file if the rule compares it with the signed one: read it before the
    transaction. None for a version that is gone.
    """
    rule = rule_in(backbone)
    if rule is None or not rule.signed or version.gone:
        return None
    return hashlib.sha256(registry.content(state, version).data).hexdigest()


def must_allow(
    session: Session,
    rule: ChampionRuleView,
    caller: Caller,
    version: Served,
    champion: BackboneVersion | None,
    reason: str,
    sums: str | None,
) -> None:
    """Raises the API's 403 if the rule does not let the caller approve a version, and 409 if it lets nobody.

    ``champion`` is the present one; ``sums`` is that of `sums_sha256`, from before the transaction.
    """
    if rule.signed and sums is None:
        text = f"the rule of {version.name} has just changed: try again"
        raise ApiProblem(409, "champion_refused", text)
    verdict = judge(session, rule, caller, version, standard(session, version.name, champion), sums)
    missing = ["a reason is required: send `reason`"] if rule.reason_required and not reason else []
    problems = [*verdict.who, *verdict.what, *missing]
    if problems:
        text = f"{version.name}:{version.number} cannot become the champion: {'; '.join(problems)}"
        raise ApiProblem(403, "forbidden", text) if verdict.who else ApiProblem(409, "champion_refused", text)


def must_have_no_rule(session: Session, name: str) -> None:
    """Raises the API's 409 for the removal of a champion that a rule protects."""
    if rule_of(session, name):
        text = (
            f"{name} has a rule for its champion, which cannot be removed: without one, the newest version would be "
            f"pulled, whatever it is. Move {name}@{CHAMPION} to another version, or remove the rule first: "
            f"DELETE /v1/backbones/{name}/champion-rule"
        )
        raise ApiProblem(409, "champion_refused", text)


def judge(
    session: Session,
    rule: ChampionRuleView,
    caller: Caller,
    version: Served,
    compared: Standard | None,
    sums: str | None,
) -> Verdict:
    """What speaks against a version, but for a missing reason. Without ``sums``, checksums are not compared with the
    signed ones; ``compared`` is the `standard`.
    """
    before = aliases.approvers(session, version.row, CHAMPION)
    what = [] if before or compared is None else [*_worse(rule.must_not_worsen, version, compared)]
    if rule.signed:
        what += _unsigned(session, version, sums)
    return Verdict([*_not_by(session, rule, caller, version.row, before)], what, restores=bool(before))


def _not_by(
    session: Session, rule: ChampionRuleView, caller: Caller, version: BackboneVersion, before: set[str]
) -> Iterator[str]:
    """Why a caller may not approve a version; ``before``: who has approved it before."""
    if rule.approvers and caller.owner not in rule.approvers:
        yield f"only {', '.join(rule.approvers)} may approve it, and you are {caller.owner}"
    makers = {version.owner}
    if trained := session.get(Job, version.trained_by):
        makers.add(trained.owner)
    if rule.not_by_owner and caller.owner in makers and before <= makers:
        yield f"{caller.owner} trained or registered it, so somebody else has to approve it"


def _worse(limits: Sequence[MetricLimitView], version: Served, compared: Standard) -> Iterator[str]:
    """Which results are missing, or worse than the champion's by more than they may be."""
    for limit in limits:
        new, old = version.metrics.get(limit.metric), compared.metrics.get(limit.metric)
        if new is None:
            yield f"{limit.metric}: version {version.number} has no such result"
        elif old is not None and _is_worse(limit, new, old):
            side, further = ("below", "lower") if limit.better == "higher" else ("above", "higher")
            new_text, old_text = _both(new, old)
            yield (
                f"{limit.metric}: {new_text} of version {version.number} is {side} {compared.whose} {old_text} "
                f"(version {compared.version}), and may be at most {limit.tolerance:g} {further}"
            )


def _is_worse(limit: MetricLimitView, new: float, old: float) -> bool:
    by = old - new if limit.better == "higher" else new - old
    return by > limit.tolerance and not math.isclose(by, limit.tolerance, rel_tol=1e-9)


def _both(new: float, old: float) -> tuple[str, str]:
    """Two different numbers as texts that differ."""
    short = f"{new:.4g}", f"{old:.4g}"
    return short if short[0] != short[1] else (repr(new), repr(old))


def _unsigned(session: Session, version: Served, sums: str | None) -> list[str]:
    signature = signing.stored(session, version)
    if signature is None:
        return [f"version {version.number} is not signed"]
    if sums is not None and sums != signature.row.sums_sha256:
        return [f"the checksums of version {version.number} are not those that were signed"]
    return []
