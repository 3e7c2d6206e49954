"""Copies in MLflow of aliases, descriptions and labels, which follow the rows: tools that use MLflow read them."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from service.context.app_state import AppState
from service.db.tables import BackboneAlias, BackboneVersion, RegisteredBackbone
from service.jobs.versions import SHOWN


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


def describe(state: AppState, name: str, number: int | None) -> None:
    """Give a backbone, or one of its versions, the description and labels in MLflow that its row has.

    Raises `MlflowUnreachable`. Several calls at once are as in `follow`.
    """
    wanted = _texts(state, name, number)
    while wanted:
        state.mlflow.describe(name, number, *wanted)
        written, wanted = wanted, _texts(state, name, number)
        if wanted == written:
            return


def copied_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of which MLflow has copies: it refuses names that are no normal paths, such as a//b and a/./b."""
    return {name: value for name, value in labels.items() if posixpath.normpath(name) == name}


def _number(state: AppState, name: str, alias: str) -> int | None:
    with state.database.read() as session:
        row = session.get(BackboneAlias, (name, alias))
        return row.version if row else None


def _texts(state: AppState, name: str, number: int | None) -> tuple[str | None, dict[str, str]] | None:
    """The description and the labels in a row; None if there is no row any more."""
    with state.database.read() as session:
        if number is None:
            backbone = session.get(RegisteredBackbone, name)
            return (backbone.description, copied_labels(backbone.labels)) if backbone else None
        version = session.get(BackboneVersion, (name, number))
        if version is None or version.state not in SHOWN:
            return None
        return version.description, copied_labels(version.labels)
