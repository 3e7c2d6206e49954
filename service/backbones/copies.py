"""Copies in MLflow of aliases, descriptions, labels and results, which follow the rows, for tools that use MLflow."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from types import MappingProxyType

from service.context.app_state import AppState
from service.db.tables import BackboneAlias, BackboneVersion, RegisteredBackbone
from service.jobs import evaluations
from service.jobs.versions import SHOWN
from trainer.protocol import names


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
    """Give a backbone, or one of its versions, the description, labels and results in MLflow that its rows have.

    Raises `MlflowUnreachable`. Several calls at once are as in `follow`.
    """
    wanted = _texts(state, name, number)
    while wanted:
        state.mlflow.describe(name, number, *wanted)
        written, wanted = wanted, _texts(state, name, number)
        if wanted == written:
            return


def copied(labels: Mapping[str, str], results: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The tags in MLflow that copy labels, and results in words by metric key.

    MLflow refuses names that are no normal paths, such as a//b and a/./b, so labels of such names have no copy.
    """
    known = {f"{names.TAG_LABEL}{label}": value for label, value in labels.items() if _is_path(label)}
    return known | {f"{names.TAG_EVALUATED}{key}": text for key, text in results.items()}


def _is_path(label: str) -> bool:
    return posixpath.normpath(label) == label


def _number(state: AppState, name: str, alias: str) -> int | None:
    with state.database.read() as session:
        row = session.get(BackboneAlias, (name, alias))
        return row.version if row else None


def _texts(state: AppState, name: str, number: int | None) -> tuple[str | None, dict[str, str]] | None:
    """The description in a row, and what tags copy; None if there is no row any more."""
    with state.database.read() as session:
        if number is None:
            backbone = session.get(RegisteredBackbone, name)
            return (backbone.description, copied(backbone.labels)) if backbone else None
        version = session.get(BackboneVersion, (name, number))
        if version is None or version.state not in SHOWN:
            return None
        results = evaluations.in_words(session, name, number).get((name, number), {})
        return version.description, copied(version.labels, results)
