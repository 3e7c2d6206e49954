"""The client's methods for aliases, their history, and the rule for a champion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.backbones.approval_schemas import AliasMoveView, ChampionCheckView, ChampionRuleBody
from service.backbones.schemas import BackboneDetailView
from service.client.transport import Transport
from service.http.schemas import Page


class ApprovalCalls(Transport):
    """The methods of `Client` for aliases and for the approval of champions."""

    def set_alias(self, name: str, alias: str, version: int, *, reason: str = "") -> BackboneDetailView:
        """Point an alias at a version, wherever it pointed before; its history keeps the reason.

        For `champion`, `ApiError` 409 `champion_refused` names every part of the backbone's rule that is not met, and
        403 says who may.
        """
        path = f"/v1/backbones/{name}/aliases/{alias}"
        body = {"version": version} | _said(reason)
        return self._request(BackboneDetailView, "PUT", path, json=body, retried=True)

    def delete_alias(self, name: str, alias: str, *, reason: str = "") -> BackboneDetailView:
        """Remove an alias; its version stays. Not retried, like `delete`."""
        path = f"/v1/backbones/{name}/aliases/{alias}"
        return self._request(BackboneDetailView, "DELETE", path, params=_said(reason))

    def alias_moves(self, name: str, *, alias: str | None = None, page_size: int = 100) -> Iterator[AliasMoveView]:
        """Who set, moved and removed the aliases of a backbone, or one alias, when and why; newest first."""
        query = {"alias": alias, "limit": page_size}
        return self._pages(Page[AliasMoveView], f"/v1/backbones/{name}/alias-moves", query)

    def champion_check(self, name: str, version: int) -> ChampionCheckView:
        """Whether you may make a version the champion now, and everything that speaks against it. Nothing changes."""
        return self._get(ChampionCheckView, f"/v1/backbones/{name}/champion-check", {"version": version})

    def set_champion_rule(self, name: str, rule: ChampionRuleBody | Mapping[str, Any]) -> BackboneDetailView:
        """Replace the rule for a backbone's champion as a whole."""
        body = rule.model_dump(exclude_defaults=True) if isinstance(rule, ChampionRuleBody) else dict(rule)
        return self._request(BackboneDetailView, "PUT", f"/v1/backbones/{name}/champion-rule", json=body, retried=True)

    def remove_champion_rule(self, name: str) -> BackboneDetailView:
        """Remove the rule for a backbone's champion. Not retried."""
        return self._request(BackboneDetailView, "DELETE", f"/v1/backbones/{name}/champion-rule")


def _said(reason: str) -> dict[str, Any]:
    return {"reason": reason} if reason else {}
