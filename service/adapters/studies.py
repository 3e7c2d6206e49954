"""Studies of searches: Optuna's record of every trial, in a SQL database of its own.

The search's driver writes what its trials do. The service reads, adds trials that people want to see tried, and closes
what a driver that is no more has left open.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import delete, event, select
from sqlalchemy.exc import SQLAlchemyError

from service.adapters.trial_rows import RowStorage
from service.db.engines import POSTGRES, POSTGRES_SETTINGS, DatabaseUrlError, parse_database_url, shown
from trainer.protocol.names import STUDY_SECONDS, STUDY_VARIABLE, TRIAL_MESSAGE, TRIAL_REASON
from trainer.spec.search import SearchSpec

BUSY_SECONDS: Final = 20
OPEN_STUDIES: Final = 8
"""Studies whose ended trials are remembered, as they never change: some 25 kB each."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class StudiesUnreachable(Exception):
    """The studies' database is away, or none is named: nothing is known of trials."""


class Studies:
    """All searches' studies; a study's name is its job's id. Every method raises `StudiesUnreachable`.

    Nothing is connected before it is asked for: a service without searches needs no such database.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._storage: RDBStorage | None = None
        self._open: OrderedDict[str, Study] = OrderedDict()

    @property
    def named(self) -> bool:
        """Whether there is such a database."""
        return self._url is not None

    def make(self, job_id: str, spec: SearchSpec) -> None:
        """A search's study; asked again, it is the same one."""
        directions = [
            StudyDirection.MAXIMIZE if objective.mode == "max" else StudyDirection.MINIMIZE
            for objective in spec.objectives
        ]
        with self._asked() as storage:
            optuna.create_study(storage=storage, study_name=job_id, directions=directions, load_if_exists=True)

    def study(self, job_id: str) -> Study | None:
        """A study with its trials, for what Optuna works out of them; None where it was never made."""
        with self._asked() as storage, self._lock:
            found = self._open.get(job_id)
            if found is None:
                try:
                    found = optuna.load_study(study_name=job_id, storage=storage)
                except KeyError:
                    return None
                self._open[job_id] = found
                while len(self._open) > OPEN_STUDIES:
                    self._open.popitem(last=False)
            self._open.move_to_end(job_id)
            return found

    def trials(self, job_id: str) -> list[FrozenTrial]:
        """All trials, by number; none where there is no study. They are shared: change nothing in them."""
        study = self.study(job_id)
        if study is None:
            return []
        with self._asked():
            return study.get_trials(deepcopy=False)

    def seconds(self, job_id: str) -> float:
        """For how long the search's attempts have run trials."""
        study = self.study(job_id)
        if study is None:
            return 0.0
        with self._asked():
            return float(study.user_attrs.get(STUDY_SECONDS, 0.0))

    def enqueue(self, job_id: str, points: Sequence[Mapping[str, Any]], attributes: Mapping[str, Any]) -> list[int]:
        """Add trials that wait, with values that the algorithm is not asked for; gives their numbers."""
        study = self.study(job_id)
        if study is None:
            raise StudiesUnreachable(f"there is no study of {job_id}")
        numbers = []
        with self._asked() as storage:
            for point in points:
                waiting = optuna.trial.create_trial(
                    state=TrialState.WAITING, system_attrs={"fixed_params": dict(point)}, user_attrs=dict(attributes)
                )
                # As `Study.enqueue_trial` does, which does not say the number.
                made = storage.create_new_trial(study._study_id, template_trial=waiting)  # noqa: SLF001
                numbers.append(storage.get_trial_number_from_id(made))
        return numbers

    def close_trials(self, job_id: str, reason: str, message: str) -> list[int]:
        """End what is still open as failed, of a search whose driver is no more; gives the numbers."""
        study = self.study(job_id)
        if study is None:
            return []
        closed = []
        with self._asked() as storage:
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                storage.set_trial_user_attr(trial._trial_id, TRIAL_REASON, reason)  # noqa: SLF001 - it has no other
                storage.set_trial_user_attr(trial._trial_id, TRIAL_MESSAGE, message)  # noqa: SLF001
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                closed.append(trial.number)
        return closed

    def delete(self, job_id: str) -> None:
        """Remove a study with its trials; nothing happens where there is none."""
        with self._lock:
            self._open.pop(job_id, None)
        with self._asked() as storage:
            try:
                study_id = storage.get_study_id_from_name(job_id)
            except KeyError:
                return
            # Not `optuna.delete_study`: row by row, it holds SQLite's one writer's place for a minute of 3,000 trials.
            trials = models.TrialModel.__table__
            of_study = select(trials.c.trial_id).where(trials.c.study_id == study_id)
            with storage.engine.begin() as connection:
                for table in reversed(models.BaseModel.metadata.sorted_tables):
                    if "study_id" in table.c:
                        connection.execute(delete(table).where(table.c.study_id == study_id))
                    elif "trial_id" in table.c:
                        connection.execute(delete(table).where(table.c.trial_id.in_(of_study)))

    def close(self) -> None:
        """Let go of the connections."""
        with self._lock:
            storage, self._storage = self._storage, None
            self._open.clear()
        if storage is not None:
            storage.engine.dispose()

    @contextmanager
    def _asked(self) -> Iterator[RDBStorage]:
        """Around everything that the database is asked."""
        try:
            with self._lock:
                self._storage = self._storage or self._connect()
                storage = self._storage
            yield storage
        except (SQLAlchemyError, OptunaError) as error:
            said = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
            raise StudiesUnreachable(f"the studies' database: {said}") from error

    def _connect(self) -> RDBStorage:
        if self._url is None:
            raise StudiesUnreachable(f"{STUDY_VARIABLE} is not set, and searches keep their trials there")
        try:
            url = parse_database_url(self._url)
        except DatabaseUrlError as error:
            raise StudiesUnreachable(str(error).replace("RCMAE_DATABASE_URL", STUDY_VARIABLE)) from error
        if url.get_backend_name() == "sqlite":
            storage = RowStorage(
                url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}, "hide_parameters": True},
            )
            event.listen(storage.engine, "connect", _write_ahead)
            return storage
        settings = " ".join(f"-c {name}={value}" for name, value in POSTGRES_SETTINGS.items())
        arguments = {name: value for name, value in POSTGRES.items() if name not in url.query} | {"options": settings}
        return RowStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs={"connect_args": arguments, "pool_pre_ping": True, "hide_parameters": True},
        )

    def __str__(self) -> str:
        return shown(parse_database_url(self._url)) if self._url else "none"


def _write_ahead(connection: Any, record: object) -> None:  # noqa: ARG001 - a listener's form
    """Readers and the one writer do not wait for each other."""
    connection.execute("PRAGMA journal_mode=WAL")
