"""What a retention rule decides about each version of a backbone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from service.backbones.retention_rule import NOTICE, Candidate, Rule, Verdict, decide

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
DAY = timedelta(days=1)
RULE = Rule(expire_unused_days=90, keep_newest=1)
OLD = NOW - 200 * DAY


def version(number: int = 1, age_days: float = 200, **fields: object) -> Candidate:
    created = NOW - age_days * DAY
    return replace(Candidate(number, created, created + timedelta(seconds=3)), **fields)  # type: ignore[arg-type]


NEWEST = version(9, age_days=0.5)


def verdict(about: Candidate, rule: Rule = RULE, moment: datetime = NOW) -> Verdict:
    """About a version beside a newer one."""
    return next(each for each in decide(rule, [about, NEWEST], moment) if each.number == about.number)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"aliases": ("best",)}, "it has the alias best"),
        ({"aliases": ("best", "champion")}, "it has the aliases best, champion"),
        ({"main": True}, "it is main, which one gets where no version is named"),
        ({"gone": True}, "somebody deleted it in MLflow, where a backup may bring it back"),
        ({"live_jobs": ("job-1",)}, "job-1 has not ended"),
        ({"needed_by": ("job-2",)}, "job-2, which needs it, has not ended"),
        ({"number": 10}, "it is the newest"),
    ],
)
def test_what_keeps_a_version_however_old_and_unused_it_is(fields, why):
    assert verdict(version(**fields)) == Verdict(fields.get("number", 1), (why,))


def test_all_that_keeps_a_version_is_told():
    found = verdict(version(aliases=("champion",), main=True, number=10), Rule(90, 5))
    assert found.why == (
        "it has the alias champion",
        "it is main, which one gets where no version is named",
        "it is one of the newest 5",
    )


@pytest.mark.parametrize(
    ("fields", "stays_until", "why"),
    [
        ({"age_days": 89}, NOW + DAY, "it was registered on 2026-04-02"),
        ({"last_used_on": date(2026, 6, 27)}, datetime(2026, 9, 26, tzinfo=UTC), "somebody last used it on"),
        ({"counted_since": NOW - 10 * DAY}, NOW + 80 * DAY, "its downloads are counted since 2026-06-20"),
        ({"unnamed_at": NOW - DAY}, NOW + 89 * DAY, "it had an alias until 2026-06-29"),
        ({"unnamed_at": OLD, "last_used_on": date(2026, 6, 30)}, datetime(2026, 9, 29, tzinfo=UTC), "on 2026-06-30"),
    ],
)
def test_a_version_stays_for_the_rules_days_from_the_last_sign_that_it_is_needed(fields, stays_until, why):
    about = version(**fields)
    found = verdict(about)
    assert (found.deletes, found.expires_at) == (False, stays_until + NOTICE)
    assert why in found.why[0]
    assert "so it stays for 90 days from then" in found.why[0]
    assert verdict(about, moment=stays_until - timedelta(seconds=1)) == found
    later = verdict(about, moment=stays_until)
    assert (later.deletes, later.expires_at) == (True, stays_until + NOTICE)
    assert later.why[0].endswith(": 90 days without a use")


def test_what_nothing_keeps_goes_a_day_after_that_was_first_found_and_not_later_for_being_found_again():
    found = verdict(version())
    why = "it was registered on 2025-12-12: 200 days without a use"
    assert found == Verdict(1, (why,), expires_at=NOW + NOTICE, unneeded_since=NOW)
    for passed in (timedelta(hours=5), 3 * DAY):
        again = verdict(version(unneeded_since=NOW), moment=NOW + passed)
        assert (again.deletes, again.expires_at) == (True, NOW + NOTICE)


def test_what_was_found_by_a_clock_that_was_ahead_counts_from_now():
    assert verdict(version(unneeded_since=NOW + 50 * DAY)).expires_at == NOW + NOTICE


def test_a_download_after_the_announcement_puts_the_end_off():
    found = verdict(version(unneeded_since=NOW - 2 * DAY, last_used_on=date(2026, 6, 30)))
    assert (found.deletes, found.expires_at) == (False, datetime(2026, 9, 30, tzinfo=UTC))


def test_a_narrower_rule_announces_an_earlier_end_and_no_rule_none():
    about = version(age_days=30)
    assert verdict(about).expires_at == NOW + 60 * DAY + NOTICE
    assert verdict(about, Rule(7, 1)).expires_at == NOW + NOTICE
    found_before = replace(about, unneeded_since=NOW - timedelta(hours=23))
    assert verdict(found_before, Rule(7, 1)).expires_at == NOW + timedelta(hours=1), "as was announced"
    assert decide(None, [found_before], NOW) == [Verdict(1, ("there is no rule",))]


def test_the_newest_are_counted_among_those_that_can_be_pulled():
    versions = [version(number, gone=number in {7, 8}) for number in range(1, 9)]
    kept = [each.number for each in decide(Rule(90, 2), versions, NOW) if not each.deletes]
    assert kept == [5, 6, 7, 8]
    assert [each.number for each in decide(Rule(90, 100), versions, NOW) if each.deletes] == []
