"""Approval of the champion: the history of aliases, and the rule for who may move the champion and to which version."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from backbone_files import Registry, compare_with_mlflow
from fastapi.testclient import TestClient
from service_fakes import add_job, problem, spec_with
from sqlalchemy import delete

from service.auth.caller import ensure_token
from service.auth.scopes import Role
from service.backbones import approval, signing
from service.backbones.signing import Signer
from service.db.database import Database
from service.db.tables import Job, Webhook, WebhookDelivery
from trainer.protocol import names

BASE = "/v1/backbones/digits"
CHAMPION = f"{BASE}/aliases/champion"
RULE = f"{BASE}/champion-rule"
TOP1 = "eval/linear_top1"
RATIO = "eval/reconstruction_ratio"


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def versions(registry: Registry, *accuracies: float) -> None:
    """Versions of Alice's with these accuracies, numbered from 1."""
    for number, accuracy in enumerate(accuracies, 1):
        registry.add(number=number, metrics={TOP1: accuracy})


def set_rule(api: TestClient, **rule: Any) -> None:
    answer = api.put(RULE, json=rule)
    assert answer.status_code == 200, answer.text


def move(api: TestClient, number: int, reason: str | None = None) -> Any:
    return api.put(CHAMPION, json={"version": number} | ({} if reason is None else {"reason": reason}))


def history(api: TestClient, **query: Any) -> list[tuple[Any, ...]]:
    """The moves of all aliases, newest first."""
    items = api.get(f"{BASE}/alias-moves", params=query).json()["items"]
    return [(each["alias"], each["version"], each["before"], each["actor"], each["reason"]) for each in items]


def champion(api: TestClient) -> int | None:
    return api.get(BASE).json()["aliases"].get("champion")


def sign(database: Database, registry: Registry, number: int) -> None:
    """As the controller does."""
    with database.session() as session:
        signer = Signer(bytes(32))
        signing.add_key(session, signer)
        (row,) = [each for each in session.scalars(signing.unsigned()) if each.version == number]
        signing.record(session, row, signer, (registry.folder("digits", number) / names.BACKBONE_SUMS).read_bytes())


# --- the history ------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_every_move_is_kept_with_who_when_and_why_and_is_audited_and_told(clients, registry, database):
    versions(registry, 0.5, 0.6)
    with database.session() as session:
        session.add(Webhook(owner="alice", url="https://hooks.example/x", secret="x"))
    assert move(clients.alice, 1).status_code == 200
    assert move(clients.operator, 2, "  better on the shelf set ").status_code == 200
    assert move(clients.operator, 2, "again").status_code == 200
    clients.alice.put(f"{BASE}/aliases/best", json={"version": 2})
    assert clients.operator.delete(CHAMPION, params={"reason": "withdrawn"}).status_code == 200
    expected = [
        ("champion", None, 2, "operator", "withdrawn"),
        ("best", 2, None, "alice", ""),
        ("champion", 2, 1, "operator", "better on the shelf set"),
        ("champion", 1, None, "alice", ""),
    ]
    assert history(clients.viewer) == expected, "an alias that is where it is to be does not move"
    assert history(clients.viewer, alias="best") == expected[1:2]
    page = clients.operator.get(f"{BASE}/alias-moves", params={"limit": 3}).json()
    rest = history(clients.viewer, limit=3, cursor=page["next_cursor"])
    assert rest == expected[3:]
    tokens = {each["owner"]: each["id"] for each in clients.admin.get("/v1/tokens").json()["items"]}
    assert [each["token_id"] for each in page["items"]] == [tokens["operator"], None, tokens["operator"]]
    audited = [line["detail"].get("reason") for line in clients.admin.get("/v1/audit").json()["items"]]
    assert audited == ["withdrawn", None, "again", "better on the shelf set", None]
    with database.read() as session:
        told = [(row.data["actor"], row.data["reason"]) for row in session.query(WebhookDelivery).all()]
    assert sorted(told) == sorted((actor, reason) for _, _, _, actor, reason in expected)


@pytest.mark.both_databases
def test_the_history_outlives_the_versions_and_goes_with_the_last_one(clients, registry, database):
    """The next backbone of that name, perhaps somebody else's, begins without one."""
    versions(registry, 0.5, 0.6)
    for number in (1, 2):
        move(clients.alice, number)
    assert clients.alice.delete(f"{BASE}/versions/1").status_code == 200
    assert history(clients.alice) == [("champion", 2, 1, "alice", ""), ("champion", 1, None, "alice", "")]
    clients.alice.delete(CHAMPION)
    assert clients.alice.delete(f"{BASE}/versions/2").status_code == 200
    problem(clients.alice.get(f"{BASE}/alias-moves"), 404, "backbone_not_found")
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    registry.add(number=3)
    assert history(clients.bob) == []


def test_what_is_taken_over_from_mlflow_or_goes_with_a_replaced_version_is_nobodys(api, registry, mlflow, database):
    registry.add()
    mlflow.set_alias("digits", "best", 2)
    registry.add(number=2)
    assert history(api) == [("best", 2, None, None, "")]
    mlflow.registered.clear()
    mlflow.named.clear()
    again = add_job(database, "succeeded", spec=spec_with(register_as="digits"))
    mlflow.register("digits", 2, again, registry.folder("digits", 2))
    compare_with_mlflow(database, mlflow)
    assert history(api) == [("best", None, 2, None, ""), ("best", 2, None, None, "")]


@pytest.mark.parametrize("reason", ["x" * 1001, "two\nlines", 3])
def test_a_reason_is_one_line_of_text(api, registry, reason):
    registry.add()
    found = problem(api.put(CHAMPION, json={"version": 1, "reason": reason}), 422, "spec_invalid")
    assert found["problems"][0]["field"] == "reason"
    assert history(api) == []


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_rule_is_set_as_a_whole_and_removed_by_the_owner_and_is_audited(clients, registry):
    versions(registry, 0.5)
    problem(clients.bob.put(RULE, json={"signed": True}), 403, "forbidden")
    problem(clients.alice.delete(RULE), 404, "champion_rule_not_found")
    problem(clients.alice.put("/v1/backbones/none/champion-rule", json={"signed": True}), 404, "backbone_not_found")
    set_rule(clients.alice, reason_required=True, must_not_worsen=[{"metric": TOP1}])
    shown = clients.bob.get(BASE).json()["champion_rule"]
    assert shown == {
        "approvers": [], "not_by_owner": False, "reason_required": True, "signed": False,
        "must_not_worsen": [{"metric": TOP1, "better": "higher", "tolerance": 0.0}],
    }  # fmt: skip
    set_rule(clients.operator, signed=True)
    assert clients.bob.get(BASE).json()["champion_rule"]["must_not_worsen"] == []
    assert clients.alice.delete(RULE).json()["champion_rule"] is None
    changes = [line for line in clients.admin.get("/v1/audit").json()["items"] if line["status"] == 200]
    assert [(line["action"], line["actor"], line["detail"]) for line in changes] == [
        ("backbone.remove_champion_rule", "alice", {"before": {"signed": True}}),
        ("backbone.set_champion_rule", "operator", {"rule": {"signed": True}}),
        ("backbone.set_champion_rule", "alice", {"rule": {"must_not_worsen": [{"metric": TOP1}],
                                                          "reason_required": True}}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "field", "hint"),
    [
        ({}, "", "give one of approvers"),
        ({"approvers": []}, "", "DELETE removes the rule"),
        ({"approvers": ["alice", "nobody"]}, "approvers.1", "name the owner of one"),
        ({"approvers": ["viewer"]}, "approvers.0", "may change backbones"),
        ({"must_not_worsen": [{"metric": "eval/linear_top"}]}, "must_not_worsen.0.metric", f"did you mean {TOP1}?"),
        ({"must_not_worsen": [{"metric": TOP1, "tolerance": -1}]}, "must_not_worsen.0.tolerance", "0"),
        ({"must_not_worsen": [{"metric": TOP1, "direction": "up"}]}, "must_not_worsen.0.direction", "unknown"),
        ({"signed": "yes"}, "signed", "boolean"),
        ({"four_eyes": True}, "four_eyes", "unknown"),
    ],
)
def test_a_rule_that_could_not_be_meant_is_refused(api, registry, rule, field, hint):
    versions(registry, 0.5)
    answer = api.put(RULE, json=rule)
    found = problem(answer, 422, answer.json()["code"])
    assert (found["problems"][0]["field"] if found["problems"] else "") == field
    assert hint in found["detail"]
    assert api.get(BASE).json()["champion_rule"] is None


def test_a_version_that_is_worse_is_refused_with_both_numbers_and_every_part_that_fails(api, registry):
    registry.add(metrics={TOP1: 0.54, RATIO: 0.3})
    registry.add(number=2, metrics={TOP1: 0.512, RATIO: 0.35})
    registry.add(number=3, metrics={TOP1: 0.54, RATIO: 0.31})
    registry.add(number=4)
    set_rule(api, reason_required=True, must_not_worsen=[
        {"metric": TOP1}, {"metric": RATIO, "better": "lower", "tolerance": 0.01},
    ])  # fmt: skip
    assert move(api, 1, "the first").status_code == 200
    found = problem(move(api, 2, " "), 409, "champion_refused")
    assert found["detail"] == (
        "digits:2 cannot become the champion: eval/linear_top1: 0.512 of version 2 is below the champion's 0.54 "
        "(version 1), and may be at most 0 lower; eval/reconstruction_ratio: 0.35 of version 2 is above the "
        "champion's 0.3 (version 1), and may be at most 0.01 higher; a reason is required: send `reason`"
    )
    lacking = problem(move(api, 4, "new"), 409, "champion_refused")["detail"]
    assert f"{TOP1}: version 4 has no such result; {RATIO}: version 4 has no such result" in lacking
    assert champion(api) == 1
    assert api.put(f"{BASE}/aliases/best", json={"version": 2}).status_code == 200, "no rule for other aliases"
    assert move(api, 3, "as good").status_code == 200, "worse by no more than may be"


def test_two_numbers_that_round_to_the_same_are_shown_in_full(api, registry):
    versions(registry, 0.5400001, 0.54)
    move(api, 1)
    set_rule(api, must_not_worsen=[{"metric": TOP1}])
    assert "0.54 of version 2 is below the champion's 0.5400001" in move(api, 2).json()["detail"]


@pytest.mark.both_databases
def test_the_first_champion_has_nothing_to_be_compared_with_but_the_rest_holds(api, registry):
    registry.add()
    registry.add("other", metrics={TOP1: 0.5})
    set_rule(api, reason_required=True, must_not_worsen=[{"metric": TOP1}])
    problem(move(api, 1), 409, "champion_refused")
    assert move(api, 1, "the first").status_code == 200


@pytest.mark.both_databases
def test_only_named_approvers_move_the_champion_whoever_owns_it(clients, registry):
    versions(registry, 0.5, 0.6)
    set_rule(clients.alice, approvers=["bob"])
    for client in (clients.alice, clients.operator):
        found = problem(move(client, 1), 403, "forbidden")
        assert "only bob may approve it" in found["detail"]
        problem(client.delete(CHAMPION), 404, "alias_not_found")
    assert move(clients.bob, 1).status_code == 200
    assert move(clients.bob, 2).status_code == 200
    problem(clients.bob.put(f"{BASE}/aliases/best", json={"version": 1}), 403, "forbidden")
    assert history(clients.alice, limit=1) == [("champion", 2, 1, "bob", "")]


@pytest.mark.both_databases
def test_neither_who_trained_a_version_nor_who_published_it_approves_it(clients, registry, database):
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    trained = add_job(database, "succeeded", owner="alice")
    with database.session() as session:
        job = session.get_one(Job, registry.jobs["digits"])
        job.spec = job.spec | {"job": trained}
    registry.add()
    set_rule(clients.bob, not_by_owner=True, approvers=["alice", "bob", "operator"])
    for who in ("alice", "bob"):
        found = problem(move(getattr(clients, who), 1), 403, "forbidden")
        assert f"{who} trained or registered it" in found["detail"]
    assert move(clients.operator, 1).status_code == 200


def test_a_version_must_be_signed_and_its_checksums_those_that_were_signed(api, registry, database):
    versions(registry, 0.5, 0.6)
    set_rule(api, signed=True)
    assert "version 1 is not signed" in problem(move(api, 1), 409, "champion_refused")["detail"]
    sign(database, registry, 1)
    assert move(api, 1).status_code == 200
    sign(database, registry, 2)
    sums = registry.folder("digits", 2) / names.BACKBONE_SUMS
    sums.write_bytes(sums.read_bytes()[::-1])
    refused = problem(move(api, 2), 409, "champion_refused")
    assert "the checksums of version 2 are not those that were signed" in refused["detail"]
    assert refused["detail"].endswith(api.get(f"{BASE}/champion-check?version=2").json()["problems"][0])


def test_a_rule_that_asks_for_a_signature_meanwhile_is_not_passed_by(api, registry, monkeypatch):
    """The checksums are read before the transaction in which the rule is looked at."""
    versions(registry, 0.5)
    found = approval.rule_of

    def changed_meanwhile(session, name):
        return (found(session, name) or approval.ChampionRuleView()).model_copy(update={"signed": True})

    monkeypatch.setattr(approval, "rule_of", changed_meanwhile)
    assert "try again" in problem(move(api, 1), 409, "champion_refused")["detail"]


# --- ways around it ---------------------------------------------------------------------------------------------------


def test_a_champion_with_a_rule_is_not_removed_for_then_the_newest_version_would_be_pulled(clients, registry):
    versions(registry, 0.5, 0.1)
    move(clients.alice, 1)
    clients.alice.put(f"{BASE}/aliases/best", json={"version": 1})
    set_rule(clients.alice, must_not_worsen=[{"metric": TOP1}])
    for client in (clients.alice, clients.operator):
        found = problem(client.delete(CHAMPION), 409, "champion_refused")
        assert "DELETE /v1/backbones/digits/champion-rule" in found["detail"]
    job = f"/v1/jobs/{registry.jobs['digits']}?with_backbones=true"
    advice = "has the alias digits@best, @champion: first move it to another version, or remove it: DELETE "
    for path in (f"{BASE}/versions/1", job):
        found = problem(clients.alice.delete(path), 409, "version_has_alias")["detail"]
        assert f"digits:1 {advice}{BASE}/aliases/best, or rcmae backbones alias digits best --remove; cham" in found
    assert clients.alice.delete(f"{BASE}/aliases/best").status_code == 200
    for path in (f"{BASE}/versions/1", job):
        found = problem(clients.alice.delete(path), 409, "version_has_alias")["detail"]
        assert "first move it to another version; champion has a rule, and can only be moved" in found
        assert "remove it" not in found
    assert clients.alice.delete(RULE).status_code == 200
    assert clients.alice.delete(CHAMPION).status_code == 200


@pytest.mark.both_databases
def test_a_champion_that_somebody_sets_in_mlflow_is_reset_where_there_is_a_rule(api, registry, mlflow):
    registry.add()
    set_rule(api, reason_required=True)
    mlflow.set_alias("digits", "champion", 2)
    mlflow.set_alias("digits", "best", 2)
    registry.add(number=2)
    assert api.get(BASE).json()["aliases"] == {"best": 2}
    assert mlflow.all_aliases()["digits"] == {"best": 2}


def test_a_version_approved_before_is_restored_without_comparing_results(clients, registry):
    versions(registry, 0.5, 0.9)
    for number in (1, 2):
        move(clients.alice, number)
    set_rule(clients.alice, must_not_worsen=[{"metric": TOP1}], reason_required=True)
    problem(move(clients.alice, 1), 409, "champion_refused")
    check = clients.alice.get(f"{BASE}/champion-check", params={"version": 1}).json()
    assert (check["allowed"], check["restores"], check["before"], check["reason_required"]) == (True, True, 2, True)
    assert move(clients.alice, 1, "2 fails on the line").status_code == 200
    set_rule(clients.alice, not_by_owner=True)
    problem(move(clients.alice, 2), 403, "forbidden")
    assert move(clients.operator, 2).status_code == 200
    assert move(clients.operator, 1).status_code == 200
    assert move(clients.alice, 2).status_code == 200, "somebody else has approved it before"


def test_what_mlflow_set_or_another_version_of_the_number_was_is_no_approval(api, registry, mlflow, database):
    mlflow.set_alias("digits", "champion", 1)
    versions(registry, 0.5, 0.9, 0.4)
    move(api, 3)
    move(api, 2)
    mlflow.registered.clear()
    mlflow.named.clear()
    registry.jobs["digits"] = add_job(database, "succeeded", spec=spec_with(register_as="digits"))
    with database.session() as session:
        session.execute(delete(WebhookDelivery))
    for number, accuracy in ((1, 0.5), (2, 0.9), (3, 0.4)):
        registry.add(number=number, metrics={TOP1: accuracy})
    assert champion(api) is None, "it went with its version"
    move(api, 2)
    set_rule(api, must_not_worsen=[{"metric": TOP1}])
    for number in (1, 3):
        problem(move(api, number), 409, "champion_refused")


@pytest.mark.both_databases
def test_a_champion_that_vanishes_with_its_number_in_mlflow_is_still_what_results_are_compared_with(
    clients, registry, mlflow, database
):
    registry.add(metrics={TOP1: 0.9})
    move(clients.alice, 1)
    set_rule(clients.alice, must_not_worsen=[{"metric": TOP1}])
    mlflow.registered.clear()
    mlflow.named.clear()
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    registry.add(metrics={TOP1: 0.1})
    registry.add(number=2, metrics={TOP1: 0.91})
    assert champion(clients.alice) is None
    refused = problem(move(clients.bob, 1), 409, "champion_refused")["detail"]
    assert "0.1 of version 1 is below the last champion's 0.9 (version 1)" in refused
    assert refused.endswith(clients.bob.get(f"{BASE}/champion-check?version=1").json()["problems"][0])
    assert move(clients.bob, 2).status_code == 200


@pytest.mark.both_databases
def test_of_two_approvals_at_once_the_second_is_compared_with_the_first(clients, registry, monkeypatch):
    versions(registry, 0.5, 0.6, 0.55)
    move(clients.alice, 1)
    set_rule(clients.alice, must_not_worsen=[{"metric": TOP1}])
    judge = approval.judge

    def slowly(*arguments: Any) -> Any:
        verdict = judge(*arguments)
        time.sleep(0.3)
        return verdict

    monkeypatch.setattr(approval, "judge", slowly)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(move, (clients.alice, clients.operator), (2, 3)))
    assert champion(clients.alice) == 2
    moved = [version for _, version, *_ in reversed(history(clients.alice))]
    assert moved == ([1, 3, 2] if answers[1].status_code == 200 else [1, 2])


# --- previews ---------------------------------------------------------------------------------------------------------


def test_a_check_says_to_each_caller_what_would_happen_and_changes_nothing(clients, registry):
    versions(registry, 0.5, 0.4)
    path = f"{BASE}/champion-check"
    for who, allowed in (("alice", True), ("operator", True), ("bob", False), ("viewer", False)):
        check = getattr(clients, who).get(path, params={"version": 2}).json()
        assert (check["allowed"], check["before"]) == (allowed, None), check
    assert "scope backbones" in clients.bob.get(path, params={"version": 2}).json()["problems"][0]
    move(clients.alice, 1)
    set_rule(clients.alice, approvers=["bob"], must_not_worsen=[{"metric": TOP1}])
    said = clients.alice.get(path, params={"version": 2}).json()
    assert [text.partition(":")[0] for text in said["problems"]] == ["only bob may approve it, and you are alice", TOP1]
    refused = problem(move(clients.alice, 2), 403, "forbidden")
    assert refused["detail"].endswith("; ".join(said["problems"]))
    assert clients.bob.get(path, params={"version": 1}).json()["allowed"]
    problem(clients.bob.get(path, params={"version": 9}), 404, "version_not_found")
    assert champion(clients.alice) == 1
    assert [line["action"] for line in clients.admin.get("/v1/audit").json()["items"]].count("backbone.alias") == 2


def test_a_version_that_is_gone_cannot_become_the_champion(api, registry, mlflow, database):
    versions(registry, 0.5, 0.6)
    set_rule(api, must_not_worsen=[{"metric": TOP1}])
    del mlflow.registered[1]
    compare_with_mlflow(database, mlflow)
    check = api.get(f"{BASE}/champion-check", params={"version": 2}).json()
    assert not check["allowed"]
    assert "deleted in MLflow" in check["problems"][0]
    problem(move(api, 2), 410, "version_gone")


def test_an_approver_whose_token_may_not_change_backbones_any_more_is_told(clients, registry, database):
    registry.add()
    ensure_token(database, "a-token-of-zoe-0123456789", "zoe", Role.SUBMITTER)
    set_rule(clients.alice, approvers=["zoe"])
    ensure_token(database, "a-token-of-zoe-0123456789", "zoe", Role.VIEWER)
    zoe = TestClient(clients.alice.app, headers={"Authorization": "Bearer a-token-of-zoe-0123456789"})
    check = zoe.get(f"{BASE}/champion-check", params={"version": 1}).json()
    assert not check["allowed"]
    assert "backbones!own" in check["problems"][0]
    problem(move(zoe, 1), 403, "forbidden")
