"""Studies of searches: Optuna's record of every trial, in a SQL database of its own.

The search's driver records what its trials do. The service reads that, adds trials that people ask for, and closes
trials that a dead driver left open.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import delete, event, select
from sqlalchemy.exc import SQLAlchemyError

from service.adapters.breaker import Gated, Unreachable
from service.adapters.trial_rows import RowStorage
from service.db.engines import POSTGRES, POSTGRES_SETTINGS, DatabaseUrlError, masked_url, parse_database_url
from trainer.protocol.names import STUDY_SECONDS, STUDY_VARIABLE, TRIAL_MESSAGE, TRIAL_REASON
from trainer.spec.search import SearchSpec

BUSY_SECONDS: Final = 20
"""How long a writer waits for another one in SQLite."""
CACHED_STUDIES: Final = 8
"""Studies whose ended trials, which never change, are cached: about 25 kB each."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class StudiesUnreachable(Unreachable):
    """The studies' database is unreachable or not configured."""

    dependency: ClassVar[str] = "the record of trials"


class StudiesRefused(StudiesUnreachable):
    """The settings name no database that can be used, or there is no such study."""


class _Opened:
    """What all users of one studies' database share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.storage: RDBStorage | None = None
        self.studies: OrderedDict[str, Study] = OrderedDict()
        """Those that were used last."""


class Studies(Gated):
    """The studies of all searches; a study's name is its job's id. Every method raises `StudiesUnreachable`.

    The first use connects to the database: a service without searches needs none.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._opened = _Opened()

    @property
    def configured(self) -> bool:
        """Whether the settings name a database."""
        return self._url is not None

    def make(self, job_id: str, spec: SearchSpec) -> None:
        """Create a search's study, unless it exists."""
        directions = [
            StudyDirection.MAXIMIZE if objective.mode == "max" else StudyDirection.MINIMIZE
            for objective in spec.objectives
        ]
        with self._connection() as storage:
            optuna.create_study(storage=storage, study_name=job_id, directions=directions, load_if_exists=True)

    def study(self, job_id: str) -> Study | None:
        """A study with its trials; None if it does not exist."""
        opened = self._opened
        with self._connection() as storage, opened.lock:
            study = opened.studies.get(job_id)
            if study is None:
                try:
                    study = optuna.load_study(study_name=job_id, storage=storage)
                except KeyError:
                    return None
                opened.studies[job_id] = study
                while len(opened.studies) > CACHED_STUDIES:
                    opened.studies.popitem(last=False)
            opened.studies.move_to_end(job_id)
            return study

    def trials(self, job_id: str) -> list[FrozenTrial]:
        """All trials, by number; empty if there is no study. They are shared: do not modify them."""
        study = self.study(job_id)
        if study is None:
            return []
        with self._connection():
            return study.get_trials(deepcopy=False)

    def seconds(self, job_id: str) -> float:
        """How long the search's attempts have run trials, in seconds."""
        study = self.study(job_id)
        if study is None:
            return 0.0
        with self._connection():
            return float(study.user_attrs.get(STUDY_SECONDS, 0.0))

    def enqueue(self, job_id: str, points: Sequence[Mapping[str, Any]], attributes: Mapping[str, Any]) -> list[int]:
        """Add waiting trials at given points of the space; the algorithm chooses what a point leaves out.

        Returns their numbers.
        """
        study = self.study(job_id)
        if study is None:
            raise StudiesRefused(f"there is no study of {job_id}")
        numbers = []
        with self._connection() as storage:
            for point in points:
                waiting = optuna.trial.create_trial(
                    state=TrialState.WAITING, system_attrs={"fixed_params": dict(point)}, user_attrs=dict(attributes)
                )
                # What `Study.enqueue_trial` does, which does not return the number.
                trial_id = storage.create_new_trial(study._study_id, template_trial=waiting)  # noqa: SLF001
                numbers.append(storage.get_trial_number_from_id(trial_id))
        return numbers

    def close_trials(self, job_id: str, reason: str, message: str) -> list[int]:
        """Mark running trials as failed, for a search whose driver is dead. Returns their numbers."""
        study = self.study(job_id)
        if study is None:
            return []
        closed = []
        with self._connection() as storage:
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                storage.set_trial_user_attr(trial._trial_id, TRIAL_REASON, reason)  # noqa: SLF001 - it has no other
                storage.set_trial_user_attr(trial._trial_id, TRIAL_MESSAGE, message)  # noqa: SLF001
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                closed.append(trial.number)
        return closed

    def delete(self, job_id: str) -> None:
        """Remove a study with its trials, if it exists."""
        with self._opened.lock:
            self._opened.studies.pop(job_id, None)
        with self._connection() as storage:
            try:
                study_id = storage.get_study_id_from_name(job_id)
            except KeyError:
                return
            # Not `optuna.delete_study`: row by row, it blocks SQLite's writers for a minute at 3,000 trials.
            trials = models.TrialModel.__table__
            of_study = select(trials.c.trial_id).where(trials.c.study_id == study_id)
            with storage.engine.begin() as connection:
                for table in reversed(models.BaseModel.metadata.sorted_tables):
                    if "study_id" in table.c:
                        connection.execute(delete(table).where(table.c.study_id == study_id))
                    elif "trial_id" in table.c:
                        connection.execute(delete(table).where(table.c.trial_id.in_(of_study)))

    def close(self) -> None:
        """Close the connections."""
        with self._opened.lock:
            storage, self._opened.storage = self._opened.storage, None
            self._opened.studies.clear()
        if storage is not None:
            storage.engine.dispose()

    @contextmanager
    def _connection(self) -> Iterator[RDBStorage]:
        """The connected storage. Turns errors of the database into `StudiesUnreachable`."""
        with self._gate():
            try:
                with self._opened.lock:
                    self._opened.storage = self._opened.storage or self._connect()
                    storage = self._opened.storage
                yield storage
            except (SQLAlchemyError, OptunaError) as error:
                text = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
                raise StudiesUnreachable(f"the studies' database: {text}") from error

    def _connect(self) -> RDBStorage:
        if self._url is None:
            raise StudiesRefused(f"{STUDY_VARIABLE} is not set: searches need it to store their trials")
        try:
            url = parse_database_url(self._url)
        except DatabaseUrlError as error:
            raise StudiesRefused(str(error).replace("RCMAE_DATABASE_URL", STUDY_VARIABLE)) from error
        if url.get_backend_name() == "sqlite":
            storage = RowStorage(
                url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}, "hide_parameters": True},
            )
            event.listen(storage.engine, "connect", _enable_write_ahead_log)
            return storage
        settings = " ".join(f"-c {name}={value}" for name, value in POSTGRES_SETTINGS.items())
        arguments = {name: value for name, value in POSTGRES.items() if name not in url.query} | {"options": settings}
        return RowStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs={"connect_args": arguments, "pool_pre_ping": True, "hide_parameters": True},
        )

    def __str__(self) -> str:
        return masked_url(parse_database_url(self._url)) if self._url else "none"


def _enable_write_ahead_log(connection: Any, record: object) -> None:  # noqa: ARG001 - SQLAlchemy's signature
    """Lets readers and the one writer work at the same time."""
    connection.execute("PRAGMA journal_mode=WAL")
