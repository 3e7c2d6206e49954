"""What a backbone's page shows of the approval of its champion, and of the history of its aliases."""

from __future__ import annotations

from typing import Any, Final

from service.auth.scopes import Scope
from service.backbones import approval, approvals
from service.backbones.approval_schemas import REASON_LENGTH
from service.backbones.registry import Backbone
from service.backbones.schemas import CHAMPION
from service.dashboard.site import Page

MOVES: Final = 20
"""Moves that a page shows."""
NEWEST: Final = 20
"""Versions that a page checks, beside those that were the champion lately."""
BLANK: Final = 2
"""Rows of the form for further results."""


def context(page: Page, backbone: Backbone) -> dict[str, Any]:
    """What the templates need of one backbone."""
    moves = approvals.moves(page.state, page.caller, backbone.name, None, MOVES, None)
    rule = approval.rule_in(backbone.row)
    former = {move.version for move in moves.items if move.alias == CHAMPION}
    ready = [version for version in reversed(backbone.versions) if not version.gone]
    shown = ready[:NEWEST] + [version for version in ready[NEWEST:] if version.number in former]
    asks = rule is not None and page.caller.may(Scope.BACKBONES, page.caller.owner)
    return {
        "rule": rule,
        "checks": approvals.checks(page.state, page.caller, shown) if asks else [],
        "moves": moves,
        "limits": [*(rule.must_not_worsen if rule else ()), *[None] * BLANK],
        "metrics": sorted({key for version in backbone.versions for key in version.metrics}),
        "longest_reason": REASON_LENGTH,
    }
