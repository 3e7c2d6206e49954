"""The client and the command line approve champions: against the service itself, on a port."""

from __future__ import annotations

import json

import pytest
from backbone_files import Registry
from conftest import token_of

from service.backbones.approval_schemas import ChampionRuleBody
from service.cli import main
from service.client.errors import ApiError
from service.client.sdk import Client

TOP1 = "eval/linear_top1"
RATIO = "eval/reconstruction_ratio"


@pytest.fixture
def address(address: str, database, mlflow, root) -> str:
    """The service, with three versions of Alice's, as the command line finds it."""
    registry = Registry(database, mlflow, root)
    for number, accuracy in enumerate((0.5, 0.6, 0.4), 1):
        registry.add(number=number, metrics={TOP1: accuracy, RATIO: 0.3})
    return address


def rcmae(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit status of a command for backbones, and what it prints, but for the log of the service."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["backbones", *arguments])
    streams = capsys.readouterr()
    told = "".join(line for line in streams.out.splitlines(True) if '"event": ' not in line)
    return int(ended.value.code or 0), told + streams.err


@pytest.mark.usefixtures("address")
def test_a_rule_is_set_shown_and_removed(capsys):
    assert rcmae(capsys, "rule", "digits") == (0, "digits has no rule for its champion\n")
    status, said = rcmae(
        capsys, "rule", "digits", "--approver", "alice", "--approver", "bob", "--not-by-owner", "--reason-required",
        "--signed", "--must-not-fall", f"{TOP1}=0.005", "--must-not-rise", RATIO,
    )  # fmt: skip
    assert status == 0, said
    words = [
        "only alice, bob may move the champion",
        "whoever trained or registered a version may not approve it",
        f"{TOP1} must not be lower than the champion's by more than 0.005",
        f"{RATIO} must not be higher than the champion's",
        "each move needs a reason",
        "a version must be signed, and its checksums be those that were signed",
    ]
    assert said.splitlines() == [f"- {each}" for each in words]
    assert "; ".join(words) in rcmae(capsys, "show", "digits")[1]
    status, said = rcmae(capsys, "rule", "digits", "--signed", "--json")
    assert json.loads(said)["champion_rule"]["approvers"] == [], "replaced as a whole"
    assert rcmae(capsys, "rule", "digits", "--remove") == (0, "digits has no rule for its champion\n")
    assert rcmae(capsys, "rule", "digits", "--remove", "--signed")[0] == 2
    for wrong in ("top1", f"{TOP1}=high", f"{TOP1}=-1", f"{TOP1} 0.1"):
        status, said = rcmae(capsys, "rule", "digits", "--must-not-fall", wrong)
        assert status == 2, said
    status, said = rcmae(capsys, "rule", "digits", "--must-not-fall", "eval/linear_top")
    assert status == 2
    assert f"did you mean {TOP1}?" in said


@pytest.mark.usefixtures("address")
def test_a_champion_is_checked_approved_refused_and_its_history_shown(capsys):
    rcmae(capsys, "rule", "digits", "--must-not-fall", TOP1, "--reason-required")
    assert rcmae(capsys, "alias", "digits:2", "champion", "--reason", "better on the shelf set")[0] == 0
    status, said = rcmae(capsys, "alias", "digits:3", "champion", "--preview")
    assert (status, said.splitlines()[0]) == (1, "digits:3 cannot become the champion, which digits:2 is now:")
    assert f"{TOP1}: 0.4 of version 3 is below the champion's 0.6 (version 2)" in said
    status, said = rcmae(capsys, "alias", "digits:3", "champion")
    assert status == 1
    assert "champion_refused: digits:3 cannot become the champion" in said
    assert rcmae(capsys, "alias", "digits:2", "champion", "--preview") == (0, "digits:2 is the champion\n")
    rcmae(capsys, "rule", "digits", "--reason-required")
    assert rcmae(capsys, "alias", "digits:3", "champion", "--preview") == (
        0, "digits:3 can become the champion, which digits:2 is now; give a --reason\n",
    )  # fmt: skip
    assert rcmae(capsys, "alias", "digits:2", "best", "--preview")[0] == 2
    assert rcmae(capsys, "alias", "digits:1", "best")[0] == 0
    assert rcmae(capsys, "alias", "digits", "best", "--remove", "--reason", "of no use")[0] == 0
    _, said = rcmae(capsys, "moves", "digits")
    rows = [line.strip().split(maxsplit=6) for line in said.splitlines()]
    assert [row[2:] for row in rows[1:]] == [
        ["best", "removed", "1", "alice", "of no use"],
        ["best", "1", "-", "alice", "-"],
        ["champion", "2", "-", "alice", "better on the shelf set"],
    ]
    status, said = rcmae(capsys, "moves", "digits", "--alias", "champion", "--limit", "1", "--json")
    assert [each["reason"] for each in json.loads(said)] == ["better on the shelf set"]


def test_the_client_approves_and_reads_the_history_over_pages(address):
    with Client(address, token_of("alice")) as client:
        rule = ChampionRuleBody(must_not_worsen=[{"metric": TOP1}])
        assert client.set_champion_rule("digits", rule).champion_rule.must_not_worsen[0].metric == TOP1
        for number in (1, 2):
            client.set_alias("digits", "champion", number, reason=f"number {number}")
        found = client.champion_check("digits", 3)
        assert (found.allowed, found.before, len(found.problems)) == (False, 2, 1)
        with pytest.raises(ApiError) as refused:
            client.set_alias("digits", "champion", 3)
        assert (refused.value.status, refused.value.code) == (409, "champion_refused")
        assert client.remove_champion_rule("digits").champion_rule is None
        client.delete_alias("digits", "champion", reason="gone")
        reasons = [each.reason for each in client.alias_moves("digits", alias="champion", page_size=1)]
        assert reasons == ["gone", "number 2", "number 1"]
