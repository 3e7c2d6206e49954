"""What a backbone's page shows of the approval of its champion, and of the history of its aliases."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from backbone_files import Registry
from fastapi.testclient import TestClient

from service.dashboard.pages.approval import MOVES, NEWEST

BASE = "/v1/backbones/digits"
TOP1 = "eval/linear_top1"
APPROVES, SETS, REMOVES = f"PUT {BASE}/aliases/champion", f"PUT {BASE}/champion-rule", f"DELETE {BASE}/champion-rule"


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def page(browser: TestClient, **query: Any) -> str:
    answer = browser.get("/backbones/digits", params=query)
    assert answer.status_code == 200, answer.text
    return unescape(answer.text)


def controls(text: str) -> set[str]:
    return set(re.findall(r'data-action="([^"]*)"', text))


def row(text: str, number: int) -> str:
    """What the page says of a version as the champion."""
    found = re.search(rf'<tr id="check-{number}">.*?</tr>', text, re.S)
    assert found, f"nothing of version {number}"
    return re.sub(r"<[^>]+>|\s+", " ", found[0]).strip()


def test_the_page_says_before_anybody_presses_a_button_which_versions_can_become_the_champion(
    browsers, clients, registry
):
    for number, accuracy in enumerate((0.5, 0.6, 0.4, 0.7), 1):
        registry.add(number=number, metrics={TOP1: accuracy})
    for number in (1, 2):
        clients.alice.put(f"{BASE}/aliases/champion", json={"version": number, "reason": f"number <{number}>"})
    plain = page(browsers.alice)
    assert "There is no rule" in plain
    assert 'id="check-1"' not in plain
    rule = {"approvers": ["alice"], "must_not_worsen": [{"metric": TOP1}], "reason_required": True}
    assert clients.alice.put(f"{BASE}/champion-rule", json=rule).status_code == 200
    text = page(browsers.alice, version=4)
    assert f"{TOP1} must not be lower than the champion's" in text
    assert row(text, 4).endswith("Yes")
    assert f"No: {TOP1}: 0.4 of version 3 is below the champion's 0.6 (version 2)" in row(text, 3).replace("  ", " ")
    assert "It is the champion" in row(text, 2)
    assert "it was approved before" in row(text, 1)
    choice = text.partition('id="approve-version"')[2].partition("</select>")[0]
    options = re.findall(r'<option value="(\d)" (disabled|selected|)', choice)
    assert options == [("4", "selected"), ("3", "disabled"), ("2", "disabled"), ("1", "")]
    assert 'id="approve-reason" name="reason" maxlength="1000" required' in text
    assert "number &lt;1&gt;" in browsers.alice.get("/backbones/digits").text
    assert "only alice may approve it, and you are bob" in row(page(browsers.bob), 4)
    assert 'id="check-1"' not in page(browsers.viewer)


def test_each_browser_is_offered_what_the_service_would_let_it_do(browsers, clients, registry):
    for number in (1, 2):
        registry.add(number=number, metrics={TOP1: 0.5})
    clients.alice.put(f"{BASE}/aliases/champion", json={"version": 1})
    moves = {APPROVES, f"DELETE {BASE}/aliases/champion"}
    assert controls(page(browsers.alice)) >= moves | {SETS}
    assert clients.alice.put(f"{BASE}/champion-rule", json={"approvers": ["bob"]}).status_code == 200
    assert controls(page(browsers.alice)) & {*moves, SETS, REMOVES} == {SETS, REMOVES}
    assert controls(page(browsers.bob)) == {APPROVES}, "who owns nothing of it, and is an approver"
    assert controls(page(browsers.viewer)) == set()


def test_the_form_of_the_rule_holds_what_it_is_and_room_for_more(browsers, clients, registry):
    registry.add(metrics={TOP1: 0.5, "eval/reconstruction_ratio": 0.3})
    rule = {
        "approvers": ["alice", "bob"],
        "not_by_owner": True,
        "must_not_worsen": [{"metric": "eval/reconstruction_ratio", "better": "lower", "tolerance": 0.01}],
    }
    assert clients.alice.put(f"{BASE}/champion-rule", json=rule).status_code == 200
    form = page(browsers.alice).partition('<dialog id="edit-rule"')[2].partition("</dialog>")[0]
    assert 'value="alice, bob"' in form
    assert re.findall(r'name="(\w+)" checked', form) == ["not_by_owner"]
    assert re.findall(r'name="must_not_worsen.(\d).metric" list="rule-metrics" value="([^"]*)"', form) == [
        ("0", "eval/reconstruction_ratio"), ("1", ""), ("2", ""),
    ]  # fmt: skip
    assert '<option value="lower" selected>' in form
    assert 'value="0.01"' in form
    assert f'<option value="{TOP1}">' in form


def test_of_many_versions_and_moves_the_newest_are_shown_and_former_champions(browsers, clients, registry):
    for number in range(1, NEWEST + 4):
        registry.add(number=number, metrics={TOP1: 0.5})
    clients.alice.put(f"{BASE}/aliases/champion", json={"version": 2})
    clients.alice.put(f"{BASE}/champion-rule", json={"reason_required": True})
    text = page(browsers.alice)
    assert re.findall(r'id="check-(\d+)"', text) == [str(number) for number in (*range(NEWEST + 3, 3, -1), 2)]
    assert "rcmae backbones moves digits" not in text
    for number in range(MOVES):
        clients.alice.put(f"{BASE}/aliases/best", json={"version": number % 2 + 1})
    text = page(browsers.alice)
    assert text.partition('id="alias-moves"')[2].partition("</table>")[0].count("<tr>") == MOVES + 1
    assert "rcmae backbones moves digits" in text
