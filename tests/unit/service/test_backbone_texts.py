"""Descriptions, labels and owners of backbones and versions: where they come from, who changes them, and their copies
in MLflow.
"""

from __future__ import annotations

from typing import Any

import pytest
from backbone_files import FILES, Registry, compare_with_mlflow, write
from fastapi.testclient import TestClient
from service_fakes import FakeMlflow, add_job, problem, spec_with

from service.auth.caller import ensure_token
from service.auth.scopes import Role
from service.db.database import Database
from service.db.tables import BackboneVersion, Job, RegisteredBackbone
from trainer.protocol import names

BASE = "/v1/backbones"
LABELS = {"team": "vision", "site": "north"}


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def with_job(registry: Registry, database: Database, name: str = "digits", owner: str = "alice", **fields: Any) -> None:
    """A version of a job with such fields."""
    registry.jobs[name] = add_job(database, "succeeded", owner=owner, spec=spec_with(register_as=name), **fields)
    registry.add(name)


def texts(api: TestClient, name: str = "digits", number: int | None = None) -> tuple[str, dict[str, str], str]:
    """The description, the labels and the owner."""
    shown = api.get(f"{BASE}/{name}" if number is None else f"{BASE}/{name}/versions/{number}").json()
    return shown["description"], shown["labels"], shown["owner"]


# --- where they come from ---------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_version_begins_with_the_labels_and_notes_of_its_job_and_a_backbone_with_its_owner(api, registry, database):
    with_job(registry, database, labels=LABELS, notes="Shelf cameras.\nSecond try.")
    assert texts(api, number=1) == ("Shelf cameras.\nSecond try.", LABELS, "alice")
    assert texts(api) == ("", {}, "alice")
    with database.session() as session:
        session.get_one(Job, registry.jobs["digits"]).notes = "x" * 9000
        session.get_one(Job, registry.jobs["digits"]).labels = {}
    registry.add(number=2)
    assert texts(api, number=2) == ("x" * names.DESCRIPTION_LENGTH, {}, "alice"), "cut to what MLflow takes"
    assert texts(api, number=1)[1] == LABELS, "what is registered stays as it is"


@pytest.mark.parametrize(("owner", "inherited"), [("alice", True), ("operator", False)])
def test_a_published_checkpoint_has_the_labels_of_its_run_too_unless_that_is_somebody_elses(
    api, database, mlflow, root, owner, inherited
):
    """Others who see the backbone may not see that run."""
    trained = add_job(database, "succeeded", labels=LABELS, notes="of the run")
    publishing = add_job(database, "succeeded", kind="publish", owner=owner, labels={"site": "south"})
    with database.session() as session:
        session.get_one(Job, publishing).spec = {"kind": "publish", "job": trained, "register_as": "late", "name": "x"}
    mlflow.register("late", 1, publishing, write(root / "late", FILES))
    compare_with_mlflow(database, mlflow)
    run = (LABELS, "of the run") if inherited else ({}, "")
    assert texts(api, "late", 1) == (run[1], run[0] | {"site": "south"}, owner)


def test_a_backbone_stays_as_long_as_a_version_and_the_next_one_of_its_name_begins_anew(clients, registry, database):
    for number in (1, 2):
        registry.add(number=number)
    assert clients.alice.patch(f"{BASE}/digits", json={"description": "Mine."}).status_code == 200
    assert clients.alice.delete(f"{BASE}/digits/versions/1").status_code == 200
    assert texts(clients.alice) == ("Mine.", {}, "alice")
    assert clients.alice.delete(f"{BASE}/digits/versions/2").status_code == 200
    problem(clients.alice.patch(f"{BASE}/digits", json={"description": "x"}), 404, "backbone_not_found")
    problem(clients.alice.patch(f"{BASE}/digits/versions/2", json={"description": "x"}), 404, "version_not_found")
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    registry.add(number=3)
    assert texts(clients.alice) == ("", {}, "bob")


# --- changing them ----------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_each_field_changes_alone_and_each_change_is_audited(clients, registry):
    registry.add()
    alice = clients.alice
    assert alice.patch(f"{BASE}/digits", json={"labels": LABELS}).json()["labels"] == LABELS
    shown = alice.patch(f"{BASE}/digits", json={"description": "Line 1\nÄhre"}).json()
    assert (shown["description"], shown["labels"], shown["owner"]) == ("Line 1\nÄhre", LABELS, "alice")
    version = alice.patch(f"{BASE}/digits/versions/1", json={"labels": {"v": "1"}, "description": "one"}).json()
    assert (version["description"], version["labels"], version["version"]) == ("one", {"v": "1"}, 1)
    assert alice.patch(f"{BASE}/digits/versions/1", json={"labels": {}}).json()["labels"] == {}
    assert texts(alice, number=1) == ("one", {}, "alice")
    assert alice.get(BASE).json()["items"][0]["description"] == "Line 1\nÄhre"
    lines = clients.admin.get("/v1/audit").json()["items"]
    assert [(line["action"], line["target"], line["detail"]) for line in lines] == [
        ("backbone.change_version", "digits", {"version": 1, "changed": ["labels"], "labels": {}}),
        ("backbone.change_version", "digits",
         {"version": 1, "changed": ["description", "labels"], "labels": {"v": "1"}}),
        ("backbone.change", "digits", {"changed": ["description"]}),
        ("backbone.change", "digits", {"changed": ["labels"], "labels": LABELS}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"description": None}, "description"),
        ({"description": "x" * (names.DESCRIPTION_LENGTH + 1)}, "description"),
        ({"description": "\x1b[2J"}, "description"),
        ({"labels": {"a b": "c"}}, "labels"),
        ({"labels": {"a": ""}}, "labels"),
        ({"labels": {f"a{n}": "x" for n in range(33)}}, "labels"),
        ({"tags": {"a": "b"}}, "tags"),
        ({"version": 2}, "version"),
    ],
)
def test_what_labels_and_notes_of_jobs_may_not_be_these_may_not_be(api, registry, body, field):
    registry.add()
    for path in (f"{BASE}/digits", f"{BASE}/digits/versions/1"):
        found = problem(api.patch(path, json=body), 422, "spec_invalid")
        assert found["problems"][0]["field"] == field
        problem(api.patch(path, json={}), 422, "body_invalid")
    assert texts(api) == ("", {}, "alice")


def test_a_version_has_no_owner_to_change(api, registry):
    registry.add()
    problem(api.patch(f"{BASE}/digits/versions/1", json={"owner": "bob"}), 422, "spec_invalid")


# --- who may ----------------------------------------------------------------------------------------------------------


def of_two(registry: Registry, database: Database) -> None:
    """Alice's backbone, whose second version Bob has registered."""
    registry.add()
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    registry.add(number=2)


@pytest.mark.both_databases
def test_the_owner_of_a_version_and_that_of_its_backbone_may_change_it(clients, registry, database):
    of_two(registry, database)
    for number, statuses in ((1, (200, 403)), (2, (200, 200))):
        for client, status in zip((clients.alice, clients.bob), statuses, strict=True):
            body = {"description": f"by {status}"}
            assert client.patch(f"{BASE}/digits/versions/{number}", json=body).status_code == status
            answer = client.put(f"{BASE}/digits/aliases/of-{number}", json={"version": number})
            assert answer.status_code == status
    refused = problem(clients.bob.patch(f"{BASE}/digits", json={"description": "x"}), 403, "forbidden")
    assert "this is alice's: it needs the scope backbones" in refused["detail"]
    assert clients.operator.patch(f"{BASE}/digits", json={"description": "x"}).status_code == 200
    problem(clients.viewer.patch(f"{BASE}/digits", json={"description": "x"}), 403, "forbidden")
    assert clients.alice.delete(f"{BASE}/digits/aliases/of-2").status_code == 200, "Bob's version, in her backbone"
    assert clients.alice.delete(f"{BASE}/digits/versions/2").status_code == 200


@pytest.mark.both_databases
def test_who_is_given_a_backbone_may_do_all_with_it_and_the_giver_keeps_own_versions(clients, registry, database):
    of_two(registry, database)
    registry.set_alias("digits", "champion", 1)
    problem(clients.bob.put(f"{BASE}/digits/aliases/champion", json={"version": 2}), 403, "forbidden")
    problem(clients.bob.patch(f"{BASE}/digits", json={"owner": "bob"}), 403, "forbidden")
    assert clients.alice.patch(f"{BASE}/digits", json={"owner": "bob"}).json()["owner"] == "bob"
    line = clients.admin.get("/v1/audit").json()["items"][0]
    assert line["detail"] == {"changed": ["owner"], "owner": "bob", "before": "alice"}
    assert clients.bob.put(f"{BASE}/digits/aliases/champion", json={"version": 2}).status_code == 200
    assert clients.bob.patch(f"{BASE}/digits/versions/1", json={"labels": LABELS}).status_code == 200
    problem(clients.alice.patch(f"{BASE}/digits", json={"owner": "alice"}), 403, "forbidden")
    problem(clients.alice.put(f"{BASE}/digits/aliases/champion", json={"version": 1}), 403, "forbidden")
    assert clients.alice.patch(f"{BASE}/digits/versions/1", json={"description": "mine"}).status_code == 200
    assert clients.operator.patch(f"{BASE}/digits", json={"owner": "alice"}).status_code == 200
    assert texts(clients.bob) == ("", {}, "alice")


def test_a_backbone_is_given_only_to_somebody_with_a_valid_token(clients, registry, database):
    registry.add()
    ensure_token(database, "a-token-of-zoe-0123456789", "zoe", Role.SUBMITTER)
    for wrong in ("zoé", "nobody", ""):
        found = problem(clients.alice.patch(f"{BASE}/digits", json={"owner": wrong}), 422, "spec_invalid")
        assert found["problems"][0]["field"] == "owner"
    (token,) = [each for each in clients.admin.get("/v1/tokens").json()["items"] if each["owner"] == "zoe"]
    assert clients.alice.patch(f"{BASE}/digits", json={"owner": "zoe"}).status_code == 200
    assert clients.admin.delete(f"/v1/tokens/{token['id']}").status_code == 200
    assert clients.operator.patch(f"{BASE}/digits", json={"description": "x", "owner": "zoe"}).status_code == 200
    assert clients.operator.patch(f"{BASE}/digits", json={"owner": "alice"}).status_code == 200
    problem(clients.alice.patch(f"{BASE}/digits", json={"owner": "zoe"}), 422, "spec_invalid")


# --- copies in MLflow -------------------------------------------------------------------------------------------------


def copies(mlflow: FakeMlflow, number: int | None) -> tuple[str, dict[str, str]]:
    found = mlflow.all_models()["digits"] if number is None else mlflow.registered[number - 1]
    return found.description, {key.removeprefix(names.TAG_LABEL): value for key, value in found.copies.items()}


def test_mlflow_has_what_the_service_has_at_once_or_by_the_next_comparison(served, world, registry, mlflow):
    registry.add(method="mae")
    for number, path in ((None, f"{BASE}/digits"), (1, f"{BASE}/digits/versions/1")):
        served.patch(path, json={"description": "Said here.", "labels": LABELS})
        assert copies(mlflow, number) == ("Said here.", LABELS)
        mlflow.reachable = False
        assert served.patch(path, json={"description": "", "labels": {"team": "sound"}}).status_code == 200
        mlflow.reachable = True
        assert copies(mlflow, number) == ("Said here.", LABELS)
        world.compare_versions()
        assert copies(mlflow, number) == ("", {"team": "sound"})
    assert mlflow.registered[0].tags["rcmae.method"] == "mae"
    shown = served.get(f"{BASE}/digits/versions/1").json()
    assert shown["labels"] == {"team": "sound"}
    assert not [key for key in shown["tags"] if key.startswith(names.TAG_LABEL)], "the copies are no tags of its own"
    del mlflow.described[:]
    world.compare_versions()
    assert mlflow.described == [], "nothing differs"


def test_labels_whose_names_mlflow_refuses_stay_here_and_hold_up_no_other(served, world, registry, mlflow):
    registry.add()
    refused = {"a//b": "x", "a/./b": "y", "a/../b": "z"}
    for number, path in ((None, f"{BASE}/digits"), (1, f"{BASE}/digits/versions/1")):
        assert served.patch(path, json={"labels": LABELS | refused | {"a/b": "w"}}).json()["labels"].keys() >= {
            *refused
        }
        assert copies(mlflow, number)[1] == LABELS | {"a/b": "w"}
    del mlflow.described[:]
    world.compare_versions()
    assert mlflow.described == [], "nothing is tried again"


def test_mlflow_forgets_what_was_said_of_a_backbone_with_its_last_version(served, world, registry, mlflow, database):
    """Else the next backbone of that name, perhaps somebody else's, would take it over from there."""
    registry.add()
    served.patch(f"{BASE}/digits", json={"description": "Alice's.", "labels": LABELS})
    assert served.delete(f"{BASE}/digits/versions/1").status_code == 200
    world.rounds()
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    registry.add(number=2)
    world.compare_versions()
    assert texts(served) == ("", {}, "bob")
    assert mlflow.all_models()["digits"].description == ""


def test_what_mlflow_says_of_a_deleted_backbone_is_not_said_of_one_that_comes_before_its_removal(
    served, world, registry, mlflow, database
):
    registry.add()
    served.patch(f"{BASE}/digits", json={"description": "Alice's.", "labels": LABELS})
    assert served.delete(f"{BASE}/digits/versions/1").status_code == 200
    registry.jobs["digits"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="digits"))
    registry.add(number=2)
    world.rounds()
    world.compare_versions()
    assert texts(served) == ("", {}, "bob")
    assert copies(mlflow, None) == ("", {})


def test_what_others_say_in_mlflow_of_a_model_with_versions_of_theirs_stays(served, world, registry, mlflow):
    registry.add()
    mlflow.register("digits", 2, None, registry.folder("digits", 2))
    served.patch(f"{BASE}/digits", json={"labels": LABELS})
    mlflow.describe("digits", None, "Theirs.", {f"{names.TAG_LABEL}team": "vision"})
    assert served.delete(f"{BASE}/digits/versions/1").status_code == 200
    world.rounds()
    assert copies(mlflow, None) == ("Theirs.", {})


def test_labels_of_a_run_are_copied_by_the_comparison_that_finds_its_version(registry, mlflow, database):
    with_job(registry, database, labels=LABELS, notes="Of the run.")
    assert copies(mlflow, 1) == ("Of the run.", LABELS)


def test_what_somebody_wrote_in_mlflow_is_reset_once_the_service_has_words_of_its_own(served, world, registry, mlflow):
    registry.add()
    mlflow.describe("digits", 1, "By hand.", {f"{names.TAG_LABEL}team": "theirs"})
    mlflow.describe("digits", None, "All by hand.", {})
    world.compare_versions()
    assert texts(served, number=1)[:2] == ("By hand.", {}), "nobody had described it here: taken over; labels are ours"
    assert texts(served)[0] == "All by hand."
    assert copies(mlflow, 1) == ("By hand.", {})
    mlflow.describe("digits", 1, "Changed by hand.", {})
    mlflow.describe("digits", None, "", {})
    world.compare_versions()
    assert texts(served, number=1)[0] == "By hand."
    assert (copies(mlflow, 1)[0], copies(mlflow, None)[0]) == ("By hand.", "All by hand.")


def test_a_version_that_mlflow_refuses_to_describe_holds_up_no_other(served, world, registry, mlflow, monkeypatch):
    for number in (1, 2):
        registry.add(number=number)
    stale = mlflow.all_versions()
    mlflow.reachable = False
    for number in (1, 2):
        served.patch(f"{BASE}/digits/versions/{number}", json={"description": "x"})
    mlflow.reachable = True
    mlflow.registered.pop(0)  # deleted there after it was listed
    monkeypatch.setattr(mlflow, "all_versions", lambda: stale)
    world.compare_versions()
    assert mlflow.registered[0].description == "x"


def test_what_is_searched_follows_every_change(api, registry, database):
    registry.add()
    api.patch(f"{BASE}/digits", json={"description": "GROẞE Ähren"})
    api.patch(f"{BASE}/digits/versions/1", json={"labels": LABELS})
    with database.read() as session:
        backbone = session.get_one(RegisteredBackbone, "digits")
        version = session.get_one(BackboneVersion, ("digits", 1))
    assert backbone.search_text == "grosse ähren"
    assert version.search_text.splitlines() == ["digits", "builtin://digits", "", "team:vision", "site:north"]
