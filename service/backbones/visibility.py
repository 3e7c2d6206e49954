"""Changes to who sees a backbone. `service.auth.sight` decides by them who does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.auth.caller import has_valid_token
from service.auth.sight import READERS, seen_by
from service.backbones.schemas import Visibility
from service.db.tables import BackboneReader, RegisteredBackbone
from service.http.problems import spec_problem
from service.jobs.visibility import readers as readers_of
from trainer.spec.base import Problem


def change(
    session: Session, row: RegisteredBackbone, visibility: Visibility | None, readers: Sequence[str] | None
) -> dict[str, Any]:
    """Change who sees a backbone; None keeps a value. Returns what has changed.

    Only the visibility `readers` has readers: with any other one they are removed. Raises the API's 422 for readers
    without that visibility, for that visibility without readers, and for a new reader without a token.
    """
    before = readers_of(session, [row.name]).get(row.name, [])
    chosen = visibility or row.visibility
    wanted = sorted({*(before if readers is None else readers)}) if chosen == READERS else []
    _check(chosen, wanted, readers)
    for new in sorted({*wanted} - {*before}):
        must_have_token(session, "readers", new)
    found: dict[str, Any] = {"visibility": chosen} if chosen != row.visibility else {}
    row.visibility = chosen
    if wanted != before:
        session.execute(delete(BackboneReader).where(BackboneReader.name == row.name))
        session.add_all(BackboneReader(name=row.name, reader=reader) for reader in wanted)
        found["readers"] = wanted
    return found


def must_show_to_approvers(session: Session, row: RegisteredBackbone, field: str, value: object) -> None:
    """Raises the API's 422 where a change of a field hides a backbone from those who are to approve its champion."""
    approvers = (row.champion_rule or {}).get("approvers", [])
    if hidden := hidden_from(session, row.name, approvers):
        text = (
            f"{' and '.join(hidden)}, whom the champion's rule names as approvers, would not see it: name them as "
            "readers too, or change the rule first"
        )
        raise spec_problem([Problem(field, f"/{field}", value, text)])


def hidden_from(session: Session, name: str, owners: Sequence[str]) -> list[str]:
    """Those of some owners of tokens who do not see a backbone."""
    session.flush()
    query = select(RegisteredBackbone.name).where(RegisteredBackbone.name == name)
    return [owner for owner in owners if session.scalar(query.where(seen_by(owner))) is None]


def _check(chosen: str, wanted: Sequence[str], readers: Sequence[str] | None) -> None:
    if chosen == READERS and not wanted:
        text = "name at least one: with the visibility `readers` they see it besides its owners; or use `owners`"
        raise spec_problem([Problem("readers", "/readers", list(wanted), text)])
    if chosen != READERS and readers:
        text = f"its visibility is {chosen!r}, which has no readers: set visibility to `readers` too"
        raise spec_problem([Problem("readers", "/readers", list(readers), text)])


def must_have_token(session: Session, field: str, owner: str) -> None:
    """Raises the API's 422 for somebody without a valid token: a typing error would leave a backbone with nobody."""
    if not session.scalar(select(has_valid_token(owner))):
        text = "nobody of this name has a valid token: name the owner of one, or make them a token first"
        raise spec_problem([Problem(field, f"/{field}", owner, text)])
