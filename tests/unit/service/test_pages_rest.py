"""The pages of backbones, of the cluster, of tokens and of the audit log."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from backbone_files import FILES, Registry, compare_with_mlflow
from conftest import token_of
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, spec_with
from sqlalchemy import delete, select, update

from service.adapters.ray_cluster import Machine
from service.auth.caller import ensure_token, sha256
from service.auth.scopes import Role
from service.auth.sessions import CSRF_HEADER
from service.db.database import Database
from service.db.tables import Attempt, RegistryCheck, Token, now
from trainer.spec.cluster import NodeShape

CARD = """---
license: apache-2.0
---
# digits

![Curves](card/curves.png) ![From elsewhere](https://elsewhere.example/x.png)

[the spec](spec.json) [elsewhere](https://elsewhere.example/) [bad](javascript:alert(1)) <script>alert(1)</script>

| what | value |
|---|---|
| data | `<b>bold</b>` |

### transformers

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("rcmae/digits")
model = AutoModel.from_pretrained("rcmae/digits", add_pooling_layer=False).eval()
```

### timm

```python
import timm

model = timm.create_model("hf-hub:rcmae/digits-timm", pretrained=True).eval()
```

### MLflow

```python
import mlflow

folder = mlflow.artifacts.download_artifacts("models:/digits/latest")  # or models:/digits@champion
```
"""


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def page(browser: TestClient, path: str, status: int = 200, **query: Any) -> str:
    answer = browser.get(path, params=query or None)
    assert answer.status_code == status, answer.text
    return unescape(answer.text)


def csrf(browser: TestClient) -> dict[str, str]:
    return {CSRF_HEADER: browser.get("/tokens").text.partition('name="csrf" content="')[2].partition('"')[0]}


def controls(text: str) -> set[str]:
    """What a page offers to do over REST."""
    return set(re.findall(r'data-action="([^"]*)"', text))


# --- backbones --------------------------------------------------------------------------------------------------------


def in_order(text: str, *names: str) -> bool:
    places = [text.index(f'id="backbone-{name}"') for name in names]
    return places == sorted(places)


def test_the_list_is_sorted_and_narrowed_as_over_rest(browsers, registry):
    registry.add("cats", metrics={"eval/linear_top1": 0.25}, method="mae", formats="timm,hf")
    registry.add("dogs", metrics={"eval/linear_top1": 0.75}, method="rc_mae", formats="onnx")
    registry.add("xrays", method="rc_mae", formats="hf")
    registry.set_alias("dogs", "champion", 1)
    text = page(browsers.alice, "/backbones")
    assert in_order(text, "cats", "dogs", "xrays")
    for shown in ("0.25", "0.75", "timm, hf", "champion → 1", "linear_top1"):
        assert shown in text
    assert in_order(page(browsers.alice, "/backbones", sort="-eval/linear_top1"), "dogs", "cats", "xrays")
    assert 'aria-sort="descending"' in page(browsers.alice, "/backbones", sort="-eval/linear_top1")
    for query in ({"method": "rc_mae"}, {"alias": "champion"}, {"format": "onnx"}, {"name_contains": "dog"}):
        found = page(browsers.alice, "/backbones", **query)
        assert 'id="backbone-dogs"' in found, query
        assert 'id="backbone-cats"' not in found, query
    assert "No backbone matches the filters" in page(browsers.alice, "/backbones", name_contains="zebra")
    assert 'id="backbone-cats"' in page(browsers.alice, "/backbones", name_contains="", format="", sort="")


def described(browsers, registry: Registry) -> None:
    """Alice's cats, described and labelled, and Bob's dogs."""
    registry.add("cats", metrics={"eval/linear_top1": 0.25})
    registry.add("dogs", owner="bob", metrics={"eval/linear_top1": 0.75})
    body = {"description": "\n<b>Whiskers</b>\nSecond line", "labels": {"team": "vision"}}
    assert browsers.alice.patch("/v1/backbones/cats", json=body, headers=csrf(browsers.alice)).status_code == 200


def test_the_list_shows_owners_first_lines_and_labels_and_its_form_keeps_the_filters(browsers, registry):
    described(browsers, registry)
    raw = browsers.alice.get("/backbones").text
    assert "&lt;b&gt;Whiskers&lt;/b&gt;" in raw
    assert "Second line" not in raw
    assert 'href="/backbones?label=team%3Avision"' in raw
    assert "<bdi>bob</bdi>" in raw
    for query, there, absent in (
        ({"search": "whisk"}, "cats", "dogs"),
        ({"label": ["team:vision", ""]}, "cats", "dogs"),
        ({"owner": "bob"}, "dogs", "cats"),
        ({"filter": ["eval/linear_top1 > 0.5", "eval/linear_top1 < 1"]}, "dogs", "cats"),
    ):
        text = page(browsers.alice, "/backbones", **query)
        assert f'id="backbone-{there}"' in text
        assert f'id="backbone-{absent}"' not in text
        for name, given in query.items():
            for value in [given] if isinstance(given, str) else given:
                assert re.search(f'name="{name}"[^>]* value="{re.escape(value)}"', text), (name, value)


def test_a_filter_that_cannot_be_used_is_told_above_an_empty_list(browsers, registry):
    """Not by an error page: one types the next letter."""
    described(browsers, registry)
    for query, told in (
        ({"filter": "eval/linear_top1 >"}, "write a result, one of < <= > >= = and a number"),
        ({"filter": "eval/linear_top5 > 0"}, "did you mean eval/linear_top1?"),
        ({"label": "team"}, "write name:value"),
    ):
        text = page(browsers.alice, "/backbones", **query)
        assert told in text
        assert f'value="{next(iter(query.values()))}"' in text
        assert 'id="backbone-cats"' not in text


def test_a_backbone_is_described_and_given_away_by_those_who_may(browsers, registry, database):
    described(browsers, registry)
    registry.jobs["cats"] = add_job(database, "succeeded", owner="bob", spec=spec_with(register_as="cats"))
    registry.add("cats", 2)
    whole, versions = "PATCH /v1/backbones/cats", "PATCH /v1/backbones/cats/versions/{}"
    for browser, number, offered in (
        (browsers.alice, 2, {whole, versions.format(2)}),
        (browsers.operator, 1, {whole, versions.format(1)}),
        (browsers.bob, 2, {versions.format(2)}),
        (browsers.bob, 1, set()),
        (browsers.viewer, 1, set()),
    ):
        text = page(browser, "/backbones/cats", version=str(number))
        assert {each for each in controls(text) if each.startswith("PATCH")} == offered
        assert "<b>Whiskers</b>\nSecond line" in text
        assert "team:vision" in text
    answer = browsers.alice.patch("/v1/backbones/cats", json={"owner": "bob"}, headers=csrf(browsers.alice))
    assert answer.status_code == 200
    assert whole in controls(page(browsers.bob, "/backbones/cats"))


def test_no_backbone_and_versions_that_are_not_read_yet_are_two_things(browsers, database):
    assert "No backbone is registered yet" in page(browsers.alice, "/backbones")
    with database.session() as session:
        session.execute(delete(RegistryCheck))  # as after an upgrade
    text = page(browsers.alice, "/backbones")
    assert "The registered versions are not known yet" in text
    assert "the controller is reading the registered versions" in text
    assert "the controller is reading the registered versions" in page(browsers.alice, "/")
    page(browsers.alice, "/backbones/digits", status=503)


def test_pages_show_versions_while_mlflow_is_away(browsers, registry, mlflow):
    registry.add(formats="timm,hf")
    mlflow.reachable = False
    assert 'id="backbone-digits"' in page(browsers.alice, "/backbones")
    assert 'id="backbone-digits"' in page(browsers.alice, "/")
    assert "Download all" in page(browsers.alice, "/backbones/digits")


def test_a_version_that_somebody_deleted_in_mlflow_is_shown_as_gone(browsers, registry, mlflow, database):
    for number in (1, 2):
        registry.add("digits", number, metrics={"eval/linear_top1": 0.5}, formats="timm,hf")
    del mlflow.registered[1]
    compare_with_mlflow(database, mlflow)
    assert "1 gone" in page(browsers.alice, "/backbones")
    newest = page(browsers.alice, "/backbones/digits")
    assert '<bdi>digits</bdi> <span class="quiet">version 1</span>' in newest, "what can be pulled"
    assert '2</a> <span class="tag">gone</span>' in newest
    gone = page(browsers.alice, "/backbones/digits", version="2")
    assert "digits:2 was deleted in MLflow" in gone
    for absent in ("Download all", "rcmae backbones pull digits:2", "h-card", "h-files"):
        assert absent not in gone
    assert "/backbones/digits/delete?version=2" in gone
    assert controls(page(browsers.alice, "/backbones/digits/delete", version=2)) == {
        "DELETE /v1/backbones/digits/versions/2"
    }
    assert '<option value="2"' not in newest, "no alias can be pointed at it"


def test_a_version_shows_what_it_is(browsers, registry):
    tags = {"attempt": "1", "checkpoint_step": "480", "epochs": "12.5", "method": "rc_mae", "network": "teacher"}
    registry.add(metrics={"eval/linear_top1": 0.123456789}, dataset_fingerprint="8c1f", formats="timm,hf", **tags)
    registry.add("digits", 2, metrics={"eval/linear_top1": 0.5}, formats="timm,hf")
    registry.set_alias("digits", "champion", 1)
    text = page(browsers.alice, "/backbones/digits")
    assert '<bdi>digits</bdi> <span class="quiet">version 1</span>' in text, "the champion, where no version is named"
    for shown in ("0.123457", "0.123456789", "builtin://digits", "8c1f", "teacher", registry.jobs["digits"]):
        assert shown in text
    version = browsers.alice.get("/v1/backbones/digits/versions/1").json()
    for file in version["files"]:
        assert f'href="{file["url"]}"' in text
        assert file["sha256"] in text
    assert "version 2</span>" in page(browsers.alice, "/backbones/digits", version="2")
    assert "version 2</span>" in page(browsers.alice, "/backbones/digits", version="latest")
    for wrong in ("9", "none"):
        assert "Not Found" in page(browsers.alice, "/backbones/digits", status=404, version=wrong)
    page(browsers.alice, "/backbones/none", status=404)


def test_the_card_brings_in_nothing_from_elsewhere(browsers, registry):
    registry.add(files=FILES | {"README.md": CARD.encode()}, formats="timm,hf")
    answer = browsers.alice.get("/backbones/digits")
    card = answer.text.partition('<div class="panel prose">')[2]
    base = "/v1/backbones/digits/versions/1/files"
    assert f'src="{base}/card/curves.png"' in card
    assert browsers.alice.get(f"{base}/card/curves.png").content == FILES["card/curves.png"]
    assert f'href="{base}/spec.json"' in card
    assert 'href="https://elsewhere.example/" rel="noopener noreferrer"' in card
    assert "https://elsewhere.example/x.png" not in card
    assert "picture: From elsewhere" in card
    assert "javascript:" not in card.replace("](javascript:", "")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in card
    assert "&lt;b&gt;bold&lt;/b&gt;" in card
    assert "<h3>digits</h3>" in card
    assert answer.text.count("<h1>") == 1
    assert "license" not in card


def test_the_card_comes_first_and_the_files_last(browsers, registry):
    registry.add(files=FILES | {"README.md": CARD.encode()}, formats="timm,hf")
    text = page(browsers.alice, "/backbones/digits")
    headings = re.findall(r'<h2 id="(h-[a-z]+)"', text)
    assert headings == ["h-card", "h-evaluations", "h-results", "h-load", "h-aliases", "h-versions", "h-files"]
    assert re.findall(r'href="#(h-[a-z]+)"', text) == headings


def test_what_cannot_be_shown_of_a_card_is_said(browsers, registry):
    without = {path: data for path, data in FILES.items() if path != "README.md"}
    registry.add(files=without, formats="timm")
    registry.add("digits", 2, files=FILES | {"README.md": b"\xff\xfe broken"}, formats="timm")
    registry.add("digits", 3, files=FILES | {"README.md": b"x" * (2**20 + 1)}, formats="timm")
    assert "has no model card" in page(browsers.alice, "/backbones/digits", version="1")
    assert "\ufffd\ufffd broken" in page(browsers.alice, "/backbones/digits", version="2")
    assert "too long to show here" in page(browsers.alice, "/backbones/digits", version="3")


def test_how_to_load_is_the_cards_code_with_this_address(browsers, registry):
    for number in (1, 2):
        registry.add("digits", number, files=FILES | {"README.md": CARD.encode()}, formats="timm,hf")
    text = page(browsers.alice, "/backbones/digits")
    hub = 'os.environ["HF_ENDPOINT"] = "http://testserver/hf"'
    assert text.count(hub) == 2
    assert 'AutoModel.from_pretrained("rcmae/digits", add_pooling_layer=False)' in text
    assert "without add_pooling_layer=False, pooler_output is random numbers" in text
    older = page(browsers.alice, "/backbones/digits", version="1")
    assert 'AutoImageProcessor.from_pretrained("rcmae/digits", revision="v1")' in older
    assert 'AutoModel.from_pretrained("rcmae/digits", revision="v1", add_pooling_layer=False)' in older
    assert 'timm.create_model("hf-hub:rcmae/digits-timm@v1", pretrained=True)' in older
    assert 'download_artifacts("models:/digits/1")' in older
    assert "rcmae backbones pull digits:1 --format timm" in older
    path = "/v1/backbones/digits/versions/1/archive?format=timm"
    assert f"http://testserver{path}" in older
    assert browsers.alice.get(path).status_code == 200


def test_who_may_not_change_a_backbone_sees_no_control(browsers, registry):
    registry.add()
    registry.set_alias("digits", "best", 1)
    for browser, offered in (
        (browsers.alice, True),
        (browsers.operator, True),
        (browsers.bob, False),
        (browsers.viewer, False),
    ):
        text = page(browser, "/backbones/digits")
        assert ("PUT /v1/backbones/digits/aliases/{alias}" in controls(text)) is offered
        assert ("DELETE /v1/backbones/digits/aliases/best" in controls(text)) is offered
        assert ("/backbones/digits/delete?version=1" in text) is offered
    assert "Forbidden" in page(browsers.bob, "/backbones/digits/delete", status=403, version=1)


def test_an_alias_that_moves_is_confirmed_with_what_it_stands_for(browsers, registry):
    for number in (1, 2):
        registry.add("digits", number)
    registry.set_alias("digits", "champion", 1)
    text = page(browsers.alice, "/backbones/digits")
    assert "digits@champion points at version 1 now" in text
    assert "That version is then also loaded by default." in text
    assert "version 2 will be loaded by default" in text, "once the champion is removed"
    answer = browsers.alice.put(
        "/v1/backbones/digits/aliases/champion", json={"version": 2}, headers=csrf(browsers.alice)
    )
    assert answer.json()["aliases"] == {"champion": 2}
    assert "version 2</span>" in page(browsers.alice, "/backbones/digits")


def test_deleting_a_version_says_what_goes_and_why_it_cannot(browsers, registry):
    for number in (1, 2):
        registry.add("digits", number)
    registry.set_alias("digits", "best", 1)
    kept = page(browsers.alice, "/backbones/digits/delete", version=1)
    assert "digits:1 has the alias digits@best: first move it to another version, or remove it" in kept
    assert controls(kept) == set()
    going = page(browsers.alice, "/backbones/digits/delete", version=2)
    assert controls(going) == {"DELETE /v1/backbones/digits/versions/2"}
    told = browsers.alice.get("/v1/backbones/digits/versions/2").json()
    assert str(len(told["files"]) + 1) in going, "also what no checksum names"
    page(browsers.alice, "/backbones/digits/delete", status=404, version=9)
    page(browsers.alice, "/backbones/digits/delete", status=422, version=0)


# --- the cluster ------------------------------------------------------------------------------------------------------


def running(database: Database, ray: Any, owner: str, name: str, nodes: list[str]) -> str:
    spec = spec_with(resources={"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 2})
    job_id = add_job(database, "running", spec, owner=owner, name=name, attempts=1)
    with database.session() as session:
        session.add(Attempt(job_id=job_id, number=1, submission_id=f"{job_id}-a1", state="running", workers=2, gpus=2))
    ray.placed[f"{job_id}-a1"] = nodes
    return job_id


def test_the_cluster_shows_nodes_what_runs_and_who_waits(browsers, database, ray):
    ray.nodes = (NodeShape(8, 2, "a" * 56, "10.0.0.1"), NodeShape(8, 2, "b" * 56, "10.0.0.2"))
    gone = NodeShape(8, 2, "c" * 56, "10.0.0.3")
    ray.dead = (Machine(gone, alive=False, message="received <SIGTERM>"),)
    runs = running(database, ray, "alice", "goes-on", ["a" * 56, "b" * 56])
    waits = add_job(
        database, "queued", spec_with(resources={"workers": 64, "gpus_per_worker": 1, "cpus_per_worker": 1})
    )
    answer = browsers.alice.get("/cluster")
    assert "&lt;SIGTERM&gt;" in answer.text
    text = unescape(answer.text)
    for shown in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "4/16", "2/4", "1 of 2 workers", "dead"):
        assert shown in text, shown
    for job_id in (runs, waits):
        assert f'href="/jobs/{job_id}"' in text
    reason = browsers.alice.get("/v1/cluster").json()["queue"][0]["message"]
    assert reason in text
    others = page(browsers.bob, "/cluster")
    assert "goes-on" not in others
    assert runs not in others
    assert others.count("somebody else's job") >= 2


def test_a_cluster_without_work_says_so(browsers):
    text = page(browsers.alice, "/cluster")
    for shown in ("Nothing is running.", "The queue is empty.", "0/4"):
        assert shown in text


def test_without_ray_one_sees_who_waits(browsers, database, ray):
    ray.reachable = False
    add_job(database, "queued", name="has-to-wait", message="Waits for its turn.")
    add_job(database, "queued", owner="bob", name="of-bob")
    text = page(browsers.alice, "/cluster")
    for shown in ("The cluster is unreachable.", "has-to-wait", "Waits for its turn."):
        assert shown in text
    assert "of-bob" not in text


# --- tokens -----------------------------------------------------------------------------------------------------------


def id_of(database: Database, owner: str) -> str:
    with database.read() as session:
        found = session.scalar(select(Token.id).where(Token.sha256 == sha256(token_of(owner))))
    assert found
    return found


def test_one_sees_ones_own_tokens_and_an_admin_everybodys(browsers, database):
    ids = {owner: id_of(database, owner) for owner in ("alice", "bob", "viewer", "admin")}

    def shown(browser: TestClient, **query: str) -> set[str]:
        text = page(browser, "/tokens", **query)
        return {owner for owner, each in ids.items() if f'id="{each}"' in text}

    assert shown(browsers.alice) == {"alice"}
    assert shown(browsers.alice, owner="bob") == set()
    assert shown(browsers.admin) == set(ids)
    assert shown(browsers.admin, owner="bob") == {"bob"}
    assert "nobody-there has no token" in page(browsers.admin, "/tokens", owner="nobody-there")


def test_the_roles_on_offer_do_and_see_no_more_than_ones_own(browsers):
    for owner, roles in (
        ("alice", ["submitter"]),
        ("operator", ["viewer", "submitter", "operator"]),
        ("admin", ["viewer", "submitter", "operator", "admin"]),
    ):
        text = page(getattr(browsers, owner), "/tokens")
        offered = text.partition('id="token-role"')[2].partition("</select>")[0]
        assert re.findall(r"<option[^>]*>(\w+)", offered) == roles
        assert ('name="owner"' in text.partition('id="new-token"')[2]) is (owner == "admin")
    text = page(browsers.viewer, "/tokens")
    assert controls(text) == set()
    assert 'id="new-token"' not in text


def test_a_submitter_may_end_its_owners_viewer_token_and_not_replace_it(browsers, database):
    ensure_token(database, "a-watching-token-of-alice", "alice", Role.VIEWER)
    with database.read() as session:
        watching = session.scalar(select(Token.id).where(Token.sha256 == sha256("a-watching-token-of-alice")))
    own = id_of(database, "alice")
    offered = controls(page(browsers.alice, "/tokens"))
    assert {f"DELETE /v1/tokens/{own}", f"POST /v1/tokens/{own}/rotate", f"DELETE /v1/tokens/{watching}"} <= offered
    assert f"POST /v1/tokens/{watching}/rotate" not in offered
    assert f"POST /v1/tokens/{watching}/rotate" in controls(page(browsers.admin, "/tokens"))


@pytest.mark.both_databases
def test_only_tokens_that_are_valid_can_be_replaced_and_revoked(browsers, database):
    ids = {owner: id_of(database, owner) for owner in ("alice", "bob", "operator", "admin")}
    with database.session() as session:
        session.execute(update(Token).where(Token.id == ids["bob"]).values(revoked_at=now()))
        session.execute(update(Token).where(Token.id == ids["operator"]).values(expires_at=now() - timedelta(days=1)))
    offered = controls(page(browsers.admin, "/tokens"))
    for owner, valid in (("alice", True), ("admin", True), ("bob", False), ("operator", False)):
        assert (f"DELETE /v1/tokens/{ids[owner]}" in offered) is valid
        assert (f"POST /v1/tokens/{ids[owner]}/rotate" in offered) is valid
    text = page(browsers.admin, "/tokens")
    assert "revoked" in text
    assert "ended" in text
    assert "This session ends with it." in text


def test_a_new_tokens_text_is_in_no_page(browsers):
    made = browsers.admin.post(
        "/v1/tokens", json={"role": "viewer", "owner": "dora"}, headers=csrf(browsers.admin)
    ).json()
    text = page(browsers.admin, "/tokens")
    assert f'id="{made["id"]}"' in text
    assert made["token"] not in text


def test_what_a_token_is_for_is_text_and_no_markup(browsers):
    body = {"role": "submitter", "name": "<b>x</b>\"'"}
    browsers.alice.post("/v1/tokens", json=body, headers=csrf(browsers.alice))
    answer = browsers.alice.get("/tokens").text
    assert "<b>x" not in answer
    assert "&lt;b&gt;x&lt;/b&gt;" in answer


# --- the audit log ----------------------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    return re.findall(r'<tr id="line-\d+">.*?</tr>', text, re.DOTALL)


@pytest.mark.both_databases
def test_an_admin_sees_who_did_what(browsers):
    job_id = browsers.alice.post("/v1/jobs", json=SPEC, headers=csrf(browsers.alice)).json()["id"]
    browsers.bob.post(f"/v1/jobs/{job_id}/cancel", headers=csrf(browsers.bob))
    text = page(browsers.admin, "/audit", target=job_id)
    refused, done = lines(text)
    for shown in ("alice", "job.submit", job_id, "done", "digits"):
        assert shown in done
    for shown in ("bob", "job.cancel", job_id, "refused, 404", "job_not_found"):
        assert shown in refused
    assert len(lines(page(browsers.admin, "/audit", actor="bob", action="job.cancel"))) == 1
    moment = now() + timedelta(minutes=5)
    assert lines(page(browsers.admin, "/audit", after=f"{moment:%Y-%m-%dT%H:%M}")) == []
    assert len(lines(page(browsers.admin, "/audit", before=f"{moment:%Y-%m-%dT%H:%M}", after="", target=job_id))) == 2
    assert "No change matches the filters" in page(browsers.admin, "/audit", actor="nobody-there")
    assert "Unprocessable" in page(browsers.admin, "/audit", status=422, after="yesterday")


@pytest.mark.both_databases
def test_the_audit_log_comes_in_pages(browsers):
    headers = csrf(browsers.alice)
    for _ in range(60):
        browsers.alice.post("/v1/jobs/job-none/cancel", headers=headers)
    text = page(browsers.admin, "/audit", actor="alice", action="job.cancel")
    assert len(lines(text)) == 50
    following = re.search(r'href="([^"]*)" data-swap rel="next"', text)
    assert following
    rest = page(browsers.admin, following[1])
    assert len(lines(rest)) == 10
    assert 'rel="next"' not in rest


@pytest.mark.parametrize("owner", ["viewer", "alice", "operator"])
def test_nobody_else_sees_the_audit_log(browsers, owner):
    assert "Forbidden" in page(getattr(browsers, owner), "/audit", status=403)
