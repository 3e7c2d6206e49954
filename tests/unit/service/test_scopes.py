"""The table of scopes: what is made from it, and that it holds together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import service
from service.access.schemas import RoleName
from service.auth.caller import Caller
from service.auth.scopes import GRANTS, MEANINGS, SCOPES, Role, Scope, grantable, revocable, roles_with

PAGE = Path(service.__file__).parent / "access.md"


def table() -> str:
    """The table of scopes as the page shows it."""
    lines = ["| scope | lets a token | " + " | ".join(f"`{role}`" for role in Role) + " |", "|---" * 6 + "|"]
    for scope in Scope:
        marks = ("yes" if scope in GRANTS[role] else "(yes)" if scope in SCOPES[role] else "" for role in Role)
        lines.append(f"| `{scope}` | {MEANINGS[scope]} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def test_the_page_shows_the_table():
    shown = re.search(r"(?m)^\| scope .*\n(?:\|.*\n)+", PAGE.read_text())
    assert shown
    assert shown[0].strip() == table(), f"write this into {PAGE.name}:\n{table()}"


def test_every_role_can_be_named_in_a_request():
    assert set(get_args(RoleName)) == {role.value for role in Role}


def test_the_api_says_of_each_operation_which_scope_it_needs_and_who_has_it(clients):
    document = clients.anonymous.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "security" not in operation:
                continue
            (needed,) = (need["token"] for need in operation["security"])
            roles = roles_with(Scope(scope) for scope in needed)
            assert needed, f"{method} {path}"
            assert operation["x-roles"] == roles, f"{method} {path}"
            assert all(f"`{scope}`" in operation["description"] for scope in needed), f"{method} {path}"
            assert ("`forbidden`" in str(operation["responses"])) >= (set(roles) != set(Role)), f"{method} {path}"
    assert document["components"]["securitySchemes"]["token"]["x-scopes"] == {**MEANINGS}


def test_no_role_makes_or_ends_a_token_beyond_its_reach():
    for role in Role:
        assert all(SCOPES[made] <= SCOPES[role] for made in grantable(role))
        ended = {scope for each in revocable(role) for scope in SCOPES[each] if not scope.reads}
        assert ended <= SCOPES[role]
    assert revocable(Role.SUBMITTER) == [Role.VIEWER, Role.SUBMITTER], "which may see more, but change nothing more"
    assert grantable(Role.VIEWER) == revocable(Role.VIEWER) == []


def test_a_scope_limited_to_its_own_reaches_nobody_else():
    for role in Role:
        caller = Caller("alice", role)
        for scope in SCOPES[role]:
            assert caller.may(scope.everybodys, "alice")
            assert caller.may(scope.everybodys, "bob") == caller.has(scope.everybodys)
