"""Aliases in MLflow, which follow the rows: tools that load from MLflow use them."""

from __future__ import annotations

from service.context.app_state import AppState
from service.db.tables import BackboneAlias


def follow(state: AppState, name: str, alias: str) -> None:
    """Make an alias in MLflow point where its row says, or remove it there. Raises `MlflowUnreachable`.

    Of several calls at once, the one whose change reaches MLflow last still finds a newer row afterwards.
    """
    number = _number(state, name, alias)
    while True:
        if number is None:
            state.mlflow.delete_alias(name, alias)
        else:
            state.mlflow.set_alias(name, alias, number)
        followed, number = number, _number(state, name, alias)
        if number == followed:
            return


def _number(state: AppState, name: str, alias: str) -> int | None:
    with state.database.read() as session:
        row = session.get(BackboneAlias, (name, alias))
        return row.version if row else None
