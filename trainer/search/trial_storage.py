"""The studies' database, as a search's attempt uses it: through Optuna, with two differences.

A trial is created once, although its creation is tried again when no answer came: Optuna's own storage tries again by
itself, and would create a second trial. And waiting trials are read one at a time: users may add thousands, which
Optuna would read again with every trial.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container
from typing import Any, Final

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from trainer.errors import StorageError
from trainer.patience import Dependency
from trainer.protocol import names

BUSY_SECONDS: Final = 20
"""How long SQLite waits for another process's write."""
CREATION: Final = "rcmae:creation"
"""System attribute of a trial that an attempt has created: what tells its creation from any other."""
STARTED: Final = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def _describe(error: Exception) -> str:
    """The database's own message, without SQL and without the database's URL."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]


STUDIES: Final = Dependency(
    "the studies' database", (SQLAlchemyError, optuna.exceptions.StorageInternalError), describe=_describe
)


class TrialStorage(RDBStorage):
    """Optuna's storage, which creates each trial once and reads waiting trials only when one is to begin."""

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        self._begun: set[int] = set()
        """Ids of trials that have stopped waiting since trials were last read."""
        super().__init__(url, engine_kwargs=engine_kwargs)

    def next_waiting(self, study_id: int, beyond_budget_only: bool) -> int | None:
        """The id of the trial that has waited the longest; None if none waits."""
        trials, attributes = models.TrialModel.__table__, models.TrialUserAttributeModel.__table__
        query = select(trials.c.trial_id).where(trials.c.study_id == study_id, trials.c.state == TrialState.WAITING)
        if beyond_budget_only:
            beyond = select(attributes.c.trial_id).where(attributes.c.key.in_(names.BEYOND_BUDGET))
            query = query.where(trials.c.trial_id.in_(beyond))
        with self.engine.connect() as connection:
            waiting: int | None = connection.scalar(query.order_by(trials.c.trial_id).limit(1))
        return waiting

    def begin(self, trial_id: int) -> None:
        """Start a waiting trial. Nothing changes if it has started already."""
        self.set_trial_state_values(trial_id, TrialState.RUNNING)
        self._begun.add(trial_id)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """A study's trials by id: all after one id, and some others. Without those that wait."""
        included = included_trial_ids | self._begun  # they were not among those included while they waited
        found = super()._get_trials(study_id, STARTED if states is None else states, included, trial_id_greater_than)
        self._begun -= {trial._trial_id for trial in found}  # noqa: SLF001 - it has no other
        return found

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        """A new trial, or the one that the same creation has made: within a transaction that has locked the study."""
        creation = template_trial.system_attrs.get(CREATION) if template_trial else None
        if creation is not None:
            trial, attribute = models.TrialModel, models.TrialSystemAttributeModel
            same = session.query(trial).join(attribute, attribute.trial_id == trial.trial_id)
            same = same.filter(trial.study_id == study_id, trial.state.in_((TrialState.RUNNING, TrialState.WAITING)))
            made = same.filter(attribute.key == CREATION, attribute.value_json == json.dumps(creation)).one_or_none()
            if made is not None:
                return made
        return super()._get_prepared_new_trial(study_id, template_trial, session)


def template(state: TrialState, creation: str, **attributes: Any) -> FrozenTrial:
    """A trial to create once for each ``creation``; ``attributes`` are those that Optuna's `create_trial` takes."""
    system = attributes.pop("system_attrs", {}) | {CREATION: creation}
    return create_trial(state=state, system_attrs=system, **attributes)


def connect() -> TrialStorage:
    """The studies' database, whose URL this node's environment names; raises `StorageError`."""
    url = os.environ.get(names.STUDY_VARIABLE)
    if not url:
        raise StorageError(
            f"{names.STUDY_VARIABLE} is not set on this node: set it to the URL of the database for searches' trials"
        )
    local = url.startswith("sqlite")
    arguments: dict[str, Any] = {"timeout": BUSY_SECONDS} if local else {"connect_timeout": 5}
    settings: dict[str, Any] = {"connect_args": arguments, "hide_parameters": True} | (
        {} if local else {"pool_pre_ping": True}
    )
    storage = STUDIES.call("open the connection", lambda: TrialStorage(url, settings))
    if local:
        event.listen(storage.engine, "connect", _write_ahead)
    return storage


def _write_ahead(connection: Any, record: object) -> None:  # noqa: ARG001 - the signature of a listener
    """Let readers and the one writer work without waiting for each other."""
    connection.execute("PRAGMA journal_mode=WAL")
