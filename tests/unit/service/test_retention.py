"""Retention rules of backbones: who sets them, what their preview says, and what the controller then deletes."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
import structlog
from backbone_files import Registry
from command_line import rcmae
from service_fakes import add_job, problem, spec_with
from service_world import World
from sqlalchemy import select
from structlog.testing import capture_logs
from test_pages_rest import controls, csrf, page
from webhook_receiver import add_webhook
from webhook_receiver import rows as deliveries

from service.auth.caller import Caller, Role
from service.backbones import retention, service
from service.backbones.retention_schemas import NOT_COUNTED
from service.backbones.use import Use
from service.controller import retention as controller_retention
from service.db.database import Database
from service.db.tables import Audit, BackboneVersion, Job, RetentionRule, Token, now
from service.http.problems import ApiProblem
from service.jobs.work import Work

BASE = "/v1/backbones/digits"
RETENTION = f"{BASE}/retention"
MAIN = "it is main, which one gets where no version is named"
RULE = {"expire_unused_days": 90, "keep_newest": 2}
DAY = timedelta(days=1)
ALICE = Caller("alice", Role.SUBMITTER)


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


@pytest.fixture
def old(registry: Registry, database: Database) -> Callable[[int], None]:
    """Registers so many versions, counted for 200 days."""

    def register(count: int, name: str = "digits") -> None:
        for number in range(1, count + 1):
            registry.add(name, number)
        with database.session() as session:
            for row in session.scalars(select(BackboneVersion).where(BackboneVersion.name == name)):
                row.created_at = row.counted_since = now() - 200 * DAY

    return register


def passes(database: Database, time: timedelta, *, off: bool = False) -> None:
    """As if so much time had passed; ``off``: without a controller that decided meanwhile."""
    with database.session() as session:
        for rule in session.scalars(select(RetentionRule)) if off else ():
            rule.decided_at -= time
        for row in session.scalars(select(BackboneVersion)):
            for column in ("created_at", "counted_since", "unnamed_at", "expires_at", "unneeded_since"):
                if (moment := getattr(row, column)) is not None:
                    setattr(row, column, moment - time)


def downloaded(database: Database, number: int, days_ago: int = 0) -> None:
    """As the request of bob's token does."""
    with database.session() as session:
        token_id = session.scalar(select(Token.id).where(Token.owner == "bob"))
        row = session.get_one(BackboneVersion, ("digits", number))
        day = (now() - days_ago * DAY).date()
        Use("digits", number, row.source, "hf", day, downloaded=True).record(session, token_id)


@pytest.fixture
def apply(world: World) -> Callable[[], list[int]]:
    """One pass of the controller's worker, and the removals; gives the versions that are left of digits."""

    def work() -> list[int]:
        world._later((Work.EXPIRE_VERSIONS,))
        world.reconciler.removals.run_all((Work.EXPIRE_VERSIONS,))
        world.rounds()
        with world.database.read() as session:
            query = select(BackboneVersion.version).where(
                BackboneVersion.name == "digits", BackboneVersion.state.in_(("ready", "gone"))
            )
            return sorted(session.scalars(query))

    return work


def actions(view: dict[str, Any]) -> dict[int, str]:
    return {each["version"]: each["action"] for each in view["versions"]}


def about(view: dict[str, Any], number: int) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in view["versions"] if each["version"] == number)
    return found


# --- setting and showing ----------------------------------------------------------------------------------------------


def test_without_a_rule_nothing_ever_goes(served, old, apply, database):
    old(3)
    view = served.get(RETENTION).json()
    assert (view["rule"], view["deletes"], view["first_at"]) == (None, [], None)
    assert [each["why"] for each in view["versions"]] == [["there is no rule"]] * 3
    passes(database, 9999 * DAY)
    assert apply() == [1, 2, 3]


def test_a_rule_is_shown_replaced_and_removed_and_versions_say_when_they_go(served, old):
    old(3)
    before = now()
    view = served.put(RETENTION, json=RULE).json()
    assert view["rule"] == RULE | {"set_by": "alice", "set_at": view["rule"]["set_at"]}
    assert (view["deletes"], view["not_counted"]) == ([1], NOT_COUNTED)
    assert actions(view) == {3: "keep", 2: "keep", 1: "delete"}
    assert about(view, 1)["why"][0].endswith(": 200 days without a use")
    expires_at = datetime.fromisoformat(about(view, 1)["expires_at"])
    assert before + DAY <= expires_at <= now() + DAY, "a day to take it back"
    assert served.get(RETENTION).json() == view
    details = {each["version"]: each["expires_at"] for each in served.get(BASE).json()["details"]}
    assert details == {3: None, 2: None, 1: view["first_at"]}
    assert served.get(f"{BASE}/versions/1").json()["expires_at"] == view["first_at"]
    assert served.put(RETENTION, json={"expire_unused_days": 300}).json()["deletes"] == []
    assert served.delete(RETENTION).json()["rule"] is None
    assert served.get(f"{BASE}/versions/1").json()["expires_at"] is None
    problem(served.delete(RETENTION), 404, "retention_rule_not_found")
    problem(served.get("/v1/backbones/none/retention"), 404, "backbone_not_found")
    problem(served.put("/v1/backbones/none/retention", json=RULE), 404, "backbone_not_found")


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({}, "expire_unused_days", "nothing would ever be deleted: give the days without a use after which"),
        ({"keep_newest": 5}, "expire_unused_days", "keep_newest only says what stays"),
        ({"expire_unused_days": None}, "expire_unused_days", "nothing would ever be deleted"),
        ({"expire_unused_days": 0}, "expire_unused_days", "must be greater than or equal to 1"),
        ({"expire_unused_days": 90, "keep_newest": 0}, "keep_newest", "must be greater than or equal to 1"),
        ({"expire_unused_days": 90, "keep_named": False}, "keep_named", "did you mean 'keep_newest'?"),
    ],
)
def test_a_rule_that_deletes_nothing_or_what_nobody_means_is_refused(served, old, body, field, text):
    old(1)
    for query in ("", "?preview=true"):
        (found,) = problem(served.put(RETENTION + query, json=body), 422, "spec_invalid")["problems"]
        assert found["field"] == field
        assert text in found["message"]
    assert served.get(RETENTION).json()["rule"] is None


def test_who_downloaded_a_version_last_is_told_to_those_who_may_set_the_rule(clients, old, database):
    old(2)
    for days_ago in (3, 30):
        downloaded(database, 1, days_ago)
    for client, who in ((clients.alice, "bob"), (clients.operator, "bob"), (clients.viewer, "somebody")):
        client.put(RETENTION, json=RULE | {"keep_newest": 1})
        why = about(client.get(RETENTION).json(), 1)["why"]
        assert why == [f"{who} last used it on {now() - 3 * DAY:%Y-%m-%d}, so it stays for 90 days from then"]


def test_who_may_set_a_rule_and_that_it_is_audited(clients, registry, database):
    """Alice's backbone, of which bob owns a version."""
    registry.add("digits", 1)
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    registry.add("digits", 2)
    for client in (clients.bob, clients.viewer):
        for query in ("", "?preview=true"):
            problem(client.put(RETENTION + query, json=RULE), 403, "forbidden")
        problem(client.delete(RETENTION), 403, "forbidden")
        assert client.get(RETENTION).status_code == 200
    problem(clients.anonymous.get(RETENTION), 401, "unauthorized")
    assert clients.alice.put(RETENTION, json=RULE).status_code == 200
    assert clients.operator.put(RETENTION, json={"expire_unused_days": 7}).json()["rule"]["set_by"] == "operator"
    assert clients.operator.put(f"{RETENTION}?preview=true", json=RULE).status_code == 200
    assert clients.alice.delete(RETENTION).status_code == 200
    lines = clients.admin.get("/v1/audit?target=digits").json()["items"]
    done = [(line["actor"], line["action"], line["detail"]) for line in lines if line["status"] < 400]
    week = {"expire_unused_days": 7, "keep_newest": 1}
    assert done == [
        ("alice", "backbone.remove_retention", {"before": week}),
        ("operator", "backbone.retention", {"rule": week, "before": RULE}),
        ("alice", "backbone.retention", {"rule": RULE, "before": None}),
    ]


# --- the preview, and what then happens -------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_the_preview_is_what_then_happens(served, old, apply, registry, database, mlflow, monkeypatch):
    """Ten versions: what people named, pulled or still train stays, and the files and entries of the others go."""
    monkeypatch.setattr(controller_retention, "log", structlog.get_logger())  # a cached logger cannot be captured
    old(10)
    running = add_job(database, "running", spec=spec_with(register_as="digits"))
    with database.session() as session:
        session.get_one(BackboneVersion, ("digits", 4)).trained_by = running
        session.get_one(BackboneVersion, ("digits", 5)).counted_since = now() - 3 * DAY
        session.get_one(BackboneVersion, ("digits", 6)).bytes = 1000
    served.put(f"{BASE}/aliases/paper", json={"version": 2})
    downloaded(database, 3, days_ago=20)
    downloaded(database, 6, days_ago=150)
    add_webhook(database, events=["version.deleted"])

    view = served.put(f"{RETENTION}?preview=true", json=RULE).json()
    assert view["deletes"] == [1, 6, 7, 8]
    assert (view["bytes_freed"], view["unmeasured"]) == (1000, 3)
    assert about(view, 2)["why"] == ["it has the alias paper"]
    assert "bob last used it on" in about(view, 3)["why"][0]
    assert about(view, 4)["why"] == [f"{running} has not ended"]
    assert "its downloads are counted since" in about(view, 5)["why"][0]
    assert about(view, 9)["why"] == ["it is one of the newest 2"]
    assert about(view, 10)["why"] == [
        "it is main, which one gets where no version is named",
        "it is one of the newest 2",
    ]
    assert served.get(RETENTION).json()["rule"] is None, "nothing is set"
    assert {each["expires_at"] for each in served.get(BASE).json()["details"]} == {None}

    told = served.put(RETENTION, json=RULE).json()
    assert [actions(told), told["deletes"]] == [actions(view), view["deletes"]]
    assert apply() == [*range(1, 11)], "not on the day on which it is announced"
    passes(database, DAY - timedelta(minutes=1))
    assert apply() == [*range(1, 11)]
    passes(database, timedelta(minutes=2))
    with capture_logs() as logged:
        assert apply() == [2, 3, 4, 5, 9, 10]
    problem(served.get(f"{BASE}/versions/6"), 404, "version_not_found")
    assert sorted(version.version for version in mlflow.registered) == [2, 3, 4, 5, 9, 10]
    assert [number for number in range(1, 11) if registry.folder("digits", number).exists()] == [2, 3, 4, 5, 9, 10]

    lines = [line for line in logged if line["event"] == "version_expired"]
    assert [line["version"] for line in lines] == view["deletes"]
    with database.read() as session:
        entries = session.scalars(select(Audit).where(Audit.action == "backbone.expire").order_by(Audit.id)).all()
    assert [(entry.actor, entry.target, entry.detail["version"]) for entry in entries] == [
        ("retention rule", "digits", number) for number in view["deletes"]
    ]
    assert entries[0].detail["rule"] == RULE
    assert entries[0].detail["set_by"] == "alice"
    events = [delivery.data for delivery in deliveries(database)]
    assert [(event["version"], event["actor"]) for event in events] == [(n, "retention rule") for n in view["deletes"]]
    assert events[0]["reason"].startswith("retention rule of digits, set by alice: it was registered on ")


def test_a_person_who_deletes_gives_webhooks_no_reason(served, old, database):
    old(1)
    add_webhook(database)
    assert served.delete(f"{BASE}/versions/1").status_code == 200
    (event,) = [delivery.data for delivery in deliveries(database)]
    assert (event["actor"], event["reason"]) == ("alice", None)


def test_what_falls_due_while_nobody_looks_is_announced_first_too(served, old, apply, database):
    """As while the service is switched off, or if a clock jumps ahead."""
    old(3)
    served.put(RETENTION, json=RULE | {"expire_unused_days": 210})
    passes(database, 100 * DAY)
    assert apply() == [1, 2, 3]
    assert datetime.fromisoformat(served.get(f"{BASE}/versions/1").json()["expires_at"]) > now() + DAY - timedelta(
        minutes=5
    )
    passes(database, DAY)
    assert apply() == [2, 3]


@pytest.mark.both_databases
def test_what_was_announced_before_the_service_was_off_is_announced_anew(served, old, apply, database):
    """As over a weekend: nobody can have seen it meanwhile."""
    old(3)
    served.put(RETENTION, json=RULE)
    passes(database, 2 * DAY, off=True)
    told = datetime.fromisoformat(about(served.get(RETENTION).json(), 1)["expires_at"])
    assert told > now() + DAY - timedelta(minutes=5), "also where a request asks before the controller decides"
    assert apply() == [1, 2, 3]
    passes(database, DAY - timedelta(minutes=1))
    assert apply() == [1, 2, 3]
    passes(database, timedelta(minutes=2))
    assert apply() == [2, 3]


def test_setting_a_rule_after_the_service_was_off_announces_anew_too(served, old, apply, database):
    old(3)
    served.put(RETENTION, json=RULE)
    passes(database, 2 * DAY, off=True)
    served.put(RETENTION, json=RULE | {"expire_unused_days": 80})
    assert apply() == [1, 2, 3]


def test_a_short_restart_puts_nothing_off(served, old, apply, database):
    old(3)
    served.put(RETENTION, json=RULE)
    passes(database, DAY)
    with database.session() as session:
        session.get_one(RetentionRule, "digits").decided_at -= timedelta(minutes=50)
    assert apply() == [2, 3]


def test_a_long_interval_between_decisions_puts_nothing_off(served, old, apply, app, world, database):
    old(3)
    served.put(RETENTION, json=RULE)
    passes(database, DAY + timedelta(hours=2), off=True)
    for state in (app.state.app_state, world.context.app):
        state.settings.sweep_interval_s = 86400.0
    assert apply() == [2, 3]


def test_that_somebody_has_decided_is_written_every_few_minutes(served, old, apply, database):
    """Unless something else is to be written: a pass of a minute later writes nothing."""
    old(3)
    served.put(RETENTION, json=RULE)

    def decided_at() -> datetime:
        with database.read() as session:
            return session.get_one(RetentionRule, "digits").decided_at

    before = decided_at()
    apply()
    assert decided_at() == before
    with database.session() as session:
        session.get_one(RetentionRule, "digits").decided_at = now() - timedelta(minutes=6)
    apply()
    assert decided_at() > before


def test_a_clock_that_jumps_ahead_deletes_nothing_unannounced(served, old, apply, monkeypatch):
    old(3)
    served.put(RETENTION, json=RULE)
    monkeypatch.setattr(retention, "now", lambda: now() + 400 * DAY)
    assert apply() == [1, 2, 3]


def test_a_version_that_was_saved_is_announced_anew(served, old, apply, database):
    """By a download, although no pass of the controller has seen it saved."""
    old(3)
    served.put(RETENTION, json=RULE | {"expire_unused_days": 2})
    downloaded(database, 1)
    assert served.get(f"{BASE}/versions/1").json()["expires_at"] is None, "at once"
    passes(database, 4 * DAY)
    with database.session() as session:
        session.get_one(BackboneVersion, ("digits", 1)).last_used_on -= 4 * DAY
    assert apply() == [1, 2, 3]


def test_a_job_that_loads_from_its_cache_keeps_its_version(served, clients, old, apply, database):
    """A HEAD of its configuration is all that the service sees of it."""
    old(3)
    served.put(RETENTION, json=RULE)
    passes(database, 2 * DAY)
    assert clients.bob.head("/hf/rcmae/digits/resolve/v1/config.json").status_code == 200
    assert apply() == [1, 2, 3]
    view = about(served.get(RETENTION).json(), 1)
    assert (view["action"], view["why"][0].split(" on ")[0]) == ("keep", "bob last used it")


@pytest.mark.parametrize("saved_by", ["download", "alias", "rule removed", "longer rule", "nothing"])
def test_what_happens_on_the_last_day_counts(served, old, apply, database, saved_by):
    old(3)
    served.put(RETENTION, json=RULE)
    passes(database, 2 * DAY)
    match saved_by:
        case "download":
            downloaded(database, 1)
        case "alias":
            served.put(f"{BASE}/aliases/best", json={"version": 1})
            assert served.get(f"{BASE}/versions/1").json()["expires_at"] is None, "at once"
        case "rule removed":
            served.delete(RETENTION)
        case "longer rule":
            served.put(RETENTION, json=RULE | {"expire_unused_days": 300})
    assert apply() == ([2, 3] if saved_by == "nothing" else [1, 2, 3])


def test_a_version_that_loses_its_alias_or_its_place_is_announced_first(served, old, apply, registry, database):
    """A champion that was moved away stays as long as one that was downloaded that day, so one can go back to it."""
    old(4)
    for number in (1, 4):
        served.put(f"{BASE}/aliases/champion", json={"version": number})
    served.put(f"{BASE}/aliases/best", json={"version": 2})
    served.delete(f"{BASE}/aliases/best")
    view = served.put(RETENTION, json=RULE).json()
    for number in (1, 2):
        assert f"it had an alias until {now():%Y-%m-%d}" in about(view, number)["why"][0]
        assert datetime.fromisoformat(about(view, number)["expires_at"]) > now() + 89 * DAY
    passes(database, 2 * DAY)
    registry.add("digits", 5)
    assert apply() == [1, 2, 3, 4, 5], "version 3 is among the newest two no longer, which is first said now"
    assert [each["version"] for each in served.get(BASE).json()["details"] if each["expires_at"]] == [3, 2, 1]
    passes(database, DAY)
    assert apply() == [1, 2, 4, 5]


@pytest.mark.parametrize("state", ["queued", "running", "recovering", "pausing", "paused", "cancelling", "failed"])
def test_versions_of_jobs_that_have_not_ended_stay(served, old, registry, database, state):
    old(3)
    with database.session() as session:
        session.get_one(Job, registry.jobs["digits"]).state = state
    view = served.put(RETENTION, json=RULE).json()
    assert view["deletes"] == ([1] if state == "failed" else [])


def test_a_version_that_is_gone_in_mlflow_stays_and_its_days_begin_anew_when_it_is_back(
    served, world, old, apply, database, mlflow
):
    old(3)
    lost = mlflow.registered.pop(0)
    world.compare_versions()
    view = served.put(RETENTION, json=RULE | {"keep_newest": 1}).json()
    assert about(view, 1)["why"] == ["somebody deleted it in MLflow, where a backup may bring it back"]
    assert view["deletes"] == [2]
    passes(database, 2 * DAY)
    assert apply() == [1, 3]
    mlflow.registered.insert(0, lost)
    world.compare_versions()
    view = served.get(RETENTION).json()
    assert about(view, 1)["why"] == [
        f"its downloads are counted since {now():%Y-%m-%d}, so it stays for 90 days from then"
    ]


def test_a_champion_that_is_gone_and_the_newest_stay_whatever_the_rule(served, old, apply, database):
    old(3)
    served.put(f"{BASE}/aliases/champion", json={"version": 1})
    view = served.put(RETENTION, json={"expire_unused_days": 1}).json()
    assert about(view, 1)["why"] == [
        "it has the alias champion",
        "it is main, which one gets where no version is named",
    ]
    passes(database, 1000 * DAY)
    assert apply() == [1, 3]


def test_a_rule_deletes_as_many_as_there_are_a_few_in_each_transaction(served, old, apply, database, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    old(8)
    served.put(RETENTION, json=RULE)
    passes(database, 2 * DAY)
    assert apply() == [7, 8]


def test_each_rule_holds_for_its_own_backbone_and_goes_with_it(served, old, apply, database):
    old(3)
    old(3, "cats")
    served.put(RETENTION, json=RULE)
    passes(database, 2 * DAY)
    assert apply() == [2, 3]
    assert served.get("/v1/backbones/cats").json()["versions"] == [1, 2, 3]
    for number in (2, 3):
        assert served.delete(f"{BASE}/versions/{number}").status_code == 200
    with database.read() as session:
        assert session.scalars(select(RetentionRule)).all() == []


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_previews_a_rule_before_it_is_set_and_shows_what_goes(browsers, old, database):
    old(4)
    with database.session() as session:
        session.get_one(BackboneVersion, ("digits", 1)).bytes = 3 * 2**20
    assert "There is no retention rule" in page(browsers.alice, "/backbones/digits")
    place = "/backbones/digits/retention"
    first = page(browsers.alice, place)
    assert "There is no rule: nothing is deleted by itself." in first
    assert controls(first) == set()
    shown = page(browsers.alice, place, expire_unused_days="90", keep_newest="2")
    assert "A preview, which is not set: keep the newest 2, and delete what nobody has used for 90 days." in shown
    assert "2 versions (1, 2) will be deleted, the first" in shown
    assert "which frees 3.0 MiB and what 1 of them take" in shown
    assert "200 days without a use" in shown
    assert NOT_COUNTED in shown
    assert controls(shown) == {"PUT /v1/backbones/digits/retention"}
    body = re.search(r'data-body="([^"]*)"', browsers.alice.get(f"{place}?expire_unused_days=90&keep_newest=2").text)
    assert body
    assert json.loads(html.unescape(body[1])) == {"expire_unused_days": 90, "keep_newest": 2}
    assert browsers.alice.put(RETENTION, json=RULE, headers=csrf(browsers.alice)).status_code == 200
    panel = page(browsers.alice, "/backbones/digits")
    assert "The rule: keep the newest 2, and delete what nobody has used for 90 days." in panel
    assert panel.count('<span class="tag">expires') == 2
    assert "Change the rule" in panel
    assert controls(page(browsers.alice, place)) == {"DELETE /v1/backbones/digits/retention"}


def test_the_page_tells_what_makes_no_rule_beside_its_form_and_offers_the_form_to_those_who_may(browsers, old):
    old(1)
    place = "/backbones/digits/retention"
    for given, told in (
        ({"expire_unused_days": "0"}, "must be greater than or equal to 1"),
        ({"expire_unused_days": "", "keep_newest": "5"}, "nothing would ever be deleted"),
        ({"expire_unused_days": "soon"}, "must be a valid integer"),
    ):
        shown = page(browsers.alice, place, **given)
        assert told in shown
        assert controls(shown) == set()
    for browser in (browsers.bob, browsers.viewer):
        assert "expire_unused_days" not in page(browser, place)
        assert "What stays and why" in page(browser, "/backbones/digits")
        page(browser, place, status=403, expire_unused_days="90")
    page(browsers.alice, "/backbones/none/retention", status=404)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("address")
def test_the_command_shows_tries_sets_and_removes_a_rule(served, old, capsys, monkeypatch):
    old(3)
    rule = ("--keep-newest", "2", "--expire-unused-days", "90")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str]:
        """What is printed, on one line."""
        status, told, error = rcmae(capsys, "backbones", *arguments)
        return status, " ".join((told + error).split())

    assert "rule none: nothing is deleted by itself" in run("retention", "digits")[1]
    status, told = run("retention", "digits", *rule, "--preview")
    assert status == 0
    rule_told = "keep the newest 2; delete what nobody has used for 90 days"
    assert f"{rule_told} (only a preview: it is not set)" in told
    assert "goes 1 version from" in told
    assert NOT_COUNTED in told
    assert served.get(RETENTION).json()["rule"] is None
    assert f"{rule_told}, set by alice" in run("retention", "digits", *rule)[1]
    status, told = run("retention", "digits", "--json")
    assert json.loads(told) == served.get(RETENTION).json()
    assert "EXPIRES" in run("show", "digits")[1]
    assert "expires" in run("show", "digits:1")[1]
    status, told = run("retention", "digits", "--keep-newest", "5")
    assert status != 0
    assert "nothing would ever be deleted" in told
    for wrong in (("--remove", "--preview"), ("--preview",)):
        assert run("retention", "digits", *wrong)[0] == 2
    assert "rule none" in run("retention", "digits", "--remove")[1]
    assert served.get(RETENTION).json()["rule"] is None


# --- two at once ------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_version_expires_or_gets_an_alias_and_never_both(world, served, old, registry, database):
    """Whichever comes second sees what the first did."""
    for index in range(6):
        name = f"digits-{index}"
        old(2, name)
        served.put(f"/v1/backbones/{name}/retention", json={"expire_unused_days": 90})
        passes(database, 2 * DAY)
        barrier = Barrier(2)

        def expire(name: str = name, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            with world.context.write() as session:
                return bool(retention.expire(session, world.app_state, name))

        def point(name: str = name, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            try:
                service.set_alias(world.app_state, ALICE, name, "best", 1)
            except ApiProblem as error:
                return error.status != 404
            return True

        with ThreadPoolExecutor(2) as pool:
            expired, named = pool.submit(expire), pool.submit(point)
            assert expired.result() != named.result(), name
        world.rounds()
        assert registry.folder(name, 1).exists() == named.result()
