"""Retention rules of backbones: who sets them, what they would do, and what they delete.

Requests show and set rules; the controller applies them (`service.controller.retention`). What is shown and what is
deleted comes of the same decision, `retention_rule.decide`, about the rows as they are in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.auth.scopes import Scope
from service.auth.trail import BY_RULE, record_expiry
from service.backbones import registry, use
from service.backbones.registry import Backbone, Served
from service.backbones.retention_rule import Candidate, Rule, Verdict, decide
from service.backbones.retention_schemas import (
    RetentionBody,
    RetentionRuleView,
    RetentionView,
    VersionRetentionView,
)
from service.context.app_state import AppState
from service.db.tables import BackboneVersion, Job, RegisteredBackbone, RetentionRule, now
from service.http.problems import not_found
from service.jobs import aliases, needed, versions
from service.jobs.state import UNENDED

LAPSE: Final = timedelta(hours=1)
"""If nobody has decided for so long, as while the service was off, what was announced is announced anew."""
NOTED_EVERY: Final = timedelta(minutes=5)
"""How often it is written down that somebody has decided, if nothing else is to be written."""
AT_ONCE: Final = 100
"""Versions that one transaction deletes: with 2000 of them in a backbone it takes 0.8 s, for which others wait."""


@dataclass(frozen=True)
class Ruling:
    """A backbone's versions, by number, with what a rule decides about each at a moment."""

    name: str
    rows: Sequence[BackboneVersion]
    candidates: Sequence[Candidate]
    verdicts: Sequence[Verdict]

    @property
    def is_news(self) -> bool:
        """Whether a version's row says something else about its end than the decision."""
        pairs = zip(self.rows, self.verdicts, strict=True)
        return any((row.expires_at, row.unneeded_since) != (v.expires_at, v.unneeded_since) for row, v in pairs)

    def due(self, moment: datetime) -> list[tuple[BackboneVersion, Verdict]]:
        """The versions that go now, at most as many as one transaction deletes, the oldest first."""
        pairs = zip(self.rows, self.verdicts, strict=True)
        found = [pair for pair in pairs if pair[1].deletes and pair[1].expires_at and pair[1].expires_at <= moment]
        return found[:AT_ONCE]

    def announce(self) -> None:
        """Store when each version goes."""
        for row, verdict in zip(self.rows, self.verdicts, strict=True):
            row.expires_at, row.unneeded_since = verdict.expires_at, verdict.unneeded_since

    def view(self, rule: RetentionRule | None) -> RetentionView:
        """As the API shows it, under a rule that is stored or not."""
        shown = [_view(*each) for each in zip(self.rows, self.candidates, self.verdicts, strict=True)]
        going = [each for each in shown if each.action == "delete"]
        return RetentionView(
            name=self.name,
            rule=_rule_view(rule) if rule else None,
            versions=shown[::-1],
            deletes=[each.version for each in going],
            first_at=min((each.expires_at for each in going if each.expires_at), default=None),
            bytes_freed=sum(each.bytes or 0 for each in going),
            unmeasured=sum(each.bytes is None for each in going),
        )


def _view(row: BackboneVersion, candidate: Candidate, verdict: Verdict) -> VersionRetentionView:
    return VersionRetentionView(
        version=row.version,
        action="delete" if verdict.deletes else "keep",
        why=list(verdict.why),
        expires_at=verdict.expires_at,
        created_at=row.created_at,
        last_used_on=candidate.last_used_on,
        aliases=list(candidate.aliases),
        owner=row.owner,
        bytes=row.bytes,
    )


def _rule_view(rule: RetentionRule) -> RetentionRuleView:
    return RetentionRuleView(
        expire_unused_days=rule.expire_unused_days,
        keep_newest=rule.keep_newest,
        set_by=rule.set_by,
        set_at=rule.set_at,
    )


def _of(row: RetentionRule | None) -> Rule | None:
    return Rule(row.expire_unused_days, row.keep_newest) if row else None


# --- what requests show and set ---------------------------------------------------------------------------------------


def show(state: AppState, caller: Caller, name: str) -> RetentionView:
    """The rule of a backbone, and what it does with each version. Raises the API's 404.

    Those who may set the rule see who used a version last.
    """
    owner = registry.backbone(state, caller, name).row.owner
    with state.database.read() as session:
        rule = session.get(RetentionRule, name)
        users = use.last_users(session, name) if caller.may(Scope.BACKBONES, owner) else {}
        return ruling(session, state, name, _of(rule), now(), users).view(rule)


def preview(state: AppState, caller: Caller, name: str, body: RetentionBody) -> RetentionView:
    """What a rule would do if it were set now. Raises the API's 403 and 404."""
    registry.backbone(state, caller, name)
    with state.database.read() as session:
        _must_own(session, caller, name)
        rule = _row(name, body, caller)
        return ruling(session, state, name, _of(rule), now(), use.last_users(session, name)).view(rule)


def put(state: AppState, caller: Caller, name: str, body: RetentionBody) -> RetentionView:
    """Set a backbone's rule, whatever rule it had before. Raises the API's 403 and 404."""
    registry.backbone(state, caller, name)
    with state.database.session() as session:
        _must_own(session, caller, name)
        before = session.get(RetentionRule, name)
        detail = {"rule": body.model_dump(), "before": _plain(before)}
        rule = _row(name, body, caller)
        found = ruling(session, state, name, _of(rule), now(), use.last_users(session, name))
        found.announce()
        rule = session.merge(rule)
        caller.record(session, name, **detail)
        return found.view(rule)


def remove(state: AppState, caller: Caller, name: str) -> RetentionView:
    """Remove a backbone's rule: nothing is deleted by itself any more. Raises the API's 403, and 404 without a rule."""
    registry.backbone(state, caller, name)
    with state.database.session() as session:
        _must_own(session, caller, name)
        rule = session.get(RetentionRule, name)
        if rule is None:
            raise not_found("retention_rule", name)
        session.delete(rule)
        found = ruling(session, state, name, None, now())
        found.announce()
        caller.record(session, name, before=_plain(rule))
        return found.view(None)


def _must_own(session: Session, caller: Caller, name: str) -> None:
    """Raises the API's 403 for somebody else's backbone: who owns versions of it alone may not set its rule."""
    row = session.get(RegisteredBackbone, name)
    if row is None:
        raise not_found("backbone", name)
    caller.must(Scope.BACKBONES, row.owner)


def _row(name: str, body: RetentionBody, caller: Caller) -> RetentionRule:
    return RetentionRule(name=name, set_by=caller.owner, set_at=now(), decided_at=now(), **body.model_dump())


def _plain(rule: RetentionRule | None) -> dict[str, int] | None:
    return {"expire_unused_days": rule.expire_unused_days, "keep_newest": rule.keep_newest} if rule else None


# --- what the controller does -----------------------------------------------------------------------------------------


def ruled(session: Session, after: str) -> Sequence[str]:
    """The backbones after a name that have a rule, by name."""
    query = select(RetentionRule.name).where(RetentionRule.name > after).order_by(RetentionRule.name)
    return session.scalars(query).all()


def stored(session: Session, state: AppState, name: str, moment: datetime) -> tuple[RetentionRule | None, Ruling]:
    """A backbone's rule, and what it decides at a moment."""
    rule = session.get(RetentionRule, name)
    return rule, ruling(session, state, name, _of(rule), moment)


def to_write(session: Session, state: AppState, name: str) -> bool:
    """Whether `expire` has something to write: a version goes, says something else than it would, or it is time to note
    that somebody has decided.
    """
    moment = now()
    rule, found = stored(session, state, name, moment)
    noted = rule is None or abs(moment - rule.decided_at) < NOTED_EVERY  # a clock may be set back
    return found.is_news or bool(found.due(moment)) or not noted


def expire(session: Session, state: AppState, name: str) -> list[tuple[BackboneVersion, str]]:
    """Delete the versions that a backbone's rule lets go now, and store when the others go.

    All of it is decided anew in this transaction: an alias or a download of a moment ago keeps a version. Returns those
    that are deleted, at most `AT_ONCE`, and why each is.
    """
    moment = now()
    rule, found = stored(session, state, name, moment)
    found.announce()
    if rule is None:
        return []
    rule.decided_at = moment
    deleted = []
    for row, verdict in found.due(moment):
        why = "; ".join(verdict.why)
        versions.delete(session, row, BY_RULE, f"retention rule of {name}, set by {rule.set_by}: {why}")
        detail = {"version": row.version, "job": row.job_id, "why": why, "rule": _plain(rule), "set_by": rule.set_by}
        record_expiry(session, name, detail)
        deleted.append((row, why))
    return deleted


# --- what a rule needs to know ----------------------------------------------------------------------------------------


def ruling(
    session: Session,
    state: AppState,
    name: str,
    rule: Rule | None,
    moment: datetime,
    users: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> Ruling:
    """What a rule decides at a moment about the versions of a backbone that are shown.

    ``users``: who used each version last, where that may be told.
    """
    rows = [
        row for row in versions.shown(session, [name]) if row.folder is not None and state.artifacts.holds(row.folder)
    ]
    announced = not _has_lapsed(session, state, name, moment)
    candidates = _candidates(session, rows, users, announced=announced) if rows else []
    return Ruling(name, rows, candidates, decide(rule, candidates, moment))


def _has_lapsed(session: Session, state: AppState, name: str, moment: datetime) -> bool:
    """Whether nobody has decided for so long that nobody can have seen what was announced."""
    rule = session.get(RetentionRule, name)
    # The controller decides once in this interval, which may be long.
    lapse = max(LAPSE, 3 * timedelta(seconds=state.settings.sweep_interval_s))
    return rule is not None and moment - rule.decided_at > lapse


def _candidates(
    session: Session, rows: Sequence[BackboneVersion], users: Mapping[int, Sequence[str]], *, announced: bool
) -> list[Candidate]:
    """``announced``: whether what the rows say of their end holds still."""
    name = rows[0].name
    named, live = aliases.of_backbones(session, [name]).get(name, {}), _live_jobs(session, name)
    needing = needed.by_version(session, name)
    served = [Served(row, row.folder or "") for row in rows]
    main = Backbone(served, named, session.get_one(RegisteredBackbone, name)).main.number
    return [
        Candidate(
            number=row.version,
            created_at=row.created_at,
            counted_since=row.counted_since,
            last_used_on=row.last_used_on,
            last_users=tuple(users.get(row.version, ())),
            aliases=tuple(alias for alias, number in named.items() if number == row.version),
            unnamed_at=row.unnamed_at,
            main=row.version == main,
            gone=row.state == versions.VersionState.GONE,
            live_jobs=tuple(job for job in dict.fromkeys((row.job_id, row.trained_by)) if job in live),
            needed_by=tuple(job.id for job in needing.get(row.version, ())),
            unneeded_since=row.unneeded_since if announced else None,
        )
        for row in rows
    ]


def _live_jobs(session: Session, name: str) -> set[str]:
    """The jobs that have not ended, of those that registered or trained a version of a backbone."""
    row = BackboneVersion
    query = select(Job.id).join(row, or_(Job.id == row.job_id, Job.id == row.trained_by))
    query = query.where(row.name == name, row.state.in_(versions.SHOWN), Job.state.in_(UNENDED))
    return set(session.scalars(query.distinct()))
