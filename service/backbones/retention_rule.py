"""What a retention rule decides: a pure function of the rule, the versions of a backbone and the moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from service.backbones.retention_schemas import NOTICE_DAYS

NOTICE: Final = timedelta(days=NOTICE_DAYS)
NO_RULE: Final = "there is no rule"


@dataclass(frozen=True)
class Rule:
    """A retention rule; the fields are those of `RetentionBody`."""

    expire_unused_days: int
    keep_newest: int


@dataclass(frozen=True)
class Candidate:
    """What a rule needs to know of a version."""

    number: int
    created_at: datetime
    counted_since: datetime
    """Since when its downloads are counted."""
    last_used_on: date | None = None
    """The last day in UTC on which somebody used it."""
    last_users: tuple[str, ...] = ()
    """Who did on that day, where that may be told."""
    aliases: tuple[str, ...] = ()
    unnamed_at: datetime | None = None
    """When an alias last left it."""
    main: bool = False
    """Whether it is what one gets where no version is named."""
    gone: bool = False
    """Whether somebody has deleted it in MLflow."""
    live_jobs: tuple[str, ...] = ()
    """Jobs that have not ended, of those that registered and trained it."""
    needed_by: tuple[str, ...] = ()
    """Jobs that have not ended and measure or use it."""
    unneeded_since: datetime | None = None
    """When it was first found that nothing keeps it; None if something did, when it was last looked at."""


@dataclass(frozen=True)
class Verdict:
    """What a rule does with a version at a moment."""

    number: int
    why: tuple[str, ...]
    """Everything that keeps it, or why it goes."""
    expires_at: datetime | None = None
    """When it goes if nothing happens; None if the passing of time alone does not end its stay."""
    unneeded_since: datetime | None = None
    """When it was first found that nothing keeps it; None if something does."""

    @property
    def deletes(self) -> bool:
        """Whether nothing keeps it now, so that it goes at ``expires_at``."""
        return self.unneeded_since is not None


def decide(rule: Rule | None, versions: Sequence[Candidate], moment: datetime) -> list[Verdict]:
    """What a rule does with each version; without a rule all stay.

    A version that nothing keeps goes `NOTICE` after the decision that first found so: also where nobody has decided for
    long, as while the service was switched off, or where a clock was wrong.
    """
    if rule is None:
        return [Verdict(each.number, (NO_RULE,)) for each in versions]
    ready = sorted((each.number for each in versions if not each.gone), reverse=True)
    newest = frozenset(ready[: rule.keep_newest])
    return [_decide(rule, each, each.number in newest, moment) for each in versions]


def _decide(rule: Rule, version: Candidate, newest: bool, moment: datetime) -> Verdict:
    kept = _kept(rule, version, newest)
    if kept:
        return Verdict(version.number, tuple(kept))
    sign, told = _last_sign(version)
    due = sign + timedelta(days=rule.expire_unused_days)
    if due > moment:
        return Verdict(
            version.number, (f"{told}, so it stays for {rule.expire_unused_days} days from then",), due + NOTICE
        )
    since = min(version.unneeded_since or moment, moment)
    return Verdict(version.number, (f"{told}: {_days(moment - sign)} without a use",), since + NOTICE, since)


def _kept(rule: Rule, version: Candidate, newest: bool) -> list[str]:
    """What keeps a version however long nobody uses it."""
    kept = []
    if version.aliases:
        kept.append(f"it has the alias{'es' if len(version.aliases) > 1 else ''} {', '.join(version.aliases)}")
    if version.main:
        kept.append("it is main, which one gets where no version is named")
    if newest:
        kept.append(f"it is one of the newest {rule.keep_newest}" if rule.keep_newest > 1 else "it is the newest")
    if version.gone:
        kept.append("somebody deleted it in MLflow, where a backup may bring it back")
    kept += [f"{job} has not ended" for job in version.live_jobs]
    kept += [f"{job}, which needs it, has not ended" for job in version.needed_by]
    return kept


def _last_sign(version: Candidate) -> tuple[datetime, str]:
    """The last sign that a version is needed, and what it was."""
    signs = [
        (version.created_at, f"it was registered on {_day(version.created_at)}"),
        (version.counted_since, f"its downloads are counted since {_day(version.counted_since)}"),
    ]
    if version.unnamed_at:
        signs.append((version.unnamed_at, f"it had an alias until {_day(version.unnamed_at)}"))
    if version.last_used_on:
        text = f"{', '.join(version.last_users) or 'somebody'} last used it on {version.last_used_on}"
        signs.append((datetime.combine(version.last_used_on + timedelta(days=1), time(), UTC), text))
    # Of a new version the row is made moments after its registration, which is what people know of.
    later = [sign for sign in signs[1:] if sign[0] - version.created_at > timedelta(hours=1)]
    return max([signs[0], *later], key=lambda sign: sign[0])


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


def _days(length: timedelta) -> str:
    return "1 day" if length.days == 1 else f"{length.days} days"
