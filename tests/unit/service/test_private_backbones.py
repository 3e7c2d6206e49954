"""Private backbones: who sees them at each door, and how a backbone becomes one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from backbone_files import FILES, Registry, compare_with_mlflow, write
from conftest import Clients, token_of
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from service_fakes import add_job, job_of, problem, spec_with
from sqlalchemy import update
from test_roles import Asker, declared
from webhook_receiver import add_webhook, rows

from service.auth.caller import ensure_token
from service.auth.scopes import Role
from service.db.database import Database
from service.db.tables import BackboneReader, BackboneVersion, Job, RegisteredBackbone, Token, now
from trainer.protocol.outcome import Outcome

BASE = "/v1/backbones"
HUB = "/hf/api/models"
OTHERS = {"dora": Role.SUBMITTER, "erin": Role.SUBMITTER}
"""Further owners of tokens, besides those of `conftest.ROLES`."""


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def close(database: Database, name: str, *readers: str) -> None:
    """Make a backbone private, straight in the database."""
    with database.session() as session:
        session.get_one(RegisteredBackbone, name).visibility = "readers" if readers else "owners"
        session.add_all(BackboneReader(name=name, reader=reader) for reader in readers)


def client_of(app: FastAPI, owner: str) -> TestClient:
    """A client that sends a token, and has logged in for the pages."""
    client = TestClient(app, headers={"Authorization": f"Bearer {token_of(owner)}"}, follow_redirects=False)
    assert client.post("/login", data={"token": token_of(owner)}).status_code == 303
    return client


@pytest.fixture
def people(app: FastAPI, clients: Clients, database: Database) -> dict[str, TestClient]:  # noqa: ARG001 - they start it
    """A client of each owner of tokens: alice owns what is private, bob one of its versions, dora may be a reader."""
    for owner, role in OTHERS.items():
        ensure_token(database, token_of(owner), owner, role)
    return {owner: client_of(app, owner) for owner in ("alice", "bob", "viewer", "operator", "admin", *OTHERS)}


# --- every route ------------------------------------------------------------------------------------------------------


def routes_of_one(app: FastAPI) -> list[str]:
    """Every route that names a backbone or its repository."""
    named = ("backbones/{name}", "{repo}", "/backbone-comparison")
    return [route for route in declared(app) if any(part in route for part in named)]


@dataclass
class Door:
    """A route of a backbone of alice's, of whose versions bob owns the second."""

    asker: Asker
    database: Database
    route: str
    readers: tuple[str, ...]

    def __post_init__(self) -> None:
        self.asked = self.asker.request_of(self.route, "alice")
        self.name = re.findall(r"of-alice-[0-9]+", f"{self.asked.path} {self.asked.query}")[0]
        close(self.database, self.name, *self.readers)
        with self.database.session() as session:
            session.get_one(BackboneVersion, (self.name, 2)).owner = "bob"

    def answer(self, client: TestClient, name: str | None = None) -> Response:
        """The answer about the backbone, or about one of another name."""
        texts = {key: self._named(str(value), name) for key, value in self.asked.query.items()}
        path = self._named(self.asked.path, name)
        return client.request(self.asked.method, path, params=texts, json=self.asked.body)

    def _named(self, text: str, name: str | None) -> str:
        return text.replace(self.name, name) if name else text

    def shown(self, client: TestClient, name: str | None = None) -> tuple[int, dict[str, str], str]:
        """Status, headers and body, as of the backbone's own name and of one request."""
        answer = self.answer(client, name)
        request_id = answer.headers["x-request-id"]
        headers = {key: self._back(value, name, request_id) for key, value in answer.headers.items()}
        return answer.status_code, headers, self._back(answer.text, name, request_id)

    def _back(self, text: str, name: str | None, request_id: str) -> str:
        return (text.replace(name, self.name) if name else text).replace(request_id, "ID")


@pytest.mark.parametrize("readers", [(), ("dora",)], ids=["owners", "readers"])
def test_who_sees_a_private_backbone_at_every_route_and_what_others_are_told(
    app, people, searches, root, database, readers
):
    """A new route of backbones is walked by itself. To others it is as if there were none of that name."""
    routes = routes_of_one(app)
    assert len(routes) > 30
    seers = {"alice", "bob", "operator", "admin", *readers}
    asker = Asker(searches, root)
    for route in routes:
        door = Door(asker, database, route, readers)
        missing = door.name.replace("of-", "no-")
        for owner in sorted({*people} - seers):
            assert door.shown(people[owner]) == door.shown(people[owner], missing), f"{route} by {owner}"
            assert door.answer(people[owner]).status_code in {403, 404}, f"{route} by {owner}"
        changes = route.split()[0] not in {"GET", "HEAD"} and "paths-info" not in route
        for owner in sorted(seers):
            if changes:
                door = Door(asker, database, route, readers)
            assert door.answer(people[owner]).status_code != 404, f"{route} by {owner}"


# --- lists ------------------------------------------------------------------------------------------------------------


def rest_names(answer: Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["name"] for item in answer.json()["items"]]


def pages(client: TestClient, query: str) -> list[list[str]]:
    """The names on each page of a list of backbones."""
    found, cursor = [], ""
    while True:
        answer = client.get(f"{BASE}?{query}{cursor}")
        found.append(rest_names(answer))
        if answer.json()["next_cursor"] is None:
            return found
        cursor = f"&cursor={answer.json()['next_cursor']}"


def hub_pages(client: TestClient, query: str) -> list[list[str]]:
    found, url = [], f"{HUB}?{query}"
    while url:
        answer = client.get(url)
        found.append([item["id"].removeprefix("rcmae/") for item in answer.json()])
        url = answer.links.get("next", {}).get("url", "")
    return found


def flat(lists: list[list[str]]) -> list[str]:
    return [name for each in lists for name in each]


@pytest.mark.both_databases
def test_pages_of_lists_are_full_and_lead_to_each_other_with_private_backbones_in_between(people, registry, database):
    """Each third one is alice's alone, and each third one has a version of bob's too or names him."""
    for number in range(9):
        registry.add(f"b{number}", formats="hf", metrics={"eval/x": float(number)})
        if number % 3:
            close(database, f"b{number}", *(["bob"] if number in {2, 8} else []))
        if number == 5:
            with database.session() as session:
                session.get_one(BackboneVersion, ("b5", 1)).owner = "bob"
    whole = [f"b{number}" for number in range(9)]
    seen = {"dora": ["b0", "b3", "b6"], "viewer": ["b0", "b3", "b6"], "alice": whole, "operator": whole, "admin": whole}
    seen["bob"] = ["b0", "b2", "b3", "b5", "b6", "b8"]
    for owner, names in seen.items():
        client = people[owner]
        halves = [names[at : at + 2] for at in range(0, len(names), 2)]
        assert pages(client, "limit=2") == halves, owner
        assert pages(client, "limit=2&sort=eval/x") == halves, owner
        assert flat(pages(client, "limit=2&sort=-eval/x&owner=alice")) == names[::-1], owner
        assert flat(pages(client, "search=b")) == flat(pages(client, "name_contains=b")) == names, owner
        assert hub_pages(client, "limit=2") == halves, owner
        assert flat(hub_pages(client, "limit=2&sort=createdAt")) == names[::-1], owner
        page = client.get("/backbones").text
        assert [name for name in whole if f'href="/backbones/{name}"' in page] == names, owner


def test_no_list_tells_what_only_private_backbones_have(people, registry, database):
    registry.add("open", formats="hf", metrics={"eval/linear_top1": 0.5})
    registry.add("closed", formats="hf", metrics={"eval/secret_top1": 0.5}, method="rc_mae")
    close(database, "closed")
    told = {
        owner: problem(people[owner].get(f"{BASE}?filter=eval/secret_top2 > 0"), 422, "parameter_invalid")["detail"]
        for owner in ("alice", "dora")
    }
    assert "eval/secret_top1" in told["alice"]
    assert "secret_top1" not in told["dora"]
    hidden = people["dora"].get(f"{BASE}?filter=eval/secret_top1 > 0")
    assert problem(hidden, 422, "parameter_invalid"), "as of a metric that nothing has"
    assert rest_names(people["alice"].get(f"{BASE}?filter=eval/secret_top1 > 0")) == ["closed"]
    for query in ("method=rc_mae", "search=closed", "owner=alice&name_contains=clo"):
        assert rest_names(people["dora"].get(f"{BASE}?{query}")) == []
        assert rest_names(people["alice"].get(f"{BASE}?{query}")) == ["closed"]
    home = {owner: people[owner].get("/").text for owner in ("alice", "dora")}
    assert ("/backbones/closed" in home["alice"], "/backbones/closed" in home["dora"]) == (True, False)
    assert "/backbones/open" in home["dora"]


def test_the_repository_of_another_format_is_found_beside_a_private_backbone_of_that_name(people, registry, database):
    """As if the older backbone with the name of a repository did not exist."""
    registry.add("x", files=FILES | {"onnx/model.onnx": b"x"}, formats="hf,onnx")
    registry.add("y", formats="hf")
    with database.session() as session:  # as one that is older than this ending
        for table in (RegisteredBackbone, BackboneVersion):
            session.execute(update(table).where(table.name == "y").values(name="x-onnx"))
    ids = {owner: flat(hub_pages(people[owner], "")) for owner in ("alice", "dora")}
    assert ids["dora"] == ids["alice"] == ["x", "x-onnx"]
    close(database, "x-onnx")
    libraries = {owner: people[owner].get(f"{HUB}/rcmae/x-onnx").json()["library_name"] for owner in ("alice", "dora")}
    assert libraries == {"alice": "transformers", "dora": "onnx"}
    assert flat(hub_pages(people["dora"], "")) == ["x", "x-onnx"]


# --- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_an_owner_makes_a_backbone_private_names_readers_and_opens_it_again(people, registry, clients):
    registry.add("digits")
    alice, path = people["alice"], f"{BASE}/digits"
    assert (alice.get(path).json()["visibility"], alice.get(path).json()["readers"]) == ("all", [])
    steps: list[tuple[dict[str, Any], str, list[str], set[str]]] = [
        ({"visibility": "owners"}, "owners", [], set()),
        ({"visibility": "readers", "readers": ["dora", "bob", "dora"]}, "readers", ["bob", "dora"], {"bob", "dora"}),
        ({"readers": ["dora"]}, "readers", ["dora"], {"dora"}),
        ({"description": "x"}, "readers", ["dora"], {"dora"}),
        ({"visibility": "owners"}, "owners", [], set()),
        ({"visibility": "all"}, "all", [], {"bob", "dora", "erin", "viewer"}),
    ]
    for body, visibility, readers, seers in steps:
        shown = alice.patch(path, json=body).json()
        assert (shown["visibility"], shown["readers"]) == (visibility, readers), body
        assert {owner for owner, client in people.items() if client.get(path).status_code == 200} == {
            *("alice", "operator", "admin"),
            *seers,
        }, body
    problem(people["dora"].patch(path, json={"visibility": "owners"}), 403, "forbidden")
    lines = [line["detail"] for line in clients.admin.get("/v1/audit?action=backbone.change").json()["items"]]
    assert lines[1:][::-1] == [
        {"changed": ["visibility"], "visibility": "owners"},
        {"changed": ["readers", "visibility"], "visibility": "readers", "readers": ["bob", "dora"]},
        {"changed": ["readers"], "readers": ["dora"]},
        {"changed": ["description"]},
        {"changed": ["readers", "visibility"], "visibility": "owners", "readers": []},
        {"changed": ["visibility"], "visibility": "all"},
    ]


def test_the_page_says_who_sees_a_backbone_and_its_owner_changes_that_there(people, registry, database):
    registry.add("digits")
    open_to_all = people["alice"].get("/backbones/digits").text
    assert "seen by its owners" not in open_to_all
    assert '<option value="all" selected>' in open_to_all
    close(database, "digits", "bob", "dora")
    shown = people["alice"].get("/backbones/digits").text
    assert '<option value="readers" selected>' in shown
    assert 'name="readers" data-type="list" data-empty="" value="bob, dora"' in shown
    assert "artifact storage or a backup reads it all the same" in shown
    assert "seen by its owners" in people["bob"].get("/backbones/digits").text
    assert 'name="readers"' not in people["bob"].get("/backbones/digits").text
    assert "private" in people["dora"].get("/backbones").text


@pytest.mark.parametrize(
    ("before", "body", "says"),
    [
        ((), {"visibility": "readers"}, "name at least one"),
        (("bob",), {"readers": []}, "or use `owners`"),
        ((), {"readers": ["bob"]}, "set visibility to `readers` too"),
        (("bob",), {"visibility": "owners", "readers": ["bob"]}, "its visibility is 'owners', which has no readers"),
        (("bob",), {"readers": ["bob", "nobody"]}, "nobody of this name has a valid token"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_and_changes_nothing(people, registry, database, before, body, says):
    registry.add("digits")
    if before:
        close(database, "digits", *before)
    path = f"{BASE}/digits"
    found = problem(people["alice"].patch(path, json=body), 422, "spec_invalid")
    assert [each["field"] for each in found["problems"]] == ["readers"]
    assert says in found["detail"]
    assert people["alice"].get(path).json()["readers"] == list(before)


def test_whoever_gives_a_private_backbone_away_is_shown_it_once_more(people, registry, database):
    registry.add("digits")
    close(database, "digits")
    with database.session() as session:
        session.get_one(RegisteredBackbone, "digits").owner = "dora"
    dora, path = people["dora"], f"{BASE}/digits"
    assert dora.patch(path, json={"owner": "erin"}).json()["owner"] == "erin"
    problem(dora.get(path), 404, "backbone_not_found")
    assert people["alice"].get(path).status_code == 200, "who owns a version"


@pytest.mark.both_databases
def test_the_last_version_of_somebody_elses_backbone_is_not_deleted_for_its_rules_would_go_too(
    people, registry, database
):
    """The next version of the name would make whoever trained it the owner, without a rule and open to all."""
    for number in (1, 2):
        registry.add("digits", number)
    alice, path = people["alice"], f"{BASE}/digits"
    assert alice.patch(path, json={"owner": "operator"}).status_code == 200
    close(database, "digits", "erin")
    assert people["operator"].put(f"{path}/champion-rule", json={"not_by_owner": True}).status_code == 200
    job = f"/v1/jobs/{registry.jobs['digits']}?with_backbones=true"
    assert "digits:2 is the last version of digits" in problem(alice.delete(job), 403, "forbidden")["detail"]
    assert alice.get(path).json()["versions"] == [1, 2]
    assert alice.delete(f"{path}/versions/2").status_code == 200
    for answer in (
        alice.delete(f"{path}/versions/1"),
        alice.delete(f"{path}/versions/1?preview=true"),
        alice.delete(job),
    ):
        found = problem(answer, 403, "forbidden")
        assert "digits:1 is the last version of digits, which is operator's" in found["detail"]
    shown = alice.get(path).json()
    assert (shown["owner"], shown["readers"], shown["champion_rule"]["not_by_owner"]) == ("operator", ["erin"], True)
    assert people["operator"].delete(f"{path}/versions/1").status_code == 200


def test_owners_of_deleted_versions_see_a_backbone_no_more(people, registry, database):
    for number in (1, 2):
        registry.add("digits", number)
    with database.session() as session:
        session.get_one(BackboneVersion, ("digits", 2)).owner = "bob"
    close(database, "digits")
    assert people["bob"].delete(f"{BASE}/digits/versions/2").status_code == 200
    problem(people["bob"].get(f"{BASE}/digits"), 404, "backbone_not_found")


# --- from the first version on ----------------------------------------------------------------------------------------


def visibility_of(database: Database, name: str) -> str:
    with database.read() as session:
        return session.get_one(RegisteredBackbone, name).visibility


def test_a_job_makes_its_backbone_private_and_changes_none_that_is_there(people, registry, database):
    spec = spec_with(register_as="digits", export={"visibility": "owners"})
    registry.jobs["digits"] = add_job(database, "succeeded", spec=spec)
    registry.add("digits")
    assert visibility_of(database, "digits") == "owners"
    problem(people["dora"].get(f"{BASE}/digits"), 404, "backbone_not_found")
    people["alice"].patch(f"{BASE}/digits", json={"visibility": "all"})
    registry.add("digits", 2)
    assert visibility_of(database, "digits") == "all"
    planned = people["alice"].post("/v1/jobs/plan", json=spec).json()["warnings"]
    (warning,) = [each for each in planned if each["code"] == "visibility_kept"]
    assert "digits is open to all already: it stays so" in warning["message"]
    others = people["alice"].post("/v1/jobs/plan", json=spec | {"register_as": "cats"}).json()["warnings"]
    assert "visibility_kept" not in {each["code"] for each in others}


def test_an_import_makes_its_backbone_private(people, registry, database):
    job = add_job(database, "succeeded", kind="import")
    spec = {
        "kind": "import",
        "source": {"uri": "s3://models/x"},
        "register_as": "digits",
        "origin": {"name": "x"},
        "license": "mit",
        "export": {"visibility": "owners"},
    }
    with database.session() as session:
        session.get_one(Job, job).spec = spec
    registry.jobs["digits"] = job
    registry.add("digits")
    assert visibility_of(database, "digits") == "owners"
    people["alice"].patch(f"{BASE}/digits", json={"visibility": "all"})
    warnings = people["alice"].post("/v1/jobs/plan", json=spec).json()["warnings"]
    assert [each["code"] for each in warnings] == ["visibility_kept"]


def test_whoever_is_to_approve_a_champion_sees_the_backbone(people, registry, database):
    registry.add("digits")
    close(database, "digits", "erin")
    rule = {"approvers": ["erin", "dora"]}
    wrong = problem(people["alice"].put(f"{BASE}/digits/champion-rule", json=rule), 422, "spec_invalid")
    assert [each["field"] for each in wrong["problems"]] == ["approvers.1"]
    people["alice"].patch(f"{BASE}/digits", json={"readers": ["erin", "dora"]})
    assert people["alice"].put(f"{BASE}/digits/champion-rule", json=rule).status_code == 200
    for body in ({"readers": ["dora"]}, {"visibility": "owners"}):
        wrong = problem(people["alice"].patch(f"{BASE}/digits", json=body), 422, "spec_invalid")
        assert "erin" in wrong["problems"][0]["message"]
    assert people["erin"].get(f"{BASE}/digits").json()["readers"] == ["dora", "erin"]
    assert people["dora"].put(f"{BASE}/digits/aliases/champion", json={"version": 1}).status_code == 200


def test_whoever_gives_a_backbone_away_does_not_hide_it_from_its_approvers(people, registry, database):
    registry.add("digits", owner="operator")
    with database.session() as session:
        session.get_one(RegisteredBackbone, "digits").owner = "alice"
    close(database, "digits")
    alice, path = people["alice"], f"{BASE}/digits"
    assert alice.put(f"{path}/champion-rule", json={"approvers": ["alice"]}).status_code == 200
    (wrong,) = problem(alice.patch(path, json={"owner": "bob"}), 422, "spec_invalid")["problems"]
    assert (wrong["field"], wrong["value"]) == ("owner", "bob")
    assert "alice, whom the champion's rule names as approvers, would not see it" in wrong["message"]
    assert alice.get(path).json()["owner"] == "alice"
    given = {"owner": "bob", "visibility": "readers", "readers": ["alice"]}
    assert alice.patch(path, json=given).json()["owner"] == "bob"
    assert alice.put(f"{path}/aliases/champion", json={"version": 1}).status_code == 200


@pytest.mark.parametrize(
    ("trained", "own", "deleted", "found"),
    [
        ("owners", None, False, "owners"),
        ("owners", "all", False, "all"),
        ("all", "owners", False, "owners"),
        ("all", None, False, "all"),
        ("all", None, True, "owners"),
    ],
)
def test_a_published_checkpoint_is_as_private_as_its_training_asked(
    database, mlflow, root, trained, own, deleted, found
):
    source = add_job(database, "succeeded", spec=spec_with(export={"visibility": trained}))
    publishing = add_job(database, "succeeded", kind="publish", owner="operator")
    with database.session() as session:
        spec = {"kind": "publish", "job": source, "register_as": "late", "export": {"visibility": own}}
        session.get_one(Job, publishing).spec = spec
    if deleted:
        with database.session() as session:
            session.delete(session.get_one(Job, source))
    mlflow.register("late", 1, publishing, write(root / "late", FILES))
    compare_with_mlflow(database, mlflow)
    assert visibility_of(database, "late") == found


# --- names that are taken ---------------------------------------------------------------------------------------------


def test_a_job_is_refused_the_name_of_a_private_backbone_that_its_owner_does_not_see(people, registry, database):
    registry.add("digits")
    spec = spec_with(register_as="digits")
    assert people["dora"].post("/v1/jobs", json=spec).status_code == 201, "anybody's, if it is open to all"
    registry.add("digits", 2)
    with database.session() as session:
        session.get_one(BackboneVersion, ("digits", 2)).owner = "bob"
    close(database, "digits", "erin")
    for path in ("/v1/jobs", "/v1/jobs/plan"):
        for owner, says in (
            ("dora", "the name of a private backbone of others"),
            ("erin", "that you may read: only its"),
        ):
            found = problem(people[owner].post(path, json=spec), 422, "spec_invalid")
            assert [each["field"] for each in found["problems"]] == ["register_as"]
            assert says in found["detail"]
        for owner in ("bob", "alice", "operator"):
            assert people[owner].post(path, json=spec).status_code in {200, 201}, owner


@pytest.mark.both_databases
def test_a_reader_does_not_become_an_owner_by_a_job_that_began_before(people, registry, database):
    """Owners of a version see the backbone for good, whatever its owner decides later."""
    registry.add("digits")
    registry.jobs["digits"] = add_job(database, "succeeded", owner="dora", spec=spec_with(register_as="digits"))
    close(database, "digits", "dora")
    registry.add("digits", 2)
    path = f"{BASE}/digits"
    assert people["dora"].get(path).json()["versions"] == [1]
    people["alice"].patch(path, json={"visibility": "owners"})
    problem(people["dora"].get(path), 404, "backbone_not_found")


@pytest.mark.both_databases
@pytest.mark.parametrize("owner", ["alice", "operator"])
def test_a_long_training_is_not_lost_to_a_token_that_ends_meanwhile(people, registry, database, owner):
    registry.add("digits")
    close(database, "digits")
    registry.jobs["digits"] = add_job(database, "running", owner=owner, spec=spec_with(register_as="digits"))
    with database.session() as session:
        session.execute(update(Token).where(Token.owner == owner).values(revoked_at=now()))
    registry.add("digits", 2)
    assert people["admin"].get(f"{BASE}/digits").json()["versions"] == [1, 2]


def test_whoever_was_an_operator_before_they_submitted_a_job_joins_no_private_backbone(people, registry, database):
    registry.add("digits")
    close(database, "digits")
    with database.session() as session:
        session.execute(update(Token).where(Token.owner == "operator").values(revoked_at=now()))
    registry.jobs["digits"] = add_job(database, "running", owner="operator", spec=spec_with(register_as="digits"))
    registry.add("digits", 2)
    assert people["admin"].get(f"{BASE}/digits").json()["versions"] == [1]


@pytest.mark.both_databases
def test_a_version_joins_no_backbone_that_became_private_to_others_meanwhile(world, served, registry, mlflow, root):
    database, path = world.database, f"{BASE}/digits"
    job_id = world.running(owner="dora", spec=spec_with(register_as="digits"))
    ensure_token(database, token_of("dora"), "dora", Role.SUBMITTER)
    dora = TestClient(served.app, headers={"Authorization": f"Bearer {token_of('dora')}"})
    registry.add("digits")
    close(database, "digits")
    mlflow.register("digits", 2, job_id, f"file://{write(root / 'two', FILES)}")
    world.end_attempt(job_id, Outcome(state="succeeded", message="Done."))
    world.rounds()
    world.compare_versions()
    ended = job_of(database, job_id)
    assert ended.state == "succeeded"
    assert "digits is a private backbone of others by now, so this version of it is not served" in ended.message
    assert not (ended.result or {}).get("backbones")
    assert served.get(path).json()["versions"] == [1]
    problem(dora.get(path), 404, "backbone_not_found")
    assert served.patch(path, json={"visibility": "readers", "readers": ["dora"]}).status_code == 200
    world.compare_versions()
    assert dora.get(path).json()["versions"] == [1], "a reader owns nothing of it"
    assert served.patch(path, json={"visibility": "all"}).status_code == 200
    world.compare_versions()
    assert dora.get(path).json()["versions"] == [1, 2], "once its owner lets her"
    joined = job_of(database, job_id)
    assert [ref["version"] for ref in joined.result["backbones"]] == [2], "the job's lineage has it too"
    assert joined.result["backbone"]["version"] == 2
    assert joined.message == "Training is complete. Version 2 of digits is served now."


def test_removing_a_job_of_others_leaves_the_version_whose_number_mlflow_gave_to_theirs(
    people, registry, database, mlflow, world
):
    """The last row of a backbone takes its owner, its visibility and its rules with it."""
    registry.add("digits")
    close(database, "digits", "erin")
    mlflow.registered.clear()
    job_id = add_job(database, "succeeded", owner="dora", spec=spec_with(register_as="digits"))
    folder = write(registry.folder("digits", 2), FILES)
    mlflow.register("digits", 1, job_id, f"file://{folder}")
    assert people["dora"].delete(f"/v1/jobs/{job_id}?with_backbones=true").status_code == 200
    world.rounds()
    with database.read() as session:
        assert session.get(Job, job_id) is None
    assert not mlflow.registered
    shown = people["erin"].get(f"{BASE}/digits").json()
    assert (shown["owner"], shown["visibility"], shown["readers"]) == ("alice", "readers", ["erin"])
    assert [each["version"] for each in shown["details"]] == [1]


# --- webhooks ---------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_webhooks_hear_of_a_private_backbone_only_where_their_owner_sees_it(people, registry, database):
    hooks = {owner: add_webhook(database, owner=owner) for owner in ("alice", "bob", "dora", "erin")}
    hooks["operator"] = add_webhook(database, owner="operator")
    spec = spec_with(register_as="digits", export={"visibility": "owners"})
    registry.jobs["digits"] = add_job(database, "succeeded", spec=spec)
    registry.add("digits", 1)
    heard = {"alice": ["version.registered"], "operator": ["version.registered"]}

    def told() -> dict[str, list[str]]:
        found = {owner: [row.type for row in rows(database) if row.webhook_id == hook] for owner, hook in hooks.items()}
        return {owner: types for owner, types in found.items() if types}

    assert told() == heard
    people["alice"].patch(f"{BASE}/digits", json={"visibility": "readers", "readers": ["dora"]})
    people["alice"].put(f"{BASE}/digits/aliases/best", json={"version": 1})
    people["alice"].delete(f"{BASE}/digits/aliases/best")
    assert told() == {owner: [*heard.get(owner, []), "alias.moved", "alias.moved"] for owner in (*heard, "dora")}
    people["alice"].delete(f"{BASE}/digits/versions/1")
    assert told()["dora"][0] == "alias.moved"
    last = {owner for owner, types in told().items() if types[-1] == "version.deleted"}
    assert last == {"alice", "operator", "dora"}, "whoever saw it, although nothing is left to be seen"


@pytest.mark.both_databases
def test_what_a_webhooks_owner_sees_no_more_does_not_come_back_when_the_backbone_is_gone(people, registry, database):
    """Without the row of a backbone, which says who sees it, all that was told of it would be shown and sent."""
    hooks = {owner: add_webhook(database, owner=owner) for owner in ("dora", "bob")}
    for number in (1, 2):
        registry.add("digits", number)
    with database.session() as session:
        session.get_one(BackboneVersion, ("digits", 2)).owner = "bob"

    def kinds(owner: str) -> list[str]:
        items = people[owner].get(f"/v1/webhooks/{hooks[owner]}/deliveries").json()["items"]
        return [item["type"] for item in items]

    assert kinds("dora") == kinds("bob") == ["version.registered"] * 2
    people["alice"].patch(f"{BASE}/digits", json={"visibility": "owners"})
    assert kinds("dora") == []
    for number in (1, 2):
        assert people["alice"].delete(f"{BASE}/digits/versions/{number}").status_code == 200
    assert kinds("dora") == []
    assert kinds("bob") == ["version.deleted"] * 2 + ["version.registered"] * 2, "he saw it to the end"
    assert not [row for row in rows(database) if row.webhook_id == hooks["dora"]], "nothing is left to be sent"
